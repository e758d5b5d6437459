"""What must happen in time, and what must not happen where nothing stands in the way. Breaches go to `Checks`.

Rules, by the names that a breach is reported under:

* `kill not obeyed`: a run's process has ended soon after its kill was recorded, as its executor looks for kills; or
  after its executor received the kill's message, whether DataHub can be reached or not. Its time begins anew where
  its executor stood still, or, for the former, could not reach DataHub. An executor that is told to stop hands on
  the messages that it receives.
* `lease outlived`: a run's process has ended as soon as the queue has refused its executor the message's handle.
* `given up in vain`: no run is ended for want of its lease where its executor reached the queue all the time, and
  the queue would have hidden the message for longer.
* `prepared too late`: nothing is prepared under a claim that was last written a proof period ago.
* `taken over too late`: a request is not left without anybody who works on it for longer than a lease, while there
  is a free slot and nothing goes wrong. Requests of several messages or copies are held back for longer, and for a
  minute at most one that its executor receives again before it is through with it.
* `received in vain`: no message comes back from an executor that nothing has happened to, unless it was not yet
  through with it.
* `repeated in vain`: where nothing goes wrong, no message of a request goes to the dead-letter queue, unless it was
  sent twice and waits for a slot for longer than the queue hides it; and the request ends in its first attempt,
  unless it needs a hand-over that can't be passed on, or was sent twice and may be received a few times only; where
  but DataHub is away, for less than a claim's term, it has one process at most.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from executor.execution import LONGEST_FOREIGN_DELAY
from executor.ingestion.process import TERMINATION_GRACE
from executor.run import Phase, Run
from tests.simulation.network import SERVERS
from tests.simulation.plan import HOLD_LIMIT, settings_of

if TYPE_CHECKING:
    from tests.simulation.fleet import SimExecutor
    from tests.simulation.processes import SimProcess
    from tests.simulation.record import Record
    from tests.simulation.sqs_server import Copy
    from tests.simulation.world import World

LONGEST_BLIND = (
    5.0  # seconds that an executor waits at least, after a look for kills that failed, until the next
)
LONGEST_WAIT = 20.0  # seconds that an executor waits, after calls that failed, until the next one
LOOK_INTERVAL = 1.0  # seconds between two looks at what must happen, and whether all is over
SLACK = 3.0  # seconds that calls and the turns of loops take
AT_ONCE = 1.0  # seconds
AT_WORK = {Phase.WAITING, Phase.PREPARING, Phase.RUNNING, Phase.SETTLING}  # a slot is kept, or waited for


class Bounds:
    """Watches a schedule."""

    def __init__(self, world: "World") -> None:
        self._world = world
        settings = settings_of(world.plan)
        self._disturbed_at = 0.0
        self._lease = world.plan.lease
        self._proof_period = settings.proof_period
        self._obeyed_within = (
            max(settings.signal_poll_interval, LONGEST_BLIND) * 1.02 + TERMINATION_GRACE + SLACK
        )

    # --- the ends of processes -----------------------------------------------------------------------------

    def kill_recorded(self, exec_id: str) -> None:
        """DataHub holds a kill from now on."""
        for process in self._world.checks.records[exec_id].alive():
            self._expect_an_end("kill not obeyed", process, self._obeyed_within, lambda: None, datahub=True)

    def started(self, process: "SimProcess") -> None:
        """A process starts."""
        if self._world.checks.records[process.exec_id].killed_at is not None:
            self._expect_an_end("kill not obeyed", process, self._obeyed_within, lambda: None, datahub=True)

    def kill_received(self, executor: "SimExecutor", exec_id: str) -> None:
        """An executor reads a kill's message."""
        for process in self._world.checks.records[exec_id].alive():
            if process.executor is executor and not executor.stopping:
                within = TERMINATION_GRACE + SLACK
                self._expect_an_end("kill not obeyed", process, within, lambda: executor.stopping)

    def refused(self, executor: "SimExecutor", handle: str, words: str) -> None:
        """An executor reads that the queue did not do what it asked for under that handle."""
        if executor.worker is None or "parameter VisibilityTimeout" in words:  # it is still its own
            return
        for run in executor.worker.active:
            if run.delivery.receipt_handle == handle and not run.let_go:
                self._expect_its_end(executor, run, handle)

    def _expect_its_end(self, executor: "SimExecutor", run: Run, handle: str) -> None:
        def held_anew() -> bool:
            return run.delivery.receipt_handle != handle

        for process in self._world.checks.records[run.exec_id].alive():
            if process.executor is executor:
                self._expect_an_end("lease outlived", process, AT_ONCE, held_anew)

    def _expect_an_end(
        self,
        rule: str,
        process: "SimProcess",
        within: float,
        excused: Callable[[], object],
        *,
        datahub: bool = False,
    ) -> None:
        world, executor, generation = self._world, process.executor, process.executor.generation

        def look() -> None:
            if not process.alive or not executor.alive or executor.generation != generation or excused():
                return
            since = max(executor.woke_at, executor.hampered_at["datahub"] if datahub else 0.0)
            if executor.loop.paused or (datahub and world.network.is_cut(executor.index, "datahub")):
                since = world.now
            if since + within > world.now:
                world.kernel.at(since + within, look)
            else:
                world.checks.breached(rule, f"{process.exec_id} of {executor.name} lives")

        world.kernel.after(within, look)

    def lease_given_up(self, executor: "SimExecutor", exec_id: str) -> None:
        """A run is ended for want of its lease."""
        run = executor.worker.active.get(exec_id) if executor.worker is not None else None
        visibility = settings_of(self._world.plan).message_visibility
        if run is None or run.delivery.hold_ends - executor.loop.time() <= visibility:
            return
        if not self._world.checks.hampered(executor, "queue", visibility + SLACK):
            self._world.checks.breached("given up in vain", f"{exec_id} of {executor.name}")

    # --- the beginnings ------------------------------------------------------------------------------------

    def prepared(self, executor: "SimExecutor", exec_id: str) -> None:
        """A run is about to be prepared."""
        run = executor.worker.active.get(exec_id) if executor.worker is not None else None
        if run is None:
            return
        record, owner = self._world.checks.records[exec_id], run.reporter.claim.owner
        record.begun.add(owner)
        _, written_at = record.written.get(owner, ("", 0.0))
        latest = max(written_at, executor.woke_at)
        if latest + self._proof_period < self._world.now:
            words = f"{exec_id} of {owner}: written at {written_at:.3f}"
            self._world.checks.breached("prepared too late", words)

    def look(self) -> None:
        """Once a second: what nobody works on."""
        world = self._world
        if self._is_disturbed():
            self._disturbed_at = world.now
        for exec_id, record in world.checks.records.items():
            if record.many or record.ended or not record.sent or record.redriven or self._at_work(exec_id):
                record.worked_at = max(record.worked_at, world.now)
                continue
            due = max(record.worked_at, self._disturbed_at + LONGEST_WAIT) + self._lease + SLACK
            if world.now > due:
                world.checks.breached("taken over too late", f"{exec_id} is {world.datahub.status(exec_id)}")

    def given_back(self, copy: "Copy", seconds: float) -> None:
        """A message is hidden, for a time other than a lease: somebody will not have it before."""
        record = self._world.checks.records[copy.exec_id]
        record.worked_at = max(record.worked_at, self._world.now + min(seconds, LONGEST_FOREIGN_DELAY))

    def _at_work(self, exec_id: str) -> bool:
        for executor in self._world.executors:
            if executor.alive and not executor.loop.paused and executor.worker is not None:
                run = executor.worker.active.get(exec_id)
                if run is not None and run.phase in AT_WORK:
                    return True
        return False

    def _is_disturbed(self) -> bool:
        """Whether something went wrong since the last look, or nobody has room."""
        world, room = self._world, False
        for executor in world.executors:
            latest = max(executor.changed_at, *executor.hampered_at.values())
            cut = any(world.network.is_cut(executor.index, server) for server in SERVERS)
            if executor.loop.paused or cut or latest >= world.now - LOOK_INTERVAL:
                return True
            if executor.alive and executor.worker is not None and not executor.stopping:
                room = room or not executor.worker.pool.full
        return not room

    # --- the queue -----------------------------------------------------------------------------------------

    def handed_out(self, copy: "Copy") -> None:
        """A message is received."""
        for executor in self._world.executors:
            run = executor.worker.active.get(copy.exec_id) if executor.worker is not None else None
            if run is not None and run.let_go:
                self._world.checks.records[copy.exec_id].handed_early_at = self._world.now

    def came_back(self, copy: "Copy", received_at: float) -> None:
        """A message that was received then is handed out once more, or is about to be taken away."""
        world = self._world
        record = world.checks.records[copy.exec_id]
        beside_others = (
            world.plan.hold_limit < HOLD_LIMIT and len(world.plan.requests) > 1
        )  # a full executor looks
        early = record.handed_early_at == received_at
        if record.many or copy.signal or early or beside_others or not world.plan.fences:
            return
        quiet = not self._is_disturbed() and self._disturbed_at < received_at - self._lease - SLACK
        if quiet or world.plan.faultless:
            world.checks.breached("received in vain", f"{copy.exec_id} by {copy.message_id}")

    def repeated(self, record: "Record") -> str | None:
        """Once all is over: what a request took that it need not."""
        plan = self._world.plan
        if not plan.fences:
            return None
        scaled_down = plan.hold_limit < HOLD_LIMIT
        # Whoever waits for a slot for longer than the queue hides a message takes a receive more each time.
        if plan.faultless and record.redriven and not (scaled_down and record.sent_twice):
            return "a message of it went to the dead-letter queue"
        # The fresh message, by one that can't pass it on, or has another one of the request.
        kept_waiting = scaled_down and ((record.sent_twice and plan.few_receives) or not plan.server.patches)
        if plan.faultless and not kept_waiting and record.attempts > 1:
            return f"{record.attempts} attempts, though nothing went wrong"
        if plan.long_outage and len(record.processes) > 1:
            return f"{len(record.processes)} processes, though only DataHub was away"
        return None
