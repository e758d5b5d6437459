"""Print the tables of docs/scaling.md: `python -m benchmarks.scaling [TABLE …]`."""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.scaling.tables import TABLES, assumptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Print them, and what they assume."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="Simulate the autoscaling."
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; default: all")
    names = parser.parse_args(arguments).tables or [*TABLES]
    if unknown := [name for name in names if name not in TABLES]:
        parser.error(f"no table is called {', '.join(unknown)}")
    print(assumptions())
    for name in names:
        print(f"\n{name}\n\n{TABLES[name]()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
