"""Measure the service: `python -m benchmarks [--only NAME] [--rounds N] [--all] [--docs] [--json FILE]`.

These are no tests, as others' load on the machine may raise any figure. The exit code is 1 where a bar is missed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import anyio

from benchmarks import (
    bench_cancel,
    bench_memory,
    bench_noop,
    bench_progress,
    bench_soak,
    bench_warm,
)
from benchmarks.harness import TOKEN, Bench, Figure, print_table
from executor.local.datahub import stand_in
from tests.servers import LocalStack, run_localstack

ROOT = Path(__file__).resolve().parent.parent
Measure = Callable[[Bench, int], Awaitable[list[Figure]]]

MEASUREMENTS: dict[str, tuple[Measure, int]] = {
    module.NAME: (module.measure, module.ROUNDS)
    for module in (
        bench_noop,
        bench_memory,
        bench_cancel,
        bench_warm,
        bench_progress,
        bench_soak,
    )
}
ONLY_WITH_ALL = {bench_progress.NAME, bench_soak.NAME}  # minutes of waiting


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for and print one table."""
    options = _parser().parse_args(arguments)
    names = options.only or [name for name in MEASUREMENTS if options.all or name not in ONLY_WITH_ALL]
    localstack_venv = Path(os.environ.get("TEST_LOCALSTACK_VENV", ROOT / ".cache" / "localstack"))
    cli_venv = Path(os.environ.get("TEST_CLI_VENV", ROOT / ".cache" / "cli"))
    with tempfile.TemporaryDirectory(prefix="executor-bench-") as name:
        folder = Path(name)
        (folder / "localstack").mkdir()
        with run_localstack(localstack_venv, folder / "localstack") as localstack:
            figures = anyio.run(
                _measure_all,
                names,
                options.rounds,
                ROOT / "docs" if options.docs else None,
                localstack,
                cli_venv,
                folder,
                backend_options={"use_uvloop": True},
            )
    print_table(figures)
    if options.json is not None:
        document = [{**asdict(figure), "reached": figure.reached} for figure in figures]
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(any(figure.reached is False for figure in figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the service.")
    parser.add_argument("--only", action="append", choices=[*MEASUREMENTS], help="this one; may be repeated")
    parser.add_argument("--rounds", type=int, help="samples of each figure, instead of its own number")
    parser.add_argument("--all", action="store_true", help="also progress and soak, which take minutes")
    parser.add_argument("--docs", action="store_true", help="also write docs/performance.* anew, of `warm`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples there")
    return parser


async def _measure_all(
    names: Sequence[str],
    rounds: int | None,
    docs: Path | None,
    localstack: LocalStack,
    cli_venv: Path,
    folder: Path,
) -> list[Figure]:
    figures = []
    for name in names:
        measure, own_rounds = MEASUREMENTS[name]
        began = time.monotonic()
        (folder / name).mkdir()
        async with stand_in(token=TOKEN) as datahub, localstack.client() as sqs:
            bench = Bench(localstack, datahub, sqs, cli_venv, folder / name, docs)
            figures += await measure(bench, rounds or own_rounds)
        print(f"{name}: measured in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return figures


if __name__ == "__main__":
    sys.exit(main())
