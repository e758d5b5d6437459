"""What DataHub can answer instead of what was asked for."""


class DataHubError(Exception):
    """The root of the tree; the message says what happened and what to do."""


class DataHubUnavailableError(DataHubError):
    """No usable answer: refused, timed out, 5xx, or something that is not DataHub. Waiting may help.

    Whether a write was stored is unknown.
    """


class DataHubRefusedError(DataHubError):
    """DataHub answered, and said no. Asking again the same way would not help."""


class UnauthorizedError(DataHubRefusedError):
    """The token is not accepted at all. A new one may come, by a restart or from a proxy: waiting may help."""


class ImmutableStateError(DataHubRefusedError):
    """The run has already ended for good: DataHub keeps the status that it has (contract, section 3)."""


class VersionConflictError(DataHubRefusedError):
    """Somebody else wrote the aspect since its version was read (contract, section 3)."""


def refusal(words: str) -> DataHubRefusedError | None:
    """The server's own rules by its words (contract, section 3), whichever way they came."""
    if "Invalid update to immutable state" in words:
        return ImmutableStateError("DataHub keeps the status that the run has: it has already ended for good")
    if "Expected version" in words and "actual version" in words:
        return VersionConflictError("the run's state was written by somebody else meanwhile")
    return None
