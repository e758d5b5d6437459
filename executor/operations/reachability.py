"""Whether a server that we depend on answers: said when it changes, and now and then while it lasts."""

from collections.abc import Callable

import anyio
import structlog

FORGOTTEN_AFTER = 60.0  # seconds after which a failure counts no more, if nobody tried it again
SAID_EVERY = 300.0  # seconds: whoever reads the newest lines of the log is to find out what is wrong

log = structlog.get_logger()


class Reachability:
    """The last word on one server. `reached` is None until the first call came back.

    A server that does one thing and fails at another stays unavailable until that one is done too, or nobody
    asks for it any more: else every call would change the word.
    """

    def __init__(
        self, name: str, changed: Callable[[], None] = lambda: None, said_every: float = SAID_EVERY
    ) -> None:
        self.name = name
        self.reached: bool | None = None
        self._changed = changed
        self._said_every = said_every
        self._lost_at = 0.0
        self._said_at = 0.0
        self._failing: dict[str, float] = {}  # operation, and when it failed last

    def answered(self, operation: str = "") -> None:
        """It did what it was asked for."""
        now = anyio.current_time()
        self._failing = {
            name: at
            for name, at in self._failing.items()
            if name not in {operation, ""} and now - at < FORGOTTEN_AFTER
        }
        if self._failing:
            return
        if self.reached is False:
            seconds = round(now - self._lost_at, 1)
            log.info("server_back", server=self.name, after_seconds=seconds)
        elif self.reached is None:
            log.info("server_reached", server=self.name)
        self._set(reached=True)

    def failed(self, reason: str, operation: str = "") -> None:
        """It answered nothing that can be used at `operation`; empty: it did not answer at all."""
        now = anyio.current_time()
        self._failing[operation] = now
        if self.reached is not False:
            self._lost_at = self._said_at = now
            log.warning("server_unavailable", server=self.name, reason=reason, retrying=True)
        elif now - self._said_at >= self._said_every:
            self._said_at = now
            seconds = round(now - self._lost_at)
            log.warning("server_still_unavailable", server=self.name, reason=reason, for_seconds=seconds)
        self._set(reached=False)

    def _set(self, *, reached: bool) -> None:
        if self.reached is not reached:
            self.reached = reached
            self._changed()
