"""Follows a run in DataHub from its request to its end, on a terminal or into a pipe."""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
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


class View(Protocol):
    """Where the progress of a run is shown."""

    def show(self, status: str | None, summary: str, lines: list[str]) -> None:
        """Tell what is known now, and the log's new lines."""

    def away(self, reason: str | None) -> None:
        """Tell that DataHub does not answer, or (None) that it does again."""


class Display(View, Protocol):
    """A view that has the output for itself; a context manager, so that a terminal is put back at the end."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put back what was changed."""

    async def refresh(self) -> None:
        """Show what moves by itself, until cancelled."""


async def follow(datahub: DataHub, exec_id: str, view: View) -> tuple[str, str]:
    """Follow a run to its end: its status and its report's summary. Outages are waited out.

    Raises:
        DataHubRefusedError: DataHub does not let us see it.
    """
    backoff = Backoff(longest=LONGEST_WAIT)
    log, started, is_away = LogFollower(), None, False
    while True:
        try:
            state: Mapping[str, Any] = await datahub.followed_state(exec_id)
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
        status, report = state.get("status"), str(state.get("report") or "")
        ended, summary = is_end(status), summary_of(report)
        view.show(status, summary, log.new_lines(log_of(report), ended=ended))
        if status is not None and ended:
            return status, summary
        await anyio.sleep(POLL_INTERVAL)


class PlainView(AbstractContextManager["PlainView"]):
    """Prints the log's lines as they come; what else there is to say goes to standard error."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._said = ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    async def refresh(self) -> None:
        """Nothing moves by itself here."""

    def show(self, status: str | None, summary: str, lines: list[str]) -> None:
        """See `View`."""
        del summary
        words = status or "waiting for an executor"
        if words != self._said:
            self._say(words)
        self._said = words
        for line in lines:
            self._out.write(f"{line}\n")
        self._out.flush()

    def away(self, reason: str | None) -> None:
        """See `View`."""
        self._say("DataHub answers again" if reason is None else f"{reason}; waiting for it")

    def _say(self, words: str) -> None:
        self._err.write(f"{words}\n")
        self._err.flush()


def make_view(executor_id: str) -> Display:
    """What suits standard output."""
    if sys.stdout.isatty():
        from executor.commands.live_view import LiveView  # here, as a pipe needs none of it

        return LiveView(sys.stdout, executor_id)
    return PlainView(sys.stdout, sys.stderr)
