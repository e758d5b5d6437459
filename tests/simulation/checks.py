"""What must hold, looked at whenever it can change. The first breach ends the schedule.

Rules, by the names that a breach is reported under:

* `two processes`: never two living processes of one request.
* `deleted too early`: a request's message is deleted only once its terminal status is stored, or while another
  message of the request is on the queue and the claim of a RUNNING request does not name the deleted one; a
  signal's only once the kill is recorded.
* `not ended`: every request ends, once nothing goes wrong any more. Excused, and counted, is one each message of
  which is gone, by the queue's redrive policy or, beside others, deleted, where the queue allows fewer receives
  than the service asks for, or hands out copies.
* `killed in vain`: no process starts once a kill was recorded for long enough to be seen by an executor that can
  reach DataHub; no kill's message goes to the dead-letter queue before the kill is recorded.
* `overwritten`: a terminal status is never followed by another status.
* `unfounded`: no SUCCESS without a process that ended with exit code 0, no CANCELLED without a kill, no FAILURE
  without a cause: a build or a process that failed, or more attempts than are allowed after each of which a process
  may have been started.
* `ended alive`: neither a terminal status nor UP_FOR_RETRY is stored while a process of the request lives. Where
  the server ignores conditions, a write of another claim's that arrives late is excused.
* `leaked`: an executor that has stopped, or has nothing to do, holds no run and no slot.
* `too many attempts`: at most `max_attempts` + 1 processes of a request.
* `broken`: no exception reaches the edge of a run, of a loop, or of the service.

What must happen in time is in `bounds`.

A server that ignores conditions, or keeps no properties, can't tell claims apart; one without patches is told of an
owner's life too seldom for a short lease. There the rules about two processes, overwriting, causes and attempts
hold only for a request that was delivered by one message, one copy at a time.

One hole is known, and counted apart. While the owner's lease lasts, a second copy of a message reaches an executor
while the owner can't tell DataHub that it lives, being stopped or cut off, nor notice the copy: the copy's handle
is valid beside the first one's, or the owner can't reach the queue either. Nobody can tell that from its death. It
is excused only if DataHub stored no write of that owner's for a whole proof period.

A kill's message goes to the dead-letter queue unrecorded, and is excused, where the queue handed out copies of it:
they use up its receives within moments of a DataHub that is away.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from executor.claim import OWNER
from tests.simulation.bounds import LONGEST_BLIND
from tests.simulation.datahub_server import IMMUTABLE
from tests.simulation.plan import settings_of
from tests.simulation.record import Claimed, Record

if TYPE_CHECKING:
    from executor.worker import Worker
    from tests.simulation.fleet import SimExecutor
    from tests.simulation.processes import SimProcess
    from tests.simulation.sqs_server import Copy
    from tests.simulation.world import World

BEAT, MESSAGE = "executorBeat", "executorMessage"  # properties, see docs/guarantees.md
TERMINAL = IMMUTABLE | {"FAILURE"}
HOLE_SLACK = 3.0  # seconds beyond a proof period: a beat's interval, and the time that the looks take
KILL_SLACK = 3.0  # seconds beyond two poll intervals: the time that the looks take


class Checks:
    """Keeps the record; `breach` is the first rule that was broken, and how."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.records: dict[str, Record] = {}
        self.breach: tuple[str, str] | None = None

    def broken(self, words: str) -> None:
        """An exception came where none may."""
        self.breached("broken", words)

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

    def sent_twice(self, exec_id: str) -> None:
        """It is sent again, as another message."""
        record = self.records[exec_id]
        record.sent_twice = record.many = True

    def many(self, exec_id: str) -> None:
        """There is more than one message, or receive at a time, of it."""
        self.records[exec_id].many = True

    def started(self, process: "SimProcess") -> None:
        """A process starts."""
        exec_id, record, world = process.exec_id, self.records[process.exec_id], self._world
        world.counts["processes"] += 1
        world.tell(
            "process", exec_id, "of", process.executor.name, "starts, its lease ends at", process.lease_ends
        )
        alive = record.alive()
        worker = process.executor.worker
        if worker is not None and (run := worker.active.get(exec_id)) is not None:
            process.owner = run.reporter.claim.owner
        self._look_for_kill(record, process)
        world.bounds.started(process)
        if record.processes:
            world.counts["takeovers"] += 1
        record.processes.append(process)
        if alive and not any(self._excused(record, one) for one in (alive[0], process)):
            self.breached(
                "two processes", f"{exec_id}: of {alive[0].executor.name} and {process.executor.name}"
            )
        limit = world.plan.max_attempts + 1
        if len(record.processes) > limit and world.plan.fences and not record.twinned:
            self.breached(
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
        """A state of a request was stored, by a write that came with these properties."""
        record, writer = self.records[exec_id], properties.get(OWNER, executor.name)
        beat = properties.get(BEAT, "")
        if record.written.get(writer, ("", 0.0))[0] != beat:  # else it is another executor's, that passes on
            record.written[writer] = beat, self._world.now
        record.ended = record.ended or after in TERMINAL
        attempt = properties.get("executorAttempt", "0")
        record.attempts = max(record.attempts, int(attempt))
        if after == "RUNNING":
            since = self._world.now - self._world.plan.lease
            record.claims.setdefault(writer, Claimed(executor, executor.generation, since))
        if self._tells_apart(record):
            # Without conditions a write that arrives late may cover a FAILURE: docs/guarantees.md.
            kept = self._world.plan.server.conditions or before != "FAILURE"
            if before in TERMINAL and after != before and kept:
                self.breached("overwritten", f"{exec_id}: {before} by {after} of {executor.name}")
            if reason := self._unfounded(record, after):
                self.breached("unfounded", f"{exec_id}: {after} of {executor.name}, {reason}")
        alive = record.alive()
        if after != "RUNNING" and alive and not self._excused(record, alive[0]):
            if not self._world.plan.server.conditions and writer != alive[0].owner:
                self._world.counts["excused: a late write of another claim, without conditions"] += 1
            else:
                self.breached(
                    "ended alive", f"{exec_id}: {after} of {writer}, {alive[0].executor.name} runs it"
                )

    def deleted(self, copy: "Copy") -> None:
        """A message is about to be deleted."""
        entity, record = self._world.datahub.entities[copy.exec_id], self.records[copy.exec_id]
        status = entity.value.get("status")
        if copy.signal:
            if entity.signal is None:
                self.breached("deleted too early", f"a signal for {copy.exec_id}, which is not recorded")
            return
        record.gone.add(copy.message_id)
        if record.ended and (status in TERMINAL or not self._world.plan.server.conditions):
            return
        if not self._world.sqs.others(copy):
            self.breached("deleted too early", f"{copy.exec_id} is {status}")
        elif status == "RUNNING" and entity.properties.get(MESSAGE) == copy.message_id:
            self.breached("deleted too early", f"{copy.exec_id} runs under {copy.message_id}, says DataHub")
        else:
            self._world.counts["deleted beside another message"] += 1

    def sent(self, copy: "Copy") -> None:
        """A message is put on the queue."""
        if not copy.signal:
            self.records[copy.exec_id].sent.add(copy.message_id)

    def redriven(self, copy: "Copy") -> None:
        """A message goes to the dead-letter queue."""
        record = self.records[copy.exec_id]
        if not copy.signal:
            record.redriven = True
            record.gone.add(copy.message_id)
        elif record.killed_at is None and copy.duplicates:
            self._world.counts["excused: copies used up the receives of a kill's message"] += 1
        elif record.killed_at is None:
            self.breached(
                "killed in vain", f"{copy.exec_id}: its kill went to the dead-letter queue unrecorded"
            )

    def kill_recorded(self, exec_id: str) -> None:
        """DataHub holds a kill."""
        record = self.records[exec_id]
        if record.killed_at is None:
            record.killed_at = self._world.now
            self._world.bounds.kill_recorded(exec_id)

    def taken_away(self, exec_id: str) -> bool:
        """Whether no message of it is left, nor can come: the dead-letter queue has it, nobody is told any more."""
        record = self.records[exec_id]
        here = any(copy.exec_id == exec_id and not copy.signal for copy in self._world.sqs.copies)
        # Executors that stand still again and again use up any number of receives.
        excused = self._world.plan.few_receives or record.duplicated or self._world.plan.stumbles > 0
        return record.redriven and record.sent == record.gone and not here and excused

    def drained(self, worker: "Worker") -> None:
        """An executor has nothing to do."""
        pool = worker.pool
        if pool.active or pool.waiting or len(worker.active):
            self.breached("leaked", f"{pool.active} slots, {pool.waiting} tickets, {len(worker.active)} runs")

    def not_ended(self, exec_id: str) -> None:
        """The calm did not end it."""
        self.breached("not ended", f"{exec_id} is {self._world.datahub.status(exec_id)}")

    # --- inside --------------------------------------------------------------------------------------------

    def _tells_apart(self, record: Record) -> bool:
        return self._world.plan.fences or not record.many

    def _look_for_kill(self, record: Record, process: "SimProcess") -> None:
        world, executor = self._world, process.executor
        patience = 2 * settings_of(world.plan).signal_poll_interval + KILL_SLACK
        if record.killed_at is None or world.now - record.killed_at <= patience:
            return
        if self.hampered(executor, "datahub", patience + LONGEST_BLIND):
            world.counts["excused: started, as the kill could not be read"] += 1
            return
        self.breached(
            "killed in vain", f"{process.exec_id} starts, the kill was recorded at {record.killed_at:.3f}"
        )

    def _excused(self, record: Record, process: "SimProcess") -> bool:
        if not self._tells_apart(record):
            self._world.counts["excused: a server that can't tell claims apart"] += 1
            return True
        if self._world.now > process.lease_ends:
            return False
        owner = process.executor
        proof_period = settings_of(self._world.plan).proof_period
        window = proof_period + HOLE_SLACK
        if self._world.now - record.written.get(process.owner, ("", 0.0))[1] < proof_period:
            return False
        unnoticed = record.twinned or (record.duplicated and self.hampered(owner, "queue", window))
        if unnoticed and self.hampered(owner, "datahub", window):
            self._world.counts["excused: the known hole"] += 1
            return True
        return False

    def hampered(self, executor: "SimExecutor", server: str, window: float) -> bool:
        """Whether it could not reach the server, or stood still, at some moment of the last so many seconds."""
        cut = self._world.network.is_cut(executor.index, server)
        return executor.loop.paused or cut or self._world.now - executor.hampered_at[server] <= window

    def _unfounded(self, record: Record, status: str) -> str | None:
        causes: dict[str, tuple[Callable[[], bool], str]] = {
            "SUCCESS": (lambda: any(p.returncode == 0 for p in record.processes), "no process ended well"),
            "CANCELLED": (lambda: record.kill_asked, "nobody asked for it"),
            "FAILURE": (
                lambda: (
                    record.unbuilt
                    or not self._world.plan.server.properties  # there the queue's count of receives decides
                    or any(p.returncode == 1 for p in record.processes)
                    or record.attempts_spent > self._world.plan.max_attempts
                ),
                "nothing failed",
            ),
        }
        holds, words = causes.get(status, (lambda: True, ""))
        return None if holds() else words

    def breached(self, rule: str, words: str) -> None:
        """A rule is broken; the first one counts."""
        if self._world.rules is not None and rule not in self._world.rules:
            return
        self._world.tell("BREACH", rule, words)
        if self.breach is None:
            self.breach = rule, words
        self._world.kernel.done = True
