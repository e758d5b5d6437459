"""`datahub-executor run` as an operator meets it: a process, the real CLI, real databases, real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread

from executor.local.datahub import DataHubStandIn
from tests.servers import LocalStack, Postgres
from tests.servers.executor import DEADLINE, ExecutorProcess, eventually, executor_process

ENDS = ("SUCCESS", "FAILURE", "CANCELLED")


@pytest.fixture
async def queue(localstack: LocalStack) -> str:
    return await localstack.make_queue(redrive=5)


@pytest.fixture
def env(localstack: LocalStack, stand_in: DataHubStandIn, queue: str, bundled: Path) -> dict[str, str]:
    return {
        **localstack.env,
        "DATAHUB_GMS_URL": stand_in.url,
        "DATAHUB_GMS_TOKEN": "t",
        "DATAHUB_EXECUTOR_QUEUE": queue,
        "DATAHUB_BUNDLED_VENV_PATH": str(bundled),
    }


@pytest.fixture
def bundled(tmp_path: Path, cli_venv: Path) -> Path:
    """Bundled venvs: the real CLI for two sources, and `patient`, which runs until it is told to stop."""
    path = tmp_path / "bundled"
    path.mkdir()
    for plugin in ("sqlalchemy", "postgres"):
        (path / f"{plugin}-bundled").symlink_to(cli_venv)
    patient = path / "patient-bundled" / "bin"
    patient.mkdir(parents=True)
    (patient / "python").symlink_to(sys.executable)
    script = patient / "datahub"
    script.write_text(
        '#!/bin/sh\ncat > /dev/null\necho "$$ waits for $PATIENT_FILE"\n'
        'while [ ! -e "$PATIENT_FILE" ]; do sleep 0.05; done\necho "it is there"\n'
    )
    script.chmod(0o755)
    return path


async def send(localstack: LocalStack, queue: str, exec_id: str, recipe: object, **args: object) -> None:
    body = {
        "executor_id": "remote",
        "exec_id": exec_id,
        "name": args.pop("name", "RUN_INGEST"),
        "args": {"recipe": json.dumps(recipe), "version": "bundled", **args},
    }
    async with localstack.client() as sqs:
        await sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(body))


async def messages_left(localstack: LocalStack, queue: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    async with localstack.client() as sqs:
        answer = await sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)
    return sum(int(answer["Attributes"][name]) for name in names)


async def ended(stand_in: DataHubStandIn, exec_id: str, service: ExecutorProcess) -> str:
    with anyio.move_on_after(DEADLINE):
        return await stand_in.wait_for_status(exec_id, *ENDS)
    raise AssertionError(f"{exec_id} did not end:\n{service.log.read_text()[-4000:]}")


def result(stand_in: DataHubStandIn, exec_id: str) -> dict[str, Any]:
    return stand_in.store.history(exec_id)[-1].value


async def test_a_sqlite_source_is_ingested_from_message_to_success(
    localstack: LocalStack,
    stand_in: DataHubStandIn,
    queue: str,
    env: Mapping[str, str],
    sqlite_db: Path,
    tmp_path: Path,
) -> None:
    recipe = {
        "source": {
            "type": "sqlalchemy",
            "config": {"connect_uri": f"sqlite:///{sqlite_db}", "platform": "sqlite"},
        }
    }
    async with executor_process(tmp_path / "executor", env) as service:
        await send(localstack, queue, "sqlite-1", recipe)
        assert await ended(stand_in, "sqlite-1", service) == "SUCCESS"
        await service.until("run_settled")
        service.send(signal.SIGTERM)
        assert await service.ended() == 0

    columns = {urn.split(",")[1]: names for urn, names in stand_in.store.datasets().items()}
    assert set(columns) == {"main.customers", "main.orders"}
    assert "id" in columns["main.customers"]
    stored = result(stand_in, "sqlite-1")
    assert stored["report"].startswith("The run ended successfully")
    assert "Pipeline finished" in stored["report"]
    assert stored["structuredReport"]["type"] == "RUN_INGEST"
    assert json.loads(stored["structuredReport"]["serializedValue"])["source"]["type"] == "sqlalchemy"
    assert stand_in.store.history("sqlite-1")[0].status == "RUNNING"
    assert await messages_left(localstack, queue) == 0
    assert list((tmp_path / "executor" / "work" / "runs").iterdir()) == []


async def test_a_postgres_source_is_ingested_and_its_password_shows_nowhere(
    localstack: LocalStack,
    stand_in: DataHubStandIn,
    queue: str,
    env: Mapping[str, str],
    postgres: Postgres,
    tmp_path: Path,
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "SHOP_PASSWORD").write_text(postgres.password + "\n")
    config = {
        "host_port": f"{postgres.host}:{postgres.port}",
        "database": postgres.database,
        "username": postgres.user,
        "password": "${SHOP_PASSWORD}",
    }
    recipe = {"source": {"type": "postgres", "config": config}}
    with_secrets = {**env, "DATAHUB_EXECUTOR_FILE_SECRET_BASEDIR": str(secrets)}
    async with executor_process(tmp_path / "executor", with_secrets) as service:
        await send(localstack, queue, "pg-1", recipe, debug_mode="true")
        await send(localstack, queue, "pg-test", recipe, name="TEST_CONNECTION")
        assert await ended(stand_in, "pg-1", service) == "SUCCESS"
        assert await ended(stand_in, "pg-test", service) == "SUCCESS"

    columns = {urn.split(",")[1]: names for urn, names in stand_in.store.datasets().items()}
    assert {"shop.public.customers", "shop.public.orders"} <= set(columns)
    tested = json.loads(result(stand_in, "pg-test")["structuredReport"]["serializedValue"])
    assert tested["basic_connectivity"]["capable"] is True
    for exec_id in ("pg-1", "pg-test"):
        for record in stand_in.store.history(exec_id):
            assert postgres.password not in json.dumps(record.value)
    assert postgres.password not in service.log.read_text()


async def test_a_stopped_executor_hands_its_run_to_another_one(
    localstack: LocalStack, stand_in: DataHubStandIn, queue: str, env: Mapping[str, str], tmp_path: Path
) -> None:
    there = tmp_path / "there"
    impatient = {**env, "DATAHUB_EXECUTOR_DRAIN_TIMEOUT": "0.5"}
    recipe = {"source": {"type": "patient", "config": {}}}
    async with executor_process(tmp_path / "first", impatient) as first:
        await send(
            localstack, queue, "handed", recipe, extra_env_vars=json.dumps({"PATIENT_FILE": str(there)})
        )
        await first.until("run_started")
        first.send(signal.SIGTERM)
        assert await first.ended() == 0
    assert stand_in.store.status("handed") == "UP_FOR_RETRY"
    async with executor_process(tmp_path / "second", env) as second:
        await second.until("run_started", lambda event: event["attempt"] == 2)
        there.touch()
        assert await ended(stand_in, "handed", second) == "SUCCESS"
    assert "Attempt:   2" in result(stand_in, "handed")["report"]


async def test_a_killed_executors_run_is_started_again_when_its_message_comes_back(
    localstack: LocalStack, stand_in: DataHubStandIn, queue: str, env: Mapping[str, str], tmp_path: Path
) -> None:
    there = tmp_path / "there"
    recipe = {"source": {"type": "patient", "config": {}}}
    async with executor_process(tmp_path / "first", env) as first:
        await send(
            localstack, queue, "orphan", recipe, extra_env_vars=json.dumps({"PATIENT_FILE": str(there)})
        )
        await first.until("run_started")
        first.send(signal.SIGKILL)
        await first.ended()
    there.touch()  # the first one's process, left alone, ends by itself
    async with executor_process(tmp_path / "second", env) as second:
        assert await ended(stand_in, "orphan", second) == "SUCCESS"
        assert second.events("run_claimed")[0]["attempt"] == 2


async def test_health_metrics_and_heartbeat_files_say_that_it_is_ready(
    env: Mapping[str, str], tmp_path: Path
) -> None:
    async with executor_process(tmp_path / "executor", env) as service, httpx.AsyncClient() as client:
        await service.until("server_reached", lambda event: event["server"] == "datahub")
        await service.until("server_reached", lambda event: event["server"] == "queue")
        base = f"http://127.0.0.1:{service.env['DATAHUB_EXECUTOR_METRICS_PORT']}"
        for path in ("/health/live", "/health/ready"):
            assert (await client.get(base + path)).status_code == 200
        metrics = (await client.get(f"{base}/metrics")).text
    assert 'datahub_executor_worker_ingestion_requests_total{executor_id="remote"} 0.0' in metrics
    assert "datahub_executor_slots 4.0" in metrics
    for name in ("worker_liveness_heartbeat", "worker_readiness_heartbeat"):
        assert Path("/tmp", name).exists()


def test_every_fault_of_a_configuration_is_said_in_a_line_of_its_own() -> None:
    env = {
        "PATH": os.environ["PATH"],
        "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS": "none",
        "DATAHUB_GMS_TOKEN": "s e c",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "executor", "run"], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    lines = ran.stderr.splitlines()
    assert [line.split()[0] for line in lines] == [
        "DATAHUB_GMS_URL",
        "DATAHUB_GMS_TOKEN",
        "DATAHUB_EXECUTOR_QUEUE",
        "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS",
    ]
    assert "s e c" not in ran.stderr


async def test_a_port_that_is_taken_ends_the_start_with_one_line(
    env: Mapping[str, str], tmp_path: Path
) -> None:
    async with executor_process(tmp_path / "first", env) as first:
        await first.until("consuming")
        port = first.env["DATAHUB_EXECUTOR_METRICS_PORT"]
        async with executor_process(
            tmp_path / "second", {**env, "DATAHUB_EXECUTOR_METRICS_PORT": port}
        ) as second:
            assert await second.ended() == 2
            last = second.log.read_text().splitlines()[-1]
            assert "DATAHUB_EXECUTOR_METRICS_PORT" in last
            assert "Traceback" not in second.log.read_text()


async def test_a_work_folder_that_can_not_be_written_to_ends_the_start(
    env: Mapping[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    async with executor_process(
        tmp_path / "executor", {**env, "DATAHUB_EXECUTOR_WORK_DIR": str(file)}
    ) as service:
        assert await service.ended() == 2
        assert "DATAHUB_EXECUTOR_WORK_DIR" in await eventually(service.log.read_text, lambda: "no words")


@pytest.mark.parametrize("fault", ["a symbolic link", "for everybody", "of another user"])
async def test_a_work_folder_that_others_can_fill_ends_the_start(
    env: Mapping[str, str], tmp_path: Path, fault: str
) -> None:
    folder, planted = tmp_path / "work", tmp_path / "planted"
    planted.mkdir()
    match fault:
        case "a symbolic link":
            folder.symlink_to(planted)
        case "for everybody":
            folder.mkdir()
            folder.chmod(0o777)
        case _ if os.geteuid() == 0:
            folder.mkdir()
            os.chown(folder, 65534, 65534)
        case _:
            pytest.skip("a folder can be given away by root alone")
    settings = {**env, "DATAHUB_EXECUTOR_WORK_DIR": str(folder)}
    async with executor_process(tmp_path / "executor", settings) as service:
        assert await service.ended() == 2
        assert f"the work folder {folder} " in service.log.read_text()
        assert "Set DATAHUB_EXECUTOR_WORK_DIR to a folder of its own" in service.log.read_text()
    assert not [*folder.iterdir()]


@pytest.mark.parametrize("mode", [None, 0o755, 0o700])
async def test_a_work_folder_of_ones_own_is_used(
    env: Mapping[str, str], tmp_path: Path, mode: int | None
) -> None:
    folder = tmp_path / "work"
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    settings = {**env, "DATAHUB_EXECUTOR_WORK_DIR": str(folder)}
    async with executor_process(tmp_path / "executor", settings) as service:
        await service.until("consuming")
    assert folder.stat().st_mode & 0o777 == (mode or 0o700)


@pytest.mark.parametrize("queue", ["plain-name", "http://127.0.0.1:{port}/000000000000/q"])
async def test_a_queue_that_hangs_does_not_keep_the_service_from_stopping(
    env: Mapping[str, str], tmp_path: Path, queue: str
) -> None:
    """The time-outs of its calls add up to a minute, much of what a task is given to stop."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        hanging.settimeout(DEADLINE)
        port = hanging.getsockname()[1]
        settings = {
            **env,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "DATAHUB_EXECUTOR_QUEUE": queue.format(port=port),
            "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "120",
        }
        async with executor_process(tmp_path / "executor", settings) as service:
            connection, _ = await to_thread.run_sync(hanging.accept)
            with connection, anyio.fail_after(20):
                service.send(signal.SIGTERM)
                assert await service.ended() == 0
        assert service.events("stopped")


async def test_an_aws_profile_that_does_not_exist_is_named(env: Mapping[str, str], tmp_path: Path) -> None:
    async with executor_process(tmp_path / "executor", {**env, "AWS_PROFILE": "nope"}) as service:
        said = await service.until("server_unavailable", lambda event: event["server"] == "queue")
    assert "AWS_PROFILE" in said["reason"]
