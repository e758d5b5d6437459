"""The whole service in this process, between a real queue and a DataHub stand-in, with small CLIs of our own."""

import io
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from executor.ingestion.environment import sensitive_values
from executor.ingestion.masking import Masker, MaskRegistry
from executor.local.datahub import DataHubStandIn
from executor.local.store import REQUEST_URN_PREFIX, Record, Write
from executor.operations.logging import configure_logging
from executor.service import Service
from executor.settings import load_settings
from tests.servers import LocalStack
from tests.servers.executor import eventually
from tests.servers.process import free_port

DEADLINE = 30.0  # seconds that anything expected may take
ENDS = ("SUCCESS", "FAILURE", "CANCELLED")
RESULT = "dataHubExecutionRequestResult"
SIGNAL = "dataHubExecutionRequestSignal"
INPUT = "dataHubExecutionRequestInput"

# What holds for runs that start cold must hold for those that start warm.
BOTH_STARTS = pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"], indirect=True)
WARM_START = pytest.mark.parametrize("warm", [True], ids=["warm"], indirect=True)

# What every fake CLI begins with. It speaks with the test through files in one folder.
_PRELUDE = """#!{python} -SEu
import json, os, signal, subprocess, sys, time
NOTES = {notes!r}
given = sys.stdin.buffer.read()
envelope = json.loads(given)
recipe = json.loads(envelope["__recipe_yaml__"])
secrets = envelope["__secrets__"]
exec_id = recipe["run_id"]
report_file = sys.argv[sys.argv.index("--report-to") + 1]

def note(name, value):
    with open(os.path.join(NOTES, name), "a") as file:
        file.write(json.dumps(value) + "\\n")

def wait_for(name):
    while not os.path.exists(os.path.join(NOTES, name)):
        time.sleep(0.01)

def report(value):
    with open(report_file, "w") as file:
        json.dump(value, file)

"""
# A run that says when it started and ended, and goes on until it is let go.
PATIENT = """
note("started", [exec_id, time.time()])
print("it works", flush=True)
wait_for("go")
note("ended", [exec_id, time.time()])
"""
QUICK = 'note("started", [exec_id, time.time()])\nprint("it works")\n'


# What a warm parent imports of a CLI, beside the script.
IMPORTED = """
import sys, types
__path__ = []
for name in ("entrypoints", "ingestion", "ingestion.source", "ingestion.source.source_registry"):
    sys.modules["datahub." + name] = types.ModuleType("datahub." + name)
registry = sys.modules["datahub.ingestion.source.source_registry"]
registry.source_registry = {}
"""


class FakeClis:
    """Bundled venvs that hold scripts in place of the CLI, and the folder through which they talk to the test.

    Those of `warm` ones can be imported before they are run.
    """

    def __init__(self, folder: Path, *, warm: bool = False) -> None:
        self.warm = warm
        self.may_start_cold = not warm
        self.venvs = folder / "bundled"
        self.notes_folder = folder / "notes"
        self.notes_folder.mkdir(parents=True)

    def make(self, plugin: str, script: str, *, raw: bool = False) -> None:
        """A CLI for the source type `plugin`; a `raw` one brings its own first line and reads nothing."""
        venv = self.venvs / f"{plugin}-bundled"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
        packages = venv / "lib" / "python3.11" / "site-packages"
        (packages / "acryl_datahub-1.7.0.17.dist-info").mkdir(parents=True)
        command = venv / "bin" / "datahub"
        prelude = _PRELUDE.format(python=sys.executable, notes=str(self.notes_folder))
        command.write_text(script if raw else prelude + script)
        command.chmod(0o755)
        self.may_start_cold |= raw
        if self.warm:
            (venv / "bin" / "datahub.py").write_text(IMPORTED)

    def notes(self, name: str) -> list[Any]:
        """What the scripts noted under a name so far."""
        file = self.notes_folder / name
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    async def noted(self, name: str, count: int = 1) -> list[Any]:
        """The same, once there are so many of them."""
        return await eventually(
            lambda: found if len(found := self.notes(name)) >= count else None,
            lambda: f"no script noted {name!r} {count} times: {self.notes(name)}",
            DEADLINE,
        )

    def let(self, name: str) -> None:
        """What scripts that `wait_for(name)` wait for."""
        (self.notes_folder / name).touch()


@dataclass
class RunningService:
    """One service of a site."""

    metrics_port: int
    stopped: anyio.Event = field(default_factory=anyio.Event)

    async def metric(self, name: str) -> float:
        """The value of a metric, by its name with labels."""
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"http://127.0.0.1:{self.metrics_port}/metrics")).text
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


@dataclass
class Site:
    """A DataHub, a queue, and the services that are started between them."""

    localstack: LocalStack
    datahub: DataHubStandIn
    queue: str
    sqs: Any
    clis: FakeClis
    env: dict[str, str]
    work_dir: Path
    log: io.StringIO = field(default_factory=io.StringIO)
    maskers: MaskRegistry = field(default_factory=MaskRegistry)

    @asynccontextmanager
    async def service(self, **settings: str) -> AsyncIterator[RunningService]:
        """A service that consumes the queue, with these settings over the site's own."""
        port = free_port()
        env = {**self.env, "DATAHUB_EXECUTOR_METRICS_PORT": str(port), **settings}
        running = RunningService(port)
        before = len(self.events("consuming"))

        async def serve() -> None:
            masker = Masker(sensitive_values(env))
            try:
                with self.maskers.add(masker):
                    await Service(load_settings(env), env, self.maskers).run()
            finally:
                running.stopped.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            try:
                await self.event("consuming", count=before + 1)
                yield running
            finally:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    while not running.stopped.is_set():  # receives under way are seen to their end
                        await self.send("the last one", queue=env["DATAHUB_EXECUTOR_QUEUE"])
                        with anyio.move_on_after(0.1):
                            await running.stopped.wait()

    def fake_cli(self, plugin: str, script: str, *, raw: bool = False) -> None:
        """See `FakeClis.make`."""
        self.clis.make(plugin, script, raw=raw)

    async def send(self, body: object, *, queue: str | None = None) -> str:
        """Put a message on the queue; its id. What is no text is sent as JSON."""
        text = body if isinstance(body, str) else json.dumps(body)
        url = self._direct(queue or self.queue)
        group = {"MessageGroupId": str(uuid.uuid4()), "MessageDeduplicationId": str(uuid.uuid4())}
        sent = await self.sqs.send_message(
            QueueUrl=url, MessageBody=text, **(group if url.endswith(".fifo") else {})
        )
        message_id: str = sent["MessageId"]
        return message_id

    async def submit(
        self,
        exec_id: str,
        plugin: str = "fake",
        *,
        config: Mapping[str, object] | None = None,
        name: str = "RUN_INGEST",
        executor_id: str = "remote",
        queue: str | None = None,
        **args: object,
    ) -> str:
        """Ask for a run; `args` are the request's."""
        recipe = {"source": {"type": plugin, "config": dict(config or {})}}
        args = {"recipe": json.dumps(recipe), "version": "bundled", **args}
        request = {"executor_id": executor_id, "exec_id": exec_id, "name": name, "args": args}
        return await self.send(request, queue=queue)

    def know(
        self,
        exec_id: str,
        plugin: str = "fake",
        *,
        executor_id: str = "remote",
        extra_env_vars: str = "",
        **config: str,
    ) -> None:
        """Make a request known to DataHub, without a message."""
        recipe = json.dumps({"source": {"type": plugin, "config": config}})
        value = {
            "task": "RUN_INGEST",
            "args": {"recipe": recipe, "version": "bundled", "extra_env_vars": extra_env_vars},
            "executorId": executor_id,
            "source": {"type": "MANUAL_INGESTION_SOURCE"},
            "requestedAt": 0,
        }
        self.datahub.store.apply([Write(REQUEST_URN_PREFIX + exec_id, INPUT, value=value)])

    def write_status(self, exec_id: str, status: str, properties: Mapping[str, str] | None = None) -> None:
        """Write a status behind the services' backs."""
        metadata = {"properties": dict(properties or {})}
        write = Write(
            REQUEST_URN_PREFIX + exec_id, RESULT, value={"status": status}, system_metadata=metadata
        )
        self.datahub.store.apply([write])

    def kill(self, exec_id: str) -> None:
        """Press *Cancel* in DataHub; no message is sent."""
        value = {"signal": "KILL", "createdAt": {"time": 0, "actor": "urn:li:corpuser:datahub"}}
        self.datahub.store.apply([Write(REQUEST_URN_PREFIX + exec_id, SIGNAL, value=value)])

    async def press(self, mutation: str, input_type: str, given: object) -> str:
        """Do what a button of DataHub's page does."""
        query = f"mutation press($input: {input_type}) {{ {mutation}(input: $input) }}"
        headers = {"Authorization": "Bearer t"}
        async with httpx.AsyncClient(base_url=self.datahub.url, trust_env=False, headers=headers) as client:
            body = {"query": query, "variables": {"input": given}}
            answer = (await client.post("/api/graphql", json=body)).json()
        assert "errors" not in answer, answer
        urn: str = answer["data"][mutation]
        return urn

    async def receive(self, queue: str | None = None) -> str:
        """Receive a message and show it again at once; its receipt handle, which LocalStack goes on taking."""
        url = self._direct(queue or self.queue)
        answer = await self.sqs.receive_message(QueueUrl=url, VisibilityTimeout=0)
        [message] = answer["Messages"]
        handle: str = message["ReceiptHandle"]
        return handle

    async def show_again(self, handle: str, queue: str | None = None) -> None:
        """Make a message that somebody has visible to all."""
        url = self._direct(queue or self.queue)
        await self.sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)

    async def take_away(self, handle: str) -> None:
        """Make every receipt handle of a message stale, as its going to somebody else does."""
        await self.sqs.delete_message(QueueUrl=self._direct(self.queue), ReceiptHandle=handle)

    def statuses(self, exec_id: str) -> list[str | None]:
        """Every status that was stored of a request, repetitions left out."""
        statuses = [record.status for record in self.datahub.store.history(exec_id)]
        return [new for old, new in zip([None, *statuses], statuses, strict=False) if new != old]

    async def stored(self, exec_id: str, *statuses: str) -> Record:
        """The record with one of the statuses, waited for."""
        with anyio.move_on_after(DEADLINE):
            await self.datahub.wait_for_status(exec_id, *statuses)
            return next(
                record for record in self.datahub.store.history(exec_id)[::-1] if record.status in statuses
            )
        raise AssertionError(f"{exec_id} is {self.statuses(exec_id)}, not {statuses}:\n{self.tail()}")

    async def ended(self, exec_id: str) -> Record:
        """How a request ended, waited for."""
        return await self.stored(exec_id, *ENDS)

    async def settled(self, exec_id: str) -> Record:
        """How a request ended, once its message is gone, too."""
        record = await self.ended(exec_id)
        await self.event("run_settled", lambda event: event["exec_id"] == exec_id)
        return record

    async def counts(self, queue: str | None = None) -> tuple[int, int]:
        """Messages of the queue that can be received, and those that somebody has."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = await self.sqs.get_queue_attributes(
            QueueUrl=self._direct(queue or self.queue), AttributeNames=names
        )
        visible, hidden = (int(answer["Attributes"][name]) for name in names)
        return visible, hidden

    async def until_counts(self, visible: int, hidden: int, queue: str | None = None) -> None:
        """Wait until the queue holds so many messages."""
        counts = None
        with anyio.move_on_after(DEADLINE):
            while True:
                if (counts := await self.counts(queue)) == (visible, hidden):
                    return
                await anyio.sleep(0.02)
        raise AssertionError(f"the queue holds {counts}, not {(visible, hidden)}:\n{self.tail()}")

    def shown(self, exec_id: str, text: str) -> bool:
        """Whether the report in DataHub holds a text by now."""
        history = self.datahub.store.history(exec_id)
        return bool(history) and text in history[-1].value.get("report", "")

    async def offered(self, wait: int) -> list[str]:
        """The messages that the queue offers to another consumer within so many seconds."""
        answer = await self.sqs.receive_message(QueueUrl=self._direct(self.queue), WaitTimeSeconds=wait)
        return [message["Body"] for message in answer.get("Messages", ())]

    @staticmethod
    def alive(pid: int) -> bool:
        """Whether a process can still do something."""
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX"

    def answers(self, operation: str) -> list[int]:
        """What DataHub answered to the calls of an operation so far: HTTP statuses, 0 for none at all."""
        return [call.status for call in self.datahub.calls.of(operation)]

    def run_folders(self) -> list[Path]:
        """The folders of runs whose process has not ended yet."""
        runs = self.work_dir / "runs"
        return list(runs.iterdir()) if runs.exists() else []

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds."""
        await eventually(lambda: condition() or None, lambda: f"it never came true:\n{self.tail()}", DEADLINE)

    async def stopped(self, service: RunningService) -> None:
        """Wait until a service that was signalled has stopped."""
        with anyio.move_on_after(DEADLINE):
            await service.stopped.wait()
            return
        raise AssertionError(f"the service did not stop:\n{self.tail()}")

    async def until_metric(self, service: RunningService, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        found = None
        with anyio.move_on_after(DEADLINE):
            while True:
                if (found := await service.metric(name)) == value:
                    return
                await anyio.sleep(0.01)
        raise AssertionError(f"{name} is {found}, not {value}:\n{self.tail()}")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """What the services logged, all or the events of one name."""
        events = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [event for event in events if name is None or event["event"] == name]

    async def event(
        self, name: str, condition: Callable[[dict[str, Any]], bool] = lambda _: True, count: int = 1
    ) -> dict[str, Any]:
        """The latest event of that name that fulfils the condition, once there are so many."""
        return await eventually(
            lambda: (
                found[-1]
                if len(found := [event for event in self.events(name) if condition(event)]) >= count
                else None
            ),
            lambda: f"{name} was not logged {count} times:\n{self.tail()}",
            DEADLINE,
        )

    def tail(self) -> str:
        """The end of the log, for a complaint."""
        return self.log.getvalue()[-4000:]

    def _direct(self, queue: str) -> str:
        """The queue as LocalStack itself knows it, whatever way the services take to it."""
        return f"{self.localstack.endpoint}/{queue.split('/', 3)[3]}"


@asynccontextmanager
async def open_site(
    localstack: LocalStack, datahub: DataHubStandIn, folder: Path, *, warm: bool = False
) -> AsyncIterator[Site]:
    """A site of a test's own, whose runs start warm or cold.

    The environment must let botocore find LocalStack's keys and region.
    """
    queue = await localstack.make_queue(visibility=60, redrive=20)
    work_dir = folder / "work"
    work_dir.mkdir(parents=True)
    clis = FakeClis(folder, warm=warm)
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "AWS_REGION": localstack.region,
        "DATAHUB_GMS_URL": datahub.url,
        "DATAHUB_GMS_TOKEN": "t",
        "DATAHUB_EXECUTOR_QUEUE": queue,
        "DATAHUB_EXECUTOR_WORK_DIR": str(work_dir),
        "DATAHUB_BUNDLED_VENV_PATH": str(clis.venvs),
        "DATAHUB_EXECUTOR_FILE_SECRET_BASEDIR": str(folder / "secrets"),
        "DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL": "0.2",
        "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "60",
        "DATAHUB_EXECUTOR_WARM_STARTS": str(warm),
    }
    async with localstack.client() as sqs:
        site = Site(localstack, datahub, queue, sqs, clis, env, work_dir)
        configure_logging(site.maskers.mask, site.log)
        yield site
