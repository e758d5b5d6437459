"""Several executors and one request: who owns it, when it is taken over, and what nobody may write over."""

import json

import pytest

from executor.local.store import REQUEST_URN_PREFIX, Record, Write
from tests.integration.refusing_queue import refusing_queue
from tests.integration.service import PATIENT, QUICK, RESULT, Site

SHORT_LEASE = {"DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10"}
ONE_AT_A_TIME = {"DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS": "1"}  # then it receives nothing more
OPENAPI_READ = "executionRequest"  # how a claimant looks at what is stored


def claim(message_id: str, receives: int = 1, *, beat: int = 1, attempt: int = 1) -> dict[str, str]:
    """What an executor that this test plays has written of a run."""
    return {
        "executorRun": "somebody",
        "executorAttempt": str(attempt),
        "executorBeat": str(beat),
        "executorMessage": message_id,
        "executorReceives": str(receives),
        "executorHost": "old-host",
    }


def before(record: Record) -> list[str]:
    """What a report says of the attempts before it."""
    lines = record.value["report"].splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.startswith("Before:")]


async def test_a_second_message_waits_while_the_first_ones_run_goes_on_elsewhere(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**ONE_AT_A_TIME):
        await site.submit("r1")
        await site.clis.noted("started")
        await site.submit("r1")
        second = await site.receive()
        async with site.service(**ONE_AT_A_TIME):
            await site.event("runs_elsewhere")
            await site.until_counts(0, 2)
            site.clis.let("go")
            assert (await site.settled("r1")).status == "SUCCESS"
            await site.until_counts(0, 1)
            await site.show_again(second)
            await site.event("already_ended")
            await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


async def test_a_message_delivered_to_two_executors_at_once_is_run_by_the_first(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    await site.submit("r1")
    handle = await site.receive()
    async with site.service(**SHORT_LEASE, **ONE_AT_A_TIME):
        await site.clis.noted("started")
        async with site.service(**SHORT_LEASE, **ONE_AT_A_TIME):
            await site.show_again(handle)
            await site.event("runs_elsewhere")
            site.clis.let("go")
            ended = await site.settled("r1")
            await site.until_counts(0, 0)
    assert ended.status == "SUCCESS"
    assert "Attempt:   1" in ended.value["report"]
    assert len(site.clis.notes("started")) == 1
    assert site.events("owner_gone") == []


async def test_a_run_whose_owner_is_silent_is_taken_over_and_says_so(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    message_id = await site.submit("r1")
    await site.receive()
    site.write_status("r1", "RUNNING", claim(message_id))
    async with site.service(**SHORT_LEASE):
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert ended.status == "SUCCESS"
    assert "Attempt:   2" in ended.value["report"]
    assert before(ended) == ["attempt 1 (old-host): its executor died, or lost the queue"]
    assert site.events("owner_gone")[0]["host"] == "old-host"


async def test_an_owner_that_gives_signs_of_life_while_it_is_watched_is_left_alone(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    message_id = await site.submit("r1")
    await site.receive()
    site.write_status("r1", "RUNNING", claim(message_id))
    async with site.service(DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT="60"):
        await site.until(lambda: len(site.datahub.calls.of(OPENAPI_READ)) >= 2)
        write_beat(site, claim(message_id, beat=2))
        write_beat(site, claim(message_id, beat=3))
        await site.event("runs_elsewhere")
        await site.until_counts(0, 1)
    assert site.statuses("r1") == ["RUNNING"]
    assert site.clis.notes("started") == []


async def test_the_last_sign_of_an_owner_that_is_gone_does_not_keep_its_run_from_going_on(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    message_id = await site.submit("r1")
    await site.receive()
    site.write_status("r1", "RUNNING", claim(message_id))
    async with site.service(**SHORT_LEASE):
        await site.until(lambda: len(site.datahub.calls.of(OPENAPI_READ)) >= 2)
        write_beat(site, claim(message_id, beat=2))
        ended = await site.settled("r1")
    assert ended.status == "SUCCESS"
    assert site.events("runs_elsewhere") == []


async def test_an_owner_that_ends_its_run_while_it_is_watched_is_believed(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    message_id = await site.submit("r1")
    await site.receive()
    site.write_status("r1", "RUNNING", claim(message_id))
    async with site.service(DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT="60"):
        await site.until(lambda: len(site.datahub.calls.of(OPENAPI_READ)) >= 2)
        site.write_status("r1", "SUCCESS", claim(message_id, beat=2))
        await site.event("already_ended")
        await site.until_counts(0, 0)
    assert site.clis.notes("started") == []


async def test_a_returned_message_is_not_watched_where_its_owner_gave_the_run_back(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    message_id = await site.submit("r1")
    await site.receive()
    reason = "attempt 1 (old-host): its executor is stopping"
    properties = claim(message_id) | {"executorAttemptsEnded": json.dumps([reason])}
    site.write_status("r1", "UP_FOR_RETRY", properties)
    async with site.service(DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT="60"):
        ended = await site.settled("r1")
    assert ended.status == "SUCCESS"
    assert before(ended) == [reason]
    assert site.events("owner_gone") == []


async def test_when_the_attempts_are_used_up_the_report_has_how_each_of_them_ended(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    message_id = await site.submit("r1")
    await site.receive()
    ends = ["attempt 1 (a): its executor is stopping", "attempt 2 (b): its executor died, or lost the queue"]
    properties = claim(message_id, attempt=3) | {"executorAttemptsEnded": json.dumps(ends)}
    site.write_status("r1", "RUNNING", properties)
    async with site.service(**SHORT_LEASE, DATAHUB_EXECUTOR_MAX_ATTEMPTS="2"):
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert ended.status == "FAILURE"
    assert "interrupted 3 times" in ended.value["report"]
    assert before(ended) == [*ends, "attempt 3 (old-host): its executor died, or lost the queue"]
    assert site.clis.notes("started") == []


async def test_where_datahub_ignores_conditions_the_queues_lease_still_keeps_others_away(site: Site) -> None:
    site.datahub.ignores_conditions = True
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_LEASE) as first, site.service(**SHORT_LEASE) as second:
        await site.submit("r1")
        await site.clis.noted("started")

        async def extensions() -> float:
            name = "datahub_executor_lease_extensions_total"
            return await first.metric(name) + await second.metric(name)

        while await extensions() < 8:  # more than a lease's time
            await site.offered(wait=1)
        site.clis.let("go")
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert "Attempt:   1" in ended.value["report"]
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


@pytest.mark.parametrize("code", ["ReceiptHandleIsInvalid", "AWS.SimpleQueueService.MessageNotInflight"])
async def test_a_receipt_handle_that_aws_calls_stale_ends_the_run_and_covers_nothing(
    site: Site, code: str
) -> None:
    site.fake_cli("fake", PATIENT)
    refused: set[str] = set()

    def somebody_else_has_it() -> None:
        write_beat(site, claim("m1", 2, attempt=2))

    async with (
        refusing_queue(site.queue, refused, code, somebody_else_has_it) as queue,
        site.service(**SHORT_LEASE, DATAHUB_EXECUTOR_QUEUE=queue),
    ):
        await site.submit("r1")
        await site.clis.noted("started")
        refused |= {"ChangeMessageVisibilityBatch", "DeleteMessageBatch"}
        await site.event("lease_lost")
        settled = await site.event("run_settled")
    last = site.datahub.store.history("r1")[-1]
    assert (settled["status"], settled["message"]) == ("none", "leave")
    assert (last.status, last.properties["executorRun"]) == ("RUNNING", "somebody")
    assert site.clis.notes("ended") == []


async def test_a_run_that_was_claimed_by_another_executor_stops_by_itself(site: Site) -> None:
    """Its own hold on the message looks fine to it: the claim in DataHub is what counts."""
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_LEASE):
        message_id = await site.submit("r1")
        await site.clis.noted("started")
        write_beat(site, claim(message_id, 2, attempt=2))
        await site.event("superseded")
        settled = await site.event("run_settled")
    last = site.datahub.store.history("r1")[-1]
    assert (settled["status"], settled["message"]) == ("none", "leave")
    assert (last.status, last.properties["executorRun"]) == ("RUNNING", "somebody")
    assert site.clis.notes("ended") == []


def write_beat(site: Site, properties: dict[str, str]) -> None:
    """Write RUNNING as its owner does: the duration grows, or nothing would be stored."""
    history = site.datahub.store.history("r1")
    value = {"status": "RUNNING", "durationMs": history[-1].value.get("durationMs", 0) + 1}
    metadata = {"properties": properties}
    site.datahub.store.apply(
        [Write(REQUEST_URN_PREFIX + "r1", RESULT, value=value, system_metadata=metadata)]
    )
