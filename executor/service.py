"""Builds the parts, starts them in one task group, and drains them on a signal."""

import errno
import gc
import os
import random
import socket
import stat
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
import structlog
from anyio.abc import TaskStatus

from executor.backoff import Backoff
from executor.datahub.client import open_datahub
from executor.datahub.transport import Failure, is_outage
from executor.datahub_secrets import DataHubSecretStore
from executor.ingestion.environment import sensitive_values
from executor.ingestion.ingest import open_ingestion
from executor.ingestion.masking import Masker, MaskRegistry
from executor.lack import reason
from executor.operations.ecs import find_task, scale_in_protection
from executor.operations.health import HEARTBEAT_FOLDER, Health, serve_http
from executor.operations.logging import configure_logging
from executor.operations.metrics import Metrics
from executor.operations.reachability import Reachability
from executor.queue.delivery import QueueError
from executor.queue.opening import open_queue
from executor.queue.sqs import SqsQueue
from executor.redrive import enough
from executor.settings import Settings, unknown_variables
from executor.stopping import StopRequest
from executor.worker import Worker

log = structlog.get_logger()


class StartError(Exception):
    """The service can't start; the message says why and names the way out."""


class Service:
    """The running executor: consumer, pool, heartbeat and health, until it is told to stop."""

    def __init__(self, settings: Settings, env: Mapping[str, str], maskers: MaskRegistry) -> None:
        self._settings = settings
        self._env = env
        self._maskers = maskers
        self._metrics = Metrics(settings.pool_id)
        self._queue_reach = Reachability("queue")
        self._datahub_reach = Reachability("datahub")
        self._health = Health([self._queue_reach, self._datahub_reach])
        self._stopping = StopRequest()
        self._worker = Worker(
            settings,
            host=socket.gethostname(),
            metrics=self._metrics,
            queue_reach=self._queue_reach,
            beat=self._health.beat,
            clock=time.time,
            chance=random.Random(),  # noqa: S311 - jitter
        )
        pool = self._worker.pool
        self._metrics.follow_pool(settings.max_workers, lambda: pool.active, lambda: pool.waiting)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            StartError: the metrics port is taken.
        """
        async with anyio.create_task_group() as background:
            await background.start(self._stopping.watch_signals)
            if self._settings.metrics_port:
                await background.start(self._serve_http)
            background.start_soon(self._health.touch_files, HEARTBEAT_FOLDER, self._settings.work_dir)
            await self._serve()
            background.cancel_scope.cancel()
        log.info("stopped")

    async def _serve(self) -> None:
        settings = self._settings
        token = settings.gms_token.get_secret_value() if settings.gms_token else None
        if task := await find_task(self._env):
            log.info("ecs_task", task=task.task_id, cluster=task.cluster, definition=task.definition)
            self._worker.host = task.host
        async with AsyncExitStack() as stack:
            datahub = await stack.enter_async_context(
                open_datahub(settings.gms_url, token, self._datahub_called)
            )
            ingestion = await stack.enter_async_context(
                open_ingestion(settings, self._env, DataHubSecretStore(datahub), self._maskers)
            )
            if (parents := ingestion.parents) is not None:
                self._metrics.follow_warm_parents(lambda: parents.count, lambda: parents.memory)
            queue = await self._stopping.or_stop(partial(self._open_queue, stack))
            if queue is None:
                return
            async with scale_in_protection(
                self._env, self._worker.active, self._metrics, settings.task_timeout
            ):
                await self._worker.serve(queue, datahub, ingestion, self._stopping, self._health.stop)

    async def _open_queue(self, stack: AsyncExitStack) -> SqsQueue:
        """The queue, once it is there."""
        settings, backoff = self._settings, Backoff()
        while True:
            try:
                queue = await stack.enter_async_context(
                    open_queue(
                        settings.queue,
                        region=settings.aws_region,
                        visibility_timeout=settings.message_visibility,
                        longest_hold=settings.message_hold_limit,
                        env=self._env,
                    )
                )
            except QueueError as error:
                self._queue_reach.failed(str(error))
                await backoff.wait()
            else:
                await self._look_at(queue)
                return queue

    async def _look_at(self, queue: SqsQueue) -> None:
        """Say at the start what the queue's own settings will do to messages that nobody can read."""
        try:
            facts = await queue.facts()
        except QueueError as error:
            log.warning("queue_not_described", reason=str(error), permission="sqs:GetQueueAttributes")
            return
        self._queue_reach.answered()
        wanted = enough(self._settings.max_attempts)
        if facts.dead_letter_arn is None:
            log.warning(
                "no_redrive_policy",
                consequence="a message that can't be read comes back until the queue's retention ends",
                way_out=f"give the queue a dead-letter queue with a maxReceiveCount of {wanted} or more",
            )
        elif facts.max_receive_count is not None and facts.max_receive_count < wanted:
            log.warning(
                "redrive_too_early",
                max_receive_count=facts.max_receive_count,
                consequence="an interrupted run may go to the dead-letter queue before its attempts are used up",
                way_out=f"set maxReceiveCount to {wanted} or more",
            )

    async def _serve_http(self, *, task_status: TaskStatus[None]) -> None:
        port = self._settings.metrics_port
        try:
            await serve_http(port, self._health, self._metrics, task_status)
        except OSError as error:
            raise StartError(
                f"port {port} can't be used ({error.strerror}): set DATAHUB_EXECUTOR_METRICS_PORT to another "
                "one, or to 0 for none"
            ) from error

    def _datahub_called(self, operation: str, failure: Failure | None) -> None:
        self._metrics.datahub_call(operation, failure)
        if failure is not None and is_outage(failure):
            self._datahub_reach.failed(str(failure.error), "" if failure.unreachable else operation)
        else:
            self._datahub_reach.answered(operation)


def run_service(settings: Settings, env: Mapping[str, str]) -> None:
    """Run the service to its end. Raises StartError."""
    maskers = MaskRegistry()
    maskers.add(Masker(sensitive_values(env)))
    configure_logging(maskers.mask)
    for name, meant in unknown_variables(env):
        log.warning("unknown_setting", name=name, did_you_mean=meant)
    _prepare_work_dir(settings.work_dir)

    # uvloop looks names up in threads, four by default: one each for the queue's and DataHub's will do.
    os.environ.setdefault("UV_THREADPOOL_SIZE", "2")
    # What is imported by now stays: the collector need not look through it again, 50 ms each time.
    gc.collect()
    gc.freeze()

    async def serve() -> None:
        await Service(settings, env, maskers).run()

    try:
        anyio.run(serve, backend_options={"use_uvloop": True})
    except* StartError as errors:
        raise StartError("\n".join(str(error) for error in errors.exceptions)) from None


def _prepare_work_dir(folder: Path) -> None:
    """Make the work folder, or see that nobody else can put venvs and recipes into the one that is there.

    Raises:
        StartError: it can't be written to, or others could.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if fault := _ownership_fault(folder.lstat()):
            raise StartError(
                f"the work folder {folder} {fault}: somebody else could plant files there which the service would "
                "run. Set DATAHUB_EXECUTOR_WORK_DIR to a folder of its own; one that is missing is made, also in "
                f"a mounted volume (as {folder / 'executor'})"
            )
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:  # what runs left behind is removed next
            log.warning("disk_full", folder=str(folder), reason=reason(error))
            return
        raise StartError(
            f"the work folder {folder} can't be written to ({error.strerror}): set DATAHUB_EXECUTOR_WORK_DIR to "
            "one that can"
        ) from error


def _ownership_fault(found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if found.st_uid not in {os.geteuid(), 0}:
        return f"belongs to another user (uid {found.st_uid})"
    # A volume mounted for a group (Kubernetes' fsGroup) belongs to root, and nobody else in the container is of
    # that group.
    by_group = stat.S_IWGRP if found.st_uid else 0
    if found.st_mode & (stat.S_IWOTH | by_group):
        return f"can be written to by others (mode {stat.S_IMODE(found.st_mode):o}; chmod go-w closes it)"
    return None
