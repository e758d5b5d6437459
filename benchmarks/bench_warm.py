"""Warm starts beside the bare CLI, cold starts and DataHub's own executor: docs/performance.md."""

from dataclasses import replace

from benchmarks.harness import MB, Bench, Figure
from benchmarks.warm.at_once import RUNS, memory_at_once
from benchmarks.warm.databases import databases
from benchmarks.warm.page import write_page
from benchmarks.warm.study import SMALL, Study
from benchmarks.warm.ways import Job, four_ways, in_turns

NAME = "warm"
ROUNDS = 8
TESTED = ("PostgreSQL", 200)  # whose connection is tested

NOTHING = "#!/bin/sh\nwhile read -r line; do :; done\n"


async def measure(bench: Bench, rounds: int) -> list[Figure]:
    """Four ways in turns; the small source so often, databases of other sizes half as often."""
    bench.program("nothing", NOTHING)
    fewer = max(rounds // 2, 1)
    with databases(bench) as jobs:
        async with four_ways(bench) as ways:
            for way in ways.values():  # files into the system's cache, Python's compiled files
                await way(jobs[SMALL])
            ingested = {
                database: await in_turns(ways, job, rounds if database == SMALL else fewer)
                for database, job in jobs.items()
            }
            tested = await in_turns(ways, replace(jobs[TESTED], task="TEST_CONNECTION"), rounds)
            nothing = await in_turns(ways, Job("nothing", {}), rounds)
    held = {way: size / MB for way, size in (await memory_at_once(bench)).items()}
    study = Study(ingested, tested, nothing, held, RUNS)
    if bench.docs is not None:
        write_page(study, bench.docs)
    return list(study.figures())
