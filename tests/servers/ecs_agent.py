"""The ECS agent's endpoint as a container sees it: real HTTP, answers as AWS documents them, and what can go wrong.

See *Amazon ECS task scale-in protection endpoint* and *Amazon ECS task metadata v4 JSON response for tasks on
Fargate* in the ECS Developer Guide.
"""

import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import anyio
from aiohttp import web

TASK_ID = "0f9de17a6465404e8b1b2356dc13c2f8"
TASK_ARN = f"arn:aws:ecs:eu-central-1:123456789012:task/ingestion/{TASK_ID}"
METADATA = {
    "Cluster": "arn:aws:ecs:eu-central-1:123456789012:cluster/ingestion",
    "TaskARN": TASK_ARN,
    "Family": "datahub-executor",
    "Revision": "7",
    "DesiredStatus": "RUNNING",
    "KnownStatus": "RUNNING",
    "Limits": {"CPU": 1, "Memory": 4096},
    "LaunchType": "FARGATE",
}
LONGEST = 2880  # minutes
DEFAULT = 120  # minutes


class Answer(NamedTuple):
    """What the agent answers."""

    status: int
    text: str


def failure(reason: str) -> Answer:
    """ECS took the call and refuses: that is a 200."""
    return Answer(200, json.dumps({"failure": {"Arn": TASK_ARN, "Detail": None, "Reason": reason}}))


def error(status: int, code: str, message: str) -> Answer:
    """The agent could not have it done."""
    document = {"requestID": "7a1e", "error": {"Arn": TASK_ARN, "Code": code, "Message": message}}
    return Answer(status, json.dumps(document))


BLOCKED = failure("DEPLOYMENT_BLOCKED")
NOT_OF_A_SERVICE = failure("TASK_NOT_VALID")
DENIED = error(
    400,
    "AccessDeniedException",
    "User: arn:aws:sts::123456789012:assumed-role/executor/0f9d is not authorized to perform: "
    f"ecs:UpdateTaskProtection on resource: {TASK_ARN} because no identity-based policy allows it",
)
NO_ROLE = error(
    403, "AccessDeniedException", "Invalid Request: no task IAM role credentials available for task"
)
THROTTLED = error(400, "ThrottlingException", "Rate exceeded")
ECS_AWAY = error(504, "RequestCanceled", "Timed out calling ECS Task Protection API")
TOO_MANY_CALLS = Answer(429, "Too Many Requests")
NONSENSE = Answer(200, "<html>")


class Call(NamedTuple):
    """A change of the protection that was asked for, and when (seconds of the clock)."""

    at: float
    enabled: bool
    minutes: int | None


@dataclass
class TaskProtection:
    """ECS's side of one task's protection. `now` is its clock, in seconds."""

    now: Callable[[], float] = time.monotonic
    calls: list[Call] = field(default_factory=list)
    next_answers: deque[Answer] = field(default_factory=deque)  # to the next calls, which have no effect
    only_answer: Answer | None = None  # to all calls, which have no effect
    _lasts_until: float = 0.0

    @property
    def held(self) -> bool:
        """Whether a scale-in would leave the task alone."""
        return self.now() < self._lasts_until

    def put(self, body: bytes) -> Answer:
        """Carry out a call, unless it is to fail."""
        asked: dict[str, Any] = json.loads(body)
        enabled, minutes = asked.pop("ProtectionEnabled", None), asked.pop("ExpiresInMinutes", None)
        if asked or not isinstance(enabled, bool):
            return error(400, "InvalidParameterException", "UpdateTaskProtection: failed to decode request")
        self.calls.append(Call(self.now(), enabled, minutes))
        if self.next_answers:
            return self.next_answers.popleft()
        if self.only_answer is not None:
            return self.only_answer
        if minutes is not None and not (isinstance(minutes, int) and 1 <= minutes <= LONGEST and enabled):
            return error(400, "InvalidParameterException", "expiresInMinutes must be between 1 and 2880")
        self._lasts_until = self.now() + (minutes or DEFAULT) * 60 if enabled else 0.0
        return self.state()

    def state(self) -> Answer:
        """What a GET is answered."""
        left = timedelta(seconds=self._lasts_until - self.now())
        ends = (datetime.now(UTC) + left).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        protection = {"ProtectionEnabled": self.held, "ExpirationDate": ends if self.held else None}
        return Answer(200, json.dumps({"protection": {**protection, "TaskArn": TASK_ARN}}))


class EcsAgent:
    """The agent of one task, on a port of this machine. Made by `ecs_agent`."""

    def __init__(self) -> None:
        self.task = TaskProtection()
        self.metadata: Answer = Answer(200, json.dumps(METADATA))
        self.port = 0
        self._answering = anyio.Event()
        self._answering.set()

    @property
    def env(self) -> dict[str, str]:
        """What a container of the task finds in its environment."""
        return {
            "ECS_AGENT_URI": f"http://127.0.0.1:{self.port}/api/3a5c",
            "ECS_CONTAINER_METADATA_URI_V4": f"http://127.0.0.1:{self.port}/v4/3a5c",
        }

    def hang(self) -> None:
        """Take calls, carry them out, and answer none until `answer`."""
        self._answering = anyio.Event()

    def answer(self) -> None:
        """Answer again."""
        self._answering.set()

    async def start(self, runner: web.AppRunner) -> None:
        """Listen."""
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site.port

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application()
        app.router.add_put("/api/3a5c/task-protection/v1/state", self._put)
        app.router.add_get("/api/3a5c/task-protection/v1/state", self._get)
        app.router.add_get("/v4/3a5c/task", self._task)
        return app

    async def _put(self, request: web.Request) -> web.Response:
        return await self._answer(self.task.put(await request.read()))

    async def _get(self, _: web.Request) -> web.Response:
        return await self._answer(self.task.state())

    async def _task(self, _: web.Request) -> web.Response:
        return await self._answer(self.metadata)

    async def _answer(self, answer: Answer) -> web.Response:
        await self._answering.wait()
        kind = "application/json" if answer.text.startswith("{") else "text/plain"
        return web.Response(status=answer.status, text=answer.text, content_type=kind)


@asynccontextmanager
async def ecs_agent() -> AsyncIterator[EcsAgent]:
    """An agent that answers until the block ends."""
    agent = EcsAgent()
    runner = web.AppRunner(agent.app(), access_log=None, shutdown_timeout=0.1)
    try:
        await agent.start(runner)
        yield agent
    finally:
        agent.answer()
        await runner.cleanup()
