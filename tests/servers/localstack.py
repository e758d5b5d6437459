"""LocalStack's SQS."""

import json
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from aiobotocore.session import AioSession, get_session

from tests.servers.process import ServerUnavailableError, free_port, server_process


@dataclass(frozen=True)
class LocalStack:
    """What a client needs to reach LocalStack's SQS, and queues made to measure."""

    endpoint: str
    region: str = "eu-central-1"

    @property
    def env(self) -> dict[str, str]:
        """The environment under which botocore, here or in a subprocess, talks to it."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }

    def client(self) -> AbstractAsyncContextManager[Any]:
        """An SQS client of the test's own, independent of the code under test."""
        client: AbstractAsyncContextManager[Any] = _session().create_client(
            "sqs",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        return client

    async def make_queue(
        self, *, fifo: bool = False, visibility: int = 30, redrive: int | None = None
    ) -> str:
        """Make a queue that no other test knows and return its URL.

        `visibility` is its default visibility timeout in seconds; `redrive` the number of receives after
        which a message goes to the queue's own dead-letter queue, see `dead_letters`.
        """
        suffix = ".fifo" if fifo else ""
        kind = {"FifoQueue": "true"} if fifo else {}
        name = f"test-{secrets.token_hex(8)}"
        attributes = {"VisibilityTimeout": str(visibility), **kind}
        async with self.client() as sqs:
            if redrive is not None:
                dead = await sqs.create_queue(QueueName=f"{name}-dead{suffix}", Attributes=kind)
                got = await sqs.get_queue_attributes(QueueUrl=dead["QueueUrl"], AttributeNames=["QueueArn"])
                policy = {"deadLetterTargetArn": got["Attributes"]["QueueArn"], "maxReceiveCount": redrive}
                attributes["RedrivePolicy"] = json.dumps(policy)
            made = await sqs.create_queue(QueueName=name + suffix, Attributes=attributes)
        url: str = made["QueueUrl"]
        return url

    @staticmethod
    def dead_letters(queue_url: str) -> str:
        """The URL of the dead-letter queue of a queue that was made with `redrive`."""
        name = queue_url.removesuffix(".fifo")
        return f"{name}-dead.fifo" if queue_url.endswith(".fifo") else f"{name}-dead"


@cache
def _session() -> AioSession:
    """One for all clients: each session reads the description of the service anew."""
    return get_session()


@contextmanager
def run_localstack(venv: Path, folder: Path) -> Iterator[LocalStack]:
    """Run LocalStack from its venv, with SQS alone; all that it writes goes under `folder`.

    Raises:
        ServerUnavailableError: there is no such venv, or it does not start.
    """
    python = venv / "bin" / "python"
    if not python.exists():
        raise ServerUnavailableError(f"no LocalStack in {venv}: `make setup-tests` puts it there")
    port = free_port()
    server = LocalStack(f"http://127.0.0.1:{port}")
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "ACTIVATE_PRO": "0",
        "SERVICES": "sqs",
        "EAGER_SERVICE_LOADING": "1",  # the health page says `running` only of a service that is loaded
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "LOCALSTACK_HOST": f"127.0.0.1:{port}",
        "SQS_ENDPOINT_STRATEGY": "off",  # queue URLs as AWS writes them: host, account, name
        "DNS_ADDRESS": "0",  # no DNS server, and no hands on /etc/resolv.conf
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
    }

    def ready() -> bool:
        try:
            health = httpx.get(f"{server.endpoint}/_localstack/health", timeout=5, trust_env=False)
        except httpx.TransportError:
            return False
        return health.is_success and health.json()["services"].get("sqs") == "running"

    argv = [str(python), "-m", "localstack.runtime.main"]
    # It has nothing to save: a polite stop would only take three seconds.
    with server_process(
        argv, ready=ready, log=folder / "localstack.log", env=env, stop_signal=signal.SIGKILL
    ):
        yield server
