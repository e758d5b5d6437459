"""One task for all active runs: keeps their leases, sees their kill signals, pushes their progress."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import anyio
import structlog
from anyio.abc import TaskGroup

from executor.backoff import AnswerLimit, Backoff
from executor.datahub.client import DataHub
from executor.datahub.errors import (
    BlockedError,
    DataHubError,
    DataHubUnavailableError,
    ImmutableStateError,
    TooLargeError,
)
from executor.datahub.state import RunState
from executor.operations.metrics import Metrics
from executor.queue.delivery import HIDDEN_TO_THE_LIMIT, Delivery, LeaseLostError, QueueError
from executor.queue.sqs import SqsQueue
from executor.reporter import SupersededError
from executor.run import ActiveRuns, Phase, Run, StopReason

EXTEND_AFTER = 1 / 6  # of the visibility time-out: what is left of it is what an outage of the queue may take
RETRY_INTERVAL = 5.0  # seconds between two tries to extend a lease
LAST_MOMENTS = 12.0  # seconds before a lease ends in which its run is ended: 10 s for SIGTERM, then SIGKILL
SPARE = 2.0  # seconds between SIGKILL and the lease's end
LONGEST_PAUSE = 30.0  # seconds between two turns of a loop that has nothing to do
PROGRESS_TIMEOUT = 5.0  # seconds; a progress write must not keep a final one waiting for long
SHORTEST_PROGRESS_TIMEOUT = 2.0  # seconds
LOOK_TIMEOUT = 5.0  # seconds; a look for kill signals that hangs must not hide those of other runs
LONGEST_TIMEOUT = 30.0  # seconds that either may take of a DataHub that is slow
LONGEST_BLIND = 5.0  # seconds until a look for kill signals that failed is repeated
IDLE_PING_INTERVAL = 15.0  # seconds between two looks at a DataHub that nobody else talks to

log = structlog.get_logger()


def renewal_interval(visibility: float, proof_period: float) -> float:
    """Seconds between two renewals of a lease, where a message is hidden for `visibility` seconds.

    Twice in a proof period: who lost its message must know before another one can take it for dead.
    """
    return min(visibility * EXTEND_AFTER, proof_period / 2)


def last_moments(visibility: float) -> float:
    """Seconds before a lease ends in which its run is ended, where a message is hidden for `visibility` seconds."""
    return min(LAST_MOMENTS, visibility / 3)


@dataclass(slots=True)
class Heartbeat:
    """What it needs; `beat` is told of every turn of every loop, and of the pause after it: see `Health`."""

    queue: SqsQueue
    datahub: DataHub
    active: ActiveRuns
    metrics: Metrics
    beat: Callable[[str, float], None]
    backoff: Callable[..., Backoff]
    visibility: float  # seconds that the queue hides a message from one extension to the next
    poll_interval: float  # seconds
    proof_period: float  # seconds in which a living owner gives a sign of life, see `Claims`
    _extending: set[str] = field(default_factory=set)  # receipt handles
    _refusal: str = ""  # why the last extension failed
    _writes: AnswerLimit = field(init=False)
    _reads: AnswerLimit = field(init=False)  # of what became of a write
    _looks: AnswerLimit = field(init=False)  # for kill signals
    _turn: float = field(init=False)  # seconds between two looks at what is to be pushed
    _away: Backoff = field(init=False)  # between two tries to learn what became of writes
    _recover_at: float = 0.0  # monotonic, seconds: not before

    def __post_init__(self) -> None:
        shortest = min(PROGRESS_TIMEOUT, max(SHORTEST_PROGRESS_TIMEOUT, self.proof_period / 3))
        self._writes, self._reads = (AnswerLimit(shortest, LONGEST_TIMEOUT) for _ in range(2))
        self._looks = AnswerLimit(LOOK_TIMEOUT, LONGEST_TIMEOUT)
        self._turn = min(1.0, self.poll_interval, self.proof_period / 4)
        # After an outage of DataHub an owner must be heard within a proof period.
        self._away = self.backoff(first=self._turn, longest=max(self._turn, self.proof_period / 4))

    async def serve(self) -> None:
        """Keep all runs alive until cancelled. None of the duties waits for another one's server."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_leases)
            tasks.start_soon(self._watch_signals)
            tasks.start_soon(self._push_progress)

    async def _keep_leases(self) -> None:
        """Renew leases in time, and end the runs whose lease runs out: by the clock alone, whatever the calls that
        renew it are waiting for. A renewal that hangs keeps no other one waiting.
        """
        async with anyio.create_task_group() as tasks:
            while True:
                now = anyio.current_time()
                wake = now + LONGEST_PAUSE
                for run in self.active:
                    if run.let_go:
                        continue
                    self._judge(run, now)
                    wake = min(wake, *self._extend_in_time(run, now, tasks), *self._moments(run, now))
                self.beat("leases", wake - now)
                await self.active.changed(wake - now)

    def _judge(self, run: Run, now: float) -> None:
        remaining = run.delivery.lease_ends - now
        if remaining <= SPARE / 2:
            self._give_up(run, grace=0)
        elif remaining <= last_moments(self.visibility) and run.stop(
            StopReason.LEASE_ENDING, grace=max(0.0, remaining - SPARE)
        ):
            self.metrics.leases_lost.inc()
            at_limit = HIDDEN_TO_THE_LIMIT if run.delivery.is_at_its_limit else ""
            reason = at_limit or self._refusal or "the queue did not answer in time"
            run.log.warning("lease_running_out", reason=reason, seconds=round(remaining, 1))
        elif run.reporter.term_over(now) and run.stop(StopReason.CLAIM_ENDING):
            run.log.warning("claim_running_out", reason="DataHub could not be told of the run for too long")

    def _moments(self, run: Run, now: float) -> Iterator[float]:
        """When there is something to judge."""
        for before in (last_moments(self.visibility), SPARE / 2):
            if (moment := run.delivery.lease_ends - before) > now:
                yield moment

    def _extend_in_time(self, run: Run, now: float, tasks: TaskGroup) -> Iterator[float]:
        """Extend what is due; when to look again."""
        for delivery in (run.delivery, run.successor):
            if delivery is None:
                continue
            due = delivery.lease_ends - self.visibility + renewal_interval(self.visibility, self.proof_period)
            if due > now:
                yield due
                continue
            yield now + min(RETRY_INTERVAL, self.visibility / 20)
            if delivery.receipt_handle not in self._extending:
                self._extending.add(delivery.receipt_handle)
                tasks.start_soon(self._extend, run, delivery)

    async def _extend(self, run: Run, delivery: Delivery) -> None:
        try:
            await self.queue.extend(delivery)
        except LeaseLostError as error:
            if not run.let_go and run.lost(delivery):  # else it has come again, to ourselves
                run.log.warning("lease_lost", reason=str(error))
                self._give_up(run, grace=0)
        except QueueError as error:
            self._refusal = str(error)
        else:
            self._refusal = ""
            self.metrics.lease_extensions.inc()
            run.renewed()
        finally:
            self._extending.discard(delivery.receipt_handle)

    def _give_up(self, run: Run, grace: float) -> None:
        counted = run.stop_reason in {StopReason.LEASE_ENDING, StopReason.LEASE_LOST}
        if run.stop(StopReason.LEASE_LOST, grace) and not counted:
            self.metrics.leases_lost.inc()

    async def _watch_signals(self) -> None:
        longest = max(self.poll_interval, LONGEST_BLIND)
        backoff, last_ping = self.backoff(first=self.poll_interval, longest=longest), -math.inf
        while True:
            self.beat("signals", self.poll_interval)
            watched, now = self._watched(), anyio.current_time()
            try:
                with self._looks.move_on() as look:
                    if watched:
                        await self._stop_killed(watched)
                    elif now - last_ping >= IDLE_PING_INTERVAL:
                        await self.datahub.probe()
                        last_ping = now
                failed = look.cancelled_caught
            except DataHubError:  # reachability says it once, see operations
                failed = True
            if failed:
                pause = backoff.next_wait()
            else:
                backoff.reset()
                pause = (
                    self.poll_interval if watched else last_ping + IDLE_PING_INTERVAL - anyio.current_time()
                )
            if watched:
                await anyio.sleep(pause)
            elif not self._watched():  # one that came while DataHub was asked has announced itself already
                await self._idle("signals", pause)

    def _watched(self) -> list[Run]:
        return [run for run in self.active if run.phase not in {Phase.SETTLING, Phase.SETTLED}]

    async def _stop_killed(self, watched: Sequence[Run]) -> None:
        killed = await self.datahub.kill_signals([run.exec_id for run in watched])
        for run in watched:
            if run.exec_id in killed and run.stop(StopReason.CANCELLED):
                run.log.info("kill_signal_seen")

    async def _idle(self, loop: str, seconds: float) -> None:
        """Wait for a run to come or go, for so many seconds at most."""
        self.beat(loop, max(0.0, seconds))
        await self.active.changed(max(0.0, seconds))

    async def _push_progress(self) -> None:
        while True:
            self.beat("progress", self._turn)
            await self._recover_those_in_doubt()
            await self._push_what_is_due()
            await anyio.sleep(self._turn)
            if not len(self.active):
                await self._idle("progress", LONGEST_PAUSE)

    async def _recover_those_in_doubt(self) -> None:
        uncertain = [run for run in self._under_way() if not run.reporter.certain]
        if not uncertain or anyio.current_time() < self._recover_at:
            return
        async with anyio.create_task_group() as tasks:
            for run in uncertain:
                tasks.start_soon(self._recover, run)
        if all(run.reporter.certain for run in uncertain):
            self._away.reset()
        else:
            self._recover_at = anyio.current_time() + self._away.next_wait()

    async def _push_what_is_due(self) -> None:
        now = anyio.current_time()
        due = [
            (run, run.reporter.begin(state))
            for run in self._under_way()
            if (state := self._news_of(run, now)) is not None
        ]
        if not due:
            return
        outcomes: list[DataHubError | None] = [DataHubUnavailableError("not answered in time")] * len(due)
        try:
            with self._writes.move_on():
                outcomes = await self.datahub.write_states([write for _, write in due])
        finally:
            for (run, write), error in zip(due, outcomes, strict=True):
                run.reporter.finish(write, error, now)
        for (run, _), error in zip(due, outcomes, strict=True):
            if isinstance(error, ImmutableStateError):
                run.stop(StopReason.ENDED_ELSEWHERE)
            elif error is not None:
                run.journal.not_shown()
                if isinstance(error, BlockedError | TooLargeError):
                    run.journal.show_less()

    def _news_of(self, run: Run, now: float) -> RunState | None:
        """What DataHub is to be told of a run now: what is new in its log, or that its owner lives."""
        if run.journal.changed and run.reporter.due(now):
            return run.journal.progress()
        if run.reporter.beat_due(now):
            return run.journal.alive() if self.datahub.patches else run.journal.progress()
        return None

    def _under_way(self) -> Iterator[Run]:
        # One whose lease ended while we were stopped is over, though nobody has seen to it yet: no sign of life.
        now = anyio.current_time()
        return (
            run
            for run in self.active
            if run.phase in {Phase.PREPARING, Phase.RUNNING} and run.delivery.lease_ends > now
        )

    async def _recover(self, run: Run) -> None:
        try:
            with self._reads.move_on():
                await run.reporter.recover()
        except ImmutableStateError:
            run.stop(StopReason.ENDED_ELSEWHERE)
        except SupersededError as error:
            run.log.warning("superseded", reason=str(error))
            self._give_up(run, grace=0)
        except DataHubError:
            return  # still away: next time
