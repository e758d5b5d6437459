"""The real `datahub` CLI ingests into the DataHub stand-in, and the stand-in runs as a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.streams.text import TextReceiveStream

from executor.local.datahub import DataHubStandIn, stand_in
from tests.servers import LocalStack

TOKEN = "a-token"
COLUMNS = {"customers": {"id", "name", "email"}, "orders": {"id", "customer_id", "total"}}


@pytest.fixture
async def datahub() -> AsyncIterator[DataHubStandIn]:
    async with stand_in(token=TOKEN) as server:
        yield server


async def ingest(
    cli_venv: Path, sqlite_db: Path, url: str, *options: str, token: str = TOKEN, **env: str
) -> subprocess.CompletedProcess[bytes]:
    config = {"connect_uri": f"sqlite:///{sqlite_db}", "platform": "sqlite"}
    recipe = {"run_id": "e1", "source": {"type": "sqlalchemy", "config": config}}
    return await anyio.run_process(
        [cli_venv / "bin" / "datahub", "ingest", "run", "-c", "-", *options],
        input=json.dumps(recipe).encode(),
        stderr=subprocess.STDOUT,
        check=False,
        env={
            "HOME": str(sqlite_db.parent),
            "PATH": os.environ["PATH"],
            "DATAHUB_GMS_URL": url,
            "DATAHUB_GMS_TOKEN": token,
            **env,
        },
    )


@pytest.mark.parametrize(
    ("endpoint", "door"), [("RESTLI", "/aspects"), ("OPENAPI", "/openapi/v3/entity/dataset")]
)
async def test_datasets_and_columns_arrive(
    datahub: DataHubStandIn, cli_venv: Path, sqlite_db: Path, endpoint: str, door: str
) -> None:
    report = sqlite_db.parent / "report.json"
    options = ("--report-to", str(report))
    env = {"DATAHUB_REST_EMITTER_DEFAULT_ENDPOINT": endpoint}
    done = await ingest(cli_venv, sqlite_db, datahub.url, *options, **env)
    assert done.returncode == 0, done.stdout.decode()[-2000:]
    assert json.loads(report.read_text())["sink"]["report"]["failures"] == []
    assert datahub.calls.counts[door] >= 1
    arrived = datahub.store.datasets()
    assert {urn.split(",")[1].rsplit(".", 1)[-1]: set(columns) for urn, columns in arrived.items()} == COLUMNS
    assert datahub.store.status("e1") is None, (
        "with --report-to the CLI leaves the run's state to its executor"
    )


async def test_the_clis_own_report_of_a_run_arrives(
    datahub: DataHubStandIn, cli_venv: Path, sqlite_db: Path
) -> None:
    done = await ingest(cli_venv, sqlite_db, f"{datahub.url}/gms")
    assert done.returncode == 0, done.stdout.decode()[-2000:]
    assert datahub.store.status("e1") == "SUCCESS"
    request = datahub.store.aspect("urn:li:dataHubExecutionRequest:e1", "dataHubExecutionRequestInput") or {}
    assert request["source"]["type"] == "CLI_INGESTION_SOURCE"


async def test_a_run_with_a_wrong_token_fails(
    datahub: DataHubStandIn, cli_venv: Path, sqlite_db: Path
) -> None:
    retries = {"DATAHUB_REST_EMITTER_DEFAULT_RETRY_MAX_TIMES": "0"}
    done = await ingest(cli_venv, sqlite_db, datahub.url, token="wrong", **retries)
    assert done.returncode != 0
    assert datahub.store.datasets() == {}


@asynccontextmanager
async def own_process(*options: str, **env: str) -> AsyncIterator[str]:
    """Run the stand-in as `python -m` does; gives its address, and checks that SIGTERM ends it well."""
    command = [sys.executable, "-m", "executor.local.datahub", "--port", "0", *options]
    async with await anyio.open_process(command, env={**os.environ, **env}, stderr=None) as process:
        assert process.stdout is not None
        line = await TextReceiveStream(process.stdout).receive()
        assert line.startswith("DataHub stand-in on http://127.0.0.1:"), line
        yield line.split()[-1]
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_as_its_own_process_it_shows_what_it_stored() -> None:
    urn = "urn:li:dataHubExecutionRequest:e1"
    body = [{"urn": urn, "dataHubExecutionRequestResult": {"value": {"status": "RUNNING"}}}]
    with anyio.fail_after(30):
        async with own_process("--token", TOKEN) as url, httpx.AsyncClient(trust_env=False) as client:
            write = f"{url}/openapi/v3/entity/datahubexecutionrequest"
            assert (await client.post(write, json=body)).status_code == 401
            await client.post(write, json=body, headers={"Authorization": f"Bearer {TOKEN}"})
            aspects: dict[str, Any] = (
                await client.get(f"{url}/stand-in/aspects", params={"urn": urn})
            ).json()
    assert aspects["dataHubExecutionRequestResult"]["value"] == {"status": "RUNNING"}


@pytest.mark.parametrize("fifo", [False, True])
async def test_as_its_own_process_it_puts_change_events_on_the_queue(
    localstack: LocalStack, fifo: bool
) -> None:
    queue = await localstack.make_queue(fifo=fifo)
    query = "mutation m($r: String!) { createTestConnectionRequest(input: {recipe: $r}) }"
    body = {"query": query, "variables": {"r": "{}"}}
    with anyio.fail_after(30):
        async with (
            own_process("--queue-url", queue, **localstack.env) as url,
            httpx.AsyncClient(trust_env=False) as client,
            localstack.client() as sqs,
        ):
            answer = (await client.post(f"{url}/api/graphql", json=body)).json()
            received = await sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=10)
    event = json.loads(received["Messages"][0]["Body"])
    assert event["entityUrn"] == answer["data"]["createTestConnectionRequest"]
    assert event["aspectName"] == "dataHubExecutionRequestInput"
