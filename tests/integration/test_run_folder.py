"""The folders of runs on a real disk, shared by executors of which one was killed."""

import fcntl
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executor.ingestion.run_folder import ARTIFACTS_KEPT, RunFolder, sweep
from tests.conftest import ROOT

OTHER = """
import sys
from pathlib import Path
from executor.ingestion.run_folder import RunFolder
folder = RunFolder.make(Path(sys.argv[1]), "theirs")
(folder.scratch / "file").touch()
print(folder.path, flush=True)
sys.stdin.read()
"""


def runs(work_dir: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in (work_dir / "runs").iterdir())


def descriptors() -> set[int]:
    """Those that are open; the one that looks is not among them."""
    found = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    return {number for number in found if Path(f"/proc/self/fd/{number}").exists()}


def left(work_dir: Path) -> list[Path]:
    """What lies in the work folder besides its two places."""
    return [*(work_dir / "runs").iterdir(), *(work_dir / "artifacts").iterdir()]


def test_what_a_killed_executor_left_goes_and_what_living_ones_use_stays(tmp_path: Path) -> None:
    mine = RunFolder.make(tmp_path, "mine")
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}
    ) as other:
        assert other.stdout is not None
        assert Path(other.stdout.readline().decode().strip()).is_dir()
        sweep(tmp_path)
        assert runs(tmp_path) == ["mine", "theirs"]
        other.kill()
        other.wait()
    sweep(tmp_path)
    assert runs(tmp_path) == ["mine"]
    mine.clear(tmp_path)
    assert runs(tmp_path) == []


def test_a_folder_that_is_being_made_is_left_alone_for_a_while(tmp_path: Path) -> None:
    new = tmp_path / "runs" / ".new-abc"
    new.mkdir(parents=True)
    sweep(tmp_path)
    assert new.is_dir()
    sweep(tmp_path, clock=lambda: time.time() + 7200)
    assert not new.exists()


def test_a_sweep_of_nothing_is_fine(tmp_path: Path) -> None:
    sweep(tmp_path / "missing")


def test_a_run_that_left_nothing_is_cleared_at_once(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    folder = RunFolder.make(tmp_path, "exec-1")
    folder.report.write_text("{}")
    assert folder.clear_if_clean()
    assert runs(tmp_path) == []
    assert list((tmp_path / "artifacts").iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_folder_without_a_descriptor_for_its_lock_leaves_nothing(tmp_path: Path) -> None:
    before = descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = next(number for number in range(soft) if number not in before)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            RunFolder.make(tmp_path, "exec-1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert left(tmp_path) == []


def test_a_folder_that_can_not_get_its_name_leaves_nothing(tmp_path: Path) -> None:
    before = descriptors()
    with pytest.raises(OSError, match="File name too long"):
        RunFolder.make(tmp_path, "x" * 250)
    assert left(tmp_path) == []
    assert descriptors() == before


def test_a_folder_of_a_living_executor_is_its_own_however_old_it_looks(tmp_path: Path) -> None:
    """As after the clock was set while it was being made."""
    new = tmp_path / "runs" / ".new-abc"
    new.mkdir(parents=True)
    with (new / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(tmp_path, clock=lambda: time.time() + 7200)
        assert new.is_dir()
    sweep(tmp_path, clock=lambda: time.time() + 7200)
    assert not new.exists()


def test_a_report_that_is_cut_short_is_handed_on_for_others_to_say_so(tmp_path: Path) -> None:
    folder = RunFolder.make(tmp_path, "exec-1")
    assert folder.structured_report() is None
    folder.report.write_text('{"cut": ')
    assert folder.structured_report() == b'{"cut": '
    folder.clear(tmp_path)


def test_artifacts_stay_for_a_while(tmp_path: Path) -> None:
    for exec_id, age in (("old", ARTIFACTS_KEPT + 60), ("new", 60)):
        folder = RunFolder.make(tmp_path, exec_id)
        (folder.scratch / "deep").mkdir()
        (folder.artifacts / "file").touch()
        os.utime(folder.artifacts, (time.time() - age,) * 2)
        assert not folder.clear_if_clean()
        folder.clear(tmp_path)
    assert runs(tmp_path) == []
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["new"]
