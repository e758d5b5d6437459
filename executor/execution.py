"""One request from claim to settled: the story of a run reads top to bottom here."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

import anyio

from executor.backoff import Backoff
from executor.datahub.client import DataHub
from executor.datahub.errors import (
    DataHubRefusedError,
    DataHubUnavailableError,
    ImmutableStateError,
    UnauthorizedError,
    VersionConflictError,
)
from executor.datahub.state import Status, StoredState
from executor.ingestion.ingest import IngestError, Ingestion
from executor.operations.metrics import Metrics
from executor.pool import Ticket
from executor.queue.delivery import LeaseLostError, QueueError
from executor.queue.sqs import SqsQueue
from executor.reporter import ATTEMPT, SupersededError
from executor.requests import ExecutionRequest, MalformedMessage, request_from_input
from executor.run import ActiveRuns, Phase, Run, StopReason

CLAIM_PATIENCE = 1800.0  # seconds that a request waits for DataHub, its lease held, before it is given back
GIVE_BACK_DELAY = 30.0  # seconds until a request that DataHub's absence kept from starting is tried again
FOREIGN_DELAY = 5.0  # seconds until a message for another executor id is offered again, a receive
LONGEST_FOREIGN_DELAY = 60.0  # seconds
LAST_WRITE_TIMEOUT = 5.0  # seconds for `UP_FOR_RETRY`: what stops the service does not wait for long

Answer = TypeVar("Answer")


class Disposal(Enum):
    """What becomes of the message once the run is over."""

    DELETE = auto()
    RELEASE = auto()  # to be received again
    LEAVE = auto()  # to the queue: it is not ours any more, or its redrive policy must see to it


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run is to be settled: the status to store (None: none), the report's first words, the message."""

    status: Status | None
    words: str
    disposal: Disposal = Disposal.DELETE
    delay: float = 0.0  # seconds until a released message comes back
    structured_report: bytes | None = None


@dataclass(frozen=True, slots=True)
class Executor:
    """Runs requests; holds what all runs share."""

    queue: SqsQueue
    datahub: DataHub
    ingestion: Ingestion
    active: ActiveRuns
    metrics: Metrics
    max_attempts: int
    task_timeout: float  # seconds
    backoff: Callable[[], Backoff]

    async def execute(self, run: Run, ticket: Ticket) -> None:
        """See a run through, whatever happens to it; never raises for what a run can do wrong."""
        try:
            verdict = None
            with run.work:
                async with ticket:
                    verdict = await self._work(run, ticket)
            await self._settle(run, verdict or self._stopped(run))
        finally:
            self.active.remove(run)

    async def refuse(self, run: Run, reason: str) -> None:
        """End a request whose message can't be read as one."""
        try:
            await self._settle(run, Verdict(Status.FAILURE, f"The request can't be run: {reason}."))
        finally:
            self.active.remove(run)

    async def _work(self, run: Run, ticket: Ticket) -> Verdict:
        try:
            run.advance(Phase.CLAIMING)
            verdict = await self._claim(run, ticket)
            if verdict is None:
                with anyio.move_on_after(self.task_timeout):
                    return await self._ingest(run, run.request, ticket)
                verdict = Verdict(Status.FAILURE, self._timed_out())
        except MalformedMessage as error:
            return Verdict(Status.FAILURE, f"The request can't be run: {error.reason}.")
        except DataHubRefusedError as error:
            run.log.error("claim_refused", reason=str(error))  # noqa: TRY400 - its words are all there is
            return Verdict(None, str(error), Disposal.RELEASE, GIVE_BACK_DELAY)
        except Exception:
            with self.ingestion.masked_log(run.journal.masker):
                run.log.exception("run_failed_internally")
            return Verdict(
                Status.FAILURE, "This executor failed on the run: a defect, described in its own log."
            )
        return verdict

    async def _claim(self, run: Run, ticket: Ticket) -> Verdict | None:
        """Make the request ours, or say why it is not to be run."""
        with anyio.move_on_after(CLAIM_PATIENCE):
            while True:
                stored = await self._patiently(lambda: self.datahub.stored_state(run.exec_id))
                run.reporter.adopt(stored)
                if verdict := await self._objection(run, stored):
                    return verdict
                if run.journal.request is None:
                    request = await self._look_up(run)
                    if request.executor_id not in {None, run.journal.executor_id}:
                        return self._foreign(run, request)
                    run.journal.request = request
                    await ticket.change(request.weight)
                run.begin(_attempt(run, stored))
                try:
                    await run.reporter.store(run.journal.progress())
                except VersionConflictError:
                    continue  # somebody was faster: look again at who
                except ImmutableStateError:
                    return _already_ended(run)
                run.log.info("run_claimed")
                return None
        return Verdict(None, "DataHub is away", Disposal.RELEASE, GIVE_BACK_DELAY)

    async def _objection(self, run: Run, stored: StoredState) -> Verdict | None:
        if stored.ended:
            return _already_ended(run)
        if stored.killed:
            return Verdict(Status.CANCELLED, "The run was cancelled before it started.")
        if _attempt(run, stored) > self.max_attempts:
            return Verdict(
                Status.FAILURE,
                f"The run was interrupted {self.max_attempts} times, each time with the executor that ran it "
                "(DATAHUB_EXECUTOR_MAX_ATTEMPTS). If it takes more memory than the task has, give it more; then "
                "execute the source again.",
            )
        return None

    def _foreign(self, run: Run, request: ExecutionRequest) -> Verdict:
        self.metrics.foreign.inc()
        words = f"it is addressed to the executor id {request.executor_id}"
        return Verdict(None, words, Disposal.RELEASE, foreign_delay(run.delivery.receive_count))

    async def _look_up(self, run: Run) -> ExecutionRequest:
        """Read the request that a reference names."""
        found = await self._patiently(lambda: self.datahub.request_input(run.exec_id))
        if found is None:
            raise MalformedMessage(
                "DataHub does not know the request that the message names", exec_id=run.exec_id
            )
        return request_from_input(
            run.exec_id, task=found["task"], arguments=found["arguments"], executor_id=found.get("executorId")
        )

    async def _ingest(self, run: Run, request: ExecutionRequest, ticket: Ticket) -> Verdict:
        run.advance(Phase.PREPARING)
        journal = run.journal
        try:
            recipe = self.ingestion.parse(request)
            run.describe(source_type=recipe.source_type)
            secrets = await self._patiently(lambda: self.ingestion.secrets(request, recipe))
            journal.log_to(self.ingestion.masker(request, secrets))
            with self.ingestion.masked_log(journal.masker):
                prepared = await self.ingestion.prepare(request, recipe, secrets, journal.output)
                journal.cli_version = prepared.cli_version
                run.advance(Phase.RUNNING)
                run.log.info("run_started", cli_version=prepared.cli_version)
                ended = await self.ingestion.run(
                    prepared, journal.output, grace=lambda: run.stop_grace, at_exit=ticket.give_back
                )
        except IngestError as error:
            return Verdict(Status.FAILURE, str(error))
        journal.notes += (ended.usage,)
        status = Status.SUCCESS if ended.succeeded else Status.FAILURE
        return Verdict(status, ended.words, structured_report=ended.structured_report)

    def _stopped(self, run: Run) -> Verdict:
        match run.stop_reason:
            case StopReason.CANCELLED:
                return Verdict(Status.CANCELLED, "The run was cancelled on request.")
            case StopReason.DRAINED if run.journal.attempt:
                words = "This executor is stopping; another one starts the run again."
                return Verdict(Status.UP_FOR_RETRY, words, Disposal.RELEASE)
            case StopReason.DRAINED:
                return Verdict(None, "this executor is stopping", Disposal.RELEASE)
            case StopReason.ENDED_ELSEWHERE:
                return _already_ended(run)
            case _:
                return Verdict(None, "the lease is lost", Disposal.LEAVE)

    async def _settle(self, run: Run, verdict: Verdict) -> None:
        """Store how it ended, then let the message go: in this order, or a crash in between loses the end."""
        run.advance(Phase.SETTLING)
        began = anyio.current_time()
        with run.settlement:
            if verdict.status is None or await self._store(run, verdict.status, verdict):
                await self._dispose(run, verdict)
        run.advance(Phase.SETTLED)
        if run.settlement.cancelled_caught:
            verdict = Verdict(None, "the lease was lost before its end was stored", Disposal.LEAVE)
        self._account(run, verdict, anyio.current_time() - began)

    async def _store(self, run: Run, status: Status, verdict: Verdict) -> bool:
        """Store the end; whether the message may go its way."""
        state = run.journal.end(status, verdict.words, verdict.structured_report)
        try:
            if status is Status.UP_FOR_RETRY:
                with anyio.move_on_after(LAST_WRITE_TIMEOUT):
                    await run.reporter.store(state)
            else:
                await run.reporter.store(state)
        except ImmutableStateError:
            run.log.info("already_ended")
        except (SupersededError, VersionConflictError) as error:
            run.log.warning("superseded", reason=str(error))
            return False
        except DataHubRefusedError as error:
            run.log.error("final_status_refused", reason=str(error))  # noqa: TRY400 - its words are all there is
            return False
        return True

    async def _dispose(self, run: Run, verdict: Verdict) -> None:
        backoff = self.backoff()
        while verdict.disposal is not Disposal.LEAVE:
            try:
                if verdict.disposal is Disposal.DELETE:
                    await self.queue.delete(run.delivery)
                else:
                    await self.queue.release(run.delivery, verdict.delay)
            except QueueError:
                await backoff.wait()
            except LeaseLostError as error:
                run.log.info("message_gone", reason=str(error))
                return
            else:
                return

    def _account(self, run: Run, verdict: Verdict, settle_seconds: float) -> None:
        status = verdict.status.value if verdict.status else "none"
        if verdict.status is not None and run.journal.attempt:
            self.metrics.run_seconds.labels(run.journal.source_type or "unknown", status).observe(
                run.journal.seconds
            )
        self.metrics.settle_seconds.observe(settle_seconds)
        if verdict.status is Status.FAILURE:
            self.metrics.errors.inc()
        run.log.info(
            "run_settled",
            status=status,
            words=verdict.words,
            seconds=round(run.journal.seconds, 3),
            message=verdict.disposal.name.lower(),
        )

    async def _patiently(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask DataHub until it answers. Raises DataHubRefusedError where asking again would not help."""
        backoff = self.backoff()
        while True:
            try:
                return await ask()
            except (DataHubUnavailableError, UnauthorizedError):
                await backoff.wait()

    def _timed_out(self) -> str:
        return (
            f"The run was ended after {self.task_timeout:g} s, the longest that a run may take here "
            "(DATAHUB_EXECUTOR_TASK_TIMEOUT)."
        )


def foreign_delay(receive_count: int) -> float:
    """Seconds until a message for another executor id is offered again.

    Longer from time to time, or two executors that share a queue would play ping-pong with it.
    """
    return min(LONGEST_FOREIGN_DELAY, FOREIGN_DELAY * receive_count)


def _already_ended(run: Run) -> Verdict:
    run.log.info("already_ended")
    return Verdict(None, "it had already ended")


def _attempt(run: Run, stored: StoredState) -> int:
    """Which attempt this would be: one more than the last claim's, or what the queue's count says."""
    if stored.status in {Status.RUNNING, Status.UP_FOR_RETRY}:
        last = stored.properties.get(ATTEMPT, "")
        return int(last) + 1 if last.isdigit() else max(2, run.delivery.receive_count)
    return 1
