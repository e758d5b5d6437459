"""Who may run a request, and when it is over: DataHub's word before, the message after."""

import pytest

from executor.local.faults import Fault
from tests.integration.service import PATIENT, QUICK, Site


async def test_running_is_stored_before_anything_is_prepared(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        await site.submit("r1")
        await site.settled("r1")
    first = site.datahub.store.history("r1")[0]
    [[_, started]] = site.clis.notes("started")
    assert first.status == "RUNNING"
    assert first.epoch < started
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]
    assert await site.counts() == (1, 0), "only the test's own last message is left"
