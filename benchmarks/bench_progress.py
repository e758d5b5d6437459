"""What a run that talks all the time sends to DataHub while it goes on."""

import time

import anyio

from benchmarks.harness import Bench, Figure, median_of, service
from executor.reporter import BYTES_PER_MINUTE

NAME = "progress"
ROUNDS = 1
SECONDS = 66  # of talk
MINUTE = 60.0  # seconds

# A megabyte a second, in ten pieces.
CHATTY = """#!/bin/bash
while read -r line; do :; done
end=$((SECONDS + {seconds}))
piece=$(yes '{line}' | head -n 1000)
while [ $SECONDS -lt $end ]; do echo "$piece"; sleep 0.1; done
"""
LINE = "2026-01-01 12:00:00,000 INFO  datahub.ingestion.source  Ingested the table shop.orders_of_today ...."


async def measure(bench: Bench, rounds: int) -> list[Figure]:
    """The bytes of all calls that arrive in the first minute of the run."""
    bench.program("chatty", CHATTY.format(seconds=SECONDS, line=LINE))
    minutes, writes = [], []
    for _ in range(rounds):
        async with service(bench) as running:
            sent = await bench.send(running.queue, "chatty")
            with anyio.fail_after(60):
                await bench.datahub.wait_for_status(sent.exec_id, "RUNNING")
            calls = bench.datahub.calls
            before, began = sum(calls.request_bytes.values()), time.monotonic()
            count = len(bench.datahub.store.history(sent.exec_id))
            await anyio.sleep(began + MINUTE - time.monotonic())
            minutes.append((sum(calls.request_bytes.values()) - before) / 1024)
            writes.append(float(len(bench.datahub.store.history(sent.exec_id)) - count))
            await bench.stored(sent.exec_id, "SUCCESS")
    bound = BYTES_PER_MINUTE / 1024
    return [
        median_of("progress: sent to DataHub in a minute of 1 MB/s", minutes, "KiB", bound),
        median_of("progress: writes in that minute", writes, ""),
    ]
