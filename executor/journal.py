"""What is known of one run, and the state of it that DataHub is to see. No I/O."""

from collections.abc import Callable

import anyio

from executor.claim import attempt_ended
from executor.datahub.state import RunState, Status, StructuredReport
from executor.ingestion.masking import Masker
from executor.ingestion.output import OutputBuffer
from executor.ingestion.report import Summary, fit
from executor.requests import ExecutionRequest

LIVE_LOG_BYTES = 128 * 1024  # of the log in a progress write; the final one has all that is kept

SHORT_LOG_BYTES = 4 * 1024  # of the log in a report that has to be short: firewalls often let 8 KB pass


class Journal:
    """The story of a run as it goes on: request, attempt, log."""

    def __init__(
        self, request: ExecutionRequest | None, *, executor_id: str, host: str, clock: Callable[[], float]
    ) -> None:
        """`clock` tells seconds since the epoch."""
        self.request = request
        self.masker = Masker()
        self.output = OutputBuffer(self.masker.stream())
        self.source_type: str | None = None
        self.cli_version: str | None = None
        self.attempt = 0
        self.notes: tuple[str, ...] = ()  # lines of the report's summary
        self.executor_id = executor_id
        self._host = host
        self._clock = clock
        self._started = clock()
        self._began = anyio.current_time()  # the same moment for durations: the clock may be set meanwhile
        self._seconds: float | None = None
        self._shown = 0
        self._live_log = LIVE_LOG_BYTES

    def begin(self, attempt: int) -> None:
        """The run is about to be claimed: its time counts from here."""
        self.attempt = attempt
        self._started, self._began = self._clock(), anyio.current_time()

    def log_to(self, masker: Masker) -> None:
        """Begin the run's log, which `masker` keeps the secrets out of."""
        self.masker = masker
        self.output = OutputBuffer(masker.stream())

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, or took."""
        return anyio.current_time() - self._began if self._seconds is None else self._seconds

    @property
    def changed(self) -> bool:
        """Whether there is more to see than in the last `progress`."""
        return self.output.version != self._shown

    def progress(self) -> RunState:
        """The state while it runs, with the newest of the log."""
        self._shown = self.output.version
        return self._state(Status.RUNNING, None, self.output.snapshot(self._live_log))

    def alive(self) -> RunState:
        """A sign of life: that the run goes on, and for how long, leaving the report as it is."""
        return RunState(Status.RUNNING, round(self._started * 1000), round(self.seconds * 1000), None)

    def ended(self, why: str) -> str:
        """This attempt's end in words, for those that follow."""
        return attempt_ended(self.attempt, self._host, round(self._started * 1000), why)

    def not_shown(self) -> None:
        """The last `progress` did not arrive, or nobody knows."""
        self._shown = -1

    def show_less(self) -> None:
        """A `progress` was refused: less of the log may pass."""
        self._live_log = SHORT_LOG_BYTES

    def end(self, status: Status, words: str, structured_report: bytes | None = None) -> RunState:
        """The state at its end; `words` are what the report begins with."""
        self._stop_the_clock()
        return self._state(status, words, self.output.snapshot(), structured_report)

    def short_end(self, status: Status, words: str) -> RunState:
        """The state at its end with as little as can be told: for a server that refused all of it."""
        self._stop_the_clock()
        return self._state(status, words, self.output.snapshot(SHORT_LOG_BYTES))

    def _stop_the_clock(self) -> None:
        if self._seconds is None:
            self._seconds = self.seconds

    def _state(
        self, status: Status, words: str | None, log: str, structured: bytes | None = None
    ) -> RunState:
        seconds = self.seconds
        task = self.request.name.value if self.request else "unknown"
        summary = Summary(
            task=task,
            source_type=self.source_type or "unknown",
            cli_version=self.cli_version or "unknown",
            executor_id=self.executor_id,
            host=self._host,
            attempt=self.attempt,
            started=self._started,
            duration=seconds,
            ending=words,
            notes=self.notes,
        )
        fitted = fit(summary, structured, log, self.masker)
        report = StructuredReport(task, fitted.structured) if fitted.structured is not None else None
        return RunState(status, round(self._started * 1000), round(seconds * 1000), fitted.report, report)
