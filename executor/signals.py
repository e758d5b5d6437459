"""Kill signals that come over the queue: told to the run if it is here, and recorded in DataHub."""

from collections.abc import Callable
from dataclasses import dataclass

import anyio
import structlog

from executor.claiming import PATIENCE, Claims, duplicate_delay
from executor.datahub.client import DataHub
from executor.datahub.errors import DataHubError
from executor.disposal import try_release
from executor.messages import MalformedMessage, Signal, parse
from executor.queue.delivery import Delivery, LeaseLostError, QueueError
from executor.queue.sqs import SqsQueue
from executor.run import ActiveRuns, StopReason

SIGNAL_DELAY = 5.0  # seconds until a kill that could not be passed on is tried again

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Signals:
    """Sees to the signals of an executor id; none of them needs a slot."""

    queue: SqsQueue
    datahub: DataHub
    active: ActiveRuns
    claims: Claims
    clock: Callable[[], float]  # epoch, seconds
    executor_id: str

    def of(self, delivery: Delivery) -> Signal | None:
        """The signal to this executor id that a message is, if it is one."""
        try:
            message = parse(delivery.body)
        except MalformedMessage:
            return None
        return (
            message
            if isinstance(message, Signal) and message.executor_id in {None, self.executor_id}
            else None
        )

    async def handle(self, delivery: Delivery, signal: Signal) -> None:
        """End the run if it is here, and record the kill where its executor, or its next claim, will see it.

        Recorded it is in any case: the run here may be one that is about to be handed over, or may die.
        """
        run = self.active.get(signal.exec_id)
        if run is not None and run.stop(StopReason.CANCELLED):
            run.log.info("kill_signal_received")
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep, delivery)
                recorded = await self._record(signal)
                tasks.cancel_scope.cancel()
            if recorded:
                await self.queue.delete(delivery)
            else:
                await try_release(self.queue, delivery, duplicate_delay(delivery.receive_count, SIGNAL_DELAY))
        except QueueError as error:
            log.warning("kill_signal_deferred", exec_id=signal.exec_id, reason=str(error))
        except LeaseLostError:
            return  # whoever has it now does the same

    async def _record(self, signal: Signal) -> bool:
        """Whether DataHub knows of the kill: waits for it as a request does, its lease held."""

        async def record() -> None:
            if not await self.datahub.kill_signals([signal.exec_id]):
                now_ms = round(self.clock() * 1000)
                await self.datahub.write_kill_signal(signal.exec_id, self.executor_id, now_ms)
                log.info("kill_signal_recorded", exec_id=signal.exec_id)

        reason = "DataHub is away"
        with anyio.move_on_after(PATIENCE):
            try:
                await self.claims.patiently(record)
            except DataHubError as error:
                reason = str(error)
            else:
                return True
        log.warning("kill_signal_deferred", exec_id=signal.exec_id, reason=reason)
        return False

    async def _keep(self, delivery: Delivery) -> None:
        """Hold a message that is no run's, until cancelled."""
        while (left := delivery.lease_ends - anyio.current_time()) > 0:
            await anyio.sleep(max(left / 2, 1.0))
            try:
                await self.queue.extend(delivery)
            except LeaseLostError:
                return
            except QueueError as error:
                log.info("extension_failed", message_id=delivery.message_id, reason=str(error))
