"""What a run is given on its standard input, and what it prints."""

import fcntl
import os
from collections.abc import Callable
from typing import IO

import anyio

READ_SIZE = 1024 * 1024  # bytes a read; not less than PIPE_SIZE, so that one read empties the pipe
READ_PACE = 0.005  # seconds between two reads while less than a whole one is waiting
PIPE_SIZE = 1024 * 1024  # bytes the kernel buffers, where it lets us: a run need not wait for READ_PACE


class Pipes:
    """A process's standard input, and its output and errors as one stream."""

    def __init__(self, stdin: IO[bytes] | None, stdout: IO[bytes] | None) -> None:
        self._stdin, self._stdout = _pipe(stdin), _pipe(stdout)
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        _widen(self._stdout)

    async def serve(
        self,
        data: bytes,
        output: Callable[[bytes], None],
        may_begin: Callable[[], bool],
        until: anyio.CancelScope,
    ) -> None:
        """Feed `data` to it and hand its output on, until no process holds the pipes or `until` is cancelled.

        `may_begin` is asked right before it gets anything, and may keep all of it back.
        """
        with until:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._feed, data, may_begin)
                tasks.start_soon(self._hand_on, output)
        if chunk := self._read():  # what was left when all who wrote to it were gone, or counted no more
            output(chunk)

    def close(self) -> None:
        """Nothing more is given or read."""
        self._stdin.close()
        self._stdout.close()

    async def _feed(self, data: bytes, may_begin: Callable[[], bool]) -> None:
        """Write `data` and close the pipe; a process that does not want to read it may."""
        view = memoryview(data)
        try:
            if not may_begin():
                return
            while view:
                try:
                    view = view[os.write(self._stdin.fileno(), view) :]
                except BlockingIOError:
                    await anyio.wait_writable(self._stdin)
        except BrokenPipeError:
            return  # its exit code will say the rest
        finally:
            self._stdin.close()

    async def _hand_on(self, output: Callable[[bytes], None]) -> None:
        """Hand on its output as it comes, until no process holds the pipe any more."""
        while True:
            await anyio.wait_readable(self._stdout)
            chunk = self._read()
            if chunk is None:
                continue
            if not chunk:
                return
            output(chunk)
            if len(chunk) < READ_SIZE:  # a writer of small pieces must not wake us for each of them
                await anyio.sleep(READ_PACE)

    def _read(self) -> bytes | None:
        """What lies in the pipe: b"" at its end, None if there is nothing yet."""
        try:
            return os.read(self._stdout.fileno(), READ_SIZE)
        except BlockingIOError:
            return None


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the process was started without this pipe")
    return stream


def _widen(stream: IO[bytes]) -> None:
    try:
        fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        return  # the user's share of pipe memory is used up (pipe(7)); the default size works as well
