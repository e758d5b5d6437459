"""The autoscaling policy: what Application Auto Scaling makes of what CloudWatch knows.

Sources: *Create a target tracking scaling policy for Application Auto Scaling using metric math*, *Define cooldown
periods* (Application Auto Scaling User Guide), *Automatically scale your Amazon ECS service* (ECS Developer Guide),
*Evaluating an alarm* (CloudWatch User Guide).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from benchmarks.scaling.metric_math import Point
from benchmarks.scaling.metrics import (
    BACKLOG_PER_TASK,
    KEPT,
    WAITS_FOR_A_TASK,
    CloudWatch,
    Lateness,
    Minute,
    reckoned,
)

OUT_POINTS = 3  # datapoints above the target before it scales out
IN_POINTS = 15  # datapoints below LOW of it before it scales in
SPARE = KEPT - IN_POINTS  # minutes more that an alarm looks at, to find as many datapoints
FIRST_POINTS, FIRST_OF = 2, 3  # the first task's alarm: minutes that say so, of the newest
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
    lateness: Lateness = field(default_factory=Lateness)
    tracked: str = BACKLOG_PER_TASK  # or another expression, to see what it does

    @property
    def backlog_target(self) -> float:
        """Messages a task."""
        return self.target or self.slots


@dataclass(slots=True)
class AutoScaling:
    """Sets the desired count, once a minute."""

    settings: Settings
    used_at: float = -math.inf  # when anybody last used the queue
    desired: int = 0
    _cloudwatch: CloudWatch = field(init=False)
    _cooling_until: float = -math.inf
    _stepped_until: float = -math.inf
    _base: int = 0  # tasks that ran when the cooldown began: what it added must not count twice

    def __post_init__(self) -> None:
        self.desired = self.settings.minimum
        self._cloudwatch = CloudWatch(self.settings.lateness, self.used_at)

    def minute(self, minute: Minute, *, deploying: bool = False) -> None:
        """Measure, and decide by what can be read. During a deployment nothing is scaled in."""
        now, target = minute.at, self.settings.backlog_target
        self._cloudwatch.take(minute, self.desired)
        if self.settings.minimum == 0 and now >= self._stepped_until and self._wants_first_task(now):
            # Step scaling, a policy of its own: what target tracking makes of no task is no task.
            self.desired = min(self.desired + 1, self.settings.maximum)
            self._stepped_until = now + COOLDOWN
        latest = next((value for value in self._backlogs(now, OUT_POINTS + SPARE) if value is not None), None)
        if latest is None:
            return
        if _newest(self._backlogs(now, OUT_POINTS + SPARE), OUT_POINTS, lambda value: value > target):
            base = self._base if now < self._cooling_until else minute.running
            self._out(now, base, math.ceil(base * latest / target))
        elif self._may_scale_in(now, deploying) and _newest(
            self._backlogs(now, KEPT), IN_POINTS, lambda value: value < LOW * target
        ):
            self._in(now, math.ceil(minute.running * latest / target))

    def _may_scale_in(self, now: float, deploying: bool) -> bool:
        if deploying or self.desired <= self.settings.minimum:
            return False
        return now >= max(self._cooling_until, self._stepped_until)

    def _wants_first_task(self, now: float) -> bool:
        said = self._reckoned(WAITS_FOR_A_TASK, now, FIRST_OF + SPARE)
        return sum([one for one in said if one is not None][:FIRST_OF]) >= FIRST_POINTS

    def _backlogs(self, now: float, minutes: int) -> Iterable[Point]:
        return self._reckoned(self.settings.tracked, now, minutes)

    def _reckoned(self, expression: str, now: float, minutes: int) -> Iterable[Point]:
        return (reckoned(expression, points) for points in self._cloudwatch.newest(now, minutes))

    def _out(self, now: float, base: int, wanted: int) -> None:
        wanted = min(wanted, self.settings.maximum)
        if wanted > self.desired:
            self.desired, self._base, self._cooling_until = wanted, base, now + COOLDOWN

    def _in(self, now: float, wanted: int) -> None:
        wanted = max(wanted, self.settings.minimum)
        if wanted < self.desired:
            self.desired, self._cooling_until = wanted, now + COOLDOWN


def _newest(values: Iterable[Point], count: int, holds: Callable[[float], bool]) -> bool:
    """Whether so many datapoints are there, and it holds for the newest of them; missing ones are passed over."""
    there = 0
    for value in values:
        if value is None:
            continue
        if not holds(value):
            return False
        there += 1
        if there == count:
            return True
    return False
