"""Leases, kill signals and progress of the runs that are under way."""

import itertools
import socket
import time

import anyio
import pytest
import structlog

from executor import heartbeat
from executor.backoff import Backoff
from executor.claim import Claim
from executor.datahub.client import open_datahub
from executor.heartbeat import SHORTEST_PROGRESS_TIMEOUT, Heartbeat
from executor.journal import Journal
from executor.local.datahub import DataHubStandIn
from executor.local.faults import Fault
from executor.operations.metrics import Metrics
from executor.queue.delivery import Delivery
from executor.queue.name import QueueName
from executor.queue.opening import open_queue
from executor.reporter import BYTES_PER_MINUTE, SHORTEST_INTERVAL, Reporter
from executor.run import ActiveRuns, Run, StopReason
from tests.integration.service import BOTH_STARTS, PATIENT, Site

SHORT_LEASE = {"DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10"}
OPENAPI = "/openapi/v3/entity/datahubexecutionrequest"
SIGN_OF_LIFE = 2000  # bytes at most of a write that says no more than that its owner lives
BATCH_GET = f"{OPENAPI}/batchGet"
# Prints lines as the test asks for them, then ends as it was told.
TALKATIVE = """
note("started", [exec_id, time.time()])
print("first line", flush=True)
wait_for("more")
print("second line", flush=True)
wait_for("go")
sys.exit(recipe["source"]["config"].get("code", 0))
"""
CHATTY = """
note("started", [exec_id, time.time()])
note("pid", os.getpid())
while True:
    print("line of a chatty run " * 10, flush=True)
    time.sleep(0.002)
"""


async def test_a_run_longer_than_the_visibility_time_out_keeps_its_message(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_LEASE, DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS="1") as service:
        await site.submit("r1")
        await site.clis.noted("started")
        assert await site.offered(wait=12) == [], "nobody else is given it meanwhile"
        assert await service.metric("datahub_executor_lease_extensions_total") >= 2
        site.clis.let("go")
        assert (await site.settled("r1")).status == "SUCCESS"
    assert len(site.clis.notes("started")) == 1


@BOTH_STARTS
async def test_a_lost_lease_ends_the_run_which_writes_nothing_more(site: Site) -> None:
    site.fake_cli("fake", CHATTY)
    await site.submit("r1")
    handle = await site.receive()
    async with site.service(**SHORT_LEASE) as service:
        [pid] = await site.clis.noted("pid")
        await site.take_away(handle)
        site.write_status("r1", "RUNNING", {"executorRun": "the new owner", "executorAttempt": "2"})
        written = len(site.datahub.store.history("r1"))
        settled = await site.event("run_settled")
        assert not site.alive(pid)
        assert await service.metric("datahub_executor_worker_ingestion_visibility_timeout_total") == 1
    assert (settled["status"], settled["message"]) == ("none", "leave")
    assert len(site.datahub.store.history("r1")) == written


@BOTH_STARTS
async def test_a_lost_lease_is_noticed_with_the_next_extension(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    await site.submit("r1")
    handle = await site.receive()
    async with site.service(**SHORT_LEASE):
        await site.clis.noted("started")
        await site.take_away(handle)
        await site.event("lease_lost")
        await site.event("run_settled")
    assert site.statuses("r1") == ["RUNNING"]
    assert site.clis.notes("ended") == []


async def test_while_the_queue_hangs_every_run_is_ended_before_its_lease_is(
    stand_in: DataHubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: the clock ends a run, not a call that came back."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    visibility, runs = 10, ActiveRuns()
    left: list[float] = []  # seconds between SIGKILL and the lease's end

    async def work(run: Run) -> None:
        with run.work:
            await anyio.sleep_forever()
        left.append(run.delivery.lease_ends - anyio.current_time() - run.stop_grace)
        runs.remove(run)

    with socket.create_server(("127.0.0.1", 0)) as hanging:
        name = QueueName.parse(f"http://127.0.0.1:{hanging.getsockname()[1]}/000000000000/q")
        async with (
            open_datahub(stand_in.url, "t", lambda *_: None) as datahub,
            open_queue(name, region="eu-central-1", visibility_timeout=visibility, env={}) as queue,
            anyio.create_task_group() as tasks,
        ):
            lease_ends = anyio.current_time() + visibility
            for number in range(40):
                delivery = Delivery(f"m{number}", "handle", "", 1, 0.0, lease_ends)
                journal = Journal(request=None, executor_id="remote", host="h", clock=time.time)
                reporter = Reporter(datahub, f"r{number}", Claim("owner", 0, "m", 1), Backoff, 8.0)
                run = Run(f"r{number}", delivery, journal, reporter, structlog.get_logger())
                runs.add(run)
                tasks.start_soon(work, run)
            heartbeat = Heartbeat(
                queue=queue,
                datahub=datahub,
                active=runs,
                metrics=Metrics("remote"),
                beat=lambda *_: None,
                backoff=Backoff,
                visibility=visibility,
                poll_interval=1.0,
                proof_period=2.0,
            )
            everyone = list(runs)
            tasks.start_soon(queue.serve)
            tasks.start_soon(heartbeat.serve)
            await runs.emptied()
            tasks.cancel_scope.cancel()
    assert {run.stop_reason for run in everyone} == {StopReason.LEASE_ENDING}
    assert min(left) > 0


async def test_the_kill_signals_of_all_runs_are_looked_up_in_one_call(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service():
        for number in range(4):
            await site.submit(f"r{number}")
        await site.clis.noted("started", 4)
        before = len(site.datahub.calls.of(BATCH_GET))
        await site.until(lambda: len(site.datahub.calls.of(BATCH_GET)) >= before + 4)
        for call in site.datahub.calls.of(BATCH_GET)[before + 1 :]:
            assert call.request_bytes > 4 * len("urn:li:dataHubExecutionRequest:r0")
        site.kill("r2")
        assert (await site.settled("r2")).status == "CANCELLED"
        site.clis.let("go")
        for exec_id in ("r0", "r1", "r3"):
            assert (await site.settled(exec_id)).status == "SUCCESS"


@pytest.mark.parametrize("answered", [True, False])
async def test_a_run_that_came_during_a_look_at_an_idle_datahub_is_watched(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, answered: bool
) -> None:
    monkeypatch.setattr(heartbeat, "IDLE_PING_INTERVAL", 3600.0)
    site.fake_cli("fake", PATIENT)
    look = site.datahub.faults.add(BATCH_GET, Fault.hang(), times=1)
    async with site.service():
        await site.until(lambda: look.times == 0)
        await site.submit("r1")
        await site.clis.noted("started")
        if answered:
            site.datahub.faults.clear(look)
        site.kill("r1")
        assert (await site.settled("r1")).status == "CANCELLED"


async def test_a_datahub_that_takes_long_for_each_write_hears_that_a_run_goes_on(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(**SHORT_LEASE):
        await site.submit("r1")
        await site.clis.noted("started")
        site.datahub.faults.add("patchEntity", Fault.slow(SHORTEST_PROGRESS_TIMEOUT + 0.5))
        before = len(site.datahub.store.history("r1"))
        await site.until(lambda: len(site.datahub.store.history("r1")) >= before + 3)
        site.datahub.faults.clear()
        site.clis.let("go")
        assert (await site.settled("r1")).status == "SUCCESS"
    assert len(site.clis.notes("started")) == 1


async def test_progress_is_pushed_when_there_is_some_and_only_then(site: Site) -> None:
    site.fake_cli("fake", TALKATIVE)
    async with site.service():
        await site.submit("r1")
        await site.until(lambda: site.shown("r1", "first line"))
        pushed = len(site.datahub.calls.of("patchEntity"))
        polls = len(site.datahub.calls.of(BATCH_GET))
        enough = (SHORTEST_INTERVAL + 1) / 0.2
        await site.until(lambda: len(site.datahub.calls.of(BATCH_GET)) >= polls + enough)
        assert len(site.datahub.calls.of("patchEntity")) == pushed
        site.clis.let("more")
        await site.until(lambda: site.shown("r1", "second line"))
        assert site.datahub.store.status("r1") == "RUNNING"
        site.clis.let("go")
        await site.settled("r1")


async def test_a_chatty_run_costs_a_bounded_number_of_bytes(site: Site) -> None:
    site.fake_cli("fake", CHATTY)
    async with site.service():
        await site.submit("r1")
        await site.until(lambda: len(site.datahub.calls.of("patchEntity")) >= 4)
        pushed = [call for call in site.datahub.calls.of("patchEntity") if call.request_bytes > SIGN_OF_LIFE]
        site.kill("r1")
        await site.settled("r1")
    for one, next_one in itertools.pairwise(pushed[1:]):
        earned = (next_one.monotonic - one.monotonic + 0.5) * BYTES_PER_MINUTE / 60
        assert one.request_bytes <= max(earned, SHORTEST_INTERVAL * BYTES_PER_MINUTE / 60)
    assert max(call.request_bytes for call in pushed) > 100_000, "the log was large"


@pytest.mark.parametrize("generation", ["no_patch_entity", "no_force_generic_patch"])
async def test_an_older_server_gets_whole_aspects_and_is_found_out_once(site: Site, generation: str) -> None:
    site.datahub.generation = "no_patch_entity" if "entity" in generation else "no_force_generic_patch"
    site.datahub.ignores_conditions = True
    site.fake_cli("fake", TALKATIVE)
    async with site.service():
        site.clis.let("more")
        await site.submit("r1")
        await site.until(lambda: site.shown("r1", "second line"))
        site.clis.let("go")
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.submit("r2")
        assert (await site.settled("r2")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert len(site.datahub.calls.of("patchEntity")) == 1
    assert len(site.datahub.calls.of(OPENAPI)) >= 5
    assert site.statuses("r1") == site.statuses("r2") == ["RUNNING", "SUCCESS"]


async def test_a_status_set_by_somebody_else_stops_the_run_and_stays(site: Site) -> None:
    site.fake_cli("fake", CHATTY)
    async with site.service():
        await site.submit("r1")
        [pid] = await site.clis.noted("pid")
        site.write_status("r1", "CANCELLED")
        await site.event("run_settled")
        assert not site.alive(pid)
        await site.until_counts(0, 0)
    assert site.statuses("r1") == ["RUNNING", "CANCELLED"]
    assert not [event for event in site.events() if event["level"] == "error"]


async def test_an_end_set_by_somebody_else_is_left_alone_when_the_run_ends(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service():
        await site.submit("r1")
        await site.until(lambda: site.shown("r1", "it works"))
        site.write_status("r1", "ABORTED")
        site.clis.let("go")
        await site.event("run_settled")
        await site.until_counts(0, 0)
    assert site.statuses("r1") == ["RUNNING", "ABORTED"]


@pytest.mark.parametrize("fault", [Fault.cut_after_write(), Fault.cut_before_write()], ids=lambda f: f.kind)
async def test_a_claim_whose_answer_is_lost_is_made_once_more(site: Site, fault: Fault) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service():
        site.datahub.faults.add("patchEntity", fault, times=1)
        await site.submit("r1")
        await site.clis.noted("started")
        site.clis.let("go")
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert "Attempt:   1" in ended.value["report"]
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]
    assert len(site.clis.notes("started")) == 1


@pytest.mark.parametrize("fault", [Fault.cut_after_write(), Fault.cut_before_write()], ids=lambda f: f.kind)
async def test_progress_whose_answer_is_lost_is_written_again(site: Site, fault: Fault) -> None:
    site.fake_cli("fake", TALKATIVE)
    async with site.service():
        await site.submit("r1")
        await site.until(lambda: site.shown("r1", "first line"))
        site.datahub.faults.add("patchEntity", fault, times=1)
        site.clis.let("more")
        await site.until(lambda: 0 in site.answers("patchEntity"))
        await site.until(lambda: site.shown("r1", "second line"))
        site.clis.let("go")
        await site.settled("r1")
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]
    assert len(site.clis.notes("started")) == 1


@pytest.mark.parametrize("fault", [Fault.cut_after_write(), Fault.cut_before_write()], ids=lambda f: f.kind)
@pytest.mark.parametrize(("code", "status"), [(0, "SUCCESS"), (3, "FAILURE")])
@pytest.mark.parametrize("old_server", [False, True], ids=["current server", "old server"])
async def test_an_end_whose_answer_is_lost_is_settled(
    site: Site, fault: Fault, code: int, status: str, *, old_server: bool
) -> None:
    site.datahub.ignores_conditions = old_server
    site.fake_cli("fake", TALKATIVE)
    site.clis.let("more")
    async with site.service():
        await site.submit("r1", config={"code": code})
        await site.until(lambda: site.shown("r1", "second line"))
        site.datahub.faults.add("patchEntity", fault, times=1)
        site.clis.let("go")
        assert (await site.settled("r1")).status == status
        await site.until_counts(0, 0)
    assert 0 in site.answers("patchEntity")
    assert site.statuses("r1") == ["RUNNING", status]
    assert len(site.clis.notes("started")) == 1


async def test_a_run_cancelled_while_its_claim_is_under_way_ends_as_cancelled(site: Site) -> None:
    """The claim may arrive late: the end is written over it, not lost to it."""
    site.fake_cli("fake", PATIENT)
    async with site.service():
        site.datahub.faults.add("patchEntity", Fault.slow(0.5), times=1)
        await site.submit("r1")
        await site.until(lambda: len(site.datahub.calls.of("executionRequest")) >= 1)
        await site.send({"exec_id": "r1", "executor_id": "remote", "signal": "KILL"})
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert ended.status == "CANCELLED"
    assert site.statuses("r1")[-1] == "CANCELLED"
    assert site.clis.notes("ended") == []
