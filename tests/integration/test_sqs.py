"""The queue, spoken to as the service does: LocalStack's SQS, and answers of AWS that it does not give."""

import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from aiohttp import web
from anyio.lowlevel import checkpoint

from executor.claim import Offer
from executor.handover import offered
from executor.queue.delivery import Delivery, LeaseLostError, QueueDeniedError, QueueError
from executor.queue.name import QueueName
from executor.queue.opening import open_queue
from executor.queue.sqs import SqsQueue
from tests.servers import LocalStack
from tests.servers.process import free_port
from tests.servers.web import serving

DEADLINE = 60.0  # seconds; only a failing test takes them
REGION = "eu-central-1"

both_kinds = pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@asynccontextmanager
async def opened(
    name: str, *, visibility: int = 30, region: str | None = REGION, env: dict[str, str] | None = None
) -> AsyncIterator[SqsQueue]:
    """The queue of that name, with its batches being sent."""
    queue_name = QueueName.parse(name)
    with anyio.fail_after(DEADLINE):
        async with (
            open_queue(queue_name, region=region, visibility_timeout=visibility, env=env or {}) as queue,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(queue.serve)
            yield queue
            tasks.cancel_scope.cancel()


def calls_of(queue: SqsQueue) -> list[str]:
    """The calls that go out from now on, as they do."""
    calls: list[str] = []

    def note(request: Any, **_: object) -> None:
        calls.append(request.headers["X-Amz-Target"].decode().removeprefix("AmazonSQS."))

    queue._client.meta.events.register("before-send.sqs", note)
    return calls


async def send(localstack: LocalStack, url: str, *bodies: str, group: str | None = None) -> None:
    """Put messages on a queue; on a FIFO queue each into a group of its own, or all into `group`."""
    fifo = url.endswith(".fifo")
    async with localstack.client() as sqs:
        for start in range(0, len(bodies), 10):
            entries = [
                {"Id": str(number), "MessageBody": body}
                | ({"MessageGroupId": group or body, "MessageDeduplicationId": body} if fifo else {})
                for number, body in enumerate(bodies[start : start + 10])
            ]
            await sqs.send_message_batch(QueueUrl=url, Entries=entries)


async def receive(queue: SqsQueue, count: int) -> list[Delivery]:
    """Exactly so many messages, however many receives they take."""
    deliveries: list[Delivery] = []
    while len(deliveries) < count:
        deliveries += await queue.receive(count - len(deliveries))
    return deliveries


async def visible(localstack: LocalStack, url: str) -> list[str]:
    """The bodies of messages that anybody could receive at this moment; they stay so."""
    async with localstack.client() as sqs:
        answer = await sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0)
    return [message["Body"] for message in answer.get("Messages", ())]


# Receiving


@both_kinds
async def test_no_more_messages_come_than_were_asked_for(localstack: LocalStack, fifo: bool) -> None:
    url = await localstack.make_queue(fifo=fifo)
    await send(localstack, url, *[f"m{number}" for number in range(25)])
    async with opened(url) as queue:
        received = [await queue.receive(limit) for limit in (1, 3, 25)]
    assert [1 <= len(messages) <= most for messages, most in zip(received, (1, 3, 10), strict=True)] == [
        True
    ] * 3
    bodies = [delivery.body for messages in received for delivery in messages]
    assert len(set(bodies)) == len(bodies)


@both_kinds
async def test_a_delivery_tells_what_is_known_of_its_message(localstack: LocalStack, fifo: bool) -> None:
    url = await localstack.make_queue(fifo=fifo)
    async with opened(url) as queue:
        before = time.time()
        message_id = await queue.send('{"é": 1}', "group")
        [delivery] = await receive(queue, 1)
    assert delivery.message_id == message_id
    assert delivery.body == '{"é": 1}'
    assert delivery.receive_count == 1
    assert int(before) <= delivery.sent_at <= time.time()


async def test_a_receive_waits_for_a_message_and_counts_the_lease_from_before(localstack: LocalStack) -> None:
    url = await localstack.make_queue()
    received: list[Delivery] = []
    async with opened(url, visibility=60) as queue:

        async def ask() -> None:
            received.extend(await queue.receive(1))

        calls = calls_of(queue)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            while not calls:  # noqa: ASYNC110 - the call is on its way
                await anyio.sleep(0.01)
            sent_at = anyio.current_time()
            await send(localstack, url, "late")
    assert [delivery.body for delivery in received] == ["late"]
    assert received[0].lease_ends <= sent_at + 60  # SQS's own lease began after that


async def test_an_empty_queue_answers_with_nothing(localstack: LocalStack) -> None:
    url = await localstack.make_queue()
    async with opened(url, visibility=4) as queue:  # a wait of 1 s
        assert await queue.receive(10) == []


# Holding, giving back, taking off


@both_kinds
async def test_an_extended_message_stays_away_beyond_its_first_lease(
    localstack: LocalStack, fifo: bool
) -> None:
    url = await localstack.make_queue(fifo=fifo)
    await send(localstack, url, "held")
    async with opened(url, visibility=2) as briefly, opened(url, visibility=60) as queue:
        [delivery] = await receive(briefly, 1)
        first_end = anyio.current_time() + 2
        await queue.extend(delivery)
        assert delivery.lease_ends > first_end + 30
        assert delivery.lease_ends <= anyio.current_time() + 60
        await anyio.sleep_until(first_end + 0.5)
        assert await visible(localstack, url) == []


@both_kinds
async def test_a_message_that_nobody_extends_comes_back(localstack: LocalStack, fifo: bool) -> None:
    url = await localstack.make_queue(fifo=fifo)
    await send(localstack, url, "m")
    async with opened(url, visibility=1) as queue:
        [first] = await receive(queue, 1)
        [second] = await receive(queue, 1)
    assert second.message_id == first.message_id
    assert second.receive_count == 2
    assert second.receipt_handle != first.receipt_handle


@both_kinds
async def test_a_released_message_is_there_at_once(localstack: LocalStack, fifo: bool) -> None:
    url = await localstack.make_queue(fifo=fifo)
    await send(localstack, url, "m")
    async with opened(url) as queue:
        [delivery] = await receive(queue, 1)
        assert await visible(localstack, url) == []
        await queue.release(delivery)
        assert await visible(localstack, url) == ["m"]


@both_kinds
async def test_a_message_released_with_a_delay_stays_away_for_as_long(
    localstack: LocalStack, fifo: bool
) -> None:
    url = await localstack.make_queue(fifo=fifo)
    await send(localstack, url, "m")
    async with opened(url) as queue:
        [delivery] = await receive(queue, 1)
        released_at = anyio.current_time()
        await queue.release(delivery, delay=2)
        [again] = await receive(queue, 1)
        assert anyio.current_time() >= released_at + 2
    assert again.message_id == delivery.message_id


async def test_a_released_message_of_a_fifo_queue_comes_before_the_rest_of_its_group(
    localstack: LocalStack,
) -> None:
    url = await localstack.make_queue(fifo=True)
    await send(localstack, url, "first", "second", group="g")
    async with opened(url) as queue:
        [first] = await receive(queue, 1)
        assert await visible(localstack, url) == []  # a group waits for its message that is in flight
        await queue.release(first)
        [again] = await receive(queue, 1)
        assert again.body == "first"
        await queue.delete(again)
        [second] = await receive(queue, 1)
        assert second.body == "second"


async def test_a_fifo_queue_takes_a_request_once(localstack: LocalStack) -> None:
    url = await localstack.make_queue(fifo=True)
    async with opened(url) as queue:
        await queue.send("once", "run-1")
        await queue.send("twice", "run-1")
        await queue.send("other", "run-2")
        bodies = {delivery.body for delivery in await receive(queue, 2)}
        assert bodies == {"once", "other"}
        assert (await queue.facts()).waiting == 0


@both_kinds
async def test_a_deleted_message_is_gone_for_good(localstack: LocalStack, fifo: bool) -> None:
    url = await localstack.make_queue(fifo=fifo)
    await send(localstack, url, "m")
    async with opened(url, visibility=1) as queue:
        [delivery] = await receive(queue, 1)
        await queue.delete(delivery)
        facts = await queue.facts()
    assert (facts.waiting, facts.in_flight) == (0, 0)


# Leases that are lost


@both_kinds
async def test_a_message_that_was_deleted_can_not_be_held_any_longer(
    localstack: LocalStack, fifo: bool
) -> None:
    url = await localstack.make_queue(fifo=fifo)
    await send(localstack, url, "m")
    async with opened(url) as queue:
        [delivery] = await receive(queue, 1)
        await queue.delete(delivery)
        lease_ends = delivery.lease_ends
        with pytest.raises(LeaseLostError, match="Message does not exist") as lost:
            await queue.extend(delivery)
        with pytest.raises(LeaseLostError):
            await queue.release(delivery)
    assert delivery.lease_ends == lease_ends
    assert delivery.receipt_handle not in str(lost.value)


@both_kinds
async def test_a_handle_of_another_queue_is_no_lease(localstack: LocalStack, fifo: bool) -> None:
    url, other_url = await localstack.make_queue(fifo=fifo), await localstack.make_queue(fifo=fifo)
    await send(localstack, other_url, "m")
    async with opened(url) as queue, opened(other_url) as other:
        [delivery] = await receive(other, 1)
        for operation in (queue.extend, queue.release, queue.delete):
            with pytest.raises(LeaseLostError):
                await operation(delivery)


async def test_a_fifo_queue_keeps_a_message_whose_lease_ran_out(localstack: LocalStack) -> None:
    url = await localstack.make_queue(fifo=True)
    await send(localstack, url, "m")
    async with opened(url, visibility=1) as queue:
        [delivery] = await receive(queue, 1)
        while not await visible(localstack, url):
            pass
        with pytest.raises(LeaseLostError, match="expired"):
            await queue.delete(delivery)
        assert await visible(localstack, url) == ["m"]


# Batches


@both_kinds
async def test_25_deletes_at_a_time_take_3_calls(localstack: LocalStack, fifo: bool) -> None:
    url = await localstack.make_queue(fifo=fifo)
    await send(localstack, url, *[f"m{number}" for number in range(25)])
    async with opened(url) as queue:
        deliveries = await receive(queue, 25)
        calls = calls_of(queue)
        async with anyio.create_task_group() as tasks:
            for delivery in deliveries:
                tasks.start_soon(queue.extend, delivery)
        async with anyio.create_task_group() as tasks:
            for delivery in deliveries:
                tasks.start_soon(queue.delete, delivery)
        assert calls == ["ChangeMessageVisibilityBatch"] * 3 + ["DeleteMessageBatch"] * 3
        facts = await queue.facts()
    assert (facts.waiting, facts.in_flight) == (0, 0)


@both_kinds
async def test_a_receipt_handle_that_was_passed_on_is_extended_though_all_calls_are_busy(
    localstack: LocalStack, fifo: bool
) -> None:
    url = await localstack.make_queue(fifo=fifo)
    await send(localstack, url, "ours", "fresh")
    async with opened(url) as passing:
        ours, fresh = sorted(await receive(passing, 2), key=lambda delivery: delivery.body, reverse=True)
    offer = Offer(fresh.message_id, fresh.receipt_handle, fresh.receive_count, hold_left=43_200)
    async with opened(url) as queue, anyio.create_task_group() as tasks:
        for _ in range(41):  # more than the batches take that are sent side by side
            tasks.start_soon(queue.extend, ours)
        await checkpoint()
        passed_on = offered(offer, ours, visibility=30)
        seen_at = anyio.current_time()
        await queue.extend(passed_on)
        assert passed_on.lease_ends >= seen_at + 29
    assert await visible(localstack, url) == []


@both_kinds
async def test_what_fails_in_a_batch_fails_alone(localstack: LocalStack, fifo: bool) -> None:
    url, other_url = await localstack.make_queue(fifo=fifo), await localstack.make_queue(fifo=fifo)
    await send(localstack, url, "a", "b")
    await send(localstack, other_url, "foreign")
    outcomes: dict[str, str] = {}
    async with opened(url) as queue, opened(other_url) as other:
        deliveries = [*await receive(queue, 2), *await receive(other, 1)]

        async def delete(delivery: Delivery) -> None:
            try:
                await queue.delete(delivery)
                outcomes[delivery.body] = "deleted"
            except LeaseLostError:
                outcomes[delivery.body] = "lost"

        calls = calls_of(queue)
        async with anyio.create_task_group() as tasks:
            for delivery in deliveries:
                tasks.start_soon(delete, delivery)
    assert calls == ["DeleteMessageBatch"]
    assert outcomes == {"a": "deleted", "b": "deleted", "foreign": "lost"}


# Facts and names


@both_kinds
async def test_a_queue_tells_of_itself(localstack: LocalStack, fifo: bool) -> None:
    url = await localstack.make_queue(fifo=fifo, visibility=45, redrive=3)
    await send(localstack, url, "a", "b")
    async with opened(url) as queue:
        await receive(queue, 1)
        facts = await queue.facts()
        assert queue.max_receives == 3
    assert facts.url == url
    assert facts.arn == f"arn:aws:sqs:{REGION}:000000000000:{url.rpartition('/')[2]}"
    assert facts.visibility_timeout == 45
    assert (facts.waiting, facts.in_flight) == (1, 1)
    assert facts.max_receive_count == 3
    assert (
        facts.dead_letter_arn
        == f"arn:aws:sqs:{REGION}:000000000000:" + localstack.dead_letters(url).rpartition("/")[2]
    )


async def test_a_queue_without_a_redrive_policy_says_so(localstack: LocalStack) -> None:
    async with opened(await localstack.make_queue()) as queue:
        facts = await queue.facts()
        assert queue.max_receives == math.inf
    assert (facts.dead_letter_arn, facts.max_receive_count) == (None, None)


@pytest.mark.parametrize("form", ["{name}", f"arn:aws:sqs:{REGION}:000000000000:{{name}}", "{url}"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_queue_is_found_by_name_arn_and_url_where_the_endpoint_is_set(
    localstack: LocalStack, form: str, slash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await localstack.make_queue()
    monkeypatch.setenv("AWS_ENDPOINT_URL", localstack.endpoint + slash)
    env = {"AWS_ENDPOINT_URL": localstack.endpoint + slash}
    async with opened(form.format(name=url.rpartition("/")[2], url=url), env=env) as queue:
        assert queue.url == url
        assert (await queue.facts()).url == url


async def test_a_url_is_its_own_endpoint(localstack: LocalStack) -> None:
    url = await localstack.make_queue()
    async with opened(url, env={}) as queue:
        assert (await queue.facts()).arn.endswith(url.rpartition("/")[2])


# Errors, in words


async def refusal(queue: AbstractAsyncContextManager[SqsQueue]) -> QueueError:
    """What a receive is answered."""
    async with queue as opened_queue:
        with pytest.raises(QueueError) as caught:
            await opened_queue.receive(1)
    return caught.value


async def test_a_queue_that_is_gone_is_named(localstack: LocalStack) -> None:
    url = await localstack.make_queue()
    await send(localstack, url, "m")
    async with opened(url) as queue:
        [delivery] = await receive(queue, 1)
        async with localstack.client() as sqs:
            await sqs.delete_queue(QueueUrl=url)
        for call in (queue.receive(1), queue.facts(), queue.extend(delivery), queue.delete(delivery)):
            with pytest.raises(QueueError, match=f"{url} does not exist: check DATAHUB_EXECUTOR_QUEUE"):
                await call


async def test_a_plain_name_that_nobody_knows_is_named(
    localstack: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", localstack.endpoint)
    with pytest.raises(QueueError, match="the queue no-such-queue does not exist"):
        async with opened("no-such-queue", env={"AWS_ENDPOINT_URL": localstack.endpoint}):
            pass


async def test_a_server_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}/000000000000/q"
    error = await refusal(opened(url))
    assert str(error).startswith(f"the queue {url} could not be reached: ")


async def test_without_a_region_the_setting_is_named() -> None:
    with pytest.raises(QueueError, match="set AWS_REGION"):
        async with opened("some-queue", region=None):
            pass


async def test_without_credentials_the_ways_to_give_some_are_named(
    localstack: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await localstack.make_queue()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "give the task a role" in str(await refusal(opened(url)))


@asynccontextmanager
async def answering(status: int, body: object, **headers: str) -> AsyncIterator[str]:
    """The URL of a queue whose server answers everything with this, as SQS; with None, it does not answer."""
    headers = {"x-amzn-RequestId": "1"} | headers
    over = anyio.Event()

    async def answer(_: web.Request) -> web.Response:
        if body is None:
            await over.wait()
        return web.json_response(body, status=status, headers=headers)

    async with serving(answer) as base:
        try:
            yield f"{base}/123456789012/q"
        finally:
            over.set()


async def test_a_missing_permission_is_told_with_aws_own_words() -> None:
    words = (
        "User: arn:aws:sts::123456789012:assumed-role/task/1 is not authorized to perform: sqs:receivemessage"
    )
    body = {"__type": "com.amazon.coral.service#AccessDeniedException", "Message": words}
    async with answering(403, body) as url:
        error = await refusal(opened(url))
    assert isinstance(error, QueueDeniedError)
    assert f"access to the queue {url} is denied" in str(error)
    assert words in str(error)


async def test_what_aws_says_of_a_wrong_signature_is_not_repeated() -> None:
    words = "The Canonical String for this request should have been 'x-amz-security-token:SESSION-TOKEN'"
    body = {"__type": "com.amazon.coral.service#InvalidSignatureException", "message": words}
    async with answering(403, body) as url:
        error = await refusal(opened(url))
    assert "credentials" in str(error)
    assert "(InvalidSignatureException)" in str(error)
    assert "SESSION-TOKEN" not in str(error)


def _failed(code: str, message: str) -> dict[str, Any]:
    return {"Failed": [{"Id": "0", "Code": code, "Message": message, "SenderFault": True}], "Successful": []}


def held() -> Delivery:
    """A message that is ours for a moment."""
    return Delivery("id", "handle", "{}", 1, sent_at=0.0, lease_ends=anyio.current_time() + 2)


async def test_after_twelve_hours_a_lease_is_not_renewed_but_not_lost_yet() -> None:
    words = (
        "Value 120 for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is "
        "beyond the limit [43200 seconds]"
    )
    async with answering(200, _failed("InvalidParameterValue", words)) as url, opened(url) as queue:
        with pytest.raises(QueueError, match=r"beyond the limit \[43200 seconds\]"):
            await queue.extend(held())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ReceiptHandleIsInvalid", "The input receipt handle is invalid."),
        ("AWS.SimpleQueueService.MessageNotInflight", "The message referred to isn't in flight."),
        ("InvalidParameterValue", "Value x for parameter ReceiptHandle is invalid. Reason: It has expired."),
    ],
)
async def test_the_words_of_aws_for_a_stale_handle_are_known(code: str, message: str) -> None:
    async with answering(200, _failed(code, message)) as url, opened(url) as queue:
        with pytest.raises(LeaseLostError):
            await queue.extend(held())


async def test_nothing_is_asked_of_a_message_whose_lease_has_ended() -> None:
    """The server would take the old handle, and hide or show what is somebody else's by now."""
    success = {"Successful": [{"Id": "0"}], "Failed": []}
    async with answering(200, success) as url, opened(url) as queue:
        delivery = held()
        delivery.lease_ends = anyio.current_time() - 1
        with pytest.raises(LeaseLostError):
            await queue.extend(delivery)
        with pytest.raises(LeaseLostError):
            await queue.release(delivery)


async def test_a_failure_on_the_side_of_aws_is_no_lost_lease() -> None:
    failed = _failed("InternalError", "We encountered an internal error. Please try again.")
    async with answering(200, failed) as url, opened(url) as queue:
        with pytest.raises(QueueError, match="InternalError: We encountered"):
            await queue.delete(held())


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        {"Messages": [{"MessageId": "1", "Body": "{}"}]},
        {"Messages": [{"MessageId": "1", "ReceiptHandle": "h", "Body": "{}", "Attributes": {}}]},
        {"Messages": "none"},
    ],
)
async def test_an_answer_that_can_not_be_read_is_an_error_of_the_queue(body: object) -> None:
    async with answering(200, body) as url:
        error = await refusal(opened(url))
    assert f"the queue {url} can't be used" in str(error)
    assert "DATAHUB_EXECUTOR_QUEUE" in str(error)


@pytest.mark.parametrize("text", ["<html>Please sign in</html>", "{}", "null", ""])
async def test_an_answer_that_is_not_from_sqs_is_no_empty_queue(text: str) -> None:
    async with somebody_else(text) as url:
        error = await refusal(opened(url))
        assert url in str(error)
        async with opened(url) as queue:
            for call in (
                queue.facts(),
                queue.extend(held()),
                queue.delete(held()),
                queue.send("{}", "g"),
            ):
                with pytest.raises(QueueError):
                    await call


@asynccontextmanager
async def somebody_else(text: str) -> AsyncIterator[str]:
    """The URL of a queue where a login page or the like answers."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/html")

    async with serving(answer) as base:
        yield f"{base}/123456789012/q"


async def test_an_entry_that_the_answer_leaves_out_was_not_done() -> None:
    async with answering(200, {"Successful": [], "Failed": []}) as url, opened(url) as queue:
        with pytest.raises(QueueError, match="leaves this entry out"):
            await queue.delete(held())


async def test_credentials_that_come_back_expired_are_an_error_of_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expired = {"AccessKeyId": "a", "SecretAccessKey": "b", "Token": "c", "Expiration": "2020-01-01T00:00:00Z"}
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(expired)

    async with serving(answer) as base, answering(200, {}) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{base}/credentials")
        error = await refusal(opened(url))
    assert "credentials are still expired" in str(error)


async def test_a_profile_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nope")
    with pytest.raises(QueueError, match=r"\(nope\).*AWS_PROFILE"):
        async with opened("some-queue"):
            pass


async def test_a_call_that_hangs_does_not_hold_up_the_next_one() -> None:
    async with answering(200, None) as url, opened(url, visibility=3) as queue:  # half a second a batch
        for _ in range(2):
            with pytest.raises(QueueError, match="did not answer in time"):
                await queue.extend(held())
