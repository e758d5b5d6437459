"""The warm parents of one executor: which there are, for how long, and how much memory they take."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from executor.ingestion.adoption import Adoption
from executor.ingestion.environment import difference, shared_environment
from executor.ingestion.guard import Guard
from executor.ingestion.output import in_units
from executor.ingestion.venv import Venv
from executor.ingestion.warm import WarmParent, identity
from executor.lack import reason

LOOK_PACE = 60.0  # seconds between two looks at the venv of a parent that nobody asks for
MOST_STARTS = 4  # of parents that one run waits for
MOST_DEATHS = (
    3  # of the parents of a venv and a source type within DEATHS_COUNT, before no other one is tried
)
DEATHS_COUNT = 900.0  # seconds; so long, or until one has forked a run

log = structlog.get_logger()

_Key = tuple[Path, str]  # a venv's folder, and a source type


class WarmParents:
    """Parents by venv and source type, the one that was asked for last at the end."""

    def __init__(
        self, environment: Callable[[Venv], Mapping[str, str]], guard: Guard, budget: int, idle: float
    ) -> None:
        """`environment` is what a venv's runs have in common; `budget` is bytes, `idle` seconds."""
        self._environment = environment
        self._guard = guard
        self._budget = budget
        self._idle = idle
        self._parents: dict[_Key, _Kept] = {}
        self._names: set[str] = set()  # of variables that some import looked at
        self._looked_at: defaultdict[_Key, set[str]] = defaultdict(set)
        self._refused: dict[_Key, tuple[object, ...]] = {}
        self._deaths: dict[tuple[object, ...], list[float]] = {}  # when, by key and identity
        self._ahead: set[_Key] = set()  # of parents that are kept though nobody asks for them
        self._said: set[tuple[_Key, str]] = set()
        self._adoption = Adoption()
        self._adopts = False
        self._tasks: TaskGroup

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Have parents meanwhile. Leaving it ends them, not the runs that were forked."""
        with self._adoption.open() as self._adopts:
            if not self._adopts:
                log.warning("all_runs_start_cold", reason="the system does not let a process adopt others")
        async with anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._parents)

    @property
    def memory(self) -> int:
        """Bytes that they take, measured (PSS) before runs shared any of it."""
        return sum(kept.parent.memory for kept in self._parents.values())

    async def find(self, venv: Venv, source_type: str, env: Mapping[str, str]) -> WarmParent | None:
        """The parent for a run with this environment, once it is ready; None if the run must start cold."""
        key = (venv.path, source_type)
        if not self._adopts or self._differs(key, env, self._given(venv)):
            return None
        try:
            parent = await self._settled(key, venv)
        except OSError as error:
            self._say(key, f"its venv can't be looked at: {reason(error)}")
            return None
        if parent is None or self._differs(key, env, parent.env):
            return None
        return parent

    async def keep(
        self,
        venv: Venv,
        source_type: str,
        env: Mapping[str, str],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Have the parent however long no run asks for it, and another one where it ended.

        Has started once it is there, or can't be. Returns once it had to make room: from then on it is as any.
        """
        key = (venv.path, source_type)
        self._ahead.add(key)
        parent = await self.find(venv, source_type, env)
        task_status.started()
        while key in self._ahead:
            if parent is not None:
                await parent.gone()
            await anyio.sleep(LOOK_PACE)
            if key in self._ahead:
                parent = await self.find(venv, source_type, env)

    def _differs(self, key: _Key, env: Mapping[str, str], given: Mapping[str, str]) -> bool:
        name = difference(env, given, self._looked_at[key])
        if name is not None:
            self._say(key, _counts(name))
        return name is not None

    def not_forked(self, parent: WarmParent, why: str) -> None:
        """A parent did not give a run its process."""
        self._say(parent.key, why)

    async def _settled(self, key: _Key, venv: Venv) -> WarmParent | None:
        for _ in range(MOST_STARTS):
            now = identity(venv)
            if self._refused.get(key) == now or self._dies(key, now):
                return None
            kept = self._parents.get(key)
            if kept is not None and (kept.parent.ended or kept.identity != now):
                self._end(key)
                kept = None
            if kept is None:
                kept = self._parents[key] = _Kept(self._new(key, venv), venv, now)
                self._tasks.start_soon(self._keep, key, kept)
            self._parents[key] = self._parents.pop(key)  # to the end
            kept.parent.used = anyio.current_time()
            await kept.parent.settled()
            if kept.parent.unfit is None:
                self._learn(key, kept)
                self._make_room(kept)
            if kept.parent.unfit is not None:
                self._say(key, kept.parent.unfit)
                if not kept.parent.died:
                    self._refused[key] = kept.identity
                return None
            if not kept.parent.ended:
                return kept.parent
        return None

    def _new(self, key: _Key, venv: Venv) -> WarmParent:
        return WarmParent(venv, key[1], self._given(venv), self._guard, self._adoption)

    def _given(self, venv: Venv) -> dict[str, str]:
        return shared_environment(self._environment(venv), self._names)

    def _learn(self, key: _Key, kept: "_Kept") -> None:
        """What a parent looked at, and could have been given, the next one is given."""
        self._looked_at[key] |= kept.parent.names
        self._names |= kept.parent.names
        given = self._given(kept.venv)
        name = difference(self._environment(kept.venv), given, self._looked_at[key])
        if name is not None:
            kept.parent.unfit = _counts(name)
        if name is not None or given != kept.parent.env:
            kept.parent.end()

    def _make_room(self, newest: "_Kept") -> None:
        for key, kept in list(self._parents.items()):
            if self.memory <= self._budget:
                return
            if kept is not newest and kept.parent.memory:
                self._ahead.discard(key)
                self._end(key)
        if self.memory > self._budget and newest.parent.unfit is None:
            newest.parent.unfit = (
                f"it takes {in_units(newest.parent.memory)} of memory (DATAHUB_EXECUTOR_WARM_MEMORY)"
            )
            newest.parent.end()

    async def _keep(self, key: _Key, kept: "_Kept") -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, key, kept)
                await kept.parent.live()
                tasks.cancel_scope.cancel()
        except Exception:  # the edge of a parent: runs go on without
            log.exception("warm_parent_failed_internally", venv=str(key[0]), source_type=key[1])
        finally:
            if self._parents.get(key) is kept:
                del self._parents[key]
            self._count(key, kept)

    def _count(self, key: _Key, kept: "_Kept") -> None:
        if kept.parent.forked:
            self._deaths.pop((key, kept.identity), None)
        if kept.parent.died:
            self._deaths.setdefault((key, kept.identity), []).append(anyio.current_time())
            if self._dies(key, kept.identity):
                self._say(
                    key,
                    f"{MOST_DEATHS} processes that import it died or hung within {DEATHS_COUNT:g} s; "
                    "another one is tried that long after the first of them, or when the venv changed",
                )

    def _dies(self, key: _Key, now: tuple[object, ...]) -> bool:
        since = anyio.current_time() - DEATHS_COUNT
        return sum(death > since for death in self._deaths.get((key, now), ())) >= MOST_DEATHS

    async def _watch(self, key: _Key, kept: "_Kept") -> None:
        """End it when it is not used for long, or its venv is another one."""
        await kept.parent.settled()
        while (left := kept.parent.used + self._idle - anyio.current_time()) > 0 or key in self._ahead:
            await anyio.sleep(min(left, LOOK_PACE) if left > 0 else LOOK_PACE)
            try:
                if identity(kept.venv) != kept.identity:
                    break
            except OSError:
                break
        kept.parent.end()

    def _end(self, key: _Key) -> None:
        self._parents.pop(key).parent.end()

    def _say(self, key: _Key, why: str) -> None:
        if (key, why) not in self._said:
            self._said.add((key, why))
            log.warning("runs_start_cold", venv=str(key[0]), source_type=key[1], reason=why)


def _counts(name: str) -> str:
    return f"{name} counts when the CLI is imported, and is a secret or not what it is for other runs"


@dataclass(frozen=True)
class _Kept:
    """A parent, and the venv as it was when it was started."""

    parent: WarmParent
    venv: Venv
    identity: tuple[object, ...]
