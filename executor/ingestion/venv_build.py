"""What uv is told: which CLI is the latest, and how a venv is built (contract, section 5)."""

import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from executor.ingestion.tool import RunTool
from executor.ingestion.venv_spec import CLI, VenvError, VenvSpec

Log = Callable[[bytes], None]

_MAX_RELAXATIONS = 10
_LINE_LIMIT = 8192  # bytes
_LINES_KEPT = 200
_LINES_SHOWN = 15
_NO_INDEX = (
    "Give the executor access to a package index (UV_DEFAULT_INDEX, HTTPS_PROXY), name a version that was built "
    "before, or use the version 'bundled'."
)
_NO_PACKAGE = (
    "Check the CLI version, the plugins and the extra requirements of the source, and that the executor "
    "reaches the package index (UV_DEFAULT_INDEX, HTTPS_PROXY)."
)
_MISSING_PIN = re.compile(r"there is no version of ([A-Za-z0-9._-]+)==([^\s,]+)")
_ERROR = re.compile(r"\s*(error:|\u00d7)")  # where uv begins to tell why it gave up
_PROVIDED = re.compile(r"^Provides-Extra: *(\S+)", re.MULTILINE)
_DISK_FULL = re.compile(r"No space left on device|os error 28\b")
# Set for a project or another interpreter, they would lead uv away from the venv that it is told to fill.
_UNWANTED_VARIABLES = ("UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_WORKING_DIR", "VIRTUAL_ENV", "CONDA_PREFIX")


class Uv:
    """The uv program, with the executor's environment and a cache of its own."""

    def __init__(self, *, binary: Path, run: RunTool, environ: Mapping[str, str], cache: Path) -> None:
        self._binary = binary
        self._run = run
        self._environ = environ
        self._cache = cache

    def environment(self, spec: VenvSpec) -> dict[str, str]:
        """What uv gets: the executor's environment, the request's index settings over it, and ours."""
        environ = {"UV_CACHE_DIR": str(self._cache), **self._environ, **dict(spec.environment)}
        for name in _UNWANTED_VARIABLES:
            environ.pop(name, None)
        if environ.get("PYTHONDONTWRITEBYTECODE"):
            # Every run would compile what it imports. Elsewhere the first run writes what it needs, in less
            # time than compiling all of it takes here (2 s against 3.5 s for one source).
            environ.setdefault("UV_COMPILE_BYTECODE", "1")
        return environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}

    async def latest(self, spec: VenvSpec, directory: Path) -> str:
        """The newest version of the CLI that the index has for our Python.

        Raises:
            VenvError: It can't be found out.
        """
        lines = await self._call(
            (
                "-q",
                "pip",
                "compile",
                "--no-deps",
                "--no-header",
                "--no-annotate",
                "--python",
                sys.executable,
                "-",
            ),
            _Step(
                f"the latest version of {CLI} could not be looked up", _NO_INDEX, spec, directory, _unheard
            ),
            CLI,
        )
        for line in lines:
            if match := re.match(rf"{CLI}==(\S+)", line):
                return match[1]
        raise VenvError(f"the package index has no {CLI}. {_NO_INDEX}")

    async def build(self, spec: VenvSpec, version: str, directory: Path, log: Log) -> "Built":
        """Make the venv of `spec` at the concrete `version` in `directory`.

        Raises:
            VenvError: uv could not build it.
            OSError: The disk would not take what is written there.
        """
        venv = directory / "venv"
        cli = spec.cli_requirement(version, plugins=True)
        say(log, f"Building the Python environment for {cli}")
        way_out = f"Check that the work folder can be written and that {sys.executable} works."
        await self._call(
            ("-q", "venv", "--relocatable", "--python", sys.executable, str(venv)),
            _Step("no Python environment could be made", way_out, spec, directory, log),
        )
        step = _Step(f"{cli} could not be installed", _NO_PACKAGE, spec, directory, log)
        await self._install(["--no-deps"], spec.cli_requirement(version, plugins=False), step)
        extras = "\n".join(spec.expanded_requirements)
        await self._install_cli(cli, step)
        installed = installed_version(venv)
        if installed is None:
            raise VenvError(f"{version} brought no {CLI}: check the CLI version of the source.")
        if extras:
            # No constraints of the CLI's here: these requirements are there to deviate. The CLI itself stays.
            pin = directory / "cli.txt"
            pin.write_text(f"{CLI}=={installed}\n", encoding="utf-8")
            say(log, f"Installing the extra requirements {', '.join(spec.extra_requirements)}")
            step = _Step("the extra requirements could not be installed", _NO_PACKAGE, spec, directory, log)
            await self._install(["-c", str(pin)], extras, step)
        warnings = tuple(
            f"{CLI} {installed} has no plugin named `{extra}`: if the source is not found, check its type and the "
            "extra plugins"
            for extra in _missing_extras(venv, spec)
        )
        for warning in warnings:
            say(log, f"Warning: {warning}")
        return Built(venv, installed, warnings)

    async def _install_cli(self, cli: str, step: "_Step") -> None:
        """Install the CLI with its plugins under its own constraints.

        A version that was taken off the index since the CLI was released can't be had by anyone, so the
        constraint that asks for it is left out.
        """
        given = next(
            (step.directory / "venv").glob("lib/python*/site-packages/datahub/constraints.txt"), None
        )
        if given is None:
            return await self._install([], cli, step)
        constraints = step.directory / "constraints.txt"
        lines = given.read_text(encoding="utf-8", errors="replace").splitlines()
        left_out: list[str] = []
        for _ in range(_MAX_RELAXATIONS):
            constraints.write_text("\n".join(lines) + "\n", encoding="utf-8")
            try:
                await self._install(["-c", str(constraints)], cli, step, say_error=False)
            except _StepFailedError as failure:
                lines, dropped = relax(lines, failure.lines)
                if not dropped:
                    _say_left_out(left_out, step.log)
                    for line in failure.error_lines:
                        say(step.log, line)
                    raise
                left_out += dropped
            else:
                return _say_left_out(left_out, step.log)
        _say_left_out(left_out, step.log)
        raise VenvError(f"{step.what}: its constraints name too many versions that the package index lacks.")

    async def _install(
        self, flags: Sequence[str], requirements: str, step: "_Step", *, say_error: bool = True
    ) -> None:
        python = step.directory / "venv" / "bin" / "python"
        arguments = ("pip", "install", "--python", str(python), *flags, "-r", "-")
        await self._call(arguments, step, requirements, say_error=say_error)

    async def _call(
        self, arguments: Sequence[str], step: "_Step", stdin: str | None = None, *, say_error: bool = True
    ) -> Sequence[str]:
        """Run uv; what it printed last. The log gets all of it, unless `say_error` keeps the reason back."""
        # In a directory of ours, so that no uv.toml or pyproject.toml around the executor is picked up.
        argv = [str(self._binary), "--directory", str(step.directory), *arguments]
        output = _Output(step, say_error=say_error)
        try:
            code = await self._run(
                argv,
                self.environment(step.spec),
                None if stdin is None else f"{stdin}\n".encode(),
                output.receive,
            )
        except OSError as error:
            raise VenvError(f"{step.what}: {self._binary} can't be started ({error.strerror}).") from error
        output.end()
        if code:
            raise _failure(step, code, output.lines, output.error_lines)
        return output.lines


@dataclass(frozen=True)
class Built:
    """A venv in the folder that it was built in. `warnings` tell of plugins that the CLI does not have."""

    path: Path
    cli_version: Version
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Step:
    what: str  # it is, if it fails
    way_out: str
    spec: VenvSpec
    directory: Path
    log: Log


class _StepFailedError(VenvError):
    def __init__(self, message: str, lines: Sequence[str], error_lines: Sequence[str]) -> None:
        super().__init__(message)
        self.lines = tuple(lines)
        self.error_lines = tuple(error_lines)


class _Output:
    """Cuts what uv prints into lines, masks what is secret, and keeps the last ones."""

    def __init__(self, step: _Step, *, say_error: bool) -> None:
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self.error_lines: deque[str] = deque(maxlen=_LINES_KEPT)
        """From the first on that tells of an error; kept out of the log where `say_error` is false."""
        self._step = step
        self._say_error = say_error
        self._rest = b""

    def receive(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._emit(line)
        if len(self._rest) > _LINE_LIMIT:
            self.end()

    def end(self) -> None:
        if self._rest:
            self._emit(self._rest)
            self._rest = b""

    def _emit(self, line: bytes) -> None:
        text = self._step.spec.mask(line.decode(errors="replace").rstrip())
        self.lines.append(text)
        if self.error_lines or _ERROR.match(text):
            self.error_lines.append(text)
        if self._say_error or not self.error_lines:
            say(self._step.log, text)


def relax(constraints: Sequence[str], printed: Sequence[str]) -> tuple[list[str], list[str]]:
    """The constraints less those on versions that uv said do not exist, and the pins that were left out."""
    text = " ".join(" ".join(printed).split())
    missing = {(canonicalize_name(name), version) for name, version in _MISSING_PIN.findall(text)}
    kept: list[str] = []
    dropped: list[str] = []
    for line in constraints:
        pin = _pin(line)
        if pin in missing:
            dropped.append("==".join(pin))
        else:
            kept.append(line)
    return kept, sorted(set(dropped))


def _pin(line: str) -> tuple[str, str]:
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return "", ""
    return canonicalize_name(requirement.name), str(requirement.specifier).removeprefix("==")


def installed_version(venv: Path) -> Version | None:
    """The version of the CLI that `venv` holds, from its dist-info; None if it holds none that is one."""
    for path in _dist_infos(venv):
        try:
            return Version(path.name.removesuffix(".dist-info").partition("-")[2])
        except InvalidVersion:
            continue
    return None


def _missing_extras(venv: Path, spec: VenvSpec) -> list[str]:
    """Those of the plugins that the installed CLI does not have; uv tells that only now and then."""
    metadata = [path / "METADATA" for path in _dist_infos(venv)]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in metadata if path.is_file()]
    provided = {canonicalize_name(name) for text in texts for name in _PROVIDED.findall(text)}
    return [extra for extra in spec.extras if extra not in provided]


def _dist_infos(venv: Path) -> Iterator[Path]:
    return venv.glob(f"lib/python*/site-packages/{CLI.replace('-', '_')}-*.dist-info")


def _say_left_out(pins: Sequence[str], log: Log) -> None:
    if pins:
        say(log, f"Not in the package index, left out of the CLI's constraints: {', '.join(pins)}")


def _failure(step: _Step, code: int, lines: Sequence[str], error_lines: Sequence[str]) -> _StepFailedError:
    ended = f"exit code {code}" if code >= 0 else f"signal {_signal_name(-code)}"
    what, way_out = step.what, step.way_out
    if any(_DISK_FULL.search(line) for line in lines):
        what, way_out = f"{what}: the disk is full", "Free space in the work folder or give it a larger disk."
    shown = "\n".join(f"  {line}" for line in list(lines)[-_LINES_SHOWN:])
    message = f"{what}. uv ended with {ended}, its last lines:\n{shown}\n{way_out}"
    return _StepFailedError(message, lines, error_lines)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def say(log: Log, text: str) -> None:
    """Write a line of ours into a log."""
    log(f"{text}\n".encode())


def _unheard(_line: bytes) -> None:
    """Where only a failure's words matter, and they have the lines too."""
