"""The runs of one executor and those who look after them: all that is between the queue and DataHub."""

import random
import secrets
from collections.abc import Callable
from functools import partial

import anyio
import structlog

from executor.backoff import Backoff
from executor.claim import CLAIM_TERM, Claim, Observations
from executor.claiming import Claims
from executor.consumer import Consumer
from executor.datahub.client import DataHub
from executor.execution import Executor
from executor.handover import BEGIN_AT, Handover
from executor.heartbeat import Heartbeat
from executor.ingestion.ingest import Ingestion
from executor.journal import Journal
from executor.operations.metrics import Metrics
from executor.operations.reachability import Reachability
from executor.pool import Pool
from executor.queue.delivery import Delivery
from executor.queue.sqs import SqsQueue
from executor.reporter import Reporter
from executor.requests import ExecutionRequest
from executor.run import ActiveRuns, Run
from executor.settings import Settings
from executor.settlement import Settlement
from executor.signals import Signals
from executor.stopping import StopRequest, drain

log = structlog.get_logger()


class Worker:
    """The runs of one executor and those who look after them. Time, chance and every server are passed in."""

    def __init__(
        self,
        settings: Settings,
        *,
        host: str,
        metrics: Metrics,
        queue_reach: Reachability,
        beat: Callable[[str, float], None],
        clock: Callable[[], float],
        chance: random.Random,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        claim_term: float = CLAIM_TERM,
    ) -> None:
        """`host` tells people where it runs; `beat` is told of every turn of the heartbeat's loops; `clock` is the
        epoch's, in seconds; `token` makes names that no other executor has.
        """
        self._claim_term = claim_term
        self._settings = settings
        self.host = host
        self._metrics = metrics
        self._queue_reach = queue_reach
        self._beat = beat
        self._clock = clock
        self._chance = chance
        self._token = token
        self.pool = Pool(settings.max_workers)
        self.active = ActiveRuns()

    async def serve(
        self,
        queue: SqsQueue,
        datahub: DataHub,
        ingestion: Ingestion,
        stopping: StopRequest,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until it is asked to stop, then drain. `on_stop` is called as soon as it is asked."""
        claims = self._claims(datahub)
        consumer = self._consumer(queue, datahub, ingestion, claims)
        async with anyio.create_task_group() as background:
            background.start_soon(queue.serve)
            background.start_soon(self._heartbeat(queue, datahub).serve)
            async with anyio.create_task_group() as runs:
                runs.start_soon(consumer.serve, runs)
                runs.start_soon(self._handover(queue, consumer).serve, runs)
                await stopping.stop.wait()
                on_stop()
                await drain(self.active, consumer, stopping, self._settings.drain_timeout)
                runs.cancel_scope.cancel()
            background.cancel_scope.cancel()

    def _consumer(self, queue: SqsQueue, datahub: DataHub, ingestion: Ingestion, claims: Claims) -> Consumer:
        executor = Executor(
            datahub=datahub,
            ingestion=ingestion,
            settlement=Settlement(queue, claims.objection, self._metrics, self._backoff),
            active=self.active,
            metrics=self._metrics,
            claims=claims,
            task_timeout=self._settings.task_timeout,
            least_hold=self._settings.message_hold_limit * (1 - BEGIN_AT),
        )
        log.info("consuming", queue=queue.url, max_workers=self._settings.max_workers)
        return Consumer(
            queue=queue,
            pool=self.pool,
            active=self.active,
            executor=executor,
            signals=self._signals(queue, datahub, claims),
            metrics=self._metrics,
            reachability=self._queue_reach,
            new_run=partial(self._new_run, datahub),
            clock=self._clock,
            backoff=self._backoff,
            executor_id=self._settings.pool_id,
        )

    def _signals(self, queue: SqsQueue, datahub: DataHub, claims: Claims) -> Signals:
        return Signals(
            queue=queue,
            datahub=datahub,
            active=self.active,
            claims=claims,
            clock=self._clock,
            executor_id=self._settings.pool_id,
        )

    def _claims(self, datahub: DataHub) -> Claims:
        return Claims(
            datahub=datahub,
            observations=Observations(self._claim_term),
            max_attempts=self._settings.max_attempts,
            proof_period=self._settings.proof_period,
            backoff=self._prompt_backoff,
        )

    def _heartbeat(self, queue: SqsQueue, datahub: DataHub) -> Heartbeat:
        return Heartbeat(
            queue=queue,
            datahub=datahub,
            active=self.active,
            metrics=self._metrics,
            beat=self._beat,
            backoff=self._backoff,
            visibility=self._settings.message_visibility,
            proof_period=self._settings.proof_period,
            poll_interval=self._settings.signal_poll_interval,
        )

    def _handover(self, queue: SqsQueue, consumer: Consumer) -> Handover:
        return Handover(
            queue=queue,
            pool=self.pool,
            active=self.active,
            consumer=consumer,
            backoff=self._backoff,
            visibility=self._settings.message_visibility,
            hold_limit=self._settings.message_hold_limit,
            max_attempts=self._settings.max_attempts,
        )

    def _new_run(
        self, datahub: DataHub, exec_id: str, delivery: Delivery, request: ExecutionRequest | None
    ) -> Run:
        journal = Journal(
            request=request, executor_id=self._settings.pool_id, host=self.host, clock=self._clock
        )
        claim = Claim(self._token(), 0, delivery.message_id, delivery.receive_count, self.host)
        reporter = Reporter(
            datahub, exec_id, claim, self._prompt_backoff, self._settings.beat_interval, self._claim_term
        )
        return Run(
            exec_id, delivery, journal, reporter, log.bind(exec_id=exec_id, source_type=None, attempt=None)
        )

    def _prompt_backoff(self) -> Backoff:
        # After an outage of DataHub the owner must be heard within a proof period, an end that waits to be stored
        # included; and whoever waits to take a request over must see at once that it may.
        return self._backoff(longest=self._settings.proof_period / 4)

    def _backoff(self, **limits: float) -> Backoff:
        return Backoff(**limits, draw=self._chance)
