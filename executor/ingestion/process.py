"""A run's process tree: started, fed, read, measured, and ended without remains. Linux only."""

import fcntl
import os
import resource
import secrets
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Self

import anyio

from executor.ingestion.cgroup import oom_kills

TERMINATION_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
EOF_GRACE = 1.0  # seconds that the output may stay open once every process of the run is gone
MEMBER_POLL = 0.02  # seconds between two looks at what is left of a tree that was told to end
KILL_ROUNDS = 100  # looks after SIGKILL before giving up on a process in uninterruptible sleep
READ_SIZE = 1024 * 1024  # bytes a read
READ_PACE = 0.005  # seconds between two reads while less than a whole one is waiting
PIPE_SIZE = 1024 * 1024  # bytes the kernel buffers, where it lets us: a run need not wait for READ_PACE
TREE_MARK = "DATAHUB_EXECUTOR_TREE"  # environment variable by which an escaped grandchild is recognised


@dataclass(frozen=True, slots=True)
class Command:
    """What to start. `argv` and `env` hold no secret, `stdin` may; `memory_limit` is address space, bytes."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    stdin: bytes = b""
    memory_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. `returncode` is the exit code, or minus the signal's number."""

    returncode: int
    cpu_seconds: float
    peak_memory: int  # bytes, of the largest single process
    oom_killed: bool  # the system's out-of-memory killer took a process of this container meanwhile
    left_behind: int  # processes that the run had left running, ended with it


class ProcessStartError(Exception):
    """The operating system would not start the command; the message says what and why."""


class ProcessTree:
    """A process that leads a session and group of its own, and whatever it starts.

    The leader is reaped last: until then its number can't be given to another process, so that signalling
    its group can't hit a stranger.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", mark: str, oom_kills_before: int) -> None:
        self.pid = process.pid
        self._process = process
        self._mark = f"{TREE_MARK}={mark}".encode()
        self._started = _start_ticks(self.pid)
        self._oom_kills_before = oom_kills_before
        self._pidfd = os.pidfd_open(self.pid)

    @classmethod
    def start(cls, command: Command) -> Self:
        """Start the command; its standard output and error are one stream.

        Raises:
            ProcessStartError: the program is missing or may not be executed, or the system has no room.
        """
        mark = secrets.token_hex(8)
        before = oom_kills()
        try:
            process = subprocess.Popen(
                command.argv,
                env={**command.env, TREE_MARK: mark},
                cwd=command.cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            words = error.strerror or str(error)
            raise ProcessStartError(f"could not start {command.argv[0]}: {words}") from error
        # The run reads its recipe from standard input first, so that limits set here come before its work.
        _limit(process.pid, resource.RLIMIT_CORE, 0)  # a core file would put secrets on the disk
        if command.memory_limit is not None:
            _limit(process.pid, resource.RLIMIT_AS, command.memory_limit)
        return cls(process, mark, before)

    async def feed(self, data: bytes) -> None:
        """Write `data` to its standard input and close it; a process that does not want to read it may."""
        stream = _pipe(self._process.stdin)
        os.set_blocking(stream.fileno(), False)
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[os.write(stream.fileno(), view) :]
                except BlockingIOError:
                    await anyio.wait_writable(stream)
        except BrokenPipeError:
            return  # its exit code will say the rest
        finally:
            stream.close()

    async def read(self, output: Callable[[bytes], None], at_end: anyio.Event) -> None:
        """Hand on its output as it comes; `at_end` is set when no process holds the pipe any more."""
        stream = _pipe(self._process.stdout)
        os.set_blocking(stream.fileno(), False)
        _widen(stream)
        while True:
            await anyio.wait_readable(stream)
            try:
                chunk = os.read(stream.fileno(), READ_SIZE)
            except BlockingIOError:
                continue
            if not chunk:
                at_end.set()
                return
            output(chunk)
            if len(chunk) < READ_SIZE:  # a writer of small pieces must not wake us for each of them
                await anyio.sleep(READ_PACE)

    async def exited(self) -> None:
        """Return once the leader ended; it stays unreaped, see `reap`."""
        await anyio.wait_readable(self._pidfd)

    def members(self) -> list[int]:
        """The living processes of this tree, also those that left its session or lost their parent."""
        found = []
        for entry in os.listdir("/proc"):  # noqa: PTH208 - numbers only, no Path objects in a hot loop
            if not entry.isdigit():
                continue
            stat = _stat(entry)
            if stat is None or stat.state in "ZX" or stat.started < self._started:
                continue
            if stat.session == self.pid or self._marked(entry):
                found.append(int(entry))
        return found

    def send(self, number: signal.Signals, members: Sequence[int]) -> None:
        """Signal the group, and every member that is outside it."""
        _kill(os.killpg, self.pid, number)
        for pid in members:
            _kill(os.kill, pid, number)

    async def end(self, grace: float = TERMINATION_GRACE) -> int:
        """End the whole tree: SIGTERM, after `grace` seconds SIGKILL. Returns how many processes it had."""
        members = self.members()
        count = len(members)
        if grace > 0 and members:
            self.send(signal.SIGTERM, members)
            with anyio.move_on_after(grace):
                while self.members():  # noqa: ASYNC110 - the kernel has no event for "this session is empty"
                    await anyio.sleep(MEMBER_POLL)
        for _ in range(KILL_ROUNDS):
            members = self.members()
            if not members:
                break
            self.send(signal.SIGKILL, members)
            await anyio.sleep(MEMBER_POLL)
        return count

    def reap(self, left_behind: int) -> Exit:
        """Collect the leader's end, which `exited` has seen, and close its descriptors."""
        _, status, usage = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        _pipe(self._process.stdin).close()
        _pipe(self._process.stdout).close()
        os.close(self._pidfd)
        return Exit(
            returncode=self._process.returncode,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_memory=usage.ru_maxrss * 1024,
            oom_killed=oom_kills() > self._oom_kills_before,
            left_behind=left_behind,
        )

    def _marked(self, pid: str) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile, or belongs to somebody else
            return False


async def run_process(
    command: Command,
    output: Callable[[bytes], None],
    *,
    grace: Callable[[], float] = lambda: TERMINATION_GRACE,
) -> Exit:
    """Run a command to its end, handing on its output as it comes.

    Being cancelled ends the whole tree: SIGTERM, SIGKILL `grace()` seconds later. When the command ends by
    itself, whatever it left running is killed, so that neither a grandchild nor a pipe that it holds open
    keeps the run open.

    Raises:
        ProcessStartError: it could not be started.
    """
    tree = ProcessTree.start(command)
    at_end = anyio.Event()
    # The pipes are served while the tree is being ended, too: its last words count, and a process that
    # blocks on a full pipe could not obey SIGTERM.
    feeding, reading = anyio.CancelScope(shield=True), anyio.CancelScope(shield=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_within, feeding, partial(tree.feed, command.stdin))
        tasks.start_soon(_within, reading, partial(tree.read, output, at_end))
        left_behind = 0
        try:
            await tree.exited()
            left_behind = await tree.end(grace=0)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await tree.end(grace())
                await tree.exited()
            raise
        finally:
            feeding.cancel()
            with anyio.move_on_after(EOF_GRACE, shield=True):
                await at_end.wait()
            reading.cancel()
            ended = tree.reap(left_behind)
    return ended


async def _within(scope: anyio.CancelScope, serve: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await serve()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the process was started without this pipe")
    return stream


def _widen(stream: IO[bytes]) -> None:
    try:
        fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        return  # the user's share of pipe memory is used up (pipe(7)); the default size works as well


def _limit(pid: int, kind: int, value: int) -> None:
    try:
        resource.prlimit(pid, kind, (value, value))
    except (ProcessLookupError, PermissionError):
        return  # it has ended already, or a lower hard limit is in force


def _kill(how: Callable[[int, int], None], target: int, number: signal.Signals) -> None:
    try:
        how(target, number)
    except (ProcessLookupError, PermissionError):
        return  # gone meanwhile; or it changed its user, which only its own end can answer


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    session: int
    started: int  # clock ticks since boot


def _stat(pid: str) -> _Stat | None:
    """The fields of `/proc/<pid>/stat` that matter here (proc(5): 3 state, 6 session, 22 starttime)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return _Stat(fields[0].decode(), int(fields[3]), int(fields[19]))


def _start_ticks(pid: int) -> int:
    stat = _stat(str(pid))
    return stat.started if stat else 0
