"""SQS as the contract's section 6 has it: visibility, handles, duplicates, the hold limit, redrive."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tests.simulation.plan import EPOCH

if TYPE_CHECKING:
    from tests.simulation.kernel import Handle
    from tests.simulation.network import Reply
    from tests.simulation.world import World

MOST_COPIES = (
    8  # of a message at a time: where each is handed out twice again and again, they would fill the queue
)

Json = dict[str, Any]


class Copy:
    """One stored copy of a message. Two copies of the same message have the same id and handles of their own."""

    __slots__ = (
        "attributes", "body", "count", "duplicates", "exec_id", "gone", "handle", "message_id", "received_at",
        "returns", "sent_at", "signal", "visible_at",
    )  # fmt: skip

    def __init__(
        self, message_id: str, body: str, exec_id: str, sent_at: float, attributes: Json, *, signal: bool
    ) -> None:
        self.message_id = message_id
        self.body = body
        self.exec_id = exec_id
        self.sent_at = sent_at
        self.attributes = attributes
        self.signal = signal
        self.count = 0
        self.duplicates = 0  # how often it was handed out once more while it was hidden
        self.handle = ""
        self.received_at = 0.0
        self.visible_at = sent_at
        self.returns: Handle | None = None
        self.gone = False

    def twin(self) -> "Copy":
        """A second copy, as a standard queue may have one."""
        copy = Copy(
            self.message_id, self.body, self.exec_id, self.sent_at, self.attributes, signal=self.signal
        )
        copy.count = self.count
        copy.duplicates = self.duplicates
        return copy


class _Waiter:
    """A receive that waits for a first message."""

    __slots__ = ("limit", "reply", "visibility")

    def __init__(self, limit: int, visibility: float, reply: "Reply") -> None:
        self.limit = limit
        self.visibility = visibility
        self.reply = reply


class SqsServer:
    """One standard queue."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.copies: list[Copy] = []
        self._by_handle: dict[str, Copy] = {}
        self._waiters: list[_Waiter] = []
        self._count = 0

    def others(self, copy: Copy) -> bool:
        """Whether another message of the same request is on the queue."""
        return any(
            other.exec_id == copy.exec_id and other.message_id != copy.message_id and not other.signal
            for other in self.copies
        )

    # --- the calls, each at one moment ---------------------------------------------------------------------

    def send(self, body: str, exec_id: str, attributes: Json, *, signal: bool, delay: float = 0) -> str:
        """Store a message; its id."""
        self._count += 1
        copy = Copy(f"m{self._count}", body, exec_id, self._world.now, attributes, signal=signal)
        self.copies.append(copy)
        self._world.checks.sent(copy)
        self._hide(copy, delay)
        self._world.tell("sqs", "sent", copy.message_id, exec_id)
        return copy.message_id

    def receive(self, limit: int, visibility: float, wait: float, reply: "Reply") -> None:
        """Hand out messages, at once or when there are some."""
        if messages := self._hand_out(limit, visibility):
            reply({"Messages": messages})
        elif wait <= 0:
            reply({})
        else:
            waiter = _Waiter(limit, visibility, reply)
            self._waiters.append(waiter)
            self._world.kernel.after(wait, self._expire, waiter)

    def change_visibility(self, handle: str, seconds: float) -> tuple[str, str] | None:
        """Hide a message for so long from now; code and message of a refusal."""
        copy, now = self._by_handle.get(handle), self._world.now
        if copy is None:
            return "ReceiptHandleIsInvalid", "The receipt handle has expired"
        if copy.gone:
            return (
                "InvalidParameterValue",
                "Reason: Message does not exist or is not available for visibility change",
            )
        if copy.visible_at <= now:
            return "MessageNotInflight", "The message referred to isn't in flight"
        if now + seconds > copy.received_at + self._world.plan.hold_limit:
            limit = self._world.plan.hold_limit
            return "InvalidParameterValue", (
                f"Value {seconds} for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for "
                f"the message is beyond the limit [{limit} seconds]."
            )
        self._world.tell("sqs", "hides", copy.message_id, seconds)
        if seconds != self._world.visibility:
            self._world.bounds.given_back(copy, seconds)
        self._hide(copy, seconds)
        return None

    def delete(self, handle: str, executor: int) -> tuple[str, str] | None:
        """Take a message away; code and message of a refusal. Deleting what is gone already is no fault."""
        copy = self._by_handle.get(handle)
        if copy is None:
            return "ReceiptHandleIsInvalid", "The receipt handle has expired"
        if copy.gone:
            return None
        self._world.tell("sqs", "deleted", copy.message_id, copy.exec_id, f"by {executor}")
        self._world.checks.deleted(copy)
        self._remove(copy)
        for other in [other for other in self.copies if other.message_id == copy.message_id]:
            if self._world.chance.random() < 0.5:  # else one server did not hear of it
                self._remove(other)
        return None

    # --- inside --------------------------------------------------------------------------------------------

    def _remove(self, copy: Copy) -> None:
        copy.gone = True
        self.copies.remove(copy)
        if copy.returns is not None:
            copy.returns.cancel()

    def _hide(self, copy: Copy, seconds: float) -> None:
        if copy.returns is not None:
            copy.returns.cancel()
            copy.returns = None
        copy.visible_at = self._world.now + seconds
        if seconds > 0:
            copy.returns = self._world.kernel.after(seconds, self._serve_waiting)
        else:
            self._serve_waiting()

    def _serve_waiting(self) -> None:
        while self._waiters and any(copy.visible_at <= self._world.now for copy in self.copies):
            waiter = self._waiters.pop(self._world.chance.randrange(len(self._waiters)))
            if messages := self._hand_out(waiter.limit, waiter.visibility):
                waiter.reply({"Messages": messages})
            else:  # what was there went to the dead-letter queue
                self._waiters.append(waiter)

    def _expire(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            waiter.reply({})

    def _hand_out(self, limit: int, visibility: float) -> list[Json]:
        now = self._world.now
        visible = [copy for copy in self.copies if copy.visible_at <= now]
        if len(visible) > 1:
            self._world.chance.shuffle(visible)
        messages = []
        for copy in visible[:limit]:
            if self._redrive(copy):
                continue
            messages.append(self._hand(copy, visibility))
        return messages

    def _redrive(self, copy: Copy) -> bool:
        limit = self._world.plan.redrive
        if limit is None or copy.count < limit:
            return False
        self._world.counts["redriven"] += 1
        self._world.tell("sqs", "to the dead-letter queue", copy.message_id, copy.exec_id)
        self._world.bounds.came_back(copy, copy.received_at)
        self._world.checks.redriven(copy)
        self._remove(copy)
        return True

    def _hand(self, copy: Copy, visibility: float) -> Json:
        world = self._world
        if copy.count:
            world.bounds.came_back(copy, copy.received_at)
        self._by_handle.pop(copy.handle, None)
        self._count += 1
        copy.handle = f"{copy.message_id}#{self._count}"
        copy.count += 1
        copy.received_at = world.now
        world.bounds.handed_out(copy)
        self._by_handle[copy.handle] = copy
        self._hide(copy, visibility)
        world.tell("sqs", "handed out", copy.handle, copy.exec_id, copy.count)
        if not world.calm and world.chance.random() < world.plan.duplicates:
            world.kernel.after(world.chance.choice((0.0, 0.1, 1.0, visibility / 2)), self._duplicate, copy)
        return {
            "MessageId": copy.message_id,
            "ReceiptHandle": copy.handle,
            "Body": copy.body,
            "Attributes": {
                "ApproximateReceiveCount": str(copy.count),
                "SentTimestamp": str(round((EPOCH + copy.sent_at) * 1000)),
            },
            "MessageAttributes": copy.attributes,
        }

    def _duplicate(self, copy: Copy) -> None:
        """Hand out a hidden message once more."""
        world = self._world
        if copy.gone or world.calm or copy.visible_at <= world.now:
            return
        copy.duplicates += 1
        world.checks.duplicated(copy.exec_id)
        if not world.plan.twins:
            world.counts["duplicates, handle replaced"] += 1
            self._hide(copy, 0)
            return
        if sum(other.message_id == copy.message_id for other in self.copies) >= MOST_COPIES:
            return
        world.counts["duplicates, both handles valid"] += 1
        world.checks.twinned(copy.exec_id)
        twin = copy.twin()
        if world.chance.random() < 0.3:
            twin.count -= 1  # its receive says the same count
        self.copies.append(twin)
        world.tell("sqs", "has a second copy", copy.message_id)
        self._hide(twin, 0)


def parts_of(refusals: Sequence[tuple[str, tuple[str, str] | None]]) -> Json:
    """A batch's answer."""
    answer: Json = {"Successful": [], "Failed": [], "ResponseMetadata": METADATA}
    for number, refusal in refusals:
        if refusal is None:
            answer["Successful"].append({"Id": number})
        else:
            code, words = refusal
            answer["Failed"].append({"Id": number, "SenderFault": True, "Code": code, "Message": words})
    return answer


METADATA: Mapping[str, Any] = {"RequestId": "simulated", "HTTPStatusCode": 200, "HTTPHeaders": {}}
