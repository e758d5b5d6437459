"""The schedules of `make test`, in parts that run side by side: one test file each."""

from tests.simulation.__main__ import run_range

CHUNK = 3_334  # schedules: three of these are ten thousand and a few


def no_rule_is_broken(part: int) -> None:
    """Run the part's schedules; fails with the seeds to be replayed."""
    counts, failed, number = run_range(range(part * CHUNK, (part + 1) * CHUNK))

    replay = "".join(
        f"\n  {': '.join(outcome.breach or ())}: python -m tests.simulation --seed {outcome.seed}"
        for outcome in failed[:10]
    )
    assert not failed, f"{len(failed)} of {number} schedules broke a rule:{replay}"
    # A simulation in which nothing happens would find nothing.
    for fault in (
        "crashes",
        "pauses",
        "takeovers",
        "hurries",
        "requests sent twice",
        "hand-over messages sent",
    ):
        assert counts[fault] > CHUNK / 100, f"{fault}: {counts[fault]}"
    assert counts["given back, as DataHub was away"] >= 3
    assert counts["processes as DataHub went away for half an hour"] >= 3
    assert counts["claims that ran out"] > CHUNK / 1000, counts["claims that ran out"]
