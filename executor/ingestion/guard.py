"""The executor's side of the guard, the process that ends runs when the executor no longer can (`guardian`)."""

import math
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from executor.ingestion import guardian
from executor.ingestion.guard_process import GuardProcess
from executor.ingestion.marks import new_mark
from executor.lease import Lease

# The guard kills a tree so much before its lease ends, in seconds: time for it to be woken on a busy machine, to
# look a few times for processes that were forked meanwhile, and for the kernel to take large ones down.
KILL_MARGIN = 0.5
START_LIMIT = 30.0  # seconds until a guard must be ready; it takes 0.03 on an idle machine
RESTART_PACE = 0.2  # seconds at least between the starts of two guards
RETRY_PACE = (
    5.0  # seconds until one that could not be started is tried again, unless a run asks for it before
)
PING_PACE = 2.0  # seconds between two pings, and for the answer to come: a guard that is stopped gives none

_NO_GUARD = "the guard process, without which a run could outlive the executor, can't be started"
_WAY_OUT = (
    f"Check that {sys.executable} works, and that the container has memory, processes (pids) and open files "
    "(nofile) left, or let fewer runs go at a time"
)


class GuardError(Exception):
    """There is no guard, so that nothing may be started; the message has the reason and a way out."""


class Watch:
    """A tree under guard. `mark` is borne by its processes; `ended`: its lease was over before it ended."""

    def __init__(self, guard: "Guard", lease: Lease) -> None:
        self.mark = new_mark()
        self.ended = False
        self._guard = guard
        self._lease = lease
        self._session = 0

    @property
    def deadline(self) -> float:
        """When the guard kills it, on the clock of `time.monotonic`."""
        return self._lease.ends - KILL_MARGIN

    @property
    def words(self) -> bytes:
        """All that the guard must know of it."""
        deadline = -math.inf if self.ended else self.deadline  # ended stays ended, for the next guard as well
        return b"%s %d %d %r" % (guardian.WATCH, self.mark, self._session, deadline)

    def started(self, session: int) -> None:
        """Its first process leads that session, which is a second way to know the others."""
        self._session = session
        self._guard.tell(self.words)

    def may_begin(self) -> bool:
        """Whether there is time left: to be asked right before the tree is given something to do.

        The event loop's time would not do, which stands still while this process does.
        """
        if time.monotonic() >= self.deadline:
            self.ended = True
        return not self.ended

    def renewed(self, _ends: float) -> None:
        """Its lease lasts longer, or ends earlier."""
        self._guard.tell(self.words)

    def forget(self, *, gone: bool) -> None:
        """Nothing is left of it; or, where that is not known, let the guard see to it."""
        self._guard.forget(self, gone=gone)


class Guard:
    """Has a guard process at all times: one that died or hangs is replaced and told of all that is watched."""

    def __init__(self) -> None:
        self._watched: dict[int, Watch] = {}
        self._process: GuardProcess | None = None
        self._failure: str | None = None
        self._ready = False
        self._answered = False  # the last ping
        self._busy = anyio.Event()  # something is watched
        self._changed = anyio.Event()
        self._asked = anyio.Event()
        # It outlasts whatever cancels the runs: they may take their grace, and the guard stands by until then.
        self._scope = anyio.CancelScope(shield=True)

    @asynccontextmanager
    async def watch(self, lease: Lease) -> AsyncIterator[Watch]:
        """Guard what is started with the watch's mark meanwhile, until `lease` ends or this process does.

        Raises:
            GuardError: there is no guard, and none can be started.
        """
        watch = Watch(self, lease)
        self._watched[watch.mark] = watch
        self._busy.set()
        try:
            await self._available()
            while not self.tell(watch.words):
                await self._available()
            with lease.followed(watch.renewed):
                yield watch
        finally:
            self.forget(watch, gone=True)

    def forget(self, watch: Watch, *, gone: bool) -> None:
        """Guard it no longer; unless it is `gone`, kill what is left of it first."""
        if watch.mark in self._watched:
            self._hear()
            del self._watched[watch.mark]
            self.tell(b"%s %d" % (guardian.FORGET if gone else guardian.END, watch.mark))

    def tell(self, packet: bytes) -> bool:
        """Whether the guard was told. One that was not hears it all from `_watched` when there is another."""
        if self._process is None:
            self._asked.set()
            return False
        try:
            self._process.socket.send(packet)
        except OSError:  # it is dead; or it reads no more, being stopped, which is no better
            self._give_up(self._process)
            return False
        return True

    async def keep(self) -> None:
        """Start the guard and replace it when it dies or hangs, until `stop`."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._ping)
                await self._keep_any()

    def stop(self) -> None:
        """End the guard process, which kills what is still watched, and `keep`."""
        self._scope.cancel()

    async def _keep_any(self) -> None:
        while True:
            started = anyio.current_time()
            self._asked = anyio.Event()
            try:
                await self._keep_one()
            except (OSError, GuardError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                self._set(ready=False, failure=f"{_NO_GUARD}: {reason}. {_WAY_OUT}")
                with anyio.move_on_after(RETRY_PACE):
                    await self._asked.wait()
            await anyio.sleep_until(started + RESTART_PACE)

    async def _keep_one(self) -> None:
        self._process = process = GuardProcess()  # what changes from here on is told to it at once
        try:
            with anyio.fail_after(START_LIMIT):
                if not await process.begun():
                    raise GuardError("it ended as soon as it was started")
                for mark in list(self._watched):
                    if mark in self._watched and self.tell(self._watched[mark].words):
                        await anyio.wait_writable(process.socket)
            self._set(ready=True)
            await process.exited()
        except TimeoutError as error:
            raise GuardError(f"it was not ready within {START_LIMIT:g} s") from error
        finally:
            self._hear()
            self._process = None
            self._set(ready=False)
            if not self._scope.cancel_called:
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.close()

    async def _ping(self) -> None:
        """While something is watched, see to it that the guard answers."""
        while True:
            if not self._watched:
                self._busy = anyio.Event()
                await self._busy.wait()
            process, self._answered = self._process, False
            asked = self._ready and self.tell(guardian.PING)
            # In two halves: after a pause of both processes, a moment is left for the guard to answer.
            await anyio.sleep(PING_PACE / 2)
            await anyio.sleep(PING_PACE / 2)
            if asked and process is not None and process is self._process:
                self._hear()  # after a pause of this process, the answer lies there unread
                if not self._answered:
                    self._give_up(process)

    def _give_up(self, process: GuardProcess) -> None:
        process.kill()
        self._set(ready=False)

    def _hear(self) -> None:
        """Take in which trees the guard has ended, and that it answers."""
        for packet in self._process.said() if self._process is not None else ():
            verb, *mark = packet.split()
            self._answered = self._answered or verb == guardian.PONG
            if verb == guardian.ENDED and (watch := self._watched.get(int(mark[0]))):
                watch.ended = True

    async def _available(self) -> None:
        if not self._ready and self._failure is not None:
            self._failure = None  # that was then
            self._asked.set()
        while not self._ready:
            if self._failure is not None:
                raise GuardError(self._failure)
            await self._changed.wait()

    def _set(self, *, ready: bool, failure: str | None = None) -> None:
        self._ready, self._failure = ready, failure
        self._changed.set()
        self._changed = anyio.Event()


@asynccontextmanager
async def open_guard() -> AsyncIterator[Guard]:
    """The guard of all that is started meanwhile. Leaving it ends what is still watched."""
    guard = Guard()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guard.keep)
        try:
            yield guard
        finally:
            guard.stop()
