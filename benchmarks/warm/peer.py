"""DataHub's own executor as a process of its own, beside the service."""

import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from secrets import token_hex

import anyio
import anyio.abc

from benchmarks import kernel
from benchmarks.harness import START_DEADLINE, Bench, until

DRIVER = Path(__file__).with_name("peer_driver.py")


class Peer:
    """It takes requests as they would come to it from DataHub's page."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def hand_over(self, request: str) -> float:
        """Give it a request (contract, section 2); the time before, in epoch seconds."""
        if self._process.stdin is None:
            raise RuntimeError("the peer was started without an input")
        before = time.time()
        await self._process.stdin.send(request.encode() + b"\n")
        return before

    def kill(self) -> None:
        """End it and its runs at once."""
        for pid in [self.pid, *kernel.descendants(self.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def peer(bench: Bench) -> AsyncIterator[Peer]:
    """Run it with the CLI's venv as its own, and with the service's bundled venvs.

    Raises:
        RuntimeError: it does not start.
    """
    folder = bench.folder / f"peer-{token_hex(4)}"
    folder.mkdir()
    log = folder / "log"
    with log.open("wb") as output:
        process = await anyio.open_process(
            [str(bench.cli_venv / "bin" / "python"), str(DRIVER), str(folder)],
            env={**bench.base_env(), "DATAHUB_BUNDLED_VENV_PATH": str(bench.bundled)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    running = Peer(process)
    try:
        await until(
            lambda: process.returncode is not None or b"ready\n" in log.read_bytes(), limit=START_DEADLINE
        )
        if process.returncode is not None:
            raise RuntimeError(f"the peer ended; its log ends:\n{log.read_text()[-2000:]}")
        yield running
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                running.kill()
            await process.aclose()
