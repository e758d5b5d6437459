"""What the service makes of each message: runs it, ends it, gives it back or leaves it."""

import base64
import json
from pathlib import Path

import pytest

from executor.local.datahub import queue_sender, stand_in
from tests.integration.service import PATIENT, QUICK, Site, open_site
from tests.servers import LocalStack

MESSAGES = Path(__file__).parent.parent / "data" / "messages"
EXEC_ID = "5c1a2f0e-7b7d-4d39-9b0e-3f7f2c6d1a44"
FORMS = sorted(path.name for path in MESSAGES.iterdir() if "signal" not in path.name)
SIGNALS = sorted(path.name for path in MESSAGES.iterdir() if "signal" in path.name)


def message(name: str) -> str:
    """A message of the test data, its CLI version replaced by `bundled` however deep it is wrapped."""
    return bundled((MESSAGES / name).read_text().strip())


def bundled(text: str) -> str:
    if text[0] not in "{[":
        return base64.b64encode(bundled(base64.b64decode(text).decode()).encode()).decode()
    value = json.loads(text)
    if isinstance(value, dict) and isinstance(value.get("body"), str):
        return json.dumps({**value, "body": bundled(value["body"])})
    return text.replace("1.5.0.15", "bundled")


@pytest.mark.parametrize("name", FORMS)
async def test_each_form_of_a_request_is_run(site: Site, name: str) -> None:
    site.fake_cli("postgres", QUICK + 'note("secrets", secrets)')
    site.fake_cli("mysql", QUICK)
    site.know(EXEC_ID, "postgres", password="${PG_PASSWORD}")
    connection_test = "test_connection" in name
    exec_id = "0b9d1b5e-63a5-4f3c-8c1e-d8fb3b4f3d2f" if connection_test else EXEC_ID
    async with site.service(INGESTION_DEPENDENCY_RESOLUTION_ENABLED="false", PG_PASSWORD="hunter22"):
        await site.send(message(name))
        ended = await site.settled(exec_id)
        await site.until_counts(0, 0)
    assert ended.status == "SUCCESS", ended.value["report"]
    assert f"Task:      {'TEST_CONNECTION' if connection_test else 'RUN_INGEST'}" in ended.value["report"]
    assert site.clis.notes("secrets") == [] if connection_test else [{"PG_PASSWORD": "hunter22"}]


@pytest.mark.parametrize("name", SIGNALS)
async def test_each_form_of_a_signal_cancels_its_run(site: Site, name: str) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(DATAHUB_EXECUTOR_INGESTION_SIGNAL_POLL_INTERVAL="60"):
        await site.submit(EXEC_ID)
        await site.clis.noted("started")
        await site.send(message(name))
        assert (await site.settled(EXEC_ID)).status == "CANCELLED"
        await site.until_counts(0, 0)
    assert site.clis.notes("ended") == []


async def test_a_reference_takes_the_weight_that_its_request_asks_for(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    site.know("heavy", extra_env_vars=json.dumps({"EXECUTOR_TASK_WEIGHT": "1.0"}))
    async with site.service(DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS="2") as service:
        await site.submit("light")
        await site.clis.noted("started")
        await site.send({"urn": "urn:li:dataHubExecutionRequest:heavy"})
        await site.event("request_received", lambda event: event["exec_id"] == "heavy")
        await site.until_metric(service, "datahub_executor_slots_waiting", 1)
        assert [exec_id for exec_id, _ in site.clis.notes("started")] == ["light"]
        site.clis.let("go")
        await site.settled("light")
        await site.settled("heavy")
    [[_, light_ended], _] = site.clis.notes("ended")
    assert site.clis.notes("started")[1][1] >= light_ended


async def test_execute_and_cancel_on_the_page_reach_the_run(
    localstack: LocalStack, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of the page: a source, *Execute*, the change event, the run; then *Cancel*."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", localstack.endpoint)
    async with (
        queue_sender(site.queue) as sender,
        stand_in(token="t", sender=sender) as page,
        open_site(localstack, page, tmp_path / "page") as on_page,
    ):
        on_page.fake_cli("fake", PATIENT)
        config = {
            "recipe": json.dumps({"source": {"type": "fake", "config": {}}}),
            "version": "bundled",
            "executorId": "remote",
        }
        create = {"name": "shop", "type": "fake", "config": config}
        async with on_page.service(DATAHUB_EXECUTOR_QUEUE=site.queue):
            source = await on_page.press("createIngestionSource", "UpdateIngestionSourceInput!", create)
            executed = await on_page.press(
                "createIngestionExecutionRequest",
                "CreateIngestionExecutionRequestInput!",
                {"ingestionSourceUrn": source},
            )
            [[exec_id, _]] = await on_page.clis.noted("started")
            assert executed == f"urn:li:dataHubExecutionRequest:{exec_id}"
            cancel = {"ingestionSourceUrn": source, "executionRequestUrn": executed}
            await on_page.press(
                "cancelIngestionExecutionRequest", "CancelIngestionExecutionRequestInput!", cancel
            )
            assert (await on_page.settled(exec_id)).status == "CANCELLED"
            await on_page.until_counts(0, 0, site.queue)


async def test_a_malformed_request_that_names_its_id_ends_as_failure_with_the_reason(site: Site) -> None:
    async with site.service() as service:
        await site.send({"exec_id": "r1", "name": "RUN_INGEST", "args": {"version": "bundled"}})
        ended = await site.settled("r1")
        await site.until_counts(0, 0)
        assert await service.metric("datahub_executor_malformed_messages_total") == 0
    assert ended.status == "FAILURE"
    assert ended.value["report"].startswith("The request can't be run: the request has no recipe.")


@pytest.mark.parametrize("exec_id", ["../../etc/passwd", "a/b", "-rf", ".hidden", "x" * 201, "a b"])
async def test_an_unsafe_id_is_never_used(site: Site, exec_id: str) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        message_id = await site.submit(exec_id)
        event = await site.event("message_malformed")
        assert await site.counts() == (0, 1)
    assert event["message_id"] == message_id
    assert "unsafe" in event["reason"]
    assert site.clis.notes("started") == []
    look = "/openapi/v3/entity/datahubexecutionrequest/batchGet"  # whether the token is good, while idle
    assert site.datahub.calls.counts.keys() <= {look}, "nothing about it was asked of DataHub"
    assert not site.run_folders()


async def test_a_message_that_is_none_ends_in_the_dead_letter_queue_and_is_said_once(
    site: Site, localstack: LocalStack
) -> None:
    queue = await localstack.make_queue(redrive=3)
    message_id = await site.send("a secret that is no request", queue=queue)
    handle = await site.receive(queue)
    async with site.service(DATAHUB_EXECUTOR_QUEUE=queue) as service:
        for receives in (1, 2):
            await site.until_metric(service, "datahub_executor_malformed_messages_total", receives)
            await site.until_counts(0, 1, queue)
            await site.show_again(handle, queue)
        await site.until_counts(1, 0, localstack.dead_letters(queue))
        said = site.events("message_malformed")
    assert [(event["message_id"], event["level"]) for event in said] == [(message_id, "warning")]
    assert "a secret that is no request" not in site.log.getvalue()


async def test_a_queue_without_a_redrive_policy_is_told_of_at_start(
    site: Site, localstack: LocalStack
) -> None:
    queue = await localstack.make_queue()
    async with site.service(DATAHUB_EXECUTOR_QUEUE=queue):
        event = await site.event("no_redrive_policy")
    assert "dead-letter queue" in event["way_out"]


async def test_a_queue_that_gives_messages_up_too_early_is_told_of_at_start(
    site: Site, localstack: LocalStack
) -> None:
    queue = await localstack.make_queue(redrive=9)
    async with site.service(DATAHUB_EXECUTOR_QUEUE=queue):
        event = await site.event("redrive_too_early")
    assert (event["max_receive_count"], event["way_out"]) == (9, "set maxReceiveCount to 10 or more")


async def test_a_request_for_another_executor_id_is_given_back_to_it(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service() as ours:
        await site.submit("r1", executor_id="other")
        await site.event("message_foreign")
        assert await ours.metric("datahub_executor_foreign_messages_total") == 1
        assert site.statuses("r1") == []
    async with site.service(DATAHUB_EXECUTOR_POOL_ID="other"):
        ended = await site.settled("r1")
    assert ended.status == "SUCCESS"
    assert "Executor:  other on" in ended.value["report"]
    assert len(site.clis.notes("started")) == 1


async def test_a_reference_to_a_request_for_another_executor_id_is_given_back(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    site.know("r1", executor_id="other")
    async with site.service():
        await site.send({"urn": "urn:li:dataHubExecutionRequest:r1"})
        event = await site.event("run_settled")
        assert await site.counts() == (0, 1)
    assert event["message"] == "release"
    assert "other" in event["words"]
    assert site.statuses("r1") == []
    assert site.clis.notes("started") == []


async def test_a_second_message_for_an_active_request_is_held_back(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service():
        await site.submit("r1")
        await site.clis.noted("started")
        again = await site.submit("r1")
        event = await site.event("duplicate_held_back")
        assert event["message_id"] == again
        site.clis.let("go")
        await site.settled("r1")
        await site.until_counts(0, 1)
    assert len(site.clis.notes("started")) == 1
    assert site.statuses("r1") == ["RUNNING", "SUCCESS"]


async def test_the_same_message_once_more_does_not_disturb_its_run(site: Site) -> None:
    """SQS delivers twice now and then: the run goes on with the newer receipt handle."""
    site.fake_cli("fake", PATIENT)
    await site.submit("r1")
    handle = await site.receive()
    async with site.service():
        await site.clis.noted("started")
        await site.show_again(handle)
        await site.event("message_came_again")
        site.clis.let("go")
        assert (await site.settled("r1")).status == "SUCCESS"
        await site.until_counts(0, 0)
    assert len(site.clis.notes("started")) == 1


async def test_a_signal_that_another_service_receives_reaches_the_run(site: Site) -> None:
    site.fake_cli("fake", PATIENT)
    async with site.service(DATAHUB_EXECUTOR_INGESTION_MAX_WORKERS="1"):  # full: it receives nothing more
        await site.submit("r1")
        await site.clis.noted("started")
        async with site.service():
            await site.send({"exec_id": "r1", "executor_id": "remote", "signal": "KILL"})
            await site.event("kill_signal_recorded")
            assert (await site.settled("r1")).status == "CANCELLED"
            await site.until_counts(0, 0)


async def test_a_signal_before_its_request_keeps_it_from_starting(site: Site) -> None:
    site.fake_cli("fake", QUICK)
    async with site.service():
        await site.send({"exec_id": "r1", "executor_id": "remote", "signal": "KILL"})
        await site.event("kill_signal_recorded")
        await site.submit("r1")
        assert (await site.settled("r1")).status == "CANCELLED"
    assert site.clis.notes("started") == []


async def test_a_fifo_queue_serves_requests_as_well(site: Site, localstack: LocalStack) -> None:
    queue = await localstack.make_queue(fifo=True, redrive=5)
    site.fake_cli("fake", QUICK)
    async with site.service(DATAHUB_EXECUTOR_QUEUE=queue):
        await site.submit("r1", queue=queue)
        await site.submit("r2", queue=queue)
        assert (await site.settled("r1")).status == "SUCCESS"
        assert (await site.settled("r2")).status == "SUCCESS"
        await site.until_counts(0, 0, queue)
