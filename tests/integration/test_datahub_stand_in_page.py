"""The ingestion page's own calls to the DataHub stand-in, and the change events that follow from them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from executor.local.datahub import DataHubStandIn, stand_in

RECIPE = {"source": {"type": "postgres", "config": {"password": "${PW}"}}}
SOURCE = {
    "name": "Shop",
    "type": "postgres",
    "schedule": {"interval": "0 0 * * *", "timezone": "UTC"},
    "config": {
        "recipe": json.dumps(RECIPE),
        "executorId": "remote",
        "version": "bundled",
        "debugMode": True,
        "extraArgs": [{"key": "extra_pip_requirements", "value": '["x==1"]'}],
    },
}
CREATE_SOURCE = "mutation m($input: UpdateIngestionSourceInput!) { createIngestionSource(input: $input) }"
UPDATE_SOURCE = """mutation m($urn: String!, $input: UpdateIngestionSourceInput!) {
  updateIngestionSource(urn: $urn, input: $input) }"""
EXECUTE = """mutation m($input: CreateIngestionExecutionRequestInput!) {
  createIngestionExecutionRequest(input: $input) }"""
CANCEL = """mutation m($input: CancelIngestionExecutionRequestInput!) {
  cancelIngestionExecutionRequest(input: $input) }"""
TEST = "mutation m($input: CreateTestConnectionRequestInput!) { createTestConnectionRequest(input: $input) }"
LIST = """query q($input: ListExecutionRequestsInput!) {
  listExecutionRequests(input: $input) { total executionRequests { urn } } }"""


class Page:
    """The page of one user."""

    def __init__(
        self, client: httpx.AsyncClient, datahub: DataHubStandIn, events: list[dict[str, Any]]
    ) -> None:
        self.client = client
        self.datahub = datahub
        self.events = events

    async def ask(self, query: str, **variables: Any) -> Any:
        body = {"query": query, "variables": variables}
        answer = (await self.client.post("/api/graphql", json=body)).json()
        assert "errors" not in answer, answer
        return next(iter(answer["data"].values()))

    async def error(self, query: str, **variables: Any) -> str:
        body = {"query": query, "variables": variables}
        answer = (await self.client.post("/api/graphql", json=body)).json()
        message: str = answer["errors"][0]["message"]
        return message

    async def execute(self, source: str) -> str:
        urn: str = await self.ask(EXECUTE, input={"ingestionSourceUrn": source})
        return urn

    async def listed(self, *filters: dict[str, Any], **given: Any) -> list[str]:
        found = await self.ask(LIST, input={"filters": list(filters), **given})
        return [request["urn"] for request in found["executionRequests"]]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    events: list[dict[str, Any]] = []

    async def sender(event: dict[str, Any]) -> None:
        events.append(event)

    async with stand_in(token="t", sender=sender) as datahub:
        headers = {"Authorization": "Bearer t"}
        async with httpx.AsyncClient(base_url=datahub.url, headers=headers, trust_env=False) as client:
            yield Page(client, datahub, events)


async def test_execute_stores_the_request_and_sends_its_change_event(page: Page) -> None:
    source = await page.ask(CREATE_SOURCE, input=SOURCE)
    urn = await page.execute(source)
    exec_id = urn.removeprefix("urn:li:dataHubExecutionRequest:")

    (event,) = page.events
    assert (event["entityType"], event["changeType"]) == ("dataHubExecutionRequest", "UPSERT")
    assert (event["aspectName"], event["entityUrn"]) == ("dataHubExecutionRequestInput", urn)
    assert json.loads(event["entityKeyAspect"]["value"]) == {"id": exec_id}
    aspect = json.loads(event["aspect"]["value"])
    assert aspect == page.datahub.store.aspect(urn, "dataHubExecutionRequestInput")
    assert (aspect["task"], aspect["executorId"]) == ("RUN_INGEST", "remote")
    assert aspect["source"] == {"type": "MANUAL_INGESTION_SOURCE", "ingestionSource": source}
    recipe = json.loads(aspect["args"].pop("recipe"))
    assert recipe == {**RECIPE, "run_id": exec_id, "pipeline_name": source}
    assert aspect["args"] == {
        "version": "bundled",
        "debug_mode": "true",
        "extra_pip_requirements": '["x==1"]',
    }


async def test_a_request_can_be_read_back_by_graphql(page: Page) -> None:
    source = await page.ask(CREATE_SOURCE, input=SOURCE)
    urn = await page.execute(source)
    request = await page.ask(
        """query q($urn: String!) { executionRequest(urn: $urn) { type
             input { task executorId source { ingestionSource } arguments { key value } actor { username } }
             result { status } source { name latestSuccessfulExecution { urn } } } }""",
        urn=urn,
    )
    assert {entry["key"] for entry in request["input"].pop("arguments")} == {
        "recipe",
        "version",
        "debug_mode",
        "extra_pip_requirements",
    }
    assert request == {
        "type": "EXECUTION_REQUEST",
        "input": {
            "task": "RUN_INGEST",
            "executorId": "remote",
            "source": {"ingestionSource": source},
            "actor": {"username": "datahub"},
        },
        "result": None,
        "source": {"name": "Shop", "latestSuccessfulExecution": None},
    }


async def test_cancel_stores_a_kill_signal_and_sends_its_change_event(page: Page) -> None:
    source = await page.ask(CREATE_SOURCE, input=SOURCE)
    urn = await page.execute(source)
    await page.ask(CANCEL, input={"ingestionSourceUrn": source, "executionRequestUrn": urn})
    signal = page.datahub.store.aspect(urn, "dataHubExecutionRequestSignal") or {}
    assert (signal["signal"], signal["executorId"], set(signal["createdAt"])) == (
        "KILL",
        "remote",
        {"time", "actor"},
    )
    assert page.events[-1]["aspectName"] == "dataHubExecutionRequestSignal"
    assert json.loads(page.events[-1]["aspect"]["value"]) == signal


async def test_a_connection_test_is_a_request_of_its_own(page: Page) -> None:
    urn = await page.ask(TEST, input={"recipe": json.dumps(RECIPE), "version": "1.7.0.17"})
    aspect = page.datahub.store.aspect(urn, "dataHubExecutionRequestInput") or {}
    assert (aspect["task"], aspect["args"]["version"]) == ("TEST_CONNECTION", "1.7.0.17")
    assert len(page.events) == 1


async def test_a_source_can_be_changed_and_listed_with_its_executions(page: Page) -> None:
    source = await page.ask(CREATE_SOURCE, input=SOURCE)
    await page.ask(UPDATE_SOURCE, urn=source, input={**SOURCE, "name": "Warehouse"})
    urns = [await page.execute(source) for _ in range(3)]
    listed = await page.ask(
        """{ listIngestionSources(input: {query: "ware"}) { total ingestionSources { urn name
             config { recipe executorId version debugMode extraArgs { key value } } schedule { interval }
             executions(start: 1, count: 1) { total executionRequests { urn } } } } }"""
    )
    (row,) = listed["ingestionSources"]
    assert (row["urn"], row["name"], row["schedule"]) == (source, "Warehouse", {"interval": "0 0 * * *"})
    assert row["config"] == SOURCE["config"]
    assert row["executions"] == {"total": 3, "executionRequests": [{"urn": urns[1]}]}, "newest first"


async def test_requests_are_filtered_by_source_and_status(page: Page) -> None:
    one, two = [await page.ask(CREATE_SOURCE, input=SOURCE) for _ in range(2)]
    first, second, third = [await page.execute(source) for source in (one, one, two)]
    for urn, status in ((first, "SUCCESS"), (second, "RUNNING")):
        body = [{"urn": urn, "dataHubExecutionRequestResult": {"value": {"status": status}}}]
        await page.client.post("/openapi/v3/entity/datahubexecutionrequest", json=body)

    of_one = {"field": "ingestionSource", "values": [one]}
    running = {"field": "executionResultStatus", "values": ["RUNNING", "SUCCESS"]}
    assert await page.listed() == [third, second, first]
    assert await page.listed(of_one, sort={"field": "requestTimeMs", "sortOrder": "ASCENDING"}) == [
        first,
        second,
    ]
    assert await page.listed(of_one, {"field": "executionResultStatus", "value": "RUNNING"}) == [second]
    assert await page.listed({**running, "negated": True}) == [third]
    assert await page.listed(start=1, count=1) == [second]
    assert "no filter platform" in await page.error(LIST, input={"filters": [{"field": "platform"}]})


async def test_what_cannot_be_done_is_a_graphql_error(page: Page) -> None:
    nowhere = {"ingestionSourceUrn": "urn:li:dataHubIngestionSource:none"}
    assert "Failed to find ingestion source" in await page.error(EXECUTE, input=nowhere)
    assert "Invalid recipe json" in await page.error(TEST, input={"recipe": "source:\n  type: x"})
    assert "no rollbacks" in await page.error('mutation { rollbackIngestion(input: {runId: "r"}) }')
    assert not page.events
