"""The executor, run as a stack's task definition says: command, variables, secrets, and the queue that was made."""

import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from executor.local.datahub import DataHubStandIn
from executor.operations.reachability import Reachability
from executor.queue.name import QueueName
from tests.conftest import ROOT
from tests.deploy.cloud import REGION, Cloud, Stack
from tests.servers.ecs_agent import ecs_agent
from tests.servers.executor import DEADLINE, ExecutorProcess
from tests.servers.process import free_port

pytestmark = pytest.mark.xdist_group("cloud")  # one moto for all stacks


class Task(ExecutorProcess):
    """The executor as ECS starts it, without a container around it."""

    def __init__(self, stack: Stack, endpoints: Mapping[str, str], folder: Path) -> None:
        image = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
        super().__init__({**image, **endpoints, **stack.environment()}, folder / "log", stack.command())
        self._health_check = stack.container()["healthCheck"]["command"]

    async def healthy(self) -> bool:
        """What the container's health check finds."""
        kind, *argv = self._health_check
        assert kind == "CMD"
        assert argv[-1] == "/opt/datahub-executor/healthcheck.py"
        argv[-1] = str(ROOT / "docker" / "healthcheck.py")
        return (await anyio.run_process(argv, env=self.env, check=False)).returncode == 0


def moved(folder: Path, cli_venv: Path) -> str:
    """The variables that put what the image has at fixed places elsewhere, as OptionalEnvVars."""
    venvs = folder / "venvs"
    venvs.mkdir()
    (venvs / "sqlalchemy-bundled").symlink_to(cli_venv)
    variables = {
        "DATAHUB_EXECUTOR_WORK_DIR": str(folder / "work"),
        "DATAHUB_BUNDLED_VENV_PATH": str(venvs),
        "DATAHUB_EXECUTOR_METRICS_PORT": str(free_port()),
        "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10",
    }
    return ",".join(f"{name}={value}" for name, value in variables.items())


def send(cloud: Cloud, queue: str, exec_id: str, **config: str) -> None:
    recipe = {"source": {"type": "sqlalchemy", "config": config}}
    args = {"recipe": json.dumps(recipe), "version": "bundled"}
    body = {"executor_id": "remote", "exec_id": exec_id, "name": "RUN_INGEST", "args": args}
    name = QueueName.parse(queue)
    sqs = cloud.client("sqs", name.region or REGION)
    url = sqs.get_queue_url(QueueName=name.name)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody=json.dumps(body))


async def ended(datahub: DataHubStandIn, exec_id: str, task: Task) -> str:
    with anyio.move_on_after(DEADLINE):
        return await datahub.wait_for_status(exec_id, "SUCCESS", "FAILURE")
    raise AssertionError(f"{exec_id} did not end:\n{task.log.read_text()[-4000:]}")


def counted(stack: Stack, event: Mapping[str, Any]) -> list[str]:
    """The metrics that an event of the log counts for."""
    counts = []
    for metric_filter in stack.asked("PutMetricFilter"):
        pattern = metric_filter["filterPattern"]
        terms = re.findall(r'\(\$\.(\w+) = "(\w+)"\)', pattern)
        written = [f'($.{name} = "{value}")' for name, value in terms]
        holds = {
            f"{{ {' && '.join(written)} }}": all,
            f"{{ {' || '.join(written)} }}": any,
        }[pattern]
        if holds(event.get(name) == value for name, value in terms):
            counts += [metric["metricName"] for metric in metric_filter["metricTransformations"]]
    return counts


async def test_a_server_that_can_not_be_reached_counts_as_long_as_it_lasts(cloud: Cloud) -> None:
    stack = cloud.stack()
    with capture_logs() as events:
        server = Reachability("datahub", said_every=0)
        server.failed("refused")
        server.failed("refused")
        server.answered()
    assert [counted(stack, event) for event in events] == [["Unreachable"], ["Unreachable"], []]


async def test_the_task_definition_ingests_from_the_queue_that_was_made(
    cloud: Cloud, stand_in: DataHubStandIn, sqlite_db: Path, cli_venv: Path, tmp_path: Path
) -> None:
    stack = cloud.stack(
        DataHubBaseUrl=stand_in.url,
        DataHubAccessToken="t",
        OptionalEnvVars=moved(tmp_path, cli_venv),
        OptionalSecrets=f"SHOP_PLATFORM={cloud.secret(json.dumps({'platform': 'sqlite'}))}:platform::",
        OptionalSecretsArn=cloud.secret(json.dumps({"SHOP_URI": f"sqlite:///{sqlite_db}"})),
    )
    queue = stack.outputs["QueueArn"]
    async with ecs_agent() as agent, Task(stack, {**cloud.env, **agent.env}, tmp_path).running() as task:
        send(cloud, queue, "good", connect_uri="${SHOP_URI}", platform="${SHOP_PLATFORM}")
        send(cloud, queue, "bad", connect_uri="${NOWHERE}")
        assert await ended(stand_in, "good", task) == "SUCCESS"
        assert await ended(stand_in, "bad", task) == "FAILURE"
        good = await task.until("run_settled", lambda event: event["exec_id"] == "good")
        bad = await task.until("run_settled", lambda event: event["exec_id"] == "bad")
        assert await task.healthy()
        task.send(signal.SIGTERM)
        await task.until("draining")
        send(cloud, queue, "late", connect_uri="${NOWHERE}")  # ends the receive under way; it is given back
        assert await task.ended() == 0
        assert not await task.healthy()
    assert agent.task.calls[0].enabled
    assert not agent.task.held
    assert stand_in.store.datasets()
    assert counted(stack, good) == ["SucceededRuns"]
    assert counted(stack, bad) == ["FailedRuns"]
    counts = [name for event in task.events() for name in counted(stack, event)]
    assert sorted(counts) == ["FailedRuns", "SucceededRuns"]
    assert [event for event in task.events() if event["level"] == "warning"] == []
    left = stack.queue_attributes(stack.outputs["QueueUrl"])
    assert left["ApproximateNumberOfMessages"] == "1"
    assert left["ApproximateNumberOfMessagesNotVisible"] == "0"


async def test_the_task_definition_ingests_from_a_queue_of_another_region(
    cloud: Cloud, stand_in: DataHubStandIn, sqlite_db: Path, cli_venv: Path, tmp_path: Path
) -> None:
    queue = cloud.queue("us-west-2")
    stack = cloud.stack(
        DataHubBaseUrl=stand_in.url,
        ExistingDataHubAccessTokenSecretArn=cloud.secret("t"),
        AwsCommandQueueArn=queue,
        OptionalEnvVars=moved(tmp_path, cli_venv),
    )
    async with Task(stack, cloud.env, tmp_path).running() as task:
        send(cloud, queue, "far", connect_uri=f"sqlite:///{sqlite_db}", platform="sqlite")
        assert await ended(stand_in, "far", task) == "SUCCESS"
        await task.until("run_settled")
