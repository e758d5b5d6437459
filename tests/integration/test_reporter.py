"""How the state of a run gets to DataHub: every write counts, and what is refused is stored short."""

from collections.abc import AsyncIterator

import pytest

from executor.backoff import Backoff
from executor.claim import Claim
from executor.datahub.client import DataHub, open_datahub
from executor.datahub.errors import DataHubError
from executor.datahub.state import RunState, Status
from executor.local.datahub import DataHubStandIn
from executor.local.faults import Fault
from executor.reporter import Reporter

WHOLE = RunState(Status.SUCCESS, 1, 5, "the whole report")


@pytest.fixture
async def datahub(stand_in: DataHubStandIn) -> AsyncIterator[DataHub]:
    """A client of the stand-in."""
    async with open_datahub(stand_in.url, "t", lambda *_: None) as opened:
        yield opened


@pytest.fixture
async def reporter(datahub: DataHub) -> Reporter:
    """Of a run that nobody has written of."""
    reporter = Reporter(datahub, "r1", Claim("owner", 1, "m", 1), lambda: Backoff(first=0.01), 8.0)
    reporter.adopt(await datahub.stored_state("r1"))
    return reporter


async def test_each_write_is_a_sign_of_life_even_where_it_says_the_same(
    datahub: DataHub, reporter: Reporter
) -> None:
    state = RunState(Status.RUNNING, 1, 5, "the report")
    for beat in (1, 2, 3):
        await reporter.store(state)
        stored = await datahub.stored_state("r1")
        claim = Claim.of(stored)
        assert (stored.version, claim.beat if claim else None) == (beat, beat)


@pytest.mark.parametrize(
    ("code", "times", "tried_short", "stored"),
    [
        (413, 1, 1, "short"),
        (403, 1, 1, "short"),
        (403, 2, 1, "whole"),  # nothing passed: it was not for its size
        (401, 1, 0, "whole"),
        (503, 1, 0, "whole"),
    ],
)
async def test_a_report_that_is_refused_for_its_content_is_stored_short(
    code: int, times: int, tried_short: int, stored: str, stand_in: DataHubStandIn, reporter: Reporter
) -> None:
    refusals: list[DataHubError] = []

    def short(error: DataHubError) -> RunState:
        refusals.append(error)
        return RunState(Status.SUCCESS, 1, 5, "the short report")

    stand_in.faults.add("patchEntity", Fault.status(code), times=times)
    await reporter.store(WHOLE, short)
    assert len(refusals) == tried_short
    assert stand_in.store.history("r1")[-1].value["report"] == f"the {stored} report"


async def test_nothing_shorter_is_stored_where_a_read_is_refused(
    stand_in: DataHubStandIn, reporter: Reporter
) -> None:
    """The token may be refused by one of several servers behind an address."""
    stand_in.faults.add("patchEntity", Fault.cut_before_write(), times=1)
    stand_in.faults.add("executionRequest", Fault.status(403), times=2)
    await reporter.store(WHOLE, lambda _: pytest.fail("it is not the size"))
    assert stand_in.store.history("r1")[-1].value["report"] == "the whole report"
