"""Runs longer than the queue hides a message: handed over to fresh messages, the limit scaled down."""

import os
import signal
from pathlib import Path

import pytest

from executor.local.faults import Fault
from executor.queue.delivery import HIDDEN_TO_THE_LIMIT
from tests.integration.refusing_queue import refusing_queue
from tests.integration.service import PATIENT, QUICK, Site
from tests.servers import LocalStack
from tests.servers.executor import executor_process

# 20 s in place of 12 hours, of which half are left for the handover. The lease is renewed more often than that.
LIMITED = {"DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10", "DATAHUB_EXECUTOR_MESSAGE_HOLD_LIMIT": "20"}
# What becomes of a second message, whichever of the two comes first.
LEFT_ALONE = {"duplicate_held_back", "runs_elsewhere", "successor_passed_on", "already_ended"}
ONE_AT_A_TIME = {"DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS": "1"}  # then it receives nothing more


async def handed_over(site: Site, times: int) -> list[str]:
    """The messages that the run has gone on under, once it was handed over so often."""
    for count in range(1, times + 1):
        await site.event("handed_over", count=count)
    events = site.events("handed_over")
    return [events[0]["before"], *(event["message_id"] for event in events)]


async def test_a_run_goes_on_over_several_handovers(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**LIMITED):
        first = await site.submit("r1")
        messages = await handed_over(site, 3)
        assert await site.counts() == (0, 1), "of its messages there is one left"
        site.clis.let("go")
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert messages[0] == first
    assert len(set(messages)) == 4
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]
    assert "Attempt:   1" in ended.value["report"]
    assert len(site.clis.notes("started")) == 1


async def test_a_run_of_a_fifo_queue_is_handed_over_too(site: Site, localstack: LocalStack) -> None:
    queue = await localstack.make_queue(fifo=True, redrive=5)
    exec_id = "r" * 200  # longer than the name of a message group may be
    site.fake_cli("fake", PATIENT)
    async with site.service(**LIMITED, DATAHUB_EXECUTOR_QUEUE=queue):
        await site.submit(exec_id, queue=queue)
        await handed_over(site, 2)
        site.clis.let("go")
        assert (await site.settled(exec_id)).status == "SUCCESS"
        await site.until_counts(0, 0, queue)
    assert len(site.clis.notes("started")) == 1


async def test_an_executor_without_room_finds_the_fresh_message_among_those_that_wait(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    site.fake_cli("quick", QUICK)
    waiting = [f"w{number}" for number in range(15)]
    async with site.service(**LIMITED, **ONE_AT_A_TIME):
        await site.submit("r1")
        await site.clis.noted("started")
        for exec_id in waiting:
            await site.submit(exec_id, "quick")
        await site.send({"exec_id": "w7", "executor_id": "remote", "signal": "KILL"})
        await handed_over(site, 1)
        await site.event("kill_signal_recorded")  # it was among them, and needs no room
        assert [exec_id for exec_id, _ in site.clis.notes("started")] == ["r1"]
        await site.until_counts(len(waiting), 1)
        site.clis.let("go")
        ends = {exec_id: (await site.settled(exec_id)).status for exec_id in ["r1", *waiting]}
        await site.until_counts(0, 0)
    assert ends.pop("w7") == "CANCELLED"
    assert set(ends.values()) == {"SUCCESS"}
    assert sorted(exec_id for exec_id, _ in site.clis.notes("started")) == sorted(ends)


async def test_runs_that_are_due_soon_after_one_another_cost_those_that_wait_one_receive(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    site.fake_cli("quick", QUICK)
    waiting = ["w1", "w2", "w3"]
    async with site.service(**LIMITED, DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS="2"):
        for count, exec_id in enumerate(["r1", "r2"], 1):
            await site.submit(exec_id)
            await site.clis.noted("started", count)
        for exec_id in waiting:
            await site.submit(exec_id, "quick")
        await handed_over(site, 2)
        await site.until_counts(len(waiting), 2)
        site.clis.let("go")
        for exec_id in [*waiting, "r1", "r2"]:
            assert (await site.settled(exec_id)).status == "SUCCESS"
    received = {event["exec_id"]: event["receive_count"] for event in site.events("request_received")}
    assert {exec_id: received[exec_id] for exec_id in waiting} == dict.fromkeys(waiting, 2)


async def test_a_request_without_a_receive_to_spare_waits_where_it_was_found(
    site: Site, localstack: LocalStack
) -> None:
    queue = await localstack.make_queue(redrive=5)  # as many as four attempts and their end take
    site.fake_cli("fake", PATIENT)
    site.fake_cli("quick", QUICK)
    waiting = ["w1", "w2", "w3"]
    async with site.service(**LIMITED, **ONE_AT_A_TIME, DATAHUB_EXECUTOR_QUEUE=queue):
        await site.submit("r1", queue=queue)
        await site.clis.noted("started")
        for exec_id in waiting:
            await site.submit(exec_id, "quick", queue=queue)
        await handed_over(site, 1)
        await site.until_counts(0, 1 + len(waiting), queue)
        assert len(site.clis.notes("started")) == 1
        site.clis.let("go")
        for exec_id in ["r1", *waiting]:
            assert (await site.settled(exec_id)).status == "SUCCESS"
        await site.until_counts(0, 0, queue)
    assert [event["receive_count"] for event in site.events("request_received")] == [1, 1, 1, 1]


async def test_a_request_that_waits_where_it_was_found_is_given_back_by_an_executor_that_stops(
    site: Site, localstack: LocalStack
) -> None:
    queue = await localstack.make_queue(redrive=5)
    site.fake_cli("fake", PATIENT)
    async with site.service(**LIMITED, **ONE_AT_A_TIME, DATAHUB_EXECUTOR_QUEUE=queue) as service:
        await site.submit("r1", queue=queue)
        await site.clis.noted("started")
        await site.submit("w1", queue=queue)
        await handed_over(site, 1)
        await site.until_counts(0, 2, queue)
        os.kill(os.getpid(), signal.SIGTERM)
        await site.until_counts(1, 1, queue)
        site.clis.let("go")
        await site.stopped(service)
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]
    assert site.statuses("w1") == []


async def test_another_executor_that_receives_the_fresh_message_passes_it_on(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**LIMITED, **ONE_AT_A_TIME):
        await site.submit("r1")
        await site.clis.noted("started")
        async with site.service(**LIMITED):
            await site.event("successor_passed_on")
            await handed_over(site, 1)
            await site.until_counts(0, 1)
            site.clis.let("go")
            assert (await site.settled("r1")).status == "SUCCESS"
            await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


async def test_a_run_that_ends_during_its_handover_leaves_nothing_behind(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**LIMITED):
        await site.submit("r1")
        await site.clis.noted("started")
        fault = site.datahub.faults.add("patchEntity", Fault.hang())
        await site.event("handover_begun")
        await site.until_counts(0, 2)
        site.clis.let("go")
        await site.clis.noted("ended")
        site.datahub.faults.clear(fault)
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1


async def test_without_the_permission_to_send_a_run_is_ended_before_the_limit_and_tried_again(
    site: Site,
) -> None:
    site.fake_cli("fake", PATIENT)
    async with (
        refusing_queue(site.queue, {"SendMessage"}) as queue,
        site.service(**LIMITED, DATAHUB_EXECUTOR_QUEUE=queue),
    ):
        await site.submit("r1")
        delayed = await site.event("handover_delayed")
        interrupted = await site.stored("r1", "UP_FOR_RETRY")
        [(_, first), (_, second)] = await site.clis.noted("started", 2)
        site.clis.let("go")
        ended = await site.settled("r1")
    assert delayed["permission"] == "sqs:SendMessage"
    assert first < interrupted.epoch < second
    assert [event["reason"] for event in site.events("lease_running_out")] == [HIDDEN_TO_THE_LIMIT]
    assert site.events("lease_lost") == []
    assert len(site.clis.notes("ended")) == 1
    [before] = [line for line in ended.value["report"].splitlines() if line.startswith("Before:")]
    assert before.startswith("Before:    attempt 1 (")
    assert before.endswith("its executor could not renew its hold on the request")


@pytest.mark.parametrize("recorded", [False, True], ids=["before it is recorded", "before the old one goes"])
async def test_an_executor_killed_amid_a_handover_loses_nothing_and_starts_nothing_twice(
    site: Site, tmp_path: Path, *, recorded: bool
) -> None:
    site.fake_cli("fake", PATIENT)
    kept = {"DeleteMessageBatch"} if recorded else set()
    async with refusing_queue(site.queue, kept, "InternalError") as queue:
        env = {**site.localstack.env, **site.env, **LIMITED, "DATAHUB_EXECUTOR_QUEUE": queue}
        async with executor_process(tmp_path / "first", env) as first:
            await site.submit("r1")
            await site.clis.noted("started")
            if not recorded:
                site.datahub.faults.add("patchEntity", Fault.hang())
            begun = await first.until("handover_begun")
            if recorded:
                await site.until(lambda: messages_of_r1(site)[-1] == begun["message_id"])
            await site.until_counts(0, 2)
            first.send(signal.SIGKILL)
            await first.ended()
    assert [message == begun["message_id"] for message in messages_of_r1(site)[-1:]] == [recorded]
    site.datahub.faults.clear()
    async with site.service(**LIMITED):
        await site.clis.noted("started", 2)
        site.clis.let("go")
        ended = await site.settled("r1")
        # The other message may have come back to the first executor already, before it was killed.
        await site.until(
            lambda: {event["event"] for event in [*site.events(), *first.events()]} & LEFT_ALONE != set()
        )
    assert ended.status == "SUCCESS"
    assert "Attempt:   2" in ended.value["report"]
    assert len(site.clis.notes("started")) == 2
    assert len(site.clis.notes("ended")) == 1, "the first one was ended with its executor"


def messages_of_r1(site: Site) -> list[str]:
    """The messages that the run went on under, as DataHub was told."""
    return [record.properties["executorMessage"] for record in site.datahub.store.history("r1")]
