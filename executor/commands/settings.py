"""`datahub-executor settings`: the effective settings, each with where it came from."""

import io
import sys
from collections.abc import Mapping
from typing import Final, TextIO

from pydantic import AliasChoices

from executor.settings import Settings, SettingsError, describe, load_settings, unknown_variables

_HEAD: Final = ("setting", "value", "from")
_FAULTY: Final = "✗"
_QUEUE: Final = "DATAHUB_EXECUTOR_QUEUE"
# What stands in for a faulty setting that is required, so that the others can be read.
_PLACEHOLDERS: Final = {
    "DATAHUB_GMS_URL": "http://none.invalid",
    _QUEUE: "none",
    "AWS_REGION": "none",
    "DATAHUB_EXECUTOR_VISIBILITY_TIMEOUT": "10",  # no limit on holding a message is shorter
}

Row = tuple[str, str, str]


def run(env: Mapping[str, str], *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Print the settings that `env` makes; return the exit code, 2 for a configuration with faults.

    A faulty one is marked in the table; what is wrong with it goes to standard error. `out` and `err` are
    standard output and standard error unless given.
    """
    out, err = out or sys.stdout, err or sys.stderr
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")  # the mark, where the locale has none
    for name, meant in unknown_variables(env):
        hint = f": is {meant} meant?" if meant else ""
        err.write(f"{name} is no setting{hint}\n")
    rows, faults = _rows(env)
    lines = _aligned([_HEAD, *rows])
    if out.isatty():
        _print_styled(lines, ["bold", *map(_style, rows)], out)
    else:
        out.writelines(f"{line}\n" for line in lines)
    out.flush()
    err.writelines(f"{fault}\n" for fault in faults)
    return 2 if faults else 0


def _rows(env: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    try:
        return _as_written(describe(load_settings(env), env), env), []
    except SettingsError as error:
        return _as_written(_with_faults(error.faults, env), env), error.faults


def _with_faults(faults: list[str], env: Mapping[str, str]) -> list[Row]:
    """The rows of all settings, though some are faulty; each fault begins with its variable's name."""
    faulty = {}
    for fault in faults:
        variable = fault.partition(" ")[0]
        faulty[_names_with(variable)] = variable
    gone = {name for names in faulty for name in names}
    rest = {name: value for name, value in env.items() if name not in gone}
    needed = gone | ({"AWS_REGION"} if _QUEUE in gone and "AWS_DEFAULT_REGION" not in rest else set())
    filled = {name: text for name, text in _PLACEHOLDERS.items() if name in needed and name not in rest}
    marked = {names[0]: variable for names, variable in faulty.items()}
    return [
        (
            name,
            f"{_FAULTY} faulty" if env.get(marked[name], "").strip() else f"{_FAULTY} not set",
            marked[name],
        )
        if name in marked
        else (name, value, origin)
        for name, value, origin in describe(load_settings({**rest, **filled}), rest)
    ]


def _names_with(variable: str) -> tuple[str, ...]:
    """All variables of the setting that `variable` is one of, its own name first."""
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        names = tuple(map(str, alias.choices)) if isinstance(alias, AliasChoices) else ()
        if variable in names:
            return names
    return (variable,)


def _as_written(rows: list[Row], env: Mapping[str, str]) -> list[Row]:
    """The rows with the queue as a person gave it: an ARN says more than what is read from it."""
    return [
        (name, env[origin].strip().strip("\"'"), origin)
        if name == _QUEUE and not value.startswith(_FAULTY)
        else (name, value, origin)
        for name, value, origin in rows
    ]


def _aligned(rows: list[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}" for name, value, origin in rows]


def _style(row: Row) -> str:
    if row[1].startswith(_FAULTY):
        return "red"
    return "dim" if row[2] == "default" else "default"


def _print_styled(lines: list[str], styles: list[str], out: TextIO) -> None:
    from rich.console import Console  # here, as a pipe needs none of it

    console = Console(file=out, markup=False, highlight=False)
    for line, style in zip(lines, styles, strict=True):
        console.print(line, style=style, soft_wrap=True)
