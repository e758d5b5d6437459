"""The words for how a run ended."""

import json
import signal

import pytest

from executor.ingestion.ending import cause, describe
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
        (1, "ImportError: libpq.so.5: failed to map segment from shared object"),
        (1, "RuntimeError: can't start new thread"),
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


def test_a_failure_that_came_near_the_limit_names_it_beside_its_cause() -> None:
    exited = Exit(1, cpu_seconds=1.0, peak_memory=GIB - 1, oom_killed=False, left_behind=0)
    said = describe(exited, GIB, "", "Connection refused.").words
    assert said.startswith("The run ended with failures (exit code 1): Connection refused.")
    assert "near its limit of 1.1 GB" in said
    assert "EXECUTOR_TASK_MEMORY_LIMIT" in said


# What the CLI 1.7.0.17 printed, shortened in the middle.
MISSPELT = """[2026-11-24 22:46:55,123] INFO     {datahub.cli.ingest_cli:206} - DataHub CLI version: 1.7.0.17
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/datahub/ingestion/run/pipeline.py", line 99, in _add_init_error_context
    raise PipelineInitError(f"Failed to {step}: {e}") from e
datahub.ingestion.run.pipeline.PipelineInitError: Failed to find a registered source for type sqlalchmey: \
'Did not find a registered class for sqlalchmey'
"""
NO_PACKAGE = MISSPELT.replace("'Did not find a registered class for sqlalchmey'", "No module named 'my_pkg'")
BAD_CONFIG = """[2026-11-24 22:46:58,416] INFO     {datahub.cli.ingest_cli:206} - DataHub CLI version: 1.7.0.17
[2026-11-24 22:46:58,421] INFO     {datahub.ingestion.run.pipeline:398} - Sink configured successfully.\x20
Failed to configure the source (sqlalchemy): 3 validation errors for SQLAlchemyGenericConfig
platform
  Field required [type=missing]
    For further information visit https://errors.pydantic.dev/2.11/v/missing
conect_uri
  Extra inputs are not permitted [type=extra_forbidden]
    For further information visit https://errors.pydantic.dev/2.11/v/extra_forbidden
"""
NO_DATABASE = """  File "/venv/lib/python3.11/site-packages/psycopg2/__init__.py", line 122, in connect
    conn = _connect(dsn, connection_factory=connection_factory, **kwasync)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
sqlalchemy.exc.OperationalError: (psycopg2.OperationalError) connection to server at "10.0.0.9", port 5432 failed: \
Connection refused
	Is the server running on that host and accepting TCP/IP connections?

(Background on this error at: https://sqlalche.me/e/20/e3q8)

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/datahub/masking/masking_filter.py", line 181, in _mask_exception
    exc_value = type(exc_value)(*masked_args)
                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
TypeError: DBAPIError.__init__() missing 2 required positional arguments: 'params' and 'orig'
[2026-11-24 22:47:02,114] ERROR    {datahub.ingestion.run.pipeline:781} - Ingestion pipeline threw one
RuntimeError: [MASKING_ERROR - OUTPUT_SUPPRESSED_FOR_SECURITY]
[2026-11-24 22:47:02,143] INFO     {datahub.cli.ingest_cli:200} - Finished metadata ingestion
Pipeline finished with at least 1 failures; produced 0 events in 0.36 seconds.
"""
REFUSED = 'connection to server at "10.0.0.9", port 5432 failed: Connection refused'


def as_it_is(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (MISSPELT, "Failed to find a registered source for type sqlalchmey: 'Did not find a registered class"),
        (MISSPELT, "class for sqlalchmey'. Check the `type` of the recipe's source"),
        (NO_PACKAGE, "No module named 'my_pkg'. Add the package that it lacks to the source's extra pip requ"),
        (BAD_CONFIG, "Failed to configure the source (sqlalchemy): 3 validation errors for SQLAlchemyGeneric"),
        (BAD_CONFIG, "missing] conect_uri Extra inputs are not permitted [type=extra_forbidden]."),
        (NO_DATABASE, f"sqlalchemy.exc.OperationalError: (psycopg2.OperationalError) {REFUSED} Is the server"),
        ("  File \"x.py\", line 1\nModuleNotFoundError: No module named 'psycopg2'\n", "extra pip requirements"),
        ("OSError: [Errno 28] No space left on device: 'x'", "'x'. Free space on the executor's disk (DATAHUB_EXE"),
        ("sqlite3.OperationalError: database or disk is full", "is full. Free space on the executor's disk"),
        ("OSError: [Errno 24] Too many open files: 'x'", "'x'. Give the executor a higher limit on open files"),
    ],
)  # fmt: skip
def test_the_cause_of_a_failure_is_what_the_cli_printed_last(log: str, expected: str) -> None:
    found = cause(log, None, as_it_is)
    assert found is not None
    assert expected in found
    assert "\n" not in found
    assert found in words_with(found)


def words_with(why: str) -> str:
    return describe(ended(1), None, "", why).words


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([{"title": "Pipeline Error", "message": "Ingestion pipeline raised an unexpected exception!", "context":
           [f"<class 'sqlalchemy.exc.OperationalError'>: {REFUSED}\n(Background on this error at: https://x.y/z)"]}],
         f"sqlalchemy.exc.OperationalError: {REFUSED}."),
        ([{"title": "No access", "message": "Grant it", "context": ["db1", "db2"]}, {"message": "more"}],
         "No access: Grant it (db1)."),
        ([{"message": "just this!"}], "just this!"),
        ({"tables": ["denied"]}, "tables (denied)."),
        (["a text"], "a text."),
    ],
)  # fmt: skip
def test_the_first_failure_in_the_report_goes_before_the_log(failures: object, expected: str) -> None:
    report = json.dumps({"source": {"report": {"failures": failures}}, "sink": {"report": {}}}).encode()
    assert cause(MISSPELT, report, as_it_is) == expected


def test_a_failure_of_the_sink_counts_where_the_source_has_none() -> None:
    report = {
        "source": {"report": {"failures": []}},
        "sink": {"report": {"failures": [{"message": "no room"}]}},
    }
    assert cause("", json.dumps(report).encode(), as_it_is) == "no room."


@pytest.mark.parametrize("report", [None, b"", b"[]", b"{}", b'{"source": 1}', b"\xff", b"[" * 100_000])
def test_without_a_cause_nothing_is_made_up(report: bytes | None) -> None:
    assert cause("[2026-11-24 22:47:02,143] INFO {x} - fine\nCli report:\n{}", report, as_it_is) is None
    assert "log below" in words(1)


def test_a_cause_is_masked_and_short() -> None:
    found = cause("boom: hunter2\n" + "x" * 5000, None, lambda text: text.replace("hunter2", "****"))
    assert found is not None
    assert found.startswith("boom: ****")
    assert len(found) == 300
