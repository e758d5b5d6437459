"""A line for each thing looked at, printed as it is found."""

import io
from enum import Enum
from typing import TextIO

_NAME_WIDTH = 27


class Mark(Enum):
    """How it is with one thing: the sign in front of its line, and the line's colour."""

    GOOD = ("✓", "green")
    WARNING = ("!", "yellow")
    FAULT = ("✗", "red")
    SKIPPED = ("\N{EN DASH}", "dim")


class Findings:
    """Prints what is found; on a terminal in colour. `faulty` once there was a fault."""

    def __init__(self, out: TextIO) -> None:
        self.faulty = False
        self._out = out
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="replace")  # the marks, where the locale has none of them

    def good(self, name: str, words: str) -> None:
        """It is as it should be."""
        self._add(Mark.GOOD, name, words)

    def warning(self, name: str, words: str, way_out: str) -> None:
        """The executor works, yet not as well as it could."""
        self._add(Mark.WARNING, name, f"{words} → {way_out}")

    def fault(self, name: str, words: str, way_out: str = "") -> None:
        """The executor can't work; leave `way_out` away where the words have it."""
        self.faulty = True
        self._add(Mark.FAULT, name, f"{words} → {way_out}" if way_out else words)

    def skipped(self, name: str, reason: str) -> None:
        """It could not be looked at."""
        self._add(Mark.SKIPPED, name, f"skipped: {reason}")

    def _add(self, mark: Mark, name: str, words: str) -> None:
        sign, style = mark.value
        line = f" {name:<{_NAME_WIDTH}} {' '.join(words.split())}"
        if self._out.isatty():
            self._print_styled(sign, style, line)
        else:
            self._out.write(f"{sign}{line}\n")
            self._out.flush()

    def _print_styled(self, sign: str, style: str, line: str) -> None:
        from rich.console import Console  # here, as a pipe needs none of it
        from rich.text import Text

        rest = "dim" if style == "dim" else ""
        text = Text.assemble((sign, f"bold {style}"), (line, rest))
        Console(file=self._out, highlight=False).print(text, soft_wrap=True)
