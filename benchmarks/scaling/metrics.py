"""What CloudWatch can be asked about the queue and the service: which datapoints there are, and from when on.

Sources: *Available CloudWatch metrics for Amazon SQS* (metrics of a queue that is used; up to 15 minutes late after
six hours without use), *Container Insights considerations* (ECS Developer Guide: no metrics where no task runs),
*Using math expressions with CloudWatch metrics* (a missing value counts as 0 beside one that is there; what divides
by zero is dropped; what IF makes of a missing condition; FILL).
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

PERIOD = 60.0  # seconds between two datapoints of a metric
UNUSED = 6 * 3600.0  # seconds without any use after which a queue has no metrics
KEPT = 20  # minutes that can be asked for: those of the longest alarm, and what may be missing of them


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


def backlog_per_task(points: Datapoints) -> float | None:
    """`IF(visible, (visible + hidden) / running, hidden / running)`.

    No datapoint of a minute in which no task runs, or of which the queue's metrics have not come: IF has none where
    its condition has none.
    """
    if points.visible is None or not points.running:
        return None
    return (points.visible + (points.hidden or 0)) / points.running


def filled_backlog_per_task(points: Datapoints) -> float:
    """The same with FILL(…, 0) on each metric: what is not there yet is 0, and the newest minute never is there."""
    return ((points.visible or 0) + (points.hidden or 0)) / max(points.running or 0, 1)


def waits_for_a_task(points: Datapoints) -> bool | None:
    """`IF(visible, FILL(desired, 0) < 1, 0)`; no datapoint either where the queue's metrics have not come."""
    return None if points.visible is None else points.visible > 0 and not points.desired
