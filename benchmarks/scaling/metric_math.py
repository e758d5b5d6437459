"""CloudWatch's metric math, as far as the scaling of deploy/ uses it, and what it might use instead.

A minute is reckoned by itself. By *Using math expressions with CloudWatch metrics* (Amazon CloudWatch User Guide):

- Where one of two series has no point, it counts as 0; where both have none, or 0 is divided by, there is none.
- IF has no point where its condition has none. Where the condition holds, what is chosen counts as 0 if it has no
  point; where it does not hold, there is none then, nor where nothing is to be chosen.
- FILL puts a point wherever there is none, the newest minute included.

What a series without a point comes to beside a number, as in `visible > 0`, is not said: here, to no point.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache

Point = float | None

_OPERATORS: Mapping[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
}


def evaluate(expression: str, metrics: Mapping[str, Point]) -> Point:
    """What an expression comes to in a minute; None is no point.

    Raises:
        ValueError: the expression uses what is not known here.
    """
    return _value(_parsed(expression), metrics)


@cache
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression.replace(" AND ", " and "), mode="eval").body


def _value(node: ast.expr, metrics: Mapping[str, Point]) -> Point:
    match node:
        case ast.Constant(value=int() as number):
            return float(number)
        case ast.Name(id=name):
            return metrics[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _combined(_OPERATORS[type(op)], left, right, metrics)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            return _combined(_OPERATORS[type(op)], left, right, metrics)
        case ast.BoolOp(op=ast.And(), values=[left, right]):
            return _combined(lambda one, other: bool(one and other), left, right, metrics)
        case ast.Call(func=ast.Name(id="IF"), args=[condition, then, *otherwise]):
            met = _value(condition, metrics)
            if met is None:
                return None
            if met:
                return _value(then, metrics) or 0.0
            return _value(otherwise[0], metrics) if otherwise else None
        case ast.Call(func=ast.Name(id="FILL"), args=[filled, ast.Constant(value=int() as number)]):
            point = _value(filled, metrics)
            return float(number) if point is None else point
    raise ValueError(f"not known here: {ast.unparse(node)}")


def _combined(
    function: Callable[[float, float], float], left: ast.expr, right: ast.expr, metrics: Mapping[str, Point]
) -> Point:
    one, other = _value(left, metrics), _value(right, metrics)
    series = [point for node, point in ((left, one), (right, other)) if not isinstance(node, ast.Constant)]
    if all(point is None for point in series):
        return None
    try:
        return float(function(one or 0.0, other or 0.0))
    except ZeroDivisionError:
        return None
