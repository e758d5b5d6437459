"""The four ways to do one job, and what each costs."""

import json
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import anyio

from benchmarks import kernel
from benchmarks.harness import Bench, ServiceProcess, new_id, request_body, service
from benchmarks.warm.peer import Peer, peer

WAYS = ("bare", "cold", "warm", "peer")


@dataclass(frozen=True)
class Job:
    """A source type, whose bundled venv does it, the source's configuration, and a request's name."""

    plugin: str
    config: Mapping[str, object]
    task: str = "RUN_INGEST"

    @property
    def recipe(self) -> dict[str, object]:
        """The recipe."""
        return {"source": {"type": self.plugin, "config": self.config}}


@dataclass(frozen=True)
class Cost:
    """Seconds of one run: until its outcome is stored, and of processor time."""

    wall: float
    cpu: float


Way = Callable[[Job], Awaitable[Cost]]


@asynccontextmanager
async def four_ways(bench: Bench) -> AsyncIterator[Mapping[str, Way]]:
    """All executors run at once, as an idle one costs next to nothing; jobs are to be done one at a time."""
    async with (
        service(bench, DATAHUB_EXECUTOR_WARM_STARTS="false") as cold,
        service(bench) as warm,
        peer(bench) as theirs,
    ):
        yield {
            "bare": partial(_bare, bench),
            "cold": partial(_served, bench, cold),
            "warm": partial(_served, bench, warm),
            "peer": partial(_handed_over, bench, theirs),
        }


async def in_turns(ways: Mapping[str, Way], job: Job, rounds: int) -> dict[str, list[Cost]]:
    """The costs of so many runs each way, one way after the other.

    A machine that others load favours none, as each goes first in turn. The parent's import, and the
    database's first look at its tables, are not counted: the warm way goes first once more.
    """
    await ways["warm"](job)
    costs: dict[str, list[Cost]] = {name: [] for name in WAYS}
    for number in range(rounds):
        first = number % len(WAYS)
        for name in (*WAYS[first:], *WAYS[:first]):
            costs[name].append(await ways[name](job))
    return costs


def command(bench: Bench, job: Job) -> list[str]:
    """The command line of the bare CLI."""
    argv = [str(bench.bundled / f"{job.plugin}-bundled" / "bin" / "datahub"), "ingest", "run", "-c", "-"]
    argv += ["--report-to", str(bench.folder / "report.json")]
    return [*argv, "--test-source-connection"] if job.task == "TEST_CONNECTION" else argv


async def _bare(bench: Bench, job: Job) -> Cost:
    """The CLI alone."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with anyio.fail_after(180):
        await anyio.run_process(
            command(bench, job), input=json.dumps(job.recipe).encode(), env=bench.base_env(), cwd=bench.folder
        )
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


async def _served(bench: Bench, running: ServiceProcess, job: Job) -> Cost:
    """Through the queue and the service, its own processor time included."""
    before = _used(running.pid)
    sent = await bench.send_recipe(running.queue, job.recipe, task=job.task)
    record = await bench.stored(sent.exec_id, "SUCCESS")
    await running.settled(sent.exec_id)
    return Cost(record.epoch - sent.before, _used(running.pid) - before)


async def _handed_over(bench: Bench, theirs: Peer, job: Job) -> Cost:
    """Given to the peer's dispatcher, with no queue in between; its own processor time included."""
    exec_id, before = new_id(), _used(theirs.pid)
    handed = await theirs.hand_over(request_body(exec_id, job.recipe, job.task))
    record = await bench.stored(exec_id, "SUCCESS")
    return Cost(record.epoch - handed, _used(theirs.pid) - before)


def _used(pid: int) -> float:
    """Processor time of an executor and of all its children: runs that ended, a guard, warm parents."""
    alive = 0.0
    for child in kernel.children(pid):
        with suppress(OSError):  # it ended meanwhile, and counts with those that did
            alive += kernel.cpu_seconds(child, with_children=True)
    return alive + kernel.cpu_seconds(pid, with_children=True)
