"""Warm starts: a forked run is the run that a start from the disk would have been, or it is started from there."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from executor.ingestion.ending import describe
from executor.ingestion.process import Command, run_process
from executor.ingestion.venv import Venv
from executor.lease import Lease, LeaseEndedError
from tests.conftest import ROOT
from tests.integration.test_guard import ALIVE, until
from tests.integration.trees import IGNORE, OFFSPRING, Output, descriptors, zombies
from tests.integration.warm_stage import DEADLINE, MIB, Stage, alive

GONE_WITHIN = 5.0  # seconds after an executor's death until nothing of it may be left
PARENT = ROOT / "executor" / "ingestion" / "warm_parent.py"


# The child is the run

TOLD = """
import gc, json, resource, subprocess, threading
given = sys.stdin.buffer.read().decode()
def line(name):
    return [text for text in open("/proc/self/status") if text.startswith(name)]
traits = ("encoding", "errors", "line_buffering", "write_through", "name", "mode")
streams = {name: [getattr(getattr(sys, name), trait) for trait in traits] + [getattr(sys, name).isatty()]
           for name in ("stdin", "stdout", "stderr")}
main = sys.modules["__main__"]
told = {
    "given": given, "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": repr(sys.flags),
    "executable": sys.executable, "prefix": sys.prefix, "env": dict(os.environ), "cwd": os.getcwd(),
    "libc": repr(subprocess.check_output("env | sort", shell=True)),
    "parent": os.getppid(), "leads": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
    "limits": [[kind, resource.getrlimit(getattr(resource, kind))] for kind in sorted(dir(resource))
               if kind.startswith("RLIMIT_") and kind != "RLIMIT_RTTIME"],
    "signals": [line("SigBlk"), line("SigIgn"), line("SigCgt"), line("SigPnd")],
    "handlers": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "status": [line("Umask"), line("NoNewPrivs"), line("Seccomp"), line("Threads"), line("Uid"), line("Groups")],
    "nice": os.nice(0), "oom": open("/proc/self/oom_score_adj").read(),
    "files": sorted((int(fd), os.readlink("/proc/self/fd/" + fd).partition(":")[0], os.get_inheritable(int(fd)))
                    for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)),
    "streams": streams, "main": [main.__dict__ is globals(), __name__, __file__, main.__spec__],
    "threads": [thread.name for thread in threading.enumerate()], "gc": [gc.isenabled(), gc.get_threshold()],
    "umask": os.umask(0o77),
}
print(json.dumps(told, sort_keys=True))
"""
NOISY = """
import os, sys, warnings
print("a word of the import of", sys.argv[0])
os.write(2, b"another one's\\n")
os.environ["SET_BY_IMPORT"] = "yes"
os.environ.pop("TAKEN_BY_IMPORT", None)
"""


@pytest.mark.parametrize("locale", ["C.UTF-8", "POSIX"])
async def test_a_forked_run_finds_everything_as_one_from_the_disk_does(locale: str, stage: Stage) -> None:
    stage.env |= {"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    venv = stage.venv(
        TOLD, NOISY.replace("TAKEN", "NEVER_GIVEN") + "os.environ.setdefault('COLOUR', 'red')\n"
    )
    scratch = stage.folder / "scratch"
    scratch.mkdir()
    env = {**stage.env, "TMPDIR": str(scratch), "DATAHUB_GMS_TOKEN": "hunter2", "ODD": "caf\udce9 \u00e9\n"}
    command = stage.command(
        venv, "ingest", "-c", "-", env=env, cwd=scratch, stdin=b"x" * 300_000, memory_limit=2048 * MIB
    )
    # Python starts with the words of its imports, as the script imports the CLI at its beginning.
    script = Path(venv.command[-1])
    script.write_text("import datahub.entrypoints\n" + script.read_text())
    _, cold_output = await stage.run(False, command, venv)
    ended, output = await stage.run(True, command, venv)
    *words, told = output.splitlines()
    *cold_words, cold_told = cold_output.splitlines()
    assert words == cold_words == [f"a word of the import of {script}".encode(), b"another one's"]
    told, cold_told = json.loads(told), json.loads(cold_told)
    assert told == cold_told
    assert told["parent"] == os.getpid()
    assert told["env"]["SET_BY_IMPORT"] == "yes"
    assert ended.returncode == 0


@pytest.mark.parametrize("minor", [8, 9, 10, 11, 12, 13])
async def test_a_parent_is_of_any_python_that_a_cli_may_need(minor: int, stage: Stage) -> None:
    ast.parse(PARENT.read_text(), feature_version=(3, minor))
    python = python_of(minor)
    venv = replace(stage.venv(SAID, NOISY), command=(python, "-Su", str(stage.folder / "venv/bin/datahub")))
    script = Path(venv.command[-1])
    script.write_text("import datahub.entrypoints\n" + script.read_text())
    command = stage.command(venv, "ingest", env={**stage.env, "SECRET": "hunter2"})
    cold, warm = [await stage.run(start, command, venv) for start in (False, True)]
    assert (warm[0].returncode, warm[1]) == (cold[0].returncode, cold[1])
    assert warm[0].returncode == 3
    assert json.loads(warm[1].splitlines()[-1])[0] == [3, minor]


SAID = """
import json
print(json.dumps([sys.version_info[:2], sys.argv, getattr(sys, "orig_argv", 0), dict(os.environ), sys.path,
                  sys.stdin.read(), os.getsid(0) == os.getpid(), os.getcwd(), sys.stdout.encoding]))
sys.exit(3)
"""


def python_of(minor: int) -> str:
    """That Python 3 on this machine, if there is one."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [*map(str, versions.glob(f"3.{minor}.*/bin/python")), shutil.which(f"python3.{minor}")]
    for python in filter(None, found):
        if subprocess.run([python, "-c", ""], check=False, capture_output=True).returncode == 0:
            return python
    pytest.skip(f"no Python 3.{minor}")


ENDS = {
    "falls through": "print('no line end', end='')",
    "exit code": "sys.exit(3)",
    "exit without a code": "sys.exit()",
    "exit with words": "sys.exit('words')",
    "exception": "def fail():\n    raise ValueError('no')\nfail()",
    "exception of its own hook": "sys.excepthook = lambda *a: print('hook', a[0].__name__)\n1 / 0",
    "chained exceptions": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('k') from error",
    "interrupted": "raise KeyboardInterrupt",
    "at exit": "import atexit\natexit.register(print, 'bye')\nsys.exit(4)",
    "a thread outlasts": "import threading\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
    "at once": "os._exit(9)",
    "aborts": "os.abort()",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "broken pipe": "os.close(1); print('lost', flush=True)",
}


@pytest.mark.parametrize("how", ENDS)
async def test_a_forked_run_ends_as_one_from_the_disk_does(how: str, stage: Stage) -> None:
    venv = stage.venv(ENDS[how])
    command = stage.command(venv)
    cold, cold_output = await stage.run(False, command, venv)
    warm, output = await stage.run(True, command, venv)
    if how == "interrupted":  # which no executor does to a run; its traceback begins at another place
        output, cold_output = output.splitlines()[-1], cold_output.splitlines()[-1]
    assert (warm.returncode, output) == (cold.returncode, cold_output)
    assert warm.left_behind == 0
    assert alive(venv) == [(await stage.parent(venv)).pid]


async def test_what_a_forked_run_took_is_told_without_what_its_parent_took(stage: Stage) -> None:
    work = "taken = b'x' * (200 << 20)\nwhile time.process_time() < 0.2: pass"
    venv = stage.venv(work, "import time\nwhile time.process_time() < 1.0: pass")
    ended, _ = await stage.run(True, stage.command(venv), venv)
    assert ended.peak_memory > 200 * MIB
    assert 0.2 <= ended.cpu_seconds < 0.9


async def test_a_forked_run_over_its_memory_limit_fails_in_words(stage: Stage) -> None:
    venv = stage.venv("print(len(b'x' * (1 << 30)))")
    limit = 256 * MIB
    ended, output = await stage.run(True, stage.command(venv, memory_limit=limit), venv)
    assert "memory limit of 262,144 kilobytes" in describe(ended, limit, output.decode()).words


async def test_runs_from_one_parent_know_nothing_of_each_other(stage: Stage) -> None:
    script = """
import datahub, multiprocessing, random
name = os.environ["NAME"]
seen = [getattr(datahub, "left", None), os.environ.get("SECRET_OF_" + {"one": "two", "two": "one"}[name])]
datahub.left = name
os.environ["LEFT_BY_" + name] = "1"
print(json.dumps([seen, sys.stdin.read(), sorted(key for key in os.environ if key.startswith("LEFT_BY_")),
                  random.random(), multiprocessing.current_process().authkey.hex()]))
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""
    venv = stage.venv("import json\n" + script, "import multiprocessing, random\n")
    go = stage.folder / "go"
    outputs: dict[str, bytes] = {}

    async def run(name: str) -> None:
        env = {**stage.env, "NAME": name, f"SECRET_OF_{name}": "hunter2"}
        command = stage.command(venv, str(go), env=env, stdin=f"recipe of {name}".encode())
        _, outputs[name] = await stage.run(True, command, venv)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "one")
        tasks.start_soon(run, "two")
        await until(lambda: len(alive(venv)) == 3)
        go.touch()
    told = {name: json.loads(output) for name, output in outputs.items()}
    for name, [seen, given, left, *_] in told.items():
        assert (seen, given, left) == ([None, None], f"recipe of {name}", [f"LEFT_BY_{name}"])
    assert told["one"][3] != told["two"][3]
    assert told["one"][4] != told["two"][4]


async def test_a_parent_has_no_secret_and_no_more_than_it_needs(stage: Stage) -> None:
    names = ("GMS_TOKEN", "DB_PASS", "ENCRYPTION_KEY", "KEY_PASSPHRASE", "SALT")
    stage.env |= {f"DATAHUB_{name}": "hunter2" for name in names}
    stage.env |= {"DB_PW": "hunter2", "PROXY": "http://u:hunter2@h"}
    venv = stage.venv("print('ran')")
    parent = await stage.parent(venv)
    await stage.run(True, stage.command(venv, stdin=b"hunter2"), venv)
    folder = Path(f"/proc/{parent.pid}")
    assert b"hunter2" not in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
    kinds = sorted(str(entry.readlink()).partition(":")[0] for entry in (folder / "fd").iterdir())
    assert kinds == ["pipe", "pipe", "pipe", "socket"]


async def test_a_parent_is_after_many_runs_as_it_was_before(stage: Stage) -> None:
    venv = stage.venv("sys.stdin.read()")
    parent = await stage.parent(venv)
    folder = Path(f"/proc/{parent.pid}")

    def state() -> tuple[list[str], int, int]:
        status = (folder / "status").read_text()
        files = sorted(str(entry.readlink()) for entry in (folder / "fd").iterdir())
        [memory] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
        return files, len(list((folder / "task").iterdir())), memory

    command = stage.command(venv)
    await stage.run(True, command, venv)
    (files, threads, memory), ours = state(), descriptors()
    limiter = anyio.CapacityLimiter(8)

    async def run() -> None:
        async with limiter:
            ended, _ = await stage.run(True, command, venv)
            assert ended.returncode == 0

    async with anyio.create_task_group() as tasks:
        for _ in range(1000):
            tasks.start_soon(run)
    after = state()
    assert after[:2] == (files, threads)
    assert after[2] - memory < 256, "kilobytes"
    assert descriptors() == ours
    assert zombies() == []
    assert alive(venv) == [parent.pid]


# Nothing is left


@pytest.mark.parametrize("kind", OFFSPRING)
async def test_what_a_forked_run_leaves_behind_goes_with_it(kind: str, stage: Stage) -> None:
    venv = stage.venv(f"{OFFSPRING[kind]}\nos.read(there, 1); say('done'); os._exit(7)")
    ended, output = await stage.run(True, stage.command(venv, str(stage.folder / "venv")), venv)
    assert (ended.returncode, ended.left_behind, output) == (7, 1, b"done\n")
    assert len(alive(venv)) == 1
    assert zombies() == []


@pytest.mark.parametrize("kind", OFFSPRING)
@pytest.mark.parametrize("first", ["pass", IGNORE])
async def test_a_cancelled_forked_tree_is_gone(kind: str, first: str, stage: Stage) -> None:
    source = f"{first}\n{OFFSPRING[kind]}\nos.read(there, 1); say('up'); time.sleep(600)"
    venv = stage.venv(source)
    parent, output = await stage.parent(venv), Output()
    grace = 30.0 if first == "pass" else 0.1
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            command = stage.command(venv, str(venv.path))
            run = partial(run_process, command, output, guard=stage.guard, start=parent.start)
            tasks.start_soon(partial(run, grace=lambda: grace))
            await output.holds(b"up")
            tasks.cancel_scope.cancel()
    assert alive(venv) == [parent.pid]
    assert zombies() == []


async def test_runs_that_are_cancelled_while_they_are_forked_leave_nothing(stage: Stage) -> None:
    venv = stage.venv("say('up'); time.sleep(600)")
    parent = await stage.parent(venv)
    command, before = stage.command(venv), descriptors()
    for turns in range(25):
        async with anyio.create_task_group() as tasks:
            run = partial(run_process, command, Output(), guard=stage.guard, start=parent.start)
            tasks.start_soon(partial(run, grace=lambda: 0))
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert (alive(venv), descriptors(), zombies()) == ([parent.pid], before, [])


async def test_a_forked_run_does_not_begin_once_its_lease_is_over(stage: Stage) -> None:
    venv = stage.venv("open('begun', 'w')")
    parent = await stage.parent(venv)
    lease = Lease(time.monotonic() + 1.0)

    async def late(command: Command, mark: int) -> Any:
        tree = await parent.start(command, mark)
        time.sleep(1.0)  # noqa: ASYNC251 - the executor is paused
        return tree

    with pytest.raises(LeaseEndedError):
        await run_process(stage.command(venv), Output(), guard=stage.guard, lease=lease, start=late)
    assert not (stage.folder / "begun").exists()
    assert alive(venv) == [parent.pid]


# An executor with warm parents and runs that go on, told what to do by JSON in its environment.
EXECUTOR = """
import anyio, json, math, os
from pathlib import Path
from executor.ingestion.process import run_process
from executor.lease import Lease
from tests.integration.warm_stage import make_venv, open_stage
import time

plan = json.loads(os.environ["PLAN"])

async def main():
    folder = Path(plan["folder"])
    async with open_stage(folder) as stage:
        venv = make_venv(folder / "venv", plan["script"])
        parent = await stage.parent(venv)
        lease = Lease(time.monotonic() + plan["lasts"])
        print("parent", parent.pid, flush=True)
        print("lease", lease.ends, flush=True)
        command = stage.command(venv, str(venv.path), plan["file"])
        try:
            await run_process(command, lambda chunk: os.write(1, chunk), guard=stage.guard, start=parent.start,
                              lease=lease)
        except Exception as error:
            print(type(error).__name__, flush=True)

anyio.run(main)
"""


@asynccontextmanager
async def executor(folder: Path, script: str, lasts: float) -> AsyncIterator[tuple[Any, Output, Venv]]:
    plan = {"folder": str(folder), "script": script, "lasts": lasts, "file": str(folder / "alive")}
    process = await anyio.open_process(
        [sys.executable, "-c", EXECUTOR],
        env={"PYTHONPATH": str(ROOT), "PLAN": json.dumps(plan), "PATH": os.defpath},
        stderr=None,
    )
    output = Output()

    async def listen() -> None:
        assert process.stdout is not None
        async for chunk in process.stdout:
            output(chunk)

    async with process, anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        try:
            with anyio.fail_after(DEADLINE):
                await output.holds(b"up")
            yield process, output, Venv(folder / "venv", None, Path(), ())
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            tasks.cancel_scope.cancel()


async def test_a_killed_executor_leaves_neither_parents_nor_children(tmp_path: Path) -> None:
    script = f"{OFFSPRING['daemon']}\nos.read(there, 1); say('up'); time.sleep(600)"
    async with executor(tmp_path, script, 600) as (process, _, venv):
        assert len(alive(venv)) == 3
        process.kill()
        await until(lambda: alive(venv) == [], GONE_WITHIN)


async def test_a_forked_tree_is_dead_before_its_lease_ends_though_its_executor_is_stopped(
    tmp_path: Path,
) -> None:
    script = f"if os.fork() == 0: os.setsid(); os.fork() == 0 or os._exit(0)\n{ALIVE}"
    async with executor(tmp_path, script, 3.0) as (process, output, venv):
        await until(lambda: len(list(tmp_path.glob("alive-*"))) == 2)
        process.send_signal(signal.SIGSTOP)
        await until(lambda: len(alive(venv)) == 1)  # the parent, which holds nothing of it
        last = max(float(path.read_text()) for path in tmp_path.glob("alive-*"))
        words = output.data.split()
        assert last < float(words[words.index(b"lease") + 1])
        process.send_signal(signal.SIGCONT)
        with anyio.fail_after(DEADLINE):
            await output.holds(b"LeaseEndedError")
