"""Launches a helper program (uv) and streams what it prints."""

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from executor.ingestion.process import Command, ProcessStartError, run_process

RunTool = Callable[
    [Sequence[str], Mapping[str, str], bytes | None, Callable[[bytes], None]],
    Awaitable[int],
]
"""`run(argv, environ, stdin, output)` awaits the exit code (negative: the signal that ended it). `output`
gets what the program prints, both streams, in chunks as they come. Cancelling it ends the process tree."""

_TERMINATION_GRACE = 5.0  # seconds between SIGTERM and SIGKILL


async def run_tool(
    argv: Sequence[str], environ: Mapping[str, str], stdin: bytes | None, output: Callable[[bytes], None]
) -> int:
    """Run `argv` in a session of its own; see `RunTool`.

    Raises:
        OSError: The program can't be started.
    """
    command = Command(argv, environ, cwd=Path(), stdin=stdin or b"")
    try:
        ended = await run_process(command, output, grace=lambda: _TERMINATION_GRACE)
    except ProcessStartError as error:
        raise OSError(errno.ENOEXEC, error.reason) from error
    return ended.returncode
