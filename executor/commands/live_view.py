"""The progress of a run as a picture on a terminal."""

from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TextIO

import anyio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from executor.commands.follow import AWAY

_REFRESH_INTERVAL: Final = 0.1  # seconds between two pictures
_LINES_KEPT: Final = 200  # more than a screen has
_FRAME: Final = 3  # lines of a screen that the log leaves free


@dataclass
class _Picture:
    status: str | None = None  # empty for a run that nobody has taken
    facts: str = ""
    away: str | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES_KEPT))


class LiveView(AbstractContextManager["LiveView"]):
    """A picture that moves: how the run is doing, and as much of the log's end as the screen takes."""

    def __init__(self, out: TextIO, executor_id: str) -> None:
        self._console = Console(file=out, highlight=False)
        self._spinner = Spinner("dots")
        self._picture = _Picture(facts=f"for an executor of pool {executor_id}")
        self._began = anyio.current_time()
        self._ended = False
        self._live = Live(console=self._console, auto_refresh=False, get_renderable=self._rendered)

    @property
    def status(self) -> str | None:
        """See `Display`."""
        return self._picture.status

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
        self._picture.status = status or ""
        said = _facts_of(summary)
        if said:
            self._picture.facts = said
        self._picture.lines.extend(lines)

    def away(self, reason: str | None) -> None:
        """See `View`."""
        self._picture.away = reason

    def _rendered(self) -> RenderableType:
        picture = self._picture
        seconds = round(anyio.current_time() - self._began)
        words = Text.assemble(
            (picture.status or "WAITING", "bold"), f"  {picture.facts}  {seconds // 60}:{seconds % 60:02}"
        )
        head = Table.grid(padding=(0, 1))
        head.add_row("" if self._ended else self._spinner, words)
        away = [Text(f"{picture.away}; {AWAY}", style="yellow")] if picture.away else []
        room = max(self._console.height - _FRAME - len(away), 1)
        log = Text("\n", no_wrap=True, overflow="ellipsis", end="").join(
            Text.from_ansi(line.replace("\t", "    "), style="dim") for line in list(picture.lines)[-room:]
        )
        return Group(head, *away, log)


def _facts_of(summary: str) -> str:
    """What a summary says of the attempt and the executor, on one line."""
    pairs = (line.partition(":") for line in summary.splitlines())
    said = {name: value.strip() for name, colon, value in pairs if colon}
    attempt, executor = said.get("Attempt"), said.get("Executor")
    return f"attempt {attempt}, {executor}" if attempt and executor else ""
