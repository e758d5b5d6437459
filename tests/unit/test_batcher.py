"""Requests that gather while a call is under way."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import anyio
import pytest

from executor.queue.batcher import BATCH_LIMIT, Batcher
from executor.queue.delivery import QueueError

DEADLINE = 10.0  # seconds; only a failing test takes them


@dataclass
class Server:
    """Takes batches of numbers, refuses some, and answers when it is told to."""

    refused: set[int] = field(default_factory=set)
    calls: list[list[int]] = field(default_factory=list)
    open: anyio.Event = field(default_factory=anyio.Event)

    async def send(self, batch: Sequence[int]) -> list[Exception | None]:
        self.calls.append(list(batch))
        await self.open.wait()
        return [ValueError(str(number)) if number in self.refused else None for number in batch]


@dataclass
class Submitters:
    """Those who submitted: what became of each."""

    batcher: Batcher[int]
    outcomes: dict[int, str] = field(default_factory=dict)

    async def submit(self, number: int) -> None:
        try:
            await self.batcher.submit(number)
            self.outcomes[number] = "sent"
        except ValueError as error:
            self.outcomes[number] = f"refused {error}"
        except QueueError as error:
            self.outcomes[number] = str(error)


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def batcher(server: Server) -> AsyncIterator[Batcher[int]]:
    batcher: Batcher[int] = Batcher(server.send)
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batcher.serve)
            yield batcher
            tasks.cancel_scope.cancel()


async def test_a_lone_request_goes_at_once(server: Server, batcher: Batcher[int]) -> None:
    server.open.set()
    await batcher.submit(1)
    await batcher.submit(2)
    assert server.calls == [[1], [2]]


async def test_what_arrives_during_a_call_goes_together_in_tens(
    server: Server, batcher: Batcher[int]
) -> None:
    submitters = Submitters(batcher)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submitters.submit, 0)
        await anyio.wait_all_tasks_blocked()
        for number in range(1, 26):
            tasks.start_soon(submitters.submit, number)
        await anyio.wait_all_tasks_blocked()
        assert submitters.outcomes == {}
        server.open.set()
    assert server.calls == [[0], list(range(1, 11)), list(range(11, 21)), list(range(21, 26))]
    assert submitters.outcomes == dict.fromkeys(range(26), "sent")


async def test_requests_at_the_same_time_need_no_more_calls_than_they_fill(
    server: Server, batcher: Batcher[int]
) -> None:
    server.open.set()
    async with anyio.create_task_group() as tasks:
        for number in range(25):
            tasks.start_soon(batcher.submit, number)
    assert [len(call) for call in server.calls] == [BATCH_LIMIT, BATCH_LIMIT, 5]


async def test_a_refusal_reaches_only_its_submitter(server: Server, batcher: Batcher[int]) -> None:
    server.refused.update({2, 5})
    server.open.set()
    submitters = Submitters(batcher)
    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(submitters.submit, number)
    assert len(server.calls) == 1
    assert submitters.outcomes == dict.fromkeys(range(8), "sent") | {2: "refused 2", 5: "refused 5"}


async def test_who_gives_up_before_the_call_is_left_out_of_it(server: Server, batcher: Batcher[int]) -> None:
    submitters, scope = Submitters(batcher), anyio.CancelScope()

    async def give_up() -> None:
        with scope:
            await batcher.submit(2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(submitters.submit, 1)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(give_up)
        tasks.start_soon(submitters.submit, 3)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        server.open.set()
    assert server.calls == [[1], [3]]
    assert submitters.outcomes == {1: "sent", 3: "sent"}


async def test_who_gives_up_during_the_call_does_not_keep_others_from_their_answer(
    server: Server, batcher: Batcher[int]
) -> None:
    server.refused.add(2)
    submitters, scope = Submitters(batcher), anyio.CancelScope()

    async def give_up() -> None:
        with scope:
            await batcher.submit(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(give_up)
        tasks.start_soon(submitters.submit, 2)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        server.open.set()
    assert server.calls == [[1, 2]]
    assert submitters.outcomes == {2: "refused 2"}


async def test_a_call_that_raises_is_an_answer_to_all_of_it_and_not_the_end() -> None:
    calls: list[list[int]] = []

    async def send(batch: Sequence[int]) -> list[Exception | None]:
        calls.append(list(batch))
        if len(calls) == 1:
            raise RuntimeError("out of order")
        if len(calls) == 2:
            return [None]
        return [None] * len(batch)

    submitters = Submitters(batcher := Batcher(send))
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as serving:
            serving.start_soon(batcher.serve)
            for numbers in ((1, 2), (3, 4), (5, 6)):
                async with anyio.create_task_group() as tasks:
                    for number in numbers:
                        tasks.start_soon(submitters.submit, number)
            serving.cancel_scope.cancel()
    assert submitters.outcomes == {
        1: "RuntimeError: out of order",
        2: "RuntimeError: out of order",
        3: "1 answers for 2 entries of a batch",
        4: "1 answers for 2 entries of a batch",
        5: "sent",
        6: "sent",
    }


async def test_calls_go_side_by_side_up_to_a_bound(server: Server) -> None:
    submitters = Submitters(batcher := Batcher(server.send, side_by_side=2))
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as serving:
            serving.start_soon(batcher.serve)
            async with anyio.create_task_group() as tasks:
                for number in range(25):
                    tasks.start_soon(submitters.submit, number)
                await anyio.wait_all_tasks_blocked()
                assert server.calls == [list(range(10)), list(range(10, 20))]
                server.open.set()
            serving.cancel_scope.cancel()
    assert server.calls[2:] == [list(range(20, 25))]
    assert submitters.outcomes == dict.fromkeys(range(25), "sent")


async def test_nobody_is_left_waiting_when_the_sending_ends(server: Server) -> None:
    submitters = Submitters(batcher := Batcher(server.send))
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            serving = anyio.CancelScope()

            async def serve() -> None:
                with serving:
                    await batcher.serve()

            tasks.start_soon(serve)
            tasks.start_soon(submitters.submit, 1)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(submitters.submit, 2)
            await anyio.wait_all_tasks_blocked()
            assert server.calls == [[1]]
            serving.cancel()
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(submitters.submit, 3)
    assert set(submitters.outcomes) == {1, 2, 3}
    assert all("the service is stopping" in outcome for outcome in submitters.outcomes.values())
