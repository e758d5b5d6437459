"""The fleet: tasks that start, take runs, are stopped, and hand over what they can't end. Discrete events."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from benchmarks.scaling.load import DAY, HOUR, SEED, Load
from benchmarks.scaling.metrics import PERIOD, Minute
from benchmarks.scaling.policy import AutoScaling, Settings

START = (45.0, 65.0)  # seconds from a task's launch until it takes runs
LAUNCHES_A_MINUTE = 500  # of one service, on Fargate
DRAIN = 100.0  # seconds, DATAHUB_EXECUTOR_DRAIN_TIMEOUT
LINGER = 30.0  # seconds that the protection is kept after a task's last run
LAST_RECEIVE = 20.0  # seconds that an idle task takes to stop
ATTEMPTS = 4  # DATAHUB_EXECUTOR_MAX_ATTEMPTS restarts, and the first
WARM_UP = 1800.0  # seconds before midnight from which on the policy runs
PATIENCE = DAY  # seconds after the load's own time: what has not run by then never will


@dataclass(eq=False, slots=True)
class Run:
    """A request on its way."""

    sent: float
    seconds: float
    began: float = -1.0  # the attempt under way
    attempts: int = 0


@dataclass(eq=False, slots=True)
class Task:
    """One executor."""

    launched: float
    runs: list[Run] = field(default_factory=list)
    ready: bool = False
    stopping: bool = False
    idle_since: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What came of it. Times are in seconds; `task_seconds` are paid for, those within the load's own time."""

    settings: Settings
    waits: list[float] = field(default_factory=list)
    peak: int = 0
    task_seconds: float = 0.0
    run_seconds: float = 0.0  # of work, what was interrupted left out
    interrupted: int = 0
    lost_seconds: float = 0.0  # of work that was interrupted, and has to be done again
    failed: int = 0  # requests whose attempts were used up
    unserved: int = 0  # requests for which there was never a task
    peak_in_flight: int = 0
    deployed_seconds: float = 0.0  # from a deployment's begin until the last old task is gone
    interrupted_by_deployment: int = 0

    def waited(self, share: float) -> float:
        """Seconds that so large a share of the requests waited at most before they first started."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Fleet:
    """One simulated service."""

    def __init__(self, load: Load, settings: Settings, deploy_at: float | None = None) -> None:
        """At `deploy_at` a rolling deployment begins: 100 % healthy, 200 % at most."""
        self.outcome = Outcome(settings)
        self._load = load
        self._settings = settings
        self._chance = random.Random(SEED)
        self._scaling = AutoScaling(settings, -WARM_UP - load.unused)
        self._now = -WARM_UP
        self._queue: deque[Run] = deque()
        self._tasks: dict[Task, None] = {}  # a set in the order of their launch
        self._old: set[Task] = set()  # what a deployment is to replace
        self._deploy_at = deploy_at
        self._free: list[Task] = []  # each as often as it has free slots; also some that take nothing more
        self._in_flight = 0
        self._pending = len(load.requests)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def run(self) -> Outcome:
        """Go through the day, and on until all is done that was asked for."""
        self._scale()
        for task in self._tasks:
            self._ready(task)
        self._at(-WARM_UP, self._minute)
        if self._deploy_at is not None:
            self._at(self._deploy_at, self._deploy)
        events, requests, number = self._events, self._load.requests, 0
        while self._now < self._load.until + (PATIENCE if self._pending else 0):
            if number < len(requests) and requests[number].sent <= events[0][0]:
                self._now = requests[number].sent
                self._queue.append(Run(*requests[number]))
                number += 1
                self._take()
            else:
                self._now, _, happen = heapq.heappop(events)
                happen()
        for task in [*self._tasks]:
            self._gone(task)
        self.outcome.unserved = len(requests) - len(self.outcome.waits)
        return self.outcome

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, happen))

    # --- runs -----------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Have the tasks that wait for messages receive them; which one gets a message is chance."""
        free, queue = self._free, self._queue
        while queue and free:
            place = int(self._chance.random() * len(free))
            task, free[place] = free[place], free[-1]
            free.pop()
            if not task.stopping:
                self._begin(task, queue.popleft())

    def _begin(self, task: Task, run: Run) -> None:
        if not run.attempts:
            self.outcome.waits.append(self._now - run.sent)
        run.began, run.attempts = self._now, run.attempts + 1
        task.runs.append(run)
        self._in_flight += 1
        self._at(self._now + run.seconds, partial(self._end, task, run, run.attempts))

    def _end(self, task: Task, run: Run, attempt: int) -> None:
        if run.attempts != attempt or run not in task.runs:
            return  # it was interrupted
        task.runs.remove(run)
        self.outcome.run_seconds += run.seconds
        self._in_flight -= 1
        self._pending -= 1
        if task.stopping:
            if not task.runs:
                self._gone(task)
            return
        self._free.append(task)
        if not task.runs:
            self._idle(task)
        self._take()

    def _idle(self, task: Task) -> None:
        task.idle_since = self._now
        if self._settings.protected:
            self._at(self._now + LINGER, self._shrink)

    # --- tasks ----------------------------------------------------------------------------------------------

    def _minute(self) -> None:
        running = sum(task.ready and not task.stopping for task in self._tasks)
        minute = Minute(self._now, len(self._queue), self._in_flight, running)
        self._scaling.minute(minute, deploying=bool(self._old))
        self._scale()
        self.outcome.peak_in_flight = max(self.outcome.peak_in_flight, self._in_flight)
        self._at(self._now + PERIOD, self._minute)

    def _deploy(self) -> None:
        self._old = {task for task in self._tasks if not task.stopping}
        self._scale()
        if self._settings.lift_after is not None:
            self._at(self._now + self._settings.lift_after, self._lift)

    def _lift(self) -> None:
        """Take the protection from what is old, by hand."""
        for task in [*self._tasks]:
            if task in self._old and not task.stopping:
                self._stop(task)

    def _scale(self) -> None:
        """Bring the tasks to the desired count, as ECS does."""
        for number in range(self._scaling.desired - len(self._kept())):
            task = Task(self._now)
            self._tasks[task] = None
            wait = number // LAUNCHES_A_MINUTE * PERIOD + self._chance.uniform(*START)
            self._at(self._now + wait, partial(self._ready, task))
        self.outcome.peak = max(self.outcome.peak, len(self._tasks))
        self._shrink()

    def _kept(self) -> list[Task]:
        """The tasks that count towards the desired number: of a deployment, the new ones."""
        return [task for task in self._tasks if not task.stopping and task not in self._old]

    def _shrink(self) -> None:
        """Stop what is too many: of the tasks that are not protected, whichever."""
        kept = self._kept()
        if not self._old:
            surplus, among = len(kept) - self._scaling.desired, kept
        elif all(task.ready for task in kept):
            among = [task for task in self._tasks if task in self._old and not task.stopping]
            surplus = len(among)
        else:
            return
        if surplus > 0:
            stoppable = [task for task in among if not self._is_protected(task)]
            for task in self._chance.sample(stoppable, min(surplus, len(stoppable))):
                self._stop(task)

    def _is_protected(self, task: Task) -> bool:
        return self._settings.protected and (bool(task.runs) or self._now < task.idle_since + LINGER)

    def _ready(self, task: Task) -> None:
        if task.stopping or task.ready:
            return
        task.ready, task.idle_since = True, -HOUR  # nothing protects it before its first run
        self._free.extend([task] * self._settings.slots)
        self._take()
        if self._old:
            self._shrink()

    def _stop(self, task: Task) -> None:
        """SIGTERM."""
        task.stopping = True
        if task.runs:
            self._at(self._now + DRAIN, partial(self._hand_over, task))
        else:
            self._at(self._now + LAST_RECEIVE, partial(self._gone, task))

    def _hand_over(self, task: Task) -> None:
        if task in self._old:
            self.outcome.interrupted_by_deployment += len(task.runs)
        for run in task.runs:
            self.outcome.interrupted += 1
            self.outcome.lost_seconds += self._now - run.began
            self._in_flight -= 1
            if run.attempts < ATTEMPTS:
                self._queue.append(run)
            else:
                self.outcome.failed += 1
                self._pending -= 1
        task.runs = []
        self._gone(task)
        self._take()

    def _gone(self, task: Task) -> None:
        if task in self._tasks:
            del self._tasks[task]
            ends = min(self._now, self._load.until)
            self.outcome.task_seconds += max(0.0, ends - max(task.launched, 0.0))
        if task in self._old:
            self._old.remove(task)
            if not self._old:
                self.outcome.deployed_seconds = self._now - (self._deploy_at or 0.0)
