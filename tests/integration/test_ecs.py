"""The service as an ECS task: protected from scale-in while it has runs, whatever the agent answers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import anyio
import httpx
import pytest
import structlog
from structlog.testing import capture_logs

from executor.backoff import Backoff
from executor.claim import Claim
from executor.datahub.client import DataHub
from executor.datahub.transport import Transport
from executor.journal import Journal
from executor.operations.ecs import (
    EcsTask,
    Protection,
    find_task,
    minutes_for,
    put_protection,
    scale_in_protection,
)
from executor.operations.metrics import Metrics
from executor.queue.delivery import Delivery
from executor.reporter import Reporter
from executor.run import ActiveRuns, Run
from tests.integration.service import PATIENT, Site
from tests.servers.ecs_agent import (
    BLOCKED,
    DENIED,
    ECS_AWAY,
    NO_ROLE,
    NONSENSE,
    NOT_OF_A_SERVICE,
    TASK_ID,
    THROTTLED,
    TOO_MANY_CALLS,
    Answer,
    EcsAgent,
    TaskProtection,
    ecs_agent,
)
from tests.servers.executor import eventually
from tests.servers.process import free_port
from tests.simulation.kernel import Kernel, Loop

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0  # seconds
REFUSED = "scale_in_protection_refused"

Story = Callable[[ActiveRuns, TaskProtection], Awaitable[None]]


@pytest.fixture
async def agent() -> AsyncIterator[EcsAgent]:
    async with ecs_agent() as agent:
        yield agent


DATAHUB = DataHub(Transport(httpx.AsyncClient(), lambda _operation, _failure: None))  # that nobody calls


def a_run(exec_id: str = "r1") -> Run:
    delivery = Delivery("message", "handle", "{}", 1, sent_at=0.0, lease_ends=120.0)
    journal = Journal(None, executor_id="remote", host="host", clock=lambda: 0.0)
    reporter = Reporter(DATAHUB, exec_id, Claim("owner", 0, "message", 1), Backoff, 8.0)
    return Run(exec_id, delivery, journal, reporter, structlog.get_logger())


def play(story: Story, *, task_timeout: float = DAY) -> tuple[TaskProtection, list[MutableMapping[str, Any]]]:
    """Have the shipped code live through a story in virtual time; ECS's side of it, and what was logged."""
    kernel, faults, played = Kernel(), list[str](), list[asyncio.Task[None]]()
    loop = Loop(kernel, 0, faults.append)
    ecs = TaskProtection(now=loop.time)

    def answer(request: httpx.Request) -> httpx.Response:
        status, text = ecs.put(request.content)
        return httpx.Response(status, text=text)

    async def main() -> None:
        active = ActiveRuns()
        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client,
            anyio.create_task_group() as tasks,
        ):
            protection = Protection(
                lambda minutes: put_protection(client, "http://agent/state", minutes),
                active,
                minutes_for(task_timeout),
            )
            tasks.start_soon(protection.serve)
            await story(active, ecs)
            tasks.cancel_scope.cancel()

    with capture_logs() as logged:
        loop.post(lambda: played.append(loop.create_task(main())))
        kernel.run(until=30 * DAY)
        loop.close()
    assert not faults
    played[0].result()
    return ecs, logged


def asked(ecs: TaskProtection) -> list[tuple[int, bool]]:
    """When each call came, in whole seconds, and whether it was for or against."""
    return [(round(call.at), call.enabled) for call in ecs.calls]


async def hold(active: ActiveRuns, seconds: float, exec_id: str = "r1") -> None:
    run = a_run(exec_id)
    active.add(run)
    await anyio.sleep(seconds)
    active.remove(run)


# --- in virtual time: hours and days ------------------------------------------------------------------------


def test_it_is_taken_with_the_first_run_and_lifted_after_the_last_one() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        await anyio.sleep(HOUR)
        assert not ecs.calls, "an idle task may be stopped"
        async with anyio.create_task_group() as runs:
            runs.start_soon(hold, active, 10 * MINUTE, "r1")
            await anyio.sleep(0.1)
            assert ecs.held
            runs.start_soon(hold, active, 20 * MINUTE, "r2")
        assert ecs.held
        await anyio.sleep(HOUR)

    ecs, logged = play(story)
    end = HOUR + 20 * MINUTE
    assert asked(ecs) == [(HOUR, True), (end + 30, False)]
    assert [entry["held"] for entry in logged if entry["event"] == "scale_in_protection"] == [True, False]


def test_a_stream_of_short_runs_is_one_call() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        for number in range(200):
            await hold(active, 2.0, f"r{number}")
            await anyio.sleep(15)
            assert ecs.held
        await anyio.sleep(HOUR)

    ecs, _ = play(story)
    assert [call.enabled for call in ecs.calls] == [True, False]


def test_short_runs_now_and_then_make_four_calls_a_minute_at_most() -> None:
    async def story(active: ActiveRuns, _: TaskProtection) -> None:
        for number in range(100):
            await hold(active, 0.01, f"r{number}")
            await anyio.sleep(30.1)

    ecs, _ = play(story)
    assert len(ecs.calls) <= 4 * (ecs.calls[-1].at / MINUTE + 1)


def test_a_run_of_days_is_never_without_it() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        async with anyio.create_task_group() as runs:
            runs.start_soon(hold, active, 6 * DAY)
            await anyio.sleep(0.1)
            for _ in range(6 * 24 - 1):
                assert ecs.held
                await anyio.sleep(HOUR)

    ecs, logged = play(story)
    assert asked(ecs) == [(day * DAY, True) for day in range(6)]
    assert len(logged) == 1, "renewals are no news"


def test_a_run_is_covered_to_its_end_though_ecs_refuses_every_renewal() -> None:
    """As it does while a deployment is held up; the run begins when another one has been going for long."""

    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        async with anyio.create_task_group() as runs:
            runs.start_soon(hold, active, 23 * HOUR, "r1")
            await anyio.sleep(22 * HOUR)
            ecs.only_answer = BLOCKED
            runs.start_soon(hold, active, DAY, "r2")
            for _ in range(24):
                assert ecs.held
                await anyio.sleep(HOUR - 1)

    _, logged = play(story)
    complaints = [entry for entry in logged if entry["event"] == REFUSED]
    assert complaints[0]["code"] == "DEPLOYMENT_BLOCKED"
    assert complaints[0]["consequence"] == "none before the protection that there is expires"


def test_what_expired_is_known_and_taken_again() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        async with anyio.create_task_group() as runs:
            runs.start_soon(hold, active, 5 * HOUR)
            await anyio.sleep(MINUTE)
            ecs.only_answer = BLOCKED
            await anyio.sleep(2 * HOUR + 5 * MINUTE)
            assert not ecs.held
            ecs.only_answer = None
            await anyio.sleep(2 * MINUTE)
            assert ecs.held

    _, logged = play(story, task_timeout=HOUR)
    complaints = [entry for entry in logged if entry["event"] == REFUSED]
    assert [entry["held"] for entry in complaints] == [True, False], "said once an hour"
    assert [entry["held"] for entry in logged if entry["event"] == "scale_in_protection"] == [True, True]


@pytest.mark.parametrize("answer", [DENIED, BLOCKED, THROTTLED, ECS_AWAY, TOO_MANY_CALLS, NONSENSE])
def test_refused_it_is_tried_again_seldom_and_said_seldom(answer: Answer) -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        ecs.only_answer = answer
        async with anyio.create_task_group() as runs:
            runs.start_soon(hold, active, 4 * HOUR + 2 * MINUTE)
            await anyio.sleep(4 * HOUR)
            assert not ecs.held
            ecs.only_answer = None
            await anyio.sleep(2 * MINUTE - 1)
            assert ecs.held

    ecs, logged = play(story)
    assert len(ecs.calls) < 4 * 60 + 10, "once a minute at most"
    assert len([entry for entry in logged if entry["event"] == REFUSED]) == 4, "once an hour"


def test_one_refusal_among_many_runs_costs_a_second() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        ecs.next_answers.append(THROTTLED)
        await hold(active, 1.1)
        assert ecs.held

    play(story)


def test_refused_for_good_short_runs_do_not_ask_each_time() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        ecs.only_answer = NOT_OF_A_SERVICE
        for number in range(600):
            await hold(active, 5.0, f"r{number}")
            await anyio.sleep(1)

    ecs, _ = play(story)
    assert len(ecs.calls) < 70


def test_what_cannot_be_lifted_is_tried_until_it_is() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        await hold(active, 10.0)
        ecs.next_answers.extend([ECS_AWAY] * 5)
        await anyio.sleep(2 * MINUTE)
        assert not ecs.held

    ecs, _ = play(story)
    assert [call.enabled for call in ecs.calls] == [True] + [False] * 6


def test_what_may_be_held_for_want_of_an_answer_is_lifted_too() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        ecs.next_answers.append(ECS_AWAY)
        await hold(active, 0.1)
        await anyio.sleep(HOUR)

    ecs, _ = play(story)
    assert [call.enabled for call in ecs.calls] == [True, False]


def test_an_agent_that_never_answers_is_left_alone_once_nothing_can_be_held_any_more() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        ecs.only_answer = ECS_AWAY
        await hold(active, 0.1)
        await anyio.sleep(DAY)

    ecs, _ = play(story, task_timeout=HOUR)
    assert ecs.calls[-1].at < 2 * HOUR


def test_a_run_takes_it_at_once_though_lifting_it_has_just_failed() -> None:
    async def story(active: ActiveRuns, ecs: TaskProtection) -> None:
        await hold(active, 1.0)
        await anyio.sleep(29.5)
        ecs.next_answers.extend([ECS_AWAY] * 20)
        await anyio.sleep(10 * MINUTE)
        assert ecs.held
        ecs.next_answers.clear()
        await hold(active, 0.1)
        await anyio.sleep(MINUTE)
        assert not ecs.held

    play(story)


@pytest.mark.parametrize(("task_timeout", "minutes"), [(DAY, 2880), (HOUR, 120), (30 * DAY, 2880), (1.0, 10)])
def test_it_is_taken_for_twice_as_long_as_a_run_may_last(task_timeout: float, minutes: int) -> None:
    async def story(active: ActiveRuns, _: TaskProtection) -> None:
        await hold(active, 1.0)

    ecs, _ = play(story, task_timeout=task_timeout)
    assert ecs.calls[0].minutes == minutes


# --- over HTTP ----------------------------------------------------------------------------------------------


async def test_an_agent_that_answers_protects(agent: EcsAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    active, metrics = ActiveRuns(), Metrics("remote")
    async with scale_in_protection(agent.env, active, metrics, DAY, linger=0.05):
        assert protected(metrics) == 0
        active.add(run := a_run())
        await until(lambda: agent.task.held and protected(metrics) == 1)
        active.remove(run)
        await until(lambda: not agent.task.held and protected(metrics) == 0)
    assert [call.enabled for call in agent.task.calls] == [True, False]


async def test_it_is_lifted_when_the_service_ends(agent: EcsAgent) -> None:
    active, run = ActiveRuns(), a_run()
    async with scale_in_protection(agent.env, active, Metrics("remote"), DAY):
        active.add(run)
        await until(lambda: agent.task.held)
        active.remove(run)
    assert not agent.task.held


@pytest.mark.parametrize(
    ("answer", "code", "way_out"),
    [
        (DENIED, "AccessDeniedException", "ecs:UpdateTaskProtection"),
        (NO_ROLE, "AccessDeniedException", "taskRoleArn"),
        (BLOCKED, "DEPLOYMENT_BLOCKED", "more protected tasks than it is to have"),
        (NOT_OF_A_SERVICE, "TASK_NOT_VALID", "not by a service"),
        (THROTTLED, "ThrottlingException", "tried again"),
        (ECS_AWAY, "RequestCanceled", "tried again"),
        (TOO_MANY_CALLS, "HTTP 429", "tried again"),
        (NONSENSE, "HTTP 200", "tried again"),
        (Answer(200, '{"protection": {"ProtectionEnabled": false}}'), "HTTP 200", "tried again"),
        (Answer(404, "[" * 100_000), "HTTP 404", "tried again"),
    ],
)
async def test_a_refusal_is_told_with_the_way_out(
    agent: EcsAgent, answer: Answer, code: str, way_out: str
) -> None:
    agent.task.only_answer = answer
    [complaint] = await complaints_of_a_run(agent.env)
    assert complaint["code"] == code
    assert way_out in complaint["way_out"]
    assert "its runs are handed over" in complaint["consequence"]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "http://[", "nonsense"])
async def test_a_dead_agent_keeps_nothing_from_working(uri: str) -> None:
    [complaint] = await complaints_of_a_run({"ECS_AGENT_URI": uri})
    assert "can't be reached" in complaint["reason"]


async def test_an_agent_that_does_not_answer_is_not_waited_for_at_the_end(agent: EcsAgent) -> None:
    active = ActiveRuns()
    agent.hang()
    with anyio.fail_after(5):
        async with scale_in_protection(agent.env, active, Metrics("remote"), DAY):
            active.add(a_run())
            await until(lambda: agent.task.held)
    await until(lambda: [call.enabled for call in agent.task.calls] == [True, False])


async def test_outside_of_ecs_there_is_nothing_to_protect() -> None:
    metrics = Metrics("remote")
    async with scale_in_protection({}, ActiveRuns(), metrics, DAY):
        assert protected(metrics) is None
    assert await find_task({}) is None


async def test_the_task_is_found(agent: EcsAgent) -> None:
    task = await find_task(agent.env)
    assert task == EcsTask(TASK_ID, "ingestion", "datahub-executor:7")
    assert task.host == f"ECS task {TASK_ID}"


@pytest.mark.parametrize(
    "metadata", [Answer(500, "no"), Answer(200, "{}"), Answer(200, "[]"), Answer(200, '{"TaskARN": null}')]
)
async def test_a_task_that_is_not_told_is_done_without(agent: EcsAgent, metadata: Answer) -> None:
    agent.metadata = metadata
    assert await find_task(agent.env) is None


async def test_a_slow_agent_does_not_delay_the_start(agent: EcsAgent) -> None:
    agent.hang()
    with anyio.fail_after(5):
        assert await find_task(agent.env) is None


# --- the service --------------------------------------------------------------------------------------------


async def test_a_service_is_protected_from_a_runs_receipt_to_its_end_and_while_it_drains(
    site: Site, agent: EcsAgent
) -> None:
    site.fake_cli("fake", PATIENT)
    gauge = "datahub_executor_task_protected"
    async with site.service(**agent.env, DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT="10") as service:
        assert await service.metric(gauge) == 0
        assert not agent.task.calls
        await site.submit("r1")
        await site.clis.noted("started")
        await site.until_metric(service, gauge, 1)
        assert agent.task.held
        os.kill(os.getpid(), signal.SIGTERM)
        await site.event("draining")
        assert agent.task.held
        site.clis.let("go")
        await site.stopped(service)
    assert not agent.task.held
    assert [call.enabled for call in agent.task.calls] == [True, False]
    events = [event["event"] for event in site.events()]
    assert events.index("run_settled") < len(events) - events[::-1].index("scale_in_protection") - 1
    assert f"Executor:  remote on ECS task {TASK_ID}" in (await site.ended("r1")).value["report"]
    [task] = site.events("ecs_task")
    assert (task["task"], task["cluster"], task["definition"]) == (TASK_ID, "ingestion", "datahub-executor:7")


async def test_without_the_permission_runs_go_on_as_ever(site: Site, agent: EcsAgent) -> None:
    agent.task.only_answer = DENIED
    site.fake_cli("fake", PATIENT)
    async with site.service(**agent.env):
        await site.submit("r1")
        await site.event(REFUSED)
        site.clis.let("go")
        assert (await site.settled("r1")).status == "SUCCESS"


async def complaints_of_a_run(env: dict[str, str]) -> list[MutableMapping[str, Any]]:
    """What is said of an agent that does nothing for a run."""
    active = ActiveRuns()
    with capture_logs() as logged:
        async with scale_in_protection(env, active, Metrics("remote"), DAY):
            active.add(a_run())
            await until(lambda: any(entry["event"] == REFUSED for entry in logged))
    return [entry for entry in logged if entry["event"] == REFUSED]


async def until(condition: Callable[[], bool]) -> None:
    await eventually(lambda: condition() or None, lambda: "it never came true", 10)


def protected(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("datahub_executor_task_protected")
