"""A message that is ours for a while, and how long that while provably lasts."""

import math
from dataclasses import dataclass

HIDDEN_TO_THE_LIMIT = "the queue hides a message no longer than it has hidden this one"


@dataclass(slots=True)
class Delivery:
    """One receive of one message. The receipt handle stands for the lease; the next receive replaces it.

    `lease_ends` is on the monotonic clock, counted from before the call that set the visibility: SQS's own
    clock started later, so the message is ours at least until then.
    """

    message_id: str
    receipt_handle: str
    body: str
    receive_count: int
    sent_at: float  # epoch, seconds
    lease_ends: float  # monotonic, seconds
    hold_ends: float = (
        math.inf
    )  # monotonic, seconds: after it the queue shows the message, whatever it is asked
    sent_by: str | None = (
        None  # the claim whose run is to go on under this message; None: a request as it came
    )

    @property
    def is_at_its_limit(self) -> bool:
        """Whether its lease can't be renewed any more; the queue counts in whole seconds."""
        return self.lease_ends > self.hold_ends - 1.0


class QueueError(Exception):
    """The queue could not be asked; the message says why and what to do. Waiting may help."""


class QueueDeniedError(QueueError):
    """The queue is there, but a permission is missing."""


class LeaseLostError(Exception):
    """The receipt handle is stale: the message was given to somebody else, or deleted."""
