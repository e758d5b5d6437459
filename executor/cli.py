"""The commands that a person types; nothing but arguments and printing."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from executor import __version__

CONFIGURATION_FAULT = 2  # exit code
INTERRUPTED = 130  # exit code, as after SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `datahub-executor`; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read what we print has gone, as in `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="datahub-executor", description="Runs DataHub ingestion inside a private network."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = verbs.add_parser("run", help="consume the queue until told to stop")
    run.set_defaults(command=_run)

    settings = verbs.add_parser("settings", help="print the effective settings and where each comes from")
    settings.set_defaults(command=_settings)

    check = verbs.add_parser("check", help="see whether all that a run needs can be reached")
    check.set_defaults(command=_check)

    submit = verbs.add_parser("submit", help="put a recipe on the queue as DataHub would")
    submit.add_argument("recipe", type=Path, help="a recipe, YAML or JSON; - for standard input")
    submit.add_argument("--wait", action="store_true", help="follow the run; exit 0 only on SUCCESS")
    submit.add_argument(
        "--timeout", type=float, default=None, help="with --wait: give up after so many seconds"
    )
    submit.add_argument("--test-connection", action="store_true", help="only test the source's connection")
    submit.add_argument(
        "--cli-version", default=None, help="a version, bundled, latest, or a wheel's address"
    )
    submit.add_argument("--requirement", action="append", default=[], help="an extra pip requirement")
    submit.add_argument("--plugin", action="append", default=[], help="an extra plugin of the CLI")
    submit.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="an extra variable")
    submit.add_argument("--debug", action="store_true", help="run the CLI in debug mode")
    submit.set_defaults(command=_submit)

    demo = verbs.add_parser("demo", help="the whole way once, on this machine alone")
    which = demo.add_mutually_exclusive_group()
    which.add_argument("--cli-version", help="the CLI version to build a venv of; default: a pinned one")
    which.add_argument("--venv", type=Path, help="use this venv of the DataHub CLI, build none")
    demo.set_defaults(command=_demo)
    return parser


# The commands import what they need when they are called: the service stays small.


def _run(_: argparse.Namespace) -> int:
    # structlog and httpx import these where they are to be had, for coloured tracebacks and a command of their
    # own: 5 MB that a service does not need.
    for name in ("rich", "click"):
        sys.modules[name] = None  # type: ignore[assignment]
    from executor.service import StartError, run_service
    from executor.settings import SettingsError, load_settings

    try:
        run_service(load_settings(os.environ), dict(os.environ))
    except (SettingsError, StartError) as error:
        print(error, file=sys.stderr)
        return CONFIGURATION_FAULT
    return 0


def _settings(_: argparse.Namespace) -> int:
    from executor.commands import settings

    return settings.run(os.environ)


def _check(_: argparse.Namespace) -> int:
    from executor.commands import check

    return check.run(os.environ)


def _submit(options: argparse.Namespace) -> int:
    from executor.commands import submit

    return submit.run(options, os.environ)


def _demo(options: argparse.Namespace) -> int:
    from executor.commands import demo

    return demo.run(options, os.environ)
