"""One schedule: a fleet, a queue, a DataHub, and what goes wrong between them, all from one seed."""

import gc
import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.simulation import shipped
from tests.simulation.bounds import LOOK_INTERVAL, Bounds
from tests.simulation.checks import TERMINAL, Checks
from tests.simulation.datahub_server import RECIPE, DataHubServer, Entity
from tests.simulation.fleet import SimExecutor
from tests.simulation.kernel import Kernel
from tests.simulation.network import Network
from tests.simulation.plan import EXECUTOR_ID, Plan, Request, draw, settings_of
from tests.simulation.record import Record
from tests.simulation.sqs_server import SqsServer

LONGEST_CALM = 15_000.0  # seconds in which everything must have ended
SCHEDULES_A_COLLECTION = 20
STUCK_AFTER = 20.0  # seconds of the processor, in which a schedule has ended a thousand times over
FAR = 20.0  # seconds: a message that is hidden for longer, when all has ended, is not waited for


@dataclass(slots=True)
class Outcome:
    """What came of a schedule."""

    seed: int
    breach: tuple[str, str] | None
    counts: Counter[str]
    ended_at: float  # virtual seconds
    steps: int
    story: list[str] = field(repr=False)


class World:
    """Everything in a schedule; `chance` decides all that the plan leaves open. `rules` None: all of them."""

    def __init__(self, plan: Plan, *, recorded: bool = False, rules: Collection[str] | None = None) -> None:
        self.plan = plan
        self.rules = rules
        self.visibility = settings_of(plan).message_visibility
        self.chance = random.Random(plan.seed ^ 0x5EED)
        self.kernel = Kernel()
        self.counts: Counter[str] = Counter()
        self.calm = False
        self.story: list[str] = []
        self.recorded = recorded
        self.network = Network(self)
        self.sqs = SqsServer(self)
        self.datahub = DataHubServer(self)
        self.checks = Checks(self)
        self.bounds = Bounds(self)
        self.executors = [SimExecutor(self, index) for index in range(plan.executors)]
        self._unsent = len(plan.requests)

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self.kernel.now

    def tell(self, who: str, *words: object) -> None:
        """Put a line into the story, if anybody wants to read it."""
        if self.recorded:
            said = " ".join(f"{word:.3f}" if isinstance(word, float) else str(word) for word in words)
            self.story.append(f"{self.kernel.now:10.3f}  {who:<14} {said}")

    def stumble(self, executor: SimExecutor) -> None:
        """Now and then an executor is stopped in the middle of something."""
        if not self.calm and self.plan.stumbles and self.chance.random() < self.plan.stumbles:
            executor.pause(self._pause_length())

    def run(self) -> Outcome:
        """Let it happen."""
        plan, kernel = self.plan, self.kernel
        self.tell("plan", plan)
        for executor in self.executors:
            kernel.at(self.chance.uniform(0.0, 2.0), executor.start)
        for request in plan.requests:
            self._expect(request)
        for when, kind, index in plan.faults:
            kernel.at(when, self._fault, kind, self.executors[index])
        kernel.at(plan.calm, self._calm_down)
        kernel.after(LOOK_INTERVAL, self._look)
        with shipped.prepared(self):
            kernel.run(plan.calm + LONGEST_CALM)
            if self.checks.breach is None and not kernel.done:
                self._complain()
            for exec_id in self.datahub.entities:
                if not self._ended(exec_id):
                    self.counts["left unended to the dead-letter queue"] += self.checks.breach is None
            for executor in self.executors:
                executor.loop.close()
        return Outcome(plan.seed, self.checks.breach, self.counts, kernel.now, kernel.steps, self.story)

    # --- requests --------------------------------------------------------------------------------------------

    def _expect(self, request: Request) -> None:
        self.datahub.entities[request.exec_id] = Entity()
        self.checks.records[request.exec_id] = Record()
        self.kernel.at(request.at, self._submit, request)
        if request.twice is not None:
            self.kernel.at(request.at + request.twice, self._submit_again, request)
        if request.killed is not None:
            self.kernel.at(request.at + request.killed, self._kill, request)

    def _submit(self, request: Request) -> None:
        self._unsent -= 1
        self._send(request)

    def _submit_again(self, request: Request) -> None:
        self.counts["requests sent twice"] += 1
        self.checks.sent_twice(request.exec_id)
        self._send(request)

    def _send(self, request: Request) -> None:
        if request.kind == "reference":
            body: dict[str, Any] = {"urn": f"urn:li:dataHubExecutionRequest:{request.exec_id}"}
        else:
            arguments = {"recipe": RECIPE, "version": "1.5.0"}
            body = {
                "executor_id": EXECUTOR_ID, "exec_id": request.exec_id, "name": "RUN_INGEST", "args": arguments,
            }  # fmt: skip
        self.sqs.send(json.dumps(body), request.exec_id, {}, signal=False)

    def _kill(self, request: Request) -> None:
        self.counts["kills"] += 1
        self.checks.records[request.exec_id].kill_asked = True
        if request.kill_by in ("aspect", "both"):
            self.datahub.kill(request.exec_id)
        if request.kill_by in ("message", "both"):
            body = {"exec_id": request.exec_id, "executor_id": EXECUTOR_ID, "signal": "KILL"}
            self.sqs.send(json.dumps(body), request.exec_id, {}, signal=True)

    # --- faults ----------------------------------------------------------------------------------------------

    def _fault(self, kind: str, executor: SimExecutor) -> None:
        if self.calm:
            return
        self.counts[f"fault: {kind}"] += 1
        away = self.now + self.plan.lease * self.chance.choice((0.2, 0.7, 1.5, 3.0))
        if kind == "cut_datahub_long":
            away = self.now + self.plan.claim_term * self.chance.uniform(1.0, 10.0)
        if kind == "cut_datahub_half_an_hour":
            away = self.plan.calm
            alive = sum(len(record.alive()) for record in self.checks.records.values())
            self.counts["processes as DataHub went away for half an hour"] += alive
        if kind == "crash":
            self._crash(executor)
        elif kind == "pause":
            self._pause(executor)
        elif kind == "stop":
            executor.stop()
            self.kernel.after(self.chance.uniform(0, 2 * self.plan.lease), executor.start)
        elif kind == "hurry":
            executor.stop()
            self.kernel.after(self.chance.uniform(0, 5), executor.hurry)
            self.kernel.after(self.chance.uniform(5, 2 * self.plan.lease), executor.start)
        else:
            server = "queue" if "queue" in kind else "datahub"
            silent = self.chance.random() < 0.5
            self.tell("network", kind, executor.name, "until", away)
            for one in self.executors if kind.endswith(("all", "hour")) else [executor]:
                self.network.cut(one.index, server, away, silent=silent)

    def _crash(self, executor: SimExecutor) -> None:
        if self.chance.random() < 0.5:
            executor.crash()
        else:  # a few callbacks from now, between two of them
            executor.loop.trap = self.chance.randrange(30), executor.crash
        self.kernel.after(self.chance.uniform(0.5, 2 * self.plan.lease), executor.start)

    def _pause(self, executor: SimExecutor) -> None:
        length = self._pause_length()
        if self.chance.random() < 0.5:
            executor.pause(length)
        else:
            executor.loop.trap = self.chance.randrange(30), lambda: executor.pause(length)

    def _pause_length(self) -> float:
        return self.plan.lease * self.chance.choice((0.01, 0.1, 0.5, 1.0, 1.5, 3.0))

    # --- the end ---------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        """From now on nothing goes wrong."""
        self.calm = True
        self.network.restore()
        self.tell("world", "is calm")
        for executor in self.executors:
            executor.loop.trap = None
            executor.wake(executor.loop)
        self.kernel.after(self.plan.lease, self._start_all)

    def _start_all(self) -> None:
        for executor in self.executors:
            executor.start()

    def _look(self) -> None:
        self.bounds.look()
        if self._unsent == 0 and self._over():
            for executor in self.executors:
                if executor.alive and executor.worker is not None:
                    self.checks.drained(executor.worker)
            for exec_id, record in self.checks.records.items():
                if reason := self.bounds.repeated(record):
                    self.checks.breached("repeated in vain", f"{exec_id}: {reason}")
            self.kernel.done = True
        else:
            self.kernel.after(LOOK_INTERVAL, self._look)

    def _over(self) -> bool:
        if any(copy.visible_at < self.now + FAR for copy in self.sqs.copies):
            return False
        for exec_id in self.datahub.entities:
            if not self._ended(exec_id) and not self.checks.taken_away(exec_id):
                return False
        return all(
            not executor.alive or (executor.worker is not None and not len(executor.worker.active))
            for executor in self.executors
        )

    def _ended(self, exec_id: str) -> bool:
        """Where conditions are ignored, a late write may cover the end: there it counts that there was one."""
        ended = self.checks.records[exec_id].ended and not self.plan.server.conditions
        return ended or self.datahub.status(exec_id) in TERMINAL

    def _complain(self) -> None:
        for exec_id in self.datahub.entities:
            if not self._ended(exec_id) and not self.checks.taken_away(exec_id):
                self.checks.not_ended(exec_id)
                return
        self.checks.broken("an executor does not come to rest, or a message is never let go")


def simulate(seed: int, *, recorded: bool = False, rules: Collection[str] | None = None) -> Outcome:
    """Run the schedule of a seed; look at some rules alone, if told so."""
    world = World(draw(seed), recorded=recorded, rules=rules)
    with _in_time(world):
        return world.run()


class StuckError(BaseException):
    """A callback does not come to its end: the shipped code spins without waiting for anything."""


@contextmanager
def _in_time(world: World) -> Iterator[None]:
    """A callback that never returns is a breach, too. What counts is processor time: we may be stopped, or wait."""

    def interrupt(_number: int, _frame: object) -> None:
        world.checks.broken(f"a callback at {world.now:.3f} does not return")
        raise StuckError

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, STUCK_AFTER)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextmanager
def collected_rarely() -> Iterator[Callable[[], None]]:
    """Collect garbage now and then alone: what this gives is called after each schedule."""
    number = 0

    def collect() -> None:
        nonlocal number
        number += 1
        if number % SCHEDULES_A_COLLECTION == 0:
            gc.collect()

    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield collect
    finally:
        gc.enable()
        gc.unfreeze()
