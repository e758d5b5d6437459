"""`datahub-executor settings`: the effective settings, each with where it came from."""

import sys
from collections.abc import Mapping
from typing import TextIO

from executor.settings import SettingsError, describe, load_settings, unknown_variables

_HEAD = ("setting", "value", "from")


def run(env: Mapping[str, str], *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Print the settings that `env` makes; return the exit code, 2 for a configuration with faults.

    `out` and `err` are standard output and standard error unless given.
    """
    out, err = out or sys.stdout, err or sys.stderr
    for name, meant in unknown_variables(env):
        hint = f": is {meant} meant?" if meant else ""
        err.write(f"{name} is no setting{hint}\n")
    try:
        rows = describe(load_settings(env), env)
    except SettingsError as error:
        err.write(f"{error}\n")
        return 2
    lines = _aligned([_HEAD, *rows])
    if out.isatty():
        _print_styled(lines, [None, *(row[2] == "default" for row in rows)], out)
    else:
        out.writelines(f"{line}\n" for line in lines)
    return 0


def _aligned(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows]


def _print_styled(lines: list[str], is_default: list[bool | None], out: TextIO) -> None:
    from rich.console import Console  # here, as a pipe needs none of it

    console = Console(file=out, markup=False, highlight=False)
    styles = {None: "bold", True: "dim", False: "default"}
    for line, default in zip(lines, is_default, strict=True):
        console.print(line, style=styles[default], soft_wrap=True)
