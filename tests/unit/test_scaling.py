"""The simulation behind docs/scaling.md: its tables are those of the document, and it keeps to the policy."""

from pathlib import Path

import pytest

from benchmarks.scaling.__main__ import main
from benchmarks.scaling.fleet import Fleet
from benchmarks.scaling.load import HOUR, Load, Request, long_runs, nightly, spike, steady
from benchmarks.scaling.policy import AutoScaling, Datapoint, Settings
from benchmarks.scaling.tables import TABLES, assumptions

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


def after(settings: Settings, *points: tuple[int, int, int]) -> list[int]:
    """The desired count, minute by minute; a point is visible and in-flight messages, and running tasks."""
    scaling, desired = AutoScaling(settings), list[int]()
    for number, point in enumerate(points):
        scaling.minute(Datapoint(60.0 * number, *point))
        desired.append(scaling.desired)
    return desired


@pytest.mark.parametrize("name", TABLES)
def test_the_documents_tables_are_what_the_simulation_prints(name: str) -> None:
    assert TABLES[name]() in DOCUMENT.read_text(), f"run python -m benchmarks.scaling {name}"


def test_the_document_says_what_they_assume() -> None:
    assert assumptions() in DOCUMENT.read_text()


def test_one_table_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["choices"]) == 0
    assert TABLES["choices"]() in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["nonsense"])


def test_it_scales_out_after_three_datapoints_that_arrive_a_minute_late() -> None:
    assert after(Settings(), *[(40, 0, 1)] * 4) == [1, 1, 1, 10]


def test_what_is_starting_is_not_asked_for_twice() -> None:
    """The metric is late: it still shows one task when ten run."""
    busy, started = [(40, 0, 1)] * 4, [(40, 0, 10)] * 4
    assert after(Settings(), *busy, *started)[-1] == 10


def test_it_scales_in_after_fifteen() -> None:
    desired = after(Settings(minimum=2), *[(40, 0, 2)] * 4, *[(0, 4, 10)] * 20)
    assert desired[4:19] == [10] * 15
    assert desired[-1] == 2


def test_during_a_deployment_it_does_not_scale_in() -> None:
    scaling = AutoScaling(Settings(minimum=1))
    scaling.desired = 5
    for number in range(30):
        scaling.minute(Datapoint(60.0 * number, 0, 0, 5), deploying=True)
    assert scaling.desired == 5


def test_from_zero_one_task_is_started_by_the_step() -> None:
    settings = Settings(minimum=0)
    assert after(settings, (0, 0, 0), (9, 0, 0), (9, 0, 0), (9, 0, 0), (9, 0, 0)) == [0, 0, 1, 1, 1]


def test_the_first_task_is_not_scaled_in_before_it_has_started() -> None:
    assert after(Settings(minimum=0), *[(0, 0, 0)] * 20, *[(1, 0, 0)] * 3, *[(0, 1, 1)] * 20)[22:] == [1] * 21


@pytest.mark.parametrize("load", [steady(60), nightly(), long_runs(), spike()], ids=lambda load: load.name)
@pytest.mark.parametrize("deploy_at", [None, 12 * HOUR])
def test_protected_no_run_is_ever_interrupted(load: Load, deploy_at: float | None) -> None:
    outcome = Fleet(load, Settings(minimum=0), deploy_at).run()
    assert (outcome.interrupted, outcome.failed, len(outcome.waits)) == (0, 0, len(load.requests))
    assert outcome.run_seconds == pytest.approx(sum(request.seconds for request in load.requests))


def test_unprotected_a_long_run_is_interrupted_by_a_deployment_and_starts_again() -> None:
    load = Load("one", [Request(HOUR, 2 * HOUR)], until=6 * HOUR)
    outcome = Fleet(load, Settings(protected=False), deploy_at=2 * HOUR).run()
    assert (outcome.interrupted, outcome.failed) == (1, 0)
    assert outcome.lost_seconds == pytest.approx(HOUR, abs=200)
    assert outcome.run_seconds == 2 * HOUR


def test_slots_are_never_more_than_the_tasks_have() -> None:
    outcome = Fleet(steady(1000, until=3 * HOUR), Settings(maximum=5)).run()
    assert outcome.peak_in_flight <= 5 * 4
    assert outcome.peak == 5


def test_the_same_load_has_the_same_outcome() -> None:
    first, second = (Fleet(long_runs(), Settings(protected=False)).run() for _ in range(2))
    assert first == second
