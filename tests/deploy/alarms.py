"""CloudWatch's alarms, as far as deploy/ uses them.

A series holds a metric's points, oldest first, None where there is none: the metric came late, or nobody sent it.
The rules are those of *Configuring how CloudWatch alarms treat missing data* (Amazon CloudWatch User Guide): of the
points that are there the newest are evaluated, as many as there are evaluation periods, for which an alarm looks
further back than it has periods. What is still missing then is what it is treated as.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.scaling.metric_math import Point, evaluate

Series = Sequence[Point]

FURTHER = 2  # periods that it looks back beyond its own, in the guide's example; how many, AWS does not say
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
}


def series(expression: str, **metrics: Series) -> list[Point]:
    """What an expression comes to; all metrics have as many points."""
    minutes = zip(*metrics.values(), strict=True)
    return [evaluate(expression, dict(zip(metrics, minute, strict=True))) for minute in minutes]


def rings(alarm: Mapping[str, Any], **metrics: Series) -> bool:
    """Whether enough of the newest points breach, of an alarm as the API takes it."""
    points: Series
    if "Metrics" in alarm:
        [expression] = [query["Expression"] for query in alarm["Metrics"] if query["ReturnData"]]
        points = series(expression, **metrics)
    else:
        [points] = metrics.values()
    periods: int = alarm["EvaluationPeriods"]
    assert len(points) >= periods
    found = [point for point in points[-periods - FURTHER :] if point is not None][-periods:]
    breaches, threshold = _COMPARISONS[alarm["ComparisonOperator"]], alarm["Threshold"]
    missing = {"breaching": 1, "notBreaching": 0}[alarm["TreatMissingData"]] * (periods - len(found))
    needed: int = alarm.get("DatapointsToAlarm", periods)
    return sum(breaches(point, threshold) for point in found) + missing >= needed
