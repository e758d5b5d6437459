"""A run's report as one who follows it sees it: its summary, and of its log the lines that are new. Pure."""

import re
from typing import Final

_LOG: Final = "\n== Log ==\n"
_STRUCTURED: Final = "\n== Structured report ==\n"
# "[… 1,200 earlier lines (3.4 MB) cut]": the log's first lines are left out, and that many of them.
_CUT: Final = re.compile(r"\[… ([\d,]+) (?:earlier|more) lines .*")
_TAIL: Final = 50  # lines that are enough to know a place in a log again


def summary_of(report: str) -> str:
    """What stands before the structured report and the log."""
    ends = (at for marker in (_STRUCTURED, _LOG) if (at := report.find(marker)) != -1)
    return report[: min(ends, default=len(report))].strip()


def log_of(report: str) -> str:
    """The log; of a report in another form, all of it."""
    _, marker, log = report.partition(_LOG)
    return log if marker else report


class LogFollower:
    """Finds the new lines in a log that is read again and again while it grows.

    Each time all that is kept of it is read; the oldest lines may be missing, more or fewer than last time. How
    many is said in its first lines, and what was shown last is looked for: so lines that are all the same are
    told apart, and a log that does not say so is followed, too.
    """

    def __init__(self) -> None:
        self._count = 0  # lines so far, the missing ones included
        self._tail: list[str] = []  # the last of them

    def new_lines(self, log: str, *, ended: bool) -> list[str]:
        """The lines that were not in it before. One without an end waits until the run has `ended`."""
        cut, lines = _split(log)
        if not ended or lines[-1] == "":
            lines.pop()
        start = self._count - cut
        notice = []
        if start < 0:
            notice = [f"[… {-start:,} lines went by unseen]"]
            start = 0
        elif not self._stands_before(start, lines):
            start = self._found_in(lines)
        new = lines[start:]
        if new or notice:
            self._count = cut + len(lines)
            self._tail = (self._tail + new)[-_TAIL:]
        return notice + new

    def _stands_before(self, start: int, lines: list[str]) -> bool:
        """Whether what was shown last ends where `start` says."""
        if start > len(lines):
            return False
        known = min(start, len(self._tail))
        return lines[start - known : start] == self._tail[len(self._tail) - known :]

    def _found_in(self, lines: list[str]) -> int:
        """Where what was shown last ends, the last such place; 0 if it is nowhere."""
        known = len(self._tail)
        ends = range(len(lines), known - 1, -1) if known else ()
        return next((end for end in ends if lines[end - known : end] == self._tail), 0)


def _split(log: str) -> tuple[int, list[str]]:
    """How many lines are missing at the beginning, and the others; the last of these has no end."""
    lines = log.split("\n")
    cut = 0
    while len(lines) > 1 and (notice := _CUT.fullmatch(lines[0])):
        cut += int(notice[1].replace(",", ""))
        del lines[0]
    return cut, lines
