"""Launches a helper program (uv) and streams what it prints."""

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from executor.ingestion.guard import Guard, open_guard
from executor.ingestion.process import Command, ProcessStartError, run_process

RunTool = Callable[
    [Sequence[str], Mapping[str, str], bytes | None, Callable[[bytes], None]],
    Awaitable[int],
]
"""`run(argv, environ, stdin, output)` awaits the exit code (negative: the signal that ended it). `output`
gets what the program prints, both streams, in chunks as they come. Cancelling it ends the process tree."""

_TERMINATION_GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def guarded_by(guard: Guard) -> RunTool:
    """The `RunTool` whose programs end with this process at the latest, each in a session of its own.

    It raises OSError if a program can't be started.
    """

    async def run(
        argv: Sequence[str], environ: Mapping[str, str], stdin: bytes | None, output: Callable[[bytes], None]
    ) -> int:
        command = Command(argv, environ, cwd=Path(), stdin=stdin or b"")
        try:
            ended = await run_process(command, output, guard=guard, grace=lambda: _TERMINATION_GRACE)
        except ProcessStartError as error:
            raise OSError(errno.ENOEXEC, error.reason) from error
        return ended.returncode

    return run


async def run_tool(
    argv: Sequence[str], environ: Mapping[str, str], stdin: bytes | None, output: Callable[[bytes], None]
) -> int:
    """Run a single program under a guard of its own; see `RunTool`.

    Raises:
        OSError: The program can't be started.
    """
    async with open_guard() as guard:
        try:
            return await guarded_by(guard)(argv, environ, stdin, output)
        except OSError as error:  # a task group would wrap it
            failure = error
    raise failure
