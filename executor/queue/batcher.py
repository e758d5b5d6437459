"""Gathers single requests into the batches that SQS takes, without making a lone one wait."""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio

BATCH_LIMIT = 10  # entries a call (contract, section 6)

Item = TypeVar("Item")


@dataclass(eq=False, slots=True)
class _Entry(Generic[Item]):
    item: Item
    done: anyio.Event = field(default_factory=anyio.Event)
    error: Exception | None = None


class Batcher(Generic[Item]):
    """Sends at once while no call is under way; what arrives during a call goes together into the next one.

    `send` takes up to ten items and answers for each: None, or the exception that its submitter gets.
    """

    def __init__(self, send: Callable[[Sequence[Item]], Awaitable[Sequence[Exception | None]]]) -> None:
        self._send = send
        self._waiting: deque[_Entry[Item]] = deque()
        self._arrived = anyio.Event()

    async def submit(self, item: Item) -> None:
        """Have `item` sent; raises what `send` said of it."""
        entry = _Entry(item)
        self._waiting.append(entry)
        self._arrived.set()
        try:
            await entry.done.wait()
        finally:
            if entry in self._waiting:  # cancelled before it was sent
                self._waiting.remove(entry)
        if entry.error is not None:
            raise entry.error

    async def serve(self) -> None:
        """Send what is submitted, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived = anyio.Event()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_LIMIT, len(self._waiting)))]
                answers = await self._send([entry.item for entry in batch])
                for entry, error in zip(batch, answers, strict=True):
                    entry.error = error
                    entry.done.set()
