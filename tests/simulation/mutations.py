"""Rules of the shipped code, broken on purpose one at a time, to see that the simulation notices.

What a name calls "of the world" is a rule that the simulation keeps in the shipped code's stead: that shows that
the checks notice, not that the shipped code keeps it, as tests/integration/test_guard.py and test_process.py do.

Left out is what breaks no promise: one sign of life of an owner instead of two only makes the next attempt later,
as tests/integration/test_service_ownership.py shows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from executor import claiming, pool, run, settlement
from executor.claim import CLAIM_TERM
from executor.claiming import Claims
from executor.datahub import client
from executor.datahub.client import DataHub
from executor.datahub.state import StoredState
from executor.disposal import Disposal, dispose
from executor.handover import Handover
from executor.heartbeat import Heartbeat
from executor.lease import Lease
from executor.queue.delivery import LeaseLostError, QueueError
from executor.queue.sqs import SqsQueue
from executor.reporter import Reporter
from executor.run import ActiveRuns, Phase
from executor.settlement import Settlement
from executor.signals import Signals
from tests.simulation import processes
from tests.simulation.plan import HOLD_LIMIT, Plan, draw
from tests.simulation.world import Outcome, collected_rarely, simulate

Change = tuple[object, str, Any]


@dataclass(frozen=True, slots=True)
class Mutation:
    """What is broken, the rules by which that may be noticed, and what is put in whose place."""

    name: str
    noticed_by: tuple[str, ...]
    changes: Sequence[Change]
    where: Callable[[Plan], bool] = lambda _: True  # it can be noticed: no other schedules are tried
    within: int = 3000  # seeds

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have it broken meanwhile."""
        with ExitStack() as stack:
            for owner, attribute, replacement in self.changes:
                stack.enter_context(patch.object(owner, attribute, replacement))
            yield


def first_breach(mutation: Mutation) -> Outcome | None:
    """The first schedule that notices, by the right rules: the others are not looked at."""
    with mutation.applied(), collected_rarely() as collect:
        for seed in range(mutation.within):
            if not mutation.where(draw(seed)):
                continue
            outcome = simulate(seed, rules=mutation.noticed_by)
            if outcome.breach is not None:
                return outcome
            collect()
    return None


async def _extend_without_asking(self: SqsQueue, delivery: Any) -> None:
    await checkpoint()
    delivery.lease_ends = anyio.current_time() + self._visibility


_extend_in_time, _extend, _stop_killed, _handle = (
    Heartbeat._extend_in_time, SqsQueue.extend, Heartbeat._stop_killed, Signals.handle,
)  # fmt: skip


def _extend_at_its_end(self: Heartbeat, run: Any, now: float, tasks: TaskGroup) -> Iterator[float]:
    for moment in _extend_in_time(self, run, now - self.visibility, tasks):
        yield moment + self.visibility


async def _take_it_for_an_outage(self: SqsQueue, delivery: Any) -> None:
    try:
        await _extend(self, delivery)
    except LeaseLostError as error:
        raise QueueError(str(error)) from error


async def _stop_those_that_have_not_begun(self: Heartbeat, watched: Any) -> None:
    await _stop_killed(self, [run for run in watched if run.phase is not Phase.RUNNING])


async def _record_alone(self: Signals, delivery: Any, signal: Any) -> None:
    await _handle(replace(self, active=ActiveRuns()), delivery, signal)


def _just_now(*_: object) -> float:
    return 0.0


async def _settle_in_the_wrong_order(self: Settlement, run: Any, verdict: Any) -> None:
    run.advance(Phase.SETTLING)
    with run.settlement:
        await dispose(self.queue, run.delivery, verdict.disposal, verdict.delay, self.backoff(), run.log)
        if verdict.status is not None:
            await self._store(run, verdict.status, verdict)
    run.advance(Phase.SETTLED)


_patch_input: Callable[..., dict[str, Any]] = client._patch_input


def _unconditional(write: Any) -> dict[str, Any]:
    return {**_patch_input(write), "headers": []}


async def _nothing(*_: object) -> None:
    await checkpoint()


async def _adopt_anything(self: Reporter) -> None:
    self.adopt(await self._datahub.stored_state(self.exec_id))


_stored_state = DataHub.stored_state


async def _never_killed(self: DataHub, exec_id: str) -> StoredState:
    return replace(await _stored_state(self, exec_id), killed=False)


async def _all_killed(_: DataHub, exec_ids: Any) -> set[str]:
    await checkpoint()
    return set(exec_ids)


async def _hand_over_blindly(self: Handover, run: Any) -> None:
    await dispose(self.queue, run.delivery, Disposal.DELETE, 0, self.backoff(), run.log)
    await self._send(run, run.delivery)


def _has_kills(plan: Plan) -> bool:
    return any(request.killed is not None for request in plan.requests)


def _has_pauses(plan: Plan) -> bool:
    return plan.longest_run >= plan.lease and any(kind == "pause" for _, kind, _ in plan.faults)


def _has_short_terms(plan: Plan) -> bool:
    return plan.claim_term < CLAIM_TERM


def _has_few_receives_for_handovers(plan: Plan) -> bool:
    return plan.faultless and plan.few_receives and plan.hold_limit < HOLD_LIMIT


def _has_one_retry(plan: Plan) -> bool:
    return plan.max_attempts == 1 and not plan.faultless


def _always(*_: object) -> bool:
    return True


def _never(*_: object) -> bool:
    return False


async def _not_owned(*_: object) -> bool:
    await checkpoint()
    return False


def _first_attempt(*_: object) -> tuple[int, tuple[str, ...]]:
    return 1, ()


def _no_effect(*_: object, **__: object) -> None:
    return


class EndlessLease(Lease):
    """One that the guard is never told the end of."""

    def __init__(self, _ends: float) -> None:
        super().__init__(float("inf"))

    def renew(self, ends: float) -> None:
        """It has no end."""


TWO, ALIVE, EARLY, VAIN = "two processes", "ended alive", "deleted too early", "killed in vain"
DISOBEYED = "kill not obeyed"

MUTATIONS = (
    Mutation(
        "a lease is extended without asking", (TWO, ALIVE), [(SqsQueue, "extend", _extend_without_asking)]
    ),
    Mutation(
        "a lease is extended too late",
        ("given up in vain",),
        [(Heartbeat, "_extend_in_time", _extend_at_its_end)],
    ),
    Mutation(
        "a stale handle ends no run",
        ("lease outlived", TWO, ALIVE),
        [(SqsQueue, "extend", _take_it_for_an_outage)],
    ),
    Mutation(
        "a claim that was heard too late counts",
        ("prepared too late",),
        [(Reporter, "silent_for", _just_now)],
    ),
    Mutation(
        "processes get a lease without an end", (TWO, ALIVE), [(run, "Lease", EndlessLease)], _has_pauses
    ),
    Mutation(
        "of the world: the guard kills too late",
        (TWO, ALIVE),
        [(processes, "KILL_MARGIN", -60.0)],
        _has_pauses,
    ),
    Mutation(
        "the message is deleted before the end is stored",
        (EARLY,),
        [(Settlement, "settle", _settle_in_the_wrong_order)],
    ),
    Mutation(
        "writes are not conditional", ("overwritten", TWO, ALIVE), [(client, "_patch_input", _unconditional)]
    ),
    Mutation("a request is claimed whoever owns it", (TWO, ALIVE), [(Claims, "_owned", _not_owned)]),
    Mutation(
        "a message that came back proves its owner's death", (TWO, ALIVE), [(Claims, "_watch", _nothing)]
    ),
    Mutation("an owner gives no sign of life", (TWO, ALIVE), [(Reporter, "beat_due", _never)]),
    Mutation(
        "a superseded owner writes on",
        ("overwritten", TWO, ALIVE, "unfounded"),
        [(Reporter, "_read_again", _adopt_anything)],
    ),
    Mutation(
        "of the world: a run is given back before its process is dead",
        (ALIVE, TWO),
        [(processes.SimIngestion, "_end", _nothing)],
    ),
    Mutation("a kill is not recorded", (EARLY,), [(DataHub, "write_kill_signal", _nothing)]),
    Mutation("slots are not given back", ("leaked",), [(pool.Ticket, "give_back", _no_effect)]),
    Mutation(
        "attempts are not counted",
        ("too many attempts",),
        [(claiming, "_attempts", _first_attempt)],
        _has_one_retry,
    ),
    Mutation(
        "whatever runs is taken for cancelled", ("unfounded",), [(DataHub, "kill_signals", _all_killed)]
    ),
    Mutation(
        "the old message goes before the fresh one is held",
        (EARLY,),
        [(Handover, "_hand_over", _hand_over_blindly)],
    ),
    Mutation(
        "the old message goes before the claim names the fresh one",
        (EARLY,),
        [(Reporter, "recorded", _always)],
    ),
    Mutation(
        "the claim's term is not kept", (TWO, ALIVE), [(Reporter, "term_over", _never)], _has_short_terms
    ),
    Mutation(
        "a kill is not read at the claim", (VAIN,), [(DataHub, "stored_state", _never_killed)], _has_kills
    ),
    Mutation(
        "kills are not looked for while a run is prepared",
        (VAIN, DISOBEYED),
        [(Heartbeat, "_stop_killed", _nothing)],
    ),
    Mutation(
        "kills are not looked for while a run goes on",
        (DISOBEYED,),
        [(Heartbeat, "_stop_killed", _stop_those_that_have_not_begun)],
        _has_kills,
    ),
    Mutation("a kill's message ends no run", (DISOBEYED,), [(Signals, "handle", _record_alone)], _has_kills),
    Mutation(
        "a full executor keeps another one's fresh message",
        ("repeated in vain",),
        [(Claims, "pass_on", _nothing)],
        _has_few_receives_for_handovers,
        within=100_000,
    ),
    Mutation("messages are never let go", ("broken",), [(settlement, "dispose", _nothing)]),
)
