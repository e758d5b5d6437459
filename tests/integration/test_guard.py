"""The guard: whatever dies or stops, nothing that was started outlives its lease or its executor."""

import json
import math
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process

from executor.ingestion.guard import KILL_MARGIN, PING_PACE, Guard, open_guard
from executor.ingestion.marks import marked
from executor.ingestion.process import Command, ProcessStartError, run_process
from executor.lease import Lease, LeaseEndedError
from tests.conftest import ROOT
from tests.integration.trees import OFFSPRING, Output, Script, descriptors, guards, zombies

DEADLINE = 60.0  # seconds; only a failing test takes them
GONE_WITHIN = 5.0  # seconds after an executor's death until nothing of it may be left

# An executor with one run or one venv build, as JSON in its environment, for no argument must show in /proc.
EXECUTOR = """
import anyio, json, os, signal, sys, time
from functools import partial
from pathlib import Path
from executor.ingestion.guard import open_guard
from executor.ingestion.process import Command, run_process
from executor.ingestion.tool import guarded_by
from executor.ingestion.venv import VenvCache, venv_spec
from executor.lease import Lease, LeaseEndedError
from tests.integration.trees import guards

plan = json.loads(os.environ["PLAN"])

def say(*words):
    print(*words, flush=True)

def hear(chunk):
    os.write(1, chunk)
    time.sleep(plan.pop("block", 0))

async def build(guard):
    root = Path(plan["root"])
    spec = venv_spec(version="1.0", plugin="shop", extra_plugins=[], extra_requirements=[],
                     dependency_resolution_enabled=True, environ={})
    async with VenvCache(root=root / "venvs", bundled=root, uv=root / "uv", environ={},
                         run=guarded_by(guard)) as cache:
        await cache.get(spec, hear)

async def run(guard):
    lease = Lease(time.monotonic() + plan["lasts"])
    say("lease", lease.ends)
    command = Command(plan["argv"], {}, Path("/"))
    async with anyio.create_task_group() as tasks:
        if plan.get("replace"):
            tasks.start_soon(replace, guard, lease)
        try:
            ended = await run_process(command, hear, guard=guard, lease=lease)
            say("exit", ended.returncode)
        except LeaseEndedError:
            say("lease ended")

async def replace(guard, lease):
    [first] = guards(os.getpid())
    os.kill(first, plan["replace"])
    while guards(os.getpid()) in ([], [first]):
        for step in range(1000):  # unread, they fill the buffer of one that is stopped
            lease.renew(lease.ends + 0.0001)
        await anyio.sleep(0.01)
    async with guard.watch(lease):
        say("replaced")

async def main():
    async with open_guard() as guard:
        async with guard.watch(Lease(float("inf"))):
            say("guard", *guards(os.getpid()))
        await (run(guard) if "argv" in plan else build(guard))

anyio.run(main)
"""
# Goes on telling when it was last alive.
ALIVE = """
file = os.open(sys.argv[2] + "-" + str(os.getpid()), os.O_CREAT | os.O_WRONLY)
say('up')
while True:
    os.pwrite(file, f"{time.monotonic():020.6f}".encode(), 0)
    time.sleep(0.001)
"""


async def until(holds: Callable[[], bool], limit: float = DEADLINE) -> None:
    with anyio.fail_after(limit):
        while not holds():  # noqa: ASYNC110 - other processes' state, of which no event tells
            await anyio.sleep(0.005)


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").exists() and bool(Path(f"/proc/{pid}/cmdline").read_bytes())


class Executor:
    """A process that holds a run."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.output = Output()

    def word_after(self, word: str) -> str:
        words = self.output.data.decode().split()
        return words[words.index(word) + 1]

    async def says(self, words: str) -> None:
        with anyio.fail_after(DEADLINE):
            await self.output.holds(words.encode())

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for chunk in self.process.stdout:
            self.output(chunk)


@asynccontextmanager
async def executor(**plan: object) -> AsyncIterator[Executor]:
    process = await anyio.open_process(
        [sys.executable, "-c", EXECUTOR],
        env={"PYTHONPATH": str(ROOT), "PLAN": json.dumps(plan), "PATH": os.defpath},
        stderr=None,
    )
    async with process, anyio.create_task_group() as tasks:
        running = Executor(process)
        tasks.start_soon(running.listen)
        try:
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            tasks.cancel_scope.cancel()


def holding(kind: str) -> Script:
    """A run with such a process beside it; it is up once both are."""
    return Script(f"{OFFSPRING[kind]}\nos.read(there, 1); say('up'); time.sleep(600)")


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    async with open_guard() as guard:
        async with guard.watch(Lease(math.inf)):
            pass
        yield guard


async def run(guard: Guard, script: str, lease: Lease | None = None, stdin: bytes = b"") -> bytes:
    output = Output()
    command = Command(["/bin/sh", "-c", script], {"PATH": os.defpath}, Path("/"), stdin)
    with anyio.fail_after(DEADLINE):
        await run_process(command, output, guard=guard, lease=lease)
    return output.data


def start_sleeping(mark: int) -> "subprocess.Popen[bytes]":
    with marked(mark):
        return subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)


async def assert_killed(process: "subprocess.Popen[bytes]") -> None:
    await until(lambda: process.poll() is not None)
    assert process.returncode == -signal.SIGKILL


# The executor dies


@pytest.mark.parametrize("kind", OFFSPRING)
async def test_a_killed_executor_leaves_no_process_of_a_run(kind: str, tmp_path: Path) -> None:
    script = holding(kind)
    async with executor(argv=script.command(tmp_path).argv, lasts=600) as running:
        await running.says("up")
        assert len(script.alive()) == 2
        running.process.kill()
        await until(lambda: script.alive() == [], GONE_WITHIN)
        await until(lambda: not runs(int(running.word_after("guard"))))


async def test_a_killed_executor_leaves_no_process_of_a_venv_build(tmp_path: Path) -> None:
    script = Script(f"{OFFSPRING['daemon']}\nos.read(there, 1); say('up'); time.sleep(600)")
    (tmp_path / "uv").write_text(f"#!/bin/sh\nexec {shlex.join(script.command(tmp_path).argv)}\n")
    (tmp_path / "uv").chmod(0o755)
    async with executor(root=str(tmp_path)) as running:
        await running.says("up")
        assert len(script.alive()) == 2
        running.process.kill()
        await until(lambda: script.alive() == [], GONE_WITHIN)


async def test_an_executor_that_ends_takes_its_guard_with_it(tmp_path: Path) -> None:
    async with executor(argv=["/bin/true"], lasts=600) as running:
        await running.says("exit 0")
        await running.process.wait()
        assert not runs(int(running.word_after("guard")))


# The executor stops


@pytest.mark.parametrize("how", ["stopped", "blocked"])
async def test_a_tree_is_dead_before_its_lease_ends_though_its_executor_does_nothing(
    how: str, tmp_path: Path
) -> None:
    script = Script(f"if os.fork() == 0: os.setsid(); os.fork() == 0 or os._exit(0)\n{ALIVE}")
    argv = [*script.command(tmp_path).argv, str(tmp_path / "alive")]
    lasts = 2.0
    async with executor(argv=argv, lasts=lasts, block=2 * lasts if how == "blocked" else 0) as running:
        await until(lambda: len(list(tmp_path.glob("alive-*"))) == 2)
        await running.says("up")
        if how == "stopped":
            running.process.send_signal(signal.SIGSTOP)
        await until(lambda: script.alive() == [])
        last = max(float(path.read_text()) for path in tmp_path.glob("alive-*"))
        assert last < float(running.word_after("lease"))
        running.process.send_signal(signal.SIGCONT)
        await running.says("lease ended")


async def test_what_an_executor_starts_after_the_lease_is_killed_at_once(guard: Guard) -> None:
    async with guard.watch(Lease(time.monotonic() + KILL_MARGIN)) as watch:
        await anyio.sleep_until(watch.deadline)
        with marked(watch.mark):  # which we bear, too, and must survive
            for _ in range(3):
                await assert_killed(start_sleeping(watch.mark))


async def test_a_run_does_not_begin_once_its_lease_is_over(guard: Guard, tmp_path: Path) -> None:
    with pytest.raises(LeaseEndedError, match="before the run began"):
        await run(guard, f"touch {tmp_path}/begun", Lease(time.monotonic() - 1))
    assert list(tmp_path.iterdir()) == []


async def test_a_run_gets_nothing_to_do_from_an_executor_that_was_paused_too_long(
    guard: Guard, tmp_path: Path
) -> None:
    [process] = guards(os.getpid())
    os.kill(process, signal.SIGSTOP)  # so that the executor is on its own
    lease = Lease(time.monotonic() + KILL_MARGIN + 0.5)

    async def start() -> None:
        with pytest.raises(LeaseEndedError, match="its lease was over"):
            await run(guard, f"read line && touch {tmp_path}/begun", lease, stdin=b"go\n")

    async def pause() -> None:
        time.sleep(lease.ends - time.monotonic())  # noqa: ASYNC251 - it is to stop all that goes on here

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        tasks.start_soon(pause)
    os.kill(process, signal.SIGCONT)
    assert list(tmp_path.iterdir()) == []


# Leases


async def test_a_lease_that_is_renewed_lets_a_run_go_on(guard: Guard) -> None:
    lease = Lease(time.monotonic() + KILL_MARGIN + 0.5)
    first = lease.ends

    async def renew() -> None:
        lease.renew(time.monotonic() + 600)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(renew)
        assert await run(guard, "sleep 1.5; echo done", lease) == b"done\n"
    assert time.monotonic() > first


async def test_a_lease_that_is_cut_short_ends_a_run(guard: Guard, tmp_path: Path) -> None:
    lease, output, script = Lease(math.inf), Output(), holding("daemon")

    async def start() -> None:
        with pytest.raises(LeaseEndedError):
            await run_process(script.command(tmp_path), output, guard=guard, lease=lease)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            await output.holds(b"up")
            lease.renew(time.monotonic())
    assert script.alive() == []


async def test_a_missed_lease_can_not_be_renewed(guard: Guard) -> None:
    lease = Lease(time.monotonic() + KILL_MARGIN)
    async with guard.watch(lease) as watch:
        await assert_killed(start_sleeping(watch.mark))
        lease.renew(math.inf)  # by an executor that wakes up and does not know yet
        await assert_killed(start_sleeping(watch.mark))
    assert watch.ended


async def test_an_ended_run_stays_ended_though_its_guard_is_replaced(guard: Guard) -> None:
    lease = Lease(time.monotonic() + KILL_MARGIN)
    async with guard.watch(lease) as watch:
        await assert_killed(start_sleeping(watch.mark))
        [process] = guards(os.getpid())
        os.kill(process, signal.SIGKILL)
        await until(lambda: guards(os.getpid()) not in ([], [process]))
        lease.renew(math.inf)
        await assert_killed(start_sleeping(watch.mark))


async def test_cancelled_runs_have_their_grace_though_their_guard_is_cancelled_with_them(
    tmp_path: Path,
) -> None:
    source = """
def told(*_):
    time.sleep(0.3); say('bye'); os._exit(0)
signal.signal(signal.SIGTERM, told)
say('up'); time.sleep(600)
"""
    script, output = Script(source), Output()
    guarded_to_the_end: list[bool] = []

    def hear(chunk: bytes) -> None:
        output(chunk)
        if b"bye" in chunk:
            guarded_to_the_end.append(len(guards(os.getpid())) == 1)

    async def hold() -> None:
        async with open_guard() as guard:
            await run_process(script.command(tmp_path), hear, guard=guard, grace=lambda: 30)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            await output.holds(b"up")
            tasks.cancel_scope.cancel()
    assert output.data == b"up\nbye\n"
    assert guarded_to_the_end == [True]
    assert guards(os.getpid()) == []


async def test_a_guard_without_a_free_file_descriptor_can_still_kill(guard: Guard, tmp_path: Path) -> None:
    [process] = guards(os.getpid())
    resource.prlimit(process, resource.RLIMIT_NOFILE, (0, 1024))
    script = holding("child that holds the output open")
    lease = Lease(time.monotonic() + KILL_MARGIN + 0.5)
    with pytest.raises(LeaseEndedError), anyio.fail_after(DEADLINE):
        await run_process(script.command(tmp_path), Output(), guard=guard, lease=lease)
    assert script.alive() == []


async def test_a_tree_of_which_nobody_knows_whether_it_is_gone_is_ended(guard: Guard) -> None:
    async with guard.watch(Lease(math.inf)) as watch:
        process = start_sleeping(watch.mark)
        watch.forget(gone=False)
    await assert_killed(process)


# The guard itself


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_guard_that_dies_or_hangs_is_replaced_by_one_that_guards(
    how: signal.Signals, tmp_path: Path
) -> None:
    script = holding("daemon")
    async with executor(argv=script.command(tmp_path).argv, lasts=600, replace=how) as running:
        await running.says("replaced")
        await running.says("up")
        [second] = guards(running.process.pid)
        assert second != int(running.word_after("guard"))
        running.process.kill()
        await until(lambda: script.alive() == [], GONE_WITHIN)


async def test_a_guard_that_hangs_is_replaced_though_there_is_nothing_to_tell_it(guard: Guard) -> None:
    lease = Lease(math.inf)
    async with guard.watch(lease) as watch:
        [first] = guards(os.getpid())
        os.kill(first, signal.SIGSTOP)
        await until(lambda: guards(os.getpid()) not in ([], [first]))
        lease.renew(time.monotonic())
        await assert_killed(start_sleeping(watch.mark))


async def test_a_pause_of_the_executor_does_not_cost_it_its_guard(guard: Guard) -> None:
    async with guard.watch(Lease(math.inf)):
        before = guards(os.getpid())
        await anyio.sleep(PING_PACE / 4)  # a ping is under way
        time.sleep(2 * PING_PACE)  # noqa: ASYNC251 - it is to stop all that goes on here
        await anyio.sleep(PING_PACE)
        assert guards(os.getpid()) == before


async def test_a_guard_with_nothing_to_watch_is_left_asleep(guard: Guard) -> None:
    def woken() -> str:
        [process] = guards(os.getpid())
        [line] = re.findall(r"^voluntary_ctxt.*", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
        return str(line)

    await anyio.sleep(PING_PACE)  # the pings of what was watched before end
    before = woken()
    await anyio.sleep(1.5 * PING_PACE)
    assert woken() == before


async def test_without_a_guard_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for program, words in (("/nowhere/python", "No such file"), ("/bin/false", "as soon as it was started")):
        async with open_guard() as guard:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "executable", program)
                with pytest.raises(ProcessStartError, match=f"guard process.*{words}.*Check that"):
                    await run(guard, f"touch {tmp_path}/begun")
            assert await run(guard, "echo again") == b"again\n"  # another one may start
    assert list(tmp_path.iterdir()) == []


async def test_a_signal_that_ends_all_processes_leaves_the_guard_to_its_executor(guard: Guard) -> None:
    before = guards(os.getpid())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(before[0], number)
    await run(guard, "true")
    assert guards(os.getpid()) == before
    assert runs(before[0])


async def test_the_guard_knows_no_secret_and_shares_nothing(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    async with open_guard() as second, second.watch(Lease(math.inf)):
        found = guards(os.getpid())
        assert len(found) == 2
        for pid in found:
            folder = Path(f"/proc/{pid}")
            assert b"hunter2" not in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            held = sorted(str(entry.readlink()).partition(":")[0] for entry in (folder / "fd").iterdir())
            assert held == ["/dev/null"] * 3 + ["socket"]
            assert (folder / "cwd").readlink() == Path("/")
    assert b"socket" not in await run(guard, "ls -l /proc/self/fd")


async def test_guards_that_come_and_go_leave_nothing(guard: Guard) -> None:
    await run(guard, "true")
    before = descriptors()
    for _ in range(5):
        [process] = guards(os.getpid())
        os.kill(process, signal.SIGKILL)
        await until(lambda old=process: guards(os.getpid()) not in ([], [old]))  # type: ignore[misc]
        assert await run(guard, "echo still") == b"still\n"
    assert descriptors() == before
    assert zombies() == []


async def test_many_runs_leave_nothing_in_the_guard(guard: Guard) -> None:
    await run(guard, "true")
    [process] = guards(os.getpid())
    before = descriptors()
    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(partial(run, guard, "sleep 600 & exit 0", Lease(time.monotonic() + 600)))
    assert guards(os.getpid()) == [process]
    assert descriptors() == before
    assert zombies() == []
