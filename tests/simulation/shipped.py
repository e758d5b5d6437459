"""What the shipped code takes from its surroundings, while a schedule runs: its log, its chance, anyio's scopes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
import sniffio
import structlog
from anyio._backends import _asyncio as backend
from anyio._core import _eventloop, _synchronization, _tasks

from executor.claiming import away

if TYPE_CHECKING:
    from tests.simulation.world import World

# Events that tell of a defect: an exception that only the edge of a run caught.
DEFECTS = frozenset({"run_failed_internally", "settling_failed_internally"})

# What only the log tells of, by its events and words, and what it is counted as.
COUNTED = {
    "claim_running_out": "claims that ran out",
    away().words: "given back, as DataHub was away",
}


class Scope(backend.CancelScope):
    """A cancel scope that hashes the same in every process: scopes are cancelled in the order of a set."""

    __slots__ = ("number",)
    number: int
    numbers = count()

    def __new__(cls, **_: Any) -> "Scope":
        scope = object.__new__(cls)
        scope.number = next(Scope.numbers)
        return scope

    def __hash__(self) -> int:
        return self.number


class Log:
    """The shipped code's log: part of the story, and the witness of defects."""

    world: "World | None" = None

    def __init__(self, _logger: object, processors: object, context: Any) -> None:
        del processors
        self._context = context

    def bind(self, **values: object) -> "Log":
        return Log(None, None, {**self._context, **values})

    def _log(self, event: str, **values: object) -> None:
        if self.world is not None:
            if counted := COUNTED.get(event) or COUNTED.get(str(values.get("words"))):
                self.world.counts[counted] += 1
            if event == "lease_running_out":
                executor = self.world.executors[asyncio.get_running_loop().rank]  # type: ignore[attr-defined]
                self.world.bounds.lease_given_up(executor, self._context["exec_id"])
        if self.world is not None and self.world.recorded:
            shown = {key: value for key, value in {**self._context, **values}.items() if value is not None}
            self.world.tell("  log", event, *(f"{key}={value}" for key, value in shown.items()))

    debug = info = warning = error = _log

    def exception(self, event: str, **values: object) -> None:
        self._log(event, **values)
        if self.world is not None and event in DEFECTS:
            import sys
            import traceback

            self.world.tell("  log", traceback.format_exc())
            self.world.checks.broken(f"{event}: {sys.exc_info()[1]!r}")


def _backend() -> type[backend.AsyncIOBackend]:
    return backend.AsyncIOBackend


def _current_time() -> float:
    return asyncio.get_running_loop().time()


# What anyio looks up at every turn, and makes twice: put there at once. Its classes are the same.
SHORTCUTS: tuple[tuple[object, str, object], ...] = (
    *((module, "get_async_backend", _backend) for module in (_eventloop, _synchronization, _tasks)),
    *((module, "CancelScope", Scope) for module in (anyio, _tasks, backend)),
    *((module, "Event", backend.Event) for module in (anyio, _synchronization)),
    (anyio, "current_time", _current_time),
)


@contextmanager
def prepared(world: "World") -> Iterator[None]:
    """Have log and scopes be those of a schedule."""
    configuration = structlog.get_config()
    structlog.configure(wrapper_class=Log, processors=[], cache_logger_on_first_use=False)  # type: ignore[arg-type]
    Log.world = world
    Scope.numbers = count()
    replacements = (*SHORTCUTS, (backend, "_task_states", {}))
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replacements]
    library, sniffio.thread_local.name = sniffio.thread_local.name, "asyncio"  # anyio asks at every turn

    try:
        for owner, name, replacement in replacements:
            setattr(owner, name, replacement)
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
        sniffio.thread_local.name = library
        Log.world = None
        structlog.configure(**configuration)
