"""Keeps secret values out of logs and reports: every form that a value is known to take becomes `****`."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property, reduce
from typing import Final

from executor.ingestion.forms import MIN_LINE, PIECE, PIECES, RUN_CHARACTERS, forms_of, without_line_ends

MASK: Final = b"****"
_MAX_SEPARATE: Final = 4  # forms; checking more of them pairwise would cost more than it saves
_MAX_RUN: Final = 4096  # bytes of an unfinished run that a stream holds back
_MAX_INDENT: Final = 1024  # bytes around a line of a very long value
_CONTEXT: Final = 16  # bytes before a word that tell whether it begins there
_WORD_BYTES: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
# Ends in a letter or digit, but is no part of the word that follows: escapes, and a terminal's colours.
_NO_PART: Final = re.compile(
    rb"(?:\\[abfnrtv]|\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|%[0-9A-Fa-f]{2}|\x1b\[[0-9;]*[A-Za-z])\Z"
)

Span = tuple[int, int]


class Masker:
    """An immutable set of secret values, and the search for all of their forms.

    Masked are the value itself, its JSON (once and twice), Python, URL and base64 encodings, each with either
    kind of line end, and the lines of a multi-line value. Forms that overlap in the text are masked as one. A
    value of less than 8 characters is masked where it stands alone, a very long one in pieces of 16 bytes and
    more, and line by line.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self.forms_of = {value: forms_of(value) for value in values}

    def __repr__(self) -> str:
        return f"<Masker of {len(self.forms_of)} values>"

    def __or__(self, other: "Masker") -> "Masker":
        return self.union(other)

    @property
    def unmaskable(self) -> int:
        """How many of the values are too short or too common to be masked."""
        return sum(not forms for forms in self.forms_of.values())

    def union(self, other: "Masker") -> "Masker":
        """A masker of the values of both."""
        both = Masker()
        both.forms_of = self.forms_of | other.forms_of
        return both

    def with_values(self, values: Iterable[str]) -> "Masker":
        """A masker of these values too."""
        return self.union(Masker(values))

    def mask(self, text: str) -> str:
        """The text with every secret in it replaced."""
        data = text.encode("utf-8", "surrogatepass")
        masked = self.mask_bytes(data)
        return text if masked is data else masked.decode("utf-8", "replace")

    def mask_bytes(self, data: bytes) -> bytes:
        """The bytes with every secret in them replaced; the very same object where there is none."""
        hits, apart = self.hits(data), self.apart(data)
        if not hits and not apart:
            return data
        if not apart and _separate(hits):
            return reduce(lambda rest, form: rest.replace(form, MASK), hits, data)
        return _masked(data, _joined([*_occurrences(data, hits), *apart]), end=len(data), covered=0)[0]

    def stream(self) -> "StreamMasker":
        """A masker for bytes that come in pieces."""
        return StreamMasker(self)

    @cached_property
    def _groups(self) -> dict[bytes, set[bytes]]:
        """Forms by their needle."""
        merged: dict[bytes, set[bytes]] = {}
        for forms in self.forms_of.values():
            for needle, group in forms.groups.items():
                merged.setdefault(needle, set()).update(group)
        return merged

    @cached_property
    def _words(self) -> frozenset[bytes]:
        return frozenset().union(*(forms.words for forms in self.forms_of.values()))

    @cached_property
    def _pieces(self) -> frozenset[bytes]:
        return frozenset().union(*(forms.pieces for forms in self.forms_of.values()))

    @cached_property
    def _lines(self) -> frozenset[bytes]:
        return frozenset().union(*(forms.lines for forms in self.forms_of.values()))

    @cached_property
    def _longest_line(self) -> int:
        return max(map(len, self._lines), default=0)

    @cached_property
    def _longest_first(self) -> list[tuple[bytes, int]]:
        """Forms, and how many bytes it takes to tell whether one is there: a word's end shows in the next."""
        forms = {(form, len(form)) for group in self._groups.values() for form in group}
        forms |= {(word, len(word) + 1) for word in self._words}
        return sorted(forms, key=lambda entry: entry[1], reverse=True)

    def hits(self, data: bytes) -> list[bytes]:
        """The forms that occur. One search for the needle, which all of a group hold, rules the group out."""
        return [
            form for needle, forms in self._groups.items() if needle in data for form in forms if form in data
        ]

    def apart(self, data: bytes, before: bytes = b"", *, ended: bool = True) -> list[Span]:
        """Where words, and the pieces and lines of very long values, are; `before` is what stood before.

        Where the data has not `ended`, a word at its very end may go on, and is not taken for one.
        """
        found = [
            (start, stop)
            for start, stop in _occurrences(data, self._words)
            if _begins(data, start, before) and (_ends(data, stop) if stop < len(data) else ended)
        ]
        if self._pieces:
            found += self._piece_spans(without_line_ends(data))
        if self._lines and not self._lines.isdisjoint(map(bytes.strip, data.split(b"\n"))):
            goes_on = bool(before) and not before.endswith(b"\n")
            found += self._line_spans(data if ended else data[: data.rfind(b"\n") + 1], goes_on=goes_on)
        return found

    def _piece_spans(self, data: bytes) -> list[Span]:
        if self._pieces.isdisjoint(PIECES.findall(data)):
            return []
        spans = []
        for match in PIECES.finditer(data):
            if match[0] in self._pieces:
                rest = data[match.end() : match.end() + PIECE]  # what is too short for another piece
                spans.append((match.start(), match.end() + len(rest) - len(rest.lstrip(RUN_CHARACTERS))))
        return spans

    def _line_spans(self, data: bytes, *, goes_on: bool) -> list[Span]:
        """Where whole lines are; the first one is none where the data goes on with one."""
        spans, at = [], 0
        for number, line in enumerate(data.split(b"\n")):
            if (number or not goes_on) and (stripped := line.strip()) in self._lines:
                start = at + len(line) - len(line.lstrip())
                spans.append((start, start + len(stripped)))
            at += len(line) + 1
        return spans

    def pending(self, data: bytes) -> int:
        """Length of the longest end of `data` of which nobody knows yet whether it is a secret."""
        return max(self.begun(data), self._open_line(data) if self._pieces or self._lines else 0)

    def begun(self, data: bytes) -> int:
        """Length of the longest end of `data` that is the beginning of a form, but not all of it."""
        size, longest = len(data), 0
        for form, needed in self._longest_first:
            if needed <= longest + 1:
                break
            first = form[:1]
            at = data.find(first, max(size - needed + 1, 0), size - longest)
            while at != -1 and not (form.startswith(data[at : at + 8]) and form.startswith(data[at:])):
                at = data.find(first, at + 1, size - longest)
            if at != -1:
                longest = size - at
        return longest

    def _open_line(self, data: bytes) -> int:
        """Length of the unfinished line; of one longer than any of a secret, that of its unfinished run."""
        line = data[data.rfind(b"\n") + 1 :]
        if len(line.strip()) <= self._longest_line and len(line) <= self._longest_line + _MAX_INDENT:
            return len(line)
        run = len(data) - len(data.rstrip(RUN_CHARACTERS))
        if run > _MAX_RUN:
            return run % PIECE
        return run + (data[-run - 1 : len(data) - run] == b"\\")  # of an escape: its letter is not the run's

    def begun_piece(self, data: bytes) -> int:
        """Length of the end of `data` with which a line or a piece of a very long value begins."""
        line = data[data.rfind(b"\n") + 1 :].lstrip()
        run = data[len(data.rstrip(RUN_CHARACTERS)) :]
        for begun, known in ((line, self._lines), (run, self._pieces)):
            if len(begun) >= MIN_LINE and any(entry.startswith(begun) for entry in known):
                return len(begun)
        return 0


class StreamMasker:
    """Masks a stream as it comes, and holds back only what may turn out to be the beginning of a secret."""

    def __init__(self, masker: Masker) -> None:
        self.masker = masker
        self._before = b""  # the last bytes before those held
        self._held = b""
        self._covered = 0  # so many of the held bytes belong to a secret whose `****` is out already

    def feed(self, chunk: bytes) -> bytes:
        """What can be shown now."""
        data = self._held + chunk if self._held else chunk
        hits, apart = self.masker.hits(data), self.masker.apart(data, self._before, ended=False)
        end = len(data) - self.masker.pending(data)
        self._before = (
            data[end - _CONTEXT : end] if end >= _CONTEXT else (self._before + data[:end])[-_CONTEXT:]
        )
        self._held = data[end:]
        if not self._covered and not apart and (not hits or (end == len(data) and _separate(hits))):
            return reduce(lambda rest, form: rest.replace(form, MASK), hits, data) if hits else data[:end]
        shown, self._covered = _masked(data, self._spans(data, hits, apart), end, self._covered)
        return shown

    def flush(self) -> bytes:
        """What was still held back, masked where the stream broke off inside a secret. It may go on."""
        data, covered = self._held, self._covered
        spans = self._spans(data, self.masker.hits(data), self.masker.apart(data, self._before))
        self._before, self._held, self._covered = b"", b"", 0
        begun = max(self.masker.begun(data), self.masker.begun_piece(data))
        if begun - covered < MIN_LINE:
            return _masked(data, spans, len(data), covered)[0]
        shown, is_out = _masked(data, spans, len(data) - begun, covered)
        return shown if is_out else shown + MASK

    def _spans(self, data: bytes, hits: Iterable[bytes], apart: Iterable[Span]) -> list[Span]:
        is_out = [(0, self._covered)] if self._covered else []
        return _joined([*is_out, *_occurrences(data, hits), *apart])


class MaskRegistry:
    """The secrets of all active runs, for the service's own log; counted, as runs may share a masker."""

    def __init__(self) -> None:
        self._active: Counter[Masker] = Counter()
        self._all: Masker | None = Masker()

    def add(self, masker: Masker) -> ExitStack:
        """Mask these values from now on; leaving the returned context, or `remove`, ends it."""
        self._active[masker] += 1
        self._all = None
        context = ExitStack()
        context.callback(self.remove, masker)
        return context

    def remove(self, masker: Masker) -> None:
        """Undo one `add`."""
        self._active -= Counter([masker])
        self._all = None

    def mask(self, text: str) -> str:
        """The text without any active secret."""
        if self._all is None:
            self._all = reduce(Masker.union, self._active, Masker())
        return self._all.mask(text)


def _separate(forms: Sequence[bytes]) -> bool:
    """Whether no two of the forms can overlap, so that they may be replaced one after the other."""
    return len(forms) <= _MAX_SEPARATE and not any(
        b"*" in one or (one is not other and one in other) or _meet(one, other)
        for one in forms
        for other in forms
    )


def _meet(one: bytes, other: bytes) -> bool:
    """Whether an end of `one`, short of all of it, is a beginning of `other`."""
    return any(one.endswith(other[:size]) for size in range(1, min(len(one), len(other))))


def _begins(data: bytes, at: int, before: bytes) -> bool:
    """Whether a word can begin there."""
    lead = data[max(at - _CONTEXT, 0) : at]
    if len(lead) < _CONTEXT:
        lead = before + lead
    inside = data[at] in _WORD_BYTES and lead[-1:] and lead[-1] in _WORD_BYTES
    return not inside or _NO_PART.search(lead) is not None


def _ends(data: bytes, at: int) -> bool:
    return not (data[at - 1] in _WORD_BYTES and data[at] in _WORD_BYTES)


def _occurrences(data: bytes, forms: Iterable[bytes]) -> list[Span]:
    found = []
    for form in forms:
        at = data.find(form)
        while at != -1:
            found.append((at, at + len(form)))
            at = data.find(form, at + 1)
    return found


def _joined(found: Iterable[Span]) -> list[Span]:
    """The spans in order, what overlaps joined."""
    joined: list[Span] = []
    for start, stop in sorted(found):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _masked(data: bytes, spans: Iterable[Span], end: int, covered: int) -> tuple[bytes, int]:
    """The first `end` bytes masked, and how many of the bytes after them belong to a secret masked here."""
    shown, at = [], 0
    for start, stop in spans:
        is_out = start < covered
        if start >= end and not is_out:
            break
        if not is_out:
            shown += [data[at:start], MASK]
        at = stop
    shown.append(data[at:end])
    return b"".join(shown), max(at - end, 0)
