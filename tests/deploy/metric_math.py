"""CloudWatch's metric math and alarms, as far as deploy/ uses them.

A series holds a metric's points, oldest first, None where there is none: the metric came late, or nobody sent it.
The rules are those of *Using metric math* and *Configuring how CloudWatch alarms treat missing data* in the
CloudWatch User Guide: where one of two series has no point, it counts as 0; where both have none, or 0 is divided
by, there is none; FILL puts one wherever there is none, the newest one included.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Point = float | None
Series = Sequence[Point]

_OPERATORS: Mapping[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
}


def evaluate(expression: str, **metrics: Series) -> list[Point]:
    """The series that an expression comes to; all metrics have as many points.

    Raises:
        ValueError: the expression uses what is not known here, or series differ in length.
    """
    [length] = {len(series) for series in metrics.values()}
    tree = ast.parse(expression.replace(" AND ", " and "), mode="eval")
    result = _Evaluation(metrics, length).value(tree.body)
    return list(result) if isinstance(result, Sequence) else [result] * length


def rings(alarm: Mapping[str, Any], **metrics: Series) -> bool:
    """Whether enough of the newest points breach, of an alarm as the API takes it."""
    points: Series
    if "Metrics" in alarm:
        [expression] = [query["Expression"] for query in alarm["Metrics"] if query["ReturnData"]]
        points = evaluate(expression, **metrics)
    else:
        [points] = metrics.values()
    considered = alarm["EvaluationPeriods"]
    assert len(points) >= considered
    missing = {"breaching": True, "notBreaching": False}[alarm["TreatMissingData"]]
    breaches = _COMPARISONS[alarm["ComparisonOperator"]]
    found = [
        missing if point is None else breaches(point, alarm["Threshold"]) for point in points[-considered:]
    ]
    needed: int = alarm.get("DatapointsToAlarm", considered)
    return sum(found) >= needed


class _Evaluation:
    """A number stands for itself; what it is combined with says where there are points."""

    def __init__(self, metrics: Mapping[str, Series], length: int) -> None:
        self._metrics = metrics
        self._length = length

    def value(self, node: ast.AST) -> float | Series:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name):
                return self._metrics[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return self._combined(_OPERATORS[type(op)], left, right)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                return self._combined(_OPERATORS[type(op)], left, right)
            case ast.BoolOp(op=ast.And(), values=values):
                return self._combined(lambda *given: all(given), *values)
            case ast.Call(func=ast.Name(id="IF"), args=[condition, then, otherwise]):
                return self._combined(
                    lambda met, one, other: one if met else other, condition, then, otherwise
                )
            case ast.Call(func=ast.Name(id="FILL"), args=[filled, ast.Constant(value=int() as number)]):
                series = self.value(filled)
                assert isinstance(series, Sequence)
                return [number if point is None else point for point in series]
        raise ValueError(f"not known here: {ast.unparse(node)}")

    def _combined(self, function: Callable[..., float], *nodes: ast.expr) -> float | Series:
        operands = [self.value(node) for node in nodes]
        if not any(isinstance(operand, Sequence) for operand in operands):
            return function(*operands)
        return [self._point(function, operands, place) for place in range(self._length)]

    def _point(self, function: Callable[..., float], operands: Sequence[float | Series], place: int) -> Point:
        if all(operand[place] is None for operand in operands if isinstance(operand, Sequence)):
            return None
        given = [
            (operand[place] or 0.0) if isinstance(operand, Sequence) else operand for operand in operands
        ]
        try:
            return float(function(*given))
        except ZeroDivisionError:
            return None
