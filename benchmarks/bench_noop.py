"""A CLI that does nothing: what is left is the service's own doing."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import anyio

from benchmarks.harness import (
    Bench,
    Figure,
    ServiceProcess,
    max_of,
    median_of,
    new_id,
    p95_of,
    request_body,
    service,
)

NAME = "noop"
ROUNDS = 50
SLOTS = 4
AT_ONCE = 16
BURSTS = 6
WARM_UP = 3

NOOP = "#!/bin/sh\nwhile read -r line; do :; done\n"
# Bash, as it can tell the time without starting another process.
STAMPED = """#!/bin/bash
began=$EPOCHREALTIME
while read -r line; do :; done
sleep 0.3
echo "$began $EPOCHREALTIME" >> {stamps}
"""


async def measure(bench: Bench, rounds: int) -> list[Figure]:
    """One at a time, then many at once."""
    script = bench.program("noop", NOOP)
    stamps = bench.folder / "stamps"
    bench.program("stamped", STAMPED.format(stamps=stamps))
    async with service(bench, DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS=SLOTS) as running:
        single = await _one_by_one(bench, running, script, rounds)
        bursts = []
        for number in range(BURSTS + 1):
            plain = await _plainly(bench, stamps)
            served = await _at_once(bench, running, stamps)
            if number:  # the first was to warm up
                bursts.append((plain, served))
    ratios = [median(served[0]) / median(plain[0]) for plain, served in bursts]
    plain_idle = [gap for plain, _ in bursts for gap in plain[0]]
    idle = [gap for _, served in bursts for gap in served[0]]
    process_gaps = [gap for _, served in bursts for gap in served[1]]
    return [
        *single,
        median_of("slots: process ended → next message received / a plain loop", ratios, "x", 4),
        median_of("slots: the same, a plain loop", plain_idle, "ms"),
        median_of("slots: the same", idle, "ms"),
        max_of("slots: the same", idle, "ms"),
        median_of("slots: process ended → next process begun", process_gaps, "ms"),
        max_of("slots: the same", process_gaps, "ms"),
    ]


async def _plainly(bench: Bench, stamps: Path) -> tuple[list[float], list[float]]:
    """What `_at_once` measures, of the least that could do it: receive, run, wait, and so on, in as many slots."""
    queue, received = await bench.localstack.make_queue(), list[float]()
    script = str(bench.bundled / "stamped-bundled" / "bin" / "datahub")
    for number in range(AT_ONCE):
        await bench.sqs.send_message(QueueUrl=queue, MessageBody=str(number))

    async def work() -> None:
        for _ in range(AT_ONCE // SLOTS):
            await bench.sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=20)
            received.append(time.time())
            await anyio.run_process([script], input=b"")

    async with anyio.create_task_group() as tasks:
        for _ in range(SLOTS):
            tasks.start_soon(work)
    began, ended = _stamps(stamps)
    return _gaps(ended, received), _gaps(ended, began)


async def _one_by_one(bench: Bench, running: ServiceProcess, script: Path, rounds: int) -> list[Figure]:
    over, alone, sending, receiving, ending = [], [], [], [], []
    for number in range(rounds + WARM_UP):
        sent = await bench.send(running.queue, "noop")
        record = await bench.stored(sent.exec_id, "SUCCESS")
        await running.settled(sent.exec_id)
        own = _spawn_and_wait(script)
        if number < WARM_UP:
            continue
        [received] = running.events("request_received", sent.exec_id)
        [started] = running.events("run_started", sent.exec_id)
        over.append((record.epoch - sent.before - own) * 1000)
        alone.append(own * 1000)
        sending.append((sent.after - sent.before) * 1000)
        receiving.append((received["at"] - sent.before) * 1000)
        ending.append((record.epoch - started["at"]) * 1000)
    middle = [
        total + own - got - end for total, own, got, end in zip(over, alone, receiving, ending, strict=True)
    ]
    return [
        median_of("noop: sent → SUCCESS stored, less the process", over, "ms", 60),
        p95_of("noop: the same", over, "ms", 60),
        median_of("noop: the process alone", alone, "ms"),
        median_of("noop: the queue's own answer to the sending", sending, "ms"),
        median_of("noop: sent → received", receiving, "ms"),
        median_of("noop: received → process started", middle, "ms"),
        median_of("noop: process started → SUCCESS stored", ending, "ms"),
    ]


def _spawn_and_wait(script: Path) -> float:
    recipe = request_body(new_id(), {"source": {"type": "noop", "config": {}}}).encode()
    began = time.perf_counter()
    argv = [str(script), "ingest", "run", "-c", "-", "--report-to", "/dev/null"]
    subprocess.run(argv, input=recipe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    return time.perf_counter() - began


async def _at_once(bench: Bench, running: ServiceProcess, stamps: Path) -> tuple[list[float], list[float]]:
    """Idle times of slots in ms: until the next message is there, and until its process began."""
    ids = [new_id() for _ in range(AT_ONCE)]
    recipe = {"source": {"type": "stamped", "config": {}}}
    entries = [{"Id": exec_id, "MessageBody": request_body(exec_id, recipe)} for exec_id in ids]
    for first in range(0, AT_ONCE, 10):
        await bench.sqs.send_message_batch(QueueUrl=running.queue, Entries=entries[first : first + 10])
    for exec_id in ids:
        await bench.stored(exec_id, "SUCCESS")
        await running.settled(exec_id)
    began, ended = _stamps(stamps)
    received = [event["at"] for exec_id in ids for event in running.events("request_received", exec_id)]
    return _gaps(ended, received), _gaps(ended, began)


def _stamps(file: Path) -> tuple[list[float], list[float]]:
    """When the processes began and ended, and forget it."""
    lines = [line.split() for line in file.read_text().splitlines()]
    file.unlink()
    return [float(began) for began, _ in lines], [float(ended) for _, ended in lines]


def _gaps(released: Sequence[float], taken: Sequence[float]) -> list[float]:
    """Between a slot's release and its next use: the slot that has been free longest is taken first."""
    later = sorted(taken)[SLOTS:]
    return [(use - free) * 1000 for free, use in zip(sorted(released), later, strict=False)]
