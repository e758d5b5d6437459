"""`datahub-executor check` against LocalStack's SQS and the DataHub stand-in."""

import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from aiohttp import web
from anyio.abc import TaskStatus

from executor.local.datahub import DataHubStandIn
from executor.local.faults import Fault
from executor.local.graphql_api import Generation
from executor.operations.health import Health, serve_http
from executor.operations.metrics import Metrics
from tests.integration.commands import COMMAND, executor, executor_on_terminal, settings_for
from tests.integration.package_index import PackageIndex, serve, wheel
from tests.servers import LocalStack
from tests.servers.process import free_port
from tests.servers.web import serving

SKIPPED = "\N{EN DASH}"
Marks = dict[str, str]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackageIndex]:
    with serve(tmp_path_factory.mktemp("index")) as index:
        index.add(wheel("acryl-datahub", "1.2.3"))
        yield index


@pytest.fixture
async def env(
    localstack: LocalStack, stand_in: DataHubStandIn, index: PackageIndex, tmp_path: Path
) -> dict[str, str]:
    queue = await localstack.make_queue(redrive=10)
    return {
        **settings_for(queue, localstack, stand_in, tmp_path / "work"),
        "DATAHUB_EXECUTOR_METRICS_PORT": "0",
        "UV_DEFAULT_INDEX": index.url,
        "UV_HTTP_RETRIES": "0",
        "SSL_CERT_FILE": str(index.certificates),
    }


async def check(env: dict[str, str]) -> tuple[int, Marks, str]:
    """Exit code, the mark of each line by its name, and all of the output."""
    done = await executor("check", env=env)
    assert done.stderr == b""
    text = done.stdout.decode()
    lines = text.splitlines()
    return done.returncode, {line[2:29].strip(): line[0] for line in lines}, text


def line_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line[2:].startswith(name))


@asynccontextmanager
async def before_sqs(endpoint: str, *, denied: str = "", seconds_off: float = 0) -> AsyncIterator[str]:
    """AWS's front door before LocalStack, which knows no IAM and has our clock."""

    async def enter(request: web.Request) -> web.Response:
        operation = request.headers["X-Amz-Target"].removeprefix("AmazonSQS.")
        if operation == denied:
            answer = {
                "__type": "com.amazon.coral.service#AccessDeniedException",
                "message": f"User: arn:aws:sts::1:x is not authorized to perform: sqs:{denied}",
            }
            query = {"x-amzn-query-error": "AccessDenied;Sender"}
            return web.json_response(answer, status=400, headers=query)
        kept = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        got = await client.post(endpoint, content=await request.read(), headers=kept)
        date = formatdate(time.time() + seconds_off, usegmt=True)
        passed = {name: got.headers[name] for name in ("x-amzn-query-error",) if name in got.headers}
        return web.Response(
            body=got.content,
            status=got.status_code,
            headers={**passed, "Date": date},
            content_type="application/x-amz-json-1.0",
        )

    async with httpx.AsyncClient(trust_env=False) as client, serving(enter) as url:
        yield url


async def test_where_all_is_well_every_line_says_so_and_nothing_is_touched(
    env: dict[str, str], localstack: LocalStack, stand_in: DataHubStandIn, tmp_path: Path
) -> None:
    queue = env["DATAHUB_EXECUTOR_QUEUE"]
    async with localstack.client() as sqs:
        await sqs.send_message(QueueUrl=queue, MessageBody="{}")
        code, marks, text = await check(env)
        received = await sqs.receive_message(
            QueueUrl=queue, AttributeNames=["ApproximateReceiveCount"], WaitTimeSeconds=0
        )
        counts = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed"]
        left = (await sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=counts))["Attributes"]
    assert code == 0, text
    assert list(left.values()) == ["0", "0"]
    assert set(marks.values()) == {"✓"}, text
    assert "version v1.7.0" in line_of(text, "DataHub")
    assert "patchEntity" in line_of(text, "write run state")
    assert "acryl-datahub 1.2.3 is there" in line_of(text, "package index")
    assert "standard, 1 waiting, 0 in flight" in line_of(text, "queue")
    assert received["Messages"][0]["Attributes"]["ApproximateReceiveCount"] == "1"
    assert list(stand_in.store.urns()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("generation", ["no_patch_entity", "no_force_generic_patch"])
async def test_an_older_datahub_is_written_to_by_openapi(
    env: dict[str, str], stand_in: DataHubStandIn, generation: Generation
) -> None:
    stand_in.generation = generation
    stand_in.ignores_conditions = True
    code, _, text = await check(env)
    assert code == 0, text
    assert "by OpenAPI" in line_of(text, "write run state")
    assert list(stand_in.store.urns()) == []


async def test_an_old_datahub_that_ignores_conditions_is_not_written_to(
    env: dict[str, str], stand_in: DataHubStandIn
) -> None:
    stand_in.ignores_conditions = True
    assert (await check(env))[0] == 0
    assert list(stand_in.store.urns()) == []


async def test_faulty_settings_are_named_and_what_needs_none_is_looked_at_all_the_same(
    env: dict[str, str],
) -> None:
    del env["DATAHUB_GMS_URL"]
    env["DATAHUB_EXECUTOR_MAX_ATTEMPTS"] = "none"
    code, _, text = await check(env)
    assert code == 2
    faults = [line for line in text.splitlines() if line.startswith("✗ settings")]
    assert len(faults) == 2
    assert "DATAHUB_GMS_URL is not set" in faults[0]
    assert "DATAHUB_EXECUTOR_MAX_ATTEMPTS" in faults[1]
    skipped = f"{SKIPPED} DataHub, queue, clock, disk skipped: the settings are faulty"
    assert [" ".join(line.split()) for line in text.splitlines() if line.startswith(SKIPPED)] == [skipped]
    assert "\n✓ uv " in text


async def test_a_setting_that_is_none_is_warned_of(env: dict[str, str]) -> None:
    code, _, text = await check({**env, "DATAHUB_EXECUTOR_TASK_TIMOUT": "5"})
    assert code == 0
    assert "DATAHUB_EXECUTOR_TASK_TIMEOUT meant?" in line_of(text, "settings")


async def test_without_datahub_the_queue_is_checked_all_the_same(env: dict[str, str]) -> None:
    code, marks, text = await check({**env, "DATAHUB_GMS_URL": "http://127.0.0.1:1"})
    assert code == 1
    assert (marks["DataHub"], marks["read requests"], marks["write run state"]) == ("✗", SKIPPED, SKIPPED)
    assert "check DATAHUB_GMS_URL" in line_of(text, "DataHub")
    assert (marks["queue"], marks["sqs:DeleteMessage"], marks["clock"]) == ("✓", "✓", "✓")


async def test_a_wrong_token_is_said_once_and_not_shown(env: dict[str, str]) -> None:
    code, marks, text = await check({**env, "DATAHUB_GMS_TOKEN": "wrong-s3cret"})
    assert code == 1
    assert (marks["DataHub"], marks["token"]) == ("✓", "✗")
    dependent = ("read requests", "read kill signals", "write run state", "read secrets")
    assert {marks[name] for name in dependent} == {SKIPPED}
    assert "refused → make a new one and set DATAHUB_GMS_TOKEN" in line_of(text, "token")
    assert "privilege" not in text
    assert "s3cret" not in text


async def test_a_datahub_that_asks_for_a_token_where_none_is_set(env: dict[str, str]) -> None:
    del env["DATAHUB_GMS_TOKEN"]
    code, marks, text = await check(env)
    assert (code, marks["token"], marks["read requests"]) == (1, "✗", SKIPPED)
    assert "DataHub asks for one" in line_of(text, "token")


async def test_a_token_without_a_privilege_is_another_thing_than_a_refused_one(
    env: dict[str, str], stand_in: DataHubStandIn
) -> None:
    stand_in.faults.add("executionRequest", Fault.status(403, "no"))
    code, marks, text = await check(env)
    assert (code, marks["token"], marks["read requests"], marks["read kill signals"]) == (1, "✓", "✗", "✓")
    assert "privilege to view" in line_of(text, "read requests")
    assert "DATAHUB_GMS_TOKEN" not in text


async def test_a_token_that_may_not_write_is_found_out(env: dict[str, str], stand_in: DataHubStandIn) -> None:
    refused = {"urn": "u", "success": False, "error": "urn:li:corpuser:x is unauthorized to update entities."}
    stand_in.faults.add("patchEntity", Fault.status(200, json.dumps({"data": {"patchEntity": refused}})))
    code, marks, text = await check(env)
    assert (code, marks["write run state"], marks["read requests"]) == (1, "✗", "✓")
    assert "privilege to edit" in line_of(text, "write run state")


async def test_an_older_datahub_refuses_a_token_that_may_not_write(
    env: dict[str, str], stand_in: DataHubStandIn
) -> None:
    stand_in.generation = "no_patch_entity"
    forbidden = Fault.status(403, "no")
    stand_in.faults.add("/openapi/v3/entity/datahubexecutionrequest", Fault.slow(0), times=1)  # reading
    stand_in.faults.add("/openapi/v3/entity/datahubexecutionrequest", forbidden)
    code, marks, _ = await check(env)
    assert (code, marks["read kill signals"], marks["write run state"]) == (1, "✓", "✗")


async def test_a_token_that_may_not_read_secrets_is_a_warning(
    env: dict[str, str], stand_in: DataHubStandIn
) -> None:
    stand_in.may_manage_secrets = False
    code, marks, text = await check(env)
    assert (code, marks["read secrets"]) == (0, "!")
    assert "privilege to manage secrets" in line_of(text, "read secrets")


async def test_a_queue_that_is_not_there(env: dict[str, str]) -> None:
    code, marks, text = await check({**env, "DATAHUB_EXECUTOR_QUEUE": "nobody-knows-it"})
    assert code == 1
    assert (marks["queue"], marks["sqs:ReceiveMessage"], marks["redrive policy"]) == ("✗", SKIPPED, SKIPPED)
    assert "check DATAHUB_EXECUTOR_QUEUE" in line_of(text, "queue")
    assert marks["DataHub"] == "✓"


async def test_an_endpoint_where_nobody_listens(env: dict[str, str]) -> None:
    code, marks, text = await check({**env, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    assert (code, marks["queue"]) == (1, "✗")
    assert "AWS_ENDPOINT_URL" in line_of(text, "queue")


async def test_without_credentials_it_says_how_to_give_some(env: dict[str, str]) -> None:
    del env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
    code, marks, text = await check(env)
    assert (code, marks["queue"]) == (1, "✗")
    assert "give the task a role" in line_of(text, "queue")


@pytest.mark.parametrize("operation", ["ReceiveMessage", "ChangeMessageVisibility", "DeleteMessage"])
async def test_each_permission_that_is_missing_is_named(env: dict[str, str], operation: str) -> None:
    async with before_sqs(env["AWS_ENDPOINT_URL"], denied=operation) as door:
        code, marks, text = await check({**env, "AWS_ENDPOINT_URL": door})
    assert code == 1
    assert {name for name, mark in marks.items() if mark == "✗"} == {f"sqs:{operation}"}
    assert f"allow sqs:{operation}" in line_of(text, f"sqs:{operation}")


async def test_a_role_that_may_not_send_can_do_all_but_runs_of_half_a_day(env: dict[str, str]) -> None:
    async with before_sqs(env["AWS_ENDPOINT_URL"], denied="SendMessage") as door:
        code, marks, text = await check({**env, "AWS_ENDPOINT_URL": door})
    assert (code, marks["sqs:SendMessage"]) == (0, "!")
    assert "allow sqs:SendMessage" in line_of(text, "sqs:SendMessage")


async def test_a_queue_that_may_not_be_described_can_be_worked_with(env: dict[str, str]) -> None:
    async with before_sqs(env["AWS_ENDPOINT_URL"], denied="GetQueueAttributes") as door:
        code, marks, _ = await check({**env, "AWS_ENDPOINT_URL": door})
    assert code == 0
    assert (marks["sqs:GetQueueAttributes"], marks["redrive policy"], marks["sqs:DeleteMessage"]) == (
        "!",
        SKIPPED,
        "✓",
    )


async def test_a_clock_that_is_off_is_a_fault(env: dict[str, str]) -> None:
    async with before_sqs(env["AWS_ENDPOINT_URL"], seconds_off=600) as door:
        code, marks, text = await check({**env, "AWS_ENDPOINT_URL": door})
    assert (code, marks["clock"]) == (1, "✗")
    assert "agrees with DataHub's" in line_of(text, "clock")
    assert "s behind the queue's" in line_of(text, "clock")


async def test_a_queue_without_redrive_policy_is_a_warning(
    env: dict[str, str], localstack: LocalStack
) -> None:
    code, marks, text = await check({**env, "DATAHUB_EXECUTOR_QUEUE": await localstack.make_queue(fifo=True)})
    assert (code, marks["redrive policy"]) == (0, "!")
    assert "FIFO" in line_of(text, "queue")


async def test_a_work_folder_that_cannot_be_written_to(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, marks, text = await check({**env, "DATAHUB_EXECUTOR_WORK_DIR": str(tmp_path / "file" / "work")})
    assert (code, marks["work folder"], marks["free space"]) == (1, "✗", SKIPPED)
    assert "set DATAHUB_EXECUTOR_WORK_DIR" in line_of(text, "work folder")


async def test_a_work_folder_that_cannot_be_made(env: dict[str, str]) -> None:
    code, marks, text = await check({**env, "DATAHUB_EXECUTOR_WORK_DIR": "/proc/nowhere/work"})
    assert (code, marks["work folder"], marks["free space"]) == (1, "✗", SKIPPED)
    assert "/proc/nowhere/work can't be made" in line_of(text, "work folder")


async def test_a_metrics_port_that_is_taken_is_warned_of(env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, marks, text = await check({**env, "DATAHUB_EXECUTOR_METRICS_PORT": port})
    assert (code, marks["metrics port"]) == (0, "!")
    assert "taken by something in the executor's way" in line_of(text, "metrics port")
    code, marks, _ = await check({**env, "DATAHUB_EXECUTOR_METRICS_PORT": port})
    assert (code, marks["metrics port"]) == (0, "✓")


async def test_a_metrics_port_that_a_running_executor_has_is_no_fault(env: dict[str, str]) -> None:
    port = free_port()

    async def executor_runs(*, task_status: TaskStatus[None]) -> None:
        await serve_http(port, Health([]), Metrics("remote"), task_status)

    async with anyio.create_task_group() as tasks:
        await tasks.start(executor_runs)
        code, marks, text = await check({**env, "DATAHUB_EXECUTOR_METRICS_PORT": str(port)})
        tasks.cancel_scope.cancel()
    assert (code, marks["metrics port"]) == (0, "✓")
    assert "an executor which runs here" in line_of(text, "metrics port")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/simple", "https://127.0.0.1:1/simple"])
async def test_a_package_index_that_cannot_be_reached_is_warned_of(env: dict[str, str], address: str) -> None:
    code, marks, text = await check({**env, "UV_DEFAULT_INDEX": address})
    assert (code, marks["package index"]) == (0, "!")
    assert "Connection refused" in line_of(text, "package index")
    assert "UV_DEFAULT_INDEX" in line_of(text, "package index")
    assert "'bundled'" in line_of(text, "package index")


async def test_a_package_index_without_the_cli_is_warned_of_and_its_password_not_shown(
    env: dict[str, str], index: PackageIndex
) -> None:
    with_password = index.url.replace("https://", "https://me:s3cret-word@") + "/other"
    code, marks, text = await check({**env, "UV_DEFAULT_INDEX": with_password})
    assert (code, marks["package index"]) == (0, "!")
    assert "s3cret" not in text


async def test_bundled_venvs_are_listed_and_needed_where_nothing_is_installed(
    env: dict[str, str], tmp_path: Path
) -> None:
    env |= {"INGESTION_DEPENDENCY_RESOLUTION_ENABLED": "false", "DATAHUB_BUNDLED_VENV_PATH": str(tmp_path)}
    code, marks, _ = await check(env)
    assert (code, marks["bundled venvs"]) == (1, "✗")
    assert "package index" not in marks
    for program in ("python", "datahub"):
        path = tmp_path / "postgres-bundled" / "bin" / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    code, marks, text = await check(env)
    assert (code, marks["bundled venvs"]) == (0, "✓")
    assert "postgres in" in line_of(text, "bundled venvs")


async def test_an_ecs_task_says_what_it_has(env: dict[str, str]) -> None:
    async def task(_: web.Request) -> web.Response:
        body: dict[str, Any] = {
            "Cluster": "arn:aws:ecs:eu-west-1:1:cluster/data",
            "Family": "datahub-executor",
            "Revision": "7",
            "Limits": {"CPU": 2, "Memory": 8192},
        }
        return web.json_response(body)

    async with serving(task) as url:
        code, _, text = await check({**env, "ECS_CONTAINER_METADATA_URI_V4": f"{url}/v4/id"})
    assert code == 0
    assert "datahub-executor:7" in line_of(text, "ECS task")
    assert "2 vCPU, 8,192 MiB" in line_of(text, "ECS task")


async def test_on_a_terminal_the_marks_are_coloured(env: dict[str, str]) -> None:
    code, text = await executor_on_terminal("check", env=env)
    assert code == 0
    assert "\x1b[1;32m✓" in text


# --- what prints, and can't ---


async def printing_to(output: int, *arguments: str, env: dict[str, str]) -> tuple[int | None, str]:
    """Exit code and standard error of a command whose standard output is `output`, which is closed here."""
    try:
        process = await anyio.open_process([*COMMAND, *arguments], env=env, stdout=output)
    finally:
        os.close(output)
    async with process:
        assert process.stderr is not None
        said = b"".join([chunk async for chunk in process.stderr])
    return process.returncode, said.decode()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["check", "settings"])
async def test_a_full_disk_under_the_output_is_said_in_one_line(
    env: dict[str, str], command: str, unbuffered: str
) -> None:
    env |= {"PYTHONUNBUFFERED": unbuffered}
    full = os.open("/dev/full", os.O_WRONLY)
    assert await printing_to(full, command, env=env) == (1, "write error: No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["check", "settings"])
async def test_a_reader_that_went_away_ends_it_quietly(
    env: dict[str, str], command: str, unbuffered: str
) -> None:
    env |= {"PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    assert await printing_to(writer, command, env=env) == (141, "")
