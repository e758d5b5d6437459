"""Follows a run in DataHub from its request to its end, on a terminal or into a pipe."""

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self, TextIO

import anyio

from executor.backoff import Backoff
from executor.commands.run_log import LogFollower, log_of, summary_of
from executor.datahub.client import DataHub
from executor.datahub.errors import DataHubUnavailableError
from executor.datahub.state import is_end

POLL_INTERVAL: Final = 0.7  # seconds
LONGEST_WAIT: Final = 5.0  # seconds between two tries while DataHub is away
AWAY: Final = "waiting for DataHub (--timeout limits it)"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run that ended is called: its status, or something that says more, and what to add to its summary."""

    status: str
    words: str = ""


Judge = Callable[[str], Awaitable[Verdict]]
"""Makes a verdict of a final status; may raise DataHubError."""


async def _as_stored(status: str) -> Verdict:
    return Verdict(status)


class View(Protocol):
    """Where the progress of a run is shown."""

    def show(self, status: str | None, summary: str, lines: list[str]) -> None:
        """Tell what is known now, and the log's new lines."""

    def away(self, reason: str | None) -> None:
        """Tell that DataHub does not answer, or (None) that it does again."""


class Display(View, Protocol):
    """A view that has the output for itself; a context manager, so that a terminal is put back at the end."""

    @property
    def status(self) -> str | None:
        """The status shown last; empty for a run that nobody has taken, None while nothing is known."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put back what was changed."""

    async def refresh(self) -> None:
        """Show what moves by itself, until cancelled."""


async def follow(datahub: DataHub, exec_id: str, view: View, judge: Judge = _as_stored) -> tuple[str, str]:
    """Follow a run to its end: its status by `judge`, and its report's summary. Outages are waited out.

    Raises:
        DataHubRefusedError: DataHub does not let us see it.
    """
    backoff = Backoff(longest=LONGEST_WAIT)
    log, started, is_away = LogFollower(), None, False
    while True:
        try:
            state: Mapping[str, Any] = await datahub.followed_state(exec_id)
            verdict = await _verdict(state.get("status"), judge)
        except DataHubUnavailableError as error:
            if not is_away:
                view.away(str(error))
            is_away = True
            await backoff.wait()
            continue
        if is_away:
            view.away(None)
        is_away = False
        backoff.reset()
        if state.get("startTimeMs") != started:  # another attempt: its log begins anew
            log, started = LogFollower(), state.get("startTimeMs")
        report = str(state.get("report") or "")
        summary, lines = summary_of(report), log.new_lines(log_of(report), ended=verdict is not None)
        if verdict is not None:
            view.show(verdict.status, summary, lines)
            return verdict.status, "\n\n".join(filter(None, (summary, verdict.words)))
        view.show(state.get("status"), summary, lines)
        await anyio.sleep(POLL_INTERVAL)


async def _verdict(status: str | None, judge: Judge) -> Verdict | None:
    return await judge(status) if status is not None and is_end(status) else None


class PlainView(AbstractContextManager["PlainView"]):
    """Prints the log's lines as they come; what else there is to say goes to standard error."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self.status: str | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    async def refresh(self) -> None:
        """Nothing moves by itself here."""

    def show(self, status: str | None, summary: str, lines: list[str]) -> None:
        """See `View`."""
        del summary
        if self.status != (status or ""):
            self._say(status or "waiting for an executor")
        self.status = status or ""
        for line in lines:
            self._out.write(f"{line}\n")
        self._out.flush()

    def away(self, reason: str | None) -> None:
        """See `View`."""
        self._say("DataHub answers again" if reason is None else f"{reason}; {AWAY}")

    def _say(self, words: str) -> None:
        self._err.write(f"{words}\n")
        self._err.flush()


def make_view(executor_id: str) -> Display:
    """What suits standard output."""
    if sys.stdout.isatty():
        from executor.commands.live_view import LiveView  # here, as a pipe needs none of it

        return LiveView(sys.stdout, executor_id)
    return PlainView(sys.stdout, sys.stderr)
