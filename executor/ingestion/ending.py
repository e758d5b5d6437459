"""Puts into words how a process ended. Pure."""

import signal
from dataclasses import dataclass

from executor.ingestion.process import Exit

_CLI_ERROR = 1  # the CLI's exit code for a run with failures, or a recipe that it does not accept
_USAGE_ERROR = 2
_NOT_EXECUTABLE = {126: "the command could not be executed", 127: "the command was not found"}
# What programs print when an allocation is refused; with a limit set, the limit is why.
_OUT_OF_MEMORY = ("MemoryError", "std::bad_alloc", "Cannot allocate memory", "OutOfMemoryError")
_ABRUPT = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGTRAP}


@dataclass(frozen=True, slots=True)
class Ending:
    """Whether a run succeeded, and the words that the report begins with."""

    succeeded: bool
    words: str


def describe(ended: Exit, memory_limit: int | None, last_output: str) -> Ending:
    """Say how a run ended that nobody stopped. `memory_limit` is in bytes."""
    code = ended.returncode
    if code == 0:
        return Ending(succeeded=True, words="The run ended successfully (exit code 0).")
    return Ending(succeeded=False, words=_memory(ended, memory_limit, last_output) or _plain(code))


def _memory(ended: Exit, limit: int | None, last_output: str) -> str | None:
    if ended.oom_killed and -ended.returncode == signal.SIGKILL:
        return (
            "The run was killed by the system's out-of-memory killer. Give the task more memory, let fewer runs "
            "go at a time (DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS), or let the source read less at once."
        )
    if limit is not None and (
        any(words in last_output for words in _OUT_OF_MEMORY) or -ended.returncode in _ABRUPT
    ):
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


def _plain(code: int) -> str:
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
