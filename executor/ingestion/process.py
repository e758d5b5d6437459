"""A run's process tree: started, fed, read, measured, and ended without remains. Linux only."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import anyio

from executor.ingestion.cgroup import oom_kills
from executor.ingestion.members import Member, marked, members_of, new_mark

TERMINATION_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
MEMBER_POLL = 0.02  # seconds between two looks at what is left of a tree that was told to end
KILL_ROUNDS = 100  # looks after SIGKILL before giving up on a process in uninterruptible sleep
READ_SIZE = 1024 * 1024  # bytes a read; not less than PIPE_SIZE, so that one read empties the pipe
READ_PACE = 0.005  # seconds between two reads while less than a whole one is waiting
PIPE_SIZE = 1024 * 1024  # bytes the kernel buffers, where it lets us: a run need not wait for READ_PACE


@dataclass(frozen=True, slots=True)
class Command:
    """What to start. `argv` holds no secret: all may read it. `memory_limit` is address space, in bytes."""

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
    peak_memory: int  # bytes, of the largest single process; at the least what the executor itself takes
    oom_killed: bool  # the system's out-of-memory killer took a process of this container meanwhile
    left_behind: int  # processes that the run had left running, ended with it


class ProcessStartError(Exception):
    """The operating system would not start the command; the message says what and why, `reason` why alone."""

    def __init__(self, program: str, reason: str) -> None:
        super().__init__(f"could not start {program}: {reason}")
        self.reason = reason


class ProcessTree:
    """A process that leads a session and group of its own, and whatever it starts.

    The leader is reaped last: until then its number can't be given to another process, so that signalling
    its group can't hit a stranger.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", mark: int, oom_kills_before: int) -> None:
        self.pid = process.pid
        self._process = process
        self._mark = mark
        self._oom_kills_before = oom_kills_before
        self._pidfd = os.pidfd_open(self.pid)
        self._stdin, self._stdout = _pipe(process.stdin), _pipe(process.stdout)
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        _widen(self._stdout)

    @classmethod
    def start(cls, command: Command) -> Self:
        """Start the command; its standard output and error are one stream.

        Raises:
            ProcessStartError: program or folder are missing or may not be used, or the system has no room.
        """
        mark = new_mark()
        before = oom_kills()
        try:
            with marked(mark):
                process = subprocess.Popen(
                    command.argv,
                    env=command.env,
                    cwd=command.cwd,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    bufsize=0,
                )
        except OSError as error:
            raise ProcessStartError(command.argv[0], _reason(error, command)) from error
        except ValueError as error:  # a NUL or a lone surrogate; an environment variable's name with a "="
            reason = "an argument or environment variable holds a character that the system does not allow"
            raise ProcessStartError(command.argv[0], reason) from error
        # The run reads its recipe from standard input first, so that limits set here come before its work.
        _limit(process.pid, resource.RLIMIT_CORE, 0)  # a core file would put secrets on the disk
        if command.memory_limit is not None:
            _limit(process.pid, resource.RLIMIT_AS, command.memory_limit)
        try:
            return cls(process, mark, before)
        except OSError as error:
            with process:  # closes its pipes and collects it
                _kill(os.killpg, process.pid, signal.SIGKILL)
            raise ProcessStartError(command.argv[0], _reason(error, command)) from error

    async def feed(self, data: bytes) -> None:
        """Write `data` to its standard input and close it; a process that does not want to read it may."""
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[os.write(self._stdin.fileno(), view) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._stdin)
        except BrokenPipeError:
            return  # its exit code will say the rest
        finally:
            self._stdin.close()

    async def read(self, output: Callable[[bytes], None]) -> None:
        """Hand on its output as it comes, until no process holds the pipe any more."""
        while True:
            await anyio.wait_readable(self._stdout)
            chunk = self._read()
            if chunk is None:
                continue
            if not chunk:
                return
            output(chunk)
            if len(chunk) < READ_SIZE:  # a writer of small pieces must not wake us for each of them
                await anyio.sleep(READ_PACE)

    def drain(self, output: Callable[[bytes], None]) -> None:
        """Hand on what lies in the pipe, once all who wrote to it are gone or count no more."""
        if chunk := self._read():
            output(chunk)

    async def exited(self) -> None:
        """Return once the leader ended; it stays unreaped, see `reap`."""
        await anyio.wait_readable(self._pidfd)

    def members(self) -> list[Member] | None:
        """The living processes of this tree, also those that left its session or lost their parent.

        None if nobody knows: without a free file descriptor the system can't be asked.
        """
        try:
            return [member for member in members_of(self.pid, self._mark) if member.alive]
        except OSError:
            return None

    async def end(self, grace: Callable[[], float]) -> int:
        """End the whole tree: SIGTERM, then SIGKILL. Returns how many processes it had.

        `grace` tells how many seconds lie between the two; it is asked again and again, and may get shorter.
        """
        count, told_at = 0, anyio.current_time()
        if grace() > 0:
            members = self.members()
            count = len(members or ())
            self._send(signal.SIGTERM, members or ())
            self._send(signal.SIGCONT, members or ())  # a stopped process could not obey
            while self.members() != [] and anyio.current_time() - told_at < grace():  # noqa: ASYNC110 - see below
                await anyio.sleep(MEMBER_POLL)  # the kernel has no event for "this session is empty"
        for _ in range(KILL_ROUNDS):
            members = self.members()
            count = max(count, len(members or ()))
            self._send(signal.SIGKILL, members or ())
            if members == []:
                break
            await anyio.sleep(MEMBER_POLL)
        return count

    def reap(self, left_behind: int) -> Exit:
        """Collect the leader's end, which `exited` has seen, and close its descriptors."""
        # Where this process is the container's first one, orphans of the run have become its children.
        try:
            orphans = [
                member.pid for member in members_of(self.pid, self._mark) if member.parent == os.getpid()
            ]
        except OSError:
            orphans = []  # there is no descriptor to look with; the leader is known, and what it holds goes
        for pid in orphans:
            if pid != self.pid:
                _collect(pid)
        _, status, usage = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._stdin.close()
        self._stdout.close()
        os.close(self._pidfd)
        return Exit(
            returncode=self._process.returncode,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_memory=usage.ru_maxrss * 1024,
            oom_killed=oom_kills() > self._oom_kills_before,
            left_behind=left_behind,
        )

    def _read(self) -> bytes | None:
        """What lies in the pipe: b"" at its end, None if there is nothing yet."""
        try:
            return os.read(self._stdout.fileno(), READ_SIZE)
        except BlockingIOError:
            return None

    def _send(self, number: signal.Signals, members: Sequence[Member]) -> None:
        """Signal the group, and every member that is outside it: each gets it once."""
        _kill(os.killpg, self.pid, number)
        for member in members:
            if member.group != self.pid:
                _kill(os.kill, member.pid, number)


async def run_process(
    command: Command,
    output: Callable[[bytes], None],
    *,
    grace: Callable[[], float] = lambda: TERMINATION_GRACE,
    at_exit: Callable[[], None] = lambda: None,
) -> Exit:
    """Run a command to its end, handing on its output as it comes.

    Being cancelled ends the whole tree: SIGTERM, SIGKILL `grace()` seconds later. When the command ends by
    itself, whatever it left running is killed, so that neither a grandchild nor a pipe that it holds open
    keeps the run open. `at_exit` is called as soon as the command itself has ended.

    Raises:
        ProcessStartError: it could not be started.
    """
    tree = ProcessTree.start(command)
    left_behind = 0
    try:
        async with anyio.create_task_group() as tasks:
            # The pipes are served while the tree is being ended, too: its last words count, and a process
            # that blocks on a full pipe could not obey SIGTERM.
            pipes = anyio.CancelScope(shield=True)
            tasks.start_soon(_serve_pipes, pipes, tree, command.stdin, output)
            try:
                await tree.exited()
                at_exit()
                with anyio.CancelScope(shield=True):
                    left_behind = await tree.end(lambda: 0)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await tree.end(grace)
                    await tree.exited()
                raise
            finally:
                pipes.cancel()
    finally:
        ended = tree.reap(left_behind)
    return ended


async def _serve_pipes(
    scope: anyio.CancelScope, tree: ProcessTree, stdin: bytes, output: Callable[[bytes], None]
) -> None:
    with scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tree.feed, stdin)
            tasks.start_soon(tree.read, output)
    tree.drain(output)


def _reason(error: OSError, command: Command) -> str:
    reason = error.strerror or str(error)
    if error.filename == command.cwd:
        return f"the folder {command.cwd} can't be entered: {reason}"
    if isinstance(error, FileNotFoundError) and Path(command.argv[0]).is_file():
        return f"{reason}: the interpreter that its first line names, or a library"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{reason}: give the executor a higher limit on open files (nofile), or let fewer runs go at a time"
    return reason


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


def _collect(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # collected already
