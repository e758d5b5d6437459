"""`python -m tests.simulation`: many schedules, side by side; or one, with its story."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.world import Outcome, collected_rarely, simulate

CHUNK = 500  # schedules that a process runs before it tells of them
SHOWN = 5  # failing seeds of a rule


def main() -> int:
    """Run what was asked for; 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first one's seed (default: 0)")
    parser.add_argument("--seed", type=int, help="run this one alone, and print its story")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        return tell(simulate(chosen.seed, recorded=True))
    return run_many(chosen.first_seed, chosen.schedules, chosen.processes)


def tell(outcome: Outcome) -> int:
    """Print one schedule's story."""
    print("\n".join(outcome.story))
    print(f"seed {outcome.seed}: {outcome.breach or 'all rules hold'}; {outcome.steps} steps")
    return 1 if outcome.breach else 0


def run_many(first: int, schedules: int, processes: int) -> int:
    """Print what happened in so many schedules, and which of them broke a rule."""
    began, counts, failed = time.monotonic(), Counter[str](), list[Outcome]()
    ranges = [range(at, min(at + CHUNK, first + schedules)) for at in range(first, first + schedules, CHUNK)]
    done = 0
    for found, breaches, number in _chunks(ranges, processes):
        counts.update(found)
        failed += breaches
        done += number
        if sys.stderr.isatty():
            print(f"\r{done} of {schedules}, {len(failed)} failed", end="", file=sys.stderr)
    seconds = time.monotonic() - began
    print(
        f"{schedules} schedules from seed {first}, {seconds:.1f} s, {1000 * seconds / schedules:.2f} ms each"
    )
    for name in sorted(counts):
        print(f"{counts[name]:>12}  {name}")
    by_rule: dict[str, list[Outcome]] = {}
    for outcome in failed:
        by_rule.setdefault(outcome.breach[0] if outcome.breach else "", []).append(outcome)
    for rule, outcomes in sorted(by_rule.items()):
        print(f"{len(outcomes)} broke the rule: {rule}")
        for outcome in outcomes[:SHOWN]:
            print(f"    seed {outcome.seed}: {outcome.breach[1] if outcome.breach else ''}")
    if failed:
        seed = failed[0].seed
        print(f"{len(failed)} schedules broke a rule; the story of seed {seed}:")
        tell(simulate(seed, recorded=True))
    return 1 if failed else 0


def run_range(seeds: range) -> tuple[Counter[str], list[Outcome], int]:
    """The counts of all these schedules, those that broke a rule, and how many there were."""
    counts, failed = Counter[str](), list[Outcome]()
    with collected_rarely() as collect:
        for seed in seeds:
            outcome = simulate(seed)
            counts.update(outcome.counts)
            counts["virtual seconds"] += round(outcome.ended_at)
            counts["callbacks"] += outcome.steps
            if outcome.breach is not None:
                failed.append(outcome)
            collect()
    return counts, failed, len(seeds)


def _chunks(ranges: list[range], processes: int) -> Iterator[tuple[Counter[str], list[Outcome], int]]:
    if processes == 1:
        yield from map(run_range, ranges)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(run_range, ranges)


if __name__ == "__main__":
    sys.exit(main())
