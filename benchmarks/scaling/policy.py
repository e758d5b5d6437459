"""The autoscaling policy: what CloudWatch sees, when, and what Application Auto Scaling makes of it.

Sources: *Create a target tracking scaling policy for Application Auto Scaling using metric math*, *Define cooldown
periods* (Application Auto Scaling User Guide), *Automatically scale your Amazon ECS service* (ECS Developer Guide).
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

PERIOD = 60.0  # seconds between two datapoints of a metric
METRIC_DELAY = 60.0  # seconds until a datapoint can be read
OUT_POINTS = 3  # datapoints above the target before it scales out
IN_POINTS = 15  # datapoints below LOW of it before it scales in
LOW = 0.9  # of the target
COOLDOWN = 300.0  # seconds; the default for ECS services


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator chooses. `slots` is DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS; the target follows it."""

    minimum: int = 1
    maximum: int = 100
    slots: int = 4
    target: float | None = None
    protected: bool = True
    lift_after: float | None = (
        None  # seconds after a deployment's begin: the old tasks' protection is lifted by hand
    )

    @property
    def backlog_target(self) -> float:
        """Messages a task."""
        return self.target or self.slots


class Datapoint(NamedTuple):
    """One minute of the queue and the service, as CloudWatch has it."""

    at: float  # seconds
    visible: int
    in_flight: int
    running: int

    @property
    def backlog_per_task(self) -> float:
        """The metric that is tracked."""
        return (self.visible + self.in_flight) / max(self.running, 1)


@dataclass(slots=True)
class AutoScaling:
    """Sets the desired count, once a minute."""

    settings: Settings
    desired: int = 0
    _points: deque[Datapoint] = field(default_factory=lambda: deque(maxlen=IN_POINTS))
    _fresh: deque[Datapoint] = field(default_factory=deque)  # not to be read yet
    _cooling_until: float = -math.inf
    _stepped_until: float = -math.inf
    _base: int = 0  # tasks that ran when the cooldown began: what it added must not count twice

    def __post_init__(self) -> None:
        self.desired = self.settings.minimum

    def minute(self, point: Datapoint, *, deploying: bool = False) -> None:
        """Take a datapoint, and decide by those that can be read. During a deployment nothing is scaled in."""
        self._fresh.append(point)
        while self._fresh and self._fresh[0].at <= point.at - METRIC_DELAY:
            self._points.append(self._fresh.popleft())
        if not self._points:
            return
        target, latest = self.settings.backlog_target, self._points[-1]
        metrics = [seen.backlog_per_task for seen in self._points]
        if latest.visible and not latest.running and not self.desired:
            # Step scaling, a policy of its own: what target tracking makes of no task is no task.
            self.desired, self._stepped_until = 1, point.at + COOLDOWN
        elif len(metrics) >= OUT_POINTS and min(metrics[-OUT_POINTS:]) > target:
            base = self._base if point.at < self._cooling_until else point.running
            self._out(point.at, base, math.ceil(base * latest.backlog_per_task / target))
        elif deploying or point.at < max(self._cooling_until, self._stepped_until):
            return
        elif len(metrics) == IN_POINTS and max(metrics) < LOW * target:
            self._in(point.at, math.ceil(point.running * latest.backlog_per_task / target))

    def _out(self, now: float, base: int, wanted: int) -> None:
        wanted = min(wanted, self.settings.maximum)
        if wanted > self.desired:
            self.desired, self._base, self._cooling_until = wanted, base, now + COOLDOWN

    def _in(self, now: float, wanted: int) -> None:
        wanted = max(wanted, self.settings.minimum)
        if wanted < self.desired:
            self.desired, self._cooling_until = wanted, now + COOLDOWN
