"""One warm parent, as the executor has it: a process that has imported a venv's CLI and a source's plugin.

A run that is forked from it is what it would have been if it had been started from the disk: `warm_parent` has how.
Where that can't be had, or not for sure, there is a reason why not, and the run is started from the disk.
"""

import errno
import json
import os
import re
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import anyio

from executor.ingestion.adoption import Adoption
from executor.ingestion.cgroup import oom_kills
from executor.ingestion.guard import Guard
from executor.ingestion.members import look_at, members_of
from executor.ingestion.pipes import Pipes
from executor.ingestion.process import (
    Command,
    NotForkedError,
    ProcessStartError,
    ProcessTree,
    collect,
    limit,
    run_process,
    send,
)
from executor.ingestion.venv import Venv

IMPORT_LIMIT = 120.0  # seconds until a parent must have imported everything
FORK_LIMIT = 5.0  # seconds for a fork, which takes milliseconds
LONGEST_TEXT = 100_000  # bytes of arguments and environment; more may be refused to a program from the disk
PACKET_SIZE = 128 * 1024  # bytes; more than any packet of a parent has
ENDED_EARLY = "its process ended while it was importing"
HEAD_SIZE = 1024  # bytes in which a script says what runs it

_BY_ITSELF = re.compile(r"#! *(?P<python>/\S*/python[0-9.]*)(?: +(?P<argument>\S[^\n]*?))? *\n")
# Installers write this where the path is too long for the system.
_BY_SHELL = re.compile(
    r"""#!/bin/sh\n'''exec' (?P<quote>["']?)(?P<python>/[^"'\n]*/python[0-9.]*)(?P=quote) "\$0" "\$@"\n"""
)
# The allocator in pyarrow has a thread that gives memory back. A fork does that without one, whatever is set here.
_THREADLESS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
_PROGRAM = Path(__file__).with_name("warm_parent.py")
_ABANDON_ROUNDS, _ABANDON_PACE = 250, 0.02  # looks, and seconds between them


class _LeftUnforkedError(Exception):
    """A run got no process from a parent that is as it was."""


class WarmParent:
    """One parent. `live` is its life; what it is worth is known once `settled` returns."""

    def __init__(
        self, venv: Venv, source_type: str, env: Mapping[str, str], guard: Guard, adoption: Adoption
    ) -> None:
        self.key = (venv.path, source_type)
        self.env = env
        self.names: frozenset[str] = frozenset()  # of variables that its imports looked at
        self.unfit: str | None = None  # why no run can be forked from it
        # Bytes, PSS before its runs shared any of it. A file that others map as well counts by its share then.
        self.memory = 0
        self.used = anyio.current_time()
        self.ended = False
        self.died = False  # it ended by itself, or had to be ended, though it might be fit
        self.forked = False  # a run, at least once
        self._guard = guard
        self._adoption = adoption
        self._settled = anyio.Event()
        self._gone = anyio.Event()
        self._lock = anyio.Lock()
        self._scope = anyio.CancelScope()
        self._socket: socket.socket
        self.pid = self._mark = 0
        self._argv = [*_interpreter(venv), str(_PROGRAM), venv.command[-1], source_type]

    async def settled(self) -> None:
        """Return once it is ready or `unfit`."""
        await self._settled.wait()

    async def gone(self) -> None:
        """Return once it has ended, if it ever was ready."""
        await self._gone.wait()

    def end(self) -> None:
        """End it; its runs go on."""
        self.ended = True
        self._scope.cancel()

    async def live(self) -> None:
        """Start it, and have it until it ends, is ended, or proves unfit."""
        try:
            with self._scope:
                await self._live()
                self.died = self.died or self.unfit is None
        except* (ProcessStartError, OSError) as errors:
            self.unfit, self.died = str(errors.exceptions[0]), True
        finally:
            self.ended = True
            if not self._settled.is_set():
                self.unfit = self.unfit or ENDED_EARLY
                self._settled.set()

    async def _live(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)

        async def start(command: Command, mark: int) -> ProcessTree:
            with theirs:
                tree = ProcessTree.start(command, mark)
            self.pid, self._mark = tree.pid, mark
            return tree

        try:
            with theirs:
                descriptor = theirs.fileno()
                env = {**_THREADLESS, **self.env}
                command = Command([*self._argv, str(descriptor)], env, Path("/"), inherited=(descriptor,))
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._settle)
                    await run_process(command, _drop, guard=self._guard, grace=lambda: 0, start=start)
                    tasks.cancel_scope.cancel()
        finally:
            self.ended = True
            self._gone.set()
            with anyio.CancelScope(shield=True):
                async with self._lock:  # who waits for an answer hears that it is gone, and must not be deaf
                    self._socket.close()

    async def start(self, command: Command, mark: int) -> ProcessTree:
        """Fork a run; see `executor.ingestion.process.Start`."""
        self.used = anyio.current_time()
        preface = _preface(command, self._argv)
        async with self._lock:
            with anyio.CancelScope(shield=True):  # or nobody would know the child's number
                tree = await self._fork(command, mark)
        tree.preface = preface
        return tree

    async def _fork(self, command: Command, mark: int) -> ProcessTree:
        before = oom_kills()
        with ExitStack() as ends:
            try:
                their_input, our_input = (ends.enter_context(end) for end in _pipe())
                our_output, their_output = (ends.enter_context(end) for end in _pipe())
            except OSError as error:
                raise NotForkedError(f"it has no pipes: {error.strerror}") from error
            try:
                with self._adoption.open():
                    with their_input, their_output:
                        given = [their_input.fileno(), their_output.fileno()]
                        socket.send_fds(self._socket, [json.dumps({"mark": mark}).encode()], given)
                    pid = await self._forked(mark)
                limit(pid, command)
                tree = ProcessTree(pid, mark, before, Pipes(our_input, our_output))
            except _LeftUnforkedError as error:
                ends.close()
                await _end_all(mark)  # there may be a child that did not get far
                raise NotForkedError(str(error)) from error
            except (OSError, ValueError, TimeoutError) as error:
                self.died = not self.ended
                self.end()
                ends.close()  # a child that there may be reads no more than that
                await self._gone.wait()
                await _end_all(mark)
                raise NotForkedError(str(error) or "its parent did not answer") from error
            ends.pop_all()
            self.forked = True
            return tree

    async def _forked(self, mark: int) -> int:
        """The number of the child that bears the mark."""
        with anyio.fail_after(FORK_LIMIT):
            answer = await self._answer()
        if "failed" in answer:
            raise _LeftUnforkedError(f"the system gave it no process: {answer['failed']}")
        if "pid" not in answer:
            raise ValueError("its parent is gone")
        child = look_at(int(answer["pid"]))
        if child is None or (child.mark, child.session, child.parent) != (mark, child.pid, os.getpid()):
            raise ValueError("the child is not what it should be")
        return child.pid

    async def _settle(self) -> None:
        """Hear what it says of itself, and look at it."""
        try:
            with anyio.fail_after(IMPORT_LIMIT):
                answer = await self._answer()
            if "names" in answer:
                self.names = frozenset(map(str, answer["names"]))
                self.memory = _memory(self.pid)
                others = [member for member in members_of({self.pid}, {self._mark}) if member.pid != self.pid]
                self.unfit = "it starts processes when it is imported" if others else None
            elif "unfit" in answer:
                self.unfit = str(answer["unfit"])
            else:
                self.unfit, self.died = ENDED_EARLY, True
        except TimeoutError:
            self.unfit = f"it was not imported within {IMPORT_LIMIT:g} s"
        except (OSError, ValueError) as error:
            self.unfit, self.died = f"it can't be looked at: {error}", True
        if self.unfit is not None:
            self.end()
        self._settled.set()

    async def _answer(self) -> dict[str, Any]:
        await anyio.wait_readable(self._socket)
        packet = self._socket.recv(PACKET_SIZE)
        answer: dict[str, Any] = json.loads(packet) if packet else {}
        return answer


def identity(venv: Venv) -> tuple[object, ...]:
    """What changes when a venv is replaced, or something is installed into it. Raises OSError: it is gone."""
    looks = [path.stat() for path in (Path(venv.command[-1]), venv.python)]
    installed = [
        (entry.name, entry.inode(), entry.stat().st_mtime_ns)  # the same inode may come again
        for packages in venv.path.glob("lib/python3*/site-packages")
        for entry in os.scandir(packages)
        if entry.name.endswith("-info")
    ]
    files = [(look.st_dev, look.st_ino, look.st_mtime_ns) for look in looks]
    return (venv.path.stat().st_ino, *files, *sorted(installed))


def _interpreter(venv: Venv) -> list[str]:
    """What runs the CLI's script when the system is told to.

    Raises:
        OSError: it can't be run, or it can't be told.
    """
    if len(venv.command) > 1:
        return list(venv.command[:-1])
    script = Path(venv.command[0])
    if not os.access(script, os.X_OK):
        raise OSError(errno.EACCES, "its script is no program")
    with script.open("rb") as file:
        head = os.fsdecode(file.read(HEAD_SIZE))
    if (found := _BY_SHELL.match(head)) is not None:
        return [found["python"]]
    if (found := _BY_ITSELF.match(head)) is not None:
        return [found["python"], *filter(None, [found["argument"]])]
    raise OSError(errno.ENOEXEC, "its script does not name the Python that runs it")


def _preface(command: Command, parent: list[str]) -> bytes:
    """What makes the child this run. Raises NotForkedError: it is for the system to say what is wrong with it."""
    texts = [*command.argv, *(f"{name}={value}" for name, value in command.env.items())]
    if any("\0" in text for text in texts) or any("=" in name or not name for name in command.env):
        raise NotForkedError("its arguments or environment hold what the system does not take")
    try:
        size = sum(len(os.fsencode(text)) for text in texts)
    except UnicodeEncodeError as error:
        raise NotForkedError("its arguments or environment hold what the system does not take") from error
    if size > LONGEST_TEXT or not os.access(command.cwd, os.X_OK):
        raise NotForkedError("its arguments, environment or folder may not be taken by the system")
    script = parent.index(str(_PROGRAM)) + 1
    at = list(command.argv).index(parent[script])
    given = {
        "argv": [_bytes(text) for text in command.argv[at:]],
        "orig_argv": [_bytes(text) for text in (*parent[: script - 1], *command.argv[at:])],
        "cwd": _bytes(str(command.cwd)),
        "env": {_bytes(name): _bytes(value) for name, value in command.env.items()},
    }
    data = json.dumps(given).encode()
    return len(data).to_bytes(8, "big") + data


def _bytes(text: str) -> str:
    """The bytes that the system is to have, as JSON can hold them: the child may be of another locale."""
    return os.fsencode(text).decode("latin-1")


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    """Where to read and where to write."""
    read, write = os.pipe()
    return os.fdopen(read, "rb", 0), os.fdopen(write, "wb", 0)


async def _end_all(mark: int) -> None:
    """End what bears the mark, of which nobody knows where it got to."""
    for _ in range(_ABANDON_ROUNDS):
        try:
            members = list(members_of((), {mark}))
        except OSError:  # without a free descriptor nobody knows; the guard sees to it as well
            return
        for member in members:
            if member.alive:
                send(os.kill, member.pid, signal.SIGKILL)
            elif member.parent == os.getpid():
                collect(member.pid)
        if not members:
            return
        await anyio.sleep(_ABANDON_PACE)


def _memory(pid: int) -> int:
    """Bytes that it adds to what the system's processes hold together (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _drop(chunk: bytes) -> None:
    """What a parent prints belongs to its runs, which print it themselves."""
    del chunk
