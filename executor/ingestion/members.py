"""Tells which processes of the machine belong to a tree. Linux only.

What a tree starts is recognised by its session, and by a resource limit that every process inherits and that
none needs (see `marks`): a daemon which forks twice, opens a session of its own and clears its environment is
found, too. Beyond reach are a process that raised that limit again, one that changed to a user whom we may not
signal, and one that goes on forking into new sessions faster than we look: only the end of the container ends
those.

The guard, which must stay small, has this module in its memory: it imports next to nothing.
"""

from __future__ import annotations

import os
import resource

TYPE_CHECKING = False  # as in `typing`, which would take half a megabyte
if TYPE_CHECKING:
    from collections.abc import Container, Iterator

# Processor time in microseconds that a real-time process may take in one go. No other kind of process ever
# meets this limit, so that a large odd value does nothing but mark the tree; see setrlimit(2).
MARK_LIMIT = resource.RLIMIT_RTTIME


class Member:
    """A process as `/proc/<pid>/stat` tells of it (proc(5): fields 1 and 3 to 6)."""

    __slots__ = ("group", "mark", "parent", "pid", "session", "state")

    def __init__(self, pid: int, mark: int | None, stat: bytes) -> None:
        state, parent, group, session = stat.rpartition(b")")[2].split(maxsplit=4)[:4]
        self.pid = pid
        self.mark = mark
        self.state = state.decode()
        self.parent = int(parent)
        self.group = int(group)
        self.session = int(session)

    @property
    def alive(self) -> bool:
        """Whether it can still do something: a zombie only waits to be collected."""
        return self.state not in "ZX"


def members_of(sessions: Container[int | None], marks: Container[int | None]) -> Iterator[Member]:
    """The processes of those sessions or with those marks, dead ones that nobody has collected included.

    Raises:
        OSError: they can't be looked at: this process has no file descriptor left, say.
    """
    for entry in os.listdir("/proc"):  # noqa: PTH208 - numbers only, no Path objects in a hot loop
        if not entry.isdigit():
            continue
        pid = int(entry)
        # Two system calls for a stranger; only a member's file is read.
        mark = _mark_of(pid)
        if (mark in marks or _session_of(pid) in sessions) and (member := _look_at(pid, mark)):
            yield member


def look_at(pid: int) -> Member | None:
    """What that process is; None if there is none."""
    return _look_at(pid, _mark_of(pid))


def _look_at(pid: int, mark: int | None) -> Member | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
            return Member(pid, mark, file.read())
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended meanwhile
        return None


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _mark_of(pid: int) -> int | None:
    try:
        return resource.prlimit(pid, MARK_LIMIT)[0]
    except (ProcessLookupError, PermissionError):  # it ended meanwhile, or belongs to somebody else
        return None
