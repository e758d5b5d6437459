"""The simulation behind docs/scaling.md: its tables are those of the document, and it keeps to the policy."""

from pathlib import Path

import pytest

from benchmarks.scaling.__main__ import main
from benchmarks.scaling.costs import BEAT, POLL, PROGRESS, RECEIVES, RENEWAL
from benchmarks.scaling.fleet import Fleet
from benchmarks.scaling.load import HOUR, Load, Request, long_runs, nightly, spike, steady
from benchmarks.scaling.metrics import (
    BACKLOG_PER_TASK,
    WAITS_FOR_A_TASK,
    Datapoints,
    Lateness,
    Minute,
    reckoned,
)
from benchmarks.scaling.policy import AutoScaling, Settings
from benchmarks.scaling.tables import TABLES, assumptions

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"
SQS_LATE = Lateness(sqs=120.0, insights=60.0)
INSIGHTS_LATE = Lateness(sqs=60.0, insights=180.0)


def after(settings: Settings, *points: tuple[int, int, int], unused: float = 0.0) -> list[int]:
    """The desired count, minute by minute; a point is visible and in-flight messages, and running tasks."""
    scaling, desired = AutoScaling(settings, used_at=-unused), list[int]()
    for number, point in enumerate(points):
        scaling.minute(Minute(60.0 * number, *point))
        desired.append(scaling.desired)
    return desired


@pytest.mark.parametrize(
    "name", [name for name in TABLES if name != "lateness"]
)  # that one is asked for below
def test_the_documents_tables_are_what_the_simulation_prints(name: str) -> None:
    assert TABLES[name]() in DOCUMENT.read_text(), f"run python -m benchmarks.scaling {name}"


def test_the_document_says_what_they_assume() -> None:
    said = DOCUMENT.read_text()
    assert assumptions() in said
    policy = said.partition("## The policy")[2].partition("\n## ")[0]
    for expression in (BACKLOG_PER_TASK, WAITS_FOR_A_TASK):
        assert f"`{expression}`" in policy


def test_the_document_says_what_a_run_sends_and_when_that_reaches_a_limit() -> None:
    limits = DOCUMENT.read_text().partition("## What allows how much")[2]
    requests = steady(1000).requests
    an_hour = HOUR * len(requests) / sum(request.seconds for request in requests)  # for each that runs
    for said in (
        f"| 1 read every {POLL:g} s (kill signals); 1 write every {BEAT:g} s, or every {PROGRESS:g} s while",
        f"| SQS | while it runs | 1 every {RENEWAL:g} s (the lease)",
        f"| SQS | an idle task | {60 * RECEIVES:g} a minute",
        f"| FIFO: some {300 * RENEWAL * an_hour // 1000:g},000 an hour",
        f"| {120_000 * an_hour // 100_000 / 10:g} million requests an hour |",
        f"| {5_000 * 4 * an_hour // 10_000:g}0,000 requests an hour |",
    ):
        assert said in limits, said


def test_one_table_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lateness"]) == 0
    said, name, table = capsys.readouterr().out.strip().split("\n\n")
    assert (said, name) == (assumptions(), "lateness")
    assert table in DOCUMENT.read_text()
    with pytest.raises(SystemExit):
        main(["nonsense"])


@pytest.mark.parametrize(
    ("points", "backlog"),
    [
        (Datapoints(visible=6, hidden=4, running=2, desired=2), 5.0),
        (Datapoints(visible=6, hidden=None, running=2, desired=2), 3.0),  # nothing is in flight
        (Datapoints(visible=0, hidden=4, running=2, desired=2), 2.0),
        (
            Datapoints(visible=None, hidden=None, running=2, desired=2),
            None,
        ),  # and it is not that nothing waits
        (
            Datapoints(visible=6, hidden=4, running=None, desired=None),
            None,
        ),  # no task runs, or it is not known
        (Datapoints(visible=0, hidden=4, running=None, desired=None), None),
    ],
)
def test_a_minute_whose_metrics_are_not_there_is_no_datapoint(
    points: Datapoints, backlog: float | None
) -> None:
    assert reckoned(BACKLOG_PER_TASK, points) == backlog


def test_it_scales_out_after_three_datapoints_the_latest_metric_of_which_is_two_minutes_late() -> None:
    assert after(Settings(), *[(40, 0, 1)] * 5) == [1, 1, 1, 1, 10]


def test_what_is_starting_is_not_asked_for_twice() -> None:
    """The metric is late: it still shows one task when ten run."""
    busy, started = [(40, 0, 1)] * 5, [(40, 0, 10)] * 4
    assert after(Settings(), *busy, *started)[-1] == 10


@pytest.mark.parametrize(
    ("tracked", "late"),
    [
        ("(visible + hidden) / running", SQS_LATE),
        ("IF(visible, (visible + hidden) / running, hidden / running)", INSIGHTS_LATE),
        ("(FILL(visible, 0) + FILL(hidden, 0)) / running", SQS_LATE),
    ],
)
def test_where_the_newest_datapoint_is_always_0_it_never_scales_out(tracked: str, late: Lateness) -> None:
    """Which is why the templates have none of these."""
    assert after(Settings(tracked=tracked, lateness=late), *[(400, 4, 1)] * 60)[-1] == 1


@pytest.mark.parametrize("late", [SQS_LATE, Lateness(180.0, 60.0), INSIGHTS_LATE])
def test_whichever_metric_is_late_it_scales_out_all_the_same(late: Lateness) -> None:
    assert after(Settings(lateness=late), *[(400, 4, 1)] * 12)[-1] == 100
    assert after(Settings(minimum=0, lateness=late), *[(9, 0, 0)] * 12)[-1] >= 1


def test_it_scales_in_after_fifteen() -> None:
    desired = after(Settings(minimum=2), *[(40, 0, 2)] * 5, *[(0, 4, 10)] * 20)
    assert desired[5:21] == [10] * 16
    assert desired[-1] == 2


def test_during_a_deployment_it_does_not_scale_in() -> None:
    scaling = AutoScaling(Settings(minimum=1))
    scaling.desired = 5
    for number in range(30):
        scaling.minute(Minute(60.0 * number, 0, 0, 5), deploying=True)
    assert scaling.desired == 5


def test_from_zero_one_task_is_started_by_two_minutes_with_a_message() -> None:
    settings = Settings(minimum=0)
    assert after(settings, (0, 0, 0), (9, 0, 0), (9, 0, 0), (9, 0, 0), (9, 0, 0)) == [0, 0, 0, 1, 1]
    assert after(settings, (0, 0, 0), (9, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0))[-1] == 0


def test_after_six_hours_without_use_the_queues_metrics_come_a_quarter_of_an_hour_late() -> None:
    assert after(Settings(minimum=0), *[(9, 0, 0)] * 20, unused=7 * HOUR) == [0] * 15 + [1] * 5


def test_a_second_task_is_not_for_the_first_tasks_alarm_to_start_once_one_runs() -> None:
    started = [(9, 0, 0)] * 4
    assert after(Settings(minimum=0, target=100.0), *started, *[(9, 4, 1)] * 30)[-1] == 1


def test_tasks_that_never_run_have_no_datapoint_and_are_followed_by_others_up_to_the_maximum() -> None:
    desired = after(Settings(minimum=0, maximum=3), *[(9, 0, 0)] * 20)
    assert desired == [0, 0] + [1] * 5 + [2] * 5 + [3] * 8


def test_the_first_task_is_not_scaled_in_before_it_has_started() -> None:
    assert after(Settings(minimum=0), *[(0, 0, 0)] * 20, *[(1, 0, 0)] * 4, *[(0, 1, 1)] * 20)[22:] == [1] * 22


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


def test_requests_that_no_task_is_ever_started_for_are_counted_as_such() -> None:
    load = Load("one", [Request(HOUR, 60.0)], until=2 * HOUR, unused=0.0)
    outcome = Fleet(load, Settings(minimum=0, maximum=0)).run()
    assert (outcome.unserved, outcome.waits, outcome.peak) == (1, [], 0)
