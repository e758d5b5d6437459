"""`datahub-executor demo`: the whole way of an ingestion once, on this machine alone."""

import argparse
import json
import os
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import TaskStatus

from executor.commands.follow import follow
from executor.commands.run_log import log_of
from executor.datahub.errors import DataHubError
from executor.local import demo_shop
from executor.local.demo_service import DemoError, clean_environment
from executor.local.demo_stage import Stage, patience, set_stage
from executor.local.demo_view import RunView, Show

CLI_VERSION: Final = "1.7.0.17"  # pinned: `latest` would have to be looked up each time
FAILED: Final = 1  # exit code
NOT_UNDERSTOOD: Final = 2  # exit code: the extra is missing, or an option makes no sense

_EXTRA: Final = ("flask", "flask_cors", "graphql", "jsonpatch", "moto")
_RUN_PATIENCE: Final = 900.0  # seconds for a run, its venv included
_BUILD_WORDS: Final = "Building the Python environment"  # as the executor begins a build in a run's log

_WAY_ON: Final = """\
export DATAHUB_GMS_URL=https://datahub.example.com
export DATAHUB_GMS_TOKEN=…                # an access token
export DATAHUB_EXECUTOR_QUEUE=https://sqs.eu-central-1.amazonaws.com/123456789012/datahub-ingestion
export DATAHUB_EXECUTOR_POOL_ID=remote    # the executor id of your ingestion sources
export AWS_PROFILE=…                      # or access keys; in ECS, the task's role is found by itself
datahub-executor check                    # says what is missing
datahub-executor run"""


def run(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Run the demo; returns the exit code, 0 only if all of it happened."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        return _misunderstood(
            f"The demo needs {', '.join(missing)}: pip install 'datahub-remote-executor[demo]'"
        )
    if options.venv is not None and not (options.venv / "bin" / "datahub").exists():
        return _misunderstood(f"--venv: {options.venv} holds no DataHub CLI, as it has no bin/datahub")
    return anyio.run(partial(_until_signalled, options, dict(env)), backend_options={"use_uvloop": True})


async def _until_signalled(options: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Whatever ends the demo, all that it started is ended and removed."""
    show, caught, code = Show(sys.stdout), list[signal.Signals](), FAILED
    async with anyio.create_task_group() as watch:
        scope = anyio.CancelScope()
        await watch.start(_watch_signals, scope, caught)
        with scope:
            code = await _in_words(show, options, env)
        watch.cancel_scope.cancel()
    if caught:
        show.text(f"Stopped by {caught[0].name}: everything is ended and removed")
        return 128 + caught[0]
    return code


async def _watch_signals(
    scope: anyio.CancelScope, caught: list[signal.Signals], *, task_status: TaskStatus[None]
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            caught.append(number)
            scope.cancel()


async def _in_words(show: Show, options: argparse.Namespace, env: Mapping[str, str]) -> int:
    code = 0
    try:
        await _in_folder(show, options, env)
    except* (DemoError, DataHubError, sqlite3.Error, OSError) as errors:
        code = FAILED
        for error in _leaves(errors):
            show.fault(f"The demo failed: {error}")
    return code


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _in_folder(show: Show, options: argparse.Namespace, env: Mapping[str, str]) -> None:
    """Tell the story in a folder and an environment of its own."""
    place = _place(env)
    # Beside uv's cache, so that a venv's files can be hard links.
    place.mkdir(parents=True, exist_ok=True)
    show.text("One ingestion, end to end, on this machine alone: queue, DataHub stand-in, executor, CLI\n")
    with tempfile.TemporaryDirectory(prefix="work-", dir=place, ignore_cleanup_errors=True) as name:
        clean = clean_environment(env, home=Path(name), cache=place / "uv")
        # This process is the demo's own: what reads its environment here (botocore, moto) gets no other one.
        os.environ.clear()
        os.environ.update(clean)
        async with set_stage(show, clean, Path(name), venv=options.venv) as stage:
            await _story(show, options, stage)
    show.title("On your own queue and DataHub")
    show.text(_indented(_WAY_ON))
    show.text("\nAll of it happened. The demo's folder is removed.")
    if options.venv is None:
        show.text(f"uv's cache stays in {place / 'uv'}: the next demo downloads no package again.")


async def _story(show: Show, options: argparse.Namespace, stage: Stage) -> None:
    version = "bundled" if options.venv else options.cli_version or CLI_VERSION
    with show.step(f"A secret in DataHub's store: {demo_shop.SECRET} (createSecret)"):
        await stage.page.create_secret(demo_shop.SECRET, stage.secret)
    with show.step(
        f"An ingestion source: {demo_shop.PLUGIN}, CLI version {version}, debug mode (createIngestionSource)"
    ):
        source = await stage.page.create_source(
            "Shop", demo_shop.PLUGIN, demo_shop.recipe_of(stage.shop), version
        )
    there = "the venv of the first run" if options.venv is None else f"the venv {options.venv}"
    first = await _execute(show, stage, source, "Execute", there, lines=30)
    again = await _execute(show, stage, source, "Execute again", there, lines=4)
    if again.built:
        raise DemoError("the second run built a venv, though the first run's was there")
    _show_arrived(show, stage)
    await _show_left(show, stage, (first, again))
    _show_times(show, first, again)


def _place(env: Mapping[str, str]) -> Path:
    """Where the demo's folder and uv's cache go."""
    return Path(env.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "datahub-executor-demo"


@dataclass(frozen=True)
class _Run:
    """A run that ended well. The times are seconds since *Execute* was pressed."""

    exec_id: str
    report: str = field(repr=False)
    received: float
    claimed: float
    started: float
    ended: float

    @property
    def built(self) -> bool:
        """Whether its venv was built for it."""
        return _BUILD_WORDS in log_of(self.report)


async def _execute(show: Show, stage: Stage, source: str, words: str, there: str, *, lines: int) -> _Run:
    """Press the button, and follow the run to its end; `there` is the venv of a run for which none is built."""
    with show.step(words, long=True) as step, patience(_RUN_PATIENCE, "the run did not end", stage.service):
        pressed = anyio.current_time()
        exec_id = await stage.page.execute(source)
        show.mark(0, f"pressed (createIngestionExecutionRequest): {exec_id}")
        view, ending = RunView(show, lines), list[str]()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_show_marks, show, stage, exec_id, pressed)
            ending += await follow(stage.client, exec_id, view)
            tasks.cancel_scope.cancel()
        view.end()
        status, summary = ending
        if status != "SUCCESS":
            raise DemoError(
                f"the run ended as {status}.\n\n{summary}\n\nThe end of its log:\n{view.last_lines()}\n\n"
                f"The end of the executor's log:\n{stage.service.last_lines()}"
            )
        run = await _outcome(stage, exec_id, pressed)
        show.mark(run.ended, f"SUCCESS in DataHub: {summary.splitlines()[0]}")
        step.words = f"SUCCESS, in {'a venv built for it' if run.built else there}"
    return run


async def _show_marks(show: Show, stage: Stage, exec_id: str, pressed: float) -> None:
    """Say how far the run is, as it gets there."""
    received = await stage.service.until("request_received", exec_id=exec_id)
    show.mark(received.at - pressed, "received by the executor")
    await stage.datahub.wait_for_status(exec_id, "RUNNING")
    show.mark(stage.datahub.store.history(exec_id)[0].monotonic - pressed, "RUNNING in DataHub; its log:")


async def _outcome(stage: Stage, exec_id: str, pressed: float) -> _Run:
    """What became of a run, once its message is deleted too."""
    await stage.service.until("run_settled", exec_id=exec_id)
    received = await stage.service.until("request_received", exec_id=exec_id)
    started = await stage.service.until("run_started", exec_id=exec_id)
    first, *_, last = stage.datahub.store.history(exec_id)
    return _Run(
        exec_id=exec_id,
        report=last.value["report"],
        received=received.at - pressed,
        claimed=first.monotonic - pressed,
        started=started.at - pressed,
        ended=last.monotonic - pressed,
    )


def _show_arrived(show: Show, stage: Stage) -> None:
    """The datasets in the stand-in, which must be the database's own tables and columns."""
    show.title("What arrived in DataHub")
    expected = demo_shop.columns_of(stage.shop)
    store = stage.datahub.store
    arrived = demo_shop.arrived_columns(store.datasets())
    upstreams = demo_shop.arrived_upstreams(
        {urn: store.aspect(urn, "upstreamLineage") for urn in store.datasets()}
    )
    rows = [(name, ", ".join(columns), ", ".join(upstreams[name])) for name, columns in arrived.items()]
    show.table(("dataset", "columns", "made from"), rows)
    if arrived != expected:
        raise DemoError(f"that is not what the database has: {expected}")
    show.text("      The same as the database's own tables and columns.")


async def _show_left(show: Show, stage: Stage, runs: Sequence[_Run]) -> None:
    """What must not be anywhere: a message on the queue, the secret in a report or log."""
    show.title("What is left behind")
    messages = await stage.queue.messages()
    if messages:
        raise DemoError(f"{messages} messages are left on the queue or its dead-letter queue")
    show.text("      No message on the queue, none on its dead-letter queue.")
    results = [
        json.dumps(record.value) for run in runs for record in stage.datahub.store.history(run.exec_id)
    ]
    if any(stage.secret in text for text in (*results, *stage.service.log)):
        raise DemoError(f"the value of {demo_shop.SECRET} shows in a report or in the executor's log")
    show.text(f"      The value of {demo_shop.SECRET} in no report and no log; where the CLI logs it:")
    for line in log_of(runs[0].report).splitlines():
        _, found, rest = line.partition("sql_alchemy_url=")
        if found:
            show.log(f"{found}…{rest[rest.find('?') :]}")


def _show_times(show: Show, first: _Run, again: _Run) -> None:
    show.title("How long it took, in seconds since Execute was pressed")
    rows = [
        ("received by the executor", first.received, again.received),
        ("RUNNING stored in DataHub", first.claimed, again.claimed),
        ("venv ready, CLI started", first.started, again.started),
        ("SUCCESS stored in DataHub", first.ended, again.ended),
    ]
    cells = [(words, f"{one:.2f}", f"{two:.2f}") for words, one, two in rows]
    show.table(("", "first run", "second run"), cells, numbers=True)


def _indented(text: str) -> str:
    return "\n".join(f"      {line}" for line in text.splitlines())


def _misunderstood(words: str) -> int:
    sys.stderr.write(f"{words}\n")
    return NOT_UNDERSTOOD
