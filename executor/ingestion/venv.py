"""The venvs that runs use: baked into the image, or built once and kept."""

import errno
import platform
import sys
import sysconfig
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from executor.ingestion.tool import RunTool, run_tool
from executor.ingestion.venv_build import Log, Uv, installed_version, say
from executor.ingestion.venv_spec import (
    BUNDLED,
    LATEST,
    VenvError,
    VenvSpec,
    index_key,
    venv_family,
    venv_key,
    venv_spec,
)
from executor.ingestion.venv_store import Venv, VenvStore
from executor.lack import reason

__all__ = ["BUNDLED", "Venv", "VenvCache", "VenvError", "VenvSpec", "venv_spec"]

_HISTORY = 2000  # lines of a build that one who joins late is shown
_LATEST_LASTS = 3600.0  # seconds
_LATEST_RETRY = 60.0  # seconds without a new look-up after one failed and an older answer served
_PYTHON = f"{platform.python_implementation()} {sys.version} {sysconfig.get_platform()} {sys.base_prefix}"


class VenvCache:
    """Venvs under `root`, built with uv where they are missing (contract, sections 1 and 5).

    An async context manager: the builds live in it, and leaving it ends them. `environ` is what uv gets,
    index settings and proxies included. Nothing is evicted; a venv's `complete.json` is touched at each use.
    """

    def __init__(
        self,
        *,
        root: Path,
        bundled: Path,
        uv: Path,
        environ: Mapping[str, str],
        run: RunTool = run_tool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._bundled = bundled
        # uv's cache lies beside the venvs, so that their files can be hard links.
        self._uv = Uv(binary=uv, run=run, environ=environ, cache=root.parent / "uv-cache")
        self._store = VenvStore(root, clock)
        self._builds: dict[str, _Build] = {}
        self._latest: dict[str, _Latest] = {}
        self._exit = AsyncExitStack()
        self._tasks: TaskGroup

    async def __aenter__(self) -> Self:
        """Clear away what dead executors left behind, and be ready to build.

        Raises:
            OSError: `root` can't be made or read.
        """
        await self.sweep()
        self._tasks = await self._exit.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._exit.__aexit__(kind, error, traceback)

    async def sweep(self) -> None:
        """Remove what interrupted builds left, unless their builder lives."""
        await self._store.sweep()

    async def get(self, spec: VenvSpec, log: Log) -> Venv:
        """The venv of `spec`, built if need be; `log` gets what uv prints meanwhile, secrets masked.

        Raises:
            VenvError: It can't be had.
        """
        if spec.version == BUNDLED:
            try:
                return self._get_bundled(spec, log)
            except OSError as error:
                words = f"the bundled venv in {self._bundled} can't be used: {reason(error)}."
                raise VenvError(words) from error
        environ = self._uv.environment(spec)
        version = await self._get_latest(spec, environ, log) if spec.version == LATEST else spec.version
        key = venv_key(spec, version, _PYTHON, environ)
        try:
            found = self._store.find(key)
        except OSError as error:
            raise VenvError(_disk_words(error, self._root)) from error
        return found or await self._get_built(key, spec, version, log)

    def _get_bundled(self, spec: VenvSpec, log: Log) -> Venv:
        if spec.plugin is None:
            raise VenvError(f"version '{BUNDLED}' goes by the recipe's source type: it has none.")
        path = self._bundled / f"{spec.plugin}-{BUNDLED}"
        python, command = path / "bin" / "python", path / "bin" / "datahub"
        if not (python.exists() and command.exists()):
            there = sorted(
                found.parent.parent.name.removesuffix(f"-{BUNDLED}")
                for found in self._bundled.glob(f"*-{BUNDLED}/bin/python")
            )
            raise VenvError(
                f"there is no bundled venv for {spec.plugin}: {path} has no bin/python and bin/datahub. "
                f"Bundled in {self._bundled}: {', '.join(there) or 'none'}. Set the source's CLI version to "
                f"'{LATEST}' or a number, or use an image that bundles {spec.plugin}."
            )
        if spec.extra_plugins or spec.extra_requirements:
            say(log, f"Version '{BUNDLED}' is used as it is: extra plugins and requirements are left out")
        return Venv(path, installed_version(path), python, (str(command),))

    async def _get_latest(self, spec: VenvSpec, environ: Mapping[str, str], log: Log) -> str:
        """The concrete version for `latest`, looked up once an hour, by one asker for all."""
        latest = self._latest.setdefault(index_key(_PYTHON, environ), _Latest())
        asked = anyio.current_time()
        async with latest.lock:
            if latest.must_look_up(asked):
                say(log, "Looking up the latest version of the CLI")
                try:
                    latest.found(await self._uv.latest(spec, self._root))
                except VenvError as error:
                    latest.failed(str(error))
                except Exception as error:  # noqa: BLE001 - the next one in the queue must not fail on it, too
                    latest.failed(_unexpected("the latest version could not be looked up", spec, error, log))
        version = latest.version
        if latest.failure is not None:
            family = venv_family(spec, _PYTHON, environ)
            version = await self._store.newest_version(family) or version
            if version is not None:
                latest.make_do()
                say(log, "The latest version can't be looked up now: using the one from before")
        if version is None:
            raise VenvError(latest.failure or "the latest version is not known.")
        say(log, f"The latest version is {version}")
        return version

    async def _get_built(self, key: str, spec: VenvSpec, version: str, log: Log) -> Venv:
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = _Build()
            self._tasks.start_soon(self._build, key, build, spec, version)
        try:
            with build.heard_by(log):
                await build.done.wait()
        finally:
            if not build.listeners and not build.done.is_set():
                self._forget(key, build)  # whoever asks next begins anew, once this one is cleared away
                build.scope.cancel()
        if build.defect is not None:
            failure = _unexpected("the venv could not be built", spec, build.defect, log)
            raise VenvError(failure) from build.defect
        if build.venv is None:
            raise VenvError(build.failure)
        return build.venv

    def _forget(self, key: str, build: "_Build") -> None:
        if self._builds.get(key) is build:
            del self._builds[key]

    async def _build(self, key: str, build: "_Build", spec: VenvSpec, version: str) -> None:
        """Own one build, from the lock to the rename; what became of it is left in `build`."""
        started = anyio.current_time()
        try:
            with build.scope:
                async with self._store.building(key, build.say) as directory:
                    if directory is not None:
                        built = await self._uv.build(spec, version, directory, build.say)
                        family = venv_family(spec, _PYTHON, self._uv.environment(spec))
                        self._store.publish(key, built, spec=spec, version=version, family=family)
                        say(build.say, f"Built in {anyio.current_time() - started:.1f} s")
                build.venv = self._store.find(key)
        except VenvError as error:
            build.failure = str(error)
        except OSError as error:
            build.failure = _disk_words(error, self._root)
        # The edge of a task that lives in the whole service's: whatever a package of somebody's own brings
        # about here must end this build alone. Who asked for it is told, in `_get_built`.
        except Exception as error:  # noqa: BLE001 - see above
            build.defect = error
        finally:
            self._forget(key, build)
            build.done.set()


@dataclass
class _Latest:
    """What is known about the latest version at one set of indexes."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    version: str | None = None
    failure: str | None = None
    good_until: float = float("-inf")
    tried_at: float = float("-inf")

    def must_look_up(self, asked: float) -> bool:
        """Not while the answer is good, nor if it was tried since `asked`: who waited shares it."""
        return anyio.current_time() >= self.good_until and self.tried_at <= asked

    def found(self, version: str) -> None:
        self.version, self.failure, self.tried_at = version, None, anyio.current_time()
        self.good_until = self.tried_at + _LATEST_LASTS

    def failed(self, failure: str) -> None:
        self.failure, self.tried_at = failure, anyio.current_time()

    def make_do(self) -> None:
        self.good_until = max(self.good_until, self.tried_at + _LATEST_RETRY)


class _Build:
    """A build and those who wait for it."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self.listeners: list[Log] = []
        self.venv: Venv | None = None
        self.defect: Exception | None = None
        self.failure = "the venv was not built: the executor is stopping, or someone removed it. Try again."
        self._history: deque[bytes] = deque(maxlen=_HISTORY)

    def say(self, line: bytes) -> None:
        self._history.append(line)
        for listener in self.listeners:
            listener(line)

    @contextmanager
    def heard_by(self, log: Log) -> Iterator[None]:
        for line in self._history:
            log(line)
        self.listeners.append(log)
        try:
            yield
        finally:
            self.listeners.remove(log)


def _disk_words(error: OSError, root: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the venv could not be built: the disk is full. Free space in {root} or give it a larger disk."
        )
    return f"the venv could not be built in {root}: {reason(error, 'check its owner and permissions')}."


def _unexpected(what: str, spec: VenvSpec, error: Exception, log: Log) -> str:
    """Words for an error that nobody thought of; the log gets all of it."""
    say(log, spec.mask("".join(traceback.format_exception(error)).rstrip()))
    reason = spec.mask(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    return f"{what}: {reason}. The log below has the details; check the CLI version and the requirements."
