"""Messages twice, late or in the wrong order, and a cancel at any moment: each has one outcome.

More of them: a signal before its request and one that another executor receives in `test_service_messages`, a
cancel while the claim is written in `test_service_heartbeat`, a cancel while draining in `test_service_stopping`.
"""

from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from executor.local.faults import Fault
from tests.integration.refusing_queue import refusing_queue
from tests.integration.service import BOTH_STARTS, PATIENT, QUICK, Site

SHORT_LEASE = {"DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10"}
KILL = {"exec_id": "r1", "executor_id": "remote", "signal": "KILL"}


async def test_a_message_sent_again_after_the_end_is_deleted_and_nothing_runs(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        await site.submit("r1")
        await site.settled("r1")
        await site.until_counts(0, 0)
        await site.submit("r1")
        await site.event("already_ended")
        await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


async def test_a_message_whose_executor_died_before_deleting_it_is_deleted_by_the_next_one(
    site: Site,
) -> None:
    site.fake_cli("fake", QUICK)
    async with (
        refusing_queue(site.queue, {"DeleteMessageBatch"}, "InternalError") as queue,
        site.service(**SHORT_LEASE, DATAHUB_EXECUTOR_QUEUE=queue),
    ):
        await site.submit("r1")
        await site.ended("r1")
    async with site.service(**SHORT_LEASE):
        await site.event("already_ended")
        settled = await site.event("run_settled")
    assert settled["message"] == "delete"
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


async def test_a_signal_after_the_end_changes_nothing(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        await site.submit("r1")
        await site.settled("r1")
        await site.send(KILL)
        await site.event("kill_signal_recorded")
        await site.until_counts(0, 0)
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


@BOTH_STARTS
async def test_a_signal_sent_twice_cancels_once(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service():
        await site.submit("r1")
        await site.clis.noted("started")
        await site.send(KILL)
        await site.send(KILL)
        assert (await site.settled("r1")).status == "CANCELLED"
        await site.until_counts(0, 0)
    assert site.statuses("r1") == ["RUNNING", "CANCELLED"]


async def test_a_cancel_reaches_a_request_that_waits_for_a_slot(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service():
        await site.submit("light")
        await site.clis.noted("started")
        await site.submit("r1", extra_env_vars='{"EXECUTOR_TASK_WEIGHT": "1.0"}')
        await site.event("request_received", lambda event: event["exec_id"] == "r1")
        site.kill("r1")
        assert (await site.settled("r1")).status == "CANCELLED"
        site.clis.let("go")
        assert (await site.settled("light")).status == "SUCCESS"
    assert site.statuses("r1") == ["CANCELLED"]
    assert [exec_id for exec_id, _ in site.clis.notes("started")] == ["light"]


async def test_a_cancel_while_datahub_is_asked_who_owns_the_request_keeps_it_from_starting(
    site: Site,
) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        fault = site.datahub.faults.add("executionRequest", Fault.hang())
        await site.submit("r1")
        await site.event("request_received")
        await site.send(KILL)
        await site.event("kill_signal_received")
        site.datahub.faults.clear(fault)
        assert (await site.settled("r1")).status == "CANCELLED"
        await site.until_counts(0, 0)
    assert site.statuses("r1") == ["CANCELLED"]
    assert site.clis.notes("started") == []


@pytest.mark.parametrize("way", ["the page", "a message"])
async def test_a_cancel_while_the_venv_is_built_ends_the_build(site: Site, tmp_path: Path, way: str) -> None:
    asked, left = anyio.Event(), anyio.Event()

    async def hang(stream: SocketStream) -> None:
        async with stream:
            asked.set()
            async for _ in stream:
                pass
            left.set()

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as index,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(index.serve, hang)
        url = f"http://127.0.0.1:{index.extra(SocketAttribute.local_port)}/simple"
        async with site.service(UV_DEFAULT_INDEX=url):
            await site.submit("r1", version="1.0")
            with anyio.fail_after(30):
                await asked.wait()
            if way == "the page":
                site.kill("r1")
            else:
                await site.send(KILL)
            assert (await site.settled("r1")).status == "CANCELLED"
            with anyio.fail_after(30):
                await left.wait()
            await site.until_counts(0, 0)
        tasks.cancel_scope.cancel()
    assert site.statuses("r1") == ["RUNNING", "CANCELLED"]
    assert not [path for path in (site.work_dir / "venvs").iterdir() if path.name.startswith(".building-")]


async def test_a_cancel_while_the_end_is_being_stored_comes_too_late(site: Site) -> None:
    """The end that the run had counts."""
    site.fake_cli("fake", PATIENT)
    async with site.service():
        await site.submit("r1")
        await site.clis.noted("started")
        fault = site.datahub.faults.add("patchEntity", Fault.hang())
        site.clis.let("go")
        await site.until(lambda: bool(site.clis.notes("ended")) and not site.run_folders())
        await site.send(KILL)
        await site.event("kill_signal_recorded")
        await site.until_counts(0, 1)
        site.datahub.faults.clear(fault)
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]
    assert site.events("kill_signal_received") == []


async def test_a_cancel_while_the_run_waits_to_be_taken_over_keeps_it_from_starting_again(
    site: Site,
) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_LEASE):
        await site.submit("r1")
        await site.clis.noted("started")
    await site.send(KILL)
    async with site.service(**SHORT_LEASE):
        assert (await site.settled("r1")).status == "CANCELLED"
    [settled] = site.events("run_settled")
    assert settled["message"] == "delete"
    assert site.statuses("r1") == ["RUNNING", "CANCELLED"]
    assert len(site.clis.notes("started")) == 1
