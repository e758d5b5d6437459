"""Waits that grow."""

import random

import anyio
import pytest

from executor.backoff import AnswerLimit, Backoff


def waits(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_wait() for _ in range(count)]


def test_waits_double_up_to_the_longest() -> None:
    intervals = [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    for seed in range(50):
        drawn = waits(Backoff(first=0.5, longest=5.0, draw=random.Random(seed)), len(intervals))
        assert all(most / 2 <= wait <= most for wait, most in zip(drawn, intervals, strict=True))


def test_a_fleet_does_not_come_back_in_step() -> None:
    assert len({Backoff(draw=random.Random(seed)).next_wait() for seed in range(100)}) == 100


def test_the_same_seed_gives_the_same_waits() -> None:
    assert waits(Backoff(draw=random.Random(7)), 10) == waits(Backoff(draw=random.Random(7)), 10)


def test_an_answer_makes_the_next_wait_a_first_one() -> None:
    backoff = Backoff(first=0.1, longest=100.0)
    waits(backoff, 10)
    backoff.reset()
    assert backoff.next_wait() <= 0.1


@pytest.mark.parametrize("longest", [0.1, 1.0])
def test_no_wait_is_longer_than_the_longest(longest: float) -> None:
    assert max(waits(Backoff(first=1.0, longest=longest), 20)) <= longest


async def test_waiting_lengthens_the_next_wait() -> None:
    backoff = Backoff(first=0.001, longest=100.0)
    await backoff.wait()
    assert 0.001 <= backoff.next_wait() <= 0.002


async def test_an_answer_that_came_too_late_is_waited_for_longer_the_next_time() -> None:
    limit, limits = AnswerLimit(shortest=0.001, longest=0.003), list[float]()
    for _ in range(3):
        with limit.move_on() as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        limits.append(limit.seconds)
    assert limits == [0.002, 0.003, 0.003]


async def test_a_prompt_answer_makes_the_limit_the_shortest_again() -> None:
    limit = AnswerLimit(shortest=1.0, longest=30.0)
    limit.seconds = 30.0
    with limit.move_on() as scope:
        pass
    assert not scope.cancelled_caught
    assert limit.seconds == 1.0
