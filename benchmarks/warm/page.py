"""docs/performance.md: what stands between its two markers, and the plot beside it."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.warm.plot import Panel, Point, plot
from benchmarks.warm.study import Costs, Row, Study, cpus, walls
from benchmarks.warm.ways import WAYS

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PLOT = "performance.svg"
LEGEND = {
    "bare": "bare CLI",
    "cold": "cold starts",
    "warm": "warm starts",
    "peer": "DataHub's executor",
}
Taken = Callable[[Costs], Mapping[str, Sequence[float]]]  # one quantity of costs, by way


def write_page(study: Study, docs: Path) -> None:
    """Put the figures in their place in `docs`, and draw the plot.

    Raises:
        ValueError: the page has no such place.
    """
    page = docs / "performance.md"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    page.write_text("\n".join([before + BEGIN, "", *_tables(study), "", END + after]))
    (docs / PLOT).write_text(_drawn(study))


def _tables(study: Study) -> Iterator[str]:
    yield f"On {_machine()}, median (least to most):"
    yield ""
    yield "| | bare CLI | cold | warm | DataHub's executor |"
    yield "| --- | --- | --- | --- | --- |"
    yield from map(_line, study.rows())
    yield ""
    yield "A CLI that does nothing, so that the executor's own part is left, in milliseconds:"
    yield ""
    yield "| bare | cold | warm | DataHub's executor |"
    yield "| --- | --- | --- | --- |"
    took = walls(study.nothing)
    yield "| " + " | ".join(_spread([wall * 1000 for wall in took[way]], 0) for way in WAYS) + " |"


def _line(row: Row) -> str:
    def shown(way: str) -> str:
        if way not in row.samples:
            return ""
        bar = row.bars.get(way)
        verdict = "" if bar is None else f", bar {bar:g} {'✓' if median(row.ratios(way)) <= bar else '✗'}"
        return _spread(row.ratios(way), 2) + verdict

    alone = f"{median(row.samples['bare']):,.{0 if row.unit == 'MB' else 2}f} {row.unit}"
    return f"| {row.name} | {alone} | {shown('cold')} | {shown('warm')} | {shown('peer')} |"


def _spread(samples: Sequence[float], digits: int) -> str:
    middle = f"{median(samples):,.{digits}f}"
    if len(samples) == 1:
        return middle
    return f"{middle} ({min(samples):,.{digits}f} to {max(samples):,.{digits}f})"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GB of memory, Linux, Python {platform.python_version()}"


def _drawn(study: Study) -> str:
    quantities = (("from sent to SUCCESS", walls), ("processor time", cpus))
    rows = [
        [Panel(f"{name}: {what}", _series(study, name, taken)) for what, taken in quantities]
        for name in dict.fromkeys(name for name, _ in study.ingested)
    ]
    return plot(rows, LEGEND, "tables", "seconds")


def _series(study: Study, name: str, taken: Taken) -> Mapping[str, Sequence[Point]]:
    sizes = {tables: taken(costs) for (database, tables), costs in study.ingested.items() if database == name}
    return {
        way: [
            Point(tables, min(samples[way]), median(samples[way]), max(samples[way]))
            for tables, samples in sizes.items()
        ]
        for way in WAYS
    }
