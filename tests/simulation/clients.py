"""What the shipped code holds in its hands: a client like botocore's, and DataHub's transport."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from executor.datahub.errors import (
    DataHubError,
    DataHubRefusedError,
    DataHubUnavailableError,
    UnreachableError,
    refusal,
)
from executor.datahub.transport import Failure, Transport
from tests.simulation.network import ConnectError, ConnectLateError, LateError, ResetError
from tests.simulation.sqs_server import METADATA, parts_of

if TYPE_CHECKING:
    from tests.simulation.fleet import SimExecutor
    from tests.simulation.network import Reply
    from tests.simulation.world import World

QUEUE_URL = "https://sqs.simulated.example/1/queue"
ATTEMPTS = 2  # of a call that got no answer: botocore repeats it once

Answer = TypeVar("Answer")
Json = dict[str, Any]

_NO_CLIENT = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(500)))


class SqsClient:
    """The calls of botocore's client that `SqsQueue` makes."""

    def __init__(self, world: "World", executor: "SimExecutor") -> None:
        self._world = world
        self._executor = executor

    async def receive_message(self, **call: Any) -> Json:
        limit, visibility = call["MaxNumberOfMessages"], call["VisibilityTimeout"]

        def serve(reply: "Reply") -> None:
            self._world.sqs.receive(limit, visibility, call["WaitTimeSeconds"], reply)

        answer = await self._call(serve)
        for message in answer.get("Messages", ()):
            if is_kill(message["Body"]):
                self._world.bounds.kill_received(self._executor, exec_id_in(message["Body"]))
        return {**answer, "ResponseMetadata": METADATA}

    async def change_message_visibility_batch(self, **call: Any) -> Json:
        entries = call["Entries"]

        def serve(reply: "Reply") -> None:
            change = self._world.sqs.change_visibility
            reply(parts_of([(e["Id"], change(e["ReceiptHandle"], e["VisibilityTimeout"])) for e in entries]))

        answer: Json = await self._call(serve)
        handles = {entry["Id"]: entry["ReceiptHandle"] for entry in entries}
        for failure in answer["Failed"]:
            self._world.bounds.refused(self._executor, handles[failure["Id"]], failure["Message"])
        return answer

    async def delete_message_batch(self, **call: Any) -> Json:
        def serve(reply: "Reply") -> None:
            delete, index = self._world.sqs.delete, self._executor.index
            reply(parts_of([(e["Id"], delete(e["ReceiptHandle"], index)) for e in call["Entries"]]))

        answer: Json = await self._call(serve)
        return answer

    async def send_message(self, **call: Any) -> Json:
        body, delay = call["MessageBody"], call.get("DelaySeconds", 0)

        def serve(reply: "Reply") -> None:
            exec_id = exec_id_in(body)
            self._world.counts["hand-over messages sent"] += 1
            self._world.checks.many(exec_id)
            attributes = dict(call.get("MessageAttributes", {}))
            message_id = self._world.sqs.send(body, exec_id, attributes, signal=False, delay=delay)
            reply({"MessageId": message_id, "ResponseMetadata": METADATA})

        answer: Json = await self._call(serve)
        return answer

    async def _call(self, serve: Callable[["Reply"], None]) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                return await self._world.network.call(self._executor, "queue", serve)
            except (ConnectError, ConnectLateError):
                if attempt + 1 == ATTEMPTS:
                    raise EndpointConnectionError(endpoint_url=QUEUE_URL) from None
            except ResetError:
                if attempt + 1 == ATTEMPTS:
                    raise ConnectionClosedError(endpoint_url=QUEUE_URL) from None
            except LateError:
                if attempt + 1 == ATTEMPTS:
                    raise ReadTimeoutError(endpoint_url=QUEUE_URL) from None
        return None


class SimTransport(Transport):
    """DataHub's HTTP, without HTTP: the same errors come out of it."""

    def __init__(self, world: "World", executor: "SimExecutor") -> None:
        super().__init__(_NO_CLIENT, _unobserved)
        self._world = world
        self._executor = executor

    async def json(
        self, operation: str, method: str, path: str, body: object, read: Callable[[Any], Answer]
    ) -> Answer:
        def serve(reply: "Reply") -> None:
            reply(self._world.datahub.answer(operation, path, body, self._executor))

        executor = self._executor
        try:
            answer = await self._world.network.call(executor, "datahub", serve)
        except ConnectError:
            raise UnreachableError("DataHub could not be reached") from None
        except ConnectLateError:
            raise UnreachableError("DataHub could not be reached", "timeout") from None
        except ResetError:
            raise UnreachableError("the connection ended") from None
        except LateError:
            raise DataHubUnavailableError("DataHub did not answer in time", "timeout") from None
        if isinstance(answer, Refusal):
            raise answer.error()
        return read(answer)


class Refusal:
    """An answer of OpenAPI's that is a refusal: its text."""

    def __init__(self, words: str) -> None:
        self.words = words

    def error(self) -> DataHubError:
        """As the transport reads it."""
        return refusal(self.words) or DataHubRefusedError(self.words)


def is_kill(body: str) -> bool:
    """Whether a message is a kill."""
    return "signal" in json.loads(body)


def exec_id_in(body: str) -> str:
    """The request that a message names."""
    found = json.loads(body)
    exec_id: str = found["exec_id"] if "exec_id" in found else found["urn"].rpartition(":")[2]
    return exec_id


def _unobserved(_operation: str, _failure: Failure | None) -> None:
    return
