"""A warm parent: has imported the CLI and a source's plugin, and forks a child for each run.

A program of its own, for the venv's Python (3.8 or newer) and its standard library:

    python warm_parent.py <the CLI's script> <source type> <descriptor of a SOCK_SEQPACKET socket>

It says `{"names": [...]}` once it is ready, the environment variables that its imports looked at; or
`{"unfit": "why"}`, and ends. A request is `{"mark": ...}` with two descriptors, the run's standard input and its
output; the answer is `{"pid": ...}` or `{"failed": "why"}`. It ends when the other end of the socket is closed.

The child bears the run's mark from its first moment on, leads a session of its own and is orphaned, to be adopted
by whoever started the parent (a subreaper, prctl(2)). It reads from its standard input what makes it that run:
eight bytes of length, then JSON with `argv`, `orig_argv`, `cwd` and `env`. The parent sees nothing of that. Then it
executes the CLI's script, as Python would have.
"""

from __future__ import annotations

import sys

if sys.path and sys.path[0] == __file__.rpartition("/")[0]:
    sys.path[0] = sys.argv[1].rpartition("/")[0]  # where Python looks first if it runs the script itself

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import socket
import struct
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import _Environ
    from typing import Any, NoReturn

    Environment = _Environ[str]
else:
    Environment = type(os.environ)

REQUEST_SIZE = 256  # bytes; more than any request has
REASON_LIMIT = 300  # characters
# What each run imports besides the CLI's entry and its source; what of it there is, depends on the CLI's version.
_EVERY_RUN = ("datahub.ingestion.sink.datahub_rest", "datahub.ingestion.reporting.file_reporter", "aiohttp")


class Unfit(Exception):  # noqa: N818 - a verdict
    """A run that is forked from here would not be the one that a start from nothing would be."""


class RecordedEnvironment(Environment):
    """The environment while imports go on: knows the names that were looked at, and what was changed."""

    names: set[str] = set()  # noqa: RUF012 - there is one environment
    changes: dict[str, str | None] = {}  # noqa: RUF012
    read_whole = False

    def __getitem__(self, name: Any) -> Any:  # noqa: ANN401 - bytes in `os.environb`
        self.names.add(os.fsdecode(name))
        return super().__getitem__(name)

    def __setitem__(self, name: Any, value: Any) -> None:  # noqa: ANN401
        super().__setitem__(name, value)
        self.changes[os.fsdecode(name)] = os.fsdecode(value)

    def __delitem__(self, name: Any) -> None:  # noqa: ANN401
        super().__delitem__(name)
        self.changes[os.fsdecode(name)] = None

    def __iter__(self) -> Iterator[Any]:
        type(self).read_whole = True
        return super().__iter__()


class Parent:
    """What all runs have in common: the CLI's script, and what the imports left behind."""

    def __init__(self, script: str, source_type: str) -> None:
        with open(script, "rb") as file:  # noqa: PTH123
            self.code = compile(file.read(), script, "exec")
        # Python itself sets some variables before it gets here (PEP 538).
        with open("/proc/self/environ", "rb") as file:  # noqa: PTH123
            given = dict(os.fsdecode(item).split("=", 1) for item in file.read().split(b"\0") if b"=" in item)
        self.changes: dict[str, str | None] = {
            name: value for name, value in os.environ.items() if given.get(name) != value
        }
        sys.argv = [script]
        descriptors, mappings = _descriptors(), _shared_mappings()
        with _Captured() as printed:
            self.names = self._import(source_type)
        self.printed = printed.text
        # Libraries that know of forks, as numpy's, end their threads before one, to start them again when needed.
        trial = os.fork()
        if not trial:
            os._exit(0)
        os.waitpid(trial, 0)
        if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
            raise Unfit("it starts threads when it is imported")
        if _descriptors() != descriptors:
            raise Unfit("it opens files or connections when it is imported, and keeps them")
        if _shared_mappings() - mappings:
            raise Unfit("it shares memory with other processes when it is imported")
        if signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0):
            raise Unfit("it sets an alarm when it is imported")

    def _import(self, source_type: str) -> list[str]:
        environments: tuple[Any, ...] = (os.environ, os.environb)
        for environment in environments:
            environment.__class__ = RecordedEnvironment
        try:
            importlib.import_module("datahub.entrypoints")
            sources = importlib.import_module("datahub.ingestion.source.source_registry")
            sources.source_registry.get(source_type)
            for name in _EVERY_RUN:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        finally:
            for environment in environments:
                environment.__class__ = Environment
        if RecordedEnvironment.read_whole:
            raise Unfit("it looks at the whole environment when it is imported")
        self.changes.update(RecordedEnvironment.changes)
        return sorted(RecordedEnvironment.names)

    def serve(self, channel: socket.socket) -> None:
        """Fork a child for each request. Returns in the child, as the run."""
        while True:
            packet, descriptors = _receive(channel)
            if not packet:
                os._exit(0)
            there, answer = os.pipe()
            try:
                intermediate = os.fork()
            except OSError as error:
                intermediate, reason = -1, error.strerror
            if not intermediate:
                os.close(there)
                _orphan(json.loads(packet)["mark"])
                os.write(answer, b"%d" % os.getpid())
                for descriptor in (channel.detach(), answer):
                    os.close(descriptor)
                _take(*descriptors)
                return
            for descriptor in (*descriptors, answer):
                os.close(descriptor)
            if intermediate > 0:
                pid, reason = os.read(there, 32), "the child could not be forked"
                os.waitpid(intermediate, 0)  # from here on the child is its adopter's
            else:
                pid = b""
            os.close(there)
            channel.send(json.dumps({"pid": int(pid)} if pid else {"failed": reason}).encode())

    def become(
        self, argv: list[str], orig_argv: list[str], cwd: str, env: dict[str, str]
    ) -> types.ModuleType:
        """Be as if Python had been started with these; the module that the script is to be run in.

        All texts are bytes, a character each.
        """
        os.environ.clear()
        for name, value in env.items():
            os.environb[name.encode("latin-1")] = value.encode("latin-1")
        for name, change in self.changes.items():
            if change is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = change
        cwd = _text(cwd)
        os.chdir(cwd)
        sys.argv = [_text(text) for text in argv]
        if hasattr(sys, "orig_argv"):
            sys.orig_argv = [_text(text) for text in orig_argv]
        _refresh(cwd)
        main = types.ModuleType("__main__")
        main.__dict__.update(__file__=sys.argv[0], __builtins__=__builtins__, __cached__=None)
        sys.modules["__main__"] = main
        while self.printed:  # at its import: it belongs to each run
            self.printed = self.printed[os.write(1, self.printed) :]
        return main


class _Captured:
    """What is printed meanwhile, whoever prints it."""

    text = b""

    def __enter__(self) -> _Captured:
        if hasattr(os, "memfd_create"):  # Python may have been built for a libc without
            self._file = os.memfd_create("printed")
        else:
            self._file = os.open("/tmp", os.O_RDWR | os.O_TMPFILE, 0o600)  # noqa: S108 - it has no name there
        self._streams = os.dup(1), os.dup(2)
        for descriptor in (1, 2):
            os.dup2(self._file, descriptor)
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor, stream in zip((1, 2), self._streams):  # noqa: B905 - not in Python 3.8
            os.dup2(stream, descriptor)
            os.close(stream)
        self.text = os.pread(self._file, os.fstat(self._file).st_size, 0)
        os.close(self._file)


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found[name] = os.readlink("/proc/self/fd/" + name)  # noqa: PTH115
        except OSError:
            continue  # the one that the folder was read with
    return found


def _shared_mappings() -> set[str]:
    """Memory that a child would go on sharing with this process."""
    with open("/proc/self/maps") as file:  # noqa: PTH123
        return {line for line in file if line.split()[1].startswith("rw") and line.split()[1].endswith("s")}


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    packet, ancillary, _, _ = channel.recvmsg(REQUEST_SIZE, socket.CMSG_SPACE(2 * 4))
    descriptors = [
        number
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for number in struct.unpack("%di" % (len(data) // 4), data)  # noqa: UP031
    ]
    return packet, descriptors


def _orphan(mark: int) -> None:
    """Go on as a child of nobody, marked before it is there, in a session of its own."""
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        resource.setrlimit(resource.RLIMIT_RTTIME, (mark, hard))
        if os.fork():
            os._exit(0)
        os.setsid()
    except BaseException:  # noqa: BLE001 - nothing but a child that is right may get out of here
        os._exit(1)


def _take(stdin: int, stdout: int) -> None:
    for descriptor, place in ((stdin, 0), (stdout, 1), (stdout, 2)):
        os.dup2(descriptor, place)
    for descriptor in (stdin, stdout):
        os.close(descriptor)


def _read(size: int) -> bytes:
    """So many bytes of standard input, and none that follow. Ends the process if there is less."""
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            os._exit(1)
        data += chunk
    return data


def _text(text: str) -> str:
    return os.fsdecode(text.encode("latin-1"))


def _refresh(cwd: str) -> None:
    """What a process makes when it imports a module, and must not share with another one.

    Python sees to `random`, OpenSSL to its own generator.
    """
    processes: Any = sys.modules.get("multiprocessing.process")
    if processes is not None:
        processes.current_process().authkey = os.urandom(32)
        processes.ORIGINAL_DIR = cwd
    numbers: Any = sys.modules.get("numpy.random")
    if numbers is not None:
        numbers.seed()


def _run(code: types.CodeType, main: types.ModuleType) -> None:
    try:
        exec(code, main.__dict__)  # noqa: S102 - it is the CLI's script
    except Exception as error:  # noqa: BLE001 - as Python ends, without the frames of this file
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.exit(1)


def _fork_runs(script: str, source_type: str, channel: socket.socket) -> None:
    try:
        parent = Parent(script, source_type)
    except BaseException as error:  # noqa: BLE001 - whatever a package does when it is imported
        _give_up(channel, error)
    gc.collect()
    gc.freeze()
    channel.send(json.dumps({"names": parent.names}).encode())
    parent.serve(channel)
    (length,) = struct.unpack("!Q", _read(8))
    main = parent.become(**json.loads(_read(length)))
    _run(parent.code, main)


def _give_up(channel: socket.socket, error: BaseException) -> NoReturn:
    reason = str(error) if isinstance(error, Unfit) else f"{type(error).__name__}: {error}"
    channel.send(json.dumps({"unfit": reason[:REASON_LIMIT]}).encode())
    os._exit(1)


if __name__ == "__main__":
    _fork_runs(sys.argv[1], sys.argv[2], socket.socket(fileno=int(sys.argv[3])))
