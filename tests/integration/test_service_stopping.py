"""SIGTERM: runs are let go on, then given back to others, and nothing is left behind."""

import os
import signal

import anyio

from executor.local.faults import Fault
from tests.integration.service import BOTH_STARTS, PATIENT, QUICK, Site

# A receive under way is seen to its end: a quarter of the visibility time-out.
SHORT_POLLS = {"DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10"}


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@BOTH_STARTS
async def test_a_stopping_service_lets_its_runs_end(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_POLLS) as service:
        await site.submit("r1")
        await site.clis.noted("started")
        terminate()
        await site.event("draining")
        site.clis.let("go")
        await site.stopped(service)
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]
    assert await site.counts() == (0, 0)


async def test_a_stopping_service_starts_nothing_more(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_POLLS) as service:
        await site.submit("r1")
        await site.clis.noted("started")
        terminate()
        await site.event("draining")
        await site.submit("r2")
        site.clis.let("go")
        await site.stopped(service)
    assert site.statuses("r2") == []
    assert await site.counts() == (1, 0)


@BOTH_STARTS
async def test_after_the_drain_time_out_another_service_starts_the_run_again_at_once(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_POLLS, DATAHUB_EXECUTOR_DRAIN_TIMEOUT="0.2") as service:
        await site.submit("r1")
        await site.clis.noted("started")
        terminate()
        await site.stopped(service)
    assert site.statuses("r1") == ["RUNNING", "UP_FOR_RETRY"]
    assert "executor is stopping" in site.datahub.store.history("r1")[-1].value["report"]
    assert await site.counts() == (1, 0), "its message can be received at once"
    async with site.service(**SHORT_POLLS):
        await site.clis.noted("started", 2)
        site.clis.let("go")
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert ended.status == "SUCCESS"
    assert "Attempt:   2" in ended.value["report"]
    assert len(site.clis.notes("ended")) == 1, "the first one was ended before"


async def test_a_stopping_service_does_not_hold_on_to_what_it_has_not_claimed(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service(**SHORT_POLLS, DATAHUB_EXECUTOR_DRAIN_TIMEOUT="600") as service:
        site.datahub.faults.add("*", Fault.status(503))
        await site.submit("r1")
        await site.event("request_received")
        terminate()
        await site.stopped(service)
    assert site.clis.notes("started") == []
    assert await site.counts() == (1, 0), "it can be received at once"


@BOTH_STARTS
async def test_a_second_signal_hurries(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_POLLS, DATAHUB_EXECUTOR_DRAIN_TIMEOUT="600") as service:
        await site.submit("r1")
        await site.clis.noted("started")
        terminate()
        await site.event("draining")
        terminate()
        await site.stopped(service)
    assert site.statuses("r1") == ["RUNNING", "UP_FOR_RETRY"]
    assert await site.counts() == (1, 0)


async def test_requests_that_wait_for_a_slot_are_given_back_untouched(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_POLLS) as service:
        await site.submit("light")
        await site.clis.noted("started")
        await site.submit("heavy", extra_env_vars='{"EXECUTOR_TASK_WEIGHT": "1.0"}')
        await site.event("request_received", lambda event: event["exec_id"] == "heavy")
        terminate()
        await site.event("run_settled", lambda event: event["exec_id"] == "heavy")
        await site.until_counts(1, 1)
        site.clis.let("go")
        await site.stopped(service)
    assert site.statuses("light") == ["RUNNING", "SUCCESS"]
    assert site.statuses("heavy") == []
    assert await site.counts() == (1, 0)


@BOTH_STARTS
async def test_a_run_can_still_be_cancelled_while_the_service_drains(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_POLLS) as service:
        await site.submit("r1")
        await site.clis.noted("started")
        terminate()
        await site.event("draining")
        site.kill("r1")
        await site.stopped(service)
    assert site.statuses("r1") == ["RUNNING", "CANCELLED"]
    assert await site.counts() == (0, 0)


async def test_an_idle_service_stops_at_once(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service(**SHORT_POLLS) as service:
        await site.event("server_reached", lambda event: event["server"] == "queue")
        terminate()
        await site.stopped(service)
    assert site.events("stopped")


async def test_without_datahub_the_service_stops_all_the_same(site: Site) -> None:
    """`UP_FOR_RETRY` can't be stored then: the message is given back, the next claim counts the attempt."""
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_POLLS, DATAHUB_EXECUTOR_DRAIN_TIMEOUT="0") as service:
        await site.submit("r1")
        await site.clis.noted("started")
        await site.datahub.faults.down()
        terminate()
        await site.stopped(service)
        await site.datahub.faults.up()
    assert site.statuses("r1") == ["RUNNING"]
    assert await site.counts() == (1, 0)
    async with site.service(**SHORT_POLLS):
        await site.clis.noted("started", 2)
        site.clis.let("go")
        assert "Attempt:   2" in (await site.settled("r1")).value["report"]


@BOTH_STARTS
async def test_a_second_signal_hurries_a_run_that_ignores_sigterm(site: Site) -> None:
    ignoring = "signal.signal(signal.SIGTERM, lambda *_: note('asked', 1))\n" + PATIENT
    site.fake_cli("fake", ignoring)
    async with site.service(DATAHUB_EXECUTOR_DRAIN_TIMEOUT="0") as service:
        await site.submit("r1")
        await site.clis.noted("started")
        terminate()
        await site.clis.noted("asked")
        terminate()
        await site.stopped(service)
    assert site.statuses("r1") == ["RUNNING", "UP_FOR_RETRY"]
    assert await site.counts() == (1, 0)


async def test_an_idle_service_says_what_it_waits_for_and_leaves_at_the_second_signal(site: Site) -> None:
    """The receive under way is a long poll of 20 s, and a test may take less."""
    async with site.service(DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT="120") as service:
        await site.event("server_reached", lambda event: event["server"] == "queue")
        terminate()
        draining = await site.event("draining")
        assert draining["runs"] == 0
        assert "22 s at most; a second signal leaves at once" in draining["waiting_for"]
        assert not service.stopped.is_set()
        terminate()
        with anyio.fail_after(15):
            await service.stopped.wait()


async def test_a_message_is_given_back_though_its_run_is_stubborn_and_datahub_hangs(site: Site) -> None:
    ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + PATIENT
    site.fake_cli("fake", ignoring)
    async with site.service(DATAHUB_EXECUTOR_DRAIN_TIMEOUT="0") as service:
        await site.submit("r1")
        await site.clis.noted("started")
        site.datahub.faults.add("*", Fault.hang())
        terminate()
        await site.stopped(service)
        site.datahub.faults.clear()
    assert not site.events("not_settled")
    assert await site.counts() == (1, 0)
