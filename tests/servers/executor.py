"""The service as a process of its own, as an operator starts it."""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio

from tests.servers.process import free_port

T = TypeVar("T")

RUN = (sys.executable, "-m", "executor", "run")
DEADLINE = 60.0  # seconds that anything expected of the service may take


class ExecutorProcess:
    """`datahub-executor run`, its log and its end."""

    def __init__(self, env: Mapping[str, str], log: Path, argv: Sequence[str] = RUN) -> None:
        self.env = env
        self.log = log
        self.argv = argv
        self.process: anyio.abc.Process

    async def start(self) -> None:
        """Start it; the log's file gets what it prints."""
        with self.log.open("wb") as output:
            self.process = await anyio.open_process(self.argv, env=self.env, stdout=output, stderr=output)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Have it run; killed at the end if it still does."""
        await self.start()
        try:
            yield self
        finally:
            if self.process.returncode is None:
                self.process.kill()
            with anyio.CancelScope(shield=True):
                await self.process.aclose()

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The events in its log, all or those of one name."""
        lines = self.log.read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in events if name is None or event["event"] == name]

    async def until(
        self, name: str, condition: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> dict[str, Any]:
        """The first event of that name that fulfils the condition, waited for."""
        return await eventually(
            lambda: next((event for event in self.events(name) if condition(event)), None),
            lambda: f"no event {name} in the log:\n{self.log.read_text()[-4000:]}",
        )

    def send(self, number: signal.Signals) -> None:
        """Signal the service."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, waited for."""
        with anyio.fail_after(DEADLINE):
            return await self.process.wait()


async def eventually(
    look: Callable[[], T | None], complaint: Callable[[], str], deadline: float = DEADLINE
) -> T:
    """What `look` finds, as soon as it finds something."""
    with anyio.move_on_after(deadline):
        while True:
            if (found := look()) is not None:
                return found
            await anyio.sleep(0.01)
    raise AssertionError(complaint())


@asynccontextmanager
async def executor_process(folder: Path, env: Mapping[str, str]) -> AsyncIterator[ExecutorProcess]:
    """A running service; its work folder, log and port are its own. Killed at the end if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "AWS_EC2_METADATA_DISABLED": "true",
        "DATAHUB_TELEMETRY_ENABLED": "false",
        "DATAHUB_EXECUTOR_WORK_DIR": str(folder / "work"),
        "DATAHUB_EXECUTOR_METRICS_PORT": str(free_port()),
        "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10",
        **env,
    }
    async with ExecutorProcess(whole, folder / "log").running() as service:
        yield service
