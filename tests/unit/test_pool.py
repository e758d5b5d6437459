"""The pool: what runs at a time, and who is next."""

import random
from collections.abc import Callable
from fractions import Fraction

import anyio
import pytest
from anyio.lowlevel import checkpoint

from executor.pool import Pool, Ticket

ROUNDS = 5  # turns of the event loop after which all that can go on has gone on


async def settle() -> None:
    for _ in range(ROUNDS):
        await checkpoint()


def fits(pool: Pool, weight: float) -> bool:
    """Whether a run of this weight could start at once."""
    probe = pool.ticket(weight)
    there_is_room = probe.granted.is_set()
    pool._withdraw(probe)
    return there_is_room


def is_empty(pool: Pool) -> bool:
    return (pool.active, pool.waiting) == (0, 0) and fits(pool, 1.0)


def granted(*tickets: Ticket) -> list[bool]:
    return [ticket.granted.is_set() for ticket in tickets]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 7, 100])
async def test_as_many_run_as_there_are_workers(workers: int) -> None:
    pool = Pool(workers)
    assert await pool.room() == workers
    tickets = [pool.ticket() for _ in range(workers + 1)]
    assert granted(*tickets) == [True] * workers + [False]
    assert (pool.active, pool.waiting) == (workers, 1)


@pytest.mark.parametrize(
    ("weight", "fit"),
    [(1 / 3, 3), (1 / 6, 6), (1 / 7, 7), (0.1, 10), (0.29, 3), (0.2, 5), (0.34, 2), (0.1666667, 5), (1.0, 1)],
)
async def test_weights_fill_the_pool_and_no_more(weight: float, fit: int) -> None:
    pool = Pool(4)
    tickets = [pool.ticket(weight) for _ in range(fit + 1)]
    assert granted(*tickets) == [True] * fit + [False]


async def test_a_weight_over_1_counts_as_1_and_runs_alone() -> None:
    pool = Pool(4)
    heavy, light = pool.ticket(7.5), pool.ticket()
    assert granted(heavy, light) == [True, False]
    async with heavy:
        pass
    assert granted(light) == [True]


async def test_the_smallest_weight_still_weighs_something() -> None:
    pool = Pool(1)
    async with pool.ticket(1e-12):
        assert not fits(pool, 1.0)


async def test_light_runs_do_not_starve_a_heavy_one() -> None:
    pool = Pool(4)
    first, second = pool.ticket(), pool.ticket()
    heavy = pool.ticket(1.0)
    late = [pool.ticket() for _ in range(3)]
    assert granted(heavy, *late) == [False] * 4
    async with first:
        pass
    assert granted(heavy, *late) == [False] * 4
    async with second:
        pass
    assert granted(heavy, *late) == [True, False, False, False]
    async with heavy:
        pass
    assert granted(*late) == [True] * 3


async def test_slots_are_given_in_the_order_of_asking() -> None:
    pool, order = Pool(1), list[int]()

    async def take(number: int, ticket: Ticket) -> None:
        async with ticket:
            order.append(number)
            await checkpoint()

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(take, number, pool.ticket())
    assert order == list(range(10))
    assert is_empty(pool)


async def test_who_gives_up_waiting_lets_the_next_one_go() -> None:
    pool = Pool(2)
    running = pool.ticket()
    heavy, light = pool.ticket(1.0), pool.ticket()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with heavy:
            pytest.fail("it has no slot")
    assert granted(running, light) == [True, True]
    assert (pool.active, pool.waiting) == (2, 0)


async def test_a_slot_comes_back_however_the_run_ends() -> None:
    pool = Pool(1)
    with anyio.CancelScope() as scope:
        async with pool.ticket():
            scope.cancel()
            await anyio.sleep_forever()
    with pytest.raises(ZeroDivisionError):
        async with pool.ticket():
            _ = 1 / 0
    assert is_empty(pool)


async def test_room_waits_for_a_slot_and_for_those_in_line() -> None:
    pool, rooms = Pool(2), list[int]()
    heavy = pool.ticket(1.0)

    async def ask() -> None:
        rooms.append(await pool.room())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await settle()
        assert rooms == []
        waiting = pool.ticket()
        async with heavy:
            pass
        await settle()
        assert granted(waiting) == [True]
        assert rooms == [1]


async def test_a_lighter_weight_makes_room_at_once_and_keeps_the_slot() -> None:
    pool = Pool(2)
    async with pool.ticket(1.0) as changing:
        other = pool.ticket(1.0)
        small = pool.ticket(0.5)
        await changing.change(0.25)
        assert granted(changing, other, small) == [True, False, False]
        pool._withdraw(other)
        assert granted(small) == [True]
        assert fits(pool, 0.25)
        assert not fits(pool, 0.26)
    assert pool.active == 1
    assert fits(pool, 0.5)


async def test_a_heavier_weight_that_fits_is_taken_at_once() -> None:
    pool = Pool(4)
    async with pool.ticket() as changing:
        other = pool.ticket()
        await changing.change(0.75)
        assert not fits(pool, 0.01)
        assert granted(other) == [True]
    assert pool.active == 1
    assert fits(pool, 0.75)


async def test_a_heavier_weight_waits_first_in_line_and_without_a_slot() -> None:
    pool, log = Pool(4), list[str]()

    async def grow(ticket: Ticket) -> None:
        async with ticket:
            await ticket.change(1.0)
            log.append("grown")

    async with anyio.create_task_group() as tasks:
        other, changing = pool.ticket(), pool.ticket()
        tasks.start_soon(grow, changing)
        later = pool.ticket(0.75)
        await settle()
        assert (pool.active, pool.waiting, log) == (1, 2, [])
        async with other:
            pass
        await settle()
        assert log == ["grown"]
        assert granted(later) == [True]
    assert pool.active == 1


async def test_two_that_grow_at_a_time_do_not_wait_for_each_other() -> None:
    pool, log = Pool(2), list[int]()

    async def grow(number: int, ticket: Ticket) -> None:
        async with ticket:
            await checkpoint()
            await ticket.change(1.0)
            log.append(number)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for number, ticket in enumerate([pool.ticket(), pool.ticket()]):
                tasks.start_soon(grow, number, ticket)
    assert sorted(log) == [0, 1]
    assert is_empty(pool)


async def test_who_gives_up_growing_gives_everything_back_once() -> None:
    pool, scope = Pool(2), anyio.CancelScope()
    other, changing = pool.ticket(), pool.ticket()

    async def grow() -> None:
        with scope:
            async with changing:
                await changing.change(1.0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(grow)
        behind = pool.ticket()
        await settle()
        assert granted(other, behind) == [True, False]
        scope.cancel()
        await settle()
        assert granted(other, behind) == [True, True]
    assert (pool.active, pool.waiting) == (2, 0)
    assert not fits(pool, 0.01)


async def test_the_same_weight_changes_nothing() -> None:
    pool = Pool(3)
    async with pool.ticket() as ticket:
        await ticket.change(1 / 3)
        await ticket.change(None)
        assert (pool.active, pool.waiting) == (1, 0)
    assert is_empty(pool)


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_the_pool_is_never_over_full_and_ends_empty(seed: int) -> None:
    dice, pool = random.Random(seed), Pool(4)
    held: dict[int, Fraction] = {}
    most = Fraction(0)

    def weight() -> float | None:
        return dice.choice([None, None, 1 / 3, 0.5, 1.0, dice.random() + 0.001])

    def hold(number: int, share: float | None) -> None:
        nonlocal most
        held[number] = Fraction(0.25 if share is None else share)
        most = max(most, sum(held.values(), Fraction(0)))

    async def work(number: int, share: float | None, ticket: Ticket, scope: anyio.CancelScope) -> None:
        with scope:
            async with ticket:
                hold(number, share)
                await pause(dice)
                if dice.random() < 0.4:
                    del held[number]
                    share = weight()
                    await ticket.change(share)
                    hold(number, share)
                    await pause(dice)
                del held[number]
        held.pop(number, None)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number in range(60):
                share, scope = weight(), anyio.CancelScope()
                tasks.start_soon(work, number, share, pool.ticket(share), scope)
                if dice.random() < 0.3:
                    tasks.start_soon(cancel_soon, scope.cancel, dice)
                await pause(dice)
    assert most <= 1 + Fraction(1, 10**7)  # 60 roundings to billionths
    assert most > Fraction(1, 2)
    assert is_empty(pool)
    assert await pool.room() == 4


async def pause(dice: random.Random) -> None:
    for _ in range(dice.randrange(6)):
        await checkpoint()


async def cancel_soon(cancel: Callable[[], None], dice: random.Random) -> None:
    await pause(dice)
    cancel()
