"""The service as a process on a machine that fails it: disk, file descriptors, log, clock."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx
import pytest

from executor.local.datahub import DataHubStandIn
from executor.local.store import REQUEST_URN_PREFIX, Record, Write
from tests.integration.service import SIGNAL, FakeClis
from tests.servers import LocalStack
from tests.servers.executor import DEADLINE, ExecutorProcess, eventually, executor_process
from tests.servers.faulty_machine import FaultyMachine

ENDS = ("SUCCESS", "FAILURE", "CANCELLED")
HOUR = 3600


@dataclass
class Stage:
    """A queue, a DataHub, CLIs, and a machine to run the service on."""

    localstack: LocalStack
    datahub: DataHubStandIn
    queue: str
    clis: FakeClis
    machine: FaultyMachine
    env: Mapping[str, str]
    folder: Path  # of the service

    @property
    def runs(self) -> list[str]:
        """The folders of runs on the disk."""
        folder = self.folder / "work" / "runs"
        return [path.name for path in folder.iterdir()] if folder.exists() else []

    async def submit(self, exec_id: str, plugin: str = "quick", config: object = None) -> None:
        recipe = json.dumps({"source": {"type": plugin, "config": config or {}}})
        body = {
            "executor_id": "remote",
            "exec_id": exec_id,
            "name": "RUN_INGEST",
            "args": {"recipe": recipe, "version": "bundled"},
        }
        async with self.localstack.client() as sqs:
            await sqs.send_message(QueueUrl=self.queue, MessageBody=json.dumps(body))

    async def ended(self, exec_id: str) -> Record:
        with anyio.move_on_after(DEADLINE):
            await self.datahub.wait_for_status(exec_id, *ENDS)
            return self.datahub.store.history(exec_id)[-1]
        raise AssertionError(f"{exec_id} did not end:\n{(self.folder / 'log').read_text()[-4000:]}")

    async def run(self, exec_id: str, plugin: str = "quick", config: object = None) -> tuple[str | None, str]:
        """Run it: how it ended, and its report."""
        await self.submit(exec_id, plugin, config)
        record = await self.ended(exec_id)
        return record.status, record.value["report"]

    def kill(self, exec_id: str) -> None:
        """Press *Cancel* in DataHub."""
        value = {"signal": "KILL", "createdAt": {"time": 0, "actor": "urn:li:corpuser:datahub"}}
        self.datahub.store.apply([Write(REQUEST_URN_PREFIX + exec_id, SIGNAL, value=value)])

    async def messages_left(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        async with self.localstack.client() as sqs:
            answer = await sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)
        return sum(int(answer["Attributes"][name]) for name in names)

    async def emptied(self) -> None:
        """Return once every message is gone."""
        with anyio.fail_after(DEADLINE):
            while True:
                if not await self.messages_left():
                    return
                await anyio.sleep(0.05)


@pytest.fixture
async def stage(localstack: LocalStack, stand_in: DataHubStandIn, tmp_path: Path) -> Stage:
    queue = await localstack.make_queue(redrive=5)
    clis = FakeClis(tmp_path)
    clis.make("quick", 'print("it works")\nreport({"fine": True})\n')
    folder = tmp_path / "executor"
    machine = FaultyMachine.make(tmp_path / "machine", disk=folder)
    env = {
        **localstack.env,
        **machine.env,
        "DATAHUB_GMS_URL": stand_in.url,
        "DATAHUB_GMS_TOKEN": "t",
        "DATAHUB_EXECUTOR_QUEUE": queue,
        "DATAHUB_BUNDLED_VENV_PATH": str(clis.venvs),
        "DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL": "0.2",
    }
    return Stage(localstack, stand_in, queue, clis, machine, env, folder)


# A full disk


async def test_a_full_disk_is_named_by_each_run_and_the_next_one_after_it_succeeds(stage: Stage) -> None:
    async with executor_process(stage.folder, stage.env) as service:
        assert (await stage.run("before"))[0] == "SUCCESS"
        stage.machine.fill_disk()
        for number in range(3):
            status, report = await stage.run(f"full-{number}")
            first_line = report.partition("\n")[0]
            assert status == "FAILURE"
            assert "No space left on device" in first_line
            assert "free space on the executor's disk (DATAHUB_EXECUTOR_WORK_DIR)" in first_line
        assert stage.runs == []
        stage.machine.free_space()
        assert (await stage.run("after"))[0] == "SUCCESS"
        await stage.emptied()
        service.send(signal.SIGTERM)
        assert await service.ended() == 0
    lost = service.events("log_lines_lost")
    assert lost
    assert "is its disk full" in lost[0]["reason"]
    assert "Traceback" not in service.log.read_text()


FILLS_UP = 'note("up", 1)\nwait_for("full")\n'


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        (f"{FILLS_UP}open('x', 'w')", "FAILURE", "Free space on the executor's disk (DATAHUB_EXECUTOR_WORK_DIR)"),
        (f"open(report_file, 'w')\n{FILLS_UP}", "SUCCESS", "structured report is left out: what the CLI wrote is"),
    ],
)  # fmt: skip
async def test_a_disk_that_fills_up_under_a_run_is_named_in_its_report(
    stage: Stage, script: str, status: str, words: str
) -> None:
    stage.clis.make("writer", script)
    async with executor_process(stage.folder, stage.env) as service:
        await stage.submit("one", "writer")
        await stage.clis.noted("up")
        stage.machine.fill_disk()
        stage.clis.let("full")
        record = await stage.ended("one")
        assert record.status == status
        assert words in record.value["report"]
        await stage.emptied()
        stage.machine.free_space()
        assert (await stage.run("two"))[0] == "SUCCESS"
        await service.until("run_settled", lambda event: event["exec_id"] == "two")
        assert stage.runs == []


async def test_the_real_cli_on_a_full_disk_ends_with_words_for_it(
    stage: Stage, cli_venv: Path, sqlite_db: Path
) -> None:
    (stage.clis.venvs / "sqlalchemy-bundled").symlink_to(cli_venv)
    config = {"connect_uri": f"sqlite:///{sqlite_db}", "platform": "sqlite"}
    async with executor_process(stage.folder, stage.env) as service:
        await stage.submit("real", "sqlalchemy", config)
        await eventually(
            lambda: [name for name in stage.runs if name.startswith("real")] or None, lambda: "no run folder"
        )
        stage.machine.fill_disk()
        record = await stage.ended("real")
        assert "No space left on device" in record.value["report"]
        stage.machine.free_space()
        status, report = await stage.run("real-again", "sqlalchemy", config)
        assert (status, "No space left" in report) == ("SUCCESS", False)
        assert service.process.returncode is None


# The service's own log


@contextmanager
def unread_pipe(*, closed: bool) -> Iterator[int]:
    """The end to write to of a pipe whose other end is closed, or open but full and never read."""
    read, write = os.pipe()
    try:
        if closed:
            os.close(read)
        else:
            os.write(write, b"x" * fcntl.fcntl(write, fcntl.F_GETPIPE_SZ))
        yield write
    finally:
        os.close(write)
        if not closed:
            os.close(read)


@pytest.mark.parametrize("log", ["full", "nobody's", "stuck", "closed"])
async def test_a_log_that_nobody_takes_ends_neither_the_service_nor_a_run(stage: Stage, log: str) -> None:
    env = {
        **stage.env,
        "PATH": os.environ["PATH"],
        "DATAHUB_EXECUTOR_WORK_DIR": str(stage.folder / "work"),
        "DATAHUB_EXECUTOR_METRICS_PORT": "0",
        "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10",
    }
    command = [sys.executable, "-m", "executor", "run"]
    if log == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    if log == "full":
        command = ["sh", "-c", 'exec "$@" > /dev/full', "sh", *command]
    with unread_pipe(closed=log == "nobody's") as output:
        async with await anyio.open_process(
            command, env=env, stdout=output, stderr=subprocess.PIPE
        ) as service:
            try:
                for number in range(3):
                    assert (await stage.run(f"run-{number}"))[0] == "SUCCESS"
                await stage.emptied()
                service.send_signal(signal.SIGTERM)
                with anyio.fail_after(DEADLINE):
                    assert await service.wait() == 0
            finally:
                if service.returncode is None:
                    service.kill()
            assert service.stderr is not None
            assert b"".join([chunk async for chunk in service.stderr]) == b""


# File descriptors used up


def allow_descriptors(service: ExecutorProcess, spare: int | None) -> None:
    """Let it open so many more than it has, or as many as it likes."""
    _, hard = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path(f"/proc/{service.process.pid}/fd").iterdir()}
    limit = hard
    if spare is not None:
        free = (number for number in range(hard) if number not in taken)
        limit = next(number for count, number in enumerate(free) if count == spare)
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (limit, hard))


@pytest.mark.parametrize("spare", [0, 2, 5, 8, 11])
async def test_runs_without_file_descriptors_say_so_and_later_ones_succeed(stage: Stage, spare: int) -> None:
    settings = {**stage.env, "DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS": "8"}
    async with executor_process(stage.folder, settings) as service:
        assert (await stage.run("before"))[0] == "SUCCESS"
        allow_descriptors(service, spare)
        names = [f"run-{number}" for number in range(12)]
        for name in names:
            await stage.submit(name)
        # With none at all, DataHub or the queue may be out of reach until some are free.
        with anyio.move_on_after(5):
            for name in names:
                await stage.ended(name)
        allow_descriptors(service, None)
        for name in names:
            record = await stage.ended(name)
            report = record.value["report"]
            assert record.status == "SUCCESS" or ("oo many open files" in report and "(nofile)" in report), (
                report
            )
        assert (await stage.run("after"))[0] == "SUCCESS"
        await stage.emptied()
        assert service.process.returncode is None
        await eventually(lambda: stage.runs == [] or None, lambda: f"left: {stage.runs}")


# The clock


async def test_a_clock_that_is_set_changes_nothing_for_the_runs_under_way(stage: Stage) -> None:
    stage.clis.make("patient", 'note("up", exec_id)\nprint("it works")\nwait_for("go")\n')
    async with executor_process(stage.folder, stage.env) as service, httpx.AsyncClient() as client:
        metrics = f"http://127.0.0.1:{service.env['DATAHUB_EXECUTOR_METRICS_PORT']}/metrics"

        async def until_renewed(times: int) -> None:
            """Return once leases were renewed so many times more."""
            start = None
            with anyio.fail_after(DEADLINE):
                while True:
                    lines = (await client.get(metrics)).text.splitlines()
                    [line] = [
                        line for line in lines if line.startswith("datahub_executor_lease_extensions_total")
                    ]
                    renewed = float(line.split()[-1])
                    start = renewed if start is None else start
                    if renewed >= start + times:
                        return
                    await anyio.sleep(0.05)

        for name in ("kept", "cancelled"):
            await stage.submit(name, "patient")
        await stage.clis.noted("up", 2)
        for offset in (365 * 24 * HOUR, -HOUR):
            stage.machine.set_clock(offset)
            await until_renewed(2)  # those of both runs
        stage.kill("cancelled")
        assert (await stage.ended("cancelled")).status == "CANCELLED"
        stage.clis.let("go")
        record = await stage.ended("kept")
        assert record.status == "SUCCESS"
        assert (await stage.run("later"))[0] == "SUCCESS"
        service.send(signal.SIGTERM)
        assert await service.ended() == 0
    for name in ("kept", "cancelled", "later"):
        assert 0 <= stage.datahub.store.history(name)[-1].value["durationMs"] < HOUR * 1000 / 2
        assert stage.datahub.store.history(name)[-1].value["startTimeMs"] > 0
    assert service.events("lease_lost") == []
    settled = [event["seconds"] for event in service.events("run_settled")]
    assert all(0 <= seconds < HOUR / 2 for seconds in settled)
