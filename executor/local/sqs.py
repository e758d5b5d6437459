"""An SQS server of our own (moto's), for the demo."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from aiobotocore.session import get_session
from anyio import to_thread
from moto.server import ThreadedMotoServer

REGION: Final = "us-east-1"
MAX_RECEIVES: Final = 10  # until a message goes to the dead-letter queue

_COUNTS: Final = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")


class EmbeddedQueue:
    """A queue on the server, with a dead-letter queue. Made by `embedded_queue`."""

    def __init__(self, client: Any, url: str, dead_letter_url: str) -> None:  # noqa: ANN401 - botocore makes its clients' types at run time
        self.url = url
        self._client = client
        self._dead_letter_url = dead_letter_url

    async def send(self, event: Mapping[str, Any]) -> None:
        """Put an object on the queue, as JSON."""
        await self._client.send_message(QueueUrl=self.url, MessageBody=json.dumps(event))

    async def messages(self) -> int:
        """How many messages there are: waiting, received and not deleted, or dead letters."""
        total = 0
        for url in (self.url, self._dead_letter_url):
            answer = await self._client.get_queue_attributes(QueueUrl=url, AttributeNames=list(_COUNTS))
            total += sum(int(answer["Attributes"][count]) for count in _COUNTS)
        return total


@asynccontextmanager
async def embedded_queue(name: str, *, access_key_id: str, access_key: str) -> AsyncIterator[EmbeddedQueue]:
    """A queue on a server that runs meanwhile, on a free port of 127.0.0.1.

    The server works in threads of this process, so that it goes on while a Ctrl-C reaches all other processes. It
    takes any access key; botocore reads the rest of its configuration from this process's environment.
    """
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else it writes a line for each call
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        async with get_session().create_client(
            "sqs",
            region_name=REGION,
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id=access_key_id,
            aws_secret_access_key=access_key,
        ) as client:
            dead = await client.create_queue(QueueName=f"{name}-dead-letters")
            described = await client.get_queue_attributes(
                QueueUrl=dead["QueueUrl"], AttributeNames=["QueueArn"]
            )
            redrive = {
                "deadLetterTargetArn": described["Attributes"]["QueueArn"],
                "maxReceiveCount": MAX_RECEIVES,
            }
            made = await client.create_queue(
                QueueName=name, Attributes={"RedrivePolicy": json.dumps(redrive)}
            )
            yield EmbeddedQueue(client, made["QueueUrl"], dead["QueueUrl"])
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(server.stop)
