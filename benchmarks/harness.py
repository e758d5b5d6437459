"""What all measurements share: the servers, the service as a process of its own, and the kernel's figures."""

import json
import os
import platform
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import httpx

from benchmarks import kernel
from benchmarks.kernel import Memory
from executor.local.datahub import DataHubStandIn
from executor.local.store import Record
from tests.servers import LocalStack
from tests.servers.process import free_port

TOKEN = "benchmark-token"
START_DEADLINE = 60.0  # seconds that the service may take until it is ready
RUN_DEADLINE = 180.0  # seconds that any run measured here may take
MB = 1_000_000


@dataclass(frozen=True)
class Figure:
    """One line of the table. `value` is what the bar is for; `bar` is None where there is none to reach."""

    name: str
    value: float
    unit: str
    samples: Sequence[float]
    bar: float | None = None
    statistic: str = "median"

    @property
    def reached(self) -> bool | None:
        """Whether the bar is reached; None without one."""
        return None if self.bar is None else self.value <= self.bar


def median_of(name: str, samples: Sequence[float], unit: str, bar: float | None = None) -> Figure:
    """The middle of several samples."""
    return Figure(name, statistics.median(samples), unit, samples, bar, "median")


def p95_of(name: str, samples: Sequence[float], unit: str, bar: float | None = None) -> Figure:
    """What nineteen of twenty samples stay below."""
    value = sorted(samples)[max(0, -(-len(samples) * 95 // 100) - 1)]
    return Figure(name, value, unit, samples, bar, "p95")


def max_of(name: str, samples: Sequence[float], unit: str, bar: float | None = None) -> Figure:
    """The worst of several samples."""
    return Figure(name, max(samples), unit, samples, bar, "max")


def count_of(name: str, number: int, bar: float | None = None) -> Figure:
    """How many there were."""
    return Figure(name, number, "", [number], bar, "count")


def print_table(figures: Sequence[Figure]) -> None:
    """Print one line a figure, below a line that says where it was measured."""
    rows = [("figure", "measured", "samples (min to max)", "bar", "")]
    rows += [_row(figure) for figure in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    python, cores = platform.python_version(), os.cpu_count()
    print(f"Python {python}, {cores} cores, load {os.getloadavg()[0]:.1f}; LocalStack's SQS")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(figure: Figure) -> tuple[str, str, str, str, str]:
    def shown(value: float) -> str:
        digits = 0 if value.is_integer() or abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
        return f"{value:.{digits}f} {figure.unit}".rstrip()

    low, high = float(min(figure.samples)), float(max(figure.samples))
    spread = f"n={len(figure.samples)}" + (f", {shown(low)} to {shown(high)}" if low != high else "")
    verdict = {True: "ok", False: "missed", None: ""}[figure.reached]
    bar = "" if figure.bar is None else f"≤ {shown(float(figure.bar))}"
    measured = f"{shown(float(figure.value))} ({figure.statistic})"
    return figure.name, measured, spread, bar, verdict


@dataclass(frozen=True)
class Bench:
    """The servers that a measurement runs against, and a folder for what it writes."""

    localstack: LocalStack
    datahub: DataHubStandIn
    sqs: Any
    cli_venv: Path
    folder: Path
    docs: Path | None = None  # where what was measured is to be written down

    @property
    def bundled(self) -> Path:
        """The folder of ready-made venvs that the service is given."""
        return self.folder / "bundled"

    def base_env(self) -> dict[str, str]:
        """What both the service and a bare run find in their environment."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {
            **inherited,
            "TMPDIR": str(self.folder),  # runs that are killed leave theirs behind
            "DATAHUB_GMS_URL": self.datahub.url,
            "DATAHUB_GMS_TOKEN": TOKEN,
            "DATAHUB_TELEMETRY_ENABLED": "false",
        }

    def program(self, plugin: str, script: str) -> Path:
        """Make a bundled venv whose CLI is a script; returns the script's path."""
        programs = self.bundled / f"{plugin}-bundled" / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        for name, text in (("python", "#!/bin/sh\nexit 0\n"), ("datahub", script)):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        return programs / "datahub"

    async def send(self, queue: str, plugin: str, exec_id: str | None = None) -> "Sent":
        """Put one request on the queue."""
        recipe = {"source": {"type": plugin, "config": {}}}
        return await self.send_recipe(queue, recipe, exec_id)

    async def send_recipe(
        self,
        queue: str,
        recipe: Mapping[str, object],
        exec_id: str | None = None,
        *,
        task: str = "RUN_INGEST",
    ) -> "Sent":
        """Put one request with this recipe on the queue."""
        exec_id = exec_id or new_id()
        body = request_body(exec_id, recipe, task)
        before = time.time()
        await self.sqs.send_message(QueueUrl=queue, MessageBody=body)
        return Sent(exec_id, before, time.time())

    async def stored(self, exec_id: str, status: str) -> Record:
        """The write that gave a request this status, waited for; fails on any other end."""
        with anyio.fail_after(RUN_DEADLINE):
            got = await self.datahub.wait_for_status(exec_id, "SUCCESS", "FAILURE", "CANCELLED")
        record = next(entry for entry in self.datahub.store.history(exec_id) if entry.status == got)
        if got != status:
            raise RuntimeError(f"a run ended as {got}, not as {status}:\n{record.value.get('report')}")
        return record


@dataclass(frozen=True)
class Sent:
    """A request that was put on the queue; `before` and `after` the call, in epoch seconds."""

    exec_id: str
    before: float
    after: float


def new_id() -> str:
    """An id for an execution request."""
    return f"bench-{secrets.token_hex(8)}"


def request_body(exec_id: str, recipe: Mapping[str, object], task: str = "RUN_INGEST") -> str:
    """A request as a message's body (contract, section 2)."""
    arguments = {"recipe": json.dumps(recipe), "version": "bundled"}
    request = {"executor_id": "remote", "exec_id": exec_id, "name": task, "args": arguments}
    return json.dumps(request)


async def until(holds: Callable[[], bool], interval: float = 0.02, limit: float = RUN_DEADLINE) -> None:
    """Return once it holds; looks every `interval` seconds, and fails after `limit` seconds."""
    with anyio.fail_after(limit):
        while not holds():  # noqa: ASYNC110 - other processes' state, of which no event tells
            await anyio.sleep(interval)


class ServiceProcess:
    """The service under measurement."""

    def __init__(self, pid: int, queue: str, port: int, log: Path) -> None:
        self.pid = pid
        self.queue = queue
        self.port = port
        self.log = log
        self._events: list[dict[str, Any]] = []
        self._read = 0

    def events(self, name: str, exec_id: str | None = None) -> list[dict[str, Any]]:
        """Its log's events of this name so far (of this run), each with its time in epoch seconds, `at`."""
        with self.log.open("rb") as file:
            file.seek(self._read)
            lines, ended, _ = file.read().rpartition(b"\n")
        self._read += len(lines) + len(ended)
        for line in lines.splitlines():
            if line.startswith(b"{"):
                event = json.loads(line)
                event["at"] = datetime.fromisoformat(event["timestamp"]).timestamp()
                self._events.append(event)
        return [
            event
            for event in self._events
            if event["event"] == name and exec_id in {None, event.get("exec_id")}
        ]

    async def wait_for_events(self, name: str, count: int) -> None:
        """Return once there are so many."""
        await until(lambda: len(self.events(name)) >= count)

    async def settled(self, exec_id: str) -> None:
        """Return once a run is over and its message deleted."""
        await until(lambda: bool(self.events("run_settled", exec_id)))

    def cpu_seconds(self) -> float:
        """Its own processor time so far."""
        return kernel.cpu_seconds(self.pid)

    def memory(self) -> Memory:
        """What it holds now."""
        return Memory.of(self.pid)

    def peak_rss(self) -> int:
        """The most that was resident at a time so far, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))

    def threads(self) -> list[str]:
        """The names of its threads."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return [(task / "comm").read_text().strip() for task in tasks]

    def children(self) -> dict[int, str]:
        """Its own children: number and command line."""
        return kernel.children(self.pid)

    def kill(self) -> None:
        """End it and its runs at once: how it stops is not measured here."""
        runs = self.children() if Path(f"/proc/{self.pid}").exists() else {}
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # first, or it would report that its runs were killed
        for leader in runs:
            with suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)


@asynccontextmanager
async def service(bench: Bench, **settings: object) -> AsyncIterator[ServiceProcess]:
    """Run the service on a queue of its own; `settings` are added to its environment.

    Raises:
        RuntimeError: it does not become ready.
    """
    queue, port = await bench.localstack.make_queue(), free_port()
    folder = bench.folder / f"service-{secrets.token_hex(4)}"
    folder.mkdir()
    env = {
        **bench.base_env(),
        **bench.localstack.env,
        "DATAHUB_EXECUTOR_QUEUE": queue,
        "DATAHUB_EXECUTOR_WORK_DIR": str(folder / "work"),
        "DATAHUB_BUNDLED_VENV_PATH": str(bench.bundled),
        "DATAHUB_EXECUTOR_METRICS_PORT": str(port),
        "DATAHUB_EXECUTOR_DRAIN_TIMEOUT": "0",
        **{name: str(value) for name, value in settings.items()},
    }
    with (folder / "log").open("wb") as log:
        process = await anyio.open_process(
            [sys.executable, "-m", "executor", "run"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = ServiceProcess(process.pid, queue, port, folder / "log")
    try:
        await _ready(running, lambda: process.returncode)
        yield running
    finally:
        with anyio.CancelScope(shield=True):
            running.kill()
            await process.wait()
            await process.aclose()


async def _ready(running: ServiceProcess, ended: Callable[[], int | None]) -> None:
    with anyio.move_on_after(START_DEADLINE):
        async with httpx.AsyncClient(trust_env=False) as client:
            while ended() is None:
                try:
                    if (await client.get(f"http://127.0.0.1:{running.port}/health/live")).is_success and (
                        running.events("server_reached")
                    ):
                        return
                except httpx.TransportError:
                    pass  # it does not listen yet
                await anyio.sleep(0.05)
    tail = running.log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"the service did not become ready; its log ends:\n{tail}")
