"""The schedules that every test run goes through, in parts that run side by side."""

from collections import Counter

import pytest

from tests.simulation.__main__ import run_range
from tests.simulation.plan import draw
from tests.simulation.world import collected_rarely, simulate

PARTS = 8
CHUNK = 1_250  # schedules of a part: half a minute of a processor, far from what ends a test that hangs


@pytest.mark.parametrize("part", range(PARTS))
def test_no_rule_is_broken(part: int) -> None:
    counts, failed, number = run_range(range(part * CHUNK, (part + 1) * CHUNK))

    replay = "".join(
        f"\n  {': '.join(outcome.breach or ())}: python -m tests.simulation --seed {outcome.seed}"
        for outcome in failed[:10]
    )
    assert not failed, f"{len(failed)} of {number} schedules broke a rule:{replay}"
    # A simulation in which nothing happens would find nothing.
    for fault in (
        "crashes",
        "pauses",
        "takeovers",
        "hurries",
        "requests sent twice",
        "hand-over messages sent",
    ):
        assert counts[fault] > CHUNK / 100, f"{fault}: {counts[fault]}"
    assert counts["claims that ran out"] > CHUNK / 1000, counts["claims that ran out"]


def test_datahub_is_away_before_runs_and_amid_them() -> None:
    """A part has too few of these to say so of each."""
    counts = Counter[str]()
    seeds = [seed for seed in range(PARTS * CHUNK) if draw(seed).long_outage]

    with collected_rarely() as collect:
        for seed in seeds[:20]:
            counts.update(simulate(seed).counts)
            collect()

    assert counts["given back, as DataHub was away"] >= 3
    assert counts["processes as DataHub went away for half an hour"] >= 3
