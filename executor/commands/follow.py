"""Follows a run in DataHub from its request to its end, on a terminal or into a pipe."""

import sys
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TextIO

import anyio

from executor.backoff import Backoff
from executor.commands.run_log import LogFollower, log_of, summary_of
from executor.datahub.client import DataHub
from executor.datahub.errors import DataHubUnavailableError
from executor.datahub.state import is_end

if TYPE_CHECKING:
    from rich.console import RenderableType

POLL_INTERVAL: Final = 0.7  # seconds
LONGEST_WAIT: Final = 5.0  # seconds between two tries while DataHub is away
_REFRESH_INTERVAL: Final = 0.1  # seconds between two pictures on a terminal
_LINES_KEPT: Final = 200  # more than a screen has
_FRAME: Final = 3  # lines of a screen that the log leaves free


class View(Protocol):
    """Where the progress of a run is shown."""

    def show(self, status: str | None, summary: str, lines: list[str]) -> None:
        """Tell what is known now, and the log's new lines."""

    def away(self, reason: str | None) -> None:
        """Tell that DataHub does not answer, or (None) that it does again."""


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


@dataclass
class _Picture:
    status: str | None = None
    facts: str = ""
    away: str | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES_KEPT))


class LiveView(AbstractContextManager["LiveView"]):
    """A picture that moves: how the run is doing, and as much of the log's end as the screen takes."""

    def __init__(self, out: TextIO, executor_id: str) -> None:
        from rich.console import Console  # here, as a pipe needs none of it
        from rich.live import Live
        from rich.spinner import Spinner

        self._console = Console(file=out, highlight=False)
        self._spinner = Spinner("dots")
        self._picture = _Picture(facts=f"for an executor of pool {executor_id}")
        self._began = anyio.current_time()
        self._ended = False
        self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._rendered)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last picture on the screen."""
        self._ended = True
        self._live.stop()

    async def refresh(self) -> None:
        """Keep it moving, until cancelled."""
        while True:
            self._live.refresh()
            await anyio.sleep(_REFRESH_INTERVAL)

    def show(self, status: str | None, summary: str, lines: list[str]) -> None:
        """See `View`."""
        self._picture.status = status
        said = _facts_of(summary)
        if said:
            self._picture.facts = said
        self._picture.lines.extend(lines)

    def away(self, reason: str | None) -> None:
        """See `View`."""
        self._picture.away = reason

    def _rendered(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        picture = self._picture
        seconds = round(anyio.current_time() - self._began)
        words = Text.assemble(
            (picture.status or "WAITING", "bold"), f"  {picture.facts}  {seconds // 60}:{seconds % 60:02}"
        )
        head = Table.grid(padding=(0, 1))
        head.add_row("" if self._ended else self._spinner, words)
        away = [Text(f"{picture.away}; waiting for it", style="yellow")] if picture.away else []
        room = max(self._console.height - _FRAME - len(away), 1)
        log = Text("\n", no_wrap=True, overflow="ellipsis", end="").join(
            Text.from_ansi(line.replace("\t", "    "), style="dim") for line in list(picture.lines)[-room:]
        )
        log.no_wrap, log.overflow = True, "ellipsis"
        return Group(head, *away, log)


def make_view(executor_id: str) -> PlainView | LiveView:
    """What suits standard output."""
    if sys.stdout.isatty():
        return LiveView(sys.stdout, executor_id)
    return PlainView(sys.stdout, sys.stderr)


def _facts_of(summary: str) -> str:
    """What a summary says of the attempt and the executor, on one line."""
    pairs = (line.partition(":") for line in summary.splitlines())
    said = {name: value.strip() for name, colon, value in pairs if colon}
    attempt, executor = said.get("Attempt"), said.get("Executor")
    return f"attempt {attempt}, {executor}" if attempt and executor else ""
