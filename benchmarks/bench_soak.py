"""Two thousand short runs through one service: what does not go back to where it was?"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from benchmarks.harness import (
    MB,
    Bench,
    Figure,
    ServiceProcess,
    max_of,
    new_id,
    request_body,
    service,
    until,
)
from benchmarks.kernel import Memory

NAME = "soak"
ROUNDS = 1
SLOTS = 4
EARLY = 200  # runs, until caches and pools are as full as they get
ALL = 2000
AHEAD = 40  # requests that wait at most, so that one queue's length is no part of it
BATCH = 10  # messages a call (contract, section 6)
IDLE_CONNECTIONS = 4  # that the pools may keep at one time and not at another
REST = 5.0  # seconds without a run before the figures are taken

NOOP = "#!/bin/sh\nwhile read -r line; do :; done\n"


@dataclass(frozen=True)
class State:
    """What the service holds between two runs."""

    memory: Memory
    threads: int
    descriptors: int  # without sockets
    sockets: int  # of connection pools, which are bounded and keep an idle connection or two
    zombies: int
    children: int
    errors: int

    @classmethod
    def of(cls, running: ServiceProcess, errors: int) -> "State":
        """Read it from the kernel; `errors` are the log's lines of that level."""
        children = running.children()
        states = Counter(_state(pid) for pid in children)
        opened = [str(link.readlink()) for link in Path(f"/proc/{running.pid}/fd").iterdir()]
        sockets = sum(target.startswith("socket:") for target in opened)
        return cls(
            running.memory(),
            len(running.threads()),
            len(opened) - sockets,
            sockets,
            states["Z"],
            len(children) - states["Z"],
            errors,
        )


async def measure(bench: Bench, rounds: int) -> list[Figure]:
    """The same service twice: after some runs, and after many."""
    bench.program("noop", NOOP)
    samples = [await _soak(bench) for _ in range(rounds)]
    return list(_figures(samples))


async def _soak(bench: Bench) -> tuple[State, State, int, int]:
    async with service(bench, DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS=SLOTS) as running:
        log = _Log(running.log)
        states: list[State] = []
        sent: list[str] = []
        for goal in (EARLY, ALL):
            sent += await _runs(bench, running, log, goal)
            await anyio.sleep(REST)
            log.read()
            states.append(State.of(running, log.errors))
        failed = sum(bench.datahub.store.status(exec_id) != "SUCCESS" for exec_id in sent)
        return states[0], states[1], await _left(bench, running.queue), failed


async def _runs(bench: Bench, running: ServiceProcess, log: "_Log", goal: int) -> list[str]:
    """Send until there were so many, and wait until all are settled; their ids."""
    ids = [new_id() for _ in range(log.settled, goal)]
    before = log.settled
    recipe = {"source": {"type": "noop", "config": {}}}
    for first in range(0, len(ids), BATCH):
        await log.reached(before + first - AHEAD)
        entries = [
            {"Id": exec_id, "MessageBody": request_body(exec_id, recipe)}
            for exec_id in ids[first : first + BATCH]
        ]
        await bench.sqs.send_message_batch(QueueUrl=running.queue, Entries=entries)
    await log.reached(goal)
    return ids


class _Log:
    """Counts in the service's log, each line read once."""

    def __init__(self, file: Path) -> None:
        self.settled = 0
        self.errors = 0
        self._file = file
        self._at = 0

    def read(self) -> "_Log":
        """Take in what is new."""
        with self._file.open("rb") as file:
            file.seek(self._at)
            lines, ended, _ = file.read().rpartition(b"\n")
        self._at += len(lines) + len(ended)
        self.settled += lines.count(b'"run_settled"')
        self.errors += lines.count(b'"level": "error"') + lines.count(b'"level":"error"')
        return self

    async def reached(self, settled: int) -> None:
        """Return once so many runs are settled."""
        await until(lambda: self.read().settled >= settled)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"  # it ended meanwhile


async def _left(bench: Bench, queue: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    answer: dict[str, Any] = await bench.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)
    return sum(int(answer["Attributes"][name]) for name in names)


def _figures(samples: list[tuple[State, State, int, int]]) -> Iterator[Figure]:
    for runs, states in ((EARLY, [early for early, *_ in samples]), (ALL, [late for _, late, *_ in samples])):
        yield max_of(f"soak: RSS after {runs} runs", [state.memory.rss / MB for state in states], "MB")
        yield max_of(f"soak: PSS after {runs} runs", [state.memory.pss / MB for state in states], "MB")
        yield max_of(f"soak: threads after {runs} runs", [state.threads for state in states], "")
        yield max_of(
            f"soak: descriptors but sockets after {runs} runs", [state.descriptors for state in states], ""
        )
        yield max_of(f"soak: sockets after {runs} runs", [state.sockets for state in states], "")
        yield max_of(
            f"soak: children besides runs after {runs} runs", [state.children for state in states], ""
        )
    pairs = [(early, late) for early, late, *_ in samples]
    growth = [(late.memory.rss - early.memory.rss) / MB for early, late in pairs]
    yield max_of(f"soak: RSS, growth from {EARLY} to {ALL} runs", growth, "MB", 3)
    yield max_of(
        "soak: PSS, growth", [(late.memory.pss - early.memory.pss) / MB for early, late in pairs], "MB"
    )
    yield max_of("soak: threads, growth", [late.threads - early.threads for early, late in pairs], "", 0)
    yield max_of(
        "soak: descriptors but sockets, growth",
        [late.descriptors - early.descriptors for early, late in pairs],
        "",
        0,
    )
    yield max_of(
        "soak: sockets, growth", [late.sockets - early.sockets for early, late in pairs], "", IDLE_CONNECTIONS
    )
    yield max_of("soak: zombies", [max(early.zombies, late.zombies) for early, late in pairs], "", 0)
    yield max_of("soak: errors in the log", [late.errors for _, late in pairs], "", 0)
    yield max_of("soak: messages left in the queue", [left for *_, left, _ in samples], "", 0)
    yield max_of("soak: runs that did not end as SUCCESS", [failed for *_, failed in samples], "", 0)
