"""One run's state on its way to DataHub: in order, fenced, and paced."""

import json
from collections.abc import Callable

import anyio

from executor.backoff import Backoff
from executor.datahub.client import DataHub
from executor.datahub.errors import (
    DataHubError,
    DataHubUnavailableError,
    ImmutableStateError,
    UnauthorizedError,
    VersionConflictError,
)
from executor.datahub.state import ABSENT_VERSION, RunState, StateWrite, StoredState

SHORTEST_INTERVAL = 2.0  # seconds between two progress writes of a run
BYTES_PER_MINUTE = 1024 * 1024  # of progress, a run: what is sent within any minute stays below it

OWNER = "executorRun"  # system metadata property: which claim wrote this
ATTEMPT = "executorAttempt"  # system metadata property: which attempt that was


class SupersededError(Exception):
    """Another claim has written the run's state: this one owns it no longer and writes nothing more."""


class Reporter:
    """Writes the state of one claim. Each write is conditional on the version that the last one left.

    So a write whose answer was lost, or that is still on its way when the run is over, can't come in late
    and cover a newer one: `FAILURE` may be overwritten by DataHub's rules, and would be.
    """

    def __init__(self, datahub: DataHub, exec_id: str, owner: str, backoff: Callable[[], Backoff]) -> None:
        """`owner` is unique to this claim."""
        self.exec_id = exec_id
        self.owner = owner
        self.attempt = 0
        self._datahub = datahub
        self._backoff = backoff
        self._lock = anyio.Lock()
        self._version: int | None = None
        self._adopted = False  # somebody read the version and decided on it
        self._certain = False  # the version is known
        self._written = False  # this claim has stored something
        self._quiet_until = 0.0

    def adopt(self, stored: StoredState) -> None:
        """Build on what was read: the next write goes through only if nobody wrote in between."""
        self._version, self._certain, self._adopted = stored.version, True, True

    async def store(self, state: RunState) -> None:
        """Write until it is stored, waiting out outages; cancel it to give up.

        Raises:
            ImmutableStateError: the run had ended for good, which is as good as stored.
            VersionConflictError: somebody wrote since `adopt`, and this claim has not written yet.
            SupersededError: somebody else claimed the run.
            DataHubRefusedError: DataHub will never take this write.
        """
        async with self._lock:
            backoff = self._backoff()
            while True:
                try:
                    if not self._certain:
                        await self._read_again()
                    write, self._certain = self._write(state), False  # in doubt, too, if we are cancelled
                    [error] = await self._datahub.write_states([write])
                    self._note(error)
                    if error is None:
                        return
                    if not isinstance(error, VersionConflictError):
                        raise error
                    # Look who wrote in between: it may be ourselves, by a write that nobody waited for.
                except (DataHubUnavailableError, UnauthorizedError):
                    pass
                await backoff.wait()

    def due(self, now: float) -> bool:
        """Whether a progress write is due, and nothing else is being written. `now` is monotonic, seconds."""
        return self._certain and now >= self._quiet_until and not self._lock.statistics().locked

    def begin(self, state: RunState) -> StateWrite:
        """A progress write, to be sent together with those of other runs. `finish` must follow.

        The run's final state waits until then, so that it can't be overtaken.
        """
        self._lock.acquire_nowait()
        return self._write(state)

    def finish(self, write: StateWrite, error: DataHubError | None, now: float) -> None:
        """What became of the write that `begin` made; sets the time of the next one by its size."""
        self._note(error)
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

    async def _read_again(self) -> None:
        stored = await self._datahub.stored_state(self.exec_id)
        ours = stored.properties.get(OWNER) == self.owner
        if stored.ended and not ours:
            raise ImmutableStateError(f"the run has already ended: {stored.status}")
        if self._written and not ours and OWNER in stored.properties:
            raise SupersededError("the run was claimed by somebody else")
        if self._adopted and not self._written and not ours and stored.version != self._version:
            raise VersionConflictError("the run's state was written by somebody else meanwhile")
        self.adopt(stored)

    def _write(self, state: RunState) -> StateWrite:
        properties = {OWNER: self.owner, ATTEMPT: str(self.attempt)}
        return StateWrite(self.exec_id, state, self._version, properties)

    def _note(self, error: DataHubError | None) -> None:
        self._certain = not isinstance(error, DataHubUnavailableError | VersionConflictError)
        if error is None:
            self._written = True
            if self._version is not None:
                self._version = 1 if self._version == ABSENT_VERSION else self._version + 1


def _silence(size: int) -> float:
    """Seconds after a write of `size` bytes: any minute's writes, the first and the last whole, fit the bound."""
    return 60 * size / max(BYTES_PER_MINUTE - size, BYTES_PER_MINUTE / 4)
