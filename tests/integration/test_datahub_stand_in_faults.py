"""The DataHub stand-in fails on request, over real sockets, and says afterwards what was stored."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from executor.local.datahub import DataHubStandIn, stand_in
from executor.local.faults import Fault

PATCH = "mutation p($input: PatchEntityInput!) { patchEntity(input: $input) { success error } }"
READ = '{ executionRequest(urn: "urn:li:dataHubExecutionRequest:e1") { id } }'


@pytest.fixture
async def datahub() -> AsyncIterator[DataHubStandIn]:
    async with stand_in(token=None) as server:
        yield server


@pytest.fixture
async def client(datahub: DataHubStandIn) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=datahub.url, trust_env=False, timeout=5) as client:
        yield client


async def patch(client: httpx.AsyncClient, status: str = "RUNNING") -> httpx.Response:
    given = {
        "urn": "urn:li:dataHubExecutionRequest:e1",
        "aspectName": "dataHubExecutionRequestResult",
        "forceGenericPatch": True,
        "patch": [{"op": "ADD", "path": "/status", "value": json.dumps(status)}],
    }
    return await client.post("/api/graphql", json={"query": PATCH, "variables": {"input": given}})


async def test_a_connection_cut_before_the_write_stores_nothing(
    datahub: DataHubStandIn, client: httpx.AsyncClient
) -> None:
    datahub.faults.add("patchEntity", Fault.cut_before_write(), times=1)
    with pytest.raises(httpx.TransportError):
        await patch(client)
    assert datahub.store.status("e1") is None
    assert datahub.calls.of("patchEntity")[0].status == 0
    assert (await patch(client)).status_code == 200, "the fault struck once"


async def test_a_connection_cut_after_the_write_has_stored(
    datahub: DataHubStandIn, client: httpx.AsyncClient
) -> None:
    datahub.faults.add("patchEntity", Fault.cut_after_write(), times=1)
    with pytest.raises(httpx.TransportError):
        await patch(client)
    assert datahub.store.status("e1") == "RUNNING"


async def test_an_http_status_is_answered_in_place_of_the_call(
    datahub: DataHubStandIn, client: httpx.AsyncClient
) -> None:
    datahub.faults.add("*", Fault.status(502, "<h1>Bad Gateway</h1>"), times=2)
    answers = [await patch(client), await client.get("/config"), await patch(client)]
    assert [answer.status_code for answer in answers] == [502, 502, 200]
    assert answers[0].text == "<h1>Bad Gateway</h1>"


async def test_a_fault_strikes_its_own_calls_until_it_is_cleared(
    datahub: DataHubStandIn, client: httpx.AsyncClient
) -> None:
    rule = datahub.faults.add("patchEntity", Fault.status())
    datahub.faults.add("/openapi/", Fault.status(429))
    for _ in range(3):
        assert (await patch(client)).status_code == 503
    assert (await client.post("/api/graphql", json={"query": READ})).status_code == 200
    assert (await client.get("/openapi/v3/entity/dataset")).status_code == 429
    datahub.faults.clear(rule)
    assert (await patch(client)).status_code == 200
    assert (await client.get("/openapi/v3/entity/dataset")).status_code == 429
    datahub.faults.clear()
    assert (await client.get("/openapi/v3/entity/dataset")).status_code == 200


async def test_a_hanging_call_is_answered_once_the_fault_is_cleared(
    datahub: DataHubStandIn, client: httpx.AsyncClient
) -> None:
    datahub.faults.add("patchEntity", Fault.hang())
    answers: list[int] = []

    async def ask() -> None:
        answers.append((await patch(client)).status_code)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            assert (await client.post("/api/graphql", json={"query": READ})).status_code == 200
            assert not answers
            datahub.faults.clear()
    assert answers == [200]
    assert datahub.store.status("e1") == "RUNNING"


async def test_a_slow_call_is_handled_late(datahub: DataHubStandIn, client: httpx.AsyncClient) -> None:
    datahub.faults.add("patchEntity", Fault.slow(60), times=1)
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/api/graphql", json={"query": PATCH_WITHOUT_INPUT}, timeout=0.05)
    assert (await patch(client)).status_code == 200


async def test_a_server_that_is_down_refuses_and_comes_back_on_its_port(
    datahub: DataHubStandIn, client: httpx.AsyncClient
) -> None:
    await patch(client)
    url = datahub.url
    await datahub.faults.down()
    with pytest.raises(httpx.TransportError):
        await patch(client, "FAILURE")  # the kept connection is gone too
    with pytest.raises(httpx.ConnectError):
        await patch(client, "FAILURE")
    await datahub.faults.up()
    assert datahub.url == url
    assert (await patch(client, "SUCCESS")).status_code == 200
    assert [record.status for record in datahub.store.history("e1")] == ["RUNNING", "SUCCESS"]


async def test_it_stops_while_calls_hang(client: httpx.AsyncClient) -> None:
    with anyio.fail_after(5):
        async with stand_in(token=None) as other, anyio.create_task_group() as tasks:
            other.faults.add("*", Fault.hang())
            tasks.start_soon(_ignoring_the_end, other.url)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()


async def _ignoring_the_end(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"{url}/config")


PATCH_WITHOUT_INPUT = "mutation { patchEntity { success } }"


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"operation": "*", "fault": {"kind": "status", "code": 500}, "times": 1}, 204),
        ({"operation": "*", "fault": {"kind": "status", "colour": 1}}, 400),
        ({"fault": {"kind": "slow"}}, 400),
    ],
)
async def test_faults_can_be_set_from_outside(
    client: httpx.AsyncClient, fault: dict[str, Any], status: int
) -> None:
    assert (await client.post("/stand-in/faults", json=fault)).status_code == status
    assert (await client.get("/config")).status_code == (500 if status == 204 else 200)
    assert (await client.delete("/stand-in/faults")).status_code == 204
