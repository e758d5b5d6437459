"""Warm starts: a forked run is the run that a start from the disk would have been, or it is started from there."""

import ast
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from executor.ingestion import warm_pool
from executor.ingestion.ending import describe
from executor.ingestion.guard import Guard, open_guard
from executor.ingestion.process import Command, Exit, NotForkedError, run_process, start_cold
from executor.ingestion.venv import Venv
from executor.ingestion.warm import WarmParent
from executor.ingestion.warm_pool import WarmParents
from executor.lease import Lease, LeaseEndedError
from tests.conftest import ROOT
from tests.integration.service import IMPORTED
from tests.integration.test_guard import ALIVE, until
from tests.integration.trees import IGNORE, LIBRARY, OFFSPRING, Output, descriptors, zombies

DEADLINE = 60.0  # seconds; only a failing test takes them
GONE_WITHIN = 5.0  # seconds after an executor's death until nothing of it may be left
MIB = 1024 * 1024
BUDGET = 500 * MIB
IDLE = 600.0
PARENT = ROOT / "executor" / "ingestion" / "warm_parent.py"


def make_venv(folder: Path, script: str, imported: str = "") -> Venv:
    """A venv whose CLI is a script that knows LIBRARY; `imported` is run when the CLI is imported."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "datahub").write_text(LIBRARY + script)
    (folder / "bin" / "datahub.py").write_text(IMPORTED + imported)
    (folder / "bin" / "python").symlink_to(sys.executable)
    return Venv(folder, None, Path(sys.executable), (sys.executable, "-Su", str(folder / "bin" / "datahub")))


@dataclass
class Stage:
    """An executor's guard and warm parents, and venvs that tests make."""

    guard: Guard
    parents: WarmParents
    folder: Path
    env: dict[str, str]

    def venv(self, script: str, imported: str = "", name: str = "venv") -> Venv:
        return make_venv(self.folder / name, script, imported)

    def command(self, venv: Venv, *args: str, **given: Any) -> Command:
        given = {"env": self.env, "cwd": self.folder, "stdin": b"recipe", **given}
        return Command([*venv.command, *args], **given)

    async def parent(
        self, venv: Venv, env: Mapping[str, str] | None = None, kind: str = "fake"
    ) -> WarmParent:
        with anyio.fail_after(DEADLINE):
            found = await self.parents.find(venv, kind, env or self.env)
        assert found is not None
        return found

    async def refused(self, venv: Venv, env: Mapping[str, str] | None = None) -> str:
        """Why runs start cold; it is said once."""
        with capture_logs() as said, anyio.fail_after(DEADLINE):
            assert await self.parents.find(venv, "fake", env or self.env) is None
            assert await self.parents.find(venv, "fake", env or self.env) is None
        [event] = said
        assert (event["event"], event["venv"]) == ("runs_start_cold", str(venv.path))
        return str(event["reason"])

    async def run(self, warm: bool, command: Command, venv: Venv, **options: Any) -> tuple[Exit, bytes]:
        start = (await self.parent(venv)).start if warm else start_cold
        output = Output()
        with anyio.fail_after(DEADLINE):
            ended = await run_process(command, output, guard=self.guard, start=start, **options)
        return ended, output.data


@asynccontextmanager
async def open_stage(folder: Path, budget: int = BUDGET, idle: float = IDLE) -> AsyncIterator[Stage]:
    async with open_guard() as guard:
        async with guard.watch(Lease(math.inf)):
            pass
        env = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        stage = Stage(guard, WarmParents(lambda _: env, guard, budget, idle), folder, env)
        async with stage.parents.open():
            yield stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    structlog.reset_defaults()
    async with open_stage(tmp_path) as opened:
        yield opened


def alive(venv: Venv) -> list[int]:
    """Processes that come from a venv, its warm parent among them: its path is in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(venv.path).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it ended meanwhile
    return found


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
from tests.integration.test_warm import make_venv, open_stage
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
