"""Kill, stop and cut off executors at random: `python -m benchmarks.chaos [--seed N] [--minutes N] …`.

The exit code is 1 if a bar is missed: a request lost or run twice at once, a takeover that took too long.
"""

import argparse
import os
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio

from benchmarks.chaos.campaign import Plan, Result, run_campaign
from benchmarks.chaos.faults import schedule
from benchmarks.chaos.load import requests
from benchmarks.harness import Figure, count_of, max_of, median_of, print_table
from tests.servers import run_localstack

ROOT = Path(__file__).resolve().parent.parent.parent
TAKEOVER_SLACK = 5.0  # seconds beyond the lease
ORPHANS_GONE = 5.0  # seconds
SHOWN = 10  # cases of a kind that are told one by one


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and print what came of it."""
    options = _parser().parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    seconds, prefix = options.minutes * 60, f"chaos-{secrets.token_hex(4)}-"
    plan = Plan(
        requests(options.seed, prefix, count=options.requests, seconds=seconds, lease=options.lease),
        schedule(options.seed, executors=options.executors, seconds=seconds, lease=options.lease),
        options.executors,
        options.lease,
    )
    venv = Path(os.environ.get("TEST_LOCALSTACK_VENV", ROOT / ".cache" / "localstack"))
    with tempfile.TemporaryDirectory(prefix="executor-chaos-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "localstack").mkdir()
        try:
            with run_localstack(venv, folder / "localstack") as localstack:
                result = anyio.run(
                    run_campaign, plan, localstack, folder, backend_options={"use_uvloop": True}
                )
        except KeyboardInterrupt:
            print("stopped; all that was started is ended", file=sys.stderr)
            return 130
        finally:
            if options.keep is not None:
                shutil.copytree(folder, options.keep, ignore=shutil.ignore_patterns("localstack", "bundled"))
    figures = list(_figures(result))
    print_table(figures)
    for line in _cases(result):
        print(line)
    return int(any(figure.reached is False for figure in figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description="Break things at random.")
    parser.add_argument("--executors", type=int, default=4, help="processes (%(default)s)")
    parser.add_argument("--requests", type=int, default=300, help="spread over the time (%(default)s)")
    parser.add_argument("--minutes", type=float, default=5, help="how long there are faults (%(default)s)")
    parser.add_argument("--lease", type=int, default=20, help="seconds (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="repeats the faults of a run"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy logs and notes there")
    return parser


def _figures(result: Result) -> Iterator[Figure]:
    evidence = result.evidence
    ends, attempts = evidence.ends(), evidence.attempts()
    yield count_of("requests", len(evidence.sent))
    yield count_of("lost", len(evidence.lost()), 0)
    yield count_of("run twice at once", len(evidence.twice()), 0)
    yield count_of("terminal statuses overwritten", len(evidence.overwritten()), 0)
    yield count_of("ended other than SUCCESS", sum(end != "SUCCESS" for end in ends.values()), 0)
    yield count_of("messages left in the queue", result.left, 0)
    yield count_of("executors that ended of themselves", result.dead, 0)
    yield count_of("attempts", attempts.total())
    yield max_of("attempts of one request", list(attempts.values()) or [0], "")
    takeovers = evidence.takeovers()
    yield count_of("takeovers", len(takeovers))
    if takeovers:
        bar = evidence.lease + TAKEOVER_SLACK
        yield max_of("takeover", [takeover.seconds for takeover in takeovers], "s", bar)
        yield median_of("takeover", [takeover.seconds for takeover in takeovers], "s")
        yield max_of("takeover, outages and second faults included", [one.whole for one in takeovers], "s")
    if result.remains:
        lives = [remains.seconds for remains in result.remains]
        yield max_of("executor killed → all that it started gone", lives, "s", ORPHANS_GONE)
    for name, number in sorted(Counter(struck.fault.name for struck in evidence.struck).items()):
        yield count_of(f"faults: {name}", number)
    if result.skipped:
        yield count_of("faults left out, their executor being away", len(result.skipped))


def _cases(result: Result) -> Iterator[str]:
    """What missed a bar, one by one; times in seconds from the first fault."""
    evidence = result.evidence
    zero = evidence.struck[0].began if evidence.struck else 0.0
    bar = evidence.lease + TAKEOVER_SLACK
    if not evidence.takeovers():
        yield "nothing is shown of takeovers: no executor that had a run was killed, or stopped beyond its lease"
    kinds = {
        "lost": [f"{exec_id}: {why}" for exec_id, why in evidence.lost().items()],
        "run twice at once": [
            f"{mark.exec_id}: process {mark.pid} of executor {mark.executor} at {mark.at - zero:.1f}"
            for mark in evidence.twice()
        ],
        "overwritten": evidence.overwritten(),
        "late takeover": [
            f"{one.exec_id}: {one.kind} at {one.at - zero:.1f}, {one.seconds:.1f} s ({one.whole:.1f} in all)"
            for one in evidence.takeovers()
            if one.seconds > bar
        ],
        "left by a killed executor": [
            f"executor {remains.executor}, {remains.seconds:.1f} s: {remains.last}"
            for remains in result.remains
            if remains.seconds > ORPHANS_GONE
        ],
    }
    for kind, cases in kinds.items():
        yield from (f"{kind}: {case}" for case in cases[:SHOWN])
        if len(cases) > SHOWN:
            yield f"{kind}: and {len(cases) - SHOWN} more"


if __name__ == "__main__":
    sys.exit(main())
