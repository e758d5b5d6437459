"""The metric math of the scaling study: the examples are those of CloudWatch's own documentation."""

import pytest

from benchmarks.scaling.metric_math import Point, evaluate


@pytest.mark.parametrize(
    ("expression", "points"),
    [
        ("IF(metric1, metric2, metric3)", [30, 0, 20, None, None]),
        ("IF(metric1, 5, metric3)", [5, 5, 20, None, None]),
        ("IF(metric1, metric2, 5)", [30, 0, 5, 5, None]),
        ("IF(metric1, metric2)", [30, 0, None, None, None]),
    ],
)
def test_what_is_not_there_is_dropped_or_0_as_if_has_it(expression: str, points: list[Point]) -> None:
    metrics = {
        "metric1": [1, 1, 0, 0, None],
        "metric2": [30, None, 0, 0, 30],
        "metric3": [0, 0, 20, None, 20],
    }
    minutes = [dict(zip(metrics, minute, strict=True)) for minute in zip(*metrics.values(), strict=True)]
    assert [evaluate(expression, minute) for minute in minutes] == points


@pytest.mark.parametrize(
    ("expression", "points"),
    [
        ("metric1 < metric2", [0, 0, 1, 0]),
        ("metric1 > 15 AND metric2 > 15", [1, 0, 0, 0]),
        ("metric1 + metric2", [50, 20, 20, 0]),
        ("metric1 / metric2", [1.5, None, 0, None]),
        ("metric2 / 20", [1, None, 1, None]),
        ("FILL(metric2, 3) * 1", [20, 3, 20, 3]),
    ],
)
def test_one_of_two_that_is_not_there_is_0(expression: str, points: list[Point]) -> None:
    minutes = [{"metric1": one, "metric2": two} for one, two in ((30, 20), (20, None), (0, 20), (0, None))]
    assert [evaluate(expression, minute) for minute in minutes] == points


@pytest.mark.parametrize("expression", ["MAX(metric1)", "0 < metric1 < 1", "FILL(metric1, REPEAT)"])
def test_what_is_not_known_here_is_said(expression: str) -> None:
    with pytest.raises(ValueError, match="not known here"):
        evaluate(expression, {"metric1": 1.0})
