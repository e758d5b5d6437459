"""What the demo shows: numbered steps with their times, a run's log, tables. In colour on a terminal."""

import io
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, TextIO

import anyio
from rich.console import Console, OverflowMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from executor.local.demo_service import DemoError

_PIPE_WIDTH: Final = 110  # columns of a table where no terminal says how many there are
_ALWAYS: Final = ("Built in ", "Pipeline finished")  # how the executor and the CLI end what they say
_TAIL: Final = 15  # lines of a log that a failure quotes


class Step:
    """A step that is under way; `words` are those of its line, which is printed when it is done."""

    def __init__(self, words: str) -> None:
        self.words = words


class Show:
    """Prints to `out`."""

    def __init__(self, out: TextIO) -> None:
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="replace")  # the marks, where the locale has none of them
        self._terminal = out.isatty()
        width = None if self._terminal else _PIPE_WIDTH
        self._console = Console(file=out, highlight=False, markup=False, width=width)
        self._number = 0

    @contextmanager
    def step(self, words: str, *, long: bool = False) -> Iterator[Step]:
        """A numbered step, with its time and whether it was done; a `long` one has lines of its own in between."""
        self._number += 1
        number, step, done, began = f"{self._number:>2}", Step(words), False, anyio.current_time()
        if long:
            self._print(Text(f"  {number}  {words}"), wrapped=True)
            number = "  "
        try:
            with self._busy(words):
                yield step
            done = True
        finally:
            mark, style = ("✓", "bold green") if done else ("✗", "bold red")
            seconds = f"{anyio.current_time() - began:.1f} s"
            line = Text.assemble((mark, style), f" {number}  {step.words}  ", (seconds, "cyan"))
            self._print(line, wrapped=True)

    def _busy(self, words: str) -> AbstractContextManager[object]:
        return self._console.status(f"{words} …") if self._terminal else nullcontext()

    def title(self, words: str) -> None:
        """A heading, with room above it."""
        self._print(Text(f"\n{words}", style="bold"), wrapped=True)

    def text(self, words: str) -> None:
        """Lines as they are."""
        self._print(Text(words), wrapped=True)

    def mark(self, seconds: float, words: str) -> None:
        """Something that happened `seconds` after the step began, which goes on."""
        self._print(Text.assemble((f"{seconds:>10.2f} s  ", "cyan"), words))

    def log(self, line: str) -> None:
        """A line of a log."""
        self._print(Text.assemble("      │ ", Text.from_ansi(line.replace("\t", "    ")), style="dim"))

    def fault(self, words: str) -> None:
        """Why the demo failed."""
        self._print(Text.assemble(("\n✗ ", "bold red"), words), wrapped=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> None:
        """A table; with `numbers`, all columns but the first are aligned to the right."""
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
        for position, name in enumerate(head):
            table.add_column(
                name,
                justify="right" if numbers and position else "left",
                overflow="fold",
                no_wrap=not position,
            )
        for row in rows:
            table.add_row(*row)
        self._put(Padding(table, (0, 0, 0, 6), expand=False))

    def _print(self, text: Text, *, wrapped: bool = False) -> None:
        """Into a pipe, lines go whole; a terminal gets as much of a log's line as it is wide."""
        if wrapped or not self._terminal:
            self._put(text, soft_wrap=True)
        else:
            self._put(text, no_wrap=True, overflow="ellipsis")

    def _put(
        self,
        what: RenderableType,
        *,
        soft_wrap: bool = False,
        no_wrap: bool = False,
        overflow: OverflowMethod | None = None,
    ) -> None:
        try:
            self._console.print(what, soft_wrap=soft_wrap, no_wrap=no_wrap, overflow=overflow)
        except (
            SystemExit
        ):  # rich's answer to a pipe that was closed: too fast, what was started must be ended
            raise DemoError("nobody reads the output any more") from None


class RunView:
    """Shows a run's log as the page has it: the first lines, and how many more there were.

    What uv installs is counted rather than listed, what is for debugging left out.
    """

    def __init__(self, show: Show, lines: int) -> None:
        self._show = show
        self._room = lines
        self._packages = 0
        self._hidden = 0
        self._tail: deque[str] = deque(maxlen=_TAIL)

    def show(self, status: str | None, summary: str, lines: list[str]) -> None:
        """See `executor.commands.follow.View`."""
        del status, summary
        for line in lines:
            self._tail.append(line)
            if line.startswith(" + "):
                self._packages += 1
                continue
            self._say_packages()
            if line.startswith(_ALWAYS) or (self._room > 0 and "DEBUG" not in line):
                self._room -= 1
                self._show.log(line)
            else:
                self._hidden += 1

    def away(self, reason: str | None) -> None:
        """See `executor.commands.follow.View`."""
        self._show.log("the stand-in answers again" if reason is None else reason)

    def end(self) -> None:
        """Say what was not shown."""
        self._say_packages()
        if self._hidden:
            self._show.log(f"… {self._hidden} more lines in the report")

    def last_lines(self) -> str:
        """The end of the log, for a person to read."""
        return "\n".join(f"  {line}" for line in self._tail)

    def _say_packages(self) -> None:
        if self._packages:
            self._show.log(f" + {self._packages} package{'s' if self._packages > 1 else ''}")
        self._packages = 0
