"""A run's place on the disk: scratch space and report go with the run, artifacts stay for a while."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ARTIFACTS_KEPT = 7 * 86400.0  # seconds that what a source left behind is kept
REPORT_LIMIT = 16 * 1024 * 1024  # bytes of a structured report; no aspect takes more
_NEW = ".new-"
_NEW_LASTS = 3600.0  # seconds after which a folder that never got its name counts as left behind
_START = time.time() - time.monotonic()


def steady_time() -> float:
    """Seconds since the epoch by which files are old; the earlier of two clocks, so that none gets old at once.

    They are the one that may be set at any time, and what it told at this process's start carried on.
    """
    return min(time.time(), _START + time.monotonic())


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`lock` is the descriptor of a file in it, locked as long as the run goes on."""

    path: Path
    artifacts: Path
    lock: int

    @classmethod
    def make(cls, work_dir: Path, exec_id: str) -> "RunFolder":
        """A new one. Raises OSError, with nothing of it left behind."""
        runs, artifacts = work_dir / "runs", work_dir / "artifacts" / exec_id
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=runs))
        lock = None
        try:
            artifacts.mkdir(mode=0o700, parents=True, exist_ok=True)
            (new / "tmp").mkdir()
            lock = os.open(new / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Only now does it get the name under which others look whether it is locked.
            path = new.rename(runs / f"{exec_id}.{new.name.removeprefix(_NEW)}")
        except OSError:
            if lock is not None:
                os.close(lock)
            # Not by `rmtree`, which needs descriptors, and there may be none.
            for remove in ((new / "lock").unlink, (new / "tmp").rmdir, new.rmdir, artifacts.rmdir):
                with suppress(OSError):
                    remove()
            raise
        return cls(path, artifacts, lock)

    @property
    def scratch(self) -> Path:
        """Where the run works."""
        return self.path / "tmp"

    @property
    def report(self) -> Path:
        """Where the CLI is to write its report."""
        return self.path / "report.json"

    def structured_report(self) -> bytes | None:
        """The file that the CLI wrote, if it is there: on a full disk it may be cut short."""
        try:
            with self.report.open("rb") as file:
                return file.read(REPORT_LIMIT)
        except OSError:
            return None

    def clear_if_clean(self) -> bool:
        """Remove it if the run left nothing, which takes no time; False if there is more to do."""
        try:
            self.report.unlink(missing_ok=True)
            self.scratch.rmdir()
            (self.path / "lock").unlink()
            self.path.rmdir()
            self.artifacts.rmdir()
        except OSError:
            return False
        os.close(self.lock)
        return True

    def clear(self, work_dir: Path, clock: Callable[[], float] = steady_time) -> None:
        """Remove it, except for artifacts, of which the old ones go. Call it once at most."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)
        try:
            self.artifacts.rmdir()
        except OSError:  # the source left something there
            _prune(_entries(work_dir / "artifacts"), clock() - ARTIFACTS_KEPT)


def sweep(work_dir: Path, clock: Callable[[], float] = steady_time) -> None:
    """Remove the folders of runs whose executor was killed; several executors may share `work_dir`."""
    runs = _entries(work_dir / "runs")
    left = [path for path in runs if not _is_locked(path / "lock")]
    _prune((path for path in left if path.name.startswith(_NEW)), clock() - _NEW_LASTS)
    for path in left:
        if not path.name.startswith(_NEW):
            shutil.rmtree(path, ignore_errors=True)


def _is_locked(lock: Path) -> bool:
    """Whether a living executor holds it; yes where that can't be told."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _prune(folders: Iterable[Path], before: float) -> None:
    for folder in folders:
        try:
            old = folder.stat().st_mtime < before
        except OSError:
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)
