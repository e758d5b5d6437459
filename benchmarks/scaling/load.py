"""What arrives: requests as moments and run times, drawn from a seed. All times are in seconds from midnight."""

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
SEED = 5


class Request(NamedTuple):
    """A request: when it is sent, and how long its run takes."""

    sent: float
    seconds: float


class Load(NamedTuple):
    """Requests in the order of their sending, and how long the simulation looks at them."""

    name: str
    requests: list[Request]
    until: float = DAY
    unused: float = DAY  # seconds that nobody had used the queue before


def steady(an_hour: float, until: float = DAY, minutes: float = 3.0) -> Load:
    """Independent requests all day; `minutes` is the median run time, as in all loads."""
    chance = random.Random(SEED)
    requests = list(_poisson(chance, an_hour, 0.0, until, minutes))
    return Load(f"steady, {an_hour:,g} an hour", requests, until, unused=0.0)


def nightly(count: int = 300, within: float = 30.0) -> Load:
    """Schedules that are set to midnight, or to some time within so many seconds after it."""
    chance = random.Random(SEED)
    sent = sorted(chance.uniform(0.0, within) for _ in range(count))
    when = "at 00:00" if within <= MINUTE else f"from 00:00 to {within / HOUR:02.0f}:00"
    return Load(f"nightly, {count} {when}", [Request(at, _run_time(chance, 4.0)) for at in sent])


def working_day(an_hour: float = 30) -> Load:
    """People who press *Execute* from nine to five."""
    chance = random.Random(SEED)
    requests = list(_poisson(chance, an_hour, 9 * HOUR, 17 * HOUR, 1.0))
    return Load(f"clicks, {an_hour:g} an hour from 9 to 17", requests)


def long_runs(count: int = 30) -> Load:
    """Large warehouses, one to six hours each, begun at any time before 16:00; and the clicks of a working day."""
    chance = random.Random(SEED)
    large = [Request(chance.uniform(0.0, 16 * HOUR), chance.uniform(1, 6) * HOUR) for _ in range(count)]
    return Load(f"{count} runs of 1 to 6 hours, and the clicks", sorted([*large, *working_day().requests]))


def spike(count: int = 1000) -> Load:
    """All at once, at ten, as when somebody runs everything again."""
    chance = random.Random(SEED)
    requests = [Request(10 * HOUR, _run_time(chance, 3.0)) for _ in range(count)]
    return Load(f"spike, {count:,} at 10:00", requests)


def _poisson(
    chance: random.Random, an_hour: float, begin: float, end: float, minutes: float
) -> Iterator[Request]:
    at = begin
    while (at := at + chance.expovariate(an_hour / HOUR)) < end:
        yield Request(at, _run_time(chance, minutes))


def _run_time(chance: random.Random, minutes: float) -> float:
    """Log-normal: most are near the median, one in a hundred takes six times as long."""
    return chance.lognormvariate(math.log(minutes * MINUTE), 0.8)
