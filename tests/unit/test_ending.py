"""The words for how a run ended."""

import signal

import pytest

from executor.ingestion.ending import describe
from executor.ingestion.process import Exit

GIB = 1024**3


def ended(returncode: int, *, oom_killed: bool = False) -> Exit:
    return Exit(returncode, cpu_seconds=1.0, peak_memory=1, oom_killed=oom_killed, left_behind=0)


def words(returncode: int, *, oom_killed: bool = False, limit: int | None = None, log: str = "") -> str:
    ending = describe(ended(returncode, oom_killed=oom_killed), limit, log)
    assert not ending.succeeded
    return ending.words


def test_exit_code_0_is_success_whatever_the_log_says() -> None:
    ending = describe(ended(0, oom_killed=True), GIB, "MemoryError")
    assert ending.succeeded
    assert "exit code 0" in ending.words


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (1, "with failures (exit code 1)"),
        (2, "did not accept how it was called (exit code 2)"),
        (126, "could not be executed (exit code 126)"),
        (127, "command was not found (exit code 127)"),
        (42, "ended with exit code 42"),
        (-signal.SIGTERM, "signal 15, SIGTERM"),
        (-signal.SIGSEGV, "signal 11, SIGSEGV"),
        (-63, "signal 63"),
    ],
)
def test_other_ends_name_their_code(code: int, expected: str) -> None:
    assert expected in words(code)


def test_the_systems_out_of_memory_killer_is_named_with_the_way_out() -> None:
    said = words(-signal.SIGKILL, oom_killed=True, limit=GIB)
    assert "killed by the system's out-of-memory killer" in said
    assert "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS" in said


def test_a_kill_of_unknown_origin_is_called_likely_no_more() -> None:
    assert "most often" in words(-signal.SIGKILL)


def test_another_runs_end_in_the_same_container_is_not_this_ones() -> None:
    assert "memory" not in words(1, oom_killed=True)


@pytest.mark.parametrize(
    ("code", "log"),
    [
        (1, "Traceback …\nMemoryError\n"),
        (1, "pyarrow.lib.ArrowMemoryError: malloc failed"),
        (-signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'"),
        (-signal.SIGSEGV, ""),
        (1, "OSError: [Errno 12] Cannot allocate memory"),
        (1, "java.lang.OutOfMemoryError: Java heap space"),
    ],
)
def test_an_end_by_the_memory_limit_names_the_setting(code: int, log: str) -> None:
    said = words(code, limit=GIB, log=log)
    assert "memory limit of 1,048,576 kilobytes" in said
    assert "EXECUTOR_TASK_MEMORY_LIMIT" in said


def test_a_plain_failure_under_a_limit_is_not_blamed_on_it() -> None:
    assert "memory" not in words(1, limit=GIB, log="table not found")


def test_without_a_limit_none_is_blamed() -> None:
    assert "EXECUTOR_TASK_MEMORY_LIMIT" not in words(1, log="MemoryError")
