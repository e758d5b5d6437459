"""Keeps secret values out of logs and reports: every form that a value is known to take becomes `****`."""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property, reduce
from typing import Final
from urllib.parse import quote, quote_plus

MASK: Final = b"****"
MIN_VALUE: Final = 3  # characters; masking anything shorter would blank the whole log
MIN_LINE: Final = 6  # characters of one line of a multi-line value, bytes of a value that a stream broke off
_TRIVIAL: Final = frozenset({"true", "false", "null", "none", "yes", "no"})
_MIN_NEEDLE: Final = 4  # bytes; a shorter piece occurs everywhere
_MAX_SEPARATE: Final = 4  # forms; checking more of them pairwise would cost more than it saves
_PLAIN_RUN: Final = re.compile(rb"[A-Za-z0-9]+")


class Masker:
    """An immutable set of secret values, and the search for all of their forms.

    Masked are the value itself, its JSON (once and twice), Python, URL and base64 encodings, each with either
    kind of line end, and the lines of a multi-line value. Forms that overlap in the text are masked as one.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self.groups_of = {value: _grouped(_forms(value)) for value in values}

    def __repr__(self) -> str:
        return f"<Masker of {len(self.groups_of)} values>"

    def __or__(self, other: "Masker") -> "Masker":
        return self.union(other)

    @property
    def unmaskable(self) -> int:
        """How many of the values are too short or too common to be masked."""
        return sum(not groups for groups in self.groups_of.values())

    def union(self, other: "Masker") -> "Masker":
        """A masker of the values of both."""
        both = Masker()
        both.groups_of = self.groups_of | other.groups_of
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
        hits = self.hits(data)
        if not hits:
            return data
        if _separate(hits):
            return reduce(lambda rest, form: rest.replace(form, MASK), hits, data)
        return _masked(data, _spans(data, hits), end=len(data), covered=0)[0]

    def stream(self) -> "StreamMasker":
        """A masker for bytes that come in pieces."""
        return StreamMasker(self)

    @cached_property
    def _groups(self) -> dict[bytes, set[bytes]]:
        """Forms by their needle."""
        merged: dict[bytes, set[bytes]] = {}
        for groups in self.groups_of.values():
            for needle, forms in groups.items():
                merged.setdefault(needle, set()).update(forms)
        return merged

    @cached_property
    def _longest_first(self) -> list[bytes]:
        return sorted({form for forms in self._groups.values() for form in forms}, key=len, reverse=True)

    def hits(self, data: bytes) -> list[bytes]:
        """The forms that occur. One search for the needle, which all of a group hold, rules the group out."""
        return [
            form for needle, forms in self._groups.items() if needle in data for form in forms if form in data
        ]

    def pending(self, data: bytes) -> int:
        """Length of the longest end of `data` that is the beginning of a form, but not all of it."""
        size, longest = len(data), 0
        for form in self._longest_first:
            if len(form) <= longest + 1:
                break
            first = form[:1]
            at = data.find(first, max(size - len(form) + 1, 0), size - longest)
            while at != -1 and not (form.startswith(data[at : at + 8]) and form.startswith(data[at:])):
                at = data.find(first, at + 1, size - longest)
            if at != -1:
                longest = size - at
        return longest


class StreamMasker:
    """Masks a stream as it comes, and holds back only what may turn out to be the beginning of a secret."""

    def __init__(self, masker: Masker) -> None:
        self.masker = masker
        self._held = b""
        self._covered = 0  # so many of the held bytes belong to a secret whose `****` is out already

    def feed(self, chunk: bytes) -> bytes:
        """What can be shown now."""
        data = self._held + chunk if self._held else chunk
        hits = self.masker.hits(data)
        end = len(data) - self.masker.pending(data)
        if not self._covered and (not hits or (end == len(data) and _separate(hits))):
            self._held = data[end:]
            return self.masker.mask_bytes(data) if hits else data[:end]
        shown, self._covered = _masked(data, _spans(data, hits, self._covered), end, self._covered)
        self._held = data[end:]
        return shown

    def flush(self) -> bytes:
        """What was still held back, masked where the stream broke off inside a secret. It may go on."""
        data, covered = self._held, self._covered
        self._held, self._covered = b"", 0
        if len(data) - covered >= MIN_LINE:
            return MASK
        return _masked(data, _spans(data, self.masker.hits(data), covered), len(data), covered)[0]


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


def _forms(value: str) -> set[bytes]:
    """All that a value may look like in a text; nothing for a value that can't be masked."""
    if len(value.strip()) < MIN_VALUE or value.strip().lower() in _TRIVIAL:
        return set()
    unix = value.replace("\r\n", "\n")
    wholes = {value, value.strip(), unix, unix.replace("\n", "\r\n")}
    lines = {line.strip() for line in unix.splitlines()}
    texts = wholes | {line for line in lines if len(line) >= MIN_LINE}
    forms = {form for text in texts for form in _encodings(text)}
    for text in wholes:
        raw = _utf8(text)
        padded = {base64.standard_b64encode(raw), base64.urlsafe_b64encode(raw)}
        forms |= padded | {form.rstrip(b"=") for form in padded}
    return forms


def _encodings(text: str) -> Iterator[bytes]:
    raw = _utf8(text)
    yield raw
    yield text.encode("utf-8", "surrogatepass")
    for ensure_ascii in (True, False):
        once = json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]
        yield _utf8(once)
        yield _utf8(json.dumps(once, ensure_ascii=ensure_ascii)[1:-1])
    yield _utf8(repr(text)[1:-1])
    yield repr(raw)[2:-1].encode()
    yield from (quote(raw).encode(), quote(raw, safe="").encode(), quote_plus(raw).encode())


def _utf8(text: str) -> bytes:
    """UTF-8; bytes that Python could not decode (in an environment variable) as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _grouped(forms: set[bytes]) -> dict[bytes, set[bytes]]:
    """Forms by a needle that all of a group hold: what no encoding changes in a value is common to most."""
    groups: dict[bytes, set[bytes]] = {}
    for form in sorted(forms, key=len):
        needle = next((needle for needle in groups if needle in form), None)
        if needle is None:
            run: bytes = max(_PLAIN_RUN.findall(form), key=len, default=b"")
            needle = run if len(run) >= _MIN_NEEDLE else form
        groups.setdefault(needle, set()).add(form)
    return groups


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


def _spans(data: bytes, forms: Iterable[bytes], covered: int = 0) -> list[tuple[int, int]]:
    """Where the forms are, what overlaps joined; the first `covered` bytes count as one of them."""
    found = [(0, covered)] if covered else []
    for form in forms:
        at = data.find(form)
        while at != -1:
            found.append((at, at + len(form)))
            at = data.find(form, at + 1)
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(found):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _masked(data: bytes, spans: Iterable[tuple[int, int]], end: int, covered: int) -> tuple[bytes, int]:
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
