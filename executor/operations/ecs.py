"""The service as an ECS task: which one it is, and how ECS is kept from ending it while it has runs.

Facts: contract, section 7; *Amazon ECS task scale-in protection endpoint* in the ECS Developer Guide. The agent
answers 200 with `{"protection": {"ProtectionEnabled": …, "ExpirationDate": …, "TaskArn": …}}`, also 200 with
`{"failure": {"Reason": …, "Detail": …}}` where ECS refuses, else 4xx or 5xx with
`{"error": {"Code": …, "Message": …}}`; more than 40 calls a second are throttled.
"""

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import anyio
import httpx
import structlog

from executor import lack
from executor.backoff import Backoff
from executor.operations.metrics import Metrics

LINGER = 30.0  # seconds after the last run: a stream of short ones makes four calls a minute at most
LONGEST_PROTECTION = 2880  # minutes; ECS takes no more
SHORTEST_PROTECTION = 10  # minutes
RENEW_AT = 1 / 2  # of the protection
CALL_TIMEOUT = 10.0  # seconds; the agent gives up on ECS sooner
RELEASE_TIMEOUT = 1.0  # seconds that the service's end waits: SIGKILL follows 2 s after the longest drain
LONGEST_RETRY = 120.0  # seconds between two tries of what is refused
COMPLAIN_EVERY = 3600.0  # seconds between two complaints of the same refusal
METADATA_TIMEOUT = 1.0  # seconds that the service's start waits

_PERMISSION = "allow ecs:UpdateTaskProtection to the task role (taskRoleArn of the task definition)"
_WAYS_OUT = {
    "AccessDeniedException": _PERMISSION,
    "UnrecognizedClientException": _PERMISSION,
    "DEPLOYMENT_BLOCKED": "none needed: the service has more protected tasks than it is to have tasks at all",
    "TASK_NOT_VALID": "none needed where the task was started alone, not by a service: then nothing scales it in",
    "ThrottlingException": "none needed: it is tried again",
}
_STILL_HELD = "none before the protection that there is expires"
_NOT_HELD = "a scale-in or a deployment may stop this task: then its runs are handed over"

log = structlog.get_logger()


class Runs(Protocol):
    """The runs that the executor holds, see `ActiveRuns`."""

    def __len__(self) -> int: ...

    async def changed(self, seconds: float) -> None:
        """Return once one comes or goes, at the latest after so many seconds."""


class ProtectionError(Exception):
    """The protection was not changed; the message says why. `code` is ECS's word for it.

    `uncertain`: it may have been changed all the same, as nobody answered.
    """

    def __init__(self, words: str, code: str, *, uncertain: bool = False) -> None:
        super().__init__(words)
        self.code = code
        self.uncertain = uncertain


@dataclass(frozen=True, slots=True)
class EcsTask:
    """The task that the service runs in."""

    task_id: str
    cluster: str
    definition: str  # family and revision

    @property
    def host(self) -> str:
        """What to call it in a report: the container's own host name leads nobody to the task."""
        return f"ECS task {self.task_id}"


@dataclass(slots=True)
class Protection:
    """Holds the task's scale-in protection while there are runs: one call a change, none for a run.

    It is needed from a run's receipt until its message is let go: as long as `active` holds the run, whatever its
    phase, also while the service drains. After the last one it is kept for `linger` seconds.

    It is taken for twice as long as a run may last, and renewed when half of that is gone. So every run is covered
    to its end from its first moment, even where ECS refuses each renewal: it does so while protected tasks hold up
    a deployment, or a scale-in (`DEPLOYMENT_BLOCKED`).

    **Where ECS refuses, because it is stopping tasks already or for any other reason**, the runs go on, and so does
    the intake. The refusal says that some task is one too many, not which: did each one that is told so hold back,
    nobody would take what is waiting, and too little would wait for the desired count to rise. What is protected
    stays so until it expires. A task that is not may be stopped: by SIGTERM, after which its runs have the time of
    a drain to end, and are then handed over (`UP_FOR_RETRY`). It is tried again after 1, 2, 4, … 120 seconds.
    """

    put: Callable[[int | None], Awaitable[None]]
    """Sets it for so many minutes, or lifts it (None). Raises ProtectionError."""
    active: Runs
    minutes: int
    linger: float = LINGER  # seconds
    backoff: Backoff = field(default_factory=lambda: Backoff(first=1.0, longest=LONGEST_RETRY))
    _lasts_until: float = -math.inf  # monotonic, seconds; counted from before the call that set it
    _renew_at: float = -math.inf
    _release_at: float = math.inf
    _may_last_until: float = -math.inf  # later than that, if a call was not answered
    _failing: bool | None = None  # what failed last: taking it (True) or lifting it
    _retry_at: float = -math.inf
    _complaint: tuple[str, float] = ("", -math.inf)  # the last one's code, and when it was made

    @property
    def held(self) -> bool:
        """Whether ECS is known to keep the task."""
        return anyio.current_time() < self._lasts_until

    async def serve(self) -> None:
        """Take, renew and lift it as runs come and go, until cancelled."""
        while True:
            protect, due = self._due(anyio.current_time())
            wait = due - anyio.current_time()
            if wait > 0:
                await self.active.changed(wait)
            else:
                await self._ask(protect=protect)

    async def release(self) -> None:
        """Lift it as the last thing that the service does; should that fail, the task's end lifts it."""
        if anyio.current_time() < self._may_last_until:
            with anyio.move_on_after(RELEASE_TIMEOUT):
                await self._ask(protect=False)

    def _due(self, now: float) -> tuple[bool, float]:
        """What to ask for next, and when (monotonic, seconds)."""
        protect = len(self.active) > 0
        if protect:
            self._release_at, due = math.inf, self._renew_at
        elif now < self._may_last_until:
            self._release_at = due = min(self._release_at, now + self.linger)
        else:
            due = math.inf
        return protect, max(due, self._retry_at) if self._failing is protect else due

    async def _ask(self, *, protect: bool) -> None:
        asked_at, before = anyio.current_time(), self._may_last_until
        lasts_until = asked_at + self.minutes * 60 if protect else -math.inf
        self._may_last_until = max(before, lasts_until)  # also if we are cancelled
        try:
            await self.put(self.minutes if protect else None)
        except ProtectionError as error:
            if not error.uncertain:
                self._may_last_until = before
            if error.uncertain and not protect:  # a run that comes now must take it anew
                self._lasts_until = self._renew_at = -math.inf
            self._failing, self._retry_at = protect, anyio.current_time() + self.backoff.next_wait()
            self._complain(error, asked_at)
            return
        changed = protect != (asked_at < self._lasts_until)
        self._lasts_until = self._may_last_until = lasts_until
        self._renew_at = lasts_until - self.minutes * 60 * (1 - RENEW_AT)
        self._failing, self._release_at = None, math.inf
        self._complaint = "", -math.inf
        self.backoff.reset()
        if changed:
            log.info("scale_in_protection", held=protect, **({"minutes": self.minutes} if protect else {}))

    def _complain(self, error: ProtectionError, now: float) -> None:
        code, at = self._complaint
        if code == error.code and now - at < COMPLAIN_EVERY:
            return
        self._complaint = error.code, now
        log.warning(
            "scale_in_protection_refused",
            code=error.code,
            reason=str(error),
            held=self.held,
            consequence=_STILL_HELD if self.held else _NOT_HELD,
            way_out=_WAYS_OUT.get(error.code, "see the ECS agent's log; it is tried again"),
        )


@asynccontextmanager
async def scale_in_protection(
    env: Mapping[str, str],
    active: Runs,
    metrics: Metrics,
    task_timeout: float,
    linger: float = LINGER,
) -> AsyncIterator[None]:
    """Hold it while there are runs, until the block ends: then it is lifted. Outside of ECS nothing is done.

    `task_timeout` is the longest that a run may take, `linger` is as in `Protection`; both in seconds.
    """
    if not (agent := env.get("ECS_AGENT_URI")):
        yield
        return
    async with _client(agent, CALL_TIMEOUT) as client:
        put = partial(put_protection, client, f"{agent.rstrip('/')}/task-protection/v1/state")
        protection = Protection(put, active, minutes_for(task_timeout), linger)
        metrics.follow_protection(lambda: protection.held)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(protection.serve)
            yield
            tasks.cancel_scope.cancel()
        await protection.release()


def minutes_for(task_timeout: float) -> int:
    """How long to ask for, where a run may take `task_timeout` seconds."""
    needed = min(task_timeout / RENEW_AT / 60, LONGEST_PROTECTION)
    return max(SHORTEST_PROTECTION, math.ceil(needed))


async def put_protection(client: httpx.AsyncClient, url: str, minutes: int | None) -> None:
    """Have ECS protect the task for so many minutes, or no longer (None). Raises ProtectionError."""
    enabled = minutes is not None
    body = {"ProtectionEnabled": enabled, **({"ExpiresInMinutes": minutes} if enabled else {})}
    answer = await _call(client, "PUT", url, body)
    found = _json(answer)
    protection = found.get("protection")
    if answer.is_success and isinstance(protection, dict) and protection.get("ProtectionEnabled") is enabled:
        return
    raise _refusal(answer, found)


async def find_task(env: Mapping[str, str]) -> EcsTask | None:
    """The task that this is; None outside of ECS, or where its agent does not say so within a second."""
    if not (metadata := env.get("ECS_CONTAINER_METADATA_URI_V4")):
        return None
    async with _client(metadata, METADATA_TIMEOUT) as client:
        found: dict[str, Any] = {}
        reason = "the agent did not answer in time"
        with anyio.move_on_after(METADATA_TIMEOUT):
            try:
                answer = await _call(client, "GET", f"{metadata.rstrip('/')}/task")
            except ProtectionError as error:
                reason = str(error)
            else:
                found, reason = _json(answer), f"the agent answered {answer.status_code} without a task's ARN"
    arn, cluster = str(found.get("TaskARN") or ""), str(found.get("Cluster") or "")
    if not arn:
        log.warning(
            "ecs_task_unknown", reason=reason, consequence="reports name the container's host instead"
        )
        return None
    return EcsTask(
        task_id=arn.rpartition("/")[2],
        cluster=cluster.rpartition("/")[2],
        definition=f"{found.get('Family')}:{found.get('Revision')}",
    )


def _client(uri: str, seconds: float) -> httpx.AsyncClient:
    """For an address of this machine: a proxy is none of its business, and there is no certificate to verify."""
    return httpx.AsyncClient(trust_env=False, verify=uri.startswith("https:"), timeout=seconds)


async def _call(client: httpx.AsyncClient, method: str, url: str, body: object = None) -> httpx.Response:
    try:
        with anyio.fail_after(CALL_TIMEOUT):  # httpx's own counts each read anew
            return await client.request(method, url, json=body)
    except (httpx.TimeoutException, TimeoutError) as error:
        raise ProtectionError("the ECS agent did not answer in time", "timeout", uncertain=True) from error
    except (httpx.HTTPError, httpx.InvalidURL, AttributeError) as error:
        # AttributeError: of a connection that was reset at once httpcore asks for its TLS, and uvloop has none.
        words = lack.behind(error) or str(error) or type(error).__name__
        sent = not isinstance(error, httpx.ConnectError | httpx.UnsupportedProtocol | httpx.InvalidURL)
        raise ProtectionError(
            f"the ECS agent can't be reached ({words})", "unreachable", uncertain=sent
        ) from error


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = json.loads(answer.content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(answer: httpx.Response, found: Mapping[str, Any]) -> ProtectionError:
    """ECS's or the agent's own words for it."""
    code, words = f"HTTP {answer.status_code}", ""
    match found:
        case {"failure": {"Reason": str(code), **rest}}:
            words = str(rest.get("Detail") or "")
        case {"error": {"Code": str(code), **rest}}:
            words = str(rest.get("Message") or "")
    said = f"{code}: {words[:300]}" if words else code
    # An agent that failed may have passed the call on.
    return ProtectionError(f"ECS did not do it ({said})", code, uncertain=answer.status_code >= 500)
