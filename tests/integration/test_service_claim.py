"""Who may run a request, and when it is over: DataHub's word before, the message after."""

import pytest

from executor import claiming
from executor.local.faults import Fault
from tests.integration.service import PATIENT, QUICK, Site


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "CANCELLED", "ABORTED", "DUPLICATE"])
async def test_a_request_that_has_ended_is_not_run_and_its_message_deleted(site: Site, status: str) -> None:
    site.fake_cli("fake", QUICK)
    site.write_status("r1", status)
    async with site.service():
        await site.submit("r1")
        await site.event("already_ended")
        await site.until_counts(0, 0)
    assert site.clis.notes("started") == []
    assert site.statuses("r1") == [status]


async def test_a_request_killed_before_it_started_is_cancelled_and_not_run(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    site.kill("r1")
    async with site.service():
        await site.submit("r1")
        ended = await site.ended("r1")
        await site.until_counts(0, 0)
    assert ended.value["report"].startswith("The run was cancelled before it started.")
    assert site.statuses("r1") == ["CANCELLED"]
    assert site.clis.notes("started") == []


async def test_running_is_stored_before_anything_is_prepared(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        await site.submit("r1")
        await site.settled("r1")
        await site.until_counts(0, 0)
    first = site.datahub.store.history("r1")[0]
    [[_, started]] = site.clis.notes("started")
    assert first.status == "RUNNING"
    assert first.epoch < started
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


async def test_an_interrupted_request_runs_as_the_next_attempt(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    site.write_status("r1", "RUNNING", {"executorRun": "somebody", "executorAttempt": "2"})
    await site.submit("r1")
    await site.receive()  # by the one who has been interrupted
    async with site.service():
        ended = await site.settled("r1")
    assert ended.status == "SUCCESS"
    assert "Attempt:   3" in ended.value["report"]
    assert ended.properties["executorAttempt"] == "3"


async def test_a_second_message_for_a_run_of_another_executor_is_held_back(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    site.write_status("r1", "RUNNING", {"executorRun": "somebody", "executorAttempt": "1"})
    async with site.service():
        await site.submit("r1")
        await site.event("runs_elsewhere")
        await site.until_counts(0, 1)
    assert site.statuses("r1") == ["RUNNING"]
    assert site.clis.notes("started") == []


async def test_without_a_number_from_datahub_the_queues_count_tells_the_attempt(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    site.write_status("r1", "RUNNING")
    async with site.service():
        await site.submit("r1")
        ended = await site.settled("r1")
    assert "Attempt:   2" in ended.value["report"]


async def test_a_request_whose_attempts_are_used_up_fails_in_words_and_is_not_run(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    site.write_status("r1", "UP_FOR_RETRY", {"executorRun": "somebody", "executorAttempt": "4"})
    async with site.service(DATAHUB_EXECUTOR_MAX_ATTEMPTS="3"):
        await site.submit("r1")
        ended = await site.ended("r1")
        await site.until_counts(0, 0)
    assert ended.status == "FAILURE"
    assert "interrupted 4 times" in ended.value["report"]
    assert "DATAHUB_EXECUTOR_MAX_ATTEMPTS" in ended.value["report"]
    assert site.clis.notes("started") == []


async def test_a_claim_that_is_never_answered_in_time_is_given_back_and_does_not_count(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "PATIENCE", 2.0)
    monkeypatch.setattr(claiming, "GIVE_BACK_DELAY", 0.0)
    site.fake_cli("fake", QUICK)
    slow = site.datahub.faults.add("patchEntity", Fault.slow(1.0))
    async with site.service(DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT="10", DATAHUB_EXECUTOR_MAX_ATTEMPTS="1"):
        await site.submit("r1")
        await site.event("run_settled", count=3)
        assert site.clis.notes("started") == []
        site.datahub.faults.clear(slow)
        ended = await site.ended("r1")
    assert ended.status == "SUCCESS"
    assert "Attempt:   1" in ended.value["report"]
    assert "Before:" not in ended.value["report"]
    assert set(site.statuses("r1")) == {"RUNNING", "UP_FOR_RETRY", "SUCCESS"}


async def test_the_message_stays_until_datahub_answered_that_the_end_is_stored(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service():
        await site.submit("r1")
        await site.clis.noted("started")
        fault = site.datahub.faults.add("patchEntity", Fault.hang())
        site.clis.let("go")
        await site.clis.noted("ended")
        await site.until(lambda: not site.run_folders())
        assert site.datahub.store.status("r1") == "RUNNING"
        assert await site.counts() == (0, 1)
        site.datahub.faults.clear(fault)
        assert (await site.ended("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)


async def test_the_message_stays_while_datahub_refuses_to_store_the_end(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service():
        await site.submit("r1")
        await site.clis.noted("started")
        site.datahub.faults.add("patchEntity", Fault.status(503))
        site.clis.let("go")
        await site.clis.noted("ended")
        await site.until(lambda: site.answers("patchEntity").count(503) >= 3)
        assert await site.counts() == (0, 1)
        site.datahub.faults.clear()
        assert (await site.ended("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1
