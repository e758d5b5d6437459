"""One run's life: its phases, what may end it, and the only copy of both. No I/O."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, StrEnum

import anyio
from structlog.typing import FilteringBoundLogger

from executor.ingestion.process import TERMINATION_GRACE
from executor.ingestion.recipe import Recipe
from executor.journal import Journal
from executor.lease import Lease
from executor.queue.delivery import Delivery
from executor.reporter import Reporter
from executor.requests import ExecutionRequest


class Phase(StrEnum):
    """Where a run is in its life."""

    WAITING = "waiting"  # received, for a slot
    CLAIMING = "claiming"
    PREPARING = "preparing"  # recipe, secrets, venv
    RUNNING = "running"
    SETTLING = "settling"
    SETTLED = "settled"


_NEXT: dict[Phase, set[Phase]] = {
    Phase.WAITING: {Phase.CLAIMING, Phase.SETTLING},
    Phase.CLAIMING: {Phase.PREPARING, Phase.SETTLING},
    Phase.PREPARING: {Phase.RUNNING, Phase.SETTLING},
    Phase.RUNNING: {Phase.SETTLING},
    Phase.SETTLING: {Phase.SETTLED},
    Phase.SETTLED: set(),
}


class StopReason(Enum):
    """Why a run is ended from outside; the first one counts, except that a lost lease outranks all others."""

    CANCELLED = "it was cancelled on request"
    DRAINED = "its executor is stopping"
    LEASE_ENDING = "its executor could not renew its hold on the request"  # it still has it
    LEASE_LOST = "its executor's hold on the request ended"
    CLAIM_ENDING = "its executor could not reach DataHub for two hours"
    ENDED_ELSEWHERE = "DataHub holds a final status for it already"


class IllegalTransitionError(Exception):
    """The code tried to take a run where its life does not lead; a defect."""


async def _nothing() -> None:
    return


@dataclass(eq=False, slots=True)
class Run:
    """A delivery on its way from receipt to settlement."""

    exec_id: str
    delivery: Delivery  # under whose lease it goes on
    journal: Journal
    reporter: Reporter
    log: FilteringBoundLogger
    recipe: Recipe | None = None  # of the request, where it can be read
    phase: Phase = Phase.WAITING
    stop_reason: StopReason | None = None
    stop_grace: float = TERMINATION_GRACE  # seconds between SIGTERM and SIGKILL
    clean_up: Callable[[], Awaitable[None]] = _nothing  # what is left to do once it is settled
    work: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    settlement: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    lease: Lease = field(init=False)
    successor: Delivery | None = None  # of the message that is to take the place of `delivery`'s
    successor_id: str | None = None  # its id, from when it is on the queue
    succeeded: anyio.Event = field(default_factory=anyio.Event)  # `successor` is there
    handing_over: bool = False  # a successor is waited for
    tied: bool = False  # to its message: no other one can take its place
    let_go: bool = False  # its messages are not held any more
    claimed: bool = False  # for certain: from here on a process may start, and the attempt counts

    def __post_init__(self) -> None:
        self.lease = Lease(self.delivery.lease_ends)
        self._name_the_message_that_counts()

    def _name_the_message_that_counts(self) -> None:
        """A successor does from when it is here: it must be recorded before the old one goes."""
        delivery = self.successor or self.delivery
        self.reporter.held_by(delivery.message_id, delivery.receive_count)

    def hold(self, delivery: Delivery) -> None:
        """Go on under the lease of another receive."""
        self.delivery = delivery
        self.lease.renew(delivery.lease_ends)
        self._name_the_message_that_counts()

    def hand_over(self, successor: Delivery) -> None:
        """The successor takes the old message's place."""
        self.successor, self.successor_id, self.succeeded = None, None, anyio.Event()
        self.handing_over = False
        self.hold(successor)

    def renewed(self) -> None:
        """The lease was extended."""
        self.lease.renew(self.delivery.lease_ends)

    def succeed(self, delivery: Delivery) -> None:
        """The message that was sent to take the place of its own is here."""
        self.successor, self.successor_id = delivery, delivery.message_id
        self._name_the_message_that_counts()
        self.succeeded.set()

    def lost(self, delivery: Delivery) -> bool:
        """That receive is over. Whether the run's hold on its request is, too.

        It is for a successor that DataHub may name already: whoever has it now may take the run for dead. Any other
        one has to be had anew, and the run's own message counts until then.
        """
        if delivery is self.successor:
            if self.reporter.may_be_recorded(delivery.message_id, delivery.receive_count):
                return True
            self.successor, self.succeeded = None, anyio.Event()
            self._name_the_message_that_counts()
        return delivery is self.delivery

    def is_succeeded_by(self, delivery: Delivery) -> bool:
        """Whether it is that message, which may be received before its sending was answered."""
        if self.successor_id is None:
            return self.handing_over and delivery.sent_by == self.reporter.claim.owner
        return delivery.message_id == self.successor_id

    def advance(self, phase: Phase) -> None:
        """Enter the next phase. Raises IllegalTransitionError."""
        if phase not in _NEXT[self.phase]:
            raise IllegalTransitionError(f"{self.exec_id}: {self.phase} does not lead to {phase}")
        self.phase = phase
        self.claimed = self.claimed or phase is Phase.PREPARING

    @property
    def request(self) -> ExecutionRequest:
        """The request, once it is known. Raises IllegalTransitionError before."""
        if self.journal.request is None:
            raise IllegalTransitionError(f"{self.exec_id}: its request has not been read yet")
        return self.journal.request

    def begin(self, attempt: int, ended: tuple[str, ...]) -> None:
        """This is going to be attempt number `attempt`; `ended` tells how those before it ended."""
        self.journal.begin(attempt)
        self.attempts_ended(ended)
        self.reporter.begin_attempt(attempt, ended)
        self.log = self.log.bind(attempt=attempt)

    def attempts_ended(self, ended: tuple[str, ...]) -> None:
        """How the attempts before this one ended, for the report."""
        self.journal.notes = tuple(f"Before:    {reason}" for reason in ended)

    def interrupted(self, words: str) -> None:
        """This attempt is given back: the next one is to know why, and has its number if it never began."""
        if self.claimed:
            reason = self.stop_reason.value if self.stop_reason else words
            self.reporter.attempt_ended(self.journal.ended(reason))
        else:
            self.reporter.attempt_withdrawn()

    def describe(self, source_type: str) -> None:
        """The recipe is read: what it ingests from."""
        self.journal.source_type = source_type
        self.log = self.log.bind(source_type=source_type)

    def stop(self, reason: StopReason, grace: float | None = None) -> bool:
        """End the work from outside; True if that changed anything. `grace` shortens the time to obey (s).

        A run that is settling goes on settling, unless its lease is lost: then nothing of it may be written.
        """
        if grace is not None:
            self.stop_grace = min(self.stop_grace, grace)
        if reason is StopReason.LEASE_LOST and self.stop_reason is not StopReason.LEASE_LOST:
            self.stop_reason = reason
            self.work.cancel()
            self.settlement.cancel()
            return True
        if self.stop_reason is not None or self.phase in {Phase.SETTLING, Phase.SETTLED}:
            return False
        self.stop_reason = reason
        if reason is StopReason.LEASE_ENDING:
            self.settlement.deadline = self.delivery.lease_ends  # later on it may be somebody else's
        self.work.cancel()
        return True


class ActiveRuns:
    """The runs that this executor holds, by id, in the order of their receipt."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._changed = anyio.Event()

    def add(self, run: Run) -> None:
        """Hold a run; the caller has looked that its id is not held yet."""
        self._runs[run.exec_id] = run
        self._announce()

    def remove(self, run: Run) -> None:
        """Let go of a run."""
        del self._runs[run.exec_id]
        self._announce()

    def get(self, exec_id: str) -> Run | None:
        """The run of that id, if it is held."""
        return self._runs.get(exec_id)

    def __iter__(self) -> Iterator[Run]:
        """All runs held now; the runs may change meanwhile."""
        return iter(list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._runs)

    async def emptied(self) -> None:
        """Return once none is held."""
        while self._runs:
            await self._changed.wait()

    async def changed(self, seconds: float) -> None:
        """Return once one comes or goes, at the latest after so many seconds."""
        with anyio.move_on_after(seconds):
            await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
