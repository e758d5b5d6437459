"""Warm starts against the bare CLI: wall clock, processor time, connection tests, the memory of many at once."""

import json
import resource
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio

from benchmarks.harness import MB, TICKS, Bench, Figure, Memory, ServiceProcess, median_of, service, until
from tests.servers import TABLES, Postgres, run_postgres

NAME = "warm"
ROUNDS = 10
AT_ONCE = 16
MANY = 200  # tables
HANG_LIMIT = 240.0  # seconds until all runs have reached the server that does not answer

# Run by the CLI's Python, which has a driver.
MAKE_TABLES = """
import sys, psycopg2
with psycopg2.connect(sys.stdin.readline().strip()) as connection, connection.cursor() as cursor:
    for number in range(int(sys.argv[1])):
        cursor.execute(f"CREATE TABLE t{number:04} (id integer PRIMARY KEY, name text NOT NULL, at timestamp)")
"""


@dataclass(frozen=True)
class Cost:
    """Seconds of one run."""

    wall: float
    cpu: float


async def measure(bench: Bench, rounds: int) -> list[Figure]:
    """Bare and warm in turns, after one of each to warm up."""
    database = bench.folder / "shop.db"
    with closing(sqlite3.connect(database)) as db, db:
        db.executescript(TABLES)
    bench.bundled.mkdir(exist_ok=True)
    for plugin in ("sqlalchemy", "postgres"):
        (bench.bundled / f"{plugin}-bundled").symlink_to(bench.cli_venv)
    small = _recipe("sqlalchemy", connect_uri=f"sqlite:///{database}", platform="sqlite")
    with run_postgres() as postgres:
        _make_tables(bench, postgres)
        many = _postgres(postgres.host, postgres.port, postgres.user, postgres.password, postgres.database)
        async with service(bench) as running:
            sqlite = await _in_turns(bench, running, small, rounds)
            tested = await _in_turns(bench, running, many, rounds, test=True)
            tables = await _in_turns(bench, running, many, max(rounds // 3, 1))
    bare, warm = await _bare_at_once(bench), await _warm_at_once(bench)
    return [
        *_ratios("warm: sqlite", sqlite, wall=0.2, cpu=0.15),
        *_ratios("warm: connection test", tested, wall=0.2),
        *_ratios(f"warm: postgres, {MANY} tables", tables, wall=1.0),
        median_of(f"warm: PSS of {AT_ONCE} runs, warm / bare", [warm / bare], "x", 0.5),
        median_of(f"warm: PSS of {AT_ONCE} bare runs", [bare / MB], "MB"),
        median_of(f"warm: PSS of {AT_ONCE} runs and what they came from", [warm / MB], "MB"),
    ]


def _ratios(
    name: str, pairs: list[tuple[Cost, Cost]], wall: float, cpu: float | None = None
) -> Iterator[Figure]:
    yield median_of(
        f"{name}: sent → SUCCESS / bare", [warm.wall / bare.wall for bare, warm in pairs], "x", wall
    )
    yield median_of(f"{name}: processor time / bare", [warm.cpu / bare.cpu for bare, warm in pairs], "x", cpu)
    yield median_of(f"{name}: bare", [bare.wall for bare, _ in pairs], "s")
    yield median_of(f"{name}: bare, processor time", [bare.cpu for bare, _ in pairs], "s")
    yield median_of(f"{name}: warm", [warm.wall for _, warm in pairs], "s")
    yield median_of(
        f"{name}: warm, processor time, the service's own included", [w.cpu for _, w in pairs], "s"
    )


async def _in_turns(
    bench: Bench, running: ServiceProcess, recipe: Mapping[str, object], rounds: int, *, test: bool = False
) -> list[tuple[Cost, Cost]]:
    pairs = []
    for number in range(rounds + 1):
        if number % 2:
            bare, warm = await _bare(bench, recipe, test), await _warm(bench, running, recipe, test)
        else:
            warm, bare = await _warm(bench, running, recipe, test), await _bare(bench, recipe, test)
        if number:  # the first of the service's imports
            pairs.append((bare, warm))
    return pairs


async def _bare(bench: Bench, recipe: Mapping[str, object], test: bool) -> Cost:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with anyio.fail_after(180):
        await anyio.run_process(
            _argv(bench, test), input=json.dumps(recipe).encode(), env=bench.base_env(), cwd=bench.folder
        )
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _argv(bench: Bench, test: bool) -> list[str]:
    argv = [str(bench.cli_venv / "bin" / "datahub"), "ingest", "run", "-c", "-"]
    argv += ["--report-to", str(bench.folder / "report.json")]
    return [*argv, "--test-source-connection"] if test else argv


async def _warm(bench: Bench, running: ServiceProcess, recipe: Mapping[str, object], test: bool) -> Cost:
    before = _used(running)
    task = "TEST_CONNECTION" if test else "RUN_INGEST"
    sent = await bench.send_recipe(running.queue, recipe, task=task)
    record = await bench.stored(sent.exec_id, "SUCCESS")
    await running.settled(sent.exec_id)
    return Cost(record.epoch - sent.before, _used(running) - before)


def _used(running: ServiceProcess) -> float:
    """Processor time of the service, of its runs that ended, and of the processes that they come from."""
    total = running.cpu_seconds(with_children=True)
    return total + sum(_ticks(pid) / TICKS for pid in _parents(running))


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(map(int, fields[11:15]))


def _parents(running: ServiceProcess) -> list[int]:
    return [pid for pid, line in running.children().items() if "warm_parent" in line]


async def _bare_at_once(bench: Bench) -> int:
    """Bytes (PSS) that so many runs hold together that wait for a server's first word."""
    with _silent_server() as (port, waiting):
        recipe = json.dumps(_postgres("127.0.0.1", port, "u", "p", "d")).encode()
        runs: list[subprocess.Popen[bytes]] = []
        try:
            runs.extend(_started(bench, recipe) for _ in range(AT_ONCE))
            await until(lambda: waiting() == AT_ONCE, limit=HANG_LIMIT)
            return sum(Memory.of(run.pid).pss for run in runs)
        finally:
            for run in runs:
                run.kill()
                run.wait()


def _started(bench: Bench, recipe: bytes) -> "subprocess.Popen[bytes]":
    nothing = subprocess.DEVNULL
    run = subprocess.Popen(
        _argv(bench, test=False),
        stdin=subprocess.PIPE,
        stdout=nothing,
        stderr=nothing,
        env=bench.base_env(),
        cwd=bench.folder,
    )
    if run.stdin is not None:
        run.stdin.write(recipe)
        run.stdin.close()
    return run


async def _warm_at_once(bench: Bench) -> int:
    with _silent_server() as (port, waiting):
        recipe = _postgres("127.0.0.1", port, "u", "p", "d")
        async with service(bench, DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS=AT_ONCE) as running:
            for _ in range(AT_ONCE):
                await bench.send_recipe(running.queue, recipe)
            await until(lambda: waiting() == AT_ONCE, limit=HANG_LIMIT)
            return sum(Memory.of(pid).pss for pid in _parents(running))  # the runs have its command line


@contextmanager
def _silent_server() -> Iterator[tuple[int, Callable[[], int]]]:
    """A port that takes connections and says nothing, and how many it has taken."""
    with socket.create_server(("127.0.0.1", 0), backlog=AT_ONCE) as server:
        server.setblocking(False)
        taken: list[socket.socket] = []
        try:
            yield server.getsockname()[1], partial(_accept, server, taken)
        finally:
            for connection in taken:
                connection.close()


def _accept(server: socket.socket, taken: list[socket.socket]) -> int:
    try:
        while True:
            taken.append(server.accept()[0])
    except BlockingIOError:
        return len(taken)


def _make_tables(bench: Bench, postgres: Postgres) -> None:
    python = bench.cli_venv / "bin" / "python"
    subprocess.run([python, "-c", MAKE_TABLES, str(MANY)], input=postgres.uri.encode(), check=True)


def _postgres(host: str, port: int, user: str, password: str, database: str) -> dict[str, object]:
    return _recipe(
        "postgres", host_port=f"{host}:{port}", username=user, password=password, database=database
    )


def _recipe(source_type: str, **config: object) -> dict[str, object]:
    return {"source": {"type": source_type, "config": config}}
