"""One task for all active runs: keeps their leases, sees their kill signals, pushes their progress."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

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
LAST_MOMENTS = 12.0  # seconds before a lease ends in which its run is ended: 10 s for SIGTERM, then SIGKILL
JUDGING_INTERVAL = 0.5  # seconds between two looks at the leases' ends
SPARE = 2.0  # seconds between SIGKILL and the lease's end
PROGRESS_TIMEOUT = 5.0  # seconds; a progress write must not keep a final one waiting for longer
SIGNALS_TIMEOUT = 30.0  # seconds; a DataHub that trickles must not stop the loop for good
IDLE_PING_INTERVAL = 15.0  # seconds between two looks at a DataHub that nobody else talks to

log = structlog.get_logger()


@dataclass(slots=True)
class Heartbeat:
    """What it needs; `beat` is told of every turn of every loop, and of the pause after it: see `Health`."""

    queue: SqsQueue
    datahub: DataHub
    active: ActiveRuns
    metrics: Metrics
    beat: Callable[[str, float], None]
    visibility_timeout: float  # seconds
    poll_interval: float  # seconds
    _extending: set[Run] = field(default_factory=set)
    _refusal: str = ""  # why the last extension failed

    async def serve(self) -> None:
        """Keep all runs alive until cancelled. None of the duties waits for another one's server."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_leases)
            tasks.start_soon(self._judge_leases)
            tasks.start_soon(self._watch_signals)
            tasks.start_soon(self._push_progress)

    async def _keep_leases(self) -> None:
        """Renew leases in time. A renewal that hangs keeps no other one waiting."""
        interval = min(5.0, self.visibility_timeout / 20)
        async with anyio.create_task_group() as tasks:
            while True:
                self.beat("leases", interval)
                now = anyio.current_time()
                for run in self.active:
                    due = run.delivery.lease_ends - now < self.visibility_timeout * EXTEND_BELOW
                    if due and run not in self._extending:
                        self._extending.add(run)
                        tasks.start_soon(self._extend, run)
                await anyio.sleep(interval)

    async def _extend(self, run: Run) -> None:
        delivery = run.delivery
        try:
            await self.queue.extend(delivery)
        except LeaseLostError as error:
            if run.delivery is delivery:  # else the message has come again, to ourselves
                run.log.warning("lease_lost", reason=str(error))
                self._give_up(run, grace=0)
        except QueueError as error:
            self._refusal = str(error)
        else:
            self._refusal = ""
            self.metrics.lease_extensions.inc()
        finally:
            self._extending.discard(run)

    async def _judge_leases(self) -> None:
        """End runs whose lease runs out: by the clock alone, whatever the calls that renew it are waiting for."""
        last_moments = min(LAST_MOMENTS, self.visibility_timeout / 3)
        while True:
            self.beat("lease ends", JUDGING_INTERVAL)
            for run in self.active:
                remaining = run.delivery.lease_ends - anyio.current_time()
                if remaining <= SPARE / 2:
                    self._give_up(run, grace=0)
                elif remaining <= last_moments and run.stop(
                    StopReason.LEASE_ENDING, grace=max(0.0, remaining - SPARE)
                ):
                    self.metrics.leases_lost.inc()
                    reason = self._refusal or "the queue did not answer in time"
                    run.log.warning("lease_running_out", reason=reason, seconds=round(remaining, 1))
            await anyio.sleep(JUDGING_INTERVAL)

    def _give_up(self, run: Run, grace: float) -> None:
        counted = run.stop_reason in {StopReason.LEASE_ENDING, StopReason.LEASE_LOST}
        if run.stop(StopReason.LEASE_LOST, grace) and not counted:
            self.metrics.leases_lost.inc()

    async def _watch_signals(self) -> None:
        backoff, last_ping = Backoff(first=self.poll_interval), 0.0
        while True:
            self.beat("signals", self.poll_interval)
            watched = [run for run in self.active if run.phase not in {Phase.SETTLING, Phase.SETTLED}]
            now = anyio.current_time()
            try:
                with anyio.fail_after(SIGNALS_TIMEOUT):
                    if watched:
                        await self._stop_killed(watched)
                    elif now - last_ping >= IDLE_PING_INTERVAL:
                        await self.datahub.probe()
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
            interval = min(1.0, self.poll_interval)
            self.beat("progress", interval)
            await self._push_what_is_due()
            await anyio.sleep(interval)

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
