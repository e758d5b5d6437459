"""A run's state as DataHub keeps it: `dataHubExecutionRequestResult` (contract, sections 3 and 4)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

ABSENT_VERSION = -1  # the version of an aspect that does not exist yet

URN_PREFIX = "urn:li:dataHubExecutionRequest:"


class Status(StrEnum):
    """The statuses that this executor writes."""

    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELLED = "CANCELLED"
    UP_FOR_RETRY = "UP_FOR_RETRY"


# Anything else is an end, also statuses of other executors and later servers: what ended must not run again.
_OPEN = {None, "", "PENDING", Status.RUNNING, Status.UP_FOR_RETRY}


def is_end(status: str | None) -> bool:
    """Whether a run with this status is over."""
    return status not in _OPEN


@dataclass(frozen=True, slots=True)
class StructuredReport:
    """What the CLI reported, for the page to draw."""

    type: str
    serialized: str
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class RunState:
    """One value of the aspect. Without a report, only what goes on: a patch leaves the rest as it is."""

    status: Status
    start_time_ms: int  # epoch
    duration_ms: int
    report: str | None
    structured_report: StructuredReport | None = None

    def aspect(self) -> dict[str, Any]:
        """The value as DataHub stores it."""
        value: dict[str, Any] = {
            "status": self.status.value,
            "startTimeMs": self.start_time_ms,
            "durationMs": self.duration_ms,
        }
        if self.report is not None:
            value["report"] = self.report
        if self.structured_report is not None:
            value["structuredReport"] = {
                "type": self.structured_report.type,
                "serializedValue": self.structured_report.serialized,
                "contentType": self.structured_report.content_type,
            }
        return value


@dataclass(frozen=True, slots=True)
class StateWrite:
    """One write of a run's state.

    `expected_version` makes it conditional: refused if the aspect is at another one. None writes
    regardless, for servers that keep no versions.
    """

    exec_id: str
    state: RunState
    expected_version: int | None
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredState:
    """What DataHub knows of a request: its result, the result's version, and whether it was told to stop."""

    status: str | None
    start_time_ms: int | None
    version: int | None  # None: this server tells no versions
    properties: Mapping[str, str]  # of the last write
    killed: bool
    duration_ms: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the status is an end."""
        return is_end(self.status)


def urn_of(exec_id: str) -> str:
    """The whole URN of a request (contract, section 2)."""
    return URN_PREFIX + exec_id
