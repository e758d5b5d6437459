"""How long to wait before asking again something that did not answer."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
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


@dataclass(slots=True)
class AnswerLimit:
    """How long an answer is waited for: a server that answers slowly must not be asked in vain for ever.

    `shortest` and `longest` are seconds: twice as long after each answer that came too late, and twice what the
    last one took that came.
    """

    shortest: float
    longest: float
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        self.seconds = self.shortest

    @contextmanager
    def move_on(self) -> Iterator[anyio.CancelScope]:
        """Ask within this; its scope tells whether the answer was too late."""
        began = anyio.current_time()
        with anyio.move_on_after(self.seconds) as scope:
            yield scope
        taken = self.seconds if scope.cancelled_caught else anyio.current_time() - began
        self.seconds = min(self.longest, max(self.shortest, 2 * taken))
