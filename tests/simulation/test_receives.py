"""Receives that start nothing: a message has only so many until its queue gives it up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from tests.simulation.plan import Request, Server, draw
from tests.simulation.processes import SimIngestion
from tests.simulation.world import World

CLEARING = 60.0  # seconds that are needed to clear up after a run


def test_a_run_that_takes_long_to_be_cleared_up_here_does_not_use_up_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = SimIngestion._end

    async def end_slowly(self: SimIngestion, process: Any, grace: Callable[[], float]) -> None:
        await end(self, process, grace)
        await anyio.sleep(CLEARING)

    monkeypatch.setattr(SimIngestion, "_end", end_slowly)
    cut_at, lease = 20.0, 120
    plan = replace(
        draw(1), lease=lease, hold_limit=43_200, claim_term=7200.0, redrive=5,
        executors=1, max_workers=2, max_attempts=3,
        requests=[Request("r1", at=1.0, kind="request")], server=Server(), longest_run=3000.0, longest_build=0.1,
        faults=[(cut_at, "cut_queue_all", 0)], calm=cut_at + 1.05 * lease,
        loss=0.0, slow=0.0, duplicates=0.0, stumbles=0.0, faultless=False, long_outage=False, rates=(1.0,),
    )  # fmt: skip
    world = World(plan)
    monkeypatch.setattr(world, "_fault", lambda *_: world.network.cut(0, "queue", plan.calm, silent=False))
    outcome = world.run()
    assert outcome.breach is None
    assert outcome.counts["redriven"] == 0
    assert outcome.counts["takeovers"] == 1
