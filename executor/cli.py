"""The commands that a person types; nothing but arguments and printing."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from executor import __version__

FAILED = 1  # exit code
CONFIGURATION_FAULT = 2  # exit code
INTERRUPTED = 130  # exit code, as after SIGINT
READER_GONE = 141  # exit code, as after SIGPIPE

_WRITE_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_SETTINGS = "All settings come from the environment: `datahub-executor settings` lists them."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `datahub-executor`; returns the exit code."""
    try:
        return _run_command(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (OSError, BaseExceptionGroup) as error:
        refused = _write_error(error)
        if refused is None:
            raise
    _forget_output()
    if isinstance(refused, BrokenPipeError):  # whoever read what we print has gone, as in `… | head`
        return READER_GONE
    print(f"write error: {refused.strerror}", file=sys.stderr)
    return FAILED


def _run_command(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        code: int = options.command(options)
    finally:
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
    return code


def _write_error(error: BaseException) -> OSError | None:
    """Why what we print is taken no more, if that is all that went wrong; several tasks may have printed."""
    if isinstance(error, BaseExceptionGroup):
        found = [_write_error(inner) for inner in error.exceptions]
        return None if None in found else found[0]
    if not isinstance(error, OSError):
        return None
    # An error of a file that we opened has its name.
    return error if error.filename is None and error.errno in _WRITE_ERRORS else None


def _forget_output() -> None:
    """Keep the interpreter's end from trying once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="datahub-executor", description="Runs DataHub ingestion inside a private network."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def verb(name: str, words: str, epilog: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name, help=words, description=f"{words[0].upper()}{words[1:]}.", epilog=epilog
        )

    run = verb(
        "run",
        "consume the queue until told to stop",
        f"SIGTERM or SIGINT stops it, a second one hurries. {_SETTINGS} Exit code: 0 after a stop, 2 where the "
        "configuration is faulty.",
    )
    run.set_defaults(command=_run)

    settings = verb(
        "settings",
        "print the effective settings and where each comes from",
        "Exit code: 2 where one is faulty, else 0.",
    )
    settings.set_defaults(command=_settings)

    check = verb(
        "check",
        "see whether all that a run needs can be reached",
        f"{_SETTINGS} Exit code: 1 where something keeps runs from working, 2 where the settings are faulty, "
        "else 0.",
    )
    check.set_defaults(command=_check)

    _add_submit(
        verb(
            "submit",
            "put a recipe on the queue as DataHub would",
            f"{_SETTINGS} Exit code: 0 when sent (with --wait: on SUCCESS only), 1 when not (or any other end), "
            "2 for what makes no sense, 3 after --timeout.",
        )
    )

    demo = verb(
        "demo",
        "the whole way once, on this machine alone",
        "It reads none of the settings, and removes what it makes. Exit code: 0 only if all of it happened.",
    )
    which = demo.add_mutually_exclusive_group()
    which.add_argument("--cli-version", help="the CLI version to build a venv of; default: a pinned one")
    which.add_argument("--venv", type=Path, help="use this venv of the DataHub CLI, build none")
    demo.set_defaults(command=_demo)
    return parser


def _add_submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("recipe", type=Path, help="a recipe, YAML or JSON; - for standard input")
    submit.add_argument("--wait", action="store_true", help="follow the run; exit 0 only on SUCCESS")
    submit.add_argument(
        "--timeout", type=float, default=None, metavar="SECONDS", help="with --wait: give up after so many"
    )
    submit.add_argument(
        "--test-connection",
        action="store_true",
        help="only test the source's connection; with --wait, exit 0 only if it can be reached",
    )
    submit.add_argument(
        "--cli-version",
        default=None,
        metavar="VERSION",
        help="a version, bundled, latest, or a wheel's address; default: latest",
    )
    submit.add_argument("--requirement", action="append", default=[], help="an extra pip requirement")
    submit.add_argument("--plugin", action="append", default=[], help="an extra plugin of the CLI")
    submit.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="an extra variable")
    submit.add_argument("--debug", action="store_true", help="run the CLI in debug mode")
    submit.set_defaults(command=_submit)


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
