"""Moves a long run to a fresh message: the queue hides one for twelve hours at most (contract, section 6)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import structlog
from anyio.abc import TaskGroup

from executor.backoff import Backoff
from executor.claim import Offer
from executor.consumer import Consumer
from executor.datahub.errors import DataHubError
from executor.disposal import Disposal, dispose, try_release_all
from executor.heartbeat import LONGEST_PAUSE, last_moments
from executor.pool import Pool
from executor.queue.batcher import BATCH_LIMIT
from executor.queue.delivery import Delivery, LeaseLostError, QueueError
from executor.queue.sqs import SqsQueue
from executor.redrive import can_spare_one
from executor.run import ActiveRuns, Phase, Run

BEGIN_AT = 1 / 2  # of the time that the queue hides a message: a fresh one may wait behind many others
FINISH_BEFORE = 3.0  # seconds before the old message's last moments, in which its run would be ended
TOGETHER = 1 / 8  # of that time: runs that are due within it begin with the first one, for one sweep to do
SWEEP_SHARE = 1 / 4  # of a visibility time-out: when a full executor first looks for the fresh message itself
LONGEST_SWEEP = 20  # receives
OFFER_SHARE = 1 / 2  # of a visibility time-out: for how long a receipt handle that was passed on is tried

log = structlog.get_logger()


@dataclass(slots=True)
class Handover:
    """Sends the message of a long run once more, gets hold of it, and only then lets go of the old one.

    At every moment at least one message of the request is on the queue, and its run's executor holds the one that
    the claim in DataHub names: another executor that receives one of them leaves the run alone, or passes it on.
    """

    queue: SqsQueue
    pool: Pool
    active: ActiveRuns
    consumer: Consumer
    backoff: Callable[[], Backoff]
    visibility: float  # seconds
    hold_limit: float  # seconds that the queue hides a message at most
    max_attempts: int
    _sweeping: bool = field(default=False, init=False)

    async def serve(self, runs: TaskGroup) -> None:
        """Look after the long runs until cancelled; what a sweep finds besides is started in `runs`."""
        async with anyio.create_task_group() as tasks:
            while True:
                now = anyio.current_time()
                wake = now + LONGEST_PAUSE
                free = [run for run in self.active if not run.tied]
                ready = [run for run in free if run.phase is Phase.RUNNING and not run.handing_over]
                if len(ready) < len(free):
                    wake = min(wake, now + self.visibility / 4)
                due = min((self._due(run) for run in ready), default=wake)
                if due > now:
                    await self.active.changed(min(wake, due) - now)
                    continue
                for run in ready:
                    if self._due(run) <= now + self.hold_limit * TOGETHER:
                        run.handing_over = True
                        tasks.start_soon(self._hand_over, run)
                if not self._sweeping:
                    self._sweeping = True
                    tasks.start_soon(self._sweep, runs)

    def _due(self, run: Run) -> float:
        return run.delivery.hold_ends - self.hold_limit * (1 - BEGIN_AT)

    async def _hand_over(self, run: Run) -> None:
        old = run.delivery
        try:
            with anyio.CancelScope(deadline=old.hold_ends - self._finish_before):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._end_with, run, tasks.cancel_scope)
                    if await self._is_told_apart(run):
                        await self._send(run, old)
                        tasks.start_soon(self._take_offers, run)
                        await run.succeeded.wait()
                        while not await self._record(run):  # it may be lost before DataHub could be told
                            await run.succeeded.wait()
                    tasks.cancel_scope.cancel()
            fresh = run.successor
            if run.phase is not Phase.RUNNING or run.stop_reason is not None:
                return  # settling sees to both messages
            if fresh is None or not run.reporter.recorded(fresh.message_id, fresh.receive_count):
                run.tied = True  # it still holds both, of which DataHub may name either
                run.log.warning(
                    "handover_failed", consequence="the run ends when the queue's limit is reached"
                )
                return
            old = run.delivery  # it may have come again meanwhile
            run.hand_over(fresh)
            # Whoever has it by now leaves the run alone: the claim names the fresh one.
            await dispose(self.queue, old, Disposal.DELETE, 0, self.backoff(), run.log)
            run.log.info("handed_over", message_id=fresh.message_id, before=old.message_id)
        finally:
            run.handing_over = False

    @property
    def _finish_before(self) -> float:
        return last_moments(self.visibility) + min(FINISH_BEFORE, self.visibility / 8)

    async def _is_told_apart(self, run: Run) -> bool:
        """Whether another executor could tell the fresh message from a request that nobody works on."""
        backoff = self.backoff()
        while True:
            try:
                return await run.reporter.kept()
            except DataHubError:
                await backoff.wait()

    async def _end_with(self, run: Run, scope: anyio.CancelScope) -> None:
        """Or a run that ended would be looked for on, for hours."""
        while run.phase is Phase.RUNNING:
            await self.active.changed(self.visibility / 4)
        scope.cancel()

    async def _send(self, run: Run, old: Delivery) -> None:
        backoff = self.backoff()
        claim = run.reporter.claim
        group = (
            f"{claim.owner}.{claim.beat}"  # one that nobody else uses; sent once more, it is the same message
        )
        while run.successor_id is None:
            try:
                sent = await self.queue.send(old.body, group, sent_by=claim.owner)
                run.successor_id = run.successor_id or sent
            except QueueError as error:
                run.log.warning("handover_delayed", reason=str(error), permission="sqs:SendMessage")
                await backoff.wait()
        run.log.info("handover_begun", message_id=run.successor_id)

    async def _take_offers(self, run: Run) -> None:
        """Get hold of the message where another executor has received it, and passed it on."""
        seen, delivery = None, None
        while True:
            await run.reporter.news()
            offer = run.reporter.offer
            if offer is not None and offer != seen and offer.message_id == run.successor_id:
                seen = offer
                delivery = offered(offer, run.delivery, self.visibility)
            if delivery is None or run.successor is not None:
                continue
            try:
                await self.queue.extend(delivery)
            except LeaseLostError:
                delivery = None  # too late: somebody will receive it again
            except QueueError:
                await anyio.sleep(self.visibility / 20)
            else:
                run.succeed(delivery)
                delivery = None

    async def _sweep(self, runs: TaskGroup) -> None:
        """While there is no room, the consumer receives nothing, and perhaps nobody does: look for what was sent.

        Less and less often, though a newcomer must not have to wait for long.
        """
        pause = self.visibility * SWEEP_SHARE
        while any(run.handing_over for run in self.active):
            await anyio.sleep(pause)
            if self.pool.full and self._sought():
                await self._sweep_once(runs)
                pause = min(pause * 2, self.hold_limit * TOGETHER)
        self._sweeping = False

    def _sought(self) -> bool:
        return any(
            run.handing_over and run.successor_id and run.successor is None and run.phase is Phase.RUNNING
            for run in self.active
        )

    async def _sweep_once(self, runs: TaskGroup) -> None:
        # Each look costs the messages that wait besides a receive, and the queue has only so many for each. So
        # there is one look for all runs, what it finds stays hidden until it is over, and a message that has no
        # receive to spare is not given back: it waits here, its lease held, until there is room.
        others: list[Delivery] = []
        try:
            for _ in range(LONGEST_SWEEP):
                found = await self.queue.receive(BATCH_LIMIT, wait=False)
                for delivery in found:
                    spares = can_spare_one(delivery.receive_count, self.queue.max_receives, self.max_attempts)
                    if not self.consumer.take_without_room(delivery, runs, wait=not spares):
                        others.append(delivery)
                if not found or not self._sought():
                    return
        except QueueError as error:
            log.info("sweep_failed", reason=str(error))
        finally:
            await try_release_all(self.queue, others)

    async def _record(self, run: Run) -> bool:
        """Have DataHub know which message counts, before there is only that one. Whether it is held then."""
        fresh = run.successor
        if fresh is None:
            return False
        while run.successor is fresh and not run.reporter.recorded(fresh.message_id, fresh.receive_count):
            await run.reporter.news()
        return run.successor is fresh


def offered(offer: Offer, old: Delivery, visibility: float) -> Delivery:
    """The message that another executor has passed on, just seen: to be extended before it counts as held."""
    now = anyio.current_time()
    return Delivery(
        offer.message_id,
        offer.receipt_handle,
        old.body,
        offer.receive_count,
        old.sent_at,
        lease_ends=now + visibility * OFFER_SHARE,  # an extension may have to wait its turn, or be repeated
        hold_ends=now + offer.hold_left - visibility,  # it was offered that long ago at most
    )
