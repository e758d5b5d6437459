"""`datahub-executor submit`: puts a request on the queue as DataHub would, and follows the run if asked to."""

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import anyio

from executor.commands.connection_test import ConnectionTest
from executor.commands.follow import Judge, follow, make_view
from executor.commands.request import NewRequest, SubmitError, make_request
from executor.datahub.client import DataHub
from executor.datahub.errors import DataHubError
from executor.datahub.state import ABSENT_VERSION, RunState, StateWrite, Status, urn_of
from executor.datahub.transport import Transport, open_transport
from executor.queue.delivery import QueueError
from executor.queue.opening import open_queue
from executor.requests import TaskName
from executor.settings import Settings, SettingsError, load_settings

FAILED: Final = 1  # exit code: not sent, or not a SUCCESS
NOT_UNDERSTOOD: Final = 2  # exit code: settings, options or recipe
TIMED_OUT: Final = 3  # exit code
INTERRUPTED: Final = 130  # exit code

INPUT_WITHIN: Final = 20.0  # seconds for DataHub to take the request
_DATAHUB_VARIABLES: Final = ("DATAHUB_GMS_URL", "DATAHUB_BASE_URL")
_NO_DATAHUB: Final = "http://not-set.invalid"


def run(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Send the request; with `--wait`, follow it. Returns the exit code, 0 with `--wait` only on SUCCESS.

    DataHub is needed for `--wait` alone: otherwise a request that it can't be told of is sent all the same,
    unless it refuses the token.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a log may hold what the locale has not
    try:
        _check_options(options)
        settings = _settings(options, env)
        request = make_request(_read(options.recipe), options, str(uuid4()), settings.pool_id)
        submission = _Submission(settings, request, env, knows_datahub=_knows_datahub(env))
        body = request.message()
    except (SettingsError, SubmitError) as error:
        return _fail(str(error), NOT_UNDERSTOOD)
    for note in request.notes:
        _warn(note)
    work = partial(submission.run, body, wait=options.wait, timeout=options.timeout)
    try:
        return anyio.run(work, backend_options={"use_uvloop": True})
    except (QueueError, DataHubError, _TokenRefusedError) as error:
        return _fail(f"{error}{submission.whereabouts()}", FAILED)
    except KeyboardInterrupt:
        return _fail(f"Interrupted.{submission.whereabouts()}", INTERRUPTED)


class _TokenRefusedError(Exception):
    """DataHub does not accept the token, so nothing was sent; the message has the way out."""


class _Submission:
    """One request on its way, and what became of it."""

    def __init__(
        self,
        settings: Settings,
        request: NewRequest,
        env: Mapping[str, str],
        *,
        knows_datahub: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._request = request
        self._env = env
        self._knows_datahub = knows_datahub
        self._clock = clock
        self._queue_url = ""
        self._sent = False
        self._status: str | None = None  # as followed: empty before somebody takes it, None if not known

    async def run(self, body: str, *, wait: bool, timeout: float | None) -> int:
        """Send it; follow it for `timeout` seconds at most. Raises QueueError and DataHubError."""
        async with AsyncExitStack() as stack:
            transport = None
            if self._knows_datahub:
                token = self._settings.gms_token.get_secret_value() if self._settings.gms_token else None
                connection = open_transport(self._settings.gms_url, token, lambda _operation, _failure: None)
                transport = await stack.enter_async_context(connection)
            await self._send(body, DataHub(transport) if transport else None)
            if transport is None or not wait:
                return 0
            return await self._follow(transport, timeout)

    def whereabouts(self) -> str:
        """Where the run is to be found when nobody follows it any more, and how it is ended."""
        if not self._sent:
            return ""
        request = self._request
        kill = json.dumps({"exec_id": request.exec_id, "executor_id": request.executor_id, "signal": "KILL"})
        # Of a group, SQS gives out nothing while one of its messages is in flight: the run's own one is.
        name = f"kill-{request.exec_id}"
        fifo = f" --message-group-id {name} --message-deduplication-id {name}"
        group = fifo if self._queue_url.endswith(".fifo") else ""
        # AWS's own command reads neither AWS_REGION nor, in older releases, AWS_ENDPOINT_URL.
        region = f" --region {self._settings.aws_region}" if self._settings.aws_region else ""
        server = urlsplit(self._queue_url)
        aws = (server.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
        endpoint = "" if aws else f" --endpoint-url {server.scheme}://{server.netloc}"
        return (
            f"\n{self._place()}: {urn_of(request.exec_id)}\nTo cancel it:\n"
            f"  aws sqs send-message{region}{endpoint} --queue-url {self._queue_url}{group} --message-body '{kill}'"
        )

    def _place(self) -> str:
        if self._status is None:
            return "The request is on the queue, or runs by now"
        return "The run goes on" if self._status == Status.RUNNING else "The request stays on the queue"

    async def _send(self, body: str, datahub: DataHub | None) -> None:
        """Tell DataHub of it first, as its page does; then the queue."""
        settings, request = self._settings, self._request
        async with open_queue(
            settings.queue,
            region=settings.aws_region,
            visibility_timeout=settings.visibility_timeout,
            env=self._env,
        ) as queue:
            self._queue_url = queue.url
            known = await self._tell(datahub)
            try:
                await queue.send(body, group=request.exec_id)
            except QueueError as error:
                if datahub is not None and known:
                    await self._take_back(datahub, str(error))
                raise
        self._sent = True
        _say(f"Sent {request.exec_id} to {self._queue_url} for executor id {request.executor_id}")

    async def _tell(self, datahub: DataHub | None) -> bool:
        """Whether DataHub knows of the request now."""
        request, unknown = (
            self._request,
            "DataHub does not know of the request, so its page won't list the run",
        )
        if datahub is None:
            _warn(f"{unknown} (DATAHUB_GMS_URL is not set)")
            return False
        try:
            with anyio.fail_after(INPUT_WITHIN):
                await datahub.write_input(
                    request.exec_id,
                    request.task.value,
                    request.arguments,
                    request.executor_id,
                    int(self._clock() * 1000),
                )
        except (DataHubError, TimeoutError) as error:
            if isinstance(error, DataHubError) and error.kind == "401":
                raise _TokenRefusedError(_refused(self._settings)) from error
            reason = str(error) or f"no answer in {INPUT_WITHIN:g} s"
            _warn(f"{unknown} ({reason})")
            return False
        return True

    async def _take_back(self, datahub: DataHub, reason: str) -> None:
        """What was told to DataHub would wait for ever: say that it won't come."""
        words = f"The request could not be put on the queue: {reason}"
        state = RunState(Status.FAILURE, int(self._clock() * 1000), 0, words)
        with anyio.move_on_after(INPUT_WITHIN):
            [error] = await datahub.write_states([StateWrite(self._request.exec_id, state, ABSENT_VERSION)])
            if error is not None:
                _warn(f"DataHub lists the request {self._request.exec_id} as one that waits ({error})")

    async def _follow(self, transport: Transport, timeout: float | None) -> int:
        exec_id = self._request.exec_id
        judge: list[Judge] = []
        if self._request.task is TaskName.TEST_CONNECTION:
            judge = [ConnectionTest(transport, exec_id).verdict]
        ended, refused = None, None
        with make_view(self._request.executor_id) as view, anyio.move_on_after(timeout):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(view.refresh)
                try:
                    ended = await follow(DataHub(transport), exec_id, view, *judge)
                except DataHubError as error:  # here, as it would leave the task group in a group of its own
                    refused = error
                finally:
                    self._status = view.status
                tasks.cancel_scope.cancel()
        if refused is not None:
            raise refused
        if ended is None:
            return _fail(f"Not ended after {timeout:g} s.{self.whereabouts()}", TIMED_OUT)
        status, summary = ended
        _say(f"\n{summary}\n\n{status}" if summary else status)
        return 0 if status == Status.SUCCESS else FAILED


def _refused(settings: Settings) -> str:
    if settings.gms_token is None:
        return "DataHub asks for a token: set DATAHUB_GMS_TOKEN. Nothing was sent."
    return "DataHub refused the token: make a new one and set DATAHUB_GMS_TOKEN. Nothing was sent."


def _check_options(options: argparse.Namespace) -> None:
    if options.timeout is not None and not options.wait:
        raise SubmitError("--timeout goes with --wait: without it, nothing is waited for")
    if options.timeout is not None and not options.timeout > 0:
        raise SubmitError("--timeout must be a number of seconds above 0")


def _settings(options: argparse.Namespace, env: Mapping[str, str]) -> Settings:
    if options.wait or _knows_datahub(env):
        return load_settings(env)
    return load_settings({**env, _DATAHUB_VARIABLES[0]: _NO_DATAHUB})


def _knows_datahub(env: Mapping[str, str]) -> bool:
    return any(env.get(name, "").strip() for name in _DATAHUB_VARIABLES)


def _read(recipe: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if str(recipe) == "-" else recipe.read_bytes()
        return data.decode()
    except OSError as error:
        raise SubmitError(f"the recipe {recipe} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SubmitError(f"the recipe {recipe} is no text in UTF-8") from error


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _warn(words: str) -> None:
    sys.stderr.write(f"{words}\n")


def _fail(words: str, code: int) -> int:
    _warn(words)
    return code
