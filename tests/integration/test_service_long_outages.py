"""DataHub or the queue away at any point of a run, in every way: it runs once, and its end is stored.

The outages last as long as it takes to see that nothing goes wrong meanwhile; those of half an hour are the
simulation's. A claim whose answer is lost is in `test_service_heartbeat`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import pytest

from executor import execution
from executor.local.faults import Fault
from executor.local.page_api import Secret
from tests.integration.service import DEADLINE, PATIENT, QUICK, RunningService, Site
from tests.servers import LocalStack
from tests.servers.proxy import TcpProxy, tcp_proxy

SHORT_LEASE = {"DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10"}
OUTAGES = ["refused", "503", "hanging", "half-open", "cut after the write"]
# Says what it says while DataHub is away, too.
TALKING = """
note("started", [exec_id, time.time()])
print("it works", flush=True)
wait_for("more")
print("said meanwhile", flush=True)
note("said", exec_id)
wait_for("go")
note("ended", [exec_id, time.time()])
"""


class Way:
    """The services' way to DataHub, and what can go wrong with it."""

    def __init__(self, site: Site, proxy: TcpProxy) -> None:
        self._site = site
        self._proxy = proxy

    async def close(self, outage: str) -> None:
        """Let an outage begin."""
        faults = self._site.datahub.faults
        match outage:
            case "refused":
                await faults.down()
                await self._proxy.cut()
            case "503":
                faults.add("*", Fault.status(503))
            case "hanging":
                faults.add("*", Fault.hang())
            case "half-open":
                self._proxy.hold()
            case _:
                faults.add("*", Fault.cut_after_write())

    async def open(self, outage: str) -> None:
        """Let it end."""
        self._site.datahub.faults.clear()
        self._proxy.let_pass()
        if outage == "refused":
            await self._site.datahub.faults.up()
            await self._proxy.restore()


@asynccontextmanager
async def way_to_datahub(site: Site) -> AsyncIterator[Way]:
    """Put a proxy between the services of the site and DataHub."""
    port = urlsplit(site.datahub.url).port
    assert port
    async with tcp_proxy(port) as proxy:
        site.env["DATAHUB_GMS_URL"] = f"http://127.0.0.1:{proxy.port}"
        yield Way(site, proxy)


@pytest.mark.parametrize("outage", OUTAGES)
async def test_datahub_away_when_a_message_arrives(site: Site, outage: str) -> None:
    site.fake_cli("fake", QUICK)
    async with way_to_datahub(site) as way, site.service(**SHORT_LEASE) as service:
        await way.close(outage)
        await site.submit("r1")
        await site.event("request_received")
        await held_on(site, service)
        assert await site.counts() == (0, 1), "its lease is held"
        assert site.clis.notes("started") == []
        await way.open(outage)
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


@pytest.mark.parametrize("outage", OUTAGES)
async def test_datahub_away_while_a_run_goes_on(site: Site, outage: str) -> None:
    site.fake_cli("fake", TALKING)
    async with way_to_datahub(site) as way, site.service(**SHORT_LEASE) as service:
        await site.submit("r1")
        await site.until(lambda: site.shown("r1", "it works"))
        await way.close(outage)
        site.clis.let("more")
        await site.clis.noted("said")
        await held_on(site, service)
        assert site.clis.notes("ended") == []
        await way.open(outage)
        await site.until(lambda: site.shown("r1", "said meanwhile"))
        assert site.datahub.store.status("r1") == "RUNNING"
        site.clis.let("go")
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert (ended.status, ended.properties["executorAttempt"]) == ("SUCCESS", "1")
    assert len(site.clis.notes("started")) == len(site.clis.notes("ended")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


@pytest.mark.parametrize("outage", OUTAGES)
async def test_datahub_away_when_a_run_ends(site: Site, outage: str) -> None:
    site.fake_cli("fake", PATIENT)
    async with way_to_datahub(site) as way, site.service(**SHORT_LEASE) as service:
        await site.submit("r1")
        await site.until(lambda: site.shown("r1", "it works"))
        await way.close(outage)
        site.clis.let("go")
        await site.clis.noted("ended")
        await held_on(site, service)
        assert await site.counts() == (0, 1)
        await way.open(outage)
        assert (await site.ended("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


@pytest.mark.parametrize("fault", [Fault.status(503), Fault.hang()], ids=lambda f: f.kind)
@pytest.mark.parametrize("operation", ["patchEntity", "getSecretValues"], ids=["the claim", "the secrets"])
async def test_datahub_away_for_one_step_of_the_start(site: Site, fault: Fault, operation: str) -> None:
    site.fake_cli("fake", QUICK)
    site.datahub.secrets["PASSWORD"] = Secret("s3cr3t-value")
    async with site.service(**SHORT_LEASE) as service:
        rule = site.datahub.faults.add(operation, fault)
        await site.submit("r1", config={"password": "${PASSWORD}"})
        await site.event("request_received")
        await held_on(site, service)
        assert await site.counts() == (0, 1), "its lease is held"
        assert site.clis.notes("started") == []
        site.datahub.faults.clear(rule)
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


async def test_a_run_whose_secrets_can_never_be_had_gives_its_slot_back_and_ends_with_the_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "PATIENCE", 0.5)
    monkeypatch.setattr(execution, "GIVE_BACK_DELAY", 0.0)
    site.fake_cli("fake", QUICK)
    site.datahub.faults.add("getSecretValues", Fault.status(503))
    one_at_a_time = {"DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS": "1", "DATAHUB_EXECUTOR_MAX_ATTEMPTS": "1"}
    async with site.service(**one_at_a_time):
        await site.submit("r1", config={"password": "${PASSWORD}"})
        await site.until(lambda: site.shown("r1", "Waiting for the secrets of the recipe: "))
        await site.submit("r2")
        assert (await site.settled("r2")).status == "SUCCESS"
        ended = await site.settled("r1")
    assert ended.status == "FAILURE"
    assert ended.value["report"].count("The secrets of the recipe could not be had: ") == 2
    assert site.statuses("r1") == ["RUNNING", "UP_FOR_RETRY", "RUNNING", "UP_FOR_RETRY", "FAILURE"]


async def test_a_run_of_which_datahub_answers_no_write_is_run_once_and_ends(site: Site) -> None:
    """What was stored is found out by looking, after each write anew."""
    site.fake_cli("fake", QUICK)
    async with site.service(**SHORT_LEASE):
        site.datahub.faults.add("patchEntity", Fault.cut_after_write())
        await site.submit("r1")
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert set(site.answers("patchEntity")) == {0}
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


@pytest.mark.parametrize("outage", ["refused", "half-open"])
async def test_runs_end_before_their_leases_when_the_queue_is_away_for_longer_and_run_again(
    site: Site, localstack: LocalStack, outage: str
) -> None:
    site.fake_cli("fake", PATIENT)
    port = urlsplit(localstack.endpoint).port
    assert port
    async with tcp_proxy(port) as proxy:
        way = site.queue.replace(f":{port}/", f":{proxy.port}/")
        async with site.service(**SHORT_LEASE, DATAHUB_EXECUTOR_QUEUE=way):
            await site.submit("r1")
            await site.clis.noted("started")
            if outage == "refused":
                await proxy.cut()
            else:
                proxy.hold()
            await site.event("lease_running_out")
            interrupted = await site.stored("r1", "UP_FOR_RETRY")
            assert await site.counts() == (0, 1), "it ended while its message was still its own"
            if outage == "refused":
                await proxy.restore()
            else:
                proxy.let_pass()
            [_, (_, again)] = await site.clis.noted("started", 2)
            site.clis.let("go")
            ended = await site.settled("r1")
            await site.until_counts(0, 0)
    assert interrupted.epoch < again
    assert ended.status == "SUCCESS"
    assert "its executor could not renew its hold on the request" in ended.value["report"]
    assert site.statuses("r1") == ["RUNNING", "UP_FOR_RETRY", "RUNNING", "SUCCESS"]
    assert len(site.clis.notes("ended")) == 1


async def held_on(site: Site, service: RunningService) -> None:
    """Return once the lease was renewed twice: a silent owner that somebody watches would be given up by then."""
    name = "datahub_executor_lease_extensions_total"
    goal = await service.metric(name) + 2
    with anyio.fail_after(DEADLINE):
        while await service.metric(name) < goal:
            await site.offered(wait=1)
