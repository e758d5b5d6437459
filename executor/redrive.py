"""How many receives a request may need until its queue gives its message up (`maxReceiveCount`). No I/O."""

_TO_SPARE = 5  # that start nothing: while an executor drains, DataHub is away, a full one hands a run over


def needed(max_attempts: int) -> int:
    """Receives of a request whose every attempt is interrupted: one for each, and one to end it."""
    return max_attempts + 2


def enough(max_attempts: int) -> int:
    """The least `maxReceiveCount` to recommend."""
    return needed(max_attempts) + _TO_SPARE


def can_spare_one(receive_count: int, max_receives: float, max_attempts: int) -> bool:
    """Whether a message that was received so often may be given back though nothing was tried."""
    return max_receives - receive_count > needed(max_attempts)
