"""DataHub or the queue away for a while: nothing is lost, nothing runs twice, and it is said once."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import pytest
from aiohttp import web

from executor.local.faults import Fault
from tests.integration.firewall import firewall
from tests.integration.service import PATIENT, QUICK, Site
from tests.servers import LocalStack
from tests.servers.proxy import tcp_proxy
from tests.servers.web import Answer, serving

LOGIN_PAGE = "<html><h2>HTTP ERROR 401 Unauthorized to perform this action.</h2></html>"


async def test_a_request_that_arrives_while_datahub_is_away_waits_for_it(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        await site.datahub.faults.down()
        await site.submit("r1")
        await site.event("request_received")
        await site.event("server_unavailable", lambda event: event["server"] == "datahub")
        assert await site.counts() == (0, 1)
        assert site.clis.notes("started") == []
        await site.datahub.faults.up()
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.event("server_back", lambda event: event["server"] == "datahub")
    assert len(site.clis.notes("started")) == 1
    assert len([event for event in site.events("server_unavailable") if event["server"] == "datahub"]) == 1


@pytest.mark.parametrize("code", [401, 403, 500, 503, 429])
async def test_error_pages_keep_a_request_waiting_not_running(site: Site, code: int) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        site.datahub.faults.add("*", Fault.status(code, LOGIN_PAGE))
        await site.submit("r1")
        await site.until(lambda: site.answers("executionRequest").count(code) >= 2)
        assert await site.counts() == (0, 1)
        assert site.clis.notes("started") == []
        site.datahub.faults.clear()
        assert (await site.settled("r1")).status == "SUCCESS"
    assert "HTTP ERROR" not in site.log.getvalue()


@pytest.mark.parametrize("outage", ["refused", "401", "cut"])
async def test_the_end_of_a_run_is_stored_when_datahub_is_back(site: Site, outage: str) -> None:
    site.fake_cli("fake", PATIENT)
    faults = site.datahub.faults
    async with site.service():
        await site.submit("r1")
        await site.clis.noted("started")
        match outage:
            case "refused":
                await faults.down()
            case "401":
                faults.add("*", Fault.status(401, LOGIN_PAGE))
            case _:
                faults.add("*", Fault.cut_before_write())
        site.clis.let("go")
        await site.clis.noted("ended")
        await site.event("server_unavailable", lambda event: event["server"] == "datahub")
        await site.until(lambda: not site.run_folders())
        assert await site.counts() == (0, 1)
        faults.clear()
        await faults.up()
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


async def test_a_queue_that_is_away_for_a_moment_disturbs_no_run(site: Site, localstack: LocalStack) -> None:
    site.fake_cli("fake", PATIENT)
    port = urlsplit(localstack.endpoint).port
    assert port
    async with tcp_proxy(port) as proxy:
        way = site.queue.replace(f":{port}/", f":{proxy.port}/")
        settings = {"DATAHUB_EXECUTOR_QUEUE": way, "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10"}
        async with site.service(**settings) as service:
            await site.submit("r1")
            await site.clis.noted("started")
            await proxy.cut()
            await site.event("server_unavailable", lambda event: event["server"] == "queue")
            site.clis.let("go")
            assert (await site.ended("r1")).status == "SUCCESS"
            await site.until_metric(service, "datahub_executor_slots_active", 0)
            assert await site.counts() == (0, 1), "it ended, and its message could not be deleted"
            await proxy.restore()
            await site.event("server_back", lambda event: event["server"] == "queue")
            await site.submit("r2")
            assert (await site.settled("r2")).status == "SUCCESS"
            await site.until_counts(0, 0)
    assert [exec_id for exec_id, _ in site.clis.notes("started")] == ["r1", "r2"]
    assert len([event for event in site.events("server_unavailable") if event["server"] == "queue"]) == 1


async def test_a_service_starts_before_its_queue_can_be_reached(site: Site, localstack: LocalStack) -> None:
    site.fake_cli("fake", QUICK)
    port = urlsplit(localstack.endpoint).port
    assert port
    async with tcp_proxy(port) as proxy, anyio.create_task_group() as tasks:
        await proxy.cut()
        way = site.queue.replace(f":{port}/", f":{proxy.port}/")

        async def restore() -> None:
            await site.event("server_unavailable", lambda event: event["server"] == "queue")
            await proxy.restore()

        tasks.start_soon(restore)
        await site.submit("r1")
        async with site.service(DATAHUB_EXECUTOR_QUEUE=way):
            assert (await site.settled("r1")).status == "SUCCESS"


async def test_a_login_page_in_front_of_the_queue_is_an_outage(site: Site) -> None:
    async def sign_in(_: web.Request) -> web.Response:
        return web.Response(text="<html>Please sign in</html>", content_type="text/html")

    async with (
        answering(sign_in, site.queue) as queue,
        site.service(DATAHUB_EXECUTOR_QUEUE=queue),
    ):
        said = await site.event("server_unavailable", lambda event: event["server"] == "queue")
    assert "something in front of SQS answered" in said["reason"]
    assert not [event for event in site.events("server_reached") if event["server"] == "queue"]


async def test_a_server_that_answers_at_once_with_nothing_is_asked_less_and_less(site: Site) -> None:
    asked: list[float] = []

    async def nothing(_: web.Request) -> web.Response:
        asked.append(anyio.current_time())
        return web.json_response({}, headers={"x-amzn-RequestId": "1"})

    async with answering(nothing, site.queue) as queue, site.service(DATAHUB_EXECUTOR_QUEUE=queue):
        await site.until(lambda: len(asked) >= 12)
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked[-7:])]
    assert sum(pauses) > 0.5, "without pauses these take some milliseconds"


@asynccontextmanager
async def answering(answer: Answer, queue: str) -> AsyncIterator[str]:
    """The URL of that queue on a server of whose calls `answer` sees all."""
    async with serving(answer) as url:
        yield url + urlsplit(queue).path


@pytest.mark.parametrize("code", [403, 413])
async def test_behind_a_firewall_that_refuses_large_writes_less_of_the_log_is_shown(
    site: Site, code: int
) -> None:
    lines = 'for number in range(2000):\n    print(f"line {number} " + "x" * 50, flush=True)\n'
    site.fake_cli("fake", lines + PATIENT)
    async with firewall(site.datahub.url, 8192, code) as url, site.service(DATAHUB_GMS_URL=url):
        await site.submit("r1")
        await site.stored("r1", "RUNNING")
        await site.until(lambda: "line 1999" in site.datahub.store.history("r1")[-1].value.get("report", ""))
        assert site.statuses("r1") == ["RUNNING"]
        site.clis.let("go")
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
    assert ended.status == "SUCCESS"
    report = ended.value["report"]
    assert (
        f"The report is cut short, as the whole one was refused: DataHub{'' if code == 403 else ','}"
        in report
    )
    assert "line 1999" in report
    assert "line 0 " not in report
    assert len(site.events("report_refused")) == 1
    assert len(site.clis.notes("started")) == 1
