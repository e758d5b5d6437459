"""What is stored in DataHub of a run: its report and its structured report (contract, sections 3 and 4)."""

import json
from bisect import bisect_left
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from executor.ingestion.masking import Masker

# DataHub refuses an aspect of more than 15,368,520 characters of JSON. The margin is for the rest of it.
MAX_STORED: Final = 15_000_000 - 64 * 1024
_MAX_SUMMARY: Final = 100_000  # characters
_MAX_INDENTED: Final = 256 * 1024  # characters; indenting more takes too long, and nobody reads it


@dataclass(frozen=True, slots=True)
class Summary:
    """What a person wants to know first. `started` is in seconds since the epoch, `duration` in seconds.

    `ending` tells what ended the run and the way out; None while it runs. `notes` are lines of their own.
    """

    task: str
    source_type: str
    cli_version: str
    executor_id: str
    host: str
    attempt: int
    started: float
    duration: float | None = None
    ending: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fitted:
    """What goes into the aspect: both together stay below its limit."""

    report: str
    structured: str | None
    """`structuredReport.serializedValue`; None where there is none, or none that could be stored."""


def stored_size(text: str) -> int:
    """Characters that a text takes inside the stored JSON, escapes included; at most, where it is not ASCII."""
    return len(json.dumps(text)) - 2


def fit(
    summary: Summary, structured: bytes | None, log: str, masker: Masker, limit: int = MAX_STORED
) -> Fitted:
    """The report and the structured report (the file that the CLI wrote), masked, together within `limit`.

    A structured report that is no JSON, or would leave no fifth of the room to the report, is left out, and a
    note in the summary says so. While the run goes on there is none.
    """
    text, note = None, ""
    if structured is not None and summary.ending is not None:
        text, note = _structured_text(structured, masker, limit)
        if text is not None and stored_size(text) > limit * 4 // 5:
            note, text = _too_large(f"{len(text):,} characters"), None
    if note:
        summary = replace(summary, notes=(*summary.notes, note))
    room = limit - (stored_size(text) if text is not None else 0)
    return Fitted(render_report(summary, text, log, room, masker), text)


def render_report(summary: Summary, structured: str | None, log: str, max_chars: int, masker: Masker) -> str:
    """Summary, structured report and log, masked, of at most `max_chars` as `stored_size` counts them.

    The structured report is indented, its empty fields left out. It gives way where it would take more than
    half of the room, then the oldest lines.
    """
    head = _clean(_summary_text(summary), masker)[:_MAX_SUMMARY]
    room = max_chars - stored_size(head)
    if structured is not None:
        section = f"\n== Structured report ==\n{_clean(_for_people(structured), masker)}\n"
        if stored_size(section) > room // 2:
            section = (
                "\n== Structured report ==\n[… too large to be shown here: it is stored beside this report]\n"
            )
        head += section
    head += "\n== Log ==\n"
    return head + _newest_lines(_clean(log, masker), max_chars - stored_size(head))


def _summary_text(summary: Summary) -> str:
    lines = [summary.ending or "Running.", ""]
    lines += [
        f"Task:      {summary.task}",
        f"Source:    {summary.source_type}",
        f"CLI:       {summary.cli_version}",
        f"Executor:  {summary.executor_id} on {summary.host}",
        f"Attempt:   {summary.attempt}",
        f"Started:   {datetime.fromtimestamp(summary.started, UTC):%Y-%m-%d %H:%M:%S} UTC",
    ]
    if summary.duration is not None:
        lines.append(f"Duration:  {_duration_text(summary.duration)}")
    return "\n".join([*lines, *summary.notes, ""])


def _duration_text(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"


def _for_people(structured: str) -> str:
    """The JSON text indented, without fields that say nothing: an empty text, list or object, 0, null."""
    if len(structured) > _MAX_INDENTED:
        return structured
    try:
        return json.dumps(_without_empty(json.loads(structured)), indent=2, ensure_ascii=False)
    except RecursionError:  # nested too deep for Python's own writer, which is the one that indents
        return structured


def _without_empty(node: object) -> object:
    if isinstance(node, dict):
        kept = ((key, _without_empty(child)) for key, child in node.items())
        return {key: child for key, child in kept if isinstance(child, bool) or child}
    if isinstance(node, list):
        return [_without_empty(child) for child in node]
    return node


def _clean(text: str, masker: Masker) -> str:
    """Masked, and without lone surrogates, which no server takes."""
    return masker.mask(text).encode("utf-8", "replace").decode()


def _newest_lines(log: str, room: int) -> str:
    """The end of the log that fits, in whole lines, after what the log itself and this cut say was cut."""
    if stored_size(log) <= room:
        return log
    before = log[: log.find("\n") + 1] if log.startswith("[… ") else ""
    log = log[len(before) :]

    def notice(lines: int) -> str:
        return f"{before}[… {lines:,} more lines cut to stay below DataHub's limit]\n"

    room -= stored_size(notice(len(log)))
    start = bisect_left(range(len(log)), True, key=lambda at: stored_size(log[at:]) <= room)
    line = log.find("\n", start - 1) + 1
    start = line if 0 < line < len(log) else start
    return notice(log.count("\n", 0, start)) + log[start:]


def _structured_text(data: bytes, masker: Masker, limit: int) -> tuple[str | None, str]:
    """The file as JSON text, masked; or None and why not."""
    if len(data) > limit:  # perhaps not even all of it was read
        return None, _too_large(f"more than {limit:,} bytes")
    try:
        return _masked_json(data.decode(), masker), ""
    except (ValueError, RecursionError):
        return None, "The structured report is left out: what the CLI wrote is cut short, or no JSON."


def _too_large(size: str) -> str:
    return f"The structured report is left out: its {size} are too many for DataHub."


def _masked_json(text: str, masker: Masker) -> str:
    beyond_json: list[str] = []  # NaN and Infinity, which Python writes and a browser refuses, become null
    document = json.loads(text, parse_constant=beyond_json.append)
    if beyond_json:
        text = json.dumps(document)
    masked = masker.mask(text)
    if masked == text:
        return text
    try:
        json.loads(masked)
    except ValueError:  # a secret is part of a number, or of JSON's own signs
        return json.dumps(_masked_values(document, masker))
    else:
        return masked


def _masked_values(node: object, masker: Masker) -> object:
    if isinstance(node, dict):
        return {masker.mask(key): _masked_values(child, masker) for key, child in node.items()}
    if isinstance(node, list):
        return [_masked_values(child, masker) for child in node]
    if isinstance(node, str):
        return masker.mask(node)
    shown = json.dumps(node)
    masked = masker.mask(shown)
    return node if masked == shown else masked
