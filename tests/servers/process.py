"""A server as a process: started, waited for, and ended for certain."""

import ctypes
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_DEADLINE = 60.0  # seconds that a server may take until it answers
STOP_DEADLINE = 10.0  # seconds that a server may take to stop before it is killed
POLL_INTERVAL = 0.05  # seconds between two looks at a server that starts

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class ServerUnavailableError(RuntimeError):
    """A server can't be had on this machine; the message says why and what to do."""


def identity_of(user: str) -> dict[str, Any]:
    """The arguments that have `subprocess` run a program as this user of the system."""
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server_process(
    argv: list[str],
    *,
    ready: Callable[[], bool],
    log: Path,
    env: Mapping[str, str],
    stop_signal: signal.Signals = signal.SIGTERM,
    identity: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Run a server until the block ends, in a process group of its own and in the folder of its `log`.

    `ready` is polled until it holds. The group is ended with `stop_signal`, then SIGKILL; should the tests
    themselves be killed, the kernel sends the server `stop_signal`.

    Raises:
        ServerUnavailableError: it ended or did not answer within START_DEADLINE; its log's end is quoted.
    """

    def die_with_the_tests() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(stop_signal), 0, 0, 0)

    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=log.parent,
            start_new_session=True,
            preexec_fn=die_with_the_tests,
            **(identity or {}),
        )
    try:
        deadline = time.monotonic() + START_DEADLINE
        while not ready():
            code = process.poll()
            if code is not None or time.monotonic() > deadline:
                how = "did not answer in time" if code is None else f"ended with {code}"
                tail = log.read_text(errors="replace")[-2000:]
                raise ServerUnavailableError(f"{' '.join(argv)}\n{how}; its log ends:\n{tail}")
            time.sleep(POLL_INTERVAL)
        yield
    finally:
        _end(process, stop_signal)


def _end(process: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    process.send_signal(stop_signal)
    try:
        process.wait(STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        with suppress(ProcessLookupError):  # nothing of the group is left, as it should be
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
