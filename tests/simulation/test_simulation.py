"""The simulation itself: what is simulated is a function of the seed, and time is virtual."""

import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from tests.simulation.kernel import Kernel, Loop
from tests.simulation.world import simulate

ROOT = Path(__file__).parents[2]
HASHES = (
    "import hashlib;from tests.simulation.world import simulate;"
    "[print(hashlib.sha256('\\n'.join(simulate(s, recorded=True).story).encode()).hexdigest()) for s in range(40)]"
)


def _loop(kernel: Kernel, rank: int = 0) -> Loop:
    unhandled: list[str] = []
    return Loop(kernel, rank, unhandled.append)


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    stories = ["\n".join(simulate(seed, recorded=True).story) for seed in range(40)]
    here = [hashlib.sha256(story.encode()).hexdigest() for story in stories]

    elsewhere = subprocess.run(
        [sys.executable, "-c", HASHES],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert elsewhere.stdout.split() == here


def test_recording_changes_nothing() -> None:
    for seed in range(10):
        silent, told = simulate(seed), simulate(seed, recorded=True)

        assert (silent.steps, silent.ended_at, silent.counts) == (told.steps, told.ended_at, told.counts)


def test_time_passes_only_for_those_who_wait() -> None:
    kernel, woken = Kernel(), []
    loop = _loop(kernel)

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((seconds, round(loop.time(), 3)))

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleeper, 3600.0)
            tasks.start_soon(sleeper, 5.0)

    loop.post(lambda: loop.create_task(both()))
    kernel.run(until=10_000)

    assert woken == [(5.0, 5.0), (3600.0, 3600.0)]


def test_a_paused_loop_wakes_late_and_misses_nothing() -> None:
    kernel, woken = Kernel(), []
    loop = _loop(kernel)

    async def sleeper() -> None:
        with anyio.move_on_after(1.0) as scope:
            await anyio.sleep(100)
        woken.append((scope.cancelled_caught, round(loop.time(), 3)))

    def pause() -> None:
        loop.paused = True

    loop.post(lambda: loop.create_task(sleeper()))
    kernel.at(0.5, pause)
    kernel.at(7.0, loop.wake, lambda missed: missed)
    kernel.run(until=50)

    assert woken == [(True, 7.0)]


@pytest.mark.parametrize("nested", [False, True])
def test_a_closed_loop_does_nothing_more(nested: bool) -> None:
    kernel, done = Kernel(), []
    loop = _loop(kernel)

    async def stubborn() -> None:
        try:
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            done.append("cleaned up")

    async def grouped() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stubborn)

    loop.post(lambda: loop.create_task(grouped() if nested else stubborn()))
    kernel.at(0.5, loop.close)
    kernel.run(until=50)

    assert done == []
    assert asyncio.events._get_running_loop() is None


def test_loops_at_the_same_moment_take_turns_by_their_rank() -> None:
    kernel, turns = Kernel(), list[int]()
    for rank in (2, 0, 1):
        _loop(kernel, rank).call_at(1.0, turns.append, rank)

    kernel.run(until=2)

    assert turns == [0, 1, 2]
