"""The DataHub stand-in as a client meets it: over a real socket, by the contract's section 3."""

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from executor.local.datahub import DataHubStandIn, stand_in
from executor.local.graphql_api import Generation
from executor.local.page_api import Secret
from executor.local.store import Store

TOKEN = "a-token"
URN = "urn:li:dataHubExecutionRequest:e1"
RESULT = "dataHubExecutionRequestResult"
OPENAPI = "/openapi/v3/entity/datahubexecutionrequest"

PATCH = "mutation p($input: PatchEntityInput!) { patchEntity(input: $input) { urn name success error } }"
PATCH_MANY = "mutation p($input: [PatchEntityInput!]!) { patchEntities(input: $input) { urn success error } }"
READ = "query r($urn: String!) { executionRequest(urn: $urn) { id result { status report startTimeMs } } }"


@pytest.fixture
async def datahub() -> AsyncIterator[DataHubStandIn]:
    async with stand_in(token=TOKEN) as server:
        yield server


@pytest.fixture
async def client(datahub: DataHubStandIn) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=datahub.url, headers=headers, trust_env=False) as client:
        yield client


async def graphql(client: httpx.AsyncClient, query: str, **variables: Any) -> dict[str, Any]:
    answer = await client.post("/api/graphql", json={"query": query, "variables": variables})
    assert answer.status_code == 200, "GraphQL's own errors come under 200"
    body: dict[str, Any] = answer.json()
    return body


def adding(urn: str = URN, *, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    patch = [{"op": "ADD", "path": f"/{key}", "value": json.dumps(value)} for key, value in fields.items()]
    given = {"urn": urn, "aspectName": RESULT, "patch": patch, "forceGenericPatch": True}
    return {**given, "headers": [{"key": key, "value": value} for key, value in (headers or {}).items()]}


async def patch_entity(client: httpx.AsyncClient, given: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = (await graphql(client, PATCH, input=given))["data"]["patchEntity"]
    return result


async def test_a_call_without_the_token_gets_401_with_a_page(datahub: DataHubStandIn) -> None:
    async with httpx.AsyncClient(base_url=datahub.url, trust_env=False) as client:
        for path in ("/api/graphql", f"{OPENAPI}/batchGet", "/aspects?action=ingestProposal"):
            answer = await client.post(path, json={}, headers={"Authorization": "Bearer wrong"})
            assert answer.status_code == 401
            assert answer.headers["content-type"].startswith("text/html")
        assert (await client.get("/health")).status_code == 200
        config = (await client.get("/config")).json()
    assert config["noCode"] == "true"
    assert config["versions"]["acryldata/datahub"]["version"] == "v1.7.0"


@pytest.mark.parametrize("prefix", ["/gms", "/api/gms"])
async def test_it_answers_under_every_address_datahub_has(
    datahub: DataHubStandIn, client: httpx.AsyncClient, prefix: str
) -> None:
    answer = await client.post(f"{prefix}/api/graphql", json={"query": "{ __typename }"})
    assert answer.json() == {"data": {"__typename": "Query"}}


async def test_a_patch_is_stored_when_it_answers(datahub: DataHubStandIn, client: httpx.AsyncClient) -> None:
    assert (await graphql(client, READ, urn=URN))["data"] == {"executionRequest": None}
    given = adding(status="RUNNING", startTimeMs=5, report="a\nb")
    assert await patch_entity(client, given) == {"urn": URN, "name": None, "success": True, "error": None}
    assert datahub.store.status("e1") == "RUNNING"
    assert (await graphql(client, READ, urn=URN))["data"]["executionRequest"] == {
        "id": "e1",
        "result": {"status": "RUNNING", "report": "a\nb", "startTimeMs": 5},
    }


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"forceGenericPatch": None}, "Patching is not supported for this aspect"),
        ({"urn": None}, "URN must be provided"),
        ({"patch": [{"op": "ADD", "path": "/status", "value": "RUNNING"}]}, "a string goes in quotes"),
        (
            {"patch": [{"op": "ADD", "path": "/pod", "value": '"x"'}]},
            "unrecognized field found but not allowed",
        ),
    ],
)
async def test_a_refused_patch_says_so_under_200(
    client: httpx.AsyncClient, changed: dict[str, Any], error: str
) -> None:
    result = await patch_entity(client, adding(status="RUNNING") | changed)
    assert not result["success"]
    assert error in result["error"]


async def test_one_refusal_refuses_the_whole_batch(
    datahub: DataHubStandIn, client: httpx.AsyncClient
) -> None:
    await patch_entity(client, adding(status="SUCCESS"))
    other = "urn:li:dataHubExecutionRequest:e2"
    batch = [adding(other, status="RUNNING"), adding(status="RUNNING")]
    results = (await graphql(client, PATCH_MANY, input=batch))["data"]["patchEntities"]
    assert [result["success"] for result in results] == [False, False]
    assert all("Invalid update to immutable state" in result["error"] for result in results)
    assert datahub.store.status("e2") is None


async def test_a_document_that_the_schema_does_not_allow_is_refused(client: httpx.AsyncClient) -> None:
    answer = await graphql(client, "{ executionRequest(urn: 1) { signal } }")
    assert "data" not in answer
    assert any("signal" in error["message"] for error in answer["errors"])
    assert "Syntax Error" in (await graphql(client, "{ nope"))["errors"][0]["message"]


@pytest.mark.parametrize(
    ("generation", "unknown"),
    [("no_force_generic_patch", "forceGenericPatch"), ("no_patch_entity", "patchEntity")],
)
async def test_an_older_server_does_not_know_the_patch(
    datahub: DataHubStandIn, client: httpx.AsyncClient, generation: Generation, unknown: str
) -> None:
    datahub.generation = generation
    answer = await graphql(client, PATCH, input=adding(status="RUNNING"))
    assert unknown in answer["errors"][0]["message"]
    body = [{"urn": URN, RESULT: {"value": {"status": "RUNNING"}}}]
    assert (await client.post(f"{OPENAPI}?async=false", json=body)).status_code == 200
    assert datahub.store.status("e1") == "RUNNING"


async def test_conditions_hold_through_both_doors(datahub: DataHubStandIn, client: httpx.AsyncClient) -> None:
    first = {"If-Version-Match": "-1"}
    claimed = adding(status="RUNNING", headers=first)
    claimed["systemMetadata"] = {"properties": [{"key": "owner", "value": "one"}]}
    assert (await patch_entity(client, claimed))["success"]
    late = await patch_entity(client, adding(status="FAILURE", headers=first))
    assert "Expected version -1, actual version 1" in late["error"]

    whole = [{"urn": URN, RESULT: {"value": {"status": "FAILURE"}, "headers": first}}]
    answer = await client.post(f"{OPENAPI}?async=false", json=whole)
    assert answer.status_code == 412
    assert "Expected version -1, actual version 1" in answer.json()["message"]

    asked = await client.post(f"{OPENAPI}/batchGet?systemMetadata=true", json=[{"urn": URN, RESULT: {}}])
    metadata = asked.json()[0][RESULT]["systemMetadata"]
    assert (metadata["version"], metadata["properties"]) == ("1", {"owner": "one"})
    assert (await client.get(f"{OPENAPI}/{URN}?systemMetadata=true")).json() == asked.json()[0]

    datahub.ignores_conditions = True
    assert (await patch_entity(client, adding(status="FAILURE", headers=first)))["success"]


async def test_the_openapi_write_keeps_the_same_rules(client: httpx.AsyncClient) -> None:
    body = [{"urn": URN, RESULT: {"value": {"status": "SUCCESS"}}}]
    assert (await client.post(f"{OPENAPI}?async=false", json=body)).status_code == 200
    again = await client.post(f"{OPENAPI}?async=false", json=body)
    assert (again.status_code, again.json()["error"]) == (400, "Validation Error")
    assert "Invalid update to immutable state" in again.json()["message"]
    bodies: list[Any] = [[{"urn": URN}, "x"], [{"urn": URN, RESULT: {}}], {}]
    for wrong in bodies:
        assert (await client.post(OPENAPI, json=wrong)).status_code == 400
    assert (await client.post(OPENAPI, content="no json")).status_code == 400


async def test_kill_signals_of_many_requests_come_in_one_call(client: httpx.AsyncClient) -> None:
    name = "dataHubExecutionRequestSignal"
    value = {"signal": "KILL", "executorId": "remote", "createdAt": {"time": 1, "actor": "urn:li:corpuser:a"}}
    await client.post(OPENAPI, json=[{"urn": URN, name: {"value": value}}])
    other = "urn:li:dataHubExecutionRequest:e2"
    answer = await client.post(f"{OPENAPI}/batchGet", json=[{"urn": URN, name: {}}, {"urn": other, name: {}}])
    assert answer.json() == [{"urn": URN, name: {"value": value}}, {"urn": other}]


async def test_a_compressed_body_is_read(datahub: DataHubStandIn, client: httpx.AsyncClient) -> None:
    body = gzip.compress(json.dumps([{"urn": URN, RESULT: {"value": {"status": "RUNNING"}}}]).encode())
    await client.post(OPENAPI, content=body, headers={"Content-Encoding": "gzip"})
    assert datahub.store.status("e1") == "RUNNING"
    assert datahub.calls.request_bytes[OPENAPI] == len(body), "bytes as they came over the wire"


async def test_an_aspect_over_the_servers_limit_is_refused() -> None:
    small = stand_in(token=None, store=Store(max_aspect_chars=1000))
    async with small as datahub, httpx.AsyncClient(base_url=datahub.url, trust_env=False) as client:
        result = await patch_entity(client, adding(status="RUNNING", report="x" * 1000))
    assert "may have 1000 at most" in result["error"]


async def test_a_status_is_waited_for_without_polling(
    datahub: DataHubStandIn, client: httpx.AsyncClient
) -> None:
    seen: list[str] = []

    async def wait() -> None:
        seen.append(await datahub.wait_for_status("e1", "RUNNING"))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await patch_entity(client, adding("urn:li:dataHubExecutionRequest:e2", status="RUNNING"))
            assert not seen
            await graphql(client, PATCH_MANY, input=[adding(status="RUNNING"), adding(status="SUCCESS")])
    assert seen == ["RUNNING"], "a status that was overwritten at once is not missed"
    assert await datahub.wait_for_status("e1", "FAILURE", "SUCCESS") == "SUCCESS"


async def test_secrets_answer_those_that_exist_to_who_may_ask(
    datahub: DataHubStandIn, client: httpx.AsyncClient
) -> None:
    datahub.secrets["KNOWN"] = Secret("v1")
    create = "mutation c($input: CreateSecretInput!) { createSecret(input: $input) }"
    await graphql(client, create, input={"name": "MADE", "value": "v2", "description": "d"})
    ask = '{ getSecretValues(input: {secrets: ["KNOWN", "NONE", "MADE"]}) { name value } }'
    assert (await graphql(client, ask))["data"]["getSecretValues"] == [
        {"name": "KNOWN", "value": "v1"},
        {"name": "MADE", "value": "v2"},
    ]
    listed = await graphql(client, "{ listSecrets(input: {}) { total secrets { name description } } }")
    assert listed["data"]["listSecrets"]["total"] == 2
    assert (
        "already exists"
        in (await graphql(client, create, input={"name": "MADE", "value": "v3"}))["errors"][0]["message"]
    )
    datahub.may_manage_secrets = False
    assert "Unauthorized" in (await graphql(client, ask))["errors"][0]["message"]


async def test_the_log_tells_what_was_asked(datahub: DataHubStandIn, client: httpx.AsyncClient) -> None:
    await patch_entity(client, adding(status="RUNNING"))
    await graphql(client, READ, urn=URN)
    await client.get("/nowhere")
    assert [call.status for call in datahub.calls.of("patchEntity")] == [200]
    assert datahub.calls.counts == {"patchEntity": 1, "executionRequest": 1, "/nowhere": 1}
    assert [call.status for call in datahub.calls.latest] == [200, 200, 404]
