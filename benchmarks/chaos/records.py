"""What the witnesses noted, a record each. All times are CLOCK_MONOTONIC's, in seconds."""

from dataclasses import dataclass
from typing import Literal

from benchmarks.chaos.faults import Fault


@dataclass(frozen=True)
class Mark:
    """What a process noted of itself: `ended` of its own accord, or `stopped` by SIGTERM.

    `executor` is who started it, `life` which of its processes.
    """

    what: Literal["began", "ended", "stopped", "twice"]
    exec_id: str
    executor: int
    life: int
    pid: int
    at: float

    @property
    def is_end(self) -> bool:
        """Whether the process was over with this."""
        return self.what in {"ended", "stopped"}


@dataclass(frozen=True)
class Stored:
    """A result that the stand-in stored; its version has grown if that changed anything."""

    exec_id: str
    status: str
    version: int
    at: float


@dataclass(frozen=True)
class Handed:
    """SQS answered this request's message to an executor; `lost` says that the answer reached nobody."""

    exec_id: str
    executor: int
    at: float
    lost: bool = False


@dataclass(frozen=True)
class Struck:
    """A fault as it happened. `ended`: restored, continued or started again; `life`: of a signal's receiver."""

    fault: Fault
    began: float
    ended: float
    life: int = 0

    def touches(self, executor: int) -> bool:
        """Whether it struck that executor."""
        return executor in self.fault.executors


@dataclass(frozen=True)
class Takeover:
    """A request whose executor died or was stopped beyond its lease, until its next process began.

    `seconds` are counted as the bound is meant, see `Evidence.takeovers`; `whole` is nothing left out.
    """

    exec_id: str
    kind: str
    at: float
    seconds: float
    whole: float
