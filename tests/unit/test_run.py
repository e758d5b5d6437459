"""A run's phases, and what may end it. Its cancel scopes need an event loop, hence so do the tests."""

from itertools import pairwise

import anyio
import httpx
import pytest
import structlog

from executor.backoff import Backoff
from executor.claim import Claim
from executor.datahub.client import DataHub
from executor.datahub.transport import Transport
from executor.ingestion.process import TERMINATION_GRACE
from executor.journal import Journal
from executor.queue.delivery import Delivery
from executor.reporter import Reporter
from executor.run import ActiveRuns, IllegalTransitionError, Phase, Run, StopReason

WHOLE_LIFE = [
    Phase.WAITING, Phase.CLAIMING, Phase.PREPARING, Phase.RUNNING, Phase.SETTLING, Phase.SETTLED
]  # fmt: skip
BEFORE_SETTLING = WHOLE_LIFE[:4]
OTHER_REASONS = [reason for reason in StopReason if reason is not StopReason.LEASE_LOST]


@pytest.fixture(scope="module")
def datahub() -> DataHub:
    """A client that nobody calls."""
    return DataHub(Transport(httpx.AsyncClient(), lambda _operation, _failure: None))


@pytest.fixture
async def run(datahub: DataHub) -> Run:
    return make_run(datahub, "one")


def make_run(datahub: DataHub, exec_id: str) -> Run:
    delivery = Delivery("message", "handle", "{}", 1, sent_at=0.0, lease_ends=120.0)
    journal = Journal(None, executor_id="remote", host="host", clock=lambda: 0.0)
    reporter = Reporter(datahub, exec_id, Claim("owner", 0, "message", 1), Backoff, 8.0)
    return Run(exec_id, delivery, journal, reporter, structlog.get_logger())


def bring_to(run: Run, phase: Phase) -> None:
    for step in WHOLE_LIFE[1 : WHOLE_LIFE.index(phase) + 1]:
        run.advance(step)


@pytest.mark.parametrize(("phase", "following"), list(pairwise(WHOLE_LIFE)))
async def test_a_life_goes_from_phase_to_phase(run: Run, phase: Phase, following: Phase) -> None:
    bring_to(run, phase)
    run.advance(following)
    assert run.phase is following


@pytest.mark.parametrize("phase", BEFORE_SETTLING)
async def test_every_phase_may_end_in_settling(run: Run, phase: Phase) -> None:
    bring_to(run, phase)
    run.advance(Phase.SETTLING)
    assert run.phase is Phase.SETTLING


@pytest.mark.parametrize("phase", Phase)
async def test_no_phase_leads_back_or_leaves_one_out(run: Run, phase: Phase) -> None:
    bring_to(run, phase)
    at = WHOLE_LIFE.index(phase)
    allowed = {*WHOLE_LIFE[at + 1 : at + 2], *([Phase.SETTLING] if phase in BEFORE_SETTLING else [])}
    for other in set(Phase) - allowed:
        with pytest.raises(IllegalTransitionError, match=f"one: {phase} does not lead to {other}"):
            run.advance(other)
    assert run.phase is phase


async def test_a_request_that_is_not_known_yet_can_not_be_asked_for(run: Run) -> None:
    with pytest.raises(IllegalTransitionError):
        _ = run.request


@pytest.mark.parametrize("phase", BEFORE_SETTLING)
@pytest.mark.parametrize("reason", StopReason)
async def test_a_stop_ends_the_work_in_every_phase(run: Run, phase: Phase, reason: StopReason) -> None:
    bring_to(run, phase)
    assert run.stop(reason)
    assert run.stop_reason is reason
    assert run.work.cancel_called


@pytest.mark.parametrize("reason", OTHER_REASONS)
async def test_what_was_stopped_is_still_settled(run: Run, reason: StopReason) -> None:
    run.stop(reason)
    assert not run.settlement.cancel_called


@pytest.mark.parametrize("first", OTHER_REASONS)
@pytest.mark.parametrize("second", OTHER_REASONS)
async def test_the_first_reason_counts(run: Run, first: StopReason, second: StopReason) -> None:
    run.stop(first)
    assert not run.stop(second)
    assert run.stop_reason is first


@pytest.mark.parametrize("first", OTHER_REASONS)
async def test_a_lost_lease_outranks_every_other_reason(run: Run, first: StopReason) -> None:
    run.stop(first)
    assert run.stop(StopReason.LEASE_LOST)
    assert run.stop_reason is StopReason.LEASE_LOST
    assert run.settlement.cancel_called
    assert not run.stop(first)
    assert run.stop_reason is StopReason.LEASE_LOST


async def test_a_lease_is_lost_once(run: Run) -> None:
    assert run.stop(StopReason.LEASE_LOST)
    assert not run.stop(StopReason.LEASE_LOST)


@pytest.mark.parametrize("phase", [Phase.SETTLING, Phase.SETTLED])
@pytest.mark.parametrize("reason", OTHER_REASONS)
async def test_a_settling_run_goes_on_settling(run: Run, phase: Phase, reason: StopReason) -> None:
    bring_to(run, phase)
    assert not run.stop(reason)
    assert run.stop_reason is None
    assert not run.work.cancel_called
    assert not run.settlement.cancel_called


async def test_a_lost_lease_ends_the_settling_too(run: Run) -> None:
    bring_to(run, Phase.SETTLING)
    assert run.stop(StopReason.LEASE_LOST)
    assert run.settlement.cancel_called


async def test_the_time_to_obey_is_only_ever_shortened(run: Run) -> None:
    assert run.stop_grace == TERMINATION_GRACE
    run.stop(StopReason.DRAINED)
    assert run.stop_grace == TERMINATION_GRACE
    run.stop(StopReason.DRAINED, grace=2.0)
    run.stop(StopReason.CANCELLED, grace=5.0)
    assert run.stop_grace == 2.0
    run.stop(StopReason.LEASE_LOST, grace=0.0)
    assert run.stop_grace == 0.0


async def test_runs_are_held_by_id_in_the_order_of_their_receipt(datahub: DataHub) -> None:
    active = ActiveRuns()
    runs = [make_run(datahub, name) for name in ("b", "a", "c")]
    for run in runs:
        active.add(run)
    assert list(active) == runs
    assert len(active) == 3
    assert active.get("a") is runs[1]
    for run in active:  # the runs may go meanwhile
        active.remove(run)
    assert len(active) == 0
    assert active.get("a") is None


async def test_emptied_waits_for_the_last_run_to_go(datahub: DataHub) -> None:
    active, events = ActiveRuns(), list[str]()
    first, second, third = (make_run(datahub, name) for name in ("1", "2", "3"))
    await active.emptied()
    active.add(first)
    active.add(second)

    async def wait() -> None:
        await active.emptied()
        events.append("emptied")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            active.remove(second)
            await anyio.wait_all_tasks_blocked()
            assert events == []
            active.remove(first)
            active.add(third)  # before the waiter had its turn
            await anyio.wait_all_tasks_blocked()
            assert events == []
            active.remove(third)
    assert events == ["emptied"]
