"""The guard: a process of its own that ends what the executor started when the executor no longer can.

It is told of every tree before that is started, and of the time until which it may go on. It kills a tree whose
time has come, whatever the executor is doing, and all of them when the executor is gone, which it learns from
the end of their socket. It runs without site-packages and imports next to nothing, to stay small; it does
nothing while nothing happens. `guard` is the executor's side of it.

A message is a packet of words: `READY`, `ENDED <mark>` and `PONG` from here; from the executor `PING`, which is
answered at once with `PONG`,
`WATCH <mark> <session, 0 if not known yet> <deadline on the monotonic clock, or "inf">` for a new tree or a
change, `FORGET <mark>` once nothing is left of it, `END <mark>` to have that done here.
"""

from __future__ import annotations

import os
import select
import time

from executor.ingestion.members import members_of

TYPE_CHECKING = False  # as in `typing`, see `members`
if TYPE_CHECKING:
    from collections.abc import Callable

READY, ENDED, PONG = b"ready", b"ended", b"pong"
WATCH, FORGET, END, PING = b"watch", b"forget", b"end", b"ping"
PACKET_SIZE = 256  # bytes; more than any message has

_SIGKILL = 9  # on every Linux; the module `signal` would take most of a megabyte
_KILL_PACE = 0.05  # seconds between two looks at a tree that must not live
_LAST_PACE = 0.01  # the same once the executor is gone
_LAST_ROUNDS = 3000  # looks then, before giving up on a process in uninterruptible sleep
_EMPTY_LOOKS = 2  # a process may fork and end while one is under way
_LONGEST_WAIT = 3600.0  # seconds; poll(2) takes milliseconds in an int


class _Tree:
    """What the executor said of a tree."""

    __slots__ = ("deadline", "over", "session", "told")

    def __init__(self) -> None:
        self.session = 0
        self.deadline = float("inf")
        self.over = False  # and stays so: who missed a deadline can't put it off any more
        self.told = False


class Guardian:
    """The trees that are watched, and the socket to the executor."""

    def __init__(self, descriptor: int) -> None:
        self._socket = descriptor
        self._trees: dict[int, _Tree] = {}
        self._leaving: dict[int, int] = {}  # how often one that is ended for good was found empty
        os.set_blocking(descriptor, False)

    def run(self) -> None:
        """Watch until the executor is gone, then end all that is left."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        self._say(READY)
        while self._hear():
            self._act(time.monotonic())
            poll.poll(self._pause(time.monotonic()) * 1000)
        for tree in self._trees.values():
            tree.over = True
        empty = 0
        for _ in range(_LAST_ROUNDS):
            empty = empty + 1 if self._kill() == set() else 0
            if empty == _EMPTY_LOOKS:
                return
            time.sleep(0 if empty else _LAST_PACE)

    def _hear(self) -> bool:
        """Take in what the executor sent; whether it is still there."""
        while True:
            try:
                packet = os.read(self._socket, PACKET_SIZE)
            except BlockingIOError:
                return True
            except ConnectionResetError:  # it went with something of ours unread: what it sent is still there
                continue
            if not packet:
                return False
            if packet == PING:
                self._say(PONG)
                continue
            verb, mark, *rest = packet.split()
            self._obey(verb, int(mark), rest)

    def _obey(self, verb: bytes, mark: int, rest: list[bytes]) -> None:
        if verb == FORGET:
            self._trees.pop(mark, None)
            self._leaving.pop(mark, None)
            return
        tree = self._trees.setdefault(mark, _Tree())
        if verb == END:
            tree.over = tree.told = True
            self._leaving[mark] = 0
        else:
            tree.session, tree.deadline = int(rest[0]), float(rest[1])

    def _act(self, now: float) -> None:
        for mark, tree in self._trees.items():
            tree.over = tree.over or tree.deadline <= now
            if tree.over and not tree.told:
                # Told first, so that the executor knows it before it sees the end of the process.
                tree.told = self._say(b"%s %d" % (ENDED, mark))
        # Those that are over stay so until they are forgotten: an executor that was stopped just before it
        # starts a process goes on with that when it wakes.
        if not any(tree.over for tree in self._trees.values()):
            return
        alive = self._kill()
        for mark in list(self._leaving):
            self._leaving[mark] = 0 if alive is None or mark in alive else self._leaving[mark] + 1
            if self._leaving[mark] == _EMPTY_LOOKS:
                self._obey(FORGET, mark, [])

    def _kill(self) -> set[int] | None:
        """Kill what lives of the trees that are over. The marks of those that did; None if nobody knows."""
        over = {mark: tree.session for mark, tree in self._trees.items() if tree.over}
        of_session = {session: mark for mark, session in over.items() if session}
        alive: set[int] = set()
        try:
            for member in members_of(of_session, over):
                # While the executor starts a process, it bears that one's mark itself.
                if member.alive and member.pid != os.getppid():
                    alive.add(member.mark if member.mark in over else of_session.get(member.session, 0))
                    _send_kill(os.kill, member.pid)
        except OSError:  # the system has no file descriptors left: the groups can be reached without
            for session in of_session:
                _send_kill(os.killpg, session)
            return None
        return alive

    def _pause(self, now: float) -> float:
        """Seconds until there is something to do if no message comes."""
        if any(tree.over for tree in self._trees.values()):
            return _KILL_PACE
        nearest = min((tree.deadline for tree in self._trees.values()), default=float("inf"))
        return min(max(nearest - now, 0), _LONGEST_WAIT)

    def _say(self, packet: bytes) -> bool:
        """Whether it was sent: the executor may be gone, or stopped with its buffer full."""
        try:
            os.write(self._socket, packet)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True


def _send_kill(how: Callable[[int, int], None], target: int) -> None:
    try:
        how(target, _SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # gone meanwhile; or it changed its user, which only the container's end can answer


def main(descriptor: int) -> None:
    """Be the guard; `descriptor` is its end of the socket."""
    Guardian(descriptor).run()
