"""The processes of runs: they live on while their executor is stopped, and a guard ends them in time."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint
from packaging.version import Version

from executor.ingestion.guard import KILL_MARGIN, Guard
from executor.ingestion.ingest import Ended, IngestError, Ingestion, Prepared
from executor.ingestion.masking import MaskRegistry
from executor.ingestion.output import OutputBuffer
from executor.ingestion.recipe import Recipe
from executor.ingestion.venv import Venv, VenvCache
from executor.lease import Lease, LeaseEndedError
from executor.requests import ExecutionRequest
from executor.settings import Settings
from tests.simulation.plan import settings_of

if TYPE_CHECKING:
    from tests.simulation.fleet import SimExecutor
    from tests.simulation.kernel import Handle
    from tests.simulation.world import World

ORPHAN_LIMIT = 5.0  # seconds after its executor's death within which the guard has killed a tree
ORPHAN_SHARE = 0.75  # of a proof period, where a short lease makes that less than it takes with the usual one
GRACE_LOOKS = 0.5  # seconds between two looks at a grace that may get shorter
GUARD_SPARE = 0.4  # seconds, less than the guard's margin: how late it may be
SHARE_OF_GOOD_ENDS = 0.75
SHARE_OF_BAD_BUILDS = 0.05

_NOWHERE = Path("/nonexistent")
_VENV = Venv(_NOWHERE, Version("1.5.0"), _NOWHERE, ("datahub",))


class SimProcess:
    """One process tree."""

    def __init__(self, world: "World", executor: "SimExecutor", exec_id: str, lease: Lease) -> None:
        self.exec_id = exec_id
        self.executor = executor
        self.generation = executor.generation
        self.owner = ""  # of the claim that it runs under
        self.lease = lease
        self.alive = True
        self.returncode: int | None = None
        self.guard_ended = False
        self.exited: anyio.Event = anyio.Event()
        self._world = world
        self._guarded: Handle | None = None
        self._ends = world.kernel.after(world.chance.uniform(0.01, world.plan.longest_run), self._finish)
        self.watch(lease.ends)

    def watch(self, ends: float) -> None:
        """The guard is told when the lease ends."""
        if self._guarded is not None:
            self._guarded.cancel()
            self._guarded = None
        if ends < float("inf") and self.alive:
            late = GUARD_SPARE * self._world.chance.random()
            moment = self.executor.loop.moment(ends - KILL_MARGIN + late)
            self._guarded = self._world.kernel.at(moment, self._guard_kills)

    @property
    def lease_ends(self) -> float:
        """When its lease ends, by the world's clock; it and its guard go by its executor's."""
        return self.lease.ends / self._world.plan.rates[self.executor.index]

    def orphaned(self) -> None:
        """Its executor died."""
        limit = min(ORPHAN_LIMIT, ORPHAN_SHARE * settings_of(self._world.plan).proof_period)
        self._world.kernel.after(limit * self._world.chance.random(), self.end, -9)

    def end(self, returncode: int) -> None:
        """It ended, or is killed."""
        if not self.alive:
            return
        self.alive = False
        self.returncode = returncode
        self._ends.cancel()
        if self._guarded is not None:
            self._guarded.cancel()
        self._world.tell("process", self.exec_id, "of", self.executor.name, "ended", returncode)
        if self.executor.generation == self.generation:
            self.executor.loop.post(self.exited.set)

    def _finish(self) -> None:
        self.end(0 if self._world.chance.random() < SHARE_OF_GOOD_ENDS else 1)

    def _guard_kills(self) -> None:
        self.guard_ended = True
        self._world.counts["killed by the guard"] += 1
        self._world.bounds.lease_given_up(self.executor, self.exec_id)
        self.end(-9)


class SimIngestion(Ingestion):
    """Recipes, secrets and masking are the shipped ones; venvs and processes take virtual time alone."""

    def __init__(self, world: "World", executor: "SimExecutor", settings: Settings) -> None:
        super().__init__(settings, {}, [], _venvs(), _guard(), MaskRegistry())
        self._world = world
        self._executor = executor

    async def prepare(
        self, request: ExecutionRequest, recipe: Recipe, secrets: Mapping[str, str], output: OutputBuffer
    ) -> Prepared:
        chance = self._world.chance
        self._world.bounds.prepared(self._executor, request.exec_id)
        await anyio.sleep(chance.uniform(0.0, self._world.plan.longest_build))
        if chance.random() < SHARE_OF_BAD_BUILDS:
            self._world.checks.unbuilt(request.exec_id)
            raise IngestError("the venv could not be built")
        output.feed(b"built\n")
        return Prepared(request, recipe, secrets, _VENV)

    async def run(
        self,
        prepared: Prepared,
        output: OutputBuffer,
        *,
        lease: Lease,
        grace: Callable[[], float],
        at_exit: Callable[[], None],
    ) -> Ended:
        world, exec_id = self._world, prepared.request.exec_id
        world.stumble(self._executor)
        await checkpoint()  # where it may be stopped, between the look at the lease and the start
        if self._executor.loop.time() >= lease.ends - KILL_MARGIN:
            raise LeaseEndedError("the lease was over before the run began")
        process = SimProcess(world, self._executor, exec_id, lease)
        self._executor.processes.append(process)
        world.checks.started(process)
        with lease.followed(process.watch):
            try:
                await self._attend(process, output)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await self._end(process, grace)
                raise
        at_exit()
        if process.guard_ended:
            raise LeaseEndedError("the run was ended: its lease was over")
        code = process.returncode
        return Ended(code == 0, f"it ended with exit code {code}", (), None, _nothing)

    async def _attend(self, process: SimProcess, output: OutputBuffer) -> None:
        output.feed(b"begun\n")
        await process.exited.wait()
        output.feed(b"done\n")

    async def _end(self, process: SimProcess, grace: Callable[[], float]) -> None:
        """SIGTERM, then SIGKILL."""
        world, told_at = self._world, anyio.current_time()
        if grace() > 0 and world.chance.random() >= world.plan.refuses_term:
            world.kernel.after(world.chance.uniform(0.0, 12.0), process.end, -15)
        while process.alive and (left := told_at + grace() - anyio.current_time()) > 0:
            with anyio.move_on_after(min(GRACE_LOOKS, left)):
                await process.exited.wait()
        process.end(-9)


@cache
def _venvs() -> VenvCache:
    return VenvCache(root=_NOWHERE, bundled=_NOWHERE, uv=_NOWHERE, environ={})


@cache
def _guard() -> Guard:
    return Guard()


async def _nothing() -> None:
    return
