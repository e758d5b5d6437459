"""Making a request ours: who owns it is read in DataHub, and the claim is a conditional write."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import anyio

from executor.backoff import Backoff
from executor.claim import Claim, Observations, Offer, Standing, standing
from executor.datahub.client import DataHub
from executor.datahub.errors import (
    DataHubError,
    DataHubUnavailableError,
    ImmutableStateError,
    UnauthorizedError,
    VersionConflictError,
)
from executor.datahub.state import RunState, StateWrite, Status, StoredState
from executor.disposal import Disposal
from executor.reporter import SupersededError
from executor.run import Run
from executor.settlement import GIVE_BACK_DELAY, Verdict

PATIENCE = 1800.0  # seconds that a request waits for DataHub, its lease held, before it is given back
DUPLICATE_DELAY = 60.0  # seconds until a second message for a run that is under way is offered again
LONGEST_DUPLICATE_DELAY = 3600.0  # seconds
RETURNED_DELAY = 5  # proof periods, about a lease: this may be the very message that the owner holds
SIGNS_OF_LIFE = 2  # writes of an owner, so that it lives
LOOKS = 8  # at an owner that may be gone, within the time in which a living one writes

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Claims:
    """Finds out whether a request may be worked on, and claims it.

    A claim is made only where nobody else works on the request: there is no owner, or it has given the run back, or
    it is gone for certain. Two things show that: its own message came back from the queue, and it has written
    nothing for `proof_period` (seconds) after that, a time in which a living one writes; or it has written nothing
    for the whole term of its claim.
    """

    datahub: DataHub
    observations: Observations
    max_attempts: int
    proof_period: float
    backoff: Callable[[], Backoff]

    async def claim(self, run: Run) -> Verdict | None:
        """Make the request ours and RUNNING, or say why it is not to be run. Raises DataHubRefusedError."""
        with anyio.move_on_after(PATIENCE):
            while True:
                found = await self._free(run)
                if isinstance(found, Verdict):
                    return found
                attempt, ended = _attempts(run, found)
                if attempt > self.max_attempts + 1:
                    run.attempts_ended(ended)
                    return Verdict(Status.FAILURE, self._used_up())
                run.begin(attempt, ended)
                try:
                    await self._store_claim(run)
                except (VersionConflictError, SupersededError):
                    continue  # somebody was faster: look again at who
                except ImmutableStateError:
                    return already_ended(run)
                run.log.info("run_claimed")
                return None
        return _in_doubt() if run.reporter.may_have_written else away()

    async def _store_claim(self, run: Run) -> None:
        """Store it until its answer comes in time.

        After a long silence somebody else may have taken the owner for dead: then it must be heard once more
        before anything starts.
        """
        while True:
            await run.reporter.store(run.journal.progress())
            if run.reporter.silent_for(anyio.current_time()) < self.proof_period / 2:
                return

    async def pass_on(self, run: Run) -> Verdict | None:
        """Tell the owner of a long run of the fresh message that it waits for, if this is one: that takes no slot.

        Raises DataHubRefusedError.
        """
        if run.delivery.sent_by is None or not self.datahub.patches:
            return None
        with anyio.move_on_after(PATIENCE):
            while True:
                stored = await self.patiently(lambda: self.datahub.stored_state(run.exec_id))
                claim = Claim.of(stored)
                if claim is None or stored.status != Status.RUNNING:
                    return None
                if standing(claim, run.delivery) is not Standing.FRESH:
                    return None
                if self.observations.gone(run.exec_id, claim, anyio.current_time()):
                    return None
                if told := await self._tell(run, stored, claim):
                    return told
        return away()

    async def objection(self, run: Run) -> Verdict | None:
        """Why nothing may be stored of the request, if that is so. Raises DataHubRefusedError."""
        with anyio.move_on_after(PATIENCE):
            found = await self._free(run)
            return found if isinstance(found, Verdict) else None
        return away()

    async def patiently(
        self, ask: Callable[[], Awaitable[Answer]], waiting: Callable[[DataHubError], None] = lambda _: None
    ) -> Answer:
        """Ask DataHub until it answers. Raises DataHubRefusedError where asking again would not help.

        `waiting` is told why it is asked again.
        """
        backoff = self.backoff()
        while True:
            try:
                return await ask()
            except (DataHubUnavailableError, UnauthorizedError) as error:
                waiting(error)
                await backoff.wait()

    async def _free(self, run: Run) -> StoredState | Verdict:
        """What is stored of a request that nobody works on; else what is to become of its message."""
        while True:
            stored = await self.patiently(lambda: self.datahub.stored_state(run.exec_id))
            if stored.ended:
                self.observations.forget(run.exec_id)
                return already_ended(run)
            if (claim := Claim.of(stored)) is not None and stored.status == Status.RUNNING:
                owned = await self._owned(run, stored, claim)
                if isinstance(owned, Verdict):
                    return owned
                if owned:
                    continue  # somebody wrote: look again
                run.log.warning("owner_gone", owner=claim.owner, host=claim.host)
            self.observations.forget(run.exec_id)
            run.reporter.adopt(stored)
            if stored.killed:
                began = stored.status in {Status.RUNNING, Status.UP_FOR_RETRY}
                when = "on request, and is not started again" if began else "before it started"
                return Verdict(Status.CANCELLED, f"The run was cancelled {when}.")
            return stored

    async def _owned(self, run: Run, stored: StoredState, claim: Claim) -> bool | Verdict:
        """False if the owner is gone for certain, True if that has to be looked at again."""
        stands = standing(claim, run.delivery)
        if stands is Standing.RETURNED:
            news = await self._watch(run, claim)
            if news is not None and _owns(news, claim.owner):
                times = run.delivery.receive_count - claim.receives
                return _held_elsewhere(run, claim, duplicate_delay(times, self.proof_period * RETURNED_DELAY))
            return news is not None
        if self.observations.gone(run.exec_id, claim, anyio.current_time()):
            return False
        if stands is Standing.FRESH and self.datahub.patches:
            return await self._tell(run, stored, claim) or True
        return _held_elsewhere(run, claim, duplicate_delay(run.delivery.receive_count))

    async def _watch(self, run: Run, claim: Claim) -> StoredState | None:
        """What the owner, or somebody else, wrote while we looked; None: nothing, so that the owner is gone.

        Only time in which DataHub answers counts: the owner could not have written either. One sign of life may be
        the last one of an owner that was stopped or cut off, on its way until now: a living one goes on.
        """
        silent_since, beat = anyio.current_time(), claim.beat
        while True:
            await anyio.sleep(self.proof_period / LOOKS)
            asked_at = anyio.current_time()
            try:
                stored = await self.datahub.stored_state(run.exec_id)
            except (DataHubUnavailableError, UnauthorizedError):
                stored = await self.patiently(lambda: self.datahub.stored_state(run.exec_id))
                silent_since = asked_at = anyio.current_time()
            found = Claim.of(stored)
            if found is None or not _owns(stored, claim.owner) or found.beat >= claim.beat + SIGNS_OF_LIFE:
                return stored
            if found.beat != beat:
                silent_since, beat = asked_at, found.beat
            elif asked_at - silent_since >= self.proof_period:
                return None

    async def _tell(self, run: Run, stored: StoredState, claim: Claim) -> Verdict | None:
        """Tell the owner of the message it waits for; None if somebody wrote meanwhile.

        Raises DataHubRefusedError.
        """
        delivery = run.delivery
        left = max(0.0, delivery.hold_ends - anyio.current_time())
        offer = Offer(delivery.message_id, delivery.receipt_handle, delivery.receive_count, left)
        # One millisecond more: a write that changes nothing is none, and its properties would not be kept.
        state = RunState(Status.RUNNING, stored.start_time_ms or 0, (stored.duration_ms or 0) + 1, None)
        properties = replace(claim, offer=offer).properties()
        [error] = await self.datahub.write_states(
            [StateWrite(run.exec_id, state, stored.version, properties)]
        )
        if isinstance(error, VersionConflictError | ImmutableStateError):
            return None
        if error is not None and not isinstance(error, DataHubUnavailableError | UnauthorizedError):
            raise error
        run.log.info("successor_passed_on", owner=claim.owner)
        return Verdict(None, "its owner is told of this message", Disposal.LEAVE)

    def _used_up(self) -> str:
        return (
            f"The run was interrupted {self.max_attempts + 1} times, and is not started again "
            f"(DATAHUB_EXECUTOR_MAX_ATTEMPTS is {self.max_attempts}). How each attempt ended is told below. If its "
            "executor died, the run may take more memory than the task has: give it more; then execute the source "
            "again."
        )


def duplicate_delay(receive_count: int, first: float = DUPLICATE_DELAY) -> float:
    """Seconds until a second message for a run that is under way is offered again.

    Longer from time to time, as each receive brings it nearer to the dead-letter queue.
    """
    return min(LONGEST_DUPLICATE_DELAY, first * (1 << min(max(receive_count - 1, 0), 10)))


def away() -> Verdict:
    """DataHub did not answer."""
    return Verdict(None, "DataHub is away", Disposal.RELEASE, GIVE_BACK_DELAY)


def _in_doubt() -> Verdict:
    """The claim is, or may be, stored; but nobody knows for certain whose the request is by now."""
    words = "DataHub answers too slowly to begin. The request is tried again."
    return Verdict(Status.UP_FOR_RETRY, words, Disposal.RELEASE, GIVE_BACK_DELAY)


def already_ended(run: Run) -> Verdict:
    """DataHub's word counts."""
    run.log.info("already_ended")
    return Verdict(None, "it had already ended")


def _held_elsewhere(run: Run, claim: Claim, delay: float) -> Verdict:
    run.log.info("runs_elsewhere", owner=claim.owner, host=claim.host, again_in=delay)
    return Verdict(None, "another executor runs it", Disposal.RELEASE, delay)


def _owns(stored: StoredState, owner: str) -> bool:
    claim = Claim.of(stored)
    return stored.status == Status.RUNNING and claim is not None and claim.owner == owner


def _attempts(run: Run, stored: StoredState) -> tuple[int, tuple[str, ...]]:
    """Which attempt this would be, one more than the last claim's, and how those before it ended.

    Where the server keeps no claims, the queue's count has to do.
    """
    if stored.status not in {Status.RUNNING, Status.UP_FOR_RETRY}:
        return 1, ()
    claim = Claim.of(stored)
    if claim is None:
        return max(2, run.delivery.receive_count), ()
    lost = () if stored.status == Status.UP_FOR_RETRY else (claim.lost(stored.start_time_ms),)
    return claim.attempt + 1, (*claim.ended, *lost)
