"""The folders of runs on a real disk, shared by executors of which one was killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

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
