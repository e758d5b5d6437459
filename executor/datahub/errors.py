"""What DataHub can answer instead of what was asked for, and the words by which it is told apart."""

import re

_LONGEST_WORDS = 300  # characters of somebody else's text


class DataHubError(Exception):
    """The root of the tree; the message says what happened and what to do, `kind` is the metrics' name for it."""

    kind = "refused"

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        if kind is not None:
            self.kind = kind


class DataHubUnavailableError(DataHubError):
    """No usable answer: timed out, 5xx, or something that is not DataHub. Waiting may help.

    Whether a write was stored is unknown.
    """

    kind = "unavailable"


class UnreachableError(DataHubUnavailableError):
    """There was no answer at all."""

    kind = "connection"


class NotUnderstoodError(DataHubUnavailableError):
    """An answer of another shape than DataHub's: something in between answered (contract, section 3)."""

    kind = "invalid"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"DataHub's answer is not understood: {what}. Check DATAHUB_GMS_URL, and the proxies in between"
        )


class DataHubRefusedError(DataHubError):
    """DataHub answered, and said no. Asking again the same way would not help."""


class UnauthorizedError(DataHubRefusedError):
    """The token is not accepted at all. A new one may come, by a restart or from a proxy: waiting may help."""

    kind = "401"


class BlockedError(UnauthorizedError):
    """HTTP 403: the token lacks a privilege, or a firewall in between refuses this; less of it may pass."""

    kind = "403"


class ForbiddenError(DataHubRefusedError):
    """The token is accepted, and its owner lacks the privilege."""

    kind = "403"


class NotFoundError(DataHubRefusedError):
    """DataHub does not know the entity that was asked for."""

    kind = "404"


class TooLargeError(DataHubRefusedError):
    """What was sent is over a limit of DataHub's or of a proxy's in between; less of it may be taken."""

    kind = "413"


class UnsupportedError(DataHubRefusedError):
    """This server's schema does not allow the document, or the aspect: it is an older one."""

    kind = "unsupported"


class ImmutableStateError(DataHubRefusedError):
    """The run has already ended for good: DataHub keeps the status that it has (contract, section 3)."""

    kind = "immutable"


class VersionConflictError(DataHubRefusedError):
    """Somebody else wrote the aspect since its version was read (contract, section 3)."""

    kind = "version"


def is_of_the_content(error: DataHubError) -> bool:
    """Whether part of what was sent, or less of it, may be taken though this was the answer to all of it."""
    if isinstance(error, UnauthorizedError):
        return isinstance(error, BlockedError)
    return not isinstance(error, DataHubUnavailableError)


# Of DataHub's check of an aspect's size, its JSON reader, its databases and its message bus.
_TOO_LARGE = re.compile(
    r"exceeds threshold of \d|characters; an aspect may have|length \(\d+\) exceeds the maximum"
    r"|packet for query is too large|data too long for column|value too long for type"
    r"|when serialized which is larger than|record ?too ?large|(?:entity|payload|content) too large",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile(r"\bunauthorized to\b|\bnot authorized to\b", re.IGNORECASE)
_UNSUPPORTED = re.compile(r"\bpatch(?:ing)? is not supported", re.IGNORECASE)
# What else DataHub has against a write, as opposed to what went wrong in its inside.
_REFUSED = re.compile(
    r"failed to validate (?:mcp|record|entity|aspect)|validation ?(?:exception|error)|ERROR :: /"
    r"|unrecognized field|no JSON text|json patch|json pointer|non-existing name|patch cannot be applied"
    r"|must be provided|invalid (?:urn|json|patch|path|value|aspect)|unknown (?:field|aspect|entity)",
    re.IGNORECASE,
)


def refusal(words: str) -> DataHubRefusedError | None:
    """The server's own rules by its words (contract, section 3), whichever way they came."""
    if "Invalid update to immutable state" in words:
        return ImmutableStateError("DataHub keeps the status that the run has: it has already ended for good")
    if "Expected version" in words and "actual version" in words:
        return VersionConflictError("the run's state was written by somebody else meanwhile")
    if _TOO_LARGE.search(words):
        return TooLargeError(f"DataHub finds it too large: {shortened(words)}")
    return None


def forbidden(words: str) -> ForbiddenError | None:
    """A missing privilege, by the words in which a resolver says it."""
    if not _FORBIDDEN.search(words):
        return None
    return ForbiddenError(
        f"DataHub does not allow it: {shortened(words)}. Give the owner of DATAHUB_GMS_TOKEN the privilege"
    )


def write_refusal(words: str) -> DataHubError:
    """Why a write was not stored, by the words that came with `success: false`.

    Any exception inside the server ends as such words: those that are no known refusal are waited out.
    """
    if ruled := refusal(words) or forbidden(words):
        return ruled
    if _UNSUPPORTED.search(words):
        return UnsupportedError(f"this DataHub can't patch a run's state: {shortened(words)}")
    if _REFUSED.search(words):
        return DataHubRefusedError(f"DataHub refused the run's state: {shortened(words)}")
    return DataHubUnavailableError(
        f"DataHub could not store the run's state: {shortened(words)}. See DataHub's own log", "write"
    )


def shortened(words: str) -> str:
    """Somebody else's text on one line, without its full stop, cut where it gets long."""
    line = " ".join(words[: 4 * _LONGEST_WORDS].split()).rstrip(".")
    return line if len(line) <= _LONGEST_WORDS else f"{line[:_LONGEST_WORDS]}…"
