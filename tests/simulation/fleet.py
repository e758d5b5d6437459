"""The executors: the shipped `Worker` and all that it holds, each on a loop of its own."""

import math
import random
import traceback
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from executor.datahub.client import DataHub
from executor.operations.metrics import Metrics
from executor.operations.reachability import Reachability
from executor.queue.sqs import SqsQueue
from executor.stopping import StopRequest
from executor.worker import Worker
from tests.simulation.clients import QUEUE_URL, SimTransport, SqsClient
from tests.simulation.kernel import LATENESS, Handle, Loop
from tests.simulation.network import SERVERS
from tests.simulation.plan import EPOCH, EXECUTOR_ID, settings_of
from tests.simulation.processes import SimIngestion, SimProcess

if TYPE_CHECKING:
    from asyncio import Future

    from tests.simulation.world import World

LONG_AGO = -1000.0  # seconds


class SimExecutor:
    """One executor's process, and those that follow it under its name."""

    def __init__(self, world: "World", index: int) -> None:
        self.index = index
        self.generation = 0
        self.alive = False
        self.processes: list[SimProcess] = []
        self.on_wake: list[Callable[[], None]] = []
        self.hampered_at = dict.fromkeys(SERVERS, LONG_AGO)  # it stood still, or failed to reach it
        self.woke_at = LONG_AGO
        self.changed_at = LONG_AGO  # it started, was told to stop, or died
        self.worker: Worker | None = None
        self._world = world
        self._stopping: StopRequest | None = None
        self._tokens = 0
        self.loop = self._new_loop()

    @property
    def name(self) -> str:
        """Which one, and its how manieth life."""
        return f"executor {self.index}.{self.generation}"

    def start(self) -> None:
        """Start its process, unless it is there."""
        if self.alive:
            return
        self.alive = True
        self.generation += 1
        self.processes = []
        self.hampered_at = dict.fromkeys(SERVERS, LONG_AGO)
        self.loop = self._new_loop()
        self.changed_at = self._world.now
        self._world.tell(self.name, "starts")
        self.loop.post(self._begin, self.loop)

    def _new_loop(self) -> Loop:
        return Loop(self._world.kernel, self.index, self._unhandled, self._world.plan.rates[self.index])

    def _begin(self, loop: Loop) -> None:
        loop.create_task(self._serve(loop)).add_done_callback(self._ended)

    async def _serve(self, loop: Loop) -> None:
        world, plan = self._world, self._world.plan
        settings = settings_of(plan)
        self._stopping = StopRequest()
        self.worker = Worker(
            settings,
            host=self.name,
            metrics=_metrics(),
            queue_reach=Reachability("queue"),
            beat=_beat,
            clock=lambda: EPOCH + loop.time(),
            chance=random.Random(world.chance.getrandbits(32)),
            token=self._token,
            claim_term=plan.claim_term,
        )
        queue = SqsQueue(
            SqsClient(world, self), QUEUE_URL, settings.message_visibility, settings.message_hold_limit
        )
        queue.max_receives = math.inf if plan.redrive is None else plan.redrive
        datahub = DataHub(SimTransport(world, self))
        await self.worker.serve(queue, datahub, SimIngestion(world, self, settings), self._stopping)

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping is not None and self._stopping.stop.is_set()

    def _ended(self, task: "Future[Any]") -> None:
        self.alive, self.changed_at = False, self._world.now
        if not task.cancelled() and (error := task.exception()) is not None:
            self._world.tell(self.name, "".join(traceback.format_exception(error)))
            self._world.checks.broken(f"{self.name} ended with {error!r}")
        self._world.tell(self.name, "has stopped")
        if self.worker is not None:
            self._world.checks.drained(self.worker)
        for process in self.processes:
            process.orphaned()
        if self._world.calm:
            self._world.kernel.after(1.0, self.start)

    def _token(self) -> str:
        self._tokens += 1
        return f"claim-{self.index}-{self.generation}-{self._tokens}"

    def _unhandled(self, words: str) -> None:
        self._world.checks.broken(f"{self.name}: {words}")

    # --- faults ---------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """SIGKILL."""
        if not self.alive:
            return
        self._world.counts["crashes"] += 1
        self._world.tell(self.name, "is killed")
        self.alive, self.changed_at = False, self._world.now
        self.on_wake.clear()
        self.loop.close()
        for process in self.processes:
            process.orphaned()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after so many seconds."""
        if not self.alive or self.loop.paused:
            return
        self._world.counts["pauses"] += 1
        self._world.tell(self.name, "is stopped for", round(seconds, 3))
        self.loop.paused = True
        self._world.kernel.after(seconds + LATENESS, self.wake, self.loop)

    def wake(self, loop: Loop) -> None:
        """SIGCONT."""
        if loop.closed or not loop.paused:
            return
        self._world.tell(self.name, "goes on")
        self.hampered_at = dict.fromkeys(SERVERS, self._world.now)
        self.woke_at = self._world.now
        sends, self.on_wake = self.on_wake, []
        for send in sends:
            send()
        loop.wake(self._order)

    def _order(self, missed: list[Handle]) -> list[Handle]:
        """Some loops look at their timers first, others at their sockets."""
        due = self._world.chance.choice((None, True, False))
        return missed if due is None else sorted(missed, key=lambda handle: (handle.context is None) is due)

    def stop(self) -> None:
        """SIGTERM."""
        if self.alive and self._stopping is not None:
            self._world.counts["stops"] += 1
            self._world.tell(self.name, "is told to stop")
            self.changed_at = self._world.now
            self.loop.post(self._stopping.stop.set)

    def hurry(self) -> None:
        """SIGTERM once more."""
        if self.alive and self._stopping is not None and self.stopping:
            self._world.counts["hurries"] += 1
            self.changed_at = self._world.now
            self.loop.post(self._stopping.hurry.set)

    def post_to(self, future: "Future[Any]", answer: object) -> None:
        """An answer arrives for whoever waits for it, if it is still there."""
        loop: Any = future.get_loop()
        loop.post(_settle, future, answer)


def _settle(future: "Future[Any]", answer: object) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


@cache
def _metrics() -> Metrics:
    return Metrics(EXECUTOR_ID)


def _beat(_duty: str, _pause: float) -> None:
    return
