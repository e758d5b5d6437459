"""What a run prints: masked as it comes, kept in bounded memory, shown as text."""

import codecs
import re
from collections import deque
from typing import Final

from executor.ingestion.masking import Masker, StreamMasker

LIMIT_BYTES: Final = 2 * 1024 * 1024  # of the newest lines are kept, and at most a chunk more
LINE_LIMIT: Final = 16 * 1024  # bytes of one line
_BLOCK: Final = 64 * 1024  # bytes from which on a block is closed
_HEADER: Final = 128  # bytes, more than the line about what was cut takes
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1a\x1c-\x1f]")  # C0 without tab, newline, and ESC (colours)


class OutputBuffer:
    """The newest lines of a run's output.

    What is kept are blocks of whole lines, not line objects: work on single lines is put off to `snapshot`,
    which has only the newest before it. A line over the limit keeps its beginning. Of a line that writes over
    itself with carriage returns, as progress bars do, the last state counts.
    """

    def __init__(
        self, masker: StreamMasker, limit_bytes: int = LIMIT_BYTES, line_limit: int = LINE_LIMIT
    ) -> None:
        self._stream = masker
        self._limit = limit_bytes
        self._line_limit = line_limit
        self._blocks: deque[tuple[bytes, int]] = deque()  # whole lines, and how many
        self._blocks_size = 0
        self._newest = bytearray()  # the block that still grows
        self._newest_lines = 0
        self._dropped_bytes = self._dropped_lines = 0
        self._line = bytearray()  # the line that has not ended yet, without what was cut
        self._line_cut = 0
        self._returned = False  # whether the next byte of that line overwrites it
        self._ended_lines = 0
        self.version = 0
        """Grows whenever a snapshot may differ from the one before."""
        self.total_bytes = 0
        """Bytes fed so far, whatever was cut or is still held back by the masker."""

    @property
    def masker(self) -> Masker:
        """What keeps secrets out of it."""
        return self._stream.masker

    @property
    def total_lines(self) -> int:
        """Lines so far, the unfinished one included."""
        return self._ended_lines + bool(self._line)

    def feed(self, chunk: bytes) -> None:
        """Take what the process wrote; a chunk may end anywhere."""
        self.total_bytes += len(chunk)
        self._take(self._stream.feed(chunk))

    def finish(self) -> None:
        """End a process's output: what the masker held back comes out. Another's may follow."""
        self._take(self._stream.flush())

    def note(self, text: str) -> None:
        """Put a line of ours into the log; an unfinished line before it ends here."""
        line = self.masker.mask(text).encode("utf-8", "replace") + b"\n"
        self._take(b"\n" + line if self._line else line)

    def snapshot(self, limit_bytes: int = LIMIT_BYTES) -> str:
        """The newest whole lines that fit into so many bytes of UTF-8; a first line tells what was cut."""
        line = _said(bytes(self._line), self._line_cut)
        text = _readable(b"".join([*(block for block, _ in self._blocks), self._newest, line]))
        if not self._dropped_lines and len(text) * 4 <= limit_bytes:
            return text
        data = text.encode()
        cut = _first_line_within(data, limit_bytes - (_HEADER if self._dropped_lines else 0))
        if cut and not self._dropped_lines:
            cut = _first_line_within(data, limit_bytes - _HEADER)
        lines, size = self._dropped_lines + data.count(b"\n", 0, cut), self._dropped_bytes + cut
        header = f"[… {lines:,} earlier lines ({in_units(size)}) cut]\n" if size else ""
        return header + data[cut:].decode("utf-8", "ignore")

    def _take(self, data: bytes) -> None:
        if not data:
            return
        self.version += 1
        first, last = data.find(b"\n"), data.rfind(b"\n")
        if first == -1:
            self._extend_line(data)
            return
        self._extend_line(data[:first])
        self._append(_said(bytes(self._line), self._line_cut) + b"\n")
        self._line, self._line_cut, self._returned = bytearray(), 0, False
        if last > first:
            self._append(self._with_long_lines_cut(data[first + 1 : last + 1]))
        self._extend_line(data[last + 1 :])

    def _extend_line(self, data: bytes) -> None:
        """Go on with the unfinished line. A carriage return at its end may still belong to a line end."""
        visible = data.rstrip(b"\r")
        if visible:
            start = visible.rfind(b"\r") + 1
            if start or self._returned:
                self._line, self._line_cut, self._returned = bytearray(), 0, False
            kept = visible[start : start + self._line_limit - len(self._line)]
            self._line += kept
            self._line_cut += len(visible) - start - len(kept)
        self._returned = self._returned or len(visible) < len(data)

    def _append(self, lines: bytes) -> None:
        count = lines.count(b"\n")
        self._ended_lines += count
        self._newest += lines
        self._newest_lines += count
        if len(self._newest) < _BLOCK:
            return
        self._blocks.append((bytes(self._newest), self._newest_lines))
        self._blocks_size += len(self._newest)
        self._newest, self._newest_lines = bytearray(), 0
        while self._blocks_size - len(self._blocks[0][0]) >= self._limit:
            block, count = self._blocks.popleft()
            self._blocks_size -= len(block)
            self._dropped_bytes += len(block)
            self._dropped_lines += count

    def _with_long_lines_cut(self, lines: bytes) -> bytes:
        """Look from line end to line end, a whole line limit at a time: short lines cost nothing each."""
        pieces, done, at = [], 0, 0
        while len(lines) - at > self._line_limit + 1:
            end = lines.rfind(b"\n", at, at + self._line_limit + 1)
            if end == -1:
                end = lines.find(b"\n", at)
                line = _last_state(lines[at:end])
                kept = line[: self._line_limit]
                pieces += [lines[done:at], _said(kept, len(line) - len(kept)), b"\n"]
                done = end + 1
            at = end + 1
        return b"".join([*pieces, lines[done:]]) if pieces else lines


def in_units(size: int) -> str:
    """A number of bytes for people."""
    if size < 1000:
        return f"{size} bytes"
    amount, units = size / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while amount >= 1000:
        amount, unit = amount / 1000, next(units)
    return f"{amount:.1f} {unit}"


def _said(line: bytes, cut: int) -> bytes:
    """The line with what was cut of it put in words, and no half character before them."""
    if not cut:
        return line
    text, whole = codecs.utf_8_decode(line, "replace", False)
    return f"{text}… [{cut + len(line) - whole:,} more bytes of this line cut]".encode()


def _last_state(line: bytes) -> bytes:
    """What a terminal would show of a line with carriage returns."""
    visible = line.rstrip(b"\r")
    return visible[visible.rfind(b"\r") + 1 :]


def _readable(data: bytes) -> str:
    if b"\r" in data:
        data = b"\n".join(_last_state(line) if b"\r" in line else line for line in data.split(b"\n"))
    return _CONTROL.sub("\ufffd", data.decode("utf-8", "replace"))


def _first_line_within(data: bytes, room: int) -> int:
    """Where the newest lines start that fit; inside the newest one where not even that fits."""
    start = len(data) - max(room, 0)
    if start <= 0:
        return 0
    line = data.find(b"\n", start - 1) + 1
    return line if 0 < line < len(data) else start
