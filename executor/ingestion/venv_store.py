"""The folder of built venvs: complete ones under their keys, unfinished ones and locks beside them."""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread
from packaging.version import InvalidVersion, Version

from executor.ingestion.venv_build import Built, Log, say
from executor.ingestion.venv_spec import VenvSpec, is_wheel

_MARKER = "complete.json"
_BUILDING = ".building-"
_LOCK = ".lock-"
_LOCK_POLL = 0.2  # seconds between tries for a venv that another executor process builds


@dataclass(frozen=True)
class Venv:
    """A venv that is ready. `command` starts the CLI, to be followed by its arguments.

    `warnings` tell of plugins that this CLI does not have.
    """

    path: Path
    cli_version: Version | None
    python: Path
    command: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Marker:
    """What `complete.json` tells: `version` as it was asked for, a number or a wheel's address."""

    version: str
    cli_version: Version
    family: str
    warnings: tuple[str, ...]


class VenvStore:
    """Venvs on disk. Several executor processes may share a folder; a venv is there whole or not at all."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._clock = clock
        self._known: dict[str, tuple[int, Venv]] = {}

    def find(self, key: str) -> Venv | None:
        """The complete venv under `key`; the time of its marker says when it was last asked for.

        Raises:
            OSError: It is not known whether it is there: no file can be opened, say.
        """
        path = self._root / key
        marker, python = path / _MARKER, path / "bin" / "python"
        try:
            inode = marker.stat().st_ino
            python.stat()
        except FileNotFoundError:
            self._known.pop(key, None)
            return None
        with suppress(OSError):  # one that can't be marked, of another user, serves all the same
            os.utime(marker)
        known = self._known.get(key)
        if known is not None and known[0] == inode:
            return known[1]
        content = _read_marker(marker)
        if content is None:
            return None
        # Through Python rather than by the script's first line, which is a shell's: two processes less.
        command = (str(python), str(path / "bin" / "datahub"))
        venv = Venv(path, content.cli_version, python, command, content.warnings)
        self._known[key] = (inode, venv)
        return venv

    async def newest_version(self, family: str) -> str | None:
        """The newest version of the CLI among the venvs of `family`."""
        return await to_thread.run_sync(self._newest_version, family)

    def _newest_version(self, family: str) -> str | None:
        versions: list[Version] = []
        for path in self._root.glob(f"*/{_MARKER}"):
            with suppress(OSError):
                marker = _read_marker(path)
                if marker is not None and marker.family == family and not is_wheel(marker.version):
                    versions.append(Version(marker.version))
        return str(max(versions)) if versions else None

    @asynccontextmanager
    async def building(self, key: str, log: Log) -> AsyncIterator[Path | None]:
        """A new folder to build `key` in, removed at the end; none if the venv is there by then.

        While another process builds the same one, or an abandoned build is cleared away, it is waited for.

        Raises:
            OSError: The disk is full or can't be written.
        """
        lock = await self._lock(key, log)
        try:
            if self.find(key) is not None:
                yield None
                return
            directory = Path(tempfile.mkdtemp(prefix=f"{_BUILDING}{key}-", dir=self._root))
            try:
                yield directory
            finally:
                with anyio.CancelScope(shield=True):
                    await _remove(directory)
        finally:
            self._unlock(key, lock)

    def publish(self, key: str, built: Built, *, spec: VenvSpec, version: str, family: str) -> None:
        """Give the complete venv, built in a folder of `building`, its place under `key`."""
        venv = built.path
        content = {
            "version": version,
            "plugin": spec.plugin,
            "extra_plugins": spec.extra_plugins,
            "extra_requirements": spec.extra_requirements,
            "cli_version": str(built.cli_version),
            "family": family,
            "warnings": built.warnings,
            "created": self._clock(),
        }
        (venv / _MARKER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        place = self._root / key
        if place.exists():  # without its marker or its Python: someone cleaned up inside it
            place.rename(venv.with_name("replaced"))
        venv.rename(place)

    async def sweep(self) -> None:
        """Remove what interrupted builds left, unless their builder lives.

        Raises:
            OSError: The folder can't be made or read.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        for path in list(self._root.glob(f"{_BUILDING}*")):
            key = path.name.removeprefix(_BUILDING).partition("-")[0]
            try:
                lock = self._try_lock(key, os.O_RDWR)
            except FileNotFoundError:  # a builder has one before its folder, and removes it after that;
                await _remove(path)  # to make one, there may be no space on the disk
                continue
            if lock is not None:
                try:
                    await _remove(path)
                finally:
                    self._unlock(key, lock)
        for path in list(self._root.glob(f"{_LOCK}*")):
            key = path.name.removeprefix(_LOCK)
            with suppress(FileNotFoundError):
                if (lock := self._try_lock(key, os.O_RDWR)) is not None:
                    self._unlock(key, lock)

    async def _lock(self, key: str, log: Log) -> int:
        if (lock := self._try_lock(key)) is not None:
            return lock
        say(log, "Waiting for another build of this Python environment to end")
        while (lock := self._try_lock(key)) is None:  # noqa: ASYNC110 no event tells of another process
            await anyio.sleep(_LOCK_POLL)
        return lock

    def _try_lock(self, key: str, flags: int = os.O_RDWR | os.O_CREAT) -> int | None:
        """A descriptor that holds the lock of `key`, which the kernel lets go when this process dies.

        Raises:
            FileNotFoundError: Nobody holds it, and `flags` forbid to make it.
            OSError: It can't be had.
        """
        path = self._root / f"{_LOCK}{key}"
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            if _has_lock(descriptor, path):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another has it, or had it until now and removed the file that we opened
        return None

    def _unlock(self, key: str, lock: int) -> None:
        """Remove the lock's file while it is held, then let it go: who opened it meanwhile will see that."""
        with suppress(OSError):
            (self._root / f"{_LOCK}{key}").unlink()
        os.close(lock)


def _has_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


async def _remove(path: Path) -> None:
    await to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))


def _read_marker(path: Path) -> _Marker | None:
    """What it says; None where it says nothing. Raises OSError where it can't be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = str(content["version"])
        if not is_wheel(version):
            Version(version)
        warnings = tuple(map(str, content.get("warnings", ())))
        return _Marker(version, Version(str(content["cli_version"])), str(content["family"]), warnings)
    except (FileNotFoundError, ValueError, KeyError, TypeError, InvalidVersion):
        return None  # cut short, or of another layout: as good as missing
