"""Puts into words how a process ended. Pure."""

import json
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

from executor.ingestion.output import in_units
from executor.ingestion.process import Exit
from executor.lack import FILES, SPACE

_CLI_ERROR = 1  # the CLI's exit code for a run with failures, or a recipe that it does not accept
_USAGE_ERROR = 2
_NOT_EXECUTABLE = {126: "the command could not be executed", 127: "the command was not found"}
# What programs print when an allocation is refused; with a limit set, the limit is why.
_OUT_OF_MEMORY = re.compile(
    r"MemoryError|bad_alloc|cannot allocate|Out ?Of ?Memory|failed to map segment|can't start new thread",
    re.IGNORECASE,
)
_NEAR = 0.75  # of the limit: as resident memory, which is less than the address space that is limited
_CAUSE_LIMIT = 300  # characters
_ABRUPT = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGTRAP}


@dataclass(frozen=True, slots=True)
class Ending:
    """Whether a run succeeded, and the words that the report begins with."""

    succeeded: bool
    words: str


def describe(ended: Exit, memory_limit: int | None, last_output: str, why: str | None = None) -> Ending:
    """Say how a run ended that nobody stopped. `memory_limit` is in bytes, `why` what `cause` found."""
    code = ended.returncode
    if code == 0:
        return Ending(succeeded=True, words="The run ended successfully (exit code 0).")
    words = _memory(ended, memory_limit, last_output)
    return Ending(succeeded=False, words=words or _plain(code, why) + _near(ended, memory_limit))


def cause(last_output: str, structured_report: bytes | None, mask: Callable[[str], str]) -> str | None:
    """Why a run failed, in one masked line, with a hint where there is one; None where nothing tells.

    That is the first failure in the report that the CLI wrote or, without one, what it printed last.
    """
    found = _first_failure(structured_report) or _last_words(last_output)
    if not found:
        return None
    line = " ".join(mask(_plainer(found)).split())
    if not line:
        return None
    shown = line if len(line) <= _CAUSE_LIMIT else f"{line[: _CAUSE_LIMIT - 1]}…"
    end = "" if shown.endswith((".", "!", "?", "…")) else "."
    return f"{shown}{end}{_hint(line)}"


def _memory(ended: Exit, limit: int | None, last_output: str) -> str | None:
    if ended.oom_killed and -ended.returncode == signal.SIGKILL:
        return (
            "The run was killed by the system's out-of-memory killer. Give the task more memory, let fewer runs "
            "go at a time (DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS), or let the source read less at once."
        )
    if limit is not None and (_OUT_OF_MEMORY.search(last_output) or -ended.returncode in _ABRUPT):
        return (
            f"The run died of its memory limit of {limit // 1024:,} kilobytes of address space "
            f"({_code(ended.returncode)}). Raise EXECUTOR_TASK_MEMORY_LIMIT in the source's extra environment "
            "variables, or let the source read less at once."
        )
    if -ended.returncode == signal.SIGKILL:
        return (
            "The run was killed by SIGKILL, which this executor did not send: most often that is the system's "
            "out-of-memory killer. Give the task more memory, or let fewer runs go at a time."
        )
    return None


def _near(ended: Exit, limit: int | None) -> str:
    if limit is None or ended.peak_memory < limit * _NEAR:
        return ""
    return (
        f" It took {in_units(ended.peak_memory)} of memory, near its limit of {in_units(limit)}: if that is why, "
        "raise EXECUTOR_TASK_MEMORY_LIMIT."
    )


def _plain(code: int, why: str | None) -> str:
    if code == _CLI_ERROR and why:
        return f"The run ended with failures ({_code(code)}): {why}"
    return f"{_without_cause(code)} {why}" if why and code > 0 else _without_cause(code)


def _without_cause(code: int) -> str:
    if code < 0:
        return f"The run was ended by a signal that this executor did not send ({_code(code)})."
    if code in _NOT_EXECUTABLE:
        return f"The run did not start: {_NOT_EXECUTABLE[code]} ({_code(code)})."
    if code == _USAGE_ERROR:
        return (
            f"The CLI did not accept how it was called ({_code(code)}): is its version one that knows the "
            "options in use? See the log below."
        )
    if code == _CLI_ERROR:
        return (
            f"The run ended with failures ({_code(code)}). The structured report and the log below say which."
        )
    return f"The run ended with {_code(code)}. See the log below."


def _code(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


_LOG_LINE = re.compile(r"\[?\d{4}-\d\d-\d\d[ T]\d\d:\d\d")  # how the CLI's own log begins a line
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:: |$)")
_NOISE = (
    "Pipeline finished ",  # says that there were failures, not which
    "RuntimeError: [MASKING_ERROR",  # the CLI's own masking failed on the traceback
    "For further information visit",
)
_SUMMARY = "Cli report:"  # what the CLI prints at the end of any run
_MASKING = "/datahub/masking/"
_GENERIC = "Ingestion pipeline raised an unexpected exception!"
_CLASS = re.compile(r"<class '([\w.]+)'>")
_BACKGROUND = re.compile(r"\(Background on this error at: \S+\)")
_OWN_CLASS = re.compile(r"^datahub\.[\w.]+: ")
_HINTS = (
    (
        re.compile(r"No module named|missing dependency|Can't load plugin: sqlalchemy\.dialects"),
        "Add the package that it lacks to the source's extra pip requirements.",
    ),
    (
        re.compile(r"Failed to find a registered source for type"),
        "Check the `type` of the recipe's source: it must be the name of a source that this CLI version knows.",
    ),
    (
        re.compile(r"No space left on device|disk is full|Disk quota exceeded", re.IGNORECASE),
        f"{SPACE[0].upper()}{SPACE[1:]}.",
    ),
    (
        re.compile(r"Too many open files", re.IGNORECASE),
        f"{FILES[0].upper()}{FILES[1:]}.",
    ),
)


def _hint(line: str) -> str:
    return next((f" {hint}" for words, hint in _HINTS if words.search(line)), "")


def _plainer(text: str) -> str:
    return _OWN_CLASS.sub("", _CLASS.sub(r"\1", _BACKGROUND.sub("", text)))


def _first_failure(report: bytes | None) -> str | None:
    """Of the source, or else of the sink."""
    try:
        document = json.loads(report or b"{}")
    except (ValueError, RecursionError):
        return None
    for part in ("source", "sink"):
        failures = _at(document, part, "report", "failures")
        if isinstance(failures, dict):  # older ones: reasons by where it failed
            failures = [{"title": where, "context": reasons} for where, reasons in failures.items()]
        if isinstance(failures, list) and failures:
            return _failure_text(failures[0])
    return None


def _at(node: object, *keys: str) -> object:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _failure_text(failure: object) -> str:
    if not isinstance(failure, dict):
        return str(failure)
    context = failure.get("context")
    if isinstance(context, list):
        context = context[0] if context else None
    message = failure.get("message")
    if context and message == _GENERIC:
        return str(context)
    lead = ": ".join(str(part) for part in (failure.get("title"), message) if part)
    return f"{lead} ({context})" if lead and context else lead or str(context or "")


def _last_words(log: str) -> str:
    """What was printed after the last line of the log proper, or else the last exception in it."""
    lines = [line for line in log.splitlines() if not line.strip().startswith(_NOISE)]
    last_log = max((at for at, line in enumerate(lines) if _LOG_LINE.match(line)), default=-1)
    tail = lines[last_log + 1 :]
    text = "\n".join(tail).strip()
    if text and not text.startswith(_SUMMARY) and not any(map(_is_frame, tail)):
        return text
    return _last_exception(lines)


def _last_exception(lines: list[str]) -> str:
    found, in_traceback = "", False
    for at, line in enumerate(lines):
        if _is_frame(line):
            in_traceback = _MASKING not in line  # fails on some exceptions, and has no part in the cause
        elif in_traceback and _EXCEPTION.match(line):
            found, in_traceback = _paragraph(lines[at:]), False
    return found


def _is_frame(line: str) -> bool:
    return line.startswith('  File "')


def _paragraph(lines: list[str]) -> str:
    end = next((at for at, line in enumerate(lines) if not line.strip() or _LOG_LINE.match(line)), len(lines))
    return "\n".join(lines[:end])
