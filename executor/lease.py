"""How long a run may go on: until then nobody else can have been given its request. No I/O."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class LeaseEndedError(Exception):
    """The lease ended before the work did: somebody else may have the request by now."""


class Lease:
    """A time on the monotonic clock (seconds, `time.monotonic`), put off again and again by whoever keeps it.

    The work must be over by then, whatever the one who keeps the lease is waiting for.
    """

    def __init__(self, ends: float) -> None:
        self._ends = ends
        self._followers: list[Callable[[float], None]] = []

    @property
    def ends(self) -> float:
        """Until when the work may go on."""
        return self._ends

    def renew(self, ends: float) -> None:
        """It lasts until `ends` from now on; those who follow it are told."""
        if ends != self._ends:
            self._ends = ends
            for follower in list(self._followers):
                follower(ends)

    @contextmanager
    def followed(self, follower: Callable[[float], None]) -> Iterator[None]:
        """Meanwhile tell `follower` of every change."""
        self._followers.append(follower)
        try:
            yield
        finally:
            self._followers.remove(follower)
