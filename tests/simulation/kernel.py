"""Virtual time: one event loop an executor, all on one clock, stepped one after another in an order that is fixed.

Nothing here waits, and nothing depends on the order of sets or on addresses: what happens is a function of what
the world schedules. A loop may be paused, as a stopped process is, and closed, as a killed one is.
"""

import asyncio
import heapq
import inspect
from asyncio import events, tasks
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any

from anyio._backends import _asyncio as backend

LATENESS = 1e-5  # seconds that a timer is late: none is ever early, whatever its deadline is rounded to
LONGEST_BURST = 20_000  # callbacks at one moment of virtual time; more of them is a loop that spins
_TASKS_KEPT = 100  # of a loop, until those that have ended are let go
_CLOSINGS = 50  # attempts to close a coroutine whose clean-up wants to wait

_Coro = Coroutine[Any, Any, Any] | Generator[Any, None, Any]


class Handle:
    """A callback that is due at some time; it stands in for both of asyncio's handles."""

    __slots__ = ("args", "callback", "context", "dropped", "loop", "time")

    def __init__(
        self,
        time: float,
        loop: "Loop | None",
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None = None,
    ) -> None:
        self.time = time
        self.loop = loop
        self.callback = callback
        self.args = args
        self.context = context
        self.dropped = False

    def cancel(self) -> None:
        self.dropped = True

    def cancelled(self) -> bool:
        return self.dropped

    def when(self) -> float:
        return self.time


class Kernel:
    """The clock, and all that is due. `done` ends `run`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done = False
        self.steps = 0  # callbacks that were run
        self._heap: list[tuple[float, int, int, Handle]] = []
        self._count = 0
        self._numbers = 0

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Have the world do something at that time."""
        return self.push(Handle(max(when, self.now), None, callback, args), 0)

    def after(self, delay: float, callback: Callable[..., object], *args: Any) -> Handle:
        """Have the world do something so many seconds from now."""
        return self.push(Handle(self.now + delay, None, callback, args), 0)

    def push(self, handle: Handle, rank: int) -> Handle:
        """`rank` decides between what is due at the same moment, then the order of arrival."""
        self._count += 1
        heapq.heappush(self._heap, (handle.time, rank, self._count, handle))
        return handle

    def number(self) -> int:
        """A number that nothing else in this schedule has."""
        self._numbers += 1
        return self._numbers

    def run(self, until: float) -> None:
        """Let time pass until then, or until it is done."""
        heap, pop = self._heap, heapq.heappop
        while heap and not self.done:
            when, _, _, handle = pop(heap)
            if handle.dropped:
                continue
            if when > until:
                return
            self.now = when
            if handle.loop is None:
                handle.callback(*handle.args)
            else:
                handle.loop.step(handle)


class SimTask(asyncio.Task[Any]):
    """A task that hashes the same in every process: anyio keeps tasks in sets, and cancels in their order."""

    number = 0

    def __hash__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"<task {self.number}>"


class Loop:
    """An event loop without a selector, which runs when the kernel says so.

    `unhandled` is told of what asyncio reports as nobody's. `rank` is its place among loops at the same moment,
    `rate` how many seconds its clock counts in one of the world's.
    """

    def __init__(
        self, kernel: Kernel, rank: int, unhandled: Callable[[str], None], rate: float = 1.0
    ) -> None:
        self.kernel = kernel
        self.rank = rank
        self.rate = rate
        self.paused = False
        self.closed = False
        self.trap: tuple[int, Callable[[], None]] | None = None  # what to do so many callbacks from now
        self._unhandled = unhandled
        self._ready: deque[Handle] = deque()
        self._missed: list[Handle] = []
        self._tasks: list[SimTask] = []

    # --- what the world does with it ------------------------------------------------------------------------

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Have something done in the loop now, as its selector would: an answer that arrived."""
        self.kernel.push(Handle(self.kernel.now, self, callback, args), self.rank)

    def step(self, handle: Handle) -> None:
        """Run what is due and all that follows from it at this moment."""
        if self.closed:
            return
        if self.paused:
            self._missed.append(handle)
            return
        self._ready.append(handle)
        self._drain()

    def wake(self, order: Callable[[list[Handle]], list[Handle]]) -> None:
        """End a pause: all that became due meanwhile runs at once, in the order that `order` makes of it."""
        if self.closed:
            return
        self.paused = False
        missed, self._missed = self._missed, []
        self._ready.extend(order(missed))
        self._drain()

    def close(self) -> None:
        """Drop everything, as the death of the process does. Nothing that the clean-up does has an effect."""
        if self.closed:
            return
        self.closed = True
        self._ready.clear()
        self._missed.clear()
        before = events._get_running_loop()
        events._set_running_loop(_as_asyncios(self))
        try:
            for task in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _close(self, task)
                backend._task_states.pop(task, None)  # which would keep it for ever
        finally:
            events._set_running_loop(before)
        self._tasks.clear()
        self._ready.clear()

    def _drain(self) -> None:
        ready, count = self._ready, 0
        events._set_running_loop(_as_asyncios(self))
        try:
            while ready and not self.paused:
                if count > LONGEST_BURST:
                    self._unhandled("it does not come to rest: its tasks wake each other without an end")
                    break
                handle = ready.popleft()
                if handle.dropped:
                    continue
                count += 1
                context = handle.context
                if context is None:
                    handle.callback(*handle.args)
                else:
                    context.run(handle.callback, *handle.args)
                if self.trap is not None:
                    self._spring()
        finally:
            events._set_running_loop(None)
            self.kernel.steps += count

    def _spring(self) -> None:
        assert self.trap is not None
        left, act = self.trap
        self.trap = (left - 1, act)
        if left <= 0:
            self.trap = None
            act()

    # --- what asyncio and anyio do with it -------------------------------------------------------------------

    def time(self) -> float:
        return self.kernel.now * self.rate

    def moment(self, time: float) -> float:
        """When, by the world's clock, the loop's own shows that."""
        return time / self.rate

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        handle = Handle(self.kernel.now, self, callback, args, copy_context() if context is None else context)
        if not self.closed:
            self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        time = max(self.moment(when), self.kernel.now) + LATENESS
        handle = Handle(time, self, callback, args, copy_context() if context is None else context)
        return handle if self.closed else self.kernel.push(handle, self.rank)

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        return self.call_at(self.kernel.now * self.rate + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=_as_asyncios(self))

    def create_task(self, coro: _Coro, *, name: object = None, context: Context | None = None) -> SimTask:
        task = SimTask(coro, loop=_as_asyncios(self), name="", context=context)
        tasks._unregister_task(task)  # nobody asks for all tasks, and a set of them is slow with such hashes
        task.number = self.kernel.number()
        if len(self._tasks) > _TASKS_KEPT:
            self._tasks = [kept for kept in self._tasks if not kept.done()]
        self._tasks.append(task)
        return task

    def get_task_factory(self) -> None:
        return None

    get_debug = staticmethod(bool)  # False, without a frame: every future asks for it

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.closed:
            self._unhandled(f"{context.get('message')}: {context.get('exception')!r}")


def _as_asyncios(loop: Loop) -> Any:
    """asyncio asks for the methods that it uses, and anyio for no more."""
    return loop


def _close(loop: Loop, task: SimTask) -> None:
    """Close a task's coroutine from the inside out, whatever its clean-up tries to wait for."""
    coro: Any = task.get_coro()
    if inspect.getcoroutinestate(coro) == inspect.CORO_CREATED:  # anyio's frame around a coroutine of ours
        coro.cr_frame.f_locals["self"]._coro.close()
    tasks._enter_task(_as_asyncios(loop), task)
    try:
        for _ in range(_CLOSINGS):
            innermost, inner = None, coro
            while isinstance(inner, CoroutineType) and inner.cr_frame is not None:
                innermost, inner = inner, inner.cr_await
            if innermost is None:
                return
            try:
                innermost.close()
            except Exception:  # noqa: BLE001 - it belongs to a process that is dead
                continue
    finally:
        tasks._leave_task(_as_asyncios(loop), task)
