"""`${NAME}` in a recipe, read as the DataHub CLI reads it.

The CLI expands a string that holds `${…}`, or that begins with `$`, with the package `expandvars`, whose
grammar is bash's, near enough: `${A:-b}`, `${A-b}`, `${A:=b}`, `${A:+b}`, `${A:?why}`, `${A:1:2}`, `${#A}`,
`${!A}`, with further references inside `b`; a backslash takes the meaning from a `$` or a backslash.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

MAX_NESTING: Final = 32  # braces within braces; a string with more is left to the CLI

_LITERAL: Final = re.compile(r"[^\\$]+")
_BRACE: Final = re.compile(r"[{}]")
_HEAD: Final = re.compile(r"\$(?P<bare>\$?\w*)(?:(?P<brace>\{)(?P<prefix>[!#]?)(?P<name>\$?\w*))?")
_OPERATORS: Final = frozenset("-=+?")

# Expands to nothing, whether or not there is such a variable. Stands where the CLI would not expand the
# string without it, and after a backslash, which older releases of `expandvars` keep doubled elsewhere.
_NOTHING: Final = "${DATAHUB_EXECUTOR_NOTHING:+}"


class MalformedReferenceError(ValueError):
    """A string that the CLI refuses to expand; it is left to the CLI to say so."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference. `operator` is one of `- = + ?`, `:` for a part, `#` for the length, or empty."""

    raw: str
    name: str
    indirect: bool = False
    operator: str = ""
    operand: str = ""


@dataclass(frozen=True, slots=True)
class SecretReferences:
    """Names that the CLI fails without, and names that it can do without."""

    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


def references(text: str) -> SecretReferences:
    """The names in one string of a recipe; none in a string that the CLI leaves alone or refuses."""
    if not _is_expanded(text):
        return SecretReferences()
    try:
        # A string that is only `$NAME` stays what it is where the name is unknown.
        return _names(text, strict=_has_braces(text))
    except MalformedReferenceError:
        return SecretReferences()


def substitute(text: str, values: Mapping[str, str]) -> str:
    """A string which the CLI expands to what it would expand `text` to if it knew the values.

    What refers to none of the values stays as it is; what refers to some is settled here, other names in it
    being unset.
    """
    if not _is_expanded(text):
        return text
    try:
        pieces = list(_pieces(text))
        known = [isinstance(piece, Reference) and _all_names(piece.raw) & values.keys() for piece in pieces]
        if not any(known) or (not _has_braces(text) and not _all_names(text) <= values.keys()):
            return text
        settled = [
            _settled(piece, values) if is_known else piece
            for piece, is_known in zip(pieces, known, strict=True)
        ]
    except MalformedReferenceError:
        return text
    plain = "".join(piece if isinstance(piece, str) else piece.raw for piece in settled)
    if all(isinstance(piece, str) for piece in settled) and not _is_expanded(plain):
        return plain
    # What follows a reference kept, such as `$NAME`, must not become part of it.
    return _NOTHING + "".join(
        _escaped(piece) if isinstance(piece, str) else piece.raw + _NOTHING for piece in settled
    )


def _is_expanded(text: str) -> bool:
    return "$" in text and (text.startswith("$") or _has_braces(text))


def _has_braces(text: str) -> bool:
    """Whether `\\$\\{.+\\}` is in it, in a time that grows with its length alone."""
    for line in text.split("\n"):
        start = line.find("${")
        if start != -1 and line.rfind("}") > start + 2:
            return True
    return False


def _escaped(literal: str) -> str:
    """Text which all releases of `expandvars` expand to the literal."""
    return literal.translate({ord("\\"): "\\\\" + _NOTHING, ord("$"): "\\$"})


def _names(text: str, *, strict: bool) -> SecretReferences:
    """The names in a string; `strict` where one that is unknown is an error."""
    required: set[str] = set()
    optional: set[str] = set()
    for piece in _pieces(text):
        if isinstance(piece, str):
            continue
        must_be = piece.indirect or piece.operator == "?" or (strict and not piece.operator)
        (required if must_be else optional).add(piece.name)
        inner = _names(piece.operand, strict=False)
        required |= inner.required
        optional |= inner.optional
    process_id = {"$"}  # `$$`
    return SecretReferences(frozenset(required - process_id), frozenset(optional - required - process_id))


def _all_names(text: str) -> frozenset[str]:
    names = _names(text, strict=False)
    return names.required | names.optional


def _settled(piece: str | Reference, values: Mapping[str, str]) -> str:
    value = piece if isinstance(piece, str) else _value(piece, values)
    if value is None:
        raise MalformedReferenceError("a name leads to another that is unknown")
    return value


def _value(reference: Reference, values: Mapping[str, str]) -> str | None:
    """What the CLI puts in the place of a reference; None for a name without a value."""
    value = values.get(reference.name)
    if reference.indirect and value is not None:
        value = values.get(value)
    operand = "".join(
        piece if isinstance(piece, str) else _value(piece, values) or ""
        for piece in _pieces(reference.operand)
    )
    match reference.operator:
        case "-" | "=":
            return value or operand
        case "+":
            return operand if value else ""
        case "?":
            return value or None
        case "#":
            return str(len(value or ""))
        case ":":
            return _part(value or "", operand)
        case _:
            return value


def _part(value: str, operand: str) -> str:
    """`offset` or `offset:length`; what is no number counts as 0."""
    offset_text, *more = (part.strip() for part in operand.split(":"))
    offset = _number(offset_text)
    if not more:
        return value[offset:]
    length = _number(more[0])
    if len(more) > 1 or length < 0:
        raise MalformedReferenceError("a part is `offset:length`")
    return value[offset : offset + length]


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _pieces(text: str) -> Iterator[str | Reference]:
    """A string's literal parts, without the backslashes that quote, and its references.

    Raises:
        MalformedReferenceError: the CLI refuses the string.
    """
    literal: list[str] = []
    at = 0
    while at < len(text):
        if plain := _LITERAL.match(text, at):
            literal.append(plain[0])
            at = plain.end()
            continue
        head = _HEAD.match(text, at)
        if text[at] == "\\":
            quoted = text[at + 1 : at + 2]
            if not quoted:
                raise MalformedReferenceError("a backslash at the end")
            literal.append(quoted if quoted in "\\$" else text[at : at + 2])
            at += 2
        elif head and (head["bare"] or head["brace"]):
            if literal:
                yield "".join(literal)
                literal = []
            reference, at = _reference(text, head)
            yield reference
        else:
            literal.append(text[at])
            at += 1
    if literal:
        yield "".join(literal)


def _reference(text: str, head: re.Match[str]) -> tuple[Reference, int]:
    """The reference that begins with `head`, and where the text goes on."""
    start, at = head.span()
    if not head["brace"]:
        return Reference(text[start:at], head["bare"]), at
    name = head["bare"] + head["name"]
    operator, operand = head["prefix"].replace("!", ""), ""
    colon = text[at : at + 1] == ":"
    end = _closing_brace(text, at + colon)
    if colon or end > at:
        body = text[at + colon : end]
        if operator or not body:
            raise MalformedReferenceError("nothing can follow there")
        operator, operand = (body[0], body[1:]) if body[0] in _OPERATORS else (":", body)
    if not name:
        raise MalformedReferenceError("a reference without a name")
    return Reference(text[start : end + 1], name, head["prefix"] == "!", operator, operand), end + 1


def _closing_brace(text: str, at: int) -> int:
    depth = 0
    for brace in _BRACE.finditer(text, at):
        if brace[0] == "{":
            depth += 1
            if depth > MAX_NESTING:
                raise MalformedReferenceError("references are nested too deep")
        elif depth:
            depth -= 1
        else:
            return brace.start()
    raise MalformedReferenceError("a brace is not closed")
