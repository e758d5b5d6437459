"""Takes from the queue what the pool has room for, and sends each message its way."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import structlog
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from executor.backoff import Backoff
from executor.claiming import duplicate_delay
from executor.disposal import try_release, try_release_all
from executor.execution import Executor, foreign_delay
from executor.messages import ExecutionRequest, MalformedMessage, Reference, Signal, parse
from executor.operations.metrics import Metrics
from executor.operations.reachability import Reachability
from executor.pool import Pool
from executor.queue.batcher import BATCH_LIMIT
from executor.queue.delivery import Delivery, QueueError
from executor.queue.sqs import SqsQueue
from executor.run import ActiveRuns, Run, StopReason
from executor.signals import Signals

LAST_RECEIVE_SPARE = 2.0  # seconds beyond its own wait that a receive under way at the stop is given
LONGEST_PAUSE = 2.0  # seconds between receives of a server that doesn't wait for messages
CLEARED_WITHIN = 3.0  # seconds that a run which is over is given to clear up, before its message comes back
RECEIVERS = 3  # while one waits for messages, slots that become free must not wait for its return
REMEMBERED_MESSAGES = 10_000  # ids of messages that were complained of, so that each is said once

log = structlog.get_logger()


@dataclass(slots=True)
class Consumer:
    """The service's intake. It never receives more than can start: that would hide work from other tasks."""

    queue: SqsQueue
    pool: Pool
    active: ActiveRuns
    executor: Executor
    signals: Signals
    metrics: Metrics
    reachability: Reachability
    new_run: Callable[[str, Delivery, ExecutionRequest | None], Run]
    clock: Callable[[], float]  # epoch, seconds
    backoff: Callable[..., Backoff]
    executor_id: str
    ended: anyio.Event = field(default_factory=anyio.Event)
    _intake: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _receives: set[anyio.CancelScope] = field(default_factory=set)  # those under way
    _said: "OrderedDict[str, None]" = field(default_factory=OrderedDict)

    async def serve(self, runs: TaskGroup) -> None:
        """Receive until told to stop; runs are started in `runs`, where they outlive this."""
        with self._intake:
            async with anyio.create_task_group() as receivers:
                for _ in range(RECEIVERS):
                    receivers.start_soon(self._receive_on, runs)
        self.ended.set()

    @property
    def last_receive(self) -> float:
        """Seconds after `stop` within which the receives under way have ended."""
        return self.queue.long_poll + LAST_RECEIVE_SPARE

    def stop(self) -> None:
        """Start nothing more."""
        self._intake.cancel()
        for receive in self._receives:
            receive.deadline = anyio.current_time() + self.last_receive

    def abandon(self) -> None:
        """Do not wait for the receives under way; what they get stays hidden for a visibility time-out."""
        self._intake.cancel()
        for receive in self._receives:
            receive.cancel()

    async def _receive_on(self, runs: TaskGroup) -> None:
        outage, pause = self.backoff(), self.backoff(longest=LONGEST_PAUSE)
        while True:
            await checkpoint()  # the receive is shielded, and room need not be waited for
            room = min(BATCH_LIMIT, await self.pool.room())
            # At the start and after an outage, learn at once that the queue is there: an idle one would take a
            # whole long poll.
            wait = self.reachability.reached is True
            asked_at = anyio.current_time()
            try:
                with self.pool.asking(room):
                    deliveries = await self._receive(room, wait=wait)
            except QueueError as error:
                self.metrics.queue_failures.inc()
                self.reachability.failed(str(error))
                await outage.wait()
                continue
            if self._intake.cancel_called:  # its receive may have been abandoned: no news of the queue
                return
            self.reachability.answered()
            outage.reset()
            for delivery in deliveries:
                self._dispatch(delivery, runs)
            if wait and not deliveries and anyio.current_time() - asked_at < self.queue.long_poll / 2:
                await pause.wait()
            else:
                pause.reset()

    async def _receive(self, room: int, *, wait: bool) -> list[Delivery]:
        # A receive under way is seen to its end: what SQS hands to a caller who has left stays hidden from
        # everybody for a whole visibility time-out, and that may be a run which this service gives back.
        deliveries: list[Delivery] = []
        if self._intake.cancel_called:
            return deliveries
        with anyio.CancelScope(shield=True) as receive:
            self._receives.add(receive)
            try:
                deliveries = await self.queue.receive(room, wait=wait)
            finally:
                self._receives.discard(receive)
        if self._intake.cancel_called:
            await try_release_all(self.queue, deliveries)
            return []
        return deliveries

    def take_without_room(self, delivery: Delivery, runs: TaskGroup, *, wait: bool) -> bool:
        """See to a message for which there was no room; False if it is to be given back instead.

        One that asks for a run which is not here yet is, unless it is to `wait` here for its slot, or its owner
        waits for it elsewhere: to tell it so takes no slot.
        """
        fresh = delivery.sent_by is not None and delivery.receive_count == 1 and self.executor.datahub.patches
        if self._asks_for_run(delivery) and (self._intake.cancel_called or not (wait or fresh)):
            return False
        self._dispatch(delivery, runs, waits=wait)
        return True

    def _asks_for_run(self, delivery: Delivery) -> bool:
        try:
            message = parse(delivery.body)
        except MalformedMessage as error:
            exec_id, executor_id = error.exec_id, error.executor_id
        else:
            if isinstance(message, Signal):
                return False
            exec_id = message.exec_id
            executor_id = None if isinstance(message, Reference) else message.executor_id
        return exec_id is not None and not self._is_foreign(executor_id) and self.active.get(exec_id) is None

    def _dispatch(self, delivery: Delivery, runs: TaskGroup, *, waits: bool = True) -> None:
        """Decide without waiting, so that slots are given in the order of receipt.

        A run that is not to wait for its slot is passed on to its owner, or given back.
        """
        if delivery.receive_count == 1:
            self.metrics.queue_latency.observe(max(0.0, self.clock() - delivery.sent_at))
        try:
            message = parse(delivery.body)
        except MalformedMessage as error:
            self._dispatch_malformed(delivery, error, runs)
            return
        if not isinstance(message, Reference) and self._is_foreign(message.executor_id):
            runs.start_soon(self._give_back, delivery, message.executor_id)
        elif isinstance(message, Signal):
            runs.start_soon(self.signals.handle, delivery, message)
        else:
            self.metrics.requests.inc()
            request = None if isinstance(message, Reference) else message
            self._start(delivery, message.exec_id, request, runs, waits=waits)

    def _dispatch_malformed(self, delivery: Delivery, error: MalformedMessage, runs: TaskGroup) -> None:
        if self._is_foreign(error.executor_id):
            runs.start_soon(self._give_back, delivery, error.executor_id)
        elif error.exec_id is not None and self.active.get(error.exec_id) is None:
            run = self.new_run(error.exec_id, delivery, None)
            self.active.add(run)
            run.log.warning("request_malformed", reason=error.reason, message_id=delivery.message_id)
            runs.start_soon(self.executor.execute, run, self.pool.ticket(), error.reason)
        else:  # nothing may be done to it: the queue's redrive policy takes it away in the end
            self.metrics.malformed.inc()
            self._say_once("message_malformed", delivery, error.reason)

    def _start(
        self,
        delivery: Delivery,
        exec_id: str,
        request: ExecutionRequest | None,
        runs: TaskGroup,
        *,
        waits: bool,
    ) -> None:
        if (held := self.active.get(exec_id)) is not None:
            if not self._join(held, delivery, runs):
                runs.start_soon(self._start_after, held, delivery, request, runs, waits)
            return
        run = self.new_run(exec_id, delivery, request)
        self.active.add(run)
        ticket = self.pool.ticket(request.weight if request else None)
        if request is not None:
            self.executor.describe(run)
        run.log.info("request_received", message_id=delivery.message_id, receive_count=delivery.receive_count)
        runs.start_soon(self.executor.execute, run, ticket, None, waits)

    def _join(self, held: Run, delivery: Delivery, runs: TaskGroup) -> bool:
        """Go on with the run that there is; False if that is over, and has let go of its message."""
        if held.stop_reason is StopReason.LEASE_LOST:  # it is being ended, which may take long
            runs.start_soon(try_release, self.queue, delivery, foreign_delay(delivery.receive_count))
        elif held.let_go:
            return False
        elif delivery.message_id == held.delivery.message_id:
            # The same message once more: its new receipt handle has taken the place of the old one.
            held.log.info("message_came_again", message_id=delivery.message_id)
            held.hold(delivery)
        elif held.is_succeeded_by(delivery):
            held.succeed(delivery)
        else:
            held.log.info("duplicate_held_back", message_id=delivery.message_id)
            runs.start_soon(try_release, self.queue, delivery, duplicate_delay(delivery.receive_count))
        return True

    async def _start_after(
        self,
        held: Run,
        delivery: Delivery,
        request: ExecutionRequest | None,
        runs: TaskGroup,
        waits: bool,
    ) -> None:
        """Start it again once the run that has let go of it is cleared away, which takes moments."""
        with anyio.move_on_after(CLEARED_WITHIN):
            while self.active.get(held.exec_id) is held:
                await self.active.changed(CLEARED_WITHIN)
        if self._intake.cancel_called:
            await try_release(self.queue, delivery)
        elif self.active.get(held.exec_id) is held:
            await try_release(self.queue, delivery, foreign_delay(delivery.receive_count))
        else:
            self._start(delivery, held.exec_id, request, runs, waits=waits)

    def _is_foreign(self, executor_id: str | None) -> bool:
        return executor_id is not None and executor_id != self.executor_id

    async def _give_back(self, delivery: Delivery, executor_id: str | None) -> None:
        self.metrics.foreign.inc()
        self._say_once("message_foreign", delivery, f"it is addressed to the executor id {executor_id}")
        await try_release(self.queue, delivery, foreign_delay(delivery.receive_count))

    def _say_once(self, event: str, delivery: Delivery, reason: str) -> None:
        if delivery.message_id not in self._said:
            log.warning(event, message_id=delivery.message_id, reason=reason)
        self._said[delivery.message_id] = None
        self._said.move_to_end(delivery.message_id)
        if len(self._said) > REMEMBERED_MESSAGES:
            self._said.popitem(last=False)
