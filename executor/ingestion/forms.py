"""What a secret value may look like in a text. Pure."""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, quote_plus

MIN_VALUE: Final = 3  # characters; masking anything shorter would blank the whole log
MIN_LINE: Final = 6  # characters of one line of a multi-line value
MIN_ANYWHERE: Final = (
    8  # characters; a shorter value may be part of an ordinary word, so that it must stand alone
)
MAX_LINES: Final = 64  # a value with more is looked for by its pieces
MAX_LENGTH: Final = 16 * 1024  # characters; the same
PIECE: Final = 64  # bytes into which a long run of a value's characters is cut

_TRIVIAL: Final = frozenset({"true", "false", "null", "none", "yes", "no"})
_MIN_NEEDLE: Final = 4  # bytes; a shorter piece occurs everywhere
_PLAIN_RUN: Final = re.compile(rb"[A-Za-z0-9]+")
# Of an encoded key, a token, base64, quoted for a URL or not. Shorter ones would be looked up for every word.
RUN_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_%-"
PIECES: Final = re.compile(rb"[A-Za-z0-9+/=_%%-]{16,%d}" % PIECE)
_LINE_ENDS: Final = (
    b"\\n",
    b"\\r",
    b"\\t",
)  # as JSON and Python write them: their letter is no part of a run


@dataclass(frozen=True, slots=True)
class Forms:
    """The forms of one value; all empty for a value that can't be masked.

    `groups` are forms by a needle that all of a group hold, `words` those that must not be part of a longer
    word. A very long value has `pieces` (see `PIECES`) and `lines`, which are found in one pass each.
    """

    groups: Mapping[bytes, set[bytes]] = field(default_factory=dict)
    words: frozenset[bytes] = frozenset()
    pieces: frozenset[bytes] = frozenset()
    lines: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.groups or self.words or self.pieces or self.lines)


def forms_of(value: str) -> Forms:
    """All that a value may look like in a text, in a time that grows with its length alone."""
    if len(value.strip()) < MIN_VALUE or value.strip().lower() in _TRIVIAL:
        return Forms()
    unix = value.replace("\r\n", "\n")
    if len(value) > MAX_LENGTH or unix.count("\n") > MAX_LINES:
        return _of_long(unix)
    wholes = {value, value.strip(), unix, unix.replace("\n", "\r\n")}
    lines = {line.strip() for line in unix.splitlines()}
    texts = wholes | {line for line in lines if len(line) >= MIN_LINE}
    forms = {form for text in texts for form in _encodings(text)}
    for text in wholes:
        raw = _utf8(text)
        padded = {base64.standard_b64encode(raw), base64.urlsafe_b64encode(raw)}
        forms |= padded | {form.rstrip(b"=") for form in padded}
    if len(value.strip()) < MIN_ANYWHERE:
        return Forms(words=frozenset(forms))
    return Forms(groups=_grouped(forms))


def without_line_ends(data: bytes) -> bytes:
    """The data with escaped line ends blanked, of the same length: what follows them is a run of its own."""
    if b"\\" in data:
        for escape in _LINE_ENDS:
            data = data.replace(escape, b"  ")
    return data


def _of_long(text: str) -> Forms:
    raw = _utf8(text)
    encoded = [
        raw,
        without_line_ends(json.dumps(text).encode()),
        quote(raw).encode(),
        quote(raw, safe="").encode(),
        base64.standard_b64encode(raw),
        base64.urlsafe_b64encode(raw),
    ]
    lines = {line.strip() for line in raw.splitlines()}
    return Forms(
        pieces=frozenset(piece for form in encoded for piece in PIECES.findall(form)),
        lines=frozenset(line for line in lines if len(line) >= MIN_LINE),
    )


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


def _grouped(forms: Iterable[bytes]) -> dict[bytes, set[bytes]]:
    """Forms by a needle that all of a group hold: what no encoding changes in a value is common to most."""
    groups: dict[bytes, set[bytes]] = {}
    for form in sorted(forms, key=len):
        needle = next((needle for needle in groups if needle in form), None)
        if needle is None:
            run: bytes = max(_PLAIN_RUN.findall(form), key=len, default=b"")
            needle = run if len(run) >= _MIN_NEEDLE else form
        groups.setdefault(needle, set()).add(form)
    return groups
