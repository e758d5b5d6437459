"""A schedule that chance brings too seldom: the fresh message of a hand-over is lost while nobody knows what
DataHub was told of it."""

from dataclasses import replace
from unittest.mock import patch

import pytest

from executor.reporter import Reporter
from tests.simulation.checks import MESSAGE
from tests.simulation.fleet import SimExecutor
from tests.simulation.plan import Plan, Request, Server, draw
from tests.simulation.world import Outcome, World

FIRST_MESSAGE = "m1"
SEEDS = range(6)


def plan_of(seed: int) -> Plan:
    """One long run, and nothing that goes wrong by chance."""
    return replace(
        draw(seed),
        lease=120,
        hold_limit=600,
        claim_term=7200.0,
        redrive=None,
        executors=2,
        max_workers=2,
        max_attempts=3,
        drain=0.0,
        requests=[Request("run-0", at=1.0, kind="request")],
        server=Server(),
        longest_run=3000.0,
        longest_build=0.1,
        faults=[],
        calm=1200.0,
        loss=0.0,
        slow=0.0,
        duplicates=0.0,
        stumbles=0.0,
        twins=False,
        faultless=False,
        long_outage=False,
        rates=(1.0, 1.0),
    )


def outcome_of(seed: int) -> Outcome:
    """The first record of a fresh message is stored; its owner alone loses DataHub before it hears of that, and
    then the message to another executor."""
    world, lost = World(plan_of(seed)), list[str]()
    stored = world.checks.stored

    def lose(
        exec_id: str, before: str | None, after: str, properties: dict[str, str], executor: SimExecutor
    ) -> None:
        stored(exec_id, before, after, properties, executor)
        message_id = properties.get(MESSAGE, FIRST_MESSAGE)
        own = executor.worker is not None and executor.worker.active.get(exec_id) is not None
        if lost or not own or after != "RUNNING" or message_id == FIRST_MESSAGE:
            return
        lost.append(message_id)
        world.network.cut(executor.index, "datahub", world.now + 3 * world.plan.lease, silent=False)
        [copy] = [copy for copy in world.sqs.copies if copy.message_id == message_id]
        world.kernel.after(0.5, world.sqs._duplicate, copy)

    with patch.object(world.checks, "stored", lose):
        return world.run()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fresh_message_that_is_lost_while_its_record_is_in_doubt_ends_the_run(seed: int) -> None:
    assert outcome_of(seed).breach is None


def test_a_run_that_went_on_under_its_old_message_would_run_twice() -> None:
    with patch.object(Reporter, "may_be_recorded", lambda *_: False):
        breaches = [outcome.breach[0] for outcome in map(outcome_of, SEEDS) if outcome.breach]
    assert "two processes" in breaches
