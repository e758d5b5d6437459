"""One request from claim to settled: the story of a run reads top to bottom here."""

from collections.abc import Mapping
from dataclasses import dataclass

import anyio

from executor.claiming import PATIENCE, Claims, already_ended, away
from executor.datahub.client import DataHub
from executor.datahub.errors import DataHubError, DataHubRefusedError
from executor.datahub.state import Status
from executor.disposal import Disposal
from executor.ingestion.ingest import IngestError, Ingestion
from executor.ingestion.recipe import Recipe
from executor.lease import LeaseEndedError
from executor.operations.metrics import Metrics
from executor.pool import Ticket
from executor.queue.delivery import Delivery
from executor.requests import ExecutionRequest, MalformedMessage, request_from_input
from executor.run import ActiveRuns, Phase, Run, StopReason
from executor.settlement import GIVE_BACK_DELAY, Settlement, Verdict

SLOTS_FIRST = (
    0.01  # seconds: beside other runs, asking for what may start next goes before telling what ended
)
FOREIGN_DELAY = 5.0  # seconds until a message for another executor id is offered again, a receive
LONGEST_FOREIGN_DELAY = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Executor:
    """Runs requests; holds what all runs share."""

    datahub: DataHub
    ingestion: Ingestion
    settlement: Settlement
    active: ActiveRuns
    metrics: Metrics
    claims: Claims
    task_timeout: float  # seconds
    least_hold: float  # seconds of the queue's time that are left of a message at least when its run begins

    def describe(self, run: Run) -> None:
        """Let every line of the run's log say what it ingests from; a recipe that can't be read fails later."""
        try:
            run.recipe = self.ingestion.parse(run.request)
            run.describe(run.recipe.source_type)
        except IngestError:
            run.describe("unknown")
        except Exception:  # a defect ends this run, when it is parsed again, and not the service
            run.log.exception("recipe_not_described")
            run.describe("unknown")

    async def execute(
        self, run: Run, ticket: Ticket, malformed: str | None = None, waits: bool = True
    ) -> None:
        """See a run through, whatever happens to it: nothing that it does wrong reaches other runs.

        `malformed` says why its message can't be read as a request, which ends it. One that does not wait for its
        slot is given back where it is no message that its owner waits for.
        """
        try:
            verdict = None
            with run.work:
                verdict = await self._work(run, ticket, malformed, waits)
            ticket.give_back()
            if ticket.left_others:
                await anyio.sleep(SLOTS_FIRST)
            await self._settle(run, verdict or self._stopped(run))
        finally:
            self.active.remove(run)

    async def _settle(self, run: Run, verdict: Verdict) -> None:
        with self.ingestion.masked_log(run.journal.masker):
            try:
                await self.settlement.settle(run, verdict)
                await run.clean_up()
            except Exception:  # the edge of a run: its message comes back when its lease ends
                run.log.exception("settling_failed_internally")

    async def _work(self, run: Run, ticket: Ticket, malformed: str | None, waits: bool) -> Verdict:
        try:
            verdict = await self.claims.pass_on(run)
            if verdict is None and not waits and not ticket.granted.is_set():
                return Verdict(None, "there is no room for it", Disposal.RELEASE)
            if verdict is None:
                async with ticket:
                    verdict = await self._work_in_slot(run, ticket, malformed)
        except LeaseEndedError as error:  # we may have been stopped, and wake up when somebody else has it
            run.log.warning("lease_ended", reason=str(error))
            run.stop(StopReason.LEASE_LOST)
            return self._stopped(run)
        except DataHubRefusedError as error:
            run.log.error("claim_refused", reason=str(error))  # noqa: TRY400 - its words are all there is
            return Verdict(None, str(error), Disposal.RELEASE, GIVE_BACK_DELAY)
        except Exception:  # the edge of a run: a defect ends this one and no other
            with self.ingestion.masked_log(run.journal.masker):
                run.log.exception("run_failed_internally")
            words = "This executor failed on the run: a defect, described in its own log."
            return Verdict(Status.FAILURE, words)
        return verdict

    async def _work_in_slot(self, run: Run, ticket: Ticket, malformed: str | None) -> Verdict:
        run.advance(Phase.CLAIMING)
        verdict = _failure(malformed) if malformed else await self._look_up(run, ticket)
        if verdict is not None:
            return verdict
        if self._has_waited_too_long(run.delivery):
            words = "it has waited for its slot for so long that the queue would show it again before it is through"
            return Verdict(None, words, Disposal.RELEASE)
        if (verdict := await self.claims.claim(run)) is not None:
            return verdict
        with anyio.move_on_after(self.task_timeout):
            return await self._ingest(run, run.request, ticket)
        return Verdict(Status.FAILURE, self._timed_out())

    def _has_waited_too_long(self, delivery: Delivery) -> bool:
        """Whether to receive it anew, which costs a receive, or else an attempt might come to nothing."""
        left = delivery.hold_ends - anyio.current_time()
        return left < self.least_hold and delivery.receive_count < self.settlement.queue.max_receives

    async def _look_up(self, run: Run, ticket: Ticket) -> Verdict | None:
        """Read the request that a reference names, and take the weight that it asks for."""
        if run.journal.request is not None:
            return None
        found = None
        with anyio.move_on_after(PATIENCE) as patience:
            found = await self.claims.patiently(lambda: self.datahub.request_input(run.exec_id))
        if patience.cancelled_caught:
            return away()
        if found is None:
            return Verdict(Status.FAILURE, "DataHub does not know the request that the message names.")
        try:
            request = request_from_input(
                run.exec_id,
                task=found["task"],
                arguments=found["arguments"],
                executor_id=found.get("executorId"),
            )
        except MalformedMessage as error:
            if self._is_foreign(run, error.executor_id):
                return self._foreign(run, error.executor_id)
            return _failure(error.reason)
        if self._is_foreign(run, request.executor_id):
            return self._foreign(run, request.executor_id)
        run.journal.request = request
        self.describe(run)
        await ticket.change(request.weight)
        return None

    def _is_foreign(self, run: Run, executor_id: str | None) -> bool:
        return executor_id not in {None, run.journal.executor_id}

    def _foreign(self, run: Run, executor_id: str | None) -> Verdict:
        self.metrics.foreign.inc()
        words = f"it is addressed to the executor id {executor_id}"
        return Verdict(None, words, Disposal.RELEASE, foreign_delay(run.delivery.receive_count))

    async def _ingest(self, run: Run, request: ExecutionRequest, ticket: Ticket) -> Verdict:
        run.advance(Phase.PREPARING)
        journal = run.journal
        try:
            recipe = run.recipe or self.ingestion.parse(request)  # parsed again only to raise why it can't be
            secrets = await self._secrets(run, request, recipe)
            if isinstance(secrets, Verdict):
                return secrets
            journal.log_to(self.ingestion.masker(request, secrets))
            with self.ingestion.masked_log(journal.masker):
                prepared = await self.ingestion.prepare(request, recipe, secrets, journal.output)
                journal.cli_version = prepared.cli_version
                run.advance(Phase.RUNNING)
                run.log.info("run_started", cli_version=prepared.cli_version)
                ended = await self.ingestion.run(
                    prepared,
                    journal.output,
                    lease=run.lease,
                    grace=lambda: run.stop_grace,
                    at_exit=ticket.give_back,
                )
                run.clean_up = ended.clean_up
                journal.notes += ended.notes
        except IngestError as error:
            return Verdict(Status.FAILURE, str(error))
        status = Status.SUCCESS if ended.succeeded else Status.FAILURE
        return Verdict(status, ended.words, structured_report=ended.structured_report)

    async def _secrets(
        self, run: Run, request: ExecutionRequest, recipe: Recipe
    ) -> Mapping[str, str] | Verdict:
        """The secrets that the recipe names, or what is to become of a run that can't have them."""
        reasons: dict[str, None] = {}

        def waiting(error: DataHubError) -> None:
            if str(error) not in reasons:
                run.journal.output.feed(f"Waiting for the secrets of the recipe: {error}\n".encode())
            reasons[str(error)] = None

        with anyio.move_on_after(PATIENCE):
            return await self.claims.patiently(lambda: self.ingestion.secrets(request, recipe), waiting)
        words = (
            f"The secrets of the recipe could not be had: {'; '.join(reasons) or 'DataHub did not answer'}."
        )
        return Verdict(Status.UP_FOR_RETRY, words, Disposal.RELEASE, GIVE_BACK_DELAY)

    def _stopped(self, run: Run) -> Verdict:
        begun = run.journal.attempt > 0
        match run.stop_reason:
            case StopReason.CANCELLED:
                when = "on request" if begun else "before it started"
                return Verdict(Status.CANCELLED, f"The run was cancelled {when}.")
            case StopReason.DRAINED | StopReason.LEASE_ENDING | StopReason.CLAIM_ENDING as reason if begun:
                words = f"The run was interrupted: {reason.value}. Another one starts it again."
                return Verdict(Status.UP_FOR_RETRY, words, Disposal.RELEASE)
            case StopReason.DRAINED | StopReason.LEASE_ENDING | StopReason.CLAIM_ENDING as reason:
                return Verdict(None, reason.value, Disposal.RELEASE)
            case StopReason.ENDED_ELSEWHERE:
                return already_ended(run)
            case _:
                return Verdict(None, "the lease is lost", Disposal.LEAVE)

    def _timed_out(self) -> str:
        return (
            f"The run was ended after {self.task_timeout:g} s, the longest that a run may take here "
            "(DATAHUB_EXECUTOR_TASK_TIMEOUT)."
        )


def _failure(reason: str) -> Verdict:
    return Verdict(Status.FAILURE, f"The request can't be run: {reason}.")


def foreign_delay(receive_count: int) -> float:
    """Seconds until a message for another executor id is offered again.

    Longer from time to time, or two executors that share a queue would play ping-pong with it.
    """
    return min(LONGEST_FOREIGN_DELAY, FOREIGN_DELAY * receive_count)
