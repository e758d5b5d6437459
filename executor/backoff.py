"""How long to wait before asking again something that did not answer."""

import random
from dataclasses import dataclass, field

import anyio


@dataclass(slots=True)
class Backoff:
    """Exponential waits with full-width jitter, so that a fleet does not come back in step.

    `first` and `longest` are seconds; each wait is drawn from the upper half of its interval.
    """

    first: float = 0.2
    longest: float = 20.0
    draw: random.Random = field(default_factory=random.Random)
    _next: float = 0.0

    async def wait(self) -> None:
        """Wait; the next wait is up to twice as long."""
        self._next = min(self.longest, self._next * 2 or self.first)
        await anyio.sleep(self._next * self.draw.uniform(0.5, 1.0))

    def reset(self) -> None:
        """It answered: begin again with short waits."""
        self._next = 0.0
