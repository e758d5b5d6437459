"""A real ingestion of a small SQLite database: through the service, and by the bare CLI."""

import json
import sqlite3
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing

import anyio

from benchmarks.harness import Bench, Figure, ServiceProcess, median_of, service
from tests.servers import TABLES

NAME = "sqlite"
ROUNDS = 10


async def measure(bench: Bench, rounds: int) -> list[Figure]:
    """Bare and through the service in turns, after one of each to warm up."""
    database = bench.folder / "shop.db"
    with closing(sqlite3.connect(database)) as db, db:
        db.executescript(TABLES)
    bench.bundled.mkdir(exist_ok=True)
    (bench.bundled / "sqlalchemy-bundled").symlink_to(bench.cli_venv)
    config = {"connect_uri": f"sqlite:///{database}", "platform": "sqlite"}
    recipe = {"source": {"type": "sqlalchemy", "config": config}}
    bare, served = [], []
    async with service(bench) as running:
        for number in range(rounds + 1):
            # In turns, the first one too: a machine that gets slower meanwhile favours neither.
            if number % 2:
                alone = await _bare(bench, recipe)
                through = await _served(bench, running, recipe)
            else:
                through = await _served(bench, running, recipe)
                alone = await _bare(bench, recipe)
            if number:  # the first pair was to warm up
                bare.append(alone)
                served.append(through)
    ratios = [through / alone for alone, through in zip(bare, served, strict=True)]
    more = [(through - alone) * 1000 for alone, through in zip(bare, served, strict=True)]
    return [
        median_of("sqlite: service / bare CLI, pair by pair", ratios, "x", 1.05),
        # Others' load on the machine only ever adds: the fastest of each tell most where the spread is wide.
        median_of("sqlite: the fastest of both", [min(served) / min(bare)], "x"),
        median_of("sqlite: bare `datahub ingest run`", bare, "s"),
        median_of("sqlite: message sent → SUCCESS stored", served, "s"),
        median_of("sqlite: what the service adds, pair by pair", more, "ms"),
    ]


async def _bare(bench: Bench, recipe: Mapping[str, object]) -> float:
    report = bench.folder / "report.json"
    command = str(bench.cli_venv / "bin" / "datahub")
    argv = [command, "ingest", "run", "-c", "-", "--report-to", str(report)]
    began = time.time()
    with anyio.fail_after(180):
        await anyio.run_process(
            argv,
            input=json.dumps(recipe).encode(),
            env=bench.base_env(),
            cwd=bench.folder,
            stderr=subprocess.STDOUT,
        )
    return time.time() - began


async def _served(bench: Bench, running: ServiceProcess, recipe: Mapping[str, object]) -> float:
    sent = await bench.send_recipe(running.queue, recipe)
    record = await bench.stored(sent.exec_id, "SUCCESS")
    await running.settled(sent.exec_id)
    return record.epoch - sent.before
