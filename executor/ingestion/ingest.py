"""One ingestion, as the CLI runs it: recipe and secrets, venv, process, what it reported."""

import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import uv
from anyio import to_thread

from executor.ingestion.ending import describe
from executor.ingestion.environment import run_environment, sensitive_values
from executor.ingestion.masking import Masker, MaskRegistry
from executor.ingestion.output import OutputBuffer, in_units
from executor.ingestion.process import Command, ProcessStartError, run_process
from executor.ingestion.recipe import Recipe, RecipeError, parse_recipe, stdin_for
from executor.ingestion.secrets import (
    EnvironmentSecretStore,
    FileSecretStore,
    SecretError,
    SecretStore,
    resolve,
)
from executor.ingestion.venv import Venv, VenvCache, VenvError, venv_spec
from executor.requests import ExecutionRequest, TaskName
from executor.settings import Settings

ARTIFACTS_KEPT = 7 * 86400.0  # seconds that what a source left behind is kept
REPORT_LIMIT = 16 * 1024 * 1024  # bytes of a structured report; no aspect takes more
LAST_OUTPUT = 8 * 1024  # bytes of the log in which the reason of an end is looked for


class IngestError(Exception):
    """The run can't be started; the message is for the person who set up the source."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the CLI ended: the words for it, a line on what it used, and the report file that it wrote."""

    succeeded: bool
    words: str
    usage: str
    structured_report: bytes | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that the process needs. `secrets` go to its standard input and nowhere else."""

    request: ExecutionRequest
    recipe: Recipe
    secrets: Mapping[str, str] = field(repr=False)
    venv: Venv

    @property
    def cli_version(self) -> str:
        """The version of the CLI in the venv."""
        return str(self.venv.cli_version or "unknown")


class Ingestion:
    """Prepares and runs ingestions. Made by `open_ingestion`."""

    def __init__(
        self,
        settings: Settings,
        env: Mapping[str, str],
        stores: Sequence[SecretStore],
        venvs: VenvCache,
        maskers: MaskRegistry,
    ) -> None:
        self._settings = settings
        self._env = env
        self._files = FileSecretStore(settings.file_secret_basedir, settings.file_secret_maxlen)
        self._stores = stores
        self._venvs = venvs
        self._maskers = maskers
        self._base_masker = Masker(sensitive_values(env))

    def parse(self, request: ExecutionRequest) -> Recipe:
        """The request's recipe, with the run's id in it. Raises IngestError."""
        try:
            return parse_recipe(request.recipe).with_run_id(request.exec_id)
        except RecipeError as error:
            raise IngestError(str(error)) from error

    async def secrets(self, request: ExecutionRequest, recipe: Recipe) -> dict[str, str]:
        """The values of the names in the recipe: from files, the run's environment, then the stores.

        Raises:
            IngestError: a name is found nowhere, or a secret can't be read.
        """
        environment = EnvironmentSecretStore({**self._env, **request.extra_env_vars})
        try:
            return await resolve(recipe.references, [self._files, environment, *self._stores])
        except SecretError as error:
            raise IngestError(str(error)) from error

    def masker(self, request: ExecutionRequest, secrets: Mapping[str, str]) -> Masker:
        """What keeps these secrets, and those of the environment, out of the run's log and report."""
        return self._base_masker.with_values([*secrets.values(), *sensitive_values(request.extra_env_vars)])

    def masked_log(self, masker: Masker) -> AbstractContextManager[object]:
        """Meanwhile, the service's own log is masked with it as well."""
        return self._maskers.add(masker)

    async def prepare(
        self, request: ExecutionRequest, recipe: Recipe, secrets: Mapping[str, str], output: OutputBuffer
    ) -> Prepared:
        """Have the venv ready; what uv prints goes to `output`. Raises IngestError."""
        try:
            spec = venv_spec(
                version=request.version,
                plugin=recipe.plugin,
                extra_plugins=request.extra_pip_plugins,
                extra_requirements=request.extra_pip_requirements,
                dependency_resolution_enabled=self._settings.dependency_resolution_enabled,
                environ={**self._env, **request.extra_env_vars},
            )
            venv = await self._venvs.get(spec, output.feed)
        except VenvError as error:
            raise IngestError(str(error)) from error
        return Prepared(request, recipe, secrets, venv)

    async def run(
        self,
        prepared: Prepared,
        output: OutputBuffer,
        *,
        grace: Callable[[], float],
        at_exit: Callable[[], None],
    ) -> Ended:
        """Run the CLI to its end; being cancelled ends its whole tree, `grace()` seconds after SIGTERM by force.

        Raises:
            IngestError: it could not be started.
        """
        try:
            folder = _RunFolder.make(self._settings.work_dir, prepared.request.exec_id)
        except OSError as error:
            raise IngestError(
                f"a folder for the run can't be made in {self._settings.work_dir} ({error.strerror}): free some "
                "space there, or set DATAHUB_EXECUTOR_WORK_DIR to another place"
            ) from error
        try:
            command = self._command(prepared, folder)
            ended = await run_process(command, output.feed, grace=grace, at_exit=at_exit)
            output.finish()
            ending = describe(ended, command.memory_limit, output.snapshot(LAST_OUTPUT))
            peak = in_units(ended.peak_memory)
            usage = f"Used:      {ended.cpu_seconds:.1f} s of processor time, {peak} at the peak"
            return Ended(ending.succeeded, ending.words, usage, folder.structured_report())
        except ProcessStartError as error:
            raise IngestError(f"the run's process {error}") from error
        finally:
            output.finish()
            if not folder.clear_if_clean():
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(folder.clear, self._settings.work_dir)

    def _command(self, prepared: Prepared, folder: "_RunFolder") -> Command:
        request, settings = prepared.request, self._settings
        token = settings.gms_token.get_secret_value() if settings.gms_token else None
        arguments = ["--debug"] if request.debug_mode else []
        arguments += ["ingest", "run", "-c", "-", "--report-to", str(folder.report)]
        if request.name is TaskName.TEST_CONNECTION:
            arguments.append("--test-source-connection")
        limit = request.memory_limit_kb
        return Command(
            argv=[*prepared.venv.command, *arguments],
            env=run_environment(
                self._env,
                request.extra_env_vars,
                venv=prepared.venv.path,
                gms_address=settings.gms_address,
                gms_token=token,
                artifacts=folder.artifacts,
                scratch=folder.scratch,
                debug=request.debug_mode,
            ),
            cwd=folder.scratch,
            stdin=stdin_for(prepared.venv.cli_version, prepared.recipe, prepared.secrets),
            memory_limit=limit * 1024 if limit is not None else None,
        )


@asynccontextmanager
async def open_ingestion(
    settings: Settings, env: Mapping[str, str], datahub_secrets: SecretStore, maskers: MaskRegistry
) -> AsyncIterator[Ingestion]:
    """The means to run ingestions; leaving it ends the venv builds that are under way."""
    async with VenvCache(
        root=settings.work_dir / "venvs",
        bundled=settings.bundled_venv_path,
        uv=Path(uv.find_uv_bin()),
        environ=env,
    ) as venvs:
        yield Ingestion(settings, env, [datahub_secrets], venvs, maskers)


@dataclass(frozen=True, slots=True)
class _RunFolder:
    """A run's place on the disk: scratch space and report go with the run, artifacts stay for a while."""

    path: Path
    artifacts: Path

    @classmethod
    def make(cls, work_dir: Path, exec_id: str) -> "_RunFolder":
        runs, artifacts = work_dir / "runs", work_dir / "artifacts" / exec_id
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = cls(Path(tempfile.mkdtemp(prefix=f"{exec_id}.", dir=runs)), artifacts)
        folder.scratch.mkdir()
        artifacts.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    @property
    def scratch(self) -> Path:
        return self.path / "tmp"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    def structured_report(self) -> bytes | None:
        """The file that the CLI wrote, if it is there and JSON."""
        try:
            with self.report.open("rb") as file:
                data = file.read(REPORT_LIMIT)
            json.loads(data)
        except (OSError, ValueError):
            return None
        return data

    def clear_if_clean(self) -> bool:
        """Remove it if the run left nothing, which takes no time; False if there is more to do."""
        try:
            self.report.unlink(missing_ok=True)
            self.scratch.rmdir()
            self.path.rmdir()
            self.artifacts.rmdir()
        except OSError:
            return False
        return True

    def clear(self, work_dir: Path) -> None:
        """Remove it, except for artifacts, of which the old ones go."""
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self.artifacts.rmdir()
        except OSError:  # the source left something there
            _prune((work_dir / "artifacts").iterdir())


def _prune(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            old = folder.stat().st_mtime < time.time() - ARTIFACTS_KEPT
        except OSError:
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)
