"""`datahub-executor` as a process of its own, and the settings with which it finds the servers of a test."""

import asyncio
import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process

from executor.local.datahub import DataHubStandIn
from tests.servers import LocalStack


def settings_for(
    queue: str, localstack: LocalStack, datahub: DataHubStandIn, work_dir: Path
) -> dict[str, str]:
    return {
        **os.environ,
        **localstack.env,
        "DATAHUB_GMS_URL": datahub.url,
        "DATAHUB_GMS_TOKEN": "t",
        "DATAHUB_EXECUTOR_QUEUE": queue,
        "DATAHUB_EXECUTOR_WORK_DIR": str(work_dir),
    }


async def executor(
    *arguments: str, env: dict[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; no command ever shows a traceback."""
    with anyio.fail_after(60):
        done = await anyio.run_process([*COMMAND, *arguments], input=stdin, env=env, check=False)
    assert b"Traceback" not in done.stdout + done.stderr, done.stderr.decode()
    return done


COMMAND = [sys.executable, "-m", "executor"]


@asynccontextmanager
async def started(*arguments: str, env: dict[str, str]) -> AsyncIterator[Process]:
    """A command that runs; killed at the end if it still does."""
    async with await anyio.open_process([*COMMAND, *arguments], env=env) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()


async def executor_on_terminal(
    *arguments: str, env: dict[str, str], shown: dict[str, anyio.Event] | None = None
) -> tuple[int, str]:
    """Run a command with a terminal of 100 columns and 12 lines as its output; exit code and what it wrote.

    The events of `shown` are set once their words are on the terminal.
    """
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 100, 0, 0))
    written, closed = bytearray(), anyio.Event()
    loop = asyncio.get_running_loop()

    def take() -> None:
        try:
            written.extend(os.read(ours, 65536))
        except OSError:  # nobody holds the other end any more
            loop.remove_reader(ours)
            closed.set()
        for words, event in (shown or {}).items():
            if words.encode() in written:
                event.set()

    try:
        with anyio.fail_after(60):
            process = await anyio.open_process(
                [*COMMAND, *arguments], env={**env, "TERM": "xterm-256color"}, stdout=its, stderr=its
            )
            os.close(its)
            loop.add_reader(ours, take)
            async with process:
                await process.wait()
            await closed.wait()
    finally:
        os.close(ours)
    return process.returncode or 0, written.decode()
