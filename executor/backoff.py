"""How long to wait before asking again something that did not answer."""

import random
from dataclasses import dataclass, field

import anyio


@dataclass(slots=True)
class Backoff:
    """Exponential waits with jitter, so that a fleet does not come back in step.

    `first` and `longest` are seconds; each wait is drawn from the upper half of its interval.
    """

    first: float = 0.2
    longest: float = 20.0
    draw: random.Random = field(default_factory=random.Random)
    _interval: float = field(default=0.0, init=False)

    def next_wait(self) -> float:
        """How many seconds to wait now; the next time up to twice as long."""
        self._interval = min(self.longest, self._interval * 2 or self.first)
        return self._interval * self.draw.uniform(0.5, 1.0)

    async def wait(self) -> None:
        """Wait for as long."""
        await anyio.sleep(self.next_wait())

    def reset(self) -> None:
        """It answered: begin again with short waits."""
        self._interval = 0.0
