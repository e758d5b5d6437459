"""The tables of docs/scaling.md, by name."""

from collections.abc import Callable, Iterable, Sequence

from benchmarks.scaling.costs import PRICES_OF, TaskSize, calls, dollars, sqs_dollars_a_month
from benchmarks.scaling.fleet import Fleet, Outcome
from benchmarks.scaling.load import (
    HOUR,
    MINUTE,
    Load,
    Request,
    long_runs,
    nightly,
    spike,
    steady,
    working_day,
)
from benchmarks.scaling.metrics import BACKLOG_PER_TASK, Lateness
from benchmarks.scaling.policy import Settings

DEFAULT_MAXIMUM = 4  # of the templates
DEPLOYMENT = 10 * HOUR  # when it begins
LIFT_AFTER = HOUR


def loads() -> str:
    """Each load against the policy as it comes: waiting, tasks, money, and what the protection is for."""
    rows = []
    for load in (steady(60), nightly(), nightly(within=HOUR), working_day(), long_runs(), spike()):
        bare, held = (_run(load, protected=protected) for protected in (False, True))
        few = held if held.peak <= DEFAULT_MAXIMUM else _run(load, maximum=DEFAULT_MAXIMUM)
        ended = f"{bare.interrupted} ({bare.lost_seconds / HOUR:.0f} h, {bare.failed})"
        row = [load.name, f"{len(load.requests):,}", *_waits(held), str(held.peak), f"{dollars(held):.2f}"]
        rows.append([*row, _time(few.waited(1.0)), ended, str(held.interrupted)])
    head = ["load", "requests", "waited: median", "95 %", "longest", "tasks at most", "$ a day"]
    head += [f"longest with {DEFAULT_MAXIMUM} tasks at most"]
    return _table([*head, "interrupted without protection (work lost, given up)", "with it"], rows)


def choices() -> str:
    """What the smallest number of tasks and the target change."""
    rows = []
    for load in (working_day(), steady(60), nightly()):
        for minimum, target in ((0, 4), (1, 4), (1, 2), (2, 4)):
            outcome = _run(load, minimum=minimum, target=float(target))
            row = [load.name, str(minimum), str(target), *_waits(outcome), str(outcome.peak)]
            rows.append([*row, f"{dollars(outcome):.2f}"])
    head = ["load", "minimum", "target", "waited: median", "95 %", "longest", "tasks at most", "$ a day"]
    return _table(head, rows)


def lateness() -> str:
    """What comes of metrics that are late, each by itself: for the first task, and for a spike."""
    rows = []
    first = Load("one", [Request(HOUR + 1, 3 * MINUTE)], until=2 * HOUR, unused=0.0)
    for sqs, insights, tracked in (
        *((sqs, insights, BACKLOG_PER_TASK) for sqs, insights in ((1, 1), (1, 2), (1, 3), (2, 2), (2, 1))),
        (2, 1, "(visible + hidden) / running"),
        (1, 2, "IF(visible, (visible + hidden) / running, hidden / running)"),
        (1, 2, "(FILL(visible, 0) + FILL(hidden, 0)) / IF(FILL(running, 0) < 1, 1, FILL(running, 0))"),
    ):
        late = Lateness(sqs * MINUTE, insights * MINUTE)
        row = [f"{sqs} min", f"{insights} min", "as it is" if tracked == BACKLOG_PER_TASK else f"`{tracked}`"]
        for load in (first, first._replace(unused=12 * HOUR)):
            outcome = Fleet(load, Settings(minimum=0, lateness=late, tracked=tracked)).run()
            row.append("for ever" if outcome.unserved else _time(outcome.waited(1.0)))
        outcome = Fleet(spike(), Settings(lateness=late, tracked=tracked)).run()
        rows.append([*row, _time(outcome.waited(0.5)), str(outcome.peak)])
    head = ["SQS late by", "Container Insights late by", "tracked expression", "from zero, the first waits"]
    head += ["of a queue unused for six hours", "spike of 1,000, minimum 1: median", "tasks at most"]
    return _table(head, rows)


def deployments() -> str:
    """A deployment at ten in the morning: how long it takes, and what it ends."""
    rows = []
    for load in (working_day(), steady(60), steady(1000), long_runs()):
        row = [load.name]
        for protected, lift_after in ((False, None), (True, None), (True, LIFT_AFTER)):
            settings = Settings(protected=protected, lift_after=lift_after)
            outcome = Fleet(load, settings, DEPLOYMENT).run()
            row += [_time(outcome.deployed_seconds), str(outcome.interrupted_by_deployment)]
        rows.append(row)
    head = ["load at 10:00", "unprotected", "runs ended", "protected", "runs ended"]
    return _table([*head, "lifted by hand after an hour", "runs ended"], rows)


def magnitudes() -> str:
    """10, 1,000 and 100,000 requests an hour, and what they ask of everybody."""
    rows = []
    for an_hour, hours, settings in (
        (10, 24, Settings(minimum=0, maximum=5)),
        (1_000, 24, Settings(minimum=10, maximum=60)),
        (100_000, 1, Settings(minimum=1_500, maximum=2_500)),
    ):
        load = steady(an_hour, until=hours * HOUR)
        outcome = Fleet(load, settings).run()
        asked = calls(outcome, load.until)
        row = [f"{an_hour:,}", f"{settings.minimum:,} to {settings.maximum:,}", *_waits(outcome)]
        row += [f"{outcome.peak:,}", f"{outcome.peak * TaskSize().vcpus:,.0f}", f"{outcome.peak_in_flight:,}"]
        row += [
            f"{dollars(outcome) / hours:,.2f}",
            f"{asked.sqs:,.1f}",
            f"{sqs_dollars_a_month(asked.sqs):,.2f}",
        ]
        rows.append(
            [*row, f"{asked.reads:,.1f}", f"{asked.writes_at_least:,.1f} to {asked.writes_at_most:,.1f}"]
        )
    head = [
        "requests an hour",
        "tasks allowed",
        "waited: median",
        "95 %",
        "longest",
        "tasks at most",
        "vCPUs",
    ]
    head += ["messages in flight", "$ an hour, Fargate", "SQS calls a second", "$ a month, SQS"]
    return _table([*head, "DataHub reads a second", "DataHub writes a second"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "loads": loads,
    "choices": choices,
    "lateness": lateness,
    "deployments": deployments,
    "magnitudes": magnitudes,
}


def assumptions() -> str:
    """The line that goes above them."""
    size = TaskSize()
    return (
        f"A task: four runs at a time, {size.vcpus:g} vCPU, {size.memory:g} GB, {size.storage:g} GB of storage, "
        f"${size.hourly:.4f} an hour (us-east-1, Linux/x86, on demand, {PRICES_OF})."
    )


def _run(load: Load, **choices: float) -> Outcome:
    return Fleet(load, Settings(**choices)).run()  # type: ignore[arg-type]


def _waits(outcome: Outcome) -> list[str]:
    return [_time(outcome.waited(share)) for share in (0.5, 0.95, 1.0)]


def _time(seconds: float) -> str:
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 3 * HOUR else f"{seconds / HOUR:.1f} h"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
