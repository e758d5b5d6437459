"""Amazon SQS: receive, extend, give back, delete; standard and FIFO queues alike."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import anyio
from botocore.exceptions import ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError

from executor.queue.batcher import BATCH_LIMIT, Batcher
from executor.queue.delivery import (
    HIDDEN_TO_THE_LIMIT,
    Delivery,
    LeaseLostError,
    QueueDeniedError,
    QueueError,
)
from executor.queue.errors import entry_error, errors_in_words, is_fault_of_the_call, require_sqs

LONG_POLL_LIMIT = 20  # seconds (contract, section 6)
BATCH_TIMEOUT = 10.0  # seconds for one call of a batch
SIDE_BY_SIDE = 4  # calls of a kind: one that hangs must not keep the leases of other runs from being renewed
LONGEST_DELAY = 900  # seconds from the sending of a message until it is shown
ASSUMED_RECEIVES = 5  # of a queue that does not say its `maxReceiveCount`: few, to be on the safe side
LONGEST_HOLD = 43_200  # seconds: twelve hours, which SQS counts from the receipt (contract, section 6)
_SENT_BY = "DataHubExecutorRun"  # attribute of a message that takes the place of another one


Operation = Literal["receive", "extend", "delete", "send"]


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """What the queue says of itself."""

    url: str
    arn: str
    visibility_timeout: int  # seconds, the queue's own default
    dead_letter_arn: str | None
    max_receive_count: int | None
    waiting: int
    in_flight: int
    retention: int  # seconds that the queue keeps a message
    encrypted_with: str | None  # the KMS key, None for SQS's own


class SqsQueue:
    """One queue, spoken to through one client. Made by `opening.open_queue`."""

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - botocore makes its clients' types at run time
        url: str,
        visibility_timeout: int,
        longest_hold: int = LONGEST_HOLD,
    ) -> None:
        self._client = client
        self.url = url
        self.date: str | None = None
        """The server's clock as its last answer told it, in HTTP's form."""
        self.max_receives: float = ASSUMED_RECEIVES
        """How often it hands a message out, as `facts` has learned; `inf` without a dead-letter queue."""
        self._visibility = visibility_timeout
        self._longest_hold = longest_hold
        self.long_poll = min(LONG_POLL_LIMIT, visibility_timeout // 4)
        """Seconds that a receive waits for a first message. The lease counts from before: most of it is left."""
        self._batch_timeout = min(BATCH_TIMEOUT, visibility_timeout / 6)
        self._deletes: Batcher[Delivery] = Batcher(self._delete_batch, SIDE_BY_SIDE)
        self._visibilities: Batcher[tuple[Delivery, int]] = Batcher(self._visibility_batch, SIDE_BY_SIDE)

    async def receive(self, limit: int, *, wait: bool = True) -> list[Delivery]:
        """Up to `limit` messages (ten at most a call), waiting `long_poll` for the first one if told to.

        Raises:
            QueueError: the queue could not be asked.
        """
        with errors_in_words(self.url):
            asked_at, answer = await self._timed_call(
                "receive_message",
                MaxNumberOfMessages=min(limit, BATCH_LIMIT),
                WaitTimeSeconds=self.long_poll if wait else 0,
                VisibilityTimeout=self._visibility,
                MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
                MessageAttributeNames=[_SENT_BY],
            )
            lease_ends, hold_ends = asked_at + self._visibility, asked_at + self._longest_hold
            return [_delivery(message, lease_ends, hold_ends) for message in answer.get("Messages", ())]

    async def extend(self, delivery: Delivery) -> None:
        """Renew the lease for another visibility time-out from now, or until the queue's limit if that is sooner.

        Raises:
            LeaseLostError: the receipt handle is stale.
            QueueError: the queue could not be asked; the lease runs on as it was.
        """
        asked_at = anyio.current_time()
        seconds = int(min(self._visibility, delivery.hold_ends - asked_at))
        if asked_at + seconds <= delivery.lease_ends:
            raise QueueError(HIDDEN_TO_THE_LIMIT)
        await self._visibilities.submit((delivery, seconds))
        delivery.lease_ends = asked_at + seconds

    async def release(self, delivery: Delivery, delay: float = 0) -> None:
        """Give the message back, to be received again after `delay` seconds.

        Raises:
            LeaseLostError: it was no longer ours.
            QueueError: the queue could not be asked; the message comes back when its lease ends.
        """
        longest = max(0.0, delivery.hold_ends - anyio.current_time())
        await self._visibilities.submit((delivery, int(min(round(delay), longest, LONGEST_HOLD))))

    async def delete(self, delivery: Delivery) -> None:
        """Take the message off the queue.

        Raises:
            LeaseLostError: the receipt handle is stale.
            QueueError: the queue could not be asked.
        """
        await self._deletes.submit(delivery)

    async def send(self, body: str, group: str, sent_by: str | None = None) -> str:
        """Put a message on the queue; its id. `group` orders and deduplicates on a FIFO queue.

        `sent_by` is the claim whose run is to go on under this message.

        Raises:
            QueueError: the queue could not be asked.
        """
        arguments: dict[str, object] = {}
        if self.url.endswith(".fifo"):
            arguments |= {"MessageGroupId": group, "MessageDeduplicationId": group}
        if sent_by is not None:
            attribute = {"DataType": "String", "StringValue": sent_by}
            arguments |= {"MessageAttributes": {_SENT_BY: attribute}}
        with errors_in_words(self.url):
            answer = await self._call("send_message", MessageBody=body, **arguments)
            message_id: str = answer["MessageId"]
        return message_id

    async def check_permission(self, operation: Operation) -> None:
        """Find out whether an operation is permitted, touching no message: the call can't be carried out.

        SQS refuses for want of permission before it looks at what is asked for, as far as it is known.

        Raises:
            QueueDeniedError: it is not permitted.
            QueueError: the queue could not be asked.
        """
        try:
            with errors_in_words(self.url):
                match operation:
                    case "receive":
                        # More and longer than SQS allows. A server that did it all the same: for no time at all.
                        over = {
                            "MaxNumberOfMessages": BATCH_LIMIT + 1,
                            "WaitTimeSeconds": LONG_POLL_LIMIT + 1,
                        }
                        await self._call("receive_message", VisibilityTimeout=0, **over)
                    case "extend":
                        await self._call(
                            "change_message_visibility", ReceiptHandle="none", VisibilityTimeout=0
                        )
                    case "delete":
                        await self._call("delete_message", ReceiptHandle="none")
                    case "send":
                        # A character that no message may have, and longer away than SQS allows.
                        await self._call("send_message", MessageBody="\uffff", DelaySeconds=LONGEST_DELAY + 1)
        except QueueDeniedError:
            raise
        except QueueError as error:
            if not is_fault_of_the_call(error.__cause__):
                raise

    async def facts(self) -> QueueFacts:
        """Read the queue's attributes (permission `sqs:GetQueueAttributes`). Raises QueueError."""
        with errors_in_words(self.url):
            answer = await self._call("get_queue_attributes", AttributeNames=["All"])
            facts = _facts(self.url, answer["Attributes"])
        self.max_receives = math.inf if facts.max_receive_count is None else facts.max_receive_count
        return facts

    async def serve(self) -> None:
        """Send what gathers for the batch calls, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._deletes.serve)
            tasks.start_soon(self._visibilities.serve)

    async def _delete_batch(self, deliveries: Sequence[Delivery]) -> list[Exception | None]:
        entries: list[dict[str, object]] = [
            {"ReceiptHandle": delivery.receipt_handle} for delivery in deliveries
        ]
        return await self._batch("delete_message_batch", entries)

    async def _visibility_batch(self, changes: Sequence[tuple[Delivery, int]]) -> list[Exception | None]:
        # Somebody else may have what was ours. Servers that still take the old handle would hide, or show, the
        # message that is theirs.
        now = anyio.current_time()
        outcomes: list[Exception | None] = [LeaseLostError("its lease has ended")] * len(changes)
        ours = [number for number, (delivery, _) in enumerate(changes) if delivery.lease_ends >= now]
        entries: list[dict[str, object]] = [
            {"ReceiptHandle": changes[number][0].receipt_handle, "VisibilityTimeout": changes[number][1]}
            for number in ours
        ]
        if entries:
            answers = await self._batch("change_message_visibility_batch", entries)
            for number, answer in zip(ours, answers, strict=True):
                outcomes[number] = answer
        return outcomes

    async def _batch(self, operation: str, entries: Sequence[dict[str, object]]) -> list[Exception | None]:
        numbered = [{"Id": str(number), **entry} for number, entry in enumerate(entries)]
        try:
            # A call that hangs must not keep the leases of other runs from being renewed in time.
            with anyio.fail_after(self._batch_timeout), errors_in_words(self.url):
                answer = await self._call(operation, Entries=numbered)
                return _outcomes(answer, len(entries))
        except QueueError as error:
            return [error] * len(entries)
        except TimeoutError:
            return [QueueError(f"the queue {self.url} did not answer in time")] * len(entries)

    async def _call(self, operation: str, **arguments: object) -> Mapping[str, Any]:
        """Raises anything: callers read the answer within `errors_in_words`, too."""
        _, answer = await self._timed_call(operation, **arguments)
        return answer

    async def _timed_call(self, operation: str, **arguments: object) -> tuple[float, Mapping[str, Any]]:
        """The answer, and when it was asked for (monotonic, seconds). Raises like `_call`.

        The callers wait out an outage; one repetition here hides a connection that was dropped.
        """
        asked_at = anyio.current_time()
        try:
            return asked_at, await self._call_once(operation, **arguments)
        except (BotoConnectionError, HTTPClientError, aiohttp.ClientError):
            asked_at = anyio.current_time()
            return asked_at, await self._call_once(operation, **arguments)

    async def _call_once(self, operation: str, **arguments: object) -> Mapping[str, Any]:
        try:
            answer: Mapping[str, Any] = await getattr(self._client, operation)(QueueUrl=self.url, **arguments)
        except ClientError as error:
            self.date = _date(error.response)
            raise
        require_sqs(answer, self.url)
        self.date = _date(answer)
        return answer


def _delivery(message: Mapping[str, Any], lease_ends: float, hold_ends: float) -> Delivery:
    return Delivery(
        message_id=message["MessageId"],
        receipt_handle=message["ReceiptHandle"],
        body=message["Body"],
        receive_count=int(message["Attributes"]["ApproximateReceiveCount"]),
        sent_at=int(message["Attributes"]["SentTimestamp"]) / 1000,
        lease_ends=lease_ends,
        hold_ends=hold_ends,
        sent_by=message.get("MessageAttributes", {}).get(_SENT_BY, {}).get("StringValue"),
    )


def _facts(url: str, attributes: Mapping[str, str]) -> QueueFacts:
    redrive = json.loads(attributes.get("RedrivePolicy") or "{}")
    return QueueFacts(
        url=url,
        arn=attributes["QueueArn"],
        visibility_timeout=int(attributes["VisibilityTimeout"]),
        dead_letter_arn=redrive.get("deadLetterTargetArn"),
        max_receive_count=int(redrive["maxReceiveCount"]) if "maxReceiveCount" in redrive else None,
        waiting=int(attributes["ApproximateNumberOfMessages"]),
        in_flight=int(attributes["ApproximateNumberOfMessagesNotVisible"]),
        retention=int(attributes["MessageRetentionPeriod"]),
        encrypted_with=attributes.get("KmsMasterKeyId"),
    )


def _outcomes(answer: Mapping[str, Any], entries: int) -> list[Exception | None]:
    """What became of each entry of a batch; one that the answer leaves out was not done."""
    outcomes: list[Exception | None] = [QueueError("the queue's answer leaves this entry out")] * entries
    for success in answer.get("Successful", ()):
        outcomes[int(success["Id"])] = None
    for failure in answer.get("Failed", ()):
        outcomes[int(failure["Id"])] = entry_error(failure)
    return outcomes


def _date(answer: Mapping[str, Any]) -> str | None:
    date: str | None = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return date
