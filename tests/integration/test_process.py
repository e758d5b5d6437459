"""A run's process tree, with real processes and real signals."""

import ctypes
import math
import os
import re
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from executor.ingestion.cgroup import oom_kills
from executor.ingestion.ending import describe
from executor.ingestion.guard import Guard, open_guard
from executor.ingestion.process import Command, Exit, ProcessStartError, run_process
from executor.lease import Lease
from tests.conftest import ROOT
from tests.integration.trees import IGNORE, OFFSPRING, Output, Script, descriptors, zombies

DEADLINE = 60.0  # seconds; only a failing test takes them
MIB = 1024 * 1024


def shell(script: str, cwd: Path, stdin: bytes = b"") -> Command:
    return Command(["/bin/sh", "-c", script], {"PATH": os.defpath}, cwd, stdin)


async def run(guard: Guard, command: Command) -> tuple[Exit, bytes]:
    output = Output()
    with anyio.fail_after(DEADLINE):
        ended = await run_process(command, output, guard=guard)
    return ended, output.data


async def cancelled(guard: Guard, command: Command, when: bytes, grace: float = 30.0) -> bytes:
    """What a command printed that was cancelled once it had printed `when`."""
    output = Output()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(run_process, command, output, guard=guard, grace=lambda: grace))
            await output.holds(when)
            tasks.cancel_scope.cancel()
    return output.data


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    """A guard that is up, so that what it holds open counts in all measurements of a test."""
    async with open_guard() as guard:
        async with guard.watch(Lease(math.inf)):
            pass
        yield guard


# Input and output


async def test_a_megabyte_reaches_a_command_that_reads(guard: Guard, tmp_path: Path) -> None:
    ended, output = await run(guard, shell("wc -c", tmp_path, stdin=b"x" * MIB))
    assert ended.returncode == 0
    assert output.strip() == str(MIB).encode()


@pytest.mark.parametrize("script", ["true", "exec <&-; echo closed", "head -c 10 >/dev/null"])
async def test_a_command_need_not_read_what_it_is_given(script: str, guard: Guard, tmp_path: Path) -> None:
    ended, _ = await run(guard, shell(script, tmp_path, stdin=b"x" * MIB))
    assert ended.returncode == 0


async def test_output_comes_while_the_command_still_runs(guard: Guard, tmp_path: Path) -> None:
    output, go_on = Output(), tmp_path / "go-on"
    os.mkfifo(go_on)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                partial(
                    run_process, shell("echo one; cat go-on; echo two >&2", tmp_path), output, guard=guard
                )
            )
            await output.holds(b"one")
            assert output.data == b"one\n"
            os.close(os.open(go_on, os.O_WRONLY))
    assert output.data == b"one\ntwo\n"


async def test_output_is_handed_on_byte_by_byte_as_it_is(guard: Guard, tmp_path: Path) -> None:
    _, output = await run(guard, shell(r"printf 'caf\351\000\377\r\n'", tmp_path))
    assert output == b"caf\xe9\x00\xff\r\n"


async def test_a_great_deal_of_output_is_complete(guard: Guard, tmp_path: Path) -> None:
    _, output = await run(guard, shell("head -c 20000000 /dev/zero; echo end", tmp_path))
    assert len(output) == 20_000_004
    assert output.endswith(b"\0end\n")


async def test_a_command_sees_the_environment_and_folder_that_it_was_given_and_no_more(
    guard: Guard,
    tmp_path: Path,
) -> None:
    command = Command(["/usr/bin/env"], {"ONE": "1"}, tmp_path, stdin=b"a secret")
    assert (await run(guard, command))[1] == b"ONE=1\n"
    assert (await run(guard, shell("pwd -P", tmp_path)))[1].decode().strip() == str(tmp_path.resolve())


async def test_what_goes_to_standard_input_shows_in_no_list_of_processes(
    guard: Guard, tmp_path: Path
) -> None:
    script = "tr '\\0' ' ' </proc/$$/cmdline; tr '\\0' ' ' </proc/$$/environ; wc -c"
    _, output = await run(guard, shell(script, tmp_path, stdin=b"hunter2"))
    assert output.split()[-1] == b"7"
    assert b"hunter2" not in output


# Ends


@pytest.mark.parametrize("code", [0, 1, 3, 126, 255])
async def test_exit_codes_are_told(code: int, guard: Guard, tmp_path: Path) -> None:
    ended, _ = await run(guard, shell(f"exit {code}", tmp_path))
    assert ended.returncode == code
    assert ended.left_behind == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
async def test_signals_are_told(number: signal.Signals, guard: Guard, tmp_path: Path) -> None:
    ended, _ = await run(guard, shell(f"kill -{int(number)} $$", tmp_path))
    assert ended.returncode == -number
    assert not ended.oom_killed


async def test_what_a_command_took_is_told(guard: Guard, tmp_path: Path) -> None:
    work = Script("taken = b'x' * (300 << 20)\nwhile time.process_time() < 0.3: pass")
    ended, _ = await run(guard, work.command(tmp_path))
    assert ended.peak_memory > 300 * MIB
    assert 0.3 <= ended.cpu_seconds < DEADLINE


@pytest.mark.parametrize("kind", OFFSPRING)
async def test_what_a_command_leaves_behind_goes_with_it(kind: str, guard: Guard, tmp_path: Path) -> None:
    script = Script(f"{OFFSPRING[kind]}\nos.read(there, 1); say('done'); os._exit(7)")
    ended, output = await run(guard, script.command(tmp_path))
    assert ended.returncode == 7
    assert ended.left_behind == 1
    assert output == b"done\n"
    assert script.alive() == []


async def test_a_child_that_goes_on_printing_does_not_keep_the_run_open(guard: Guard, tmp_path: Path) -> None:
    script = Script("if os.fork() == 0:\n    os.setsid()\n    while True: say('still here')\ntime.sleep(0.1)")
    ended, _ = await run(guard, script.command(tmp_path))
    assert ended.returncode == 0
    assert script.alive() == []


async def test_neighbours_are_left_alone(guard: Guard, tmp_path: Path) -> None:
    neighbour = Script(f"{OFFSPRING['daemon']}\nos.read(there, 1); say('up'); time.sleep(600)")
    output = Output()
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(run_process, neighbour.command(tmp_path), output, guard=guard))
            await output.holds(b"up")
            await cancelled(
                guard, Script(f"{OFFSPRING['daemon']}\nsay('up')\ntime.sleep(600)").command(tmp_path), b"up"
            )
            assert len(neighbour.alive()) == 2
            tasks.cancel_scope.cancel()
    assert neighbour.alive() == []


# Being told to end


@pytest.mark.parametrize("kind", OFFSPRING)
@pytest.mark.parametrize("first", ["pass", IGNORE])
async def test_a_cancelled_tree_is_gone(kind: str, first: str, guard: Guard, tmp_path: Path) -> None:
    script = Script(f"{first}\n{OFFSPRING[kind]}\nos.read(there, 1); say('up'); time.sleep(600)")
    await cancelled(guard, script.command(tmp_path), b"up", grace=30.0 if first == "pass" else 0.1)
    assert script.alive() == []


async def test_last_words_are_in_the_output(guard: Guard, tmp_path: Path) -> None:
    source = "on_term('child told', 0)\nif os.fork(): on_term('told', 0)\nsay('up'); time.sleep(600)"
    output = await cancelled(guard, Script(source).command(tmp_path), b"up\nup")
    assert sorted(output.split(b"\n")) == [b"", b"child told", b"told", b"up", b"up"]


async def test_every_process_is_told_once(guard: Guard, tmp_path: Path) -> None:
    script = Script("""
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(say('told')))
os.fork() or os.fork() or os.setsid()
say('up')
while not told: time.sleep(0.01)
until = time.monotonic() + 0.2
while time.monotonic() < until: time.sleep(0.01)
""")
    output = await cancelled(guard, script.command(tmp_path), b"up\nup\nup")
    assert output.count(b"told") == 3
    assert script.alive() == []


async def test_a_tree_that_ignores_sigterm_is_killed_after_its_grace(guard: Guard, tmp_path: Path) -> None:
    script = Script("on_term('no')\nos.fork()\nsay('up')\nwhile True: time.sleep(1)")
    await cancelled(guard, script.command(tmp_path), b"up\nup", grace=0.2)
    assert script.alive() == []


async def test_without_grace_nobody_is_asked(guard: Guard, tmp_path: Path) -> None:
    script = Script("on_term('told')\nsay('up')\nwhile True: time.sleep(1)")
    assert await cancelled(guard, script.command(tmp_path), b"up", grace=0) == b"up\n"
    assert script.alive() == []


async def test_a_grandchild_that_ignores_sigterm_does_not_outlive_an_obedient_leader(
    guard: Guard, tmp_path: Path
) -> None:
    script = Script(
        "on_term('bye', 0)\nif os.fork() == 0: on_term('no')\nsay('up')\nwhile True: time.sleep(1)"
    )
    await cancelled(guard, script.command(tmp_path), b"up\nup", grace=0.2)
    assert script.alive() == []


async def test_a_stopped_tree_gets_to_say_its_last_words(guard: Guard, tmp_path: Path) -> None:
    output = Output()
    source = "on_term('told', 0)\nos.fork()\nos.kill(os.getpid(), signal.SIGSTOP)"
    script = Script(f"{source}\nwhile True: time.sleep(1)")
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(run_process, script.command(tmp_path), output, guard=guard))
            while script.states() != ["T", "T"]:  # noqa: ASYNC110 - nobody tells of a stranger's child
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert output.data.count(b"told") == 2
    assert script.alive() == []


async def test_a_tree_that_keeps_forking_is_gone(guard: Guard, tmp_path: Path) -> None:
    # Ignores SIGTERM, and forks children that fork in turn; no more than 200, should the test fail.
    script = Script(f"""
{IGNORE}
for number in range(200):
    if os.fork() == 0:
        if number % 2: os.setpgid(0, 0)
        os.fork() or os.fork()
        time.sleep(600)
    if number == 20: say('many')
    time.sleep(0.002)
time.sleep(600)
""")
    await cancelled(guard, script.command(tmp_path), b"many", grace=0.1)
    assert script.alive() == []


async def test_a_process_that_fills_the_pipe_can_still_obey(guard: Guard, tmp_path: Path) -> None:
    script = Script("""
def told(*_):
    sys.stdout.buffer.write(b'.' * (8 << 20) + b'farewell'); sys.stdout.flush(); os._exit(0)
signal.signal(signal.SIGTERM, told)
say('up')
while True: os.write(1, b'x' * 4096)
""")
    output = await cancelled(guard, script.command(tmp_path), b"up")
    assert output.endswith(b"." * (8 * MIB) + b"farewell")
    assert script.alive() == []


async def test_a_process_that_reads_nothing_can_be_ended(guard: Guard, tmp_path: Path) -> None:
    script = Script("say('up'); time.sleep(600)")
    await cancelled(guard, script.command(tmp_path, stdin=b"x" * MIB), b"up")
    assert script.alive() == []


# Memory


async def test_a_run_over_its_memory_limit_fails_in_words(guard: Guard, tmp_path: Path) -> None:
    limit = 256 * MIB
    script = Script("sys.stdin.read()\nprint(len(b'x' * (1 << 30)))")
    ended, output = await run(guard, script.command(tmp_path, memory_limit=limit))
    ending = describe(ended, limit, output.decode())
    assert not ending.succeeded
    assert "memory limit of 262,144 kilobytes" in ending.words
    assert "EXECUTOR_TASK_MEMORY_LIMIT" in ending.words


async def test_children_have_the_memory_limit_too(guard: Guard, tmp_path: Path) -> None:
    source = "sys.stdin.read()\nos.fork() or os.execv('/bin/sh', ['sh', '-c', 'ulimit -v'])\nos.wait()"
    _, output = await run(guard, Script(source).command(tmp_path, memory_limit=256 * MIB))
    assert output.strip() == b"262144"


async def test_a_crash_writes_no_core_file(guard: Guard, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        script = Script("sys.stdin.read()\nsay(resource.getrlimit(resource.RLIMIT_CORE))\nos.abort()")
        ended, output = await run(guard, script.command(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert ended.returncode == -signal.SIGABRT
    assert output == b"(0, 0)\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("membership", "file", "text"),
    [
        ("0::/\n", "memory.events", "low 0\noom 4\noom_kill 3\noom_group_kill 0\n"),
        ("0::/ecs/task\n", "ecs/task/memory.events", "oom 4\noom_kill 3\n"),
        ("5:cpu:/a\n4:memory:/docker/b\n", "memory/docker/b/memory.oom_control", "under_oom 0\noom_kill 3\n"),
        ("4:hugetlb,memory:/docker/b\n0::/\n", "memory/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    ],
)
def test_the_control_group_counts_what_ran_out_of_memory(
    membership: str, file: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(membership)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert oom_kills(tmp_path / "cgroup", tmp_path) == 3


def test_without_a_control_group_nothing_is_counted(tmp_path: Path) -> None:
    assert oom_kills(tmp_path / "missing", tmp_path) == 0


# Starting


def _script(path: Path, text: str, mode: int) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("argv", "env", "cwd", "words"),
    [
        (["/nowhere/datahub"], {}, ".", "could not start /nowhere/datahub: No such file or directory"),
        (["{here}/plain"], {}, ".", "could not start {here}/plain: Permission denied"),
        (
            ["{here}/orphaned"],
            {},
            ".",
            "No such file or directory: the interpreter that its first line names",
        ),
        (["/"], {}, ".", "could not start /: Permission denied"),
        (
            ["/bin/true"],
            {},
            "missing",
            "the folder {here}/missing can't be entered: No such file or directory",
        ),
        (["/bin/true"], {}, "plain", "the folder {here}/plain can't be entered: Not a directory"),
        (["/bin/true"], {"A": "nul \0"}, ".", "a character that the system does not allow"),
        (["/bin/true"], {"A": "\ud800"}, ".", "a character that the system does not allow"),
        (["/bin/true"], {"A=B": "1"}, ".", "a character that the system does not allow"),
        (["/bin/true", "x" * 5_000_000], {}, ".", "Argument list too long"),
    ],
)
async def test_what_can_not_be_started_says_why(
    argv: list[str], env: dict[str, str], cwd: str, words: str, guard: Guard, tmp_path: Path
) -> None:
    _script(tmp_path / "plain", "no program", 0o644)
    _script(tmp_path / "orphaned", "#!/nowhere/python\n", 0o755)
    command = Command([part.format(here=tmp_path) for part in argv], env, tmp_path / cwd)
    before = descriptors()
    with pytest.raises(ProcessStartError, match=re.escape(words.format(here=tmp_path))):
        await run(guard, command)
    assert descriptors() == before


STARVED = """
import os, resource, sys
from functools import partial
from pathlib import Path
import anyio
from executor.ingestion.guard import open_guard
from executor.ingestion.process import Command, ProcessStartError, run_process
from executor.lease import Lease

when, token = sys.argv[1:]
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

def starve(left):
    descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(set(range(1024)) - set(descriptors)) + left, hard))

async def main(guard):
    command = Command(["/bin/sh", "-c", "echo up; sleep 600 & sleep 601", token], {"PATH": os.defpath}, Path("/"))
    output, up = [], anyio.Event()
    def heard(chunk):
        up.set()
    if when == "running":
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(run_process, command, heard, guard=guard, grace=lambda: 0.2))
            await up.wait()
            starve(0)
            tasks.cancel_scope.cancel()
    else:
        started = 0
        for left in range(12):  # some too few for the pipes, some for the descriptor of the process alone
            starve(left)
            try:
                with anyio.move_on_after(0.2):
                    await run_process(command, heard, guard=guard, grace=lambda: 0)
                started += 1
            except ProcessStartError as error:
                assert "Too many open files: give the executor a higher limit" in str(error), error
        assert 0 < started < 12, started
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))

async def guarded():
    async with open_guard() as guard:
        async with guard.watch(Lease(float("inf"))):
            pass  # so it is up
        await main(guard)
anyio.run(guarded)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("left nothing")
"""


@pytest.mark.parametrize("when", ["starting", "running"])
async def test_without_a_free_file_descriptor_a_tree_still_ends_with_all_of_it(
    when: str, guard: Guard, tmp_path: Path
) -> None:
    script = Script("")
    program = Command(
        [sys.executable, "-c", STARVED, when, script.token], {"PYTHONPATH": str(ROOT)}, tmp_path
    )
    ended, output = await run(guard, program)
    assert ended.returncode == 0, output.decode()
    assert b"left nothing" in output
    assert ended.left_behind == 0
    assert script.alive() == []


# Many


async def test_many_runs_at_once_leave_nothing(guard: Guard, tmp_path: Path) -> None:
    await run(guard, shell("true", tmp_path))  # what the event loop opens once is open now
    before = descriptors(), len(list(Path("/proc/self/task").iterdir()))
    endings: list[int] = []

    async def one(number: int) -> None:
        ended, output = await run(
            guard, shell(f"cat; sleep 600 & exit {number}", tmp_path, stdin=b"x" * 100_000)
        )
        assert len(output) == 100_000
        endings.append(ended.returncode)

    async with anyio.create_task_group() as tasks:
        for number in range(32):
            tasks.start_soon(one, number)
    assert sorted(endings) == list(range(32))
    assert (descriptors(), len(list(Path("/proc/self/task").iterdir()))) == before
    assert zombies() == []


async def test_many_cancelled_runs_leave_nothing(guard: Guard, tmp_path: Path) -> None:
    await run(guard, shell("true", tmp_path))
    before = descriptors()
    scripts = [Script("say('up'); time.sleep(600)") for _ in range(32)]
    outputs = [Output() for _ in scripts]
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            for script, output in zip(scripts, outputs, strict=True):
                tasks.start_soon(
                    partial(run_process, script.command(tmp_path, stdin=b"x" * MIB), output, guard=guard)
                )
            for output in outputs:
                await output.holds(b"up")
            tasks.cancel_scope.cancel()
    assert [script.alive() for script in scripts] == [[]] * 32
    assert descriptors() == before
    assert zombies() == []


@pytest.fixture
def _first_process() -> Iterator[None]:
    """Orphans become our children, as they do where the executor is its container's first process."""
    set_child_subreaper = 36  # prctl(2)
    libc = ctypes.CDLL(None)
    assert libc.prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(set_child_subreaper, 0, 0, 0, 0) == 0


@pytest.mark.usefixtures("_first_process")
async def test_orphans_are_collected_by_a_containers_first_process(guard: Guard, tmp_path: Path) -> None:
    short_lived = (
        "if os.fork() == 0:\n    if os.fork() == 0: os.setsid(); os.write(ready, b'.')\n    os._exit(0)\n"
    )
    script = Script(f"{short_lived}os.wait(); os.read(there, 1)\n{OFFSPRING['daemon']}\nos.read(there, 1)")
    ended, _ = await run(guard, script.command(tmp_path))
    assert (ended.returncode, ended.left_behind) == (0, 1)
    assert script.alive() == []
    assert zombies() == []
