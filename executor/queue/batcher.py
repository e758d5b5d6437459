"""Gathers single requests into the batches that SQS takes, without making a lone one wait."""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio

from executor.queue.delivery import QueueError

BATCH_LIMIT = 10  # entries a call (contract, section 6)

Item = TypeVar("Item")


@dataclass(eq=False, slots=True)
class _Entry(Generic[Item]):
    item: Item
    done: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None

    def answer(self, error: Exception | None) -> None:
        self.error = error
        self.done.set()


class Batcher(Generic[Item]):
    """Sends at once while fewer than `side_by_side` calls are under way; what arrives else shares the next ones.

    `send` takes up to ten items and answers for each: None, or the exception that its submitter gets. Where it
    raises instead, or answers for more or fewer than it was given, all of the call's submitters get a QueueError.
    """

    def __init__(
        self, send: Callable[[Sequence[Item]], Awaitable[Sequence[Exception | None]]], side_by_side: int = 1
    ) -> None:
        self._send = send
        self._side_by_side = side_by_side
        self._waiting: deque[_Entry[Item]] = deque()
        self._arrived = anyio.Semaphore(0)
        self._closed = False

    async def submit(self, item: Item) -> None:
        """Have `item` sent; raises what `send` said of it, or QueueError once `serve` has ended."""
        if self._closed:
            raise _closed()
        entry = _Entry(item)
        self._waiting.append(entry)
        self._arrived.release()
        try:
            await entry.done.wait()
        finally:
            if entry in self._waiting:  # cancelled before it was sent
                self._waiting.remove(entry)
        if entry.error is not None:
            raise entry.error

    async def serve(self) -> None:
        """Send what is submitted, until cancelled. Nobody is left waiting then: see `submit`."""
        try:
            async with anyio.create_task_group() as calls:
                for _ in range(self._side_by_side):
                    calls.start_soon(self._send_what_waits)
        finally:
            self._closed = True
            while self._waiting:
                self._waiting.popleft().answer(_closed())

    async def _send_what_waits(self) -> None:
        while True:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_LIMIT, len(self._waiting)))]
                await self._answer(batch)
            await self._arrived.acquire()

    async def _answer(self, batch: Sequence[_Entry[Item]]) -> None:
        answers: Sequence[Exception | None] = [_closed()] * len(batch)  # for a call that is cancelled
        try:
            answers = await self._answers(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must reach those who wait for the answer
            failure = (
                error if isinstance(error, QueueError) else QueueError(f"{type(error).__name__}: {error}")
            )
            answers = [failure] * len(batch)
        finally:
            for entry, answer in zip(batch, answers, strict=True):
                entry.answer(answer)

    async def _answers(self, batch: Sequence[_Entry[Item]]) -> Sequence[Exception | None]:
        answers = await self._send([entry.item for entry in batch])
        if len(answers) != len(batch):
            raise QueueError(f"{len(answers)} answers for {len(batch)} entries of a batch")
        return answers


def _closed() -> QueueError:
    return QueueError("the service is stopping, nothing more is sent to the queue")
