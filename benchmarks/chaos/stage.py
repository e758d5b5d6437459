"""The executors as processes, each with a way of its own to each server, and the faults done to them."""

import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import Process

from benchmarks.chaos import processes
from benchmarks.chaos.cli import MARKER
from benchmarks.chaos.faults import DRAINED_WITHIN, Fault, Server
from benchmarks.chaos.processes import Remains
from benchmarks.chaos.records import Handed, Struck
from tests.servers.proxy import TcpProxy, tcp_proxy

DRAIN_TIMEOUT: Final = 3.0  # seconds
START_DEADLINE: Final = 60.0  # seconds
_LONGEST_ID: Final = 64  # bytes: an id that two reads have cut apart is put together from so many


class Wire:
    """Listens to what SQS answers to one executor, and notes which requests were handed to it."""

    def __init__(self, executor: int, prefix: str, handed: list[Handed]) -> None:
        self._executor = executor
        self._pattern = re.compile(rf"{re.escape(prefix)}\d{{5}}".encode())
        self._handed = handed
        self._rest = b""

    def hear(self, data: bytes, lost: bool) -> None:
        """Note the requests in an answer. An id is five digits after the prefix."""
        text, now = self._rest + data, time.monotonic()
        found = dict.fromkeys(match.group().decode() for match in self._pattern.finditer(text))
        self._handed.extend(Handed(exec_id, self._executor, now, lost) for exec_id in found)
        ends = [match.end() for match in self._pattern.finditer(text)]
        self._rest = text[max([0, len(text) - _LONGEST_ID, *ends]) :]


class Executor:
    """One executor: the same settings and folder in all of its lives."""

    def __init__(self, number: int, nonce: str, folder: Path, env: Mapping[str, str]) -> None:
        self.number = number
        self.life = 0
        self._nonce = nonce
        self._folder = folder
        self._env = env
        self._process: Process | None = None

    @property
    def marker(self) -> bytes:
        """What everything of its present life bears in its environment."""
        return f"{MARKER}={self._value}".encode()

    @property
    def _value(self) -> str:
        return f"{self._nonce}/{self.number}.{self.life}."

    @property
    def up(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Begin its next life, with a log of its own."""
        self.life += 1
        with (self._folder / f"log.{self.life}").open("wb") as log:
            self._process = await anyio.open_process(
                [sys.executable, "-m", "executor", "run"],
                env={**self._env, MARKER: self._value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def consuming(self) -> None:
        """Return once it asks for messages.

        Raises:
            RuntimeError: it ended, or did not come so far in START_DEADLINE.
        """
        log = self._folder / f"log.{self.life}"
        with anyio.move_on_after(START_DEADLINE):
            while self.up:
                if '"consuming"' in log.read_text():
                    return
                await anyio.sleep(0.05)
        raise RuntimeError(f"executor {self.number} did not start; its log ends:\n{log.read_text()[-2000:]}")

    def send(self, number: signal.Signals) -> None:
        """Signal its main process alone."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> None:
        """Return once its main process is gone."""
        assert self._process is not None
        await self._process.wait()


class Stage:
    """All executors and the ways to their servers; keeps what is done to them and what comes of it."""

    def __init__(self) -> None:
        self.executors: list[Executor] = []
        self.handed: list[Handed] = []
        self.struck: list[Struck] = []
        self.remains: list[Remains] = []
        self.skipped: list[Fault] = []
        self.ways: dict[tuple[Server, int], TcpProxy] = {}

    async def strike(self, fault: Fault) -> None:
        """Do what a fault says, to its end, and watch what a killed executor leaves behind.

        A signal is left out where the executor is still away.
        """
        if fault.server is not None:
            await self._cut(fault, [self.ways[fault.server, number] for number in fault.executors])
            return
        executor = self.executors[fault.executors[0]]
        if not executor.up:
            self.skipped.append(fault)
            return
        life, began = executor.life, time.monotonic()
        async with anyio.create_task_group() as tasks:
            match fault.kind:
                case "kill":
                    tasks.start_soon(self._watch, executor.number, executor.marker)
                    await self._kill(executor, fault.seconds)
                case "stop":
                    executor.send(signal.SIGSTOP)
                    await anyio.sleep(fault.seconds)
                    executor.send(signal.SIGCONT)
                case _:
                    await self._drain(executor, fault.seconds)
            self.struck.append(Struck(fault, began, time.monotonic(), life))

    async def _kill(self, executor: Executor, pause: float) -> None:
        executor.send(signal.SIGKILL)
        await executor.ended()
        await anyio.sleep(pause)
        await executor.start()

    async def _watch(self, number: int, marker: bytes) -> None:
        self.remains.append(await processes.remains(number, marker))

    async def _drain(self, executor: Executor, pause: float) -> None:
        executor.send(signal.SIGTERM)
        with anyio.move_on_after(DRAINED_WITHIN):
            await executor.ended()
        if executor.up:
            executor.send(signal.SIGKILL)
            await executor.ended()
        await anyio.sleep(pause)
        await executor.start()

    async def _cut(self, fault: Fault, ways: Sequence[TcpProxy]) -> None:
        began = time.monotonic()
        for way in ways:
            if fault.kind == "refused":
                await way.cut()
            elif fault.kind == "half-open":
                way.hold()
            else:
                way.lose_answers()
        await anyio.sleep(fault.seconds)
        for way in ways:
            if fault.kind == "refused":
                await way.restore()
            else:
                way.let_pass()
        self.struck.append(Struck(fault, began, time.monotonic()))


@asynccontextmanager
async def stage(
    folder: Path, count: int, env: Mapping[str, str], ports: Mapping[Server, int], queue: str, prefix: str
) -> AsyncIterator[Stage]:
    """Start the executors; everything that they started is killed at the end.

    Args:
        folder: gets a folder for each.
        count: how many.
        env: what all of them are given.
        ports: where the servers listen.
        queue: the queue's URL as LocalStack has it.
        prefix: what every request's id begins with.
    """
    nonce = secrets.token_hex(8)
    try:
        async with AsyncExitStack() as stack:
            made = Stage()
            for number in range(count):
                wire = Wire(number, prefix, made.handed)
                sqs = await stack.enter_async_context(tcp_proxy(ports["sqs"], wire.hear))
                datahub = await stack.enter_async_context(tcp_proxy(ports["datahub"]))
                made.ways |= {("sqs", number): sqs, ("datahub", number): datahub}
                home = folder / f"executor-{number}"
                home.mkdir()
                own = {
                    "HOME": str(home),
                    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{sqs.port}",
                    "DATAHUB_GMS_URL": f"http://127.0.0.1:{datahub.port}",
                    "DATAHUB_EXECUTOR_QUEUE": queue.replace(f":{ports['sqs']}/", f":{sqs.port}/"),
                    "DATAHUB_EXECUTOR_WORK_DIR": str(home / "work"),
                }
                executor = Executor(number, nonce, home, {**env, **own})
                await executor.start()
                made.executors.append(executor)
            for executor in made.executors:
                await executor.consuming()
            yield made
    finally:
        processes.end_all(f"{MARKER}={nonce}/".encode())
