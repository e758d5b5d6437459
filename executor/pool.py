"""Bounds what runs at a time, by weight, first come first served. The only place that counts slots."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import anyio

# Weights are whole billionths, rounded down: sums of decimal fractions are exact, and 1/3 fits three times.
_WHOLE = 1_000_000_000
_NOISE = 0.001  # billionths: 0.29 as a float may be a little less than 0.29


class Pool:
    """Slots whose weights never add up to more than 1.0 (contract, section 1).

    A ticket that does not fit yet holds back all later ones, so that light runs can't starve a heavy one.
    """

    def __init__(self, max_workers: int) -> None:
        self._share = _WHOLE // max_workers
        self._free = _WHOLE
        self._asked = 0
        self._waiting: deque[Ticket] = deque()
        self._changed = anyio.Event()
        self.max_workers = max_workers
        self.active = 0

    @property
    def waiting(self) -> int:
        """How many tickets wait for their slot."""
        return len(self._waiting)

    def ticket(self, weight: float | None = None) -> "Ticket":
        """Queue up for a slot of `weight` (default: one worker's share). Enter the ticket to wait for it."""
        ticket = Ticket(self, self._units(weight))
        self._waiting.append(ticket)
        self._grant()
        return ticket

    @property
    def full(self) -> bool:
        """Whether not even one run of the default weight could start."""
        return bool(self._waiting) or self._free < self._share

    async def room(self) -> int:
        """How many runs of the default weight could start, beyond those asked for; waits for room for one."""
        while self._waiting or self._free // self._share <= self._asked:
            await self._changed.wait()
        return self._free // self._share - self._asked

    @contextmanager
    def asking(self, count: int) -> Iterator[None]:
        """Meanwhile so many runs are asked for: `room` leaves them out. Tickets need not care."""
        self._asked += count
        try:
            yield
        finally:
            self._asked -= count
            self._announce()

    def _units(self, weight: float | None) -> int:
        if weight is None:
            return self._share
        return max(1, min(_WHOLE, math.floor(weight * _WHOLE + _NOISE)))

    def _grant(self) -> None:
        while self._waiting and self._waiting[0].units <= self._free:
            ticket = self._waiting.popleft()
            self._free -= ticket.units
            self.active += 1
            ticket.granted.set()
        self._announce()

    def _withdraw(self, ticket: "Ticket") -> None:
        if ticket.granted.is_set():
            self._free += ticket.units
            self.active -= 1
        else:
            self._waiting.remove(ticket)
        self._grant()

    def _lighten(self, ticket: "Ticket", units: int) -> None:
        self._free += ticket.units - units
        ticket.units = units
        self._grant()

    def _requeue(self, ticket: "Ticket", units: int) -> None:
        """Swap the slot for the first place in line: two that held on to theirs could wait for each other."""
        self._free += ticket.units
        self.active -= 1
        ticket.units, ticket.granted = units, anyio.Event()
        self._waiting.appendleft(ticket)
        self._grant()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class Ticket:
    """A place in the queue for a slot, then the slot; leaving the context gives it back."""

    def __init__(self, pool: Pool, units: int) -> None:
        self._pool = pool
        self.units = units
        self.granted = anyio.Event()
        self._given_back = False
        self.left_others = False  # there were other runs when the slot was given back

    async def __aenter__(self) -> Self:
        try:
            await self.granted.wait()
        except BaseException:
            self.give_back()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Free the slot before the context is left; the place in the queue where there is no slot yet."""
        if not self._given_back:
            self._given_back = True
            self.left_others = self._pool.active > 1
            self._pool._withdraw(self)  # noqa: SLF001 - the ticket is the pool's other half

    async def change(self, weight: float | None) -> None:
        """Take another weight, for a run whose weight was learned late; a heavier one waits first in line.

        While it waits it has no slot, also when the waiting is cancelled: leave the context then.
        """
        units = self._pool._units(weight)  # noqa: SLF001
        if units < self.units:
            self._pool._lighten(self, units)  # noqa: SLF001
        elif units > self.units:
            self._pool._requeue(self, units)  # noqa: SLF001
            await self.granted.wait()
