"""A run's process tree: started, fed, read, measured, and ended without remains. Linux only."""

import math
import os
import resource
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import anyio

from executor.ingestion.cgroup import oom_kills
from executor.ingestion.guard import Guard, GuardError, Watch
from executor.ingestion.marks import marked
from executor.ingestion.members import Member, members_of
from executor.ingestion.pipes import Pipes
from executor.lack import reason
from executor.lease import Lease, LeaseEndedError

TERMINATION_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
MEMBER_POLL = 0.02  # seconds between two looks at what is left of a tree that was told to end
KILL_ROUNDS = 100  # looks after SIGKILL before giving up on a process in uninterruptible sleep


@dataclass(frozen=True, slots=True)
class Command:
    """What to start. `argv` holds no secret: all may read it. `memory_limit` is address space, in bytes.

    `inherited` are descriptors that it has besides its standard streams.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    stdin: bytes = b""
    memory_limit: int | None = None
    inherited: Sequence[int] = ()


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


class NotForkedError(Exception):
    """A warm parent could not give the run a process; nothing of the run has begun."""


class ProcessTree:
    """A process that leads a session and group of its own, and whatever it starts.

    The leader is reaped last: until then its number can't be given to another process, so that signalling
    its group can't hit a stranger.
    """

    def __init__(
        self,
        pid: int,
        mark: int,
        oom_kills_before: int,
        pipes: Pipes,
        process: "subprocess.Popen[bytes] | None" = None,
    ) -> None:
        """`pid` is a child of this process: started by it as `process`, or adopted."""
        self.pid = pid
        self.preface = b""  # what it is given before the run's own input
        self.gone = False  # whether all of it is known to have ended
        self.pipes = pipes
        self._process = process
        self._mark = mark
        self._oom_kills_before = oom_kills_before
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def start(cls, command: Command, mark: int) -> Self:
        """Start the command, its processes bearing `mark`; its standard output and error are one stream.

        Raises:
            ProcessStartError: program or folder are missing or may not be used, or the system has no room.
        """
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
                    pass_fds=command.inherited,
                    bufsize=0,
                )
        except OSError as error:
            raise ProcessStartError(command.argv[0], _reason(error, command)) from error
        except ValueError as error:  # a NUL or a lone surrogate; an environment variable's name with a "="
            reason = "an argument or environment variable holds a character that the system does not allow"
            raise ProcessStartError(command.argv[0], reason) from error
        limit(process.pid, command)
        try:
            return cls(process.pid, mark, before, Pipes(process.stdin, process.stdout), process)
        except OSError as error:
            with process:  # closes its pipes and collects it
                send(os.killpg, process.pid, signal.SIGKILL)
            raise ProcessStartError(command.argv[0], _reason(error, command)) from error

    async def exited(self) -> None:
        """Return once the leader ended; it stays unreaped, see `reap`."""
        await anyio.wait_readable(self._pidfd)

    def members(self) -> list[Member] | None:
        """The living processes of this tree, also those that left its session or lost their parent.

        None if nobody knows: without a free file descriptor the system can't be asked.
        """
        try:
            return [member for member in members_of({self.pid}, {self._mark}) if member.alive]
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
                self.gone = True
                break
            await anyio.sleep(MEMBER_POLL)
        return count

    def kill(self) -> None:
        """End what is in its group at once; `end` is what ends all of it."""
        self._send(signal.SIGKILL, ())

    def reap(self, left_behind: int) -> Exit:
        """Collect the leader's end, which `exited` has seen, and close its descriptors."""
        # Where this process is the container's first one, orphans of the run have become its children.
        try:
            orphans = [
                member.pid for member in members_of({self.pid}, {self._mark}) if member.parent == os.getpid()
            ]
        except OSError:
            orphans = []  # there is no descriptor to look with; the leader is known, and what it holds goes
        for pid in orphans:
            if pid != self.pid:
                collect(pid)
        _, status, usage = os.wait4(self.pid, 0)
        returncode = os.waitstatus_to_exitcode(status)
        if self._process is not None:
            self._process.returncode = returncode
        self.pipes.close()
        os.close(self._pidfd)
        return Exit(
            returncode=returncode,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_memory=usage.ru_maxrss * 1024,
            oom_killed=oom_kills() > self._oom_kills_before,
            left_behind=left_behind,
        )

    def _send(self, number: signal.Signals, members: Sequence[Member]) -> None:
        """Signal the group, and every member that is outside it: each gets it once."""
        send(os.killpg, self.pid, number)
        for member in members:
            if member.group != self.pid:
                send(os.kill, member.pid, number)


Start = Callable[[Command, int], Awaitable[ProcessTree]]
"""Starts a command as a tree that bears a mark. It leaves nothing behind where it raises ProcessStartError or
NotForkedError."""


async def start_cold(command: Command, mark: int) -> ProcessTree:
    """Start a program from the disk, as `ProcessTree.start`."""
    return ProcessTree.start(command, mark)


async def run_process(
    command: Command,
    output: Callable[[bytes], None],
    *,
    guard: Guard,
    lease: Lease | None = None,
    grace: Callable[[], float] = lambda: TERMINATION_GRACE,
    at_exit: Callable[[], None] = lambda: None,
    start: Start = start_cold,
) -> Exit:
    """Run a command to its end, handing on its output as it comes.

    Being cancelled ends the whole tree: SIGTERM, SIGKILL `grace()` seconds later. When the command ends by
    itself, whatever it left running is killed, so that neither a grandchild nor a pipe that it holds open
    keeps the run open. `at_exit` is called as soon as the command itself has ended. `guard` kills the tree
    before the end of `lease` (None: there is no end), and when this process dies.

    Raises:
        ProcessStartError: it could not be started.
        LeaseEndedError: it did not begin, or was killed, because its lease was over.
        NotForkedError: `start` is a warm parent's, and it has to be started otherwise.
    """
    try:
        async with guard.watch(lease or Lease(math.inf)) as watch:
            if not watch.may_begin():
                raise LeaseEndedError("the lease was over before the run began")
            try:
                tree = await start(command, watch.mark)
            except NotForkedError:
                watch.forget(gone=False)
                raise
            watch.started(tree.pid)
            return await _attend(tree, watch, tree.preface + command.stdin, output, grace, at_exit)
    except GuardError as error:
        raise ProcessStartError(command.argv[0], str(error)) from error


async def _attend(
    tree: ProcessTree,
    watch: Watch,
    stdin: bytes,
    output: Callable[[bytes], None],
    grace: Callable[[], float],
    at_exit: Callable[[], None],
) -> Exit:
    left_behind = 0

    def may_begin() -> bool:
        if not watch.may_begin():
            tree.kill()
        return not watch.ended

    try:
        async with anyio.create_task_group() as tasks:
            # The pipes are served while the tree is being ended, too: its last words count, and a process
            # that blocks on a full pipe could not obey SIGTERM.
            pipes = anyio.CancelScope(shield=True)
            tasks.start_soon(tree.pipes.serve, stdin, output, may_begin, pipes)
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
        # Before it is collected: then its number may be another's.
        watch.forget(gone=tree.gone)
        ended = tree.reap(left_behind)
    if watch.ended:
        raise LeaseEndedError("the run was ended: its lease was over")
    return ended


def _reason(error: OSError, command: Command) -> str:
    if error.filename == command.cwd:
        return f"the folder {command.cwd} can't be entered: {reason(error)}"
    if isinstance(error, FileNotFoundError) and Path(command.argv[0]).is_file():
        return reason(error, "the interpreter that its first line names, or a library")
    return reason(error)


def limit(pid: int, command: Command) -> None:
    """Limit a run that waits for its standard input: limits that are set here come before its work."""
    _limit(pid, resource.RLIMIT_CORE, 0)  # a core file would put secrets on the disk
    if command.memory_limit is not None:
        _limit(pid, resource.RLIMIT_AS, command.memory_limit)


def _limit(pid: int, kind: int, value: int) -> None:
    try:
        resource.prlimit(pid, kind, (value, value))
    except (ProcessLookupError, PermissionError):
        return  # it has ended already, or a lower hard limit is in force


def send(how: Callable[[int, int], None], target: int, number: signal.Signals) -> None:
    """Signal a process or a group that may be gone."""
    try:
        how(target, number)
    except (ProcessLookupError, PermissionError):
        return  # gone meanwhile; or it changed its user, which only its own end can answer


def collect(pid: int) -> None:
    """Collect the end of a child, if there is one to collect."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # collected already
