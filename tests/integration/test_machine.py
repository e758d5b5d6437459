"""What one run can do to the machine, or the machine to one part of the service: zombies, floods, disk, clock."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.ingestion.venv import VenvCache, VenvError
from tests.conftest import ROOT
from tests.integration.package_index import PackageIndex, serve, wheel
from tests.integration.service import Site
from tests.integration.test_venv import Place, cli
from tests.servers.faulty_machine import FaultyMachine

MIB = 1024 * 1024
GIB = 1024 * MIB


# Zombies


@pytest.fixture
def _first_process() -> Iterator[None]:
    """Orphans become our children, as they do where the executor is its container's first process."""
    set_child_subreaper = 36  # prctl(2)
    libc = ctypes.CDLL(None)
    assert libc.prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(set_child_subreaper, 0, 0, 0, 0) == 0


def zombies_of(*parents: int) -> list[int]:
    """Their children that ended and were not collected."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state == "Z" and int(parent) in parents:
            found.append(int(folder.name))
    return found


# 2,000 children that end and are never waited for; as many orphans, half of them in sessions of their own.
ZOMBIES = """
for number in range(2000):
    if os.fork() == 0:
        os._exit(0)
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            if number % 2:
                os.setsid()
            os._exit(0)
        os._exit(0)
    os.waitpid(child, 0)
note("up", os.getpid())
print("it works", flush=True)
"""


@pytest.mark.usefixtures("_first_process")
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_run_that_makes_zombies_leaves_none_of_them(site: Site, cancelled: bool) -> None:
    site.fake_cli("fake", f"{ZOMBIES}\nif {cancelled}: time.sleep(600)\n")
    async with site.service():
        await site.submit("one")
        [pid] = await site.clis.noted("up")
        if cancelled:
            assert len(zombies_of(pid)) == 2000
            site.kill("one")
        record = await site.settled("one")
        assert record.status == ("CANCELLED" if cancelled else "SUCCESS")
        assert "it works" in record.value["report"]
        assert zombies_of(pid, os.getpid()) == []


# A flood


FLOODS = {
    "lines": (
        "yes 'a line as long as most lines of a log are, or so' | head -c 1G",
        "earlier lines (1.1 GB) cut]",
    ),
    "one line": ("head -c 1G /dev/zero | tr '\\\\0' x", "more bytes of this line cut]"),
    "no text": ("yes $(printf '\\\\377\\\\001\\\\033\\\\200') | head -c 1G", "earlier lines (1.1 GB) cut]"),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_gigabyte_of_log_is_a_run_like_any_other(site: Site, flood: str) -> None:
    command, words = FLOODS[flood]
    site.fake_cli("fake", f'os.execvp("sh", ["sh", "-c", "{command}"])\n')
    peak_before = peak_memory()
    async with site.service():
        await site.submit("one")
        record = await site.settled("one")
    assert record.status == "SUCCESS"
    assert words in record.value["report"]
    assert sum(len(state.value["report"]) for state in site.datahub.store.history("one")[:-1]) < 2 * MIB
    assert peak_memory() - peak_before < 200 * MIB


async def test_a_run_that_floods_the_log_can_be_cancelled(site: Site) -> None:
    site.fake_cli("fake", 'note("up", 1)\nos.execvp("yes", ["yes"])\n')
    async with site.service():
        await site.submit("one")
        await site.until(lambda: site.shown("one", "earlier lines"))
        site.kill("one")
        record = await site.settled("one")
    assert record.status == "CANCELLED"
    assert "earlier lines" in record.value["report"]


def peak_memory() -> int:
    """Bytes that this process has had at most."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


# A full disk


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    with serve(tmp_path) as index:
        index.add(cli("1.0"), wheel("driver", "1.0"))
        yield index


@pytest.mark.parametrize("when", ["before", "at the installation"])
async def test_a_venv_for_which_there_is_no_room_is_left_out_whole_and_built_later(
    index: PackageIndex, tmp_path: Path, when: str
) -> None:
    place = Place(tmp_path, index)
    machine = FaultyMachine.make(tmp_path / "machine", disk=place.venvs.parent)

    def fill_at_the_gate(line: bytes) -> None:
        if b"at the gate" in line:
            machine.fill_disk()
            place.gate.unlink()

    async with VenvCache(
        root=place.venvs,
        bundled=place.path / "bundled",
        uv=place.uv,
        environ={**place.environ, **machine.env},
    ) as cache:
        if when == "before":
            machine.fill_disk()
        else:
            place.gate.touch()
        with pytest.raises(VenvError, match=r"the disk is full. .*\n(.*\n)+Free space in the work folder"):
            await cache.get(place.spec(), fill_at_the_gate)
        assert place.left() == []
        assert list(place.venvs.glob("*/complete.json")) == []
        machine.free_space()
        venv = await cache.get(place.spec(), lambda _: None)
        assert venv.python.exists()


def test_what_abandoned_builds_left_is_removed_from_a_full_disk(index: PackageIndex, tmp_path: Path) -> None:
    """A service that needs space to make some would never start again."""
    machine = FaultyMachine.make(tmp_path / "machine", disk=tmp_path / "venvs")
    abandoned = tmp_path / "venvs" / ".building-0123abcd-xyz"
    (abandoned / "venv").mkdir(parents=True)
    (abandoned / "venv" / "large").write_bytes(b"x" * MIB)
    machine.fill_disk()
    script = (
        "import sys, anyio\nfrom pathlib import Path\nfrom executor.ingestion.venv_store import VenvStore\n"
        "anyio.run(VenvStore(Path(sys.argv[1])).sweep)\n"
    )
    on_machine(machine, script, str(tmp_path / "venvs"))
    assert list((tmp_path / "venvs").iterdir()) == []


# The clock


ARTIFACTS = """
import os, sys, time
from pathlib import Path
from executor.ingestion.run_folder import RunFolder
folders = [RunFolder.make(Path(sys.argv[1]), name) for name in ("one", "two")]
for folder, offset in zip(folders, sys.argv[3:], strict=True):
    (folder.artifacts / "file").touch()
    with open(sys.argv[2], "r+b") as clock:
        clock.write(int(offset).to_bytes(8, "little", signed=True))
    folder.clear(Path(sys.argv[1]))
print(round(time.time()))
"""
YEAR = 365 * 24 * 3600


@pytest.mark.parametrize("offsets", [(0, YEAR), (YEAR, YEAR), (0, -3600), (YEAR, 0)])
def test_artifacts_do_not_get_old_because_the_clock_is_set(tmp_path: Path, offsets: tuple[int, int]) -> None:
    machine = FaultyMachine.make(tmp_path / "machine", disk=tmp_path / "none")
    arguments = [str(tmp_path), machine.env["CLOCK_OFFSET"], *map(str, offsets)]
    now = int(on_machine(machine, ARTIFACTS, *arguments))
    assert abs(now - (tmp_path / "artifacts" / "two").stat().st_mtime - offsets[1]) < 600  # the clock was set
    assert sorted(path.name for path in (tmp_path / "artifacts").iterdir()) == ["one", "two"]


def on_machine(machine: FaultyMachine, script: str, *arguments: str) -> str:
    """What a Python program prints there."""
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **machine.env}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
