"""What happened to one request, for the rules to look at."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.fleet import SimExecutor
    from tests.simulation.processes import SimProcess


@dataclass(frozen=True, slots=True)
class Claimed:
    """Who wrote a claim, and since when what hampers its executor may cost it the claim's lease."""

    executor: "SimExecutor"
    generation: int
    since: float

    @property
    def lost(self) -> bool:
        """Whether its executor may not have been able to say that nothing had begun."""
        executor = self.executor
        cut_off = max(executor.hampered_at.values()) >= self.since
        return executor.generation != self.generation or not executor.alive or executor.stopping or cut_off


@dataclass(slots=True)
class Record:
    """What happened to one request."""

    processes: "list[SimProcess]" = field(default_factory=list)
    claims: "dict[str, Claimed]" = field(default_factory=dict)  # by owner that wrote RUNNING
    begun: set[str] = field(default_factory=set)  # owners that began to prepare it
    written: dict[str, tuple[str, float]] = field(
        default_factory=dict
    )  # by owner: its last beat, when stored
    sent: set[str] = field(default_factory=set)  # its messages
    gone: set[str] = field(default_factory=set)  # those that were deleted, or went to the dead-letter queue
    redriven: bool = False  # one of them went there
    killed_at: float | None = None  # when a kill was first recorded
    kill_asked: bool = False
    unbuilt: bool = False
    sent_twice: bool = False  # as two messages
    many: bool = False  # more than one message, or copy, of it was there
    twinned: bool = False  # two handles of one message were valid
    duplicated: bool = False  # a hidden message was handed out once more
    attempts: int = 0  # the highest number that was stored
    ended: bool = False  # a terminal status was stored
    handed_early_at: float | None = None  # when it was handed out while its executor was not through with it
    worked_at: float = 0.0  # when somebody was last at work on it, see `Bounds`

    @property
    def attempts_spent(self) -> int:
        """Under how many claims a process may have started, as far as the next claimant can know."""
        begun, lost = self.begun, self.duplicated  # a copy takes the lease of the one who has claimed it
        return sum(owner in begun or lost or claimed.lost for owner, claimed in self.claims.items())

    def alive(self) -> "list[SimProcess]":
        """Those that run now."""
        return [process for process in self.processes if process.alive]
