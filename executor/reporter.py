"""One run's state on its way to DataHub: in order, fenced, and paced."""

import json
from collections.abc import Callable
from dataclasses import replace

import anyio

from executor.backoff import Backoff
from executor.claim import CLAIM_TERM, Claim, Offer
from executor.datahub.client import DataHub
from executor.datahub.errors import (
    DataHubError,
    DataHubUnavailableError,
    ImmutableStateError,
    UnauthorizedError,
    VersionConflictError,
    is_of_the_content,
)
from executor.datahub.state import ABSENT_VERSION, RunState, StateWrite, StoredState

SHORTEST_INTERVAL = 2.0  # seconds between two progress writes of a run
BYTES_PER_MINUTE = 1024 * 1024  # of progress, a run: what is sent within any minute stays below it


class SupersededError(Exception):
    """Another claim has written the run's state: this one owns it no longer and writes nothing more."""


class Reporter:
    """Writes the state of one claim. Each write is conditional on the version that the last one left.

    So a write whose answer was lost, or that is still on its way when the run is over, can't come in late
    and cover a newer one: `FAILURE` may be overwritten by DataHub's rules, and would be.
    """

    def __init__(
        self,
        datahub: DataHub,
        exec_id: str,
        claim: Claim,
        backoff: Callable[[], Backoff],
        beat_interval: float,
        term: float = CLAIM_TERM,
    ) -> None:
        """`claim.owner` is unique to this claim; `beat_interval` and the claim's `term` are in seconds."""
        self._term = term
        self.exec_id = exec_id
        self.claim = claim
        self._datahub = datahub
        self._beat_interval = beat_interval
        self._backoff = backoff
        self._lock = anyio.Lock()
        self._version: int | None = None
        self._adopted = False  # somebody read the version and decided on it
        self._certain = False  # the version is known
        self._written = False  # this claim has stored something
        self._offer: Offer | None = None
        self._quiet_until = 0.0
        self._asked_at = 0.0  # monotonic, seconds: when the write under way began
        self._written_at = 0.0  # when the last one began that was stored
        self._writing_claim = claim
        self._writing: StateWrite | None = None  # the write under way, or the last one
        self._written_claim: Claim | None = None
        self._duration: int | None = None  # of the state that is stored, as far as anybody knows
        self._news = anyio.Event()

    def begin_attempt(self, attempt: int, ended: tuple[str, ...]) -> None:
        """What is written from here on is of this attempt; `ended` tells how those before it ended."""
        self.claim = replace(self.claim, attempt=attempt, ended=ended)

    def attempt_withdrawn(self) -> None:
        """This attempt does not count."""
        self.claim = replace(self.claim, attempt=self.claim.attempt - 1)

    def attempt_ended(self, reason: str) -> None:
        """This attempt ends, too, and another one may follow."""
        self.claim = replace(self.claim, ended=(*self.claim.ended, reason))

    def held_by(self, message_id: str, receives: int) -> None:
        """What is written from here on says that the run goes on under this receive of a message."""
        self.claim = replace(self.claim, message_id=message_id, receives=receives)

    def adopt(self, stored: StoredState) -> None:
        """Build on what was read: the next write goes through only if nobody wrote in between."""
        self._version, self._certain, self._adopted = stored.version, True, True
        self._duration = stored.duration_ms

    @property
    def may_have_written(self) -> bool:
        """Whether something of this claim is stored, as far as anybody knows."""
        return self._written or (self._writing is not None and not self._certain)

    @property
    def adopted(self) -> bool:
        """Whether somebody has looked at what is stored, and decided that it may be written over."""
        return self._adopted

    async def store(self, state: RunState, shorter: Callable[[DataHubError], RunState] | None = None) -> None:
        """Write until it is stored, waiting out outages; cancel it to give up.

        Where it is refused, also by a firewall with 403, what `shorter` makes of the refusal is tried at once.

        Raises:
            ImmutableStateError: the run had ended for good, which is as good as stored.
            VersionConflictError: somebody wrote since `adopt`, and this claim has not written yet.
            SupersededError: somebody else claimed the run.
            DataHubRefusedError: DataHub will never take this write.
        """
        async with self._lock:
            backoff = self._backoff()
            while not await self._store_if_reached(state, shorter):
                await backoff.wait()

    async def _store_if_reached(
        self, state: RunState, shorter: Callable[[DataHubError], RunState] | None
    ) -> bool:
        try:
            if not self._certain and await self._read_again() and self._is_last(state):
                return True
        except (DataHubUnavailableError, UnauthorizedError):
            return False
        error = await self._store_once(state)
        settled = error is None or isinstance(error, ImmutableStateError | VersionConflictError)
        if error is not None and not settled and shorter is not None and is_of_the_content(error):
            error = await self._store_once(shorter(error))
        # A conflict may be with ourselves, by a write that nobody waited for: look who wrote in between.
        if isinstance(error, DataHubUnavailableError | UnauthorizedError | VersionConflictError):
            return False
        if error is not None:
            raise error
        return True

    async def _store_once(self, state: RunState) -> DataHubError | None:
        [error] = await self._datahub.write_states([self._write(state)])
        self._note(error)
        return error

    def due(self, now: float) -> bool:
        """Whether a progress write is due, and nothing else is being written. `now` is monotonic, seconds."""
        return self._idle and now >= self._quiet_until

    def beat_due(self, now: float) -> bool:
        """Whether a sign of life is due, and nothing else is being written."""
        if not self._datahub.patches and now < self._quiet_until:  # there it has to hold the whole report
            return False
        moved = self._written and not self.recorded(self.claim.message_id, self.claim.receives)
        return self._idle and (moved or now >= self._written_at + self._beat_interval)

    def silent_for(self, now: float) -> float:
        """Seconds since the last write that was stored began: at most so long has the owner not been heard of."""
        return now - self._written_at

    def term_over(self, now: float) -> bool:
        """Whether nothing could be written for so long that others may take the run's executor for dead."""
        return self._written and self._version is not None and now - self._written_at > self._term

    @property
    def offer(self) -> Offer | None:
        """What another executor has passed on, as far as it was seen."""
        return self._offer

    def recorded(self, message_id: str, receives: int) -> bool:
        """Whether DataHub knows that the run goes on under this receive of a message."""
        claim = self._written_claim
        return claim is not None and (claim.message_id, claim.receives) == (message_id, receives)

    def may_be_recorded(self, message_id: str, receives: int) -> bool:
        """Whether DataHub may say so: a write that did may have been stored, though nobody knows."""
        claim = self._writing_claim
        in_doubt = not self._certain and (claim.message_id, claim.receives) == (message_id, receives)
        return in_doubt or self.recorded(message_id, receives)

    async def kept(self) -> bool:
        """Whether DataHub keeps the claims that come with the writes. Raises DataHubError."""
        return Claim.of(await self._datahub.stored_state(self.exec_id)) is not None

    async def news(self) -> None:
        """Return after the next write that was stored, or the next look at what is."""
        await self._news.wait()

    @property
    def _idle(self) -> bool:
        return self._certain and not self._lock.statistics().locked

    def begin(self, state: RunState) -> StateWrite:
        """A progress write, to be sent together with those of other runs. `finish` must follow.

        The run's final state waits until then, so that it can't be overtaken.
        """
        self._lock.acquire_nowait()
        return self._write(state)

    def finish(self, write: StateWrite, error: DataHubError | None, now: float) -> None:
        """What became of the write that `begin` made; sets the time of the next one by its size."""
        self._note(error)
        if write.state.report is not None:
            size = len(json.dumps(json.dumps(write.state.report)))  # as it went: JSON text inside JSON
            self._quiet_until = now + max(SHORTEST_INTERVAL, _silence(size))
        self._lock.release()

    async def recover(self) -> None:
        """After a write of unknown outcome, learn the version anew. Raises like `store`, and DataHubError."""
        async with self._lock:
            if not self._certain:
                await self._read_again()

    @property
    def certain(self) -> bool:
        """Whether the outcome of the last write is known."""
        return self._certain

    async def _read_again(self) -> bool:
        """Learn the version anew; whether the last write was stored, though nobody said so."""
        stored = await self._datahub.stored_state(self.exec_id)
        claim = Claim.of(stored)
        ours = claim is not None and claim.owner == self.claim.owner
        if stored.ended and not ours:
            raise ImmutableStateError(f"the run has already ended: {stored.status}")
        if self._written and not ours and claim is not None:
            raise SupersededError("the run was claimed by somebody else")
        if self._adopted and not self._written and not ours and stored.version != self._version:
            raise VersionConflictError("the run's state was written by somebody else meanwhile")
        arrived = ours and claim is not None and claim.beat == self.claim.beat
        if ours and claim is not None:
            self._offer = claim.offer
        if arrived:
            self._stored()
        self.adopt(stored)
        self._announce()
        return arrived

    def _is_last(self, state: RunState) -> bool:
        """Whether the last write was this one, or a shorter one in its place."""
        return self._writing is not None and self._writing.state.status is state.status

    def _write(self, state: RunState) -> StateWrite:
        if state.duration_ms == self._duration:
            # A write that changes nothing is none: nobody would see this sign of life (contract, section 3).
            state = replace(state, duration_ms=state.duration_ms + 1)
        self._asked_at = anyio.current_time()
        self._certain = False  # in doubt, too, if we are cancelled
        self.claim = self._writing_claim = replace(self.claim, beat=self.claim.beat + 1)
        self._writing = StateWrite(self.exec_id, state, self._version, self.claim.properties())
        return self._writing

    def _stored(self) -> None:
        self._written, self._written_at, self._written_claim = True, self._asked_at, self._writing_claim

    def _announce(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def _note(self, error: DataHubError | None) -> None:
        self._certain = not isinstance(error, DataHubUnavailableError | VersionConflictError)
        if error is None:
            self._stored()
            self._announce()
            if self._writing is not None:
                self._duration = self._writing.state.duration_ms
            if self._version is not None:
                self._version = 1 if self._version == ABSENT_VERSION else self._version + 1


def _silence(size: int) -> float:
    """Seconds after a write of `size` bytes: any minute's writes, the first and the last whole, fit the bound."""
    return 60 * size / max(BYTES_PER_MINUTE - size, BYTES_PER_MINUTE / 4)
