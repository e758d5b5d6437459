"""One ingestion, as the CLI runs it: recipe and secrets, venv, process, what it reported."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import structlog
import uv
from anyio import to_thread

from executor.ingestion.ending import Ending, cause, describe
from executor.ingestion.environment import run_environment, sensitive_values
from executor.ingestion.guard import Guard, open_guard
from executor.ingestion.masking import Masker, MaskRegistry
from executor.ingestion.output import OutputBuffer, in_units
from executor.ingestion.process import Command, Exit, NotForkedError, ProcessStartError, run_process
from executor.ingestion.recipe import Recipe, RecipeError, parse_recipe, stdin_for
from executor.ingestion.run_folder import RunFolder, sweep
from executor.ingestion.secrets import (
    EnvironmentSecretStore,
    FileSecretStore,
    SecretError,
    SecretStore,
    resolve,
)
from executor.ingestion.tool import guarded_by
from executor.ingestion.venv import BUNDLED, Venv, VenvCache, VenvError, venv_spec
from executor.ingestion.warm_pool import WarmParents
from executor.lack import reason
from executor.lease import Lease
from executor.requests import ExecutionRequest, TaskName
from executor.settings import Settings, secrets_of

OWN_SECRETS = "DATAHUB_EXECUTOR_SECRETS"  # a variable that no run is given, nor can ask for as a whole
LARGE = 64 * 1024  # characters of a recipe, bytes of a report; work on more would keep other runs waiting
MEGABYTE = 1_000_000  # bytes
LAST_OUTPUT = 16 * 1024  # bytes of the log in which the reason of an end is looked for

log = structlog.get_logger()

Result = TypeVar("Result")


class IngestError(Exception):
    """The run can't be started; the message is for the person who set up the source."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the CLI ended: the words for it, lines for the report's summary, and the report file that it wrote.

    `clean_up` removes what the run left on the disk, which may take a while: await it once the end is stored.
    """

    succeeded: bool
    words: str
    notes: tuple[str, ...]
    structured_report: bytes | None
    clean_up: Callable[[], Awaitable[None]]


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
        guard: Guard,
        maskers: MaskRegistry,
    ) -> None:
        """Whoever opens it gives it its `parents`; without, all runs start cold."""
        self.parents: WarmParents | None = None
        self._settings = settings
        self._env = env
        self._own: list[SecretStore] = [
            FileSecretStore(settings.file_secret_basedir, settings.file_secret_maxlen)
        ]
        if settings.secrets is not None:
            given = secrets_of(settings.secrets.get_secret_value())
            self._own.append(EnvironmentSecretStore(given, OWN_SECRETS))
        self._stores = stores
        self._venvs = venvs
        self._guard = guard
        self._maskers = maskers
        self._base_masker = Masker(sensitive_values(env))

    def parse(self, request: ExecutionRequest) -> Recipe:
        """The request's recipe, with the run's id in it. Raises IngestError."""
        try:
            return parse_recipe(request.recipe).with_run_id(request.exec_id)
        except RecipeError as error:
            raise IngestError(str(error)) from error

    async def secrets(self, request: ExecutionRequest, recipe: Recipe) -> dict[str, str]:
        """The values of the names in the recipe: from files, our own, the run's environment, the stores.

        Raises:
            IngestError: a name is found nowhere, or a secret can't be read.
        """
        environment = EnvironmentSecretStore({**self._env, **request.extra_env_vars})
        try:
            references = await _apart(len(request.recipe), lambda: recipe.references)
            return await resolve(references, [*self._own, environment, *self._stores])
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
        lease: Lease,
        grace: Callable[[], float],
        at_exit: Callable[[], None],
    ) -> Ended:
        """Run the CLI to its end; see `Ended` for what is left to do then.

        Being cancelled ends its whole tree, `grace()` seconds after SIGTERM by force. So does the end of
        `lease`, whatever this process is doing then.

        Raises:
            IngestError: it could not be started.
            LeaseEndedError: its lease was over before it ended.
        """
        try:
            folder = RunFolder.make(self._settings.work_dir, prepared.request.exec_id)
        except OSError as error:
            why = reason(error, "set DATAHUB_EXECUTOR_WORK_DIR to a place that can be written to")
            raise IngestError(
                f"a folder for the run can't be made in {self._settings.work_dir}: {why}"
            ) from error
        clean_up: Callable[[], Awaitable[None]] = partial(_clear, folder, self._settings.work_dir)
        try:
            command = await self._command(prepared, folder)
            exited = await self._run(
                prepared, command, partial(run_process, lease=lease, grace=grace, at_exit=at_exit), output
            )
            output.finish()
            with anyio.CancelScope(shield=True):  # it has ended by itself: that is what counts from here on
                size = folder.report.stat().st_size if folder.report.exists() else 0
                look = partial(_look_at, folder, exited, command.memory_limit, output)
                ending, structured = await _apart(size, look)
            if folder.clear_if_clean():
                clean_up = _nothing
            notes = _notes(exited, command.memory_limit, prepared.venv.warnings)
            return Ended(ending.succeeded, ending.words, notes, structured, clean_up)
        except BaseException as error:
            output.finish()
            await clean_up()
            if isinstance(error, ProcessStartError):
                raise IngestError(f"the run's process {error}") from error
            raise

    async def _run(
        self, prepared: Prepared, command: Command, run: Callable[..., Awaitable[Exit]], output: OutputBuffer
    ) -> Exit:
        """Warm where that makes no difference but time, else cold."""
        run = partial(run, command, output.feed, guard=self._guard)
        if self.parents is not None:
            parent = await self.parents.find(prepared.venv, prepared.recipe.source_type, command.env)
            if parent is not None:
                try:
                    return await run(start=parent.start)
                except NotForkedError as error:
                    self.parents.not_forked(parent, str(error))
        return await run()

    async def start_ahead(self, plugins: Sequence[str]) -> None:
        """Have the warm parents of bundled venvs before the first run asks for them, one after the other."""
        async with anyio.create_task_group() as tasks:
            for plugin in plugins:
                try:
                    spec = venv_spec(
                        version=BUNDLED,
                        plugin=plugin,
                        extra_plugins=(),
                        extra_requirements=(),
                        dependency_resolution_enabled=False,
                    )
                    venv = await self._venvs.get(spec, _unheard)
                except VenvError as error:
                    log.warning("not_started_ahead", source_type=plugin, reason=str(error))
                    continue
                if self.parents is not None:
                    await tasks.start(self.parents.keep, venv, plugin, self.environment(venv))

    def environment(self, venv: Venv) -> dict[str, str]:
        """What the environments of all runs from a venv have in common, and a folder or two that they have not."""
        nowhere = Path()
        return run_environment(
            self._env,
            {},
            venv=venv.path,
            gms_address=self._settings.gms_address,
            gms_token=None,
            artifacts=nowhere,
            scratch=nowhere,
            debug=False,
        )

    async def _command(self, prepared: Prepared, folder: RunFolder) -> Command:
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
            stdin=await _apart(
                len(request.recipe),
                partial(stdin_for, prepared.venv.cli_version, prepared.recipe, prepared.secrets),
            ),
            memory_limit=limit * 1024 if limit is not None else None,
        )


@asynccontextmanager
async def open_ingestion(
    settings: Settings, env: Mapping[str, str], datahub_secrets: SecretStore, maskers: MaskRegistry
) -> AsyncIterator[Ingestion]:
    """The means to run ingestions; leaving it ends the venv builds that are under way.

    Whatever they start ends with this process, if not before. What the runs of a killed executor left on the disk
    is removed first.
    """
    await to_thread.run_sync(sweep, settings.work_dir)
    env = {name: value for name, value in env.items() if name != OWN_SECRETS}
    async with (
        open_guard() as guard,
        VenvCache(
            root=settings.work_dir / "venvs",
            bundled=settings.bundled_venv_path,
            uv=Path(uv.find_uv_bin()),
            environ=env,
            run=guarded_by(guard),
        ) as venvs,
    ):
        ingestion = Ingestion(settings, env, [datahub_secrets], venvs, guard, maskers)
        if not settings.warm_starts:
            yield ingestion
            return
        parents = WarmParents(
            ingestion.environment, guard, settings.warm_memory * MEGABYTE, settings.warm_idle_timeout
        )
        async with parents.open(), anyio.create_task_group() as ahead:
            ingestion.parents = parents
            ahead.start_soon(ingestion.start_ahead, settings.warm_sources)
            yield ingestion
            ahead.cancel_scope.cancel()


async def _apart(size: int, work: Callable[[], Result]) -> Result:
    """Do what takes long in a thread, so that other runs go on meanwhile."""
    return await to_thread.run_sync(work) if size > LARGE else work()


def _look_at(
    folder: RunFolder, exited: Exit, memory_limit: int | None, output: OutputBuffer
) -> tuple[Ending, bytes | None]:
    """What became of a run, from its exit code, the last of its log and its report."""
    structured, log = folder.structured_report(), output.snapshot(LAST_OUTPUT)
    why = cause(log, structured, output.masker.mask) if exited.returncode else None
    return describe(exited, memory_limit, log, why), structured


def _notes(exited: Exit, memory_limit: int | None, warnings: Sequence[str]) -> tuple[str, ...]:
    peak = in_units(exited.peak_memory)
    notes = [f"Used:      {exited.cpu_seconds:.1f} s of processor time, {peak} at the peak"]
    if memory_limit is not None:
        notes.append(f"Memory limit: {in_units(memory_limit)} of address space (EXECUTOR_TASK_MEMORY_LIMIT)")
    return (*notes, *(f"Warning:   {warning}" for warning in warnings))


async def _clear(folder: RunFolder, work_dir: Path) -> None:
    with anyio.CancelScope(shield=True):
        if not folder.clear_if_clean():
            await to_thread.run_sync(folder.clear, work_dir)


def _unheard(chunk: bytes) -> None:
    """Where nobody waits for what is printed."""
    del chunk


async def _nothing() -> None:
    """Where nothing is left to clean up."""
