"""LocalStack as docker/compose.yml starts it: its own hook makes the queues."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml
from aiobotocore.session import get_session

from tests.conftest import ROOT
from tests.servers.process import free_port, server_process

HOOKS = ROOT / "docker" / "localstack" / "init"
NAME = "datahub-ingestion"
REGION = "us-east-1"

pytestmark = pytest.mark.xdist_group("composed")  # one LocalStack for all


@pytest.fixture(scope="module")
def composed(localstack_venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, once the health check of the compose file would say that it is healthy."""
    folder = tmp_path_factory.mktemp("composed")
    init = folder / "root" / "etc" / "localstack" / "init"  # where it looks, from FILESYSTEM_ROOT on
    init.parent.mkdir(parents=True)
    init.symlink_to(HOOKS)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    service = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())["services"]["localstack"]
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "OVERRIDE_IN_DOCKER": "0",  # on a machine that looks like a container it would heed no FILESYSTEM_ROOT
        "FILESYSTEM_ROOT": str(folder / "root"),
        **service["environment"],
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "LOCALSTACK_HOST": f"127.0.0.1:{port}",
        "AWS_ENDPOINT_URL": address,
        "DNS_ADDRESS": "0",
    }

    def healthy() -> bool:
        return (
            subprocess.run(health_check(service, address), check=False, capture_output=True).returncode == 0
        )

    argv = [str(localstack_venv / "bin" / "python"), "-m", "localstack.runtime.main"]
    with server_process(
        argv, ready=healthy, log=folder / "localstack.log", env=env, stop_signal=signal.SIGKILL
    ):
        yield address


def health_check(service: dict[str, Any], address: str) -> list[str]:
    kind, command = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    return ["sh", "-c", command.replace("http://localhost:4566", address)]


def client(address: str) -> AbstractAsyncContextManager[Any]:
    made: AbstractAsyncContextManager[Any] = get_session().create_client(
        "sqs",
        endpoint_url=address,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    return made


async def described(address: str) -> dict[str, Mapping[str, str]]:
    """The attributes of every queue, by its name."""
    async with client(address) as sqs:
        urls = (await sqs.list_queues()).get("QueueUrls", [])
        answers = [await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]) for url in urls]
    return {url.rpartition("/")[2]: answer["Attributes"] for url, answer in zip(urls, answers, strict=True)}


async def test_the_queue_and_its_dead_letter_queue_are_there_once_localstack_is_healthy(
    composed: str,
) -> None:
    attributes = await described(composed)
    policy = json.loads(attributes[NAME]["RedrivePolicy"])
    assert policy["deadLetterTargetArn"] == attributes[f"{NAME}-dead-letters"]["QueueArn"]
    assert int(policy["maxReceiveCount"]) == 10
    assert attributes[f"{NAME}-dead-letters"]["MessageRetentionPeriod"] == str(14 * 86400)


async def test_the_queue_has_the_url_that_executor_and_stand_in_are_given(composed: str) -> None:
    given = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())["services"]["executor"][
        "environment"
    ]
    path = given["DATAHUB_EXECUTOR_QUEUE"].removeprefix("http://localstack:4566")
    async with client(composed) as sqs:
        assert (await sqs.get_queue_url(QueueName=NAME))["QueueUrl"] == f"{composed}{path}"


def test_the_hook_ended_well_in_localstacks_own_words(composed: str) -> None:
    page = httpx.get(f"{composed}/_localstack/init/ready", trust_env=False).json()
    assert page["completed"] is True
    assert [(script["name"], script["state"]) for script in page["scripts"]] == [("queues.py", "SUCCESSFUL")]


async def test_run_again_it_changes_nothing(composed: str, localstack_venv: Path) -> None:
    before = await described(composed)
    env = {"PATH": os.defpath, "AWS_ENDPOINT_URL": composed, "QUEUE_NAME": NAME}
    argv = [str(localstack_venv / "bin" / "python"), str(HOOKS / "ready.d" / "queues.py")]
    done = await anyio.run_process(argv, env=env, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert await described(composed) == before
