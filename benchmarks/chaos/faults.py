"""Which faults strike whom and when, all from one seed. Pure."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["kill", "stop", "drain", "refused", "half-open", "lost answers"]
Server = Literal["datahub", "sqs"]

FAULTS_PER_EXECUTOR: Final = 0.06  # a second, the mean
DRAINED_WITHIN: Final = 40.0  # seconds, the wait for a receive under way included
QUIET_START: Final = 5.0  # seconds without a fault, so that the first runs are under way
ALL_AT_ONCE: Final = 0.15  # of the cuts
_KINDS: Final[dict[Kind, float]] = {
    "kill": 5,
    "stop": 4,
    "drain": 1.5,
    "refused": 3,
    "half-open": 3,
    "lost answers": 2.5,
}


@dataclass(frozen=True)
class Fault:
    """One fault: `at` from the start and `seconds` long (of a kill or drain: until the restart)."""

    at: float
    kind: Kind
    executors: tuple[int, ...]
    seconds: float
    server: Server | None = None

    @property
    def name(self) -> str:
        """What it is counted under."""
        if self.server is None:
            return {"kill": "SIGKILL", "stop": "SIGSTOP", "drain": "SIGTERM"}[self.kind]
        return f"{'DataHub' if self.server == 'datahub' else 'SQS'} {self.kind}"


@dataclass
class _Free:
    """From when on an executor, or its way to a server, may be struck again."""

    executors: list[float]
    ways: dict[tuple[Server, int], float] = field(default_factory=dict)

    def way(self, server: Server, executor: int) -> float:
        return self.ways.get((server, executor), 0.0)


def schedule(seed: int, *, executors: int, seconds: float, lease: float) -> list[Fault]:
    """The faults of so many seconds; the same seed gives the same ones.

    At most all but one executor are struck by a signal at a time, and a way to a server by one cut. Cuts last
    up to twice the lease, those of SQS as often shorter than the lease as longer; stops up to three leases.
    """
    return list(_faults(random.Random(seed), executors, seconds, lease))


def _faults(chance: random.Random, executors: int, seconds: float, lease: float) -> Iterator[Fault]:
    free = _Free([0.0] * executors)
    at = QUIET_START
    while True:
        at += chance.expovariate(FAULTS_PER_EXECUTOR * executors)
        if at >= seconds:
            return
        [kind] = chance.choices([*_KINDS], [*_KINDS.values()])
        signalled = kind in {"kill", "stop", "drain"}
        fault = _signal(chance, kind, at, free, lease) if signalled else _cut(chance, kind, at, free, lease)
        if fault is not None:
            yield fault


def _signal(chance: random.Random, kind: Kind, at: float, free: _Free, lease: float) -> Fault | None:
    idle = [number for number, until in enumerate(free.executors) if until <= at]
    if len(idle) < min(2, len(free.executors)):
        return None
    executor = chance.choice(idle)
    length = chance.uniform(1, 3 * lease) if kind == "stop" else chance.uniform(1, 10)
    free.executors[executor] = at + length + (DRAINED_WITHIN if kind == "drain" else 3)
    return Fault(at, kind, (executor,), length)


def _cut(chance: random.Random, kind: Kind, at: float, free: _Free, lease: float) -> Fault | None:
    server: Server = chance.choice(("datahub", "sqs"))
    everyone = range(len(free.executors))
    whom = tuple(everyone) if chance.random() < ALL_AT_ONCE else (chance.choice(everyone),)
    if any(free.way(server, executor) > at for executor in whom):
        return None
    if kind == "lost answers":
        length = chance.uniform(1, 5)
    elif server == "sqs":
        length = chance.uniform(1, 0.7 * lease) if chance.random() < 0.5 else chance.uniform(1.2, 2) * lease
    else:
        length = chance.uniform(1, 2 * lease)
    for executor in whom:
        free.ways[server, executor] = at + length + 1
    return Fault(at, kind, whom, length, server)
