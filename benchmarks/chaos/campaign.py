"""One campaign: servers and executors up, requests and faults on their way, quiet, and the evidence gathered."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx

from benchmarks.chaos.cli import make_cli
from benchmarks.chaos.evidence import ENDS, Evidence
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.load import Request, left_in, send_all
from benchmarks.chaos.processes import Remains
from benchmarks.chaos.records import Mark, Stored
from benchmarks.chaos.stage import DRAIN_TIMEOUT, Stage, stage
from benchmarks.harness import TOKEN
from tests.servers import LocalStack
from tests.servers.process import free_port, server_process

WORKERS = 12
MAX_ATTEMPTS = 100  # beyond reach: a run that is interrupted often is no failure here
REDRIVE = 1000  # receives, beyond reach as well
QUIET_END = 60.0  # seconds, and six leases, in which all that is left may end without further faults
LOOK_INTERVAL = 1.0  # seconds between two looks whether all has ended


@dataclass(frozen=True)
class Plan:
    """What is going to happen."""

    requests: Sequence[Request]
    faults: Sequence[Fault]
    executors: int
    lease: int  # seconds


@dataclass(frozen=True)
class Result:
    """What came of it. `left` are the queue's messages at the end, `dead` the executors that no fault took away."""

    evidence: Evidence
    remains: Sequence[Remains]
    skipped: Sequence[Fault]
    left: int
    dead: int


async def run_campaign(plan: Plan, localstack: LocalStack, folder: Path) -> Result:
    """Run it; `folder` is new and gets all notes and logs."""
    marks, stored, locks = folder / "marks", folder / "stored", folder / "locks"
    locks.mkdir()
    marks.touch()
    make_cli(folder / "bundled", marks, locks)
    queue = await localstack.make_queue(visibility=plan.lease, redrive=REDRIVE)
    port = urlsplit(localstack.endpoint).port
    assert port is not None
    direct = f"{localstack.endpoint}/{queue.split('/', 3)[3]}"
    prefix = plan.requests[0].exec_id[:-5]
    with _datahub(folder, stored) as datahub:
        async with (
            localstack.client() as sqs,
            stage(
                folder,
                plan.executors,
                _environment(localstack, folder, plan.lease),
                {"sqs": port, "datahub": datahub},
                queue,
                prefix,
            ) as running,
        ):
            await _break(plan, running, sqs, direct)
            _say("no more faults: what is left may end")
            left = await _quiet(plan, stored, sqs, direct)
            evidence = Evidence(
                sent=[request.exec_id for request in plan.requests],
                marks=_marks(marks),
                stored=_stored(stored),
                handed=list(running.handed),
                struck=sorted(running.struck, key=lambda struck: struck.began),
                executors=plan.executors,
                slots=WORKERS,
                lease=plan.lease,
            )
            (folder / "evidence.json").write_text(json.dumps(asdict(evidence), indent=0))
            dead = sum(not executor.up for executor in running.executors)
            return Result(evidence, list(running.remains), list(running.skipped), left, dead)


@contextmanager
def _datahub(folder: Path, stored: Path) -> Iterator[int]:
    port = free_port()
    stored.touch()

    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    argv = [sys.executable, "-m", "benchmarks.chaos.datahub", str(port), str(stored)]
    root = Path(__file__).resolve().parent.parent.parent
    env = {"PATH": os.environ.get("PATH", os.defpath), "DATAHUB_GMS_TOKEN": TOKEN, "PYTHONPATH": str(root)}
    with server_process(argv, ready=ready, log=folder / "datahub.log", env=env):
        yield port


def _environment(localstack: LocalStack, folder: Path, lease: int) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        **localstack.env,
        "AWS_EC2_METADATA_DISABLED": "true",
        "DATAHUB_TELEMETRY_ENABLED": "false",
        "DATAHUB_GMS_TOKEN": TOKEN,
        "DATAHUB_BUNDLED_VENV_PATH": str(folder / "bundled"),
        "DATAHUB_EXECUTOR_FILE_SECRET_BASEDIR": str(folder / "secrets"),
        "DATAHUB_EXECUTOR_METRICS_PORT": "0",
        "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS": str(WORKERS),
        "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": str(lease),
        "DATAHUB_EXECUTOR_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
        "DATAHUB_EXECUTOR_DRAIN_TIMEOUT": f"{DRAIN_TIMEOUT:g}",
    }


async def _break(plan: Plan, running: Stage, sqs: Any, queue: str) -> None:
    """Send everything and strike, each at its time; returns when the last fault has ended."""
    began = anyio.current_time()

    async def strike(fault: Fault) -> None:
        await anyio.sleep_until(began + fault.at)
        names = ",".join(map(str, fault.executors))
        _say(f"{fault.at:5.0f} s  {fault.name}, {fault.seconds:.1f} s, executor {names}")
        await running.strike(fault)

    async with anyio.create_task_group() as tasks:
        for fault in plan.faults:
            tasks.start_soon(strike, fault)
        await send_all(sqs, queue, plan.requests, began)


async def _quiet(plan: Plan, stored: Path, sqs: Any, queue: str) -> int:
    """Wait, not for ever, until every request has ended and the queue is empty; what is left on the queue."""
    left = await left_in(sqs, queue)
    with anyio.move_on_after(QUIET_END + 6 * plan.lease):
        while left or not _all_ended(plan, stored):
            await anyio.sleep(LOOK_INTERVAL)
            left = await left_in(sqs, queue)
    return left


def _all_ended(plan: Plan, stored: Path) -> bool:
    last = {write.exec_id: write.status for write in _stored(stored)}
    return all(last.get(request.exec_id) in ENDS for request in plan.requests)


def _marks(file: Path) -> list[Mark]:
    def read(note: dict[str, Any]) -> Mark:
        _, _, numbers = note["executor"].partition("/")
        executor, life, _ = numbers.split(".")
        return Mark(note["what"], note["exec_id"], int(executor), int(life), note["pid"], note["at"])

    return [read(note) for note in _notes(file)]


def _stored(file: Path) -> list[Stored]:
    return [Stored(**note) for note in _notes(file)]


def _notes(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _say(words: str) -> None:
    sys.stderr.write(f"{time.strftime('%X')} {words}\n")
