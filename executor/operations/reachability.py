"""Whether a server that we depend on answers: said once when it changes, not with every call."""

from collections.abc import Callable

import anyio
import structlog

log = structlog.get_logger()


class Reachability:
    """The last word on one server. `reached` is None until the first call came back."""

    def __init__(self, name: str, changed: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.reached: bool | None = None
        self._changed = changed
        self._lost_at = 0.0

    def answered(self) -> None:
        """It answered."""
        if self.reached is False:
            seconds = round(anyio.current_time() - self._lost_at, 1)
            log.info("server_back", server=self.name, after_seconds=seconds)
        elif self.reached is None:
            log.info("server_reached", server=self.name)
        self._set(reached=True)

    def failed(self, reason: str) -> None:
        """It did not answer, or answered nothing that can be used."""
        if self.reached is not False:
            self._lost_at = anyio.current_time()
            log.warning("server_unavailable", server=self.name, reason=reason, retrying=True)
        self._set(reached=False)

    def _set(self, *, reached: bool) -> None:
        if self.reached is not reached:
            self.reached = reached
            self._changed()
