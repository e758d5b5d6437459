"""Process trees that the tests start, and what can be seen of them from outside."""

import os
import secrets
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio

from executor.ingestion.process import Command

# `stay` becomes a program that sleeps for ever, with an empty environment, and says so once it is there.
LIBRARY = """
import os, resource, signal, sys, time
there, ready = os.pipe()
os.set_inheritable(ready, True)
def stay(first="pass"):
    code = f"import os, signal, time; {first}; os.write({ready}, b'.'); time.sleep(600)"
    os.execve(sys.executable, [sys.executable, "-ISc", code, sys.argv[1]], {})
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # also from within a signal's handler
def on_term(words, code=None):
    def told(*_):
        say(words)
        if code is not None:
            os._exit(code)
    signal.signal(signal.SIGTERM, told)
"""
QUIET = "[os.dup2(os.open(os.devnull, os.O_RDWR), fd) for fd in range(3)]"
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
OFFSPRING = {
    "child that holds the output open": "if os.fork() == 0: stay()",
    "child in a group of its own": "if os.fork() == 0: os.setpgid(0, 0); stay()",
    "child in a session of its own": "if os.fork() == 0: os.setsid(); stay()",
    "daemon": f"""
if os.fork() == 0:
    os.setsid(); os.chdir("/")
    if os.fork() == 0: stay({QUIET!r})
    os._exit(0)
""",
    "daemon that holds the output open": """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: stay()
    os._exit(0)
""",
}


@dataclass
class Output:
    """What a command printed so far."""

    data: bytes = b""
    _more: anyio.Event = field(default_factory=anyio.Event)

    def __call__(self, chunk: bytes) -> None:
        self.data += chunk
        self._more.set()
        self._more = anyio.Event()

    async def holds(self, text: bytes) -> None:
        while text not in self.data:
            await self._more.wait()


@dataclass
class Script:
    """A Python program that knows LIBRARY; every process that comes of it bears its token as an argument."""

    source: str
    token: str = field(default_factory=partial(secrets.token_hex, 8))

    def command(self, cwd: Path, stdin: bytes = b"", memory_limit: int | None = None) -> Command:
        argv = [sys.executable, "-ISc", LIBRARY + self.source, self.token]
        return Command(argv, {}, cwd, stdin, memory_limit)

    def alive(self) -> list[str]:
        """The command lines of those that are still there; a zombie has none."""
        return [f"{folder.name}: {_read(folder / 'cmdline')}" for folder in self._processes()]

    def states(self) -> list[str]:
        """Their states as proc(5) names them."""
        return [_read(folder / "stat").rpartition(")")[2][1:2] for folder in self._processes()]

    def _processes(self) -> list[Path]:
        return [folder for folder in Path("/proc").glob("[0-9]*") if self.token in _read(folder / "cmdline")]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it ended meanwhile
        return ""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def zombies() -> list[str]:
    """Children of ours that ended and were not collected."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        state, parent, *_ = _read(folder / "stat").rpartition(")")[2].split() or ("", "")
        if state == "Z" and parent == str(os.getpid()):
            found.append(folder.name)
    return found


def guards(executor: int) -> list[int]:
    """The guards that are children of this process and have become what they are to be."""
    return children("guardian", executor)


def children(word: str, parent: int | None = None) -> list[int]:
    """The children of a process, this one if none is named, that have a word in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            its_parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if its_parent == (parent or os.getpid()) and word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it ended meanwhile
    return found
