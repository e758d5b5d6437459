"""Launches a helper program (uv) and streams what it prints."""

import errno
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, Process

RunTool = Callable[
    [Sequence[str], Mapping[str, str], bytes | None, Callable[[bytes], None]],
    Awaitable[int],
]
"""`run(argv, environ, stdin, output)` awaits the exit code (negative: the signal that ended it). `output`
gets what the program prints, both streams, in chunks as they come. Cancelling it ends the process tree."""

_TERMINATE_GRACE = 5.0  # seconds between SIGTERM and SIGKILL


async def run_tool(
    argv: Sequence[str], environ: Mapping[str, str], stdin: bytes | None, output: Callable[[bytes], None]
) -> int:
    """Run `argv` in a session of its own; see `RunTool`.

    Raises:
        OSError: The program can't be started.
    """
    process = await anyio.open_process(
        argv,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environ,
        start_new_session=True,
    )
    try:
        async with anyio.create_task_group() as tasks:
            if process.stdin is not None and stdin is not None:
                tasks.start_soon(_feed, process.stdin, stdin)
            if process.stdout is not None:
                tasks.start_soon(_drain, process.stdout, output)
            code = await process.wait()
            _signal_group(process, signal.SIGKILL)  # what it left behind would keep the pipe open
        return code
    finally:
        with anyio.CancelScope(shield=True):
            await _end_tree(process)


async def _feed(stream: ByteSendStream, data: bytes) -> None:
    async with stream:
        try:
            await stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # it ended without reading everything: its exit code tells why


async def _drain(stream: ByteReceiveStream, output: Callable[[bytes], None]) -> None:
    async for chunk in stream:
        output(chunk)


async def _end_tree(process: Process) -> None:
    if process.returncode is None:
        _signal_group(process, signal.SIGTERM)
        with anyio.move_on_after(_TERMINATE_GRACE):
            await process.wait()
        _signal_group(process, signal.SIGKILL)
        await process.wait()
    await process.aclose()


def _signal_group(process: Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except OSError as error:
        if error.errno not in (errno.ESRCH, errno.EPERM):  # gone, or only zombies are left
            raise
