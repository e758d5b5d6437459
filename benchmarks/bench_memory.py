"""The service's own memory, threads and processor time."""

from collections.abc import Iterator

import anyio

from benchmarks.harness import MB, Bench, Figure, ServiceProcess, max_of, service
from benchmarks.kernel import Memory

NAME = "memory"
ROUNDS = 1
HELD = 32
SAMPLE_INTERVAL = 0.05  # seconds between two looks at the memory
LINES = 800_000

HOLD = "#!/bin/sh\nwhile read -r line; do :; done\nexec sleep 600\n"
LOG = "#!/bin/sh\nwhile read -r line; do :; done\nyes '{line}' | head -n {lines}\n"
PLAIN = "2026-01-01 12:00:00,000 INFO datahub.ingestion.source Ingested the table shop.orders_of_today "
# 100 bytes with colours and characters of two and three bytes, the newline included.
COLOURED = (
    "\x1b[32m12:00:00\x1b[0m \x1b[1mINFO\x1b[0m Größe der Tabelle „Aufträge“: 12 € \x1b[31mähnlich\x1b[0m "
)


async def measure(bench: Bench, rounds: int) -> list[Figure]:
    """Many runs held, then one that talks."""
    bench.program("hold", HOLD)
    figures = list(_held([await _hold(bench) for _ in range(rounds)]))
    for kind, line in (("plain", PLAIN), ("coloured", COLOURED)):
        bench.program(kind, LOG.format(line=_sized(line), lines=LINES))
        figures += _talked(kind, [await _talk(bench, kind) for _ in range(rounds)])
    return figures


def _sized(line: str) -> str:
    """A line that is 100 bytes long with its newline."""
    return line + "." * (99 - len(line.encode()))


def _guard(running: ServiceProcess) -> int:
    """The one process that it has besides its runs."""
    return next(pid for pid, line in running.children().items() if "guardian" in line)


async def _hold(bench: Bench) -> tuple[Memory, int, int, int, int, int]:
    async with service(bench, DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS=HELD) as running:
        await anyio.sleep(1)
        guard = _guard(running)
        idle = running.memory().pss + Memory.of(guard).pss
        for _ in range(HELD):
            await bench.send(running.queue, "hold")
        await running.wait_for_events("run_started", HELD)
        await anyio.sleep(5)  # some turns of the heartbeat
        children = running.children().values()
        others = [line for line in children if not line.startswith("sleep ")]
        if len(children) - len(others) != HELD:
            raise RuntimeError(f"{len(children) - len(others)} runs are held, not {HELD}")
        of_guard = Memory.of(guard).pss
        return running.memory(), running.peak_rss(), len(running.threads()), len(others), idle, of_guard


def _held(samples: list[tuple[Memory, int, int, int, int, int]]) -> Iterator[Figure]:
    both = [(now.pss + of_guard) / MB for now, *_, of_guard in samples]
    yield max_of(f"memory: PSS with {HELD} runs held, its guard's included", both, "MB", 75)
    yield max_of("memory: PSS of the guard alone", [of_guard / MB for *_, of_guard in samples], "MB", None)
    yield max_of(f"memory: RSS with {HELD} runs held", [now.rss / MB for now, *_ in samples], "MB")
    yield max_of("memory: USS, the same moment", [now.uss / MB for now, *_ in samples], "MB")
    yield max_of("memory: peak RSS until then", [peak / MB for _, peak, *_ in samples], "MB")
    yield max_of("memory: PSS before the first run", [idle / MB for *_, idle, _ in samples], "MB")
    yield max_of("memory: threads, with 32 runs held", [threads for _, _, threads, *_ in samples], "", None)
    yield max_of("memory: processes besides the runs", [others for *_, others, _, _ in samples], "", 1)


async def _talk(bench: Bench, plugin: str) -> tuple[int, int, float]:
    async with service(bench) as running:
        await anyio.sleep(1)
        of_guard = Memory.of(_guard(running)).pss
        before = running.cpu_seconds()
        sent = await bench.send(running.queue, plugin)
        peak_pss = 0
        async with anyio.create_task_group() as tasks:

            async def sample() -> None:
                nonlocal peak_pss
                while True:
                    peak_pss = max(peak_pss, running.memory().pss + of_guard)
                    await anyio.sleep(SAMPLE_INTERVAL)

            tasks.start_soon(sample)
            await bench.stored(sent.exec_id, "SUCCESS")
            await running.wait_for_events("run_settled", 1)
            tasks.cancel_scope.cancel()
        return peak_pss, running.peak_rss(), running.cpu_seconds() - before


def _talked(kind: str, samples: list[tuple[int, int, float]]) -> Iterator[Figure]:
    yield max_of(f"80 MB log, {kind}: peak RSS", [rss / MB for _, rss, _ in samples], "MB", 120)
    yield max_of(f"80 MB log, {kind}: peak PSS (sampled)", [pss / MB for pss, *_ in samples], "MB")
    yield max_of(f"80 MB log, {kind}: processor time", [cpu for *_, cpu in samples], "s", 2)
