"""One task for all active runs: keeps their leases, sees their kill signals, pushes their progress."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import anyio
import structlog

from executor.backoff import Backoff
from executor.datahub.client import DataHub
from executor.datahub.errors import DataHubError, DataHubUnavailableError, ImmutableStateError
from executor.datahub.state import StateWrite
from executor.operations.metrics import Metrics
from executor.queue.delivery import LeaseLostError, QueueError
from executor.queue.sqs import SqsQueue
from executor.reporter import SupersededError
from executor.run import ActiveRuns, Phase, Run, StopReason

EXTEND_BELOW = 2 / 3  # of the visibility time-out: three chances before a lease gets short
LAST_MOMENTS = (
    12.0  # seconds before a lease ends in which its run must be ended: 10 s for SIGTERM, then SIGKILL
)
PROGRESS_TIMEOUT = 5.0  # seconds; a progress write must not keep a final one waiting for longer
SIGNALS_TIMEOUT = 30.0  # seconds; a DataHub that trickles must not stop the loop for good
IDLE_PING_INTERVAL = 15.0  # seconds between two looks at a DataHub that nobody else talks to

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What it needs; `beat` is told of every turn of every loop, for the liveness check."""

    queue: SqsQueue
    datahub: DataHub
    active: ActiveRuns
    metrics: Metrics
    beat: Callable[[str], None]
    visibility_timeout: float  # seconds
    poll_interval: float  # seconds

    async def serve(self) -> None:
        """Keep all runs alive until cancelled. None of the three duties waits for another one's server."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_leases)
            tasks.start_soon(self._watch_signals)
            tasks.start_soon(self._push_progress)

    async def _keep_leases(self) -> None:
        while True:
            self.beat("leases")
            now = anyio.current_time()
            async with anyio.create_task_group() as tasks:
                for run in self.active:
                    if run.delivery.lease_ends - now < self.visibility_timeout * EXTEND_BELOW:
                        tasks.start_soon(self._extend, run)
            await anyio.sleep(min(5.0, self.visibility_timeout / 20))

    async def _extend(self, run: Run) -> None:
        last_moments = min(LAST_MOMENTS, self.visibility_timeout / 3)
        delivery = run.delivery
        try:
            await self.queue.extend(delivery)
        except LeaseLostError as error:
            if run.delivery is delivery:  # else the message has come again, to ourselves
                run.log.warning("lease_lost", reason=str(error))
                self._give_up(run, grace=0)
        except QueueError as error:
            remaining = run.delivery.lease_ends - anyio.current_time()
            if remaining <= last_moments:
                run.log.warning("lease_running_out", reason=str(error), seconds=round(remaining, 1))
                self._give_up(run, grace=max(0.0, remaining - 2))
        else:
            self.metrics.lease_extensions.inc()

    def _give_up(self, run: Run, grace: float) -> None:
        if run.stop(StopReason.LEASE_LOST, grace):
            self.metrics.leases_lost.inc()

    async def _watch_signals(self) -> None:
        backoff, last_ping = Backoff(first=self.poll_interval), 0.0
        while True:
            self.beat("signals")
            watched = [run for run in self.active if run.phase not in {Phase.SETTLING, Phase.SETTLED}]
            now = anyio.current_time()
            try:
                with anyio.fail_after(SIGNALS_TIMEOUT):
                    if watched:
                        await self._stop_killed(watched)
                    elif now - last_ping >= IDLE_PING_INTERVAL:
                        await self.datahub.ping()
                        last_ping = now
            except (DataHubError, TimeoutError):
                await backoff.wait()  # reachability says it once, see operations
            else:
                backoff.reset()
                await anyio.sleep(self.poll_interval)

    async def _stop_killed(self, watched: Sequence[Run]) -> None:
        killed = await self.datahub.kill_signals([run.exec_id for run in watched])
        for run in watched:
            if run.exec_id in killed and run.stop(StopReason.CANCELLED):
                run.log.info("kill_signal_seen")

    async def _push_progress(self) -> None:
        while True:
            self.beat("progress")
            await self._push_what_is_due()
            await anyio.sleep(min(1.0, self.poll_interval))

    async def _push_what_is_due(self) -> None:
        async with anyio.create_task_group() as tasks:
            for run in self._under_way():
                if not run.reporter.certain:
                    tasks.start_soon(self._recover, run)
        now = anyio.current_time()
        due: list[tuple[Run, StateWrite]] = [
            (run, run.reporter.begin(run.journal.progress()))
            for run in self._under_way()
            if run.journal.changed and run.reporter.due(now)
        ]
        if not due:
            return
        outcomes: list[DataHubError | None] = [DataHubUnavailableError("not answered in time")] * len(due)
        try:
            with anyio.move_on_after(PROGRESS_TIMEOUT):
                outcomes = await self.datahub.write_states([write for _, write in due])
        finally:
            for (run, write), error in zip(due, outcomes, strict=True):
                run.reporter.finish(write, error, now)
        for (run, _), error in zip(due, outcomes, strict=True):
            if isinstance(error, ImmutableStateError):
                run.stop(StopReason.ENDED_ELSEWHERE)
            elif error is not None:
                run.journal.not_shown()

    def _under_way(self) -> Iterator[Run]:
        return (run for run in self.active if run.phase in {Phase.PREPARING, Phase.RUNNING})

    async def _recover(self, run: Run) -> None:
        try:
            with anyio.move_on_after(PROGRESS_TIMEOUT):
                await run.reporter.recover()
        except ImmutableStateError:
            run.stop(StopReason.ENDED_ELSEWHERE)
        except SupersededError as error:
            run.log.warning("superseded", reason=str(error))
            self._give_up(run, grace=0)
        except DataHubError:
            return  # still away: next time
