"""docs/performance.md takes what was measured: its table between the markers, its plot beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.warm.page import write_page
from benchmarks.warm.study import SMALL, Study
from benchmarks.warm.ways import WAYS, Cost

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
SVG = "{http://www.w3.org/2000/svg}"


def costs(**seconds: float) -> Mapping[str, Sequence[Cost]]:
    return {way: [Cost(seconds[way] * slower, seconds[way]) for slower in (1.0, 1.1, 1.2)] for way in WAYS}


@pytest.fixture
def study() -> Study:
    small = costs(bare=2.0, cold=2.02, warm=0.3, peer=4.0)
    large = costs(bare=7.0, cold=7.1, warm=7.7, peer=9.0)
    return Study(
        ingested={SMALL: small, ("PostgreSQL", 10): small, ("PostgreSQL", 1000): large},
        tested=small,
        nothing=costs(bare=0.001, cold=0.02, warm=0.02, peer=2.0),
        held={"bare": 2000.0, "warm": 500.0, "peer": 2100.0},
        at_once=16,
    )


def test_the_table_replaces_the_one_before_and_leaves_the_rest(study: Study, tmp_path: Path) -> None:
    copy = tmp_path / PAGE.name
    copy.write_text(PAGE.read_text())
    write_page(study, tmp_path)
    once = copy.read_text()
    write_page(study, tmp_path)
    assert copy.read_text() == once
    small = (
        "| 2.20 s | 1.01 (1.01 to 1.01), bar 1.05 ✓ | 0.15 (0.15 to 0.15), bar 0.2 ✓ | 2.00 (2.00 to 2.00) |"
    )
    assert f"| SQLite, 2 tables: sent → SUCCESS {small}" in once
    assert "1.10 (1.10 to 1.10), bar 1 ✗" in once
    assert "| 16 runs at once: memory (PSS) | 2,000 MB |  | 0.25, bar 0.5 ✓ | 1.05 |" in once
    head, tail = (PAGE.read_text().split("<!-- measured: ")[part] for part in (0, 2))
    assert once.startswith(head)
    assert once.endswith(tail)


def test_a_page_without_a_place_for_the_table_is_left_alone(study: Study, tmp_path: Path) -> None:
    (tmp_path / PAGE.name).write_text("no place")
    with pytest.raises(ValueError, match="measured: begin"):
        write_page(study, tmp_path)


def test_the_plot_has_a_line_each_way_that_stays_inside(study: Study, tmp_path: Path) -> None:
    (tmp_path / PAGE.name).write_text(PAGE.read_text())
    write_page(study, tmp_path)
    root = ElementTree.fromstring((tmp_path / "performance.svg").read_text())
    panels = root.findall(f"{SVG}g")
    assert len(panels) == 4
    for panel in panels:
        lines = [line.get("points", "").split() for line in panel.findall(f"{SVG}polyline")]
        assert len(lines) == len(WAYS)
        points = [tuple(map(float, point.split(","))) for line in lines for point in line]
        assert all(52 <= x <= 386 and 34 <= y <= 226 for x, y in points)


def test_a_missed_bar_is_one_of_the_figures(study: Study) -> None:
    missed = [figure.name for figure in study.figures() if figure.reached is False]
    assert missed == ["warm: PostgreSQL, 1,000 tables: sent → SUCCESS: warm / bare"]
