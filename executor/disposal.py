"""How a message is let go: for good, or to be received again."""

from enum import Enum, auto

import anyio
import structlog
from structlog.typing import FilteringBoundLogger

from executor.backoff import Backoff
from executor.queue.delivery import Delivery, LeaseLostError, QueueError
from executor.queue.sqs import SqsQueue

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
    """Give a message back that nothing was done with; where that fails, it comes back when its lease ends."""
    try:
        await queue.release(delivery, delay)
    except (QueueError, LeaseLostError) as error:
        log.info("release_failed", message_id=delivery.message_id, reason=str(error))
