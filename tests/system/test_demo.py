"""`datahub-executor demo` as a person calls it: what it prints, its exit code, and that nothing stays behind."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEADLINE = 120.0  # seconds
FOREIGN = {
    # What a person may have set, for other servers than the demo's.
    "AWS_PROFILE": "nobody",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:1",
    "DATAHUB_GMS_URL": "http://127.0.0.1:1",
    "DATAHUB_EXECUTOR_QUEUE": "somebody-elses",
    "DATAHUB_EXECUTOR_POOL_ID": "elsewhere",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "HTTPS_PROXY": "http://127.0.0.1:1",
    "SHOP_DB_PASSWORD": "not this one",
}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Of a person whose folders are the test's own; the paths in it mark the demo's processes."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        **FOREIGN,
    }


@pytest.fixture
def make_venv(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a venv whose `datahub` is a shell script."""

    def make(script: str) -> Path:
        programs = tmp_path / "venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "python").symlink_to(sys.executable)
        (programs / "datahub").write_text(f"#!/bin/sh\ncat > /dev/null\n{script}\n")
        (programs / "datahub").chmod(0o755)
        return programs.parent

    return make


@contextmanager
def demo(env: dict[str, str], *options: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "executor", "demo", *options],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def left_behind(tmp_path: Path) -> list[str]:
    """The demo's folders, and the processes that know of them."""
    found = [str(path) for path in tmp_path.glob("cache/datahub-executor-demo/work-*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            known = command + (process / "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        if os.fsencode(tmp_path) in known:
            found.append(f"{process}: {command.replace(bytes(1), b' ').decode()}")
    return found


def words_of(output: str) -> list[str]:
    return [" ".join(line.split()) for line in output.splitlines()]


def test_all_of_it_happens_whatever_the_person_has_set(
    env: dict[str, str], cli_venv: Path, tmp_path: Path
) -> None:
    with demo(env, "--venv", str(cli_venv)) as process:
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, output
    lines = words_of(output)
    assert sum(line.startswith(f"✓ SUCCESS, in the venv {cli_venv}") for line in lines) == 2
    assert "main.customers id, name, email" in lines
    assert "main.order_items order_id, product, quantity, price" in lines
    assert "main.orders id, customer_id, ordered_at" in lines
    upstreams = "main.customers, main.order_items, main.orders"
    assert f"main.revenue customer_id, name, revenue {upstreams}" in lines
    assert "No message on the queue, none on its dead-letter queue." in lines
    assert "SUCCESS stored in DataHub" in output
    assert "datahub-executor check" in output
    assert "\x1b" not in output
    assert left_behind(tmp_path) == []


def test_a_run_that_fails_is_explained(
    env: dict[str, str], make_venv: Callable[[str], Path], tmp_path: Path
) -> None:
    venv = make_venv("echo 'sqlalchemy is disabled'; exit 3")
    with demo(env, "--venv", str(venv)) as process:
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1, output
    explanation = output.partition("The demo failed: the run ended as FAILURE.")[2]
    assert "exit code 3" in explanation
    assert "sqlalchemy is disabled" in explanation
    assert '"event": "run_settled"' in explanation
    assert "Traceback" not in output
    assert left_behind(tmp_path) == []


def test_without_a_package_index_it_says_what_uv_said(env: dict[str, str], tmp_path: Path) -> None:
    with demo({**env, "UV_OFFLINE": "1"}) as process:
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1, output
    explanation = output.partition("The demo failed: the run ended as FAILURE.")[2]
    assert "acryl-datahub[sqlalchemy]==1.7.0.17 could not be installed" in explanation
    assert "package index (UV_" in explanation
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("send", "number"),
    [
        pytest.param(os.killpg, signal.SIGINT, id="ctrl-c"),
        pytest.param(os.kill, signal.SIGINT, id="interrupt"),
        pytest.param(os.kill, signal.SIGTERM, id="terminate"),
    ],
)
def test_stopped_in_the_middle_of_a_run_it_leaves_nothing_behind(
    env: dict[str, str],
    make_venv: Callable[[str], Path],
    tmp_path: Path,
    send: Callable[[int, signal.Signals], None],
    number: signal.Signals,
) -> None:
    venv = make_venv("echo 'this takes long'; sleep 600")
    with demo(env, "--venv", str(venv)) as process:
        assert process.stdout is not None
        seen = next((line for line in process.stdout if "this takes long" in line), None)
        assert seen is not None, "the run did not start"
        send(process.pid, number)
        rest, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + number, rest
    assert number.name in rest.splitlines()[-1]
    assert left_behind(tmp_path) == []


def test_a_reader_that_goes_away_ends_it(
    env: dict[str, str], make_venv: Callable[[str], Path], tmp_path: Path
) -> None:
    venv = make_venv("while true; do echo 'this takes long'; sleep 0.2; done")
    with demo(env, "--venv", str(venv)) as process:
        assert process.stdout is not None
        seen = next((line for line in process.stdout if "this takes long" in line), None)
        assert seen is not None, "the run did not start"
        process.stdout.close()
        assert process.wait(DEADLINE) == 1
    assert left_behind(tmp_path) == []


def test_without_the_extra_it_names_it(env: dict[str, str]) -> None:
    lacking = (
        "import sys; sys.modules['moto'] = None; from executor.cli import main; sys.exit(main(['demo']))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", lacking], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr == "The demo needs moto: pip install 'datahub-remote-executor[demo]'\n"


def test_a_venv_without_the_cli_is_refused_at_once(env: dict[str, str], tmp_path: Path) -> None:
    with demo(env, "--venv", str(tmp_path)) as process:
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2
    assert re.fullmatch(r"--venv: \S+ holds no DataHub CLI, as it has no bin/datahub\n", output)


# --- the stand-in as a process of its own ---


def stand_in_process(*arguments: str, lacking: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m executor.local.datahub`, where the package `lacking` is not installed."""
    code = (
        f"import runpy, sys; sys.modules.update({{name: None for name in {lacking.split()}}}); "
        f"sys.argv[1:] = {list(arguments)}; runpy.run_module('executor.local.datahub', run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )


def test_the_stand_in_without_the_extra_names_it() -> None:
    ran = stand_in_process("--help", lacking="graphql jsonpatch")
    assert ran.returncode == 2
    assert re.fullmatch(
        r"The DataHub stand-in needs \w+: pip install 'datahub-remote-executor\[demo\]'\n", ran.stderr
    )


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = stand_in_process("--port", str(port))
    assert ran.returncode == 1
    assert re.fullmatch(
        rf"127\.0\.0\.1:{port} can't be listened on \(.*\): choose another --port\n", ran.stderr
    )


def test_a_queue_without_a_region_is_said_in_words_and_aws_region_is_one() -> None:
    queue = "http://127.0.0.1:1/000000000000/q"
    nowhere = stand_in_process("--port", "0", "--queue-url", queue)
    assert nowhere.returncode == 2
    assert "set AWS_REGION" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:  # found out after the queue's client was made
        ran = stand_in_process(
            "--port", str(taken.getsockname()[1]), "--queue-url", queue, AWS_REGION="eu-west-1"
        )
    assert (ran.returncode, "listened on" in ran.stderr) == (1, True)
