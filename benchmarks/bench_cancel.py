"""From the cancel button to a dead tree and `CANCELLED` stored, the signal being found by polling alone."""

import random
import time
from pathlib import Path

import anyio
import httpx

from benchmarks.harness import TOKEN, Bench, Figure, ServiceProcess, max_of, median_of, service, until

NAME = "cancel"
ROUNDS = 10
POLL_INTERVAL = 2.0  # seconds, the service's default
LOOK_INTERVAL = 0.005  # seconds between two looks at the tree

# Obeys SIGTERM, as do its two children.
TREE = """#!/bin/sh
while read -r line; do :; done
sleep 600 & first=$!
sh -c 'sleep 600; :' & second=$!
echo "$$ $first $second" > {pids}.new
mv {pids}.new {pids}
wait
"""
CREATE = "mutation ($input: UpdateIngestionSourceInput!) { createIngestionSource(input: $input) }"
CANCEL = """
mutation ($input: CancelIngestionExecutionRequestInput!) { cancelIngestionExecutionRequest(input: $input) }
"""


async def measure(bench: Bench, rounds: int) -> list[Figure]:
    """One run after the other, each cancelled at a random phase of the poll."""
    pids = bench.folder / "pids"
    bench.program("tree", TREE.format(pids=pids))
    dead, stored = [], []
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        service(bench) as running,
        httpx.AsyncClient(base_url=bench.datahub.url, headers=headers, trust_env=False) as page,
    ):
        source = await _source(page)
        for _ in range(rounds):
            times = await _cancel(bench, running, page, source, pids)
            dead.append(times[0])
            stored.append(times[1])
    bar = POLL_INTERVAL + 0.5
    return [
        max_of("cancel → tree dead", dead, "s", bar),
        median_of("cancel → tree dead", dead, "s"),
        max_of("cancel → CANCELLED stored", stored, "s", bar),
        median_of("cancel → CANCELLED stored", stored, "s"),
        max_of("cancel: tree dead → stored", [b - a for a, b in zip(dead, stored, strict=True)], "s"),
    ]


async def _ask(page: httpx.AsyncClient, document: str, given: dict[str, object]) -> dict[str, str]:
    answer = await page.post("/api/graphql", json={"query": document, "variables": {"input": given}})
    body = answer.json()
    if body.get("errors"):
        raise RuntimeError(f"the stand-in refused: {body['errors']}")
    data: dict[str, str] = body["data"]
    return data


async def _source(page: httpx.AsyncClient) -> str:
    config = {"recipe": "{}", "executorId": "remote"}
    given: dict[str, object] = {"name": "benchmark", "type": "tree", "config": config}
    return (await _ask(page, CREATE, given))["createIngestionSource"]


async def _cancel(
    bench: Bench, running: ServiceProcess, page: httpx.AsyncClient, source: str, pids: Path
) -> tuple[float, float]:
    sent = await bench.send(running.queue, "tree")
    await until(pids.exists, LOOK_INTERVAL)
    tree = _taken(pids)
    await anyio.sleep(random.uniform(0.5, 0.5 + POLL_INTERVAL))
    urn = f"urn:li:dataHubExecutionRequest:{sent.exec_id}"
    began = time.time()
    await _ask(page, CANCEL, {"ingestionSourceUrn": source, "executionRequestUrn": urn})
    await until(lambda: not any(map(_alive, tree)), LOOK_INTERVAL)
    dead = time.time()
    record = await bench.stored(sent.exec_id, "CANCELLED")
    await running.settled(sent.exec_id)
    return dead - began, record.epoch - began


def _taken(pids: Path) -> list[str]:
    """The tree's processes; the file is gone afterwards."""
    tree = pids.read_text().split()
    pids.unlink()
    return tree


def _alive(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in b"ZX"
