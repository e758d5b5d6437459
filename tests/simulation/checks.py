"""What must hold, looked at whenever it can change. The first breach ends the schedule.

Rules, by the names that a breach is reported under:

* `two processes`: never two living processes of one request.
* `deleted too early`: a request's message is deleted only once its terminal status is stored, or while another
  message of the request is on the queue; a signal's only once the kill is recorded.
* `not ended`: every request ends, once nothing goes wrong any more. Excused is one whose last message the queue's
  redrive policy took away.
* `overwritten`: a terminal status is never followed by another status.
* `unfounded`: no SUCCESS without a process that ended with exit code 0, no CANCELLED without a kill, no FAILURE
  without a cause.
* `ended alive`: neither a terminal status nor UP_FOR_RETRY is stored while a process of the request lives.
* `leaked`: an executor that has stopped, or has nothing to do, holds no run and no slot.
* `too many attempts`: at most `max_attempts` + 1 processes of a request.
* `broken`: no exception reaches the edge of a run, of a loop, or of the service.

A server that ignores conditions, or keeps no properties, can't tell claims apart; one without patches is told of an
owner's life too seldom. There the rules about two processes, overwriting, causes and attempts hold only for a
request that was delivered by one message, one copy at a time.

One hole is known, and counted apart. While the owner's lease lasts, a second copy of a message, its handle valid
beside the first one's, reaches an executor while the owner can't tell DataHub that it lives, being stopped or cut
off; or the copy's handle replaces the first one while the owner is stopped, so that it can't notice. Nobody can
tell that from its death.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.datahub_server import IMMUTABLE
from tests.simulation.plan import settings_of

if TYPE_CHECKING:
    from executor.worker import Worker
    from tests.simulation.fleet import SimExecutor
    from tests.simulation.processes import SimProcess
    from tests.simulation.sqs_server import Copy
    from tests.simulation.world import World

TERMINAL = IMMUTABLE | {"FAILURE"}
HOLE_SLACK = 3.0  # seconds beyond a proof period: a beat's interval, and the time that the looks take


@dataclass(slots=True)
class Record:
    """What happened to one request."""

    processes: "list[SimProcess]" = field(default_factory=list)
    claims: set[str] = field(default_factory=set)  # owners that wrote RUNNING
    kill_asked: bool = False
    unbuilt: bool = False
    many: bool = False  # more than one message, or copy, of it was there
    twinned: bool = False  # two handles of one message were valid
    duplicated: bool = False  # a hidden message was handed out once more
    attempts: int = 0  # the highest number that was stored
    ended: bool = False  # a terminal status was stored

    def alive(self) -> "list[SimProcess]":
        """Those that run now."""
        return [process for process in self.processes if process.alive]


class Checks:
    """Keeps the record; `breach` is the first rule that was broken, and how."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.records: dict[str, Record] = {}
        self.breach: tuple[str, str] | None = None

    def broken(self, words: str) -> None:
        """An exception came where none may."""
        self._breach("broken", words)

    def unbuilt(self, exec_id: str) -> None:
        """Its venv could not be built."""
        self.records[exec_id].unbuilt = True

    def twinned(self, exec_id: str) -> None:
        """There are two copies of a message, each with a valid handle."""
        record = self.records[exec_id]
        record.twinned = record.many = True

    def duplicated(self, exec_id: str) -> None:
        """A hidden message is handed out once more."""
        record = self.records[exec_id]
        record.duplicated = record.many = True

    def many(self, exec_id: str) -> None:
        """There is more than one message, or receive at a time, of it."""
        self.records[exec_id].many = True

    def started(self, process: "SimProcess") -> None:
        """A process starts."""
        exec_id, record, world = process.exec_id, self.records[process.exec_id], self._world
        world.counts["processes"] += 1
        world.tell(
            "process", exec_id, "of", process.executor.name, "starts, its lease ends at", process.lease.ends
        )
        alive = record.alive()
        if record.processes:
            world.counts["takeovers"] += 1
        record.processes.append(process)
        if alive and not self._excused(record, alive[0]):
            self._breach(
                "two processes", f"{exec_id}: of {alive[0].executor.name} and {process.executor.name}"
            )
        limit = world.plan.max_attempts + 1
        if len(record.processes) > limit and world.plan.server.fences and not record.twinned:
            self._breach(
                "too many attempts", f"{exec_id}: {len(record.processes)} processes, {limit} are allowed"
            )

    def stored(
        self,
        exec_id: str,
        before: str | None,
        after: str,
        properties: dict[str, str],
        executor: "SimExecutor",
    ) -> None:
        """A state of a request was stored."""
        record = self.records[exec_id]
        record.ended = record.ended or after in TERMINAL
        attempt = properties.get("executorAttempt", "0")
        record.attempts = max(record.attempts, int(attempt))
        if after == "RUNNING":
            record.claims.add(properties.get("executorRun", executor.name))
        if self._tells_apart(record):
            # Without conditions a write that arrives late may cover a FAILURE: docs/guarantees.md.
            kept = self._world.plan.server.conditions or before != "FAILURE"
            if before in TERMINAL and after != before and kept:
                self._breach("overwritten", f"{exec_id}: {before} by {after} of {executor.name}")
            if reason := self._unfounded(record, after):
                self._breach("unfounded", f"{exec_id}: {after} of {executor.name}, {reason}")
        alive = record.alive()
        if after != "RUNNING" and alive and not self._excused(record, alive[0]):
            self._breach(
                "ended alive", f"{exec_id}: {after} of {executor.name}, {alive[0].executor.name} runs it"
            )

    def deleted(self, copy: "Copy") -> None:
        """A message is about to be deleted."""
        entity = self._world.datahub.entities[copy.exec_id]
        if copy.signal:
            if entity.signal is None:
                self._breach("deleted too early", f"a signal for {copy.exec_id}, which is not recorded")
        elif self._world.sqs.others(copy):
            self._world.counts["deleted beside another message"] += 1
        elif not (self.records[copy.exec_id].ended and entity.value.get("status") in TERMINAL) and (
            self._world.plan.server.conditions or not self.records[copy.exec_id].ended
        ):
            self._breach("deleted too early", f"{copy.exec_id} is {entity.value.get('status')}")

    def drained(self, worker: "Worker") -> None:
        """An executor has nothing to do."""
        pool = worker.pool
        if pool.active or pool.waiting or len(worker.active):
            self._breach("leaked", f"{pool.active} slots, {pool.waiting} tickets, {len(worker.active)} runs")

    def not_ended(self, exec_id: str) -> None:
        """The calm did not end it."""
        self._breach("not ended", f"{exec_id} is {self._world.datahub.status(exec_id)}")

    # --- inside --------------------------------------------------------------------------------------------

    def _tells_apart(self, record: Record) -> bool:
        return self._world.plan.server.fences or not record.many

    def _excused(self, record: Record, process: "SimProcess") -> bool:
        if not self._tells_apart(record):
            self._world.counts["excused: a server that can't tell claims apart"] += 1
            return True
        if self._world.now > process.lease.ends:
            return False
        owner = process.executor
        window = settings_of(self._world.plan).proof_period + HOLE_SLACK
        cut = self._world.network.is_cut(owner.index, "datahub")
        hampered = owner.loop.paused or cut or self._world.now - owner.hampered_at <= window
        stopped = owner.loop.paused or self._world.now - owner.woke_at <= window
        if (record.twinned and hampered) or (record.duplicated and stopped):
            self._world.counts["excused: the known hole"] += 1
            return True
        return False

    def _unfounded(self, record: Record, status: str) -> str | None:
        causes: dict[str, tuple[Callable[[], bool], str]] = {
            "SUCCESS": (lambda: any(p.returncode == 0 for p in record.processes), "no process ended well"),
            "CANCELLED": (lambda: record.kill_asked, "nobody asked for it"),
            "FAILURE": (
                lambda: (
                    record.unbuilt
                    or not self._world.plan.server.properties  # there the queue's count of receives decides
                    or any(p.returncode == 1 for p in record.processes)
                    or max(len(record.claims), record.attempts) > self._world.plan.max_attempts
                ),
                "nothing failed",
            ),
        }
        holds, words = causes.get(status, (lambda: True, ""))
        return None if holds() else words

    def _breach(self, rule: str, words: str) -> None:
        self._world.tell("BREACH", rule, words)
        if self.breach is None:
            self.breach = rule, words
        self._world.kernel.done = True
