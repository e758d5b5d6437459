"""How the service stops: what the signals ask for, and how it is done without losing a run."""

import math
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskStatus

from executor.consumer import Consumer
from executor.run import ActiveRuns, StopReason

# Seconds after the drain: 10 s for SIGTERM, then SIGKILL, 3 s for the last write, 5 s to give the message back.
# With the 100 s of a drain these are less than the 120 s after which Fargate kills.
SETTLE_TIMEOUT = 18.0
HURRIED_GRACE = 2.0  # seconds between SIGTERM and SIGKILL after a second signal
HURRIED_RECEIVE = 1.0  # seconds for the receives under way after a second signal, when nothing runs any more
HURRIED_TIMEOUT = 6.0  # seconds that everything may take after a second signal

log = structlog.get_logger()
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class StopRequest:
    """What SIGTERM and SIGINT have asked for so far: the first one to stop, the second one to hurry."""

    stop: anyio.Event = field(default_factory=anyio.Event)
    hurry: anyio.Event = field(default_factory=anyio.Event)

    async def watch_signals(self, *, task_status: TaskStatus[None]) -> None:
        """Take the signals, until cancelled."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                if self.stop.is_set():
                    log.warning("hurrying", signal=number.name)
                    self.hurry.set()
                else:
                    log.info("stopping", signal=number.name)
                    self.stop.set()

    async def or_stop(self, work: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """What `work` returns; None where the stop comes first, which cancels it."""
        answer = None

        async def do() -> None:
            nonlocal answer
            answer = await work()

        await _unless(self.stop, do, math.inf)
        return answer


async def drain(active: ActiveRuns, consumer: Consumer, request: StopRequest, seconds: float) -> None:
    """Stop receiving, let the runs go on for so many seconds, then end them and give their messages back.

    A hurried drain skips the waiting.
    """
    if len(active):
        log.info("draining", runs=len(active), seconds=seconds)
    else:
        until = f"{consumer.last_receive:g} s at most; a second signal leaves at once"
        log.info("draining", runs=0, waiting_for=f"the receive under way, {until}")
    consumer.stop()
    for run in active:
        if not run.claimed:
            run.stop(StopReason.DRAINED)
    await _unless(request.hurry, active.emptied, seconds)
    hurried = request.hurry.is_set()
    for run in active:
        run.stop(StopReason.DRAINED, grace=HURRIED_GRACE if hurried else None)
    if not hurried:
        await _unless(request.hurry, active.emptied, SETTLE_TIMEOUT)
        await _unless(request.hurry, consumer.ended.wait, math.inf)  # it has an end of its own
    if request.hurry.is_set():
        await _hurry(active, consumer)
    for run in active:
        run.log.warning("not_settled", consequence="its message comes back when its lease ends")
        run.stop_grace = 0


async def _hurry(active: ActiveRuns, consumer: Consumer) -> None:
    for run in active:
        run.stop_grace = min(run.stop_grace, HURRIED_GRACE)
    with anyio.move_on_after(HURRIED_TIMEOUT):
        await active.emptied()
        # A receive under way is handed what has just been given back, and gives it back once more.
        with anyio.move_on_after(HURRIED_RECEIVE):
            await consumer.ended.wait()
        consumer.abandon()
        await consumer.ended.wait()
    consumer.abandon()


async def _unless(event: anyio.Event, wait: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Wait for `wait`, so many seconds at most, unless the event comes first."""
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:

            async def interrupt() -> None:
                await event.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(interrupt)
            await wait()
            tasks.cancel_scope.cancel()
