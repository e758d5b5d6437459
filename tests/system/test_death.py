"""Executors that die, are killed by their own runs, or sleep through their lease: as processes, for real."""

import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from executor.local.datahub import DataHubStandIn
from executor.local.store import Record
from tests.integration.service import BOTH_STARTS, PATIENT, FakeClis, Site
from tests.servers import LocalStack
from tests.servers.executor import ExecutorProcess, eventually, executor_process
from tests.system.test_run import ended, messages_left, send

GONE_WITHIN = 5.0  # seconds in which all that a killed executor has started is gone, as is promised
RECIPE = {"source": {"type": "fake", "config": {}}}
# Says if another process works on the same request, and leaves a grandchild that no parent or session gives away.
GUARDED = """
import fcntl
lock = open(os.path.join(NOTES, "lock"), "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    note("twice", os.getpid())
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        note("daemon", os.getpid())
        while True:
            time.sleep(1)
    os._exit(0)
note("leader", os.getpid())
"""
MURDEROUS = """
note("started", [exec_id, time.time()])
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(600)
"""


@pytest.fixture
async def queue(localstack: LocalStack) -> str:
    return await localstack.make_queue(redrive=5)


@pytest.fixture
def clis(tmp_path: Path, warm: bool) -> FakeClis:
    return FakeClis(tmp_path, warm=warm)


@pytest.fixture
def env(localstack: LocalStack, stand_in: DataHubStandIn, queue: str, clis: FakeClis) -> dict[str, str]:
    return {
        "DATAHUB_EXECUTOR_WARM_STARTS": str(clis.warm),
        **localstack.env,
        "DATAHUB_GMS_URL": stand_in.url,
        "DATAHUB_GMS_TOKEN": "t",
        "DATAHUB_EXECUTOR_QUEUE": queue,
        "DATAHUB_BUNDLED_VENV_PATH": str(clis.venvs),
        "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10",
    }


def before(record: Record) -> list[str]:
    """What a report says of the attempts before it."""
    return [line for line in record.value["report"].splitlines() if line.startswith("Before:")]


async def gone(*pids: int, within: float = GONE_WITHIN) -> None:
    """Return once none of these processes can do anything any more."""

    def left() -> list[int]:
        return [pid for pid in pids if Site.alive(pid)]

    await eventually(lambda: not left() or None, lambda: f"{left()} go on", within)


@BOTH_STARTS
async def test_all_that_a_killed_executor_started_is_gone_and_another_one_takes_over(
    localstack: LocalStack,
    stand_in: DataHubStandIn,
    queue: str,
    env: Mapping[str, str],
    clis: FakeClis,
    tmp_path: Path,
) -> None:
    clis.make("fake", GUARDED + PATIENT)
    async with executor_process(tmp_path / "first", env) as first:
        await send(localstack, queue, "r1", RECIPE)
        [leader] = await clis.noted("leader")
        [daemon] = await clis.noted("daemon")
        await clis.noted("started")
        async with executor_process(tmp_path / "second", env) as second:
            await second.until("consuming")
            first.send(signal.SIGKILL)
            await gone(leader, daemon)
            claimed = await second.until("run_claimed")
            [_, after] = await clis.noted("daemon", 2)
            clis.let("go")
            assert await ended(stand_in, "r1", second) == "SUCCESS"
            await second.until("run_settled")
    await gone(after)
    assert claimed["attempt"] == 2
    [reason] = before(stand_in.store.history("r1")[-1])
    assert reason.startswith("Before:    attempt 1 (")
    assert reason.endswith("): its executor died, or lost the queue")
    assert clis.notes("twice") == []
    assert await messages_left(localstack, queue) == 0


async def test_a_run_that_kills_its_executor_each_time_ends_as_failure_with_each_attempts_end(
    localstack: LocalStack,
    stand_in: DataHubStandIn,
    queue: str,
    env: Mapping[str, str],
    clis: FakeClis,
    tmp_path: Path,
) -> None:
    clis.make("fake", MURDEROUS)
    attempts = 3
    settings = {**env, "DATAHUB_EXECUTOR_MAX_ATTEMPTS": str(attempts - 1)}
    await send(localstack, queue, "r1", RECIPE)
    async with executor_process(tmp_path / "executor", settings) as service:
        for _ in range(attempts):
            assert await service.ended() == -signal.SIGKILL
            await service.process.aclose()
            await service.start()  # as whoever runs the task does
        assert await ended(stand_in, "r1", service) == "FAILURE"
        await service.until("run_settled")
    last = stand_in.store.history("r1")[-1]
    assert len(clis.notes("started")) == attempts
    assert f"interrupted {attempts} times" in last.value["report"]
    assert "give it more" in last.value["report"], "the likely cause and its way out"
    assert [line.split()[2] for line in before(last)] == ["1", "2", "3"]
    assert await messages_left(localstack, queue) == 0


@BOTH_STARTS
async def test_an_executor_that_slept_through_its_lease_writes_nothing_over_the_new_owner(
    localstack: LocalStack,
    stand_in: DataHubStandIn,
    queue: str,
    env: Mapping[str, str],
    clis: FakeClis,
    tmp_path: Path,
) -> None:
    clis.make("fake", GUARDED + PATIENT)
    async with executor_process(tmp_path / "first", env) as first:
        await send(localstack, queue, "r1", RECIPE)
        [leader] = await clis.noted("leader")
        [daemon] = await clis.noted("daemon")
        await clis.noted("started")
        async with executor_process(tmp_path / "second", env) as second:
            first.send(signal.SIGSTOP)
            await taken_over(clis, second)
            assert not Site.alive(leader)
            assert not Site.alive(daemon)
            first.send(signal.SIGCONT)
            settled = await first.until("run_settled")
            clis.let("go")
            assert await ended(stand_in, "r1", second) == "SUCCESS"
            await second.until("run_settled")
    assert (settled["status"], settled["message"]) == ("none", "leave")
    assert clis.notes("twice") == []
    assert len(clis.notes("ended")) == 1
    history = stand_in.store.history("r1")
    owners = [record.properties["executorRun"] for record in history]
    assert owners == sorted(owners, key=[*dict.fromkeys(owners)].index), "the first one never wrote again"
    assert [record.status for record in history].count("SUCCESS") == 1


async def taken_over(clis: FakeClis, by: ExecutorProcess) -> None:
    """Return once the second process of the request runs."""
    await eventually(
        lambda: len(clis.notes("started")) == 2 or None,
        lambda: f"not taken over:\n{by.log.read_text()[-4000:]}",
    )
