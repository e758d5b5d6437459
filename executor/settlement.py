"""How a run is settled: its end stored in DataHub, then its message let go."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from executor.backoff import Backoff
from executor.datahub.errors import (
    DataHubError,
    DataHubRefusedError,
    ImmutableStateError,
    VersionConflictError,
)
from executor.datahub.state import RunState, Status
from executor.disposal import Disposal, dispose
from executor.operations.metrics import Metrics
from executor.queue.sqs import SqsQueue
from executor.reporter import SupersededError
from executor.run import Phase, Run

GIVE_BACK_DELAY = 30.0  # seconds until a request that DataHub kept from starting is tried again
LAST_WRITE_TIMEOUT = 3.0  # seconds for `UP_FOR_RETRY`: what stops the service does not wait for long
UNHURRIED_WRITE_TIMEOUT = 60.0  # seconds for it where nothing does: DataHub may be slow


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run is to be settled: the status to store (None: none), the report's first words, the message."""

    status: Status | None
    words: str
    disposal: Disposal = Disposal.DELETE
    delay: float = 0.0  # seconds until a released message comes back
    structured_report: bytes | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """Settles runs."""

    queue: SqsQueue
    objection: Callable[[Run], Awaitable[Verdict | None]]  # `Claims.objection`
    metrics: Metrics
    backoff: Callable[[], Backoff]

    async def settle(self, run: Run, verdict: Verdict) -> None:
        """Store how it ended, then let the message go: in this order, or a crash in between loses the end."""
        run.advance(Phase.SETTLING)
        began = anyio.current_time()
        with run.settlement:
            if verdict.status is not None and not run.reporter.adopted:
                verdict = await self._unless_owned(run, verdict)
            if verdict.status is not None:
                verdict = await self._store(run, verdict.status, verdict)
            run.let_go = True
            for delivery in (run.delivery, run.successor):
                if delivery is not None:
                    backoff = self.backoff()
                    await dispose(self.queue, delivery, verdict.disposal, verdict.delay, backoff, run.log)
        run.advance(Phase.SETTLED)
        if run.settlement.cancelled_caught:
            verdict = Verdict(None, "the lease was lost before its end was stored", Disposal.LEAVE)
        self._account(run, verdict, anyio.current_time() - began)

    async def _unless_owned(self, run: Run, verdict: Verdict) -> Verdict:
        """The verdict, unless somebody else works on the request, or it has ended."""
        try:
            return await self.objection(run) or verdict
        except DataHubRefusedError as error:
            run.log.error("claim_refused", reason=str(error))  # noqa: TRY400 - its words are all there is
            return Verdict(None, str(error), Disposal.RELEASE, GIVE_BACK_DELAY)

    async def _store(self, run: Run, status: Status, verdict: Verdict) -> Verdict:
        """Store the end. What came of it is the verdict that the message is treated by."""
        try:
            patience = math.inf
            if status is Status.UP_FOR_RETRY:
                run.interrupted(verdict.words)
                patience = LAST_WRITE_TIMEOUT if run.stop_reason else UNHURRIED_WRITE_TIMEOUT
            with anyio.move_on_after(patience):
                await self._store_what_fits(run, status, verdict)
        except ImmutableStateError:
            run.log.info("already_ended")
            return Verdict(None, "it had already ended")
        except (SupersededError, VersionConflictError) as error:
            run.log.warning("superseded", reason=str(error))
            return Verdict(None, str(error), Disposal.LEAVE)
        except DataHubRefusedError as error:
            run.log.error("final_status_refused", reason=str(error))  # noqa: TRY400 - its words are all there is
            return Verdict(None, str(error), Disposal.LEAVE)
        return verdict

    async def _store_what_fits(self, run: Run, status: Status, verdict: Verdict) -> None:
        """Store the whole report; where it is refused, a short one, which a proxy's limits may let pass."""
        notes = run.journal.notes

        def short(error: DataHubError) -> RunState:
            if run.journal.notes is notes:
                run.log.warning("report_refused", reason=str(error), trying="a short one")
            run.journal.notes = (*notes, f"The report is cut short, as the whole one was refused: {error}")
            return run.journal.short_end(status, verdict.words)

        await run.reporter.store(run.journal.end(status, verdict.words, verdict.structured_report), short)

    def _account(self, run: Run, verdict: Verdict, settle_seconds: float) -> None:
        status = verdict.status.value if verdict.status else "none"
        if verdict.status is not None and run.journal.attempt:
            source = run.journal.source_type or "unknown"
            self.metrics.run_seconds.labels(source, status).observe(run.journal.seconds)
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
