"""What a run's state tells of its time."""

import anyio

from executor.datahub.state import Status
from executor.journal import Journal

HOUR = 3600.0


async def test_a_run_takes_as_long_as_it_takes_however_the_clock_is_set() -> None:
    now = 1_700_000_000.0
    journal = Journal(None, executor_id="remote", host="host", clock=lambda: now)
    now += 60
    journal.begin(1)
    began = anyio.current_time()
    for jump in (-HOUR, 365 * 24 * HOUR):
        now += jump
        assert 0 <= journal.seconds <= anyio.current_time() - began + 0.001
        assert journal.progress().start_time_ms == 1_700_000_060_000
    state = journal.end(Status.SUCCESS, "done")
    assert 0 <= state.duration_ms <= (anyio.current_time() - began + 0.001) * 1000
    assert state.start_time_ms == 1_700_000_060_000
    assert "2023-11-14 22:14:20 UTC" in (state.report or "")
