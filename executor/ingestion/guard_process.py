"""One guard process, as the executor has it: started, heard, ended."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from executor.ingestion import guardian

CLOSE_LIMIT = 5.0  # seconds for a guard to end by itself once there is nothing left to guard

_BOOT = """
import sys
sys.path.append(sys.argv[1])
from executor.ingestion.guardian import main
main(int(sys.argv[2]))
"""
_ROOT = Path(__file__).parents[2]
# What would end it before the executor: a terminal's Ctrl-C, a supervisor that signals all processes.
_BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class GuardProcess:
    """One guard process."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process, self._pidfd = _start(theirs.fileno())
            except OSError:
                self.socket.close()
                raise
        self.socket.setblocking(False)
        self._ready = False

    async def begun(self) -> bool:
        """Return once it listens, or has ended instead, which makes it False."""
        if not self._ready:
            await anyio.wait_readable(self.socket)
            for _ in self.said():
                pass  # there is nothing else to be heard yet
        return self._ready

    async def exited(self) -> None:
        """Return once it ended."""
        await anyio.wait_readable(self._pidfd)

    def said(self) -> Iterator[bytes]:
        """What it said that nobody has heard yet."""
        while True:
            try:
                packet = self.socket.recv(guardian.PACKET_SIZE)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it died with something of ours unread: what it said is still there
                continue
            if not packet:
                return
            if packet == guardian.READY:
                self._ready = True
            else:
                yield packet

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    async def close(self) -> None:
        """Let it end by itself, if it can, and collect it."""
        self.socket.close()
        with anyio.move_on_after(CLOSE_LIMIT):
            await self.exited()
        self._process.kill()
        self._process.wait()
        os.close(self._pidfd)


def _start(descriptor: int) -> tuple["subprocess.Popen[bytes]", int]:
    with _signals_blocked():  # as the guard's signals will be, from its first moment on
        process = subprocess.Popen(
            # Without site-packages, which it does not need, and with nothing of what its environment may hold
            # but the place of Python's own library.
            [sys.executable, "-ISB", "-c", _BOOT, str(_ROOT), str(descriptor)],
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(descriptor,),
        )
    try:
        return process, os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
