"""What was measured, and as how many times the bare CLI."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.harness import Figure, median_of
from benchmarks.warm.ways import WAYS, Cost

Costs = Mapping[str, Sequence[Cost]]  # by way; the runs of a round are at the same place
Database = tuple[str, int]  # name and number of tables

SMALL: Database = ("SQLite", 2)


@dataclass(frozen=True)
class Row:
    """One quantity, each way; `bars` tell how many times the bare CLI a way may take."""

    name: str
    unit: Literal["s", "MB"]
    samples: Mapping[str, Sequence[float]]  # by way
    bars: Mapping[str, float]  # by way

    def ratios(self, way: str) -> list[float]:
        """To the bare CLI, round by round."""
        return [one / bare for bare, one in zip(self.samples["bare"], self.samples[way], strict=True)]

    def figures(self) -> Iterator[Figure]:
        """The bare CLI's own, and the ratios."""
        yield median_of(f"warm: {self.name}: bare", self.samples["bare"], self.unit)
        for way in self.samples:
            if way != "bare":
                yield median_of(f"warm: {self.name}: {way} / bare", self.ratios(way), "x", self.bars.get(way))


@dataclass(frozen=True)
class Study:
    """All that was measured."""

    ingested: Mapping[Database, Costs]
    tested: Costs  # a connection
    nothing: Costs  # a CLI that does nothing: the executor's own part
    held: Mapping[str, float]  # MB (PSS) of `at_once` runs, by way
    at_once: int

    def rows(self) -> Iterator[Row]:
        """Each quantity, with what is asked of it."""
        for (name, tables), costs in self.ingested.items():
            small = (name, tables) == SMALL
            label = f"{name}, {tables:,} tables"
            bars = {"cold": 1.05, "warm": 0.2} if small else {"warm": 1.0}
            yield Row(f"{label}: sent → SUCCESS", "s", walls(costs), bars)
            yield Row(f"{label}: processor time", "s", cpus(costs), {"warm": 0.15} if small else {})
        yield Row("connection test: sent → SUCCESS", "s", walls(self.tested), {"warm": 0.2})
        yield Row("connection test: processor time", "s", cpus(self.tested), {})
        held = {way: [size] for way, size in self.held.items()}
        yield Row(f"{self.at_once} runs at once: memory (PSS)", "MB", held, {"warm": 0.5})

    def figures(self) -> Iterator[Figure]:
        """For the benchmark's table."""
        for row in self.rows():
            yield from row.figures()
        for way in WAYS:
            took = [wall * 1000 for wall in walls(self.nothing)[way]]
            yield median_of(f"warm: a CLI that does nothing: {way}", took, "ms")


def walls(costs: Costs) -> dict[str, list[float]]:
    """Seconds until the outcome is stored, by way."""
    return {way: [run.wall for run in runs] for way, runs in costs.items()}


def cpus(costs: Costs) -> dict[str, list[float]]:
    """Seconds of processor time, by way."""
    return {way: [run.cpu for run in runs] for way, runs in costs.items()}
