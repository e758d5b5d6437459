"""`datahub-executor submit` against LocalStack's SQS and the DataHub stand-in; the test plays the executor."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from executor.datahub.client import DataHub, open_datahub
from executor.datahub.state import RunState, StateWrite, Status, StructuredReport
from executor.ingestion.masking import Masker
from executor.ingestion.output import OutputBuffer
from executor.ingestion.report import Summary, render_report
from executor.local.datahub import DataHubStandIn
from executor.local.faults import Fault
from executor.messages import ExecutionRequest, parse
from tests.integration.commands import COMMAND, executor, executor_on_terminal, settings_for, started
from tests.servers import LocalStack

RECIPE = "source:\n  type: postgres\n  config:\n    password: ${PG_PASSWORD}\n"
REQUEST = "urn:li:dataHubExecutionRequest:"


@pytest.fixture
async def queue(localstack: LocalStack) -> str:
    return await localstack.make_queue()


@pytest.fixture
async def env(queue: str, localstack: LocalStack, stand_in: DataHubStandIn, tmp_path: Path) -> dict[str, str]:
    return settings_for(queue, localstack, stand_in, tmp_path)


@pytest.fixture
async def datahub(stand_in: DataHubStandIn) -> AsyncIterator[DataHub]:
    async with open_datahub(stand_in.url, "t", lambda _operation, _failure: None) as client:
        yield client


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE)
    return str(path)


async def received(localstack: LocalStack, queue: str, wait: int = 0) -> list[ExecutionRequest]:
    async with localstack.client() as sqs:
        answer = await sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=wait)
    messages = [parse(message["Body"]) for message in answer.get("Messages", ())]
    return [message for message in messages if isinstance(message, ExecutionRequest)]


class Run:
    """What an executor tells DataHub of the run that was asked for."""

    def __init__(self, datahub: DataHub, exec_id: str) -> None:
        self.exec_id = exec_id
        self.output = OutputBuffer(Masker([]).stream())
        self._datahub = datahub
        self._attempt = 1

    def again(self) -> None:
        self._attempt += 1
        self.output = OutputBuffer(Masker([]).stream())

    async def write(self, status: Status, ending: str | None = None, found: object = None) -> None:
        """Store a state; `found` is the file that the CLI wrote."""
        masker = Masker([])
        summary = Summary(
            "RUN_INGEST", "postgres", "1.7.0", "remote", "host-7", self._attempt, 0.0, ending=ending
        )
        structured = '{"a": 1}' if ending else None
        report = render_report(summary, structured, self.output.snapshot(), 1_000_000, masker)
        stored = StructuredReport("RUN_INGEST", json.dumps(found)) if found is not None else None
        state = RunState(status, 1000 * self._attempt, 5, report, stored)
        assert await self._datahub.write_states([StateWrite(self.exec_id, state, None)]) == [None]


class Follower:
    """A `submit --wait` that runs into pipes: what it printed so far, to be waited for."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.out, self.err = "", ""
        self._out, self._err = TextReceiveStream(process.stdout), TextReceiveStream(process.stderr)

    async def until_out(self, words: str) -> None:
        with anyio.fail_after(30):
            while words not in self.out:
                self.out += await self._out.receive()

    async def until_err(self, words: str) -> None:
        with anyio.fail_after(30):
            while words not in self.err:
                self.err += await self._err.receive()

    async def sent(self) -> str:
        await self.until_out("\n")
        return self.out.split()[1]

    async def end(self) -> int:
        with anyio.fail_after(30):
            async for text in self._out:
                self.out += text
            async for text in self._err:
                self.err += text
            code = await self.process.wait()
        assert "Traceback" not in self.err
        return code


# --- what is sent ---


async def test_the_request_is_on_the_queue_and_known_to_datahub(
    env: dict[str, str], recipe: str, queue: str, localstack: LocalStack, stand_in: DataHubStandIn
) -> None:
    options = ["--cli-version", "1.7.0", "--plugin", "okta", "--requirement", "pandas<3", "--env", "A=b"]
    done = await executor(
        "submit", recipe, "--debug", *options, env={**env, "DATAHUB_EXECUTOR_POOL_ID": "private"}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    [request] = await received(localstack, queue)
    assert request.exec_id in done.stdout.decode()
    assert (request.executor_id, request.name, request.version) == ("private", "RUN_INGEST", "1.7.0")
    assert (request.extra_pip_plugins, request.extra_env_vars) == (("okta",), {"A": "b"})
    known: dict[str, Any] = (
        stand_in.store.aspect(REQUEST + request.exec_id, "dataHubExecutionRequestInput") or {}
    )
    assert (known["task"], known["executorId"]) == ("RUN_INGEST", "private")
    assert known["args"]["recipe"] == request.recipe
    assert json.loads(request.recipe)["source"]["config"]["password"] == "${PG_PASSWORD}"


async def test_a_recipe_comes_by_standard_input_and_tests_a_connection(
    env: dict[str, str], queue: str, localstack: LocalStack
) -> None:
    done = await executor("submit", "-", "--test-connection", env=env, stdin=b'{"source": {"type": "mysql"}}')
    assert done.returncode == 0
    [request] = await received(localstack, queue)
    assert request.name == "TEST_CONNECTION"


async def test_a_fifo_queue_takes_it_twice(env: dict[str, str], recipe: str, localstack: LocalStack) -> None:
    queue = await localstack.make_queue(fifo=True)
    for _ in range(2):
        assert (
            await executor("submit", recipe, env={**env, "DATAHUB_EXECUTOR_QUEUE": queue})
        ).returncode == 0
    assert len(await received(localstack, queue, wait=2)) == 2


async def test_without_any_datahub_it_is_sent_with_a_warning(
    env: dict[str, str], recipe: str, queue: str, localstack: LocalStack
) -> None:
    del env["DATAHUB_GMS_URL"]
    done = await executor("submit", recipe, env=env)
    assert done.returncode == 0
    assert b"DATAHUB_GMS_URL is not set" in done.stderr
    assert len(await received(localstack, queue)) == 1


async def test_while_datahub_is_away_it_is_sent_with_a_warning(
    env: dict[str, str], recipe: str, queue: str, localstack: LocalStack
) -> None:
    done = await executor("submit", recipe, env={**env, "DATAHUB_GMS_URL": "http://127.0.0.1:1"})
    assert done.returncode == 0
    assert b"its page won't list the run" in done.stderr
    assert len(await received(localstack, queue)) == 1


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (b"a: [", [], "not valid YAML"),
        (b"\xff\xfe", [], "UTF-8"),
        (RECIPE.encode(), ["--env", "NAME"], "NAME=VALUE"),
        (RECIPE.encode(), ["--requirement", "six ==== 9"], "extra requirement 1"),
        (RECIPE.encode(), ["--cli-version", "banana"], "version 'banana' is none"),
        (RECIPE.encode(), ["--timeout", "5"], "--wait"),
        (RECIPE.encode(), ["--wait", "--timeout", "nan"], "above 0"),
        (b'{"source": {"type": "x"}, "n": "%s"}' % (b"y" * 1_100_000), [], "1,048,576"),
    ],
    ids=["YAML", "encoding", "env", "requirement", "version", "timeout", "no number", "size"],
)
async def test_what_is_wrong_is_said_and_nothing_is_sent(
    env: dict[str, str],
    queue: str,
    localstack: LocalStack,
    stand_in: DataHubStandIn,
    text: bytes,
    options: list[str],
    words: str,
) -> None:
    done = await executor("submit", "-", *options, env=env, stdin=text)
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert await received(localstack, queue) == []
    assert list(stand_in.store.urns()) == []


async def test_a_recipe_that_is_not_there(env: dict[str, str], tmp_path: Path) -> None:
    done = await executor("submit", str(tmp_path / "none.yml"), env=env)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"none.yml can't be read: No such file" in done.stderr


async def test_to_wait_needs_a_datahub(env: dict[str, str], recipe: str) -> None:
    del env["DATAHUB_GMS_URL"]
    done = await executor("submit", recipe, "--wait", env=env)
    assert done.returncode == 2
    assert b"DATAHUB_GMS_URL is not set" in done.stderr


async def test_a_queue_that_takes_nothing_leaves_no_request_that_waits_for_ever(
    env: dict[str, str], recipe: str, queue: str, stand_in: DataHubStandIn
) -> None:
    done = await executor("submit", recipe, env={**env, "DATAHUB_EXECUTOR_QUEUE": f"{queue}-gone"})
    assert done.returncode == 1
    assert b"check DATAHUB_EXECUTOR_QUEUE" in done.stderr
    [urn] = stand_in.store.urns()
    assert stand_in.store.status(urn.removeprefix(REQUEST)) == "FAILURE"


async def test_without_credentials_it_says_how_to_give_some(env: dict[str, str], recipe: str) -> None:
    del env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
    done = await executor("submit", recipe, env=env)
    assert done.returncode == 1
    assert b"no AWS credentials" in done.stderr


# --- following the run ---


async def test_into_a_pipe_each_line_of_the_log_comes_once_and_success_is_0(
    env: dict[str, str], recipe: str, datahub: DataHub
) -> None:
    async with started("submit", recipe, "--wait", env=env) as process:
        follower = Follower(process)
        run = Run(datahub, await follower.sent())
        run.output.feed(b"line 0\n")
        await run.write(Status.RUNNING)
        await follower.until_out("line 0\n")
        run.output.feed(b"line 1\nlin")
        await run.write(Status.RUNNING)
        await follower.until_out("line 1\n")
        run.output.feed(b"e 2")
        await run.write(Status.SUCCESS, "The run ended successfully (exit code 0).")
        assert await follower.end() == 0
    assert re.findall(r"^line \d$", follower.out, re.MULTILINE) == ["line 0", "line 1", "line 2"]
    assert "The run ended successfully (exit code 0).\n\nTask:      RUN_INGEST\n" in follower.out
    assert "Structured" not in follower.out
    assert follower.out.endswith("\nSUCCESS\n")
    assert follower.err.endswith("RUNNING\nSUCCESS\n")


@pytest.mark.parametrize("status", [Status.FAILURE, Status.CANCELLED])
async def test_any_other_end_is_1(env: dict[str, str], recipe: str, datahub: DataHub, status: Status) -> None:
    async with started("submit", recipe, "--wait", env=env) as process:
        follower = Follower(process)
        run = Run(datahub, await follower.sent())
        await run.write(status, "It ended with exit code 1.")
        assert await follower.end() == 1
    assert "It ended with exit code 1." in follower.out


async def test_a_second_attempt_is_followed_from_its_beginning(
    env: dict[str, str], recipe: str, datahub: DataHub
) -> None:
    async with started("submit", recipe, "--wait", env=env) as process:
        follower = Follower(process)
        run = Run(datahub, await follower.sent())
        run.output.feed(b"connecting\n")
        await run.write(Status.UP_FOR_RETRY)
        await follower.until_out("connecting\n")
        run.again()
        run.output.feed(b"connecting\nconnected\n")
        await run.write(Status.SUCCESS, "It ended.")
        assert await follower.end() == 0
    assert follower.out.count("connecting\n") == 2
    assert "UP_FOR_RETRY" in follower.err


async def test_an_outage_of_datahub_is_waited_out(
    env: dict[str, str], recipe: str, datahub: DataHub, stand_in: DataHubStandIn
) -> None:
    async with started("submit", recipe, "--wait", env=env) as process:
        follower = Follower(process)
        run = Run(datahub, await follower.sent())
        stand_in.faults.add("executionRequest", Fault.status(503))
        await follower.until_err("answered 503")
        stand_in.faults.clear()
        await follower.until_err("answers again")
        await run.write(Status.SUCCESS, "It ended.")
        assert await follower.end() == 0
    assert follower.err.count("503") == 1


@pytest.mark.parametrize("options", [[], ["--wait"]])
async def test_a_token_that_is_refused_keeps_the_request_from_being_sent(
    env: dict[str, str],
    recipe: str,
    queue: str,
    localstack: LocalStack,
    stand_in: DataHubStandIn,
    options: list[str],
) -> None:
    done = await executor("submit", recipe, *options, env={**env, "DATAHUB_GMS_TOKEN": "wrong-s3cret"})
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"make a new one and set DATAHUB_GMS_TOKEN. Nothing was sent." in done.stderr
    assert b"s3cret" not in done.stderr
    assert await received(localstack, queue) == []
    assert list(stand_in.store.urns()) == []


async def test_a_token_that_is_refused_later_ends_the_waiting_not_the_run(
    env: dict[str, str], recipe: str, datahub: DataHub, stand_in: DataHubStandIn
) -> None:
    async with started("submit", recipe, "--wait", env=env) as process:
        follower = Follower(process)
        await Run(datahub, await follower.sent()).write(Status.RUNNING)
        await follower.until_err("RUNNING\n")
        stand_in.faults.add("executionRequest", Fault.status(401))
        assert await follower.end() == 1
    assert "DATAHUB_GMS_TOKEN" in follower.err
    assert "The run goes on" in follower.err


async def test_while_datahub_is_away_the_waiting_for_it_is_said_and_can_be_limited(
    env: dict[str, str], recipe: str, queue: str, localstack: LocalStack
) -> None:
    env |= {"DATAHUB_GMS_URL": "http://127.0.0.1:1"}
    done = await executor("submit", recipe, "--wait", "--timeout", "0.5", env=env)
    assert done.returncode == 3
    assert b"waiting for DataHub (--timeout limits it)" in done.stderr
    assert b"\nThe request is on the queue, or runs by now: urn:" in done.stderr
    assert len(await received(localstack, queue)) == 1


async def test_a_time_out_is_3_and_says_how_to_cancel_the_run(
    env: dict[str, str], recipe: str, queue: str
) -> None:
    done = await executor("submit", recipe, "--wait", "--timeout", "2", env=env)
    assert done.returncode == 3
    words = done.stderr.decode()
    assert "Not ended after 2 s.\nThe request stays on the queue: urn:li:dataHubExecutionRequest:" in words
    kill = json.loads(words.split("--message-body '")[1].split("'")[0])
    assert (kill["signal"], kill["executor_id"]) == ("KILL", "remote")
    assert f"--queue-url {queue} " in words


async def test_ctrl_c_is_130_and_says_where_the_request_is(
    env: dict[str, str], recipe: str, datahub: DataHub
) -> None:
    for status, words in ((None, "The request stays on the queue"), (Status.RUNNING, "The run goes on")):
        async with started("submit", recipe, "--wait", env=env) as process:
            follower = Follower(process)
            exec_id = await follower.sent()
            await follower.until_err("waiting for an executor\n")
            if status is not None:
                await Run(datahub, exec_id).write(status)
                await follower.until_err("RUNNING\n")
            process.send_signal(signal.SIGINT)
            assert await follower.end() == 130
        assert f"Interrupted.\n{words}: {REQUEST}{exec_id}\n" in follower.err


async def test_a_reader_that_goes_away_ends_the_following_quietly(
    env: dict[str, str], recipe: str, datahub: DataHub
) -> None:
    reader, writer = os.pipe()
    process = await anyio.open_process([*COMMAND, "submit", recipe, "--wait"], env=env, stdout=writer)
    os.close(writer)
    async with process:
        with anyio.fail_after(30):
            await anyio.wait_readable(reader)
        sent = os.read(reader, 4096).split()
        os.close(reader)
        run = Run(datahub, sent[1].decode())
        run.output.feed(b"line\n")
        await run.write(Status.RUNNING)
        assert process.stderr is not None
        with anyio.fail_after(30):
            said = b"".join([chunk async for chunk in process.stderr])
    assert process.returncode == 141
    assert said.decode().splitlines()[-1] == "RUNNING"


CAPABLE = {"basic_connectivity": {"capable": True}, "capability_report": {}}
REFUSED = {"basic_connectivity": {"capable": False, "failure_reason": "connection refused (port 5432)"}}
UNTESTABLE = {"internal_failure": True, "internal_failure_reason": "Source x does not support it"}


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        (CAPABLE, 0, "SUCCESS"),
        (REFUSED, 1, "The connection could not be made: connection refused (port 5432)\n\nCONNECTION FAILED"),
        (UNTESTABLE, 1, "Source x does not support it"),
        ({}, 1, "the run left no report of it"),
        (None, 1, "the run left no report of it"),
    ],
)
async def test_the_test_of_a_connection_is_a_success_only_if_there_was_one(
    env: dict[str, str], recipe: str, datahub: DataHub, found: object, code: int, words: str
) -> None:
    async with started("submit", recipe, "--test-connection", "--wait", env=env) as process:
        follower = Follower(process)
        run = Run(datahub, await follower.sent())
        await run.write(Status.SUCCESS, "The test ended.", found)
        assert await follower.end() == code
    assert words in follower.out
    assert ("SUCCESS" in follower.out + follower.err) == (code == 0)


async def test_a_weight_over_1_is_noted(env: dict[str, str], recipe: str) -> None:
    done = await executor("submit", recipe, "--env", "EXECUTOR_TASK_WEIGHT=2", env=env)
    assert done.returncode == 0
    assert b"EXECUTOR_TASK_WEIGHT=2 counts as 1.0" in done.stderr


async def test_on_a_terminal_the_progress_is_drawn(
    env: dict[str, str],
    recipe: str,
    datahub: DataHub,
    localstack: LocalStack,
    queue: str,
) -> None:
    running = anyio.Event()

    async def execute() -> None:
        [request] = await received(localstack, queue, wait=20)
        run = Run(datahub, request.exec_id)
        for number in range(40):
            run.output.feed(b"line %d \x1b[31mred\x1b[0m\n" % number)
        await run.write(Status.RUNNING)
        await running.wait()
        await run.write(Status.SUCCESS, "The run ended successfully (exit code 0).")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(execute)
        code, text = await executor_on_terminal(
            "submit", recipe, "--wait", env=env, shown={"RUNNING": running}
        )
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "WAITING  for an executor of pool remote" in plain
    assert "RUNNING  attempt 1, remote on host-7" in plain
    assert "line 39 red" in plain
    assert "line 5 red" not in plain, "only what fits the screen"
    assert plain.rstrip().endswith("SUCCESS")
