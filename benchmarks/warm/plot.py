"""A plot as SVG: panels side by side and one below the other, both axes logarithmic and the same in all of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log

WIDTH, HEIGHT = 400, 270  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 34, 44  # its margins
LEGEND = 40  # above the panels
FONT = 'font-family="sans-serif" font-size="12" fill="#222222"'
TICKS = [digit * 10.0**power for power in range(-2, 3) for digit in (1, 2, 5)]

# Colour, width of the line, shape: told apart by the colour-blind, too (Okabe and Ito's palette), and where
# one line lies on another: the first is the widest.
STYLES: Mapping[str, tuple[str, int, str]] = {
    "bare": ("#aaaaaa", 5, "circle"),
    "cold": ("#0072b2", 2, "square"),
    "warm": ("#009e73", 2, "triangle"),
    "peer": ("#d55e00", 2, "diamond"),
}
_POLYGONS = {
    "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
    "triangle": ((0, -5.5), (5, 4), (-5, 4)),
    "diamond": ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
}


@dataclass(frozen=True)
class Point:
    """The middle of several samples, and how far they spread."""

    x: float
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Panel:
    """One set of axes; the series have the keys of STYLES."""

    title: str
    series: Mapping[str, Sequence[Point]]


class _Scale:
    """Where a value lies between two pixels."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self._low, self._high = log(min(values)), log(max(values))
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        share = (log(value) - self._low) / (self._high - self._low)
        return round(self._begin + share * (self._end - self._begin), 1)


def plot(rows: Sequence[Sequence[Panel]], names: Mapping[str, str], x_label: str, y_label: str) -> str:
    """Draw the panels; `names` are the legend's words, by series."""
    points = [point for row in rows for panel in row for line in panel.series.values() for point in line]
    x_ticks = sorted({point.x for point in points})
    low, high = min(point.low for point in points), max(point.high for point in points)
    # From the tick below the lowest value to the one above the highest.
    y_ticks = [
        tick
        for tick, below, above in zip(TICKS[1:], TICKS, TICKS[2:], strict=False)
        if above > low and below < high
    ]
    width, height = WIDTH * max(map(len, rows)), LEGEND + HEIGHT * len(rows)
    size = f'width="{width}" height="{height}"'
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size} {FONT}>',
        f'<rect {size} fill="#ffffff"/>',
        *_legend(names),
    ]
    for down, row in enumerate(rows):
        for right, panel in enumerate(row):
            drawn.append(f'<g transform="translate({right * WIDTH} {LEGEND + down * HEIGHT})">')
            drawn += _panel(panel, x_ticks, y_ticks, x_label, y_label)
            drawn.append("</g>")
    return "\n".join([*drawn, "</svg>", ""])


def _legend(names: Mapping[str, str]) -> Iterator[str]:
    x = LEFT
    for key, name in names.items():
        colour, stroke, _ = STYLES[key]
        yield f'<path d="M{x} 22h26" stroke="{colour}" stroke-width="{stroke}"/>'
        yield _marker(key, x + 13, 22)
        yield f'<text x="{x + 33}" y="26">{escape(name)}</text>'
        x += 65 + 7 * len(name)


def _panel(
    panel: Panel, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> Iterator[str]:
    across = _Scale(x_ticks, LEFT + 12, WIDTH - RIGHT - 12)
    up = _Scale(y_ticks, HEIGHT - BOTTOM, TOP)
    yield f'<text x="{LEFT}" y="20" font-weight="bold" font-size="13">{escape(panel.title)}</text>'
    for tick in y_ticks:
        yield f'<path d="M{LEFT} {up(tick)}H{WIDTH - RIGHT}" stroke="#e0e0e0"/>'
        yield f'<text x="{LEFT - 6}" y="{up(tick) + 4}" text-anchor="end">{tick:g}</text>'
    for tick in x_ticks:
        yield f'<path d="M{across(tick)} {TOP}V{HEIGHT - BOTTOM}" stroke="#f0f0f0"/>'
        yield f'<text x="{across(tick)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:,g}</text>'
    yield (
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#888888"/>'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    for key, points in panel.series.items():
        yield from _line(key, points, across, up)


def _line(key: str, points: Sequence[Point], across: _Scale, up: _Scale) -> Iterator[str]:
    colour, stroke, _ = STYLES[key]
    path = " ".join(f"{across(point.x)},{up(point.middle)}" for point in points)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>'
    for point in points:
        x = across(point.x)
        yield f'<path d="M{x} {up(point.low)}V{up(point.high)}" stroke="{colour}"/>'
        yield _marker(key, x, up(point.middle))


def _marker(key: str, x: float, y: float) -> str:
    colour, _, shape = STYLES[key]
    if shape == "circle":
        return f'<circle cx="{x}" cy="{y}" r="7" fill="{colour}"/>'
    corners = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in _POLYGONS[shape])
    return f'<polygon points="{corners}" fill="{colour}"/>'
