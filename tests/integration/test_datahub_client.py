"""The client over real sockets: whatever a server or a proxy answers, nothing but a DataHubError comes out."""

import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from aiohttp import web

from executor.datahub.client import RESULT, SIGNAL, DataHub, open_datahub
from executor.datahub.errors import (
    DataHubError,
    DataHubRefusedError,
    DataHubUnavailableError,
    ForbiddenError,
    ImmutableStateError,
    NotUnderstoodError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
    VersionConflictError,
)
from executor.datahub.state import ABSENT_VERSION, RunState, StateWrite, Status, urn_of
from executor.datahub.transport import Failure, is_outage
from executor.local.datahub import DataHubStandIn
from executor.local.faults import Fault
from tests.servers.process import free_port
from tests.servers.web import serving

LOOPBACK = "127.0.0.1"
LOGIN_PAGE = "<html><h2>Sign in</h2></html>"
URN = urn_of("e1")


@dataclass
class Server:
    """Answers every call alike, unless a root field or a path has an answer of its own."""

    body: str = LOGIN_PAGE
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    by_name: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        asked = await request.text()
        self.calls.append(asked)
        name = next((name for name in self.by_name if name in asked or name in request.path), None)
        body = self.by_name[name] if name else self.body
        return web.Response(status=self.status, body=body.encode(), headers=self.headers)


@dataclass
class Seen:
    """What the observer was told."""

    calls: list[tuple[str, Failure | None]] = field(default_factory=list)

    def observe(self, operation: str, failure: Failure | None) -> None:
        self.calls.append((operation, failure))

    @property
    def outages(self) -> list[bool]:
        return [is_outage(failure) for _, failure in self.calls]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with serving(server.answer) as server.url:
        yield server


@asynccontextmanager
async def client(url: str, token: str | None = "t") -> AsyncIterator[tuple[DataHub, Seen]]:
    seen = Seen()
    async with open_datahub(url, token, seen.observe) as datahub:
        yield datahub, seen


def write(
    exec_id: str = "e1", status: Status = Status.SUCCESS, version: int | None = ABSENT_VERSION
) -> StateWrite:
    return StateWrite(exec_id, RunState(status, 1, 2, "report"), version)


async def writes_of(datahub: DataHub, count: int) -> None:
    """Raises the first error, after a look at how many outcomes there are."""
    outcomes = await datahub.write_states([write(f"e{number}") for number in range(count)])
    assert len(outcomes) == count
    errors = [outcome for outcome in outcomes if outcome is not None]
    assert len(errors) in {0, count}
    if errors:
        raise errors[0]


Call = Callable[[DataHub], Awaitable[object]]
CALLS: dict[str, Call] = {
    "ping": lambda datahub: datahub.ping(),
    "probe": lambda datahub: datahub.probe(),
    "stored_state": lambda datahub: datahub.stored_state("e1"),
    "kill_signals": lambda datahub: datahub.kill_signals(["e1", "e2"]),
    "write_kill_signal": lambda datahub: datahub.write_kill_signal("e1", "remote", 1),
    "request_input": lambda datahub: datahub.request_input("e1"),
    "followed_state": lambda datahub: datahub.followed_state("e1"),
    "write_input": lambda datahub: datahub.write_input("e1", "RUN_INGEST", {}, "remote", 1),
    "secret_values": lambda datahub: datahub.secret_values(["A"]),
    "write_states of one": lambda datahub: writes_of(datahub, 1),
    "write_states of two": lambda datahub: writes_of(datahub, 2),
}
LISTS = {
    "probe",
    "stored_state",
    "kill_signals",
    "write_kill_signal",
    "write_input",
}  # which an empty list may answer


def graphql(**data: object) -> str:
    return json.dumps({"data": data})


def failed(message: object = "x", **more: object) -> str:
    return json.dumps({"errors": [{"message": message, **more}], "data": None})


ODD = {
    "nothing": "",
    "a page": LOGIN_PAGE,
    "half": '{"data": {"executionRequest": ',
    "an empty object": "{}",
    "a gateway's word": '{"status": "ok"}',
    "a list in place of data": '{"data": []}',
    "a string in place of data": '{"data": "x"}',
    "no data": '{"data": null}',
    "empty data": '{"data": {}}',
    "a string": '"ok"',
    "a number": "5",
    "an endless number": "9" * 5000,
    "null": "null",
    "true": "true",
    "a list of strings": '["x"]',
    "a list of lists": "[[]]",
    "a list of nulls": "[null]",
    "an urn that is a list": '[{"urn": ["x"]}]',
    "no urn": '[{"x": 1}]',
    "a deep nest": "[" * 100_000 + "]" * 100_000,
    "a deep message": '{"errors": [{"message": ' + "[" * 900 + "]" * 900 + "}]}",
    "errors that are a string": '{"errors": "x", "data": {}}',
    "errors that are strings": '{"errors": ["x"]}',
    "an error without words": '{"errors": [{}]}',
    "strange codes": failed(extensions={"code": [], "classification": {}}),
    "strange extensions": failed(extensions="x", path="x"),
    "strings for everything": graphql(
        executionRequest="x", getSecretValues="x", patchEntity="x", patchEntities="x"
    ),
    "lists for everything": graphql(
        executionRequest=[], getSecretValues=["x"], patchEntity=[], patchEntities=[[], []]
    ),
    "strings further in": graphql(
        executionRequest={"result": "x", "input": "x"},
        getSecretValues=[{"name": "A"}],
        patchEntity={"urn": "u"},
        patchEntities=[{"success": "yes"}, {"success": 1}],
    ),
    "lists further in": graphql(
        executionRequest={"result": {"status": []}, "input": {"task": "T", "arguments": [{"key": []}]}},
        getSecretValues=[{"name": [], "value": "x"}],
        patchEntity={"success": None},
        patchEntities=[{"success": True}],
    ),
    "bytes that are no text": "\x00\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
}


@pytest.mark.parametrize("body", ODD)
@pytest.mark.parametrize("call", CALLS)
async def test_what_is_no_datahubs_answer_is_waited_out_and_told_once(
    server: Server, call: str, body: str
) -> None:
    server.body = ODD[body]
    async with client(server.url) as (datahub, seen):
        with pytest.raises(DataHubUnavailableError):
            await CALLS[call](datahub)
    assert len(seen.calls) <= len(server.calls)
    # Of two calls side by side, the first to fail ends the other.
    assert seen.outages in ([True], [True, True])


@pytest.mark.parametrize("call", sorted(CALLS.keys() - LISTS))
async def test_an_empty_list_answers_none_but_openapi(server: Server, call: str) -> None:
    server.body = "[]"
    async with client(server.url) as (datahub, _):
        with pytest.raises(NotUnderstoodError, match="is not understood"):
            await CALLS[call](datahub)


@pytest.mark.parametrize(
    "entity",
    [
        {SIGNAL: "KILL"},
        {SIGNAL: []},
        {SIGNAL: {"value": "KILL"}},
        {SIGNAL: {"value": {"signal": ["KILL"]}}},
        {SIGNAL: {"values": {}}},
        {RESULT: "x"},
        {RESULT: {"value": []}},
        {RESULT: {"value": {"status": {}}}},
        {RESULT: {"value": {}, "systemMetadata": "x"}},
        {RESULT: {"value": {}, "systemMetadata": {"properties": ["x"]}}},
    ],
)
async def test_an_aspect_of_another_shape_is_not_taken_for_an_absent_one(
    server: Server, entity: dict[str, Any]
) -> None:
    server.by_name = {
        "/openapi": json.dumps([{"urn": URN, **entity}]),
        "/graphql": graphql(executionRequest=None),
    }
    async with client(server.url) as (datahub, _):
        with pytest.raises(NotUnderstoodError):
            await datahub.stored_state("e1")


@pytest.mark.parametrize("version", ["²", "1" * 5000, "x", [[]], None, True, -5])
async def test_a_version_that_is_none_is_an_unknown_one(server: Server, version: object) -> None:
    aspect = {"value": {"status": "RUNNING"}, "systemMetadata": {"version": version, "properties": {"a": 1}}}
    server.by_name = {
        "/openapi": json.dumps([{"urn": URN, RESULT: aspect}]),
        "/graphql": graphql(executionRequest={"result": None}),
    }
    async with client(server.url) as (datahub, _):
        stored = await datahub.stored_state("e1")
    assert (stored.status, stored.version, stored.properties) == ("RUNNING", None, {})


IN_BAND: list[tuple[str, dict[str, Any], type[DataHubError], bool]] = [
    (
        "An unknown error occurred.",
        {"path": ["x"], "extensions": {"code": 500}},
        DataHubUnavailableError,
        True,
    ),
    ("busy", {"path": ["x"], "extensions": {"code": 503}}, DataHubUnavailableError, True),
    ("slow down", {"path": ["x"], "extensions": {"code": 429}}, DataHubUnavailableError, False),
    ("who?", {"path": ["x"], "extensions": {"code": 401}}, UnauthorizedError, True),
    ("no", {"path": ["x"], "extensions": {"code": 403, "type": "UNAUTHORIZED"}}, ForbiddenError, False),
    ("Unauthorized to perform this action.", {"path": ["x"]}, ForbiddenError, False),
    ("bad urn", {"path": ["x"], "extensions": {"code": 400}}, DataHubRefusedError, False),
    ("Cannot query field", {"locations": [{"line": 1}]}, DataHubRefusedError, False),
    ("FieldUndefined", {"extensions": {"classification": "ValidationError"}}, DataHubRefusedError, False),
    ("upstream", {}, DataHubUnavailableError, True),
    ("aborted", {"extensions": {"classification": "ExecutionAborted"}}, DataHubUnavailableError, True),
]


@pytest.mark.parametrize(("message", "more", "kind", "outage"), IN_BAND)
async def test_errors_under_http_200_tell_an_outage_from_a_refusal(
    server: Server, message: str, more: dict[str, Any], kind: type[DataHubError], outage: bool
) -> None:
    server.body = failed(message, **more)
    async with client(server.url) as (datahub, seen):
        with pytest.raises(kind) as raised:
            await datahub.followed_state("e1")
    assert type(raised.value) is kind or kind is DataHubRefusedError
    assert seen.outages == [outage]
    assert message in str(raised.value) or kind is UnauthorizedError


async def test_half_an_answer_with_an_error_is_none(server: Server) -> None:
    server.body = json.dumps(
        {
            "data": {"executionRequest": {"urn": URN, "result": None}},
            "errors": [{"message": "x", "path": ["executionRequest", "result"], "extensions": {"code": 500}}],
        }
    )
    async with client(server.url) as (datahub, _):
        with pytest.raises(DataHubUnavailableError):
            await datahub.followed_state("e1")


async def test_a_request_that_datahub_does_not_find_is_one_that_there_is_not(server: Server) -> None:
    not_found = failed("Failed to find it", path=["executionRequest"], extensions={"code": 404})
    server.by_name = {"/openapi": "[]", "/graphql": not_found}
    async with client(server.url) as (datahub, seen):
        assert await datahub.request_input("e1") is None
        stored = await datahub.stored_state("e1")
    assert (stored.status, stored.version, stored.killed) == (None, ABSENT_VERSION, False)
    assert {failure for _, failure in seen.calls} == {None}


OUTCOMES: list[tuple[str | None, type[DataHubError]]] = [
    ("Failed to apply patch: Invalid update to immutable state for aspect x", ImmutableStateError),
    ("Failed to apply patch: Expected version 1, actual version 2", VersionConflictError),
    ("urn:li:corpuser:x is unauthorized to update entities.", ForbiddenError),
    ("Size validation failed at POST: 20 bytes exceeds threshold of 10 bytes for urn=x", TooLargeError),
    ("Failed to apply patch: Packet for query is too large (9 > 8).", TooLargeError),
    ("Failed to apply patch: ERROR :: /foo :: unrecognized field found but not allowed", DataHubRefusedError),
    ("Failed to apply patch: Failed to validate MCP due to: …", DataHubRefusedError),
    ("Failed to apply patch: null", DataHubUnavailableError),
    ("Failed to apply patch: HikariPool-1 - Connection is not available, timed out", DataHubUnavailableError),
    ("Failed to apply patch: Deadline exceeded", DataHubUnavailableError),
    (None, DataHubUnavailableError),
]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("words", "kind"), OUTCOMES)
async def test_each_write_that_is_not_stored_has_its_reason(
    server: Server, words: str | None, kind: type[DataHubError], count: int
) -> None:
    result = {"urn": "u", "success": False, "error": words}
    server.by_name = {
        "patchEntities": graphql(patchEntities=[result] * count),
        "patchEntity": graphql(patchEntity=result),
    }
    async with client(server.url) as (datahub, _):
        outcomes = await datahub.write_states([write(f"e{number}") for number in range(count)])
    assert [type(outcome) for outcome in outcomes] == [kind] * count


@pytest.mark.parametrize("code", [413, 403])
async def test_a_batch_that_is_too_large_together_is_stored_one_by_one(
    code: int, stand_in: DataHubStandIn
) -> None:
    stand_in.faults.add("patchEntities", Fault.status(code, "<h1>Request Entity Too Large</h1>"))
    async with client(stand_in.url) as (datahub, _):
        assert await datahub.write_states([write("e1"), write("e2")]) == [None, None]
    assert [stand_in.store.status("e1"), stand_in.store.status("e2")] == ["SUCCESS", "SUCCESS"]


@pytest.mark.parametrize("generation", ["current", "no_patch_entity"])
async def test_what_is_over_a_limit_is_told_apart_by_both_doors(
    stand_in: DataHubStandIn, generation: Any
) -> None:
    stand_in.generation = generation
    door = "patchEntity" if generation == "current" else "/openapi"
    async with client(stand_in.url) as (datahub, _):
        assert await datahub.write_states([write("e0")]) == [None]
        stand_in.store.max_aspect_chars = 20
        [by_datahub] = await datahub.write_states([write()])
        stand_in.faults.add(door, Fault.status(413))
        [by_a_proxy] = await datahub.write_states([write()])
    assert [type(by_datahub), type(by_a_proxy)] == [TooLargeError, TooLargeError]


@pytest.mark.parametrize("generation", ["no_patch_entity", "no_force_generic_patch"])
async def test_an_older_server_is_found_out_once(stand_in: DataHubStandIn, generation: Any) -> None:
    stand_in.generation = generation
    async with client(stand_in.url) as (datahub, _):
        for number in range(3):
            assert await datahub.write_states([write(f"a{number}"), write(f"b{number}")]) == [None, None]
    assert stand_in.calls.counts["patchEntities"] == 1
    assert len(stand_in.store.history("b2")) == 1


@pytest.mark.parametrize(
    ("status", "kind", "outage", "words"),
    [
        (401, UnauthorizedError, True, "check DATAHUB_GMS_TOKEN"),
        (403, UnauthorizedError, True, "check DATAHUB_GMS_TOKEN"),
        (404, DataHubUnavailableError, True, "check DATAHUB_GMS_URL"),
        (302, DataHubUnavailableError, True, "set DATAHUB_GMS_URL to the final address"),
        (413, TooLargeError, False, "too large"),
        (422, DataHubRefusedError, False, "422"),
        (429, DataHubUnavailableError, False, "429"),
        (503, DataHubUnavailableError, True, "see its own log"),
    ],
)
async def test_http_statuses(
    server: Server, status: int, kind: type[DataHubError], outage: bool, words: str
) -> None:
    server.status, server.body = status, "<html>unauthorized to do that</html>"
    async with client(server.url) as (datahub, seen):
        with pytest.raises(kind, match=words):
            await datahub.kill_signals(["e1"])
    assert [(operation, failure) for operation, failure in seen.calls] == [("batchGet", str(status))]
    assert seen.outages == [outage]


async def test_a_refusal_brings_datahubs_own_words(server: Server) -> None:
    server.status, server.body = 400, json.dumps({"error": "Validation Error", "message": "no such aspect"})
    async with client(server.url) as (datahub, _):
        with pytest.raises(DataHubRefusedError, match="no such aspect"):
            await datahub.write_input("e1", "RUN_INGEST", {}, "remote", 1)


@pytest.mark.parametrize("charset", ["undefined", "base64", "no-such"])
async def test_a_strange_charset_is_not_asked(server: Server, charset: str) -> None:
    server.headers = {"Content-Type": f"application/json; charset={charset}"}
    server.body = "[]"
    async with client(server.url) as (datahub, _):
        assert await datahub.kill_signals(["e1"]) == set()
        server.status = 500
        with pytest.raises(DataHubUnavailableError):
            await datahub.kill_signals(["e1"])


async def test_a_server_that_is_not_there_is_named() -> None:
    port = free_port()
    async with client(f"http://127.0.0.1:{port}") as (datahub, seen):
        with pytest.raises(UnreachableError, match=rf"127\.0\.0\.1:{port} .*check DATAHUB_GMS_URL"):
            await datahub.ping()
    [(operation, failure)] = seen.calls
    assert (operation, failure) == ("config", "connection")
    assert failure is not None
    assert failure.unreachable
    assert "could not be reached" in str(failure.error)


async def test_an_id_that_can_not_be_sent_is_refused(stand_in: DataHubStandIn) -> None:
    async with client(stand_in.url) as (datahub, _):
        with pytest.raises(DataHubRefusedError, match="can't be sent"):
            await datahub.stored_state("half \ud800")


async def test_a_probe_finds_a_wrong_token_where_a_ping_does_not(stand_in: DataHubStandIn) -> None:
    async with client(stand_in.url, "wrong") as (datahub, seen):
        assert await datahub.ping() != "unknown"
        with pytest.raises(UnauthorizedError, match="DATAHUB_GMS_TOKEN"):
            await datahub.probe()
    assert seen.outages == [False, True]
    async with client(stand_in.url) as (datahub, _):
        await datahub.probe()
    assert list(stand_in.store.urns()) == []


@pytest.mark.parametrize("versions", [{}, {"acryldata/datahub": None}, {"acryldata/datahub": {}}])
async def test_a_server_that_does_not_tell_its_version(server: Server, versions: dict[str, Any]) -> None:
    server.body = json.dumps({"versions": versions})
    async with client(server.url) as (datahub, _):
        assert await datahub.ping() == "unknown"


async def test_nothing_of_the_token_is_in_an_error(server: Server) -> None:
    words: Sequence[tuple[int, str]] = [(200, LOGIN_PAGE), (401, ""), (500, "")]
    async with client(server.url, "s3cret") as (datahub, seen):
        for server.status, server.body in words:
            with pytest.raises(DataHubError):
                await datahub.ping()
    assert not [failure for _, failure in seen.calls if failure and "s3cret" in str(failure.error)]


async def test_a_connection_that_is_reset_at_once_is_an_outage() -> None:
    """As of a proxy that restarts: the connection may be gone before anybody has looked at it."""
    seen = set()
    with socket.create_server((LOOPBACK, 0)) as server:
        server.setblocking(False)

        async def reset() -> None:
            while True:
                await anyio.wait_readable(server)
                connection, _ = server.accept()
                with connection:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        url = f"http://{LOOPBACK}:{server.getsockname()[1]}"
        async with open_datahub(url, "t", lambda *_: None) as datahub, anyio.create_task_group() as tasks:
            tasks.start_soon(reset)
            for _ in range(300):
                with pytest.raises(DataHubError) as raised:
                    await datahub.probe()
                seen.add(type(raised.value))
            tasks.cancel_scope.cancel()
    assert seen == {UnreachableError}
