"""Tells which processes of the machine belong to a tree. Linux only.

What a tree starts is recognised by its session, and by a resource limit that every process inherits and that
none needs: a daemon which forks twice, opens a session of its own and clears its environment is found, too.
Beyond reach are a process that raised that limit again, one that changed to a user whom we may not signal, and
one that goes on forking into new sessions faster than we look: only the end of the container ends those.
"""

import os
import resource
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Processor time in microseconds that a real-time process may take in one go. No other kind of process ever
# meets this limit, so that a large odd value does nothing but mark the tree; see setrlimit(2).
_MARK_LIMIT = resource.RLIMIT_RTTIME
_LARGEST_MARK = 2**62


@dataclass(frozen=True, slots=True)
class Member:
    """A process as `/proc/<pid>/stat` tells of it (proc(5): fields 1 and 3 to 6)."""

    pid: int
    state: str
    parent: int
    group: int
    session: int

    @property
    def alive(self) -> bool:
        """Whether it can still do something: a zombie only waits to be collected."""
        return self.state not in "ZX"


def members_of(session: int, mark: int) -> Iterator[Member]:
    """The processes of that session or with that mark, dead ones that nobody has collected included.

    Raises:
        OSError: they can't be looked at: this process has no file descriptor left, say.
    """
    for entry in os.listdir("/proc"):  # noqa: PTH208 - numbers only, no Path objects in a hot loop
        if not entry.isdigit():
            continue
        pid = int(entry)
        # Two system calls for a stranger; only a member's file is read.
        if (_session_of(pid) == session or _mark_of(pid) == mark) and (member := _look_at(pid)):
            yield member


def new_mark() -> int:
    """A mark that no other tree bears."""
    _, hard = resource.getrlimit(_MARK_LIMIT)
    half = (_LARGEST_MARK if hard == resource.RLIM_INFINITY else hard) // 2
    return half + secrets.randbelow(half)


@contextmanager
def marked(mark: int) -> Iterator[None]:
    """Let what is started meanwhile inherit the mark: set on it later, its first child could be without."""
    soft, hard = resource.getrlimit(_MARK_LIMIT)
    resource.setrlimit(_MARK_LIMIT, (mark, hard))
    try:
        yield
    finally:
        resource.setrlimit(_MARK_LIMIT, (soft, hard))


def _look_at(pid: int) -> Member | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
            fields = file.read().rpartition(b")")[2].split(maxsplit=4)
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended meanwhile
        return None
    return Member(pid, fields[0].decode(), *map(int, fields[1:4]))


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _mark_of(pid: int) -> int | None:
    try:
        return resource.prlimit(pid, _MARK_LIMIT)[0]
    except (ProcessLookupError, PermissionError):  # it ended meanwhile, or belongs to somebody else
        return None
