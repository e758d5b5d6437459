"""Warm parents: which are kept, what becomes of those that die, and which venvs can't have one."""

import math
import os
import random
import signal
from collections import Counter
from pathlib import Path

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from executor.ingestion import warm_pool
from executor.ingestion.process import NotForkedError, run_process, start_cold
from executor.ingestion.venv import Venv
from tests.integration.test_guard import until
from tests.integration.trees import LIBRARY, Output, descriptors, zombies
from tests.integration.warm_stage import DEADLINE, MIB, Stage, alive, make_venv, open_stage

# Parents that die


async def test_a_run_outlives_its_parent_and_the_next_one_gets_another(stage: Stage) -> None:
    venv = stage.venv(
        "say('up'); sys.stdin.read(); os.open(sys.argv[1], os.O_RDONLY); say('done'); sys.exit(5)"
    )
    go, output = stage.folder / "go", Output()
    os.mkfifo(go)
    first = await stage.parent(venv)
    codes: list[int] = []

    async def run() -> None:
        command = stage.command(venv, str(go))
        ended = await run_process(command, output, guard=stage.guard, start=first.start)
        codes.append(ended.returncode)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await output.holds(b"up")
            os.kill(first.pid, signal.SIGKILL)
            await until(lambda: first.ended)
            assert (await stage.parent(venv)).pid != first.pid
            os.close(await anyio.to_thread.run_sync(os.open, go, os.O_WRONLY))
    assert (codes, output.data) == ([5], b"up\ndone\n")
    assert zombies() == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_parent_that_does_not_fork_is_ended_and_leaves_nothing(
    how: signal.Signals, stage: Stage
) -> None:
    venv = stage.venv("say('ran')")
    parent, before = await stage.parent(venv), descriptors()
    os.kill(parent.pid, how)
    with pytest.raises(NotForkedError), anyio.fail_after(DEADLINE):
        await run_process(stage.command(venv), Output(), guard=stage.guard, start=parent.start)
    await until(lambda: stage.parents.count == 0)
    assert (alive(venv), zombies()) == ([], [])
    assert descriptors() == before - 3, "its socket, its output and its own descriptor"
    assert (await stage.run(True, stage.command(venv), venv))[1] == b"ran\n"


# From the fork that proves it fit until SIGUSR1; root has as many processes as it likes, so it is nobody then.
WITHOUT_PROCESSES = """
import os, resource, signal
users, (soft, hard), nobody = os.getresuid(), resource.getrlimit(resource.RLIMIT_NPROC), 65534
def restrict():
    global restrict
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    if not users[0]:
        os.setresuid(nobody, nobody, 0)
    restrict = int
os.register_at_fork(after_in_parent=lambda: restrict())
def restore(*_):
    os.setresuid(*users)
    resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
signal.signal(signal.SIGUSR1, restore)
"""


async def test_a_parent_that_the_system_lets_fork_nothing_is_kept_until_it_can(stage: Stage) -> None:
    venv = stage.venv("say('ran')", WITHOUT_PROCESSES)
    parent, command, before = await stage.parent(venv), stage.command(venv, cwd=Path("/")), descriptors()
    for _ in range(warm_pool.MOST_DEATHS):
        with pytest.raises(NotForkedError, match=r"gave it no process: Resource temporarily unavailable$"):
            await run_process(command, Output(), guard=stage.guard, start=parent.start)
    assert (alive(venv), descriptors(), zombies()) == ([parent.pid], before, [])
    os.kill(parent.pid, signal.SIGUSR1)
    assert (await stage.run(True, command, venv))[1] == b"ran\n"
    assert alive(venv) == [parent.pid]


async def kill_parent(stage: Stage, venv: Venv) -> None:
    parent = await stage.parent(venv)
    os.kill(parent.pid, signal.SIGKILL)
    await until(lambda: stage.parents.count == 0)


@pytest.mark.parametrize("way_out", ["time", "another venv"])
async def test_no_more_parents_of_a_kind_are_tried_once_some_died_soon_after_each_other(
    way_out: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = stage.venv("")
    for _ in range(warm_pool.MOST_DEATHS - 1):
        await kill_parent(stage, venv)
    with capture_logs() as said:
        await kill_parent(stage, venv)
        assert await stage.parents.find(venv, "fake", stage.env) is None
    [event] = said
    assert event["event"] == "runs_start_cold"
    assert "died or hung within 900 s; another one is tried that long after" in event["reason"]
    if way_out == "time":
        monkeypatch.setattr(warm_pool, "DEATHS_COUNT", 0.0)
    else:
        Path(venv.command[-1]).touch()
    await stage.parent(venv)


async def test_deaths_before_a_run_was_forked_are_forgotten(stage: Stage) -> None:
    venv = stage.venv("say('ran')")
    for _ in range(warm_pool.MOST_DEATHS - 1):
        await kill_parent(stage, venv)
    assert (await stage.run(True, stage.command(venv), venv))[1] == b"ran\n"
    await kill_parent(stage, venv)
    await stage.parent(venv)


# Venvs that are not fit

DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.wait()
"""
UNFIT: dict[str, tuple[str, str]] = {
    "a thread": ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
                 "it starts threads"),
    "a connection": ("import socket\nkept = socket.socketpair()", "it opens files or connections"),
    "a file": ("kept = open('/dev/null')", "it opens files or connections"),
    "a process": ("import subprocess\nkept = subprocess.Popen(['sleep', '60'])", "it starts processes"),
    "a daemon": (DAEMON, "it starts processes"),
    "a lock of many processes": ("import multiprocessing\nkept = multiprocessing.Lock()", "it shares memory"),
    "an alarm": ("import signal\nsignal.alarm(600)", "it sets an alarm"),
    "the environment": ("import os\nkept = dict(os.environ)", "it looks at the whole environment"),
    "an exception": ("raise RuntimeError('broken')", "RuntimeError: broken"),
    "an exit": ("import sys\nsys.exit('enough')", "SystemExit: enough"),
    "a death": ("import os\nos.abort()", "its process ended while it was importing"),
    "a package that is missing": ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT)
async def test_what_must_not_be_shared_at_import_makes_runs_start_cold_and_is_said_once(
    what: str, stage: Stage
) -> None:
    imported, words = UNFIT[what]
    venv = stage.venv("say('ran')", imported)
    before = descriptors()
    assert words in await stage.refused(venv)
    await until(lambda: stage.parents.count == 0)
    assert (stage.parents.memory, descriptors(), alive(venv), zombies()) == (0, before, [], [])


async def test_threads_that_end_before_a_fork_are_no_reason_to_start_cold(stage: Stage) -> None:
    venv = stage.venv(
        "say('ran')",
        "import os, threading\nstop = threading.Event()\nthread = threading.Thread(target=stop.wait)\n"
        "thread.start()\nos.register_at_fork(before=lambda: (stop.set(), thread.join()))\n",
    )
    assert (await stage.run(True, stage.command(venv), venv))[1] == b"ran\n"


@pytest.mark.parametrize(
    ("head", "mode"),
    [
        ("#!/nowhere/sh\n", 0o755),
        ("#!/usr/bin/env python3\n", 0o755),
        ("", 0o755),
        ("#!/usr/bin/python3\n", 0o644),
    ],
)
async def test_a_script_that_the_system_may_not_run_is_not_run_by_a_parent(
    head: str, mode: int, stage: Stage
) -> None:
    venv = stage.venv("")
    script = Path(venv.command[-1])
    script.write_text(head + "print('ran')\n")
    script.chmod(mode)
    bundled = Venv(venv.path, None, venv.python, (str(script),))
    assert "its script" in await stage.refused(bundled)


async def test_a_python_that_is_missing_is_said(stage: Stage) -> None:
    venv = stage.venv("")
    missing = Venv(venv.path, None, venv.python, ("/nowhere/python", venv.command[-1]))
    before = descriptors()
    assert await stage.refused(missing) == "could not start /nowhere/python: No such file or directory"
    await until(lambda: stage.parents.count == 0)
    assert descriptors() == before


async def test_a_run_whose_environment_would_have_changed_the_import_starts_cold(stage: Stage) -> None:
    venv = stage.venv("", "import os\nlimit = os.getenv('PAGE_SIZE')\nkind = os.environ.get('KIND', '')\n")
    stage.env |= {"KIND": "usual"}
    assert (await stage.parent(venv)).env["KIND"] == "usual", "it looked, and was given it"
    for name in ("PAGE_SIZE", "LD_PRELOAD", "PYTHONHASHSEED", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        assert await stage.refused(venv, {**stage.env, name: "7"}) == (
            f"{name} counts when the CLI is imported, and is a secret or not what it is for other runs"
        )
    await stage.parent(venv, {**stage.env, "SNOWFLAKE_ROLE": "reader", "TMPDIR": "/elsewhere"})


async def test_a_parent_that_no_run_can_use_is_not_kept(stage: Stage) -> None:
    stage.env["SENTRY_DSN"] = "https://key@sentry.example/1"
    venv = stage.venv("", "import os\nos.getenv('SENTRY_DSN')")
    assert (await stage.refused(venv)).startswith(
        "SENTRY_DSN counts when the CLI is imported, and is a secret"
    )
    await until(lambda: stage.parents.count == 0 and alive(venv) == [])


@pytest.mark.parametrize("name", ["NUL", "A=B", "LARGE", "SURROGATE"])
async def test_what_only_the_system_can_refuse_is_left_to_it(name: str, stage: Stage) -> None:
    venv = stage.venv("")
    value = {"NUL": "\0", "LARGE": "x" * 200_000, "SURROGATE": "\ud800"}.get(name, "")
    parent = await stage.parent(venv)
    with pytest.raises(NotForkedError):
        await parent.start(stage.command(venv, env={**stage.env, name: value}), 1)
    assert not parent.ended


# How many, and for how long


async def test_parents_that_are_over_the_memory_go_least_recently_used_first(tmp_path: Path) -> None:
    venvs = [make_venv(tmp_path / str(number), "", "kept = b'x' * (30 << 20)") for number in range(3)]
    async with open_stage(tmp_path, budget=95 * MIB) as stage:
        for number in (0, 1, 0):
            await stage.parent(venvs[number])
        assert (stage.parents.count, len(alive(venvs[1]))) == (2, 1)
        assert 60 * MIB < stage.parents.memory < 95 * MIB
        await stage.parent(venvs[2])
        await until(lambda: alive(venvs[1]) == [])
        assert [len(alive(venv)) for venv in venvs] == [1, 0, 1]
        huge = make_venv(tmp_path / "huge", "", "kept = b'x' * (120 << 20)")
        assert "DATAHUB_EXECUTOR_WARM_MEMORY" in await stage.refused(huge)
    assert [alive(venv) for venv in (*venvs, huge)] == [[]] * 4


async def test_parents_end_when_nobody_asks_for_them_but_those_that_were_asked_for_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_pool, "LOOK_PACE", 0.01)
    ahead, *others = (make_venv(tmp_path / name, "") for name in ("ahead", "other", "another"))
    async with open_stage(tmp_path, idle=0.1) as stage, anyio.create_task_group() as tasks:
        await tasks.start(stage.parents.keep, ahead, "fake", stage.env)
        [first] = alive(ahead)
        for venv in others:
            await stage.parent(venv)
            await until(lambda: stage.parents.count == 1)
        assert [alive(venv) for venv in (ahead, *others)] == [[first], [], []]
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("end", ["it died", "its venv changed"])
async def test_a_parent_that_was_asked_for_ahead_is_there_again_after_its_end(
    end: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_pool, "LOOK_PACE", 0.01)
    venv = stage.venv("")
    async with anyio.create_task_group() as tasks:
        await tasks.start(stage.parents.keep, venv, "fake", stage.env)
        [first] = alive(venv)
        if end == "it died":
            os.kill(first, signal.SIGKILL)
        else:
            Path(venv.command[-1]).touch()
        await until(lambda: len(alive(venv)) == 1 and alive(venv) != [first])
        tasks.cancel_scope.cancel()


async def test_a_parent_that_was_asked_for_ahead_makes_room_and_does_not_come_back_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_pool, "LOOK_PACE", 0.01)
    kept = "kept = b'x' * (30 << 20)"
    ahead, other = (make_venv(tmp_path / name, "", kept) for name in ("ahead", "other"))
    async with open_stage(tmp_path, budget=60 * MIB) as stage:
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                await tasks.start(stage.parents.keep, ahead, "fake", stage.env)
                await stage.parent(other)  # and the group ends, as there is nothing left to keep
        assert (len(alive(ahead)), len(alive(other))) == (0, 1)


@pytest.mark.parametrize(
    "change", ["another script", "another package", "the same package again", "another folder"]
)
async def test_a_venv_that_changed_gets_a_new_parent(change: str, stage: Stage) -> None:
    venv = stage.venv("say('old')")
    installed = venv.path / "lib" / "python3.11" / "site-packages" / "old-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "RECORD").touch()
    assert (await stage.run(True, stage.command(venv), venv))[1] == b"old\n"
    first = (await stage.parent(venv)).pid
    script = Path(venv.command[-1])
    match change:
        case "another script":
            script.write_text(LIBRARY + "say('new')")
        case "another package":
            (installed.parent / "new-1.0.dist-info").mkdir()
        case "the same package again":  # a folder that is made anew may well have the same inode
            (installed / "RECORD").unlink()
            (installed / "RECORD").touch()
        case _:
            venv.path.rename(stage.folder / "old")
            stage.venv("say('new')")
    _, output = await stage.run(True, stage.command(venv), venv)
    assert output == (b"old\n" if "package" in change else b"new\n")
    assert (await stage.parent(venv)).pid != first
    await until(lambda: first not in alive(venv))


async def test_many_runs_of_one_kind_wait_for_one_parent(stage: Stage) -> None:
    venv = stage.venv("", "import time\ntime.sleep(0.2)\nimport os\nos.getenv('LATE')")
    stage.env |= {"LATE": "1"}
    found: list[int] = []

    async def look() -> None:
        found.append((await stage.parent(venv)).pid)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(look)
    assert len(found) == 8
    assert len(set(found)) == 1


async def test_each_run_happens_once_though_parents_are_killed_and_others_cancelled(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_pool, "MOST_DEATHS", math.inf)
    venv = stage.venv("number = int(sys.argv[1])\nos.write(1, b'%d.' % number)\nsys.exit(number % 7)")
    chance = random.Random(0)
    starts: Counter[str] = Counter()

    await stage.run(False, stage.command(venv, "7"), venv)
    before = descriptors()
    limiter = anyio.CapacityLimiter(8)

    async def run(number: int) -> None:
        command, output = stage.command(venv, str(number)), Output()
        async with limiter:
            parent = await stage.parents.find(venv, "fake", stage.env)
            start = parent.start if parent else start_cold
            try:
                ended = await run_process(command, output, guard=stage.guard, start=start)
                starts["warm" if parent else "cold"] += 1
            except NotForkedError:
                starts["cold after all"] += 1
                ended = await run_process(command, output, guard=stage.guard)
        assert (ended.returncode, output.data) == (number % 7, b"%d." % number)

    async def cancelled(number: int) -> None:
        with anyio.move_on_after(chance.uniform(0, 0.5)):
            await run(number)

    async def kill() -> None:
        while True:
            await anyio.sleep(chance.uniform(0, 0.3))
            for kept in stage.parents._parents.values():
                if kept.parent.pid and not kept.parent.ended:
                    os.kill(kept.parent.pid, signal.SIGKILL)

    with structlog.testing.capture_logs(), anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as killing:
            killing.start_soon(kill)
            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(cancelled if number % 4 == 0 else run, number)
            killing.cancel_scope.cancel()
    await until(lambda: len(alive(venv)) == stage.parents.count <= 1)
    assert zombies() == []
    await until(lambda: descriptors() == before + 3 * stage.parents.count)
    assert starts["warm"], starts
