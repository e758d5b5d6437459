"""How a message is let go: for good, or to be received again."""

from collections.abc import Sequence
from enum import Enum, auto

import anyio
import structlog
from structlog.typing import FilteringBoundLogger

from executor.backoff import Backoff
from executor.queue.delivery import Delivery, LeaseLostError, QueueError
from executor.queue.sqs import SqsQueue

RELEASE_TIMEOUT = 5.0  # seconds; what stops the service does not wait for long

log = structlog.get_logger()


class Disposal(Enum):
    """What becomes of the message once the run is over."""

    DELETE = auto()
    RELEASE = auto()  # to be received again
    LEAVE = auto()  # to the queue: it is not ours any more, or its redrive policy must see to it


async def dispose(
    queue: SqsQueue,
    delivery: Delivery,
    disposal: Disposal,
    delay: float,
    backoff: Backoff,
    log: FilteringBoundLogger,
) -> None:
    """Do it, however often it takes while the message is ours; a released one comes back after `delay` seconds."""
    # When its lease has ended it is somebody else's, who meets what is stored.
    while disposal is not Disposal.LEAVE and anyio.current_time() < delivery.lease_ends:
        try:
            if disposal is Disposal.DELETE:
                await queue.delete(delivery)
            else:
                await queue.release(delivery, delay)
        except QueueError:
            await backoff.wait()
        except LeaseLostError as error:
            log.info("message_gone", reason=str(error))
            return
        else:
            return


async def try_release(queue: SqsQueue, delivery: Delivery, delay: float = 0) -> None:
    """Give a message back that nothing was done with, also when the service ends meanwhile: it would stay hidden.

    Where that fails, it comes back when its lease ends.
    """
    reason = "the queue did not answer in time"
    with anyio.move_on_after(RELEASE_TIMEOUT, shield=True):
        try:
            await queue.release(delivery, delay)
        except (QueueError, LeaseLostError) as error:
            reason = str(error)
        else:
            return
    log.info("release_failed", message_id=delivery.message_id, reason=reason)


async def try_release_all(queue: SqsQueue, deliveries: Sequence[Delivery]) -> None:
    """Have them received again at once, if possible."""
    async with anyio.create_task_group() as tasks:
        for delivery in deliveries:
            tasks.start_soon(try_release, queue, delivery)
