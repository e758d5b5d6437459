"""What CloudWatch can be asked about the queue and the service: which datapoints there are, and from when on.

Sources: *Available CloudWatch metrics for Amazon SQS* (metrics of a queue that is used; up to 15 minutes late after
six hours without use), *Container Insights considerations* (ECS Developer Guide: no metrics where no task runs).
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from benchmarks.scaling.metric_math import Point, evaluate

PERIOD = 60.0  # seconds between two datapoints of a metric
UNUSED = 6 * 3600.0  # seconds without any use after which a queue has no metrics
KEPT = 20  # minutes that can be asked for: those of the longest alarm, and what may be missing of them

# What the templates in deploy/ scale by. The IF takes the tasks where the queue's metrics have come, else messages
# that are yet to be counted would be none; and what is divided by nothing is dropped, be it that no task runs, or
# that it is not known yet.
BACKLOG_PER_TASK = "(visible + hidden) / IF(visible, running, running)"
WAITS_FOR_A_TASK = "IF(visible, FILL(desired, 0) < 1, 0)"


class Minute(NamedTuple):
    """How it is at the end of a minute."""

    at: float  # seconds
    visible: int  # messages that wait
    hidden: int  # messages in flight
    running: int  # tasks


class Datapoints(NamedTuple):
    """One minute as CloudWatch knows it; None is no datapoint, or none yet."""

    visible: int | None
    hidden: int | None
    running: int | None
    desired: int | None


@dataclass(frozen=True, slots=True)
class Lateness:
    """Seconds from a minute's end until its datapoint can be read."""

    sqs: float = 60.0
    insights: float = 120.0  # Container Insights
    unused: float = 900.0  # SQS, from the first use after UNUSED on: "up to 15 minutes", so this is the worst


class CloudWatch:
    """The metrics of one queue and one service."""

    def __init__(self, lateness: Lateness, used_at: float = -math.inf) -> None:
        """`used_at` is when anybody last used the queue."""
        self._lateness = lateness
        self._used_at = used_at
        self._awake_from = -math.inf  # before that no datapoint of the queue can be read
        self._minutes: deque[tuple[float, float, Datapoints]] = deque(maxlen=KEPT)

    def take(self, minute: Minute, desired: int) -> None:
        """Measure. Messages are a use of the queue, and so is a task that asks for some."""
        at, visible, hidden, running = minute
        if visible or hidden or running:
            if at - self._used_at > UNUSED:
                self._awake_from = at + self._lateness.unused
            self._used_at = at
        used = at - self._used_at <= UNUSED
        points = Datapoints(
            visible=visible if used else None,
            hidden=hidden or None,
            running=running or None,
            desired=desired if running else None,
        )
        sqs_from = max(at + self._lateness.sqs, self._awake_from)
        self._minutes.append((sqs_from, at + self._lateness.insights, points))

    def newest(self, now: float, minutes: int) -> Iterator[Datapoints]:
        """What can be read of the last minutes, newest first; as a rule nothing of the first."""
        for number, (sqs_from, insights_from, points) in enumerate(reversed(self._minutes)):
            if number == minutes:
                return
            if sqs_from > now:
                points = points._replace(visible=None, hidden=None)
            if insights_from > now:
                points = points._replace(running=None, desired=None)
            yield points


@lru_cache(maxsize=100_000)  # most minutes are like another
def reckoned(expression: str, points: Datapoints) -> Point:
    """What an expression comes to in a minute."""
    return evaluate(expression, points._asdict())
