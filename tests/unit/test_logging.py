"""The service's own log, as whoever reads its stream finds it."""

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from executor.operations.logging import configure_logging
from executor.operations.reachability import Reachability

SECRET = "hunter2"


def mask(text: str) -> str:
    return text.replace(SECRET, "***")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream() -> StringIO:
    stream = StringIO()
    configure_logging(mask, stream)
    return stream


def events(stream: StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json(stream: StringIO) -> None:
    before = datetime.now(UTC)
    structlog.get_logger().bind(exec_id="e1").info("run_started", words="two\nlines", seconds=1.5, café=None)
    [event] = events(stream)
    at = datetime.fromisoformat(event.pop("timestamp"))
    assert before <= at <= datetime.now(UTC)
    assert event == {
        "event": "run_started",
        "level": "info",
        "exec_id": "e1",
        "words": "two\nlines",
        "seconds": 1.5,
        "café": None,
    }


def test_levels_are_named_and_details_are_left_out(stream: StringIO) -> None:
    log = structlog.get_logger()
    log.debug("detail")
    log.warning("beware")
    log.error("failed")
    assert [(event["level"], event["event"]) for event in events(stream)] == [
        ("warning", "beware"),
        ("error", "failed"),
    ]


def test_details_are_there_on_request() -> None:
    stream = StringIO()
    configure_logging(mask, stream, debug=True)
    structlog.get_logger().debug("detail")
    assert events(stream)[0]["level"] == "debug"


def test_secrets_are_masked_however_deep_they_lie(stream: StringIO) -> None:
    nested = {"list": [SECRET, {"deep": f"a {SECRET} b"}], "tuple": (SECRET,), "path": Path(SECRET)}
    structlog.get_logger().bind(bound=SECRET).info(f"event {SECRET}", nested=nested, error=ValueError(SECRET))
    assert SECRET not in stream.getvalue()
    [event] = events(stream)
    assert event["nested"] == {"list": ["***", {"deep": "a *** b"}], "tuple": ["***"], "path": "***"}
    assert event["error"] == "***"


def _fail() -> None:
    password = SECRET
    raise ConnectionError(f"login failed with {password}")


def test_a_traceback_is_masked_and_within_its_line(stream: StringIO) -> None:
    try:
        _fail()
    except ConnectionError:
        structlog.get_logger().exception("login_failed")
    [event] = events(stream)
    assert event["level"] == "error"
    assert "in _fail" in event["exception"]
    assert event["exception"].endswith("ConnectionError: login failed with ***")
    assert SECRET not in stream.getvalue()


def test_what_libraries_log_is_an_event_too(stream: StringIO) -> None:
    library = logging.getLogger("some.library")
    library.info("chatter")
    library.warning("pool of %s is full of %s", 10, SECRET)
    [event] = events(stream)
    assert event.pop("timestamp")
    assert event == {
        "event": "library_message",
        "level": "warning",
        "library": "some.library",
        "message": "pool of 10 is full of ***",
    }


def test_a_librarys_traceback_is_masked(stream: StringIO) -> None:
    try:
        _fail()
    except ConnectionError:
        logging.getLogger("some.library").exception("lost the connection")
    [event] = events(stream)
    assert event["message"] == "lost the connection"
    assert event["exception"].endswith("ConnectionError: login failed with ***")
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_text_can_break_the_log(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding=encoding) as stream:
        configure_logging(mask, stream)
        structlog.get_logger().info("odd", half="\ud83d", bytes=b"\xff", name="café", line="a\u2028b")
    [line] = path.read_bytes().rstrip(b"\n").split(b"\n")
    event = json.loads(line)
    assert (event["half"], event["name"], event["line"]) == ("\ud83d", "café", "a\u2028b")


@contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    """Its end to read from, and a log that goes into the other one."""
    reader, writer = os.pipe()
    with open(writer, "w") as stream:  # noqa: PTH123 - a descriptor
        configure_logging(mask, stream)
        yield reader, stream


def lines_in(reader: int) -> list[str]:
    """What lies in the pipe."""
    os.set_blocking(reader, False)
    text = ""
    with suppress(BlockingIOError):
        while data := os.read(reader, 65536):
            text += data.decode()
    return text.splitlines()


def test_a_log_that_nobody_can_read_any_more_does_not_fail() -> None:
    with pipe() as (reader, _):
        os.close(reader)
        for _ in range(3):
            structlog.get_logger().info("unheard")
            logging.getLogger("some.library").warning("unheard, too")


def test_a_service_without_an_output_does_not_fail() -> None:
    configure_logging(mask, None)
    structlog.get_logger().info("unheard")
    logging.getLogger("some.library").warning("unheard, too")


def test_a_log_whose_reader_pauses_goes_on_after_it_and_tells_what_was_lost() -> None:
    with pipe() as (reader, _):
        size = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
        count = size // 100 + 200  # more lines than fit
        for number in range(count):
            structlog.get_logger().info("counted", number=number, padding="x" * 60)
        first = [json.loads(line) for line in lines_in(reader)]
        structlog.get_logger().info("heard")
        rest = [json.loads(line) for line in lines_in(reader)]
        os.close(reader)
    assert [event["number"] for event in first] == list(range(len(first)))
    assert [event["event"] for event in rest] == ["log_lines_lost", "heard"]
    assert rest[0]["lines"] == count - len(first) > 0
    assert "disk full" in rest[0]["reason"]


def test_a_reader_that_is_slower_than_the_log_is_not_waited_for_at_every_line() -> None:
    count, page, pause = 60, 4096, 0.3  # seconds: less than the service waits in all
    texts: list[str] = []
    with pipe() as (reader, _):
        done = threading.Event()

        def read_slowly() -> None:
            while not done.wait(pause):
                texts.append(os.read(reader, page).decode())

        thread = threading.Thread(target=read_slowly)
        thread.start()
        for number in range(count):
            structlog.get_logger().info("counted", number=number, padding="x" * (page - 200))
        done.set()
        thread.join()
        rest = "\n".join(lines_in(reader))
        structlog.get_logger().info("heard")
        last = [json.loads(line) for line in lines_in(reader) if line]
        os.close(reader)
    assert last[-1]["event"] == "heard"
    assert ("".join(texts) + rest).count('"counted"') < count
    assert "log_lines_lost" in "".join(texts) + rest + json.dumps(last)


def test_a_line_that_was_taken_in_part_spoils_no_other() -> None:
    with pipe() as (reader, _):
        size = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
        structlog.get_logger().info("long", padding="x" * 2 * size)
        [torn] = lines_in(reader)
        structlog.get_logger().info("heard")
        nothing, *rest = lines_in(reader)
        os.close(reader)
    assert len(torn) == size
    assert nothing == ""
    assert [json.loads(line)["event"] for line in rest] == ["log_lines_lost", "heard"]


def _until_closed(screen: int) -> Iterator[bytes]:
    while True:
        try:
            yield os.read(screen, 65536)
        except OSError:  # how a terminal says that its other side was closed
            return


def on_terminal(say: Callable[[], object]) -> str:
    """What somebody at a terminal sees."""
    screen, terminal = os.openpty()
    with open(terminal, "w") as stream:  # noqa: PTH123 - a descriptor
        configure_logging(mask, stream)
        say()
    seen = b"".join(_until_closed(screen))
    os.close(screen)
    return seen.decode()


def test_people_get_coloured_text() -> None:
    seen = on_terminal(lambda: structlog.get_logger().warning("lease_lost", exec_id="e1", password=SECRET))
    assert "\x1b[" in seen
    assert "lease_lost" in seen
    assert "e1" in seen
    assert SECRET not in seen
    assert not seen.startswith("{")


def test_people_see_masked_tracebacks_too() -> None:
    def say() -> None:
        try:
            _fail()
        except ConnectionError:
            structlog.get_logger().exception("login_failed")
            logging.getLogger("some.library").exception("lost %s", SECRET)

    seen = on_terminal(say)
    assert seen.count("ConnectionError: login failed with ***") == 2
    assert SECRET not in seen


async def test_a_servers_absence_is_said_once_and_its_return_too(stream: StringIO) -> None:
    changes: list[bool | None] = []
    server = Reachability("queue", lambda: changes.append(server.reached))
    assert server.reached is None
    for happened in ["answered", "answered", "failed", "failed", "failed", "answered"]:
        if happened == "answered":
            server.answered()
        else:
            server.failed("connection refused")
    said = events(stream)
    assert [event["event"] for event in said] == ["server_reached", "server_unavailable", "server_back"]
    assert said[1]["reason"] == "connection refused"
    assert {event["server"] for event in said} == {"queue"}
    assert changes == [True, False, True]


async def test_an_absence_that_lasts_is_said_again_with_its_newest_reason(stream: StringIO) -> None:
    server = Reachability("queue", said_every=0)
    for reason in ["connection refused", "no such queue"]:
        server.failed(reason)
    server.answered()
    said = [(event["event"], event.get("reason")) for event in events(stream)]
    assert said == [
        ("server_unavailable", "connection refused"),
        ("server_still_unavailable", "no such queue"),
        ("server_back", None),
    ]


async def test_a_server_that_was_never_there_is_said_to_be_away(stream: StringIO) -> None:
    server = Reachability("datahub")
    server.failed("no such host")
    assert server.reached is False
    assert [event["event"] for event in events(stream)] == ["server_unavailable"]


async def test_a_server_that_fails_at_one_thing_alone_is_said_to_be_away_once(stream: StringIO) -> None:
    server = Reachability("datahub")
    server.answered("read")
    for _ in range(3):
        server.failed("DataHub answered 403", "write")
        server.answered("read")
    assert server.reached is False
    server.answered("write")
    assert server.reached is True
    assert [event["event"] for event in events(stream)] == [
        "server_reached", "server_unavailable", "server_back"
    ]  # fmt: skip


async def test_any_answer_ends_the_absence_of_a_server_that_could_not_be_reached(stream: StringIO) -> None:
    server = Reachability("datahub")
    server.failed("no such host")
    server.answered("read")
    assert [event["event"] for event in events(stream)] == ["server_unavailable", "server_back"]
