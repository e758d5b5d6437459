"""Venvs built by the real uv: from a small index of the test's own, and once from the registry."""

import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
import uv
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from executor.ingestion.venv import Venv, VenvCache, VenvError, VenvSpec, venv_spec
from tests.conftest import ROOT
from tests.integration.package_index import PackageIndex, serve, wheel

MAIN = "import sys, {imports}\ndef main(): print({version!r}, *sys.argv[1:])\n"
# Logs each call; before it installs something it waits as long as the file `gate` is there.
WRAPPER = """#!/bin/sh
echo "$*" >> {here}/calls
case "$*" in *'pip install'*)
    [ -e {here}/gate ] && echo "at the gate: $$"
    while [ -e {here}/gate ]; do sleep 0.02; done
esac
exec {uv} "$@"
"""


def cli(
    version: str, *, constraints: str | bytes | None = None, requires: Sequence[str] = ()
) -> tuple[str, bytes]:
    """A stand-in for the CLI's package: `datahub` prints its version and arguments."""
    files: dict[str, str | bytes] = {
        "datahub/__init__.py": "",
        "datahub/main.py": MAIN.format(imports="datahub", version=version),
    }
    if constraints is not None:
        files["datahub/constraints.txt"] = constraints
    return wheel(
        "acryl-datahub", version, files=files, requires=["driver; extra == 'shop'", *requires],
        extras=["shop"], scripts={"datahub": "datahub.main:main"},
    )  # fmt: skip


@dataclass
class Place:
    """A work folder, and uv behind a wrapper that logs its calls."""

    path: Path
    index: PackageIndex
    uv: Path = field(init=False)

    def __post_init__(self) -> None:
        self.uv = self.path / "uv"
        self.script(WRAPPER.format(here=self.path, uv=uv.find_uv_bin()))
        (self.path / "bundled").mkdir()

    def script(self, text: str) -> None:
        self.uv.write_text(text)
        self.uv.chmod(0o755)

    @property
    def venvs(self) -> Path:
        return self.path / "work" / "venvs"

    @property
    def gate(self) -> Path:
        return self.path / "gate"

    @property
    def environ(self) -> dict[str, str]:
        """Only the index of the test is there, and it is asked once."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME")}
        return kept | {
            "UV_DEFAULT_INDEX": self.index.url,
            "SSL_CERT_FILE": str(self.index.certificates),
            "UV_HTTP_RETRIES": "0",
            "INDEX_PASSWORD": self.index.password,
        }

    def calls(self, words: str = "") -> list[str]:
        path = self.path / "calls"
        return [line for line in path.read_text().splitlines() if words in line] if path.exists() else []

    def left(self) -> list[str]:
        """What lies in the folder besides complete venvs and locks."""
        complete = {path.parent.name for path in self.venvs.glob("*/complete.json")}
        names = {path.name for path in self.venvs.iterdir() if not path.name.startswith(".lock-")}
        return sorted(names - complete)

    @asynccontextmanager
    async def cache(self) -> AsyncIterator[VenvCache]:
        async with VenvCache(
            root=self.venvs, bundled=self.path / "bundled", uv=self.uv, environ=self.environ
        ) as cache:
            yield cache

    def spec(self, version: str | None = "1.0", *requirements: str, plugin: str | None = "shop") -> VenvSpec:
        return venv_spec(
            version=version,
            plugin=plugin,
            extra_plugins=[],
            extra_requirements=requirements,
            dependency_resolution_enabled=True,
            environ=self.environ,
        )


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    with serve(tmp_path) as index:
        index.add(
            cli("1.0", constraints="driver==1.0\n"),
            cli("2.0"),
            *(wheel("driver", version) for version in ("1.0", "2.0")),
        )
        yield index


@pytest.fixture
def place(tmp_path: Path, index: PackageIndex) -> Place:
    return Place(tmp_path, index)


class Log:
    """The log of a run; `text` is what came so far."""

    def __init__(self) -> None:
        self.text = ""
        self._more = anyio.Event()

    def __call__(self, line: bytes) -> None:
        self.text += line.decode()
        self._more.set()
        self._more = anyio.Event()

    async def wait_for(self, words: str) -> None:
        with anyio.fail_after(30):
            while words not in self.text:
                await self._more.wait()


def waiting_pid(text: str) -> int:
    """The process, a group's leader, that a log says is waiting at the gate."""
    return int(text.partition("at the gate: ")[2].split()[0])


async def output(venv: Venv, *arguments: str) -> str:
    result = await anyio.run_process([*venv.command, *arguments])
    return result.stdout.decode().strip()


def installed(venv: Venv) -> set[str]:
    """The packages in a venv as `name-version`."""
    return {
        path.name.removesuffix(".dist-info")
        for path in venv.path.glob("lib/python*/site-packages/*.dist-info")
    }


async def test_a_venv_holds_the_cli_and_its_plugin_under_the_clis_constraints(place: Place) -> None:
    log = Log()
    async with place.cache() as cache:
        venv = await cache.get(place.spec(), log)
    assert installed(venv) == {"acryl_datahub-1.0", "driver-1.0"}
    assert str(venv.cli_version) == "1.0"
    assert await output(venv, "ingest", "run") == "1.0 ingest run"
    assert "acryl-datahub[shop]==1.0" in log.text
    assert "+ driver==1.0" in log.text
    assert place.left() == []


async def test_scripts_in_a_venv_start_from_the_place_that_it_was_renamed_to(place: Place) -> None:
    async with place.cache() as cache:
        venv = await cache.get(place.spec(), Log())
    result = await anyio.run_process([venv.path / "bin" / "datahub", "x"])
    assert result.stdout == b"1.0 x\n"


async def test_files_are_hard_links_into_a_cache_beside_the_venvs(place: Place) -> None:
    async with place.cache() as cache:
        venv = await cache.get(place.spec(), Log())
    [module] = venv.path.glob("lib/python*/site-packages/driver.py")
    assert module.stat().st_nlink > 1
    assert (place.path / "work" / "uv-cache").is_dir()


async def test_a_venv_is_under_its_name_only_when_complete(place: Place) -> None:
    place.gate.touch()
    log = Log()
    async with place.cache() as cache, anyio.create_task_group() as tasks:
        tasks.start_soon(cache.get, place.spec(), log)
        await log.wait_for("at the gate")
        assert [name.startswith(".building-") for name in place.left()] == [True]
        assert not list(place.venvs.glob("*/complete.json"))
        place.gate.unlink()
    assert place.left() == []
    assert len(list(place.venvs.glob("*/complete.json"))) == 1


async def test_five_askers_share_one_build_and_each_sees_all_of_it(place: Place) -> None:
    place.gate.touch()
    logs = [Log() for _ in range(5)]
    venvs: list[Venv] = []

    async def ask(cache: VenvCache, log: Log) -> None:
        venvs.append(await cache.get(place.spec(), log))

    async with place.cache() as cache, anyio.create_task_group() as tasks:
        for log in logs[:4]:
            tasks.start_soon(ask, cache, log)
        await logs[0].wait_for("Building")
        tasks.start_soon(ask, cache, logs[4])
        await logs[4].wait_for("Building")
        place.gate.unlink()
    assert len(place.calls(" venv ")) == 1
    assert len(set(venvs)) == 1
    assert len({log.text for log in logs}) == 1
    assert "+ driver==1.0" in logs[4].text


async def test_a_ready_venv_is_used_again_without_uv_and_marked_as_used(place: Place) -> None:
    async with place.cache() as cache:
        first = await cache.get(place.spec(), Log())
    marker = first.path / "complete.json"
    os.utime(marker, (1000, 1000))
    calls = place.calls()
    async with place.cache() as cache:
        for _ in range(2):
            assert await cache.get(place.spec(), Log()) == first
    assert place.calls() == calls
    assert time.time() - marker.stat().st_mtime < 600


async def test_a_venv_that_someone_cleaned_up_in_is_built_anew(place: Place) -> None:
    async with place.cache() as cache:
        first = await cache.get(place.spec(), Log())
        (first.path / "bin" / "python").unlink()
        again = await cache.get(place.spec(), Log())
    assert await output(again) == "1.0"
    assert place.left() == []


async def test_when_one_asker_leaves_the_others_get_their_venv(place: Place) -> None:
    place.gate.touch()
    stays, leaves = Log(), Log()
    async with place.cache() as cache, anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(cache.get, place.spec(), leaves)
            await leaves.wait_for("Building")
            tasks.start_soon(cache.get, place.spec(), stays)
            await stays.wait_for("Building")
            leaving.cancel_scope.cancel()
        place.gate.unlink()
    assert "Built in" in stays.text
    assert "Built in" not in leaves.text


async def test_when_all_askers_leave_the_build_ends_with_its_processes_and_files(place: Place) -> None:
    place.gate.touch()
    async with place.cache() as cache:
        log = Log()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cache.get, place.spec(), log)
            tasks.start_soon(cache.get, place.spec(), Log())
            await log.wait_for("at the gate: ")
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            again = Log()
            tasks.start_soon(cache.get, place.spec(), again)
            await again.wait_for("at the gate: ")  # so the first one is over
            with pytest.raises(ProcessLookupError):
                os.kill(waiting_pid(log.text), 0)
            assert len(place.left()) == 1
            place.gate.unlink()
    assert place.left() == []


ASK = """
import anyio, sys
from pathlib import Path
from executor.ingestion.venv import VenvCache, venv_spec
root, uv, *environ = sys.argv[1:]
environ = dict(item.split("=", 1) for item in environ)
spec = venv_spec(version="1.0", plugin="shop", extra_plugins=[], extra_requirements=[],
                 dependency_resolution_enabled=True, environ=environ)
async def main():
    async with VenvCache(root=Path(root), bundled=Path(root), uv=Path(uv), environ=environ) as cache:
        await cache.get(spec, lambda line: print(line.decode(), end="", flush=True))
anyio.run(main)
"""


@asynccontextmanager
async def other_executor(place: Place) -> AsyncIterator[tuple[Process, int]]:
    """Another process that asks for the same venv, and the uv of its build, which waits at the gate."""
    settings = [f"{name}={value}" for name, value in place.environ.items()]
    process = await anyio.open_process(
        [sys.executable, "-c", ASK, str(place.venvs), str(place.uv), *settings]
    )
    try:
        assert process.stdout is not None
        stream = BufferedByteReceiveStream(process.stdout)
        with anyio.fail_after(30):
            await stream.receive_until(b"at the gate: ", 65536)
            pid = int(await stream.receive_until(b"\n", 100))
        yield process, pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.aclose()


async def test_two_executors_on_one_folder_build_a_venv_once(place: Place) -> None:
    place.gate.touch()
    log = Log()
    async with (
        other_executor(place) as (other, _),
        place.cache() as cache,
        anyio.create_task_group() as tasks,
    ):
        assert place.left() != []  # the start of this one cleared nothing of the living one's away
        tasks.start_soon(cache.get, place.spec(), log)
        await log.wait_for("Waiting for another build")
        place.gate.unlink()
        assert await other.wait() == 0
    assert len(place.calls(" venv ")) == 1
    assert place.left() == []


async def test_what_a_killed_executor_left_is_cleared_away_at_the_next_start(place: Place) -> None:
    place.gate.touch()
    async with other_executor(place) as (other, orphan):
        other.kill()
        await other.wait()
        os.killpg(orphan, signal.SIGKILL)
    place.gate.unlink()
    assert place.left() != []
    async with place.cache() as cache:
        assert place.left() == []
        assert await output(await cache.get(place.spec(), Log())) == "1.0"


async def test_a_failed_build_says_why_leaves_nothing_and_is_tried_again(
    place: Place, index: PackageIndex
) -> None:
    log = Log()
    async with place.cache() as cache:
        with pytest.raises(VenvError) as failure:
            await cache.get(place.spec("3.0"), log)
        assert "acryl-datahub[shop]==3.0 could not be installed" in str(failure.value)
        assert "there is no version of acryl-datahub==3.0" in str(failure.value)
        assert "there is no version of acryl-datahub==3.0" in log.text
        assert "Check the CLI version" in str(failure.value)
        assert place.left() == []
        index.add(cli("3.0"))
        assert await output(await cache.get(place.spec("3.0"), Log())) == "3.0"


async def test_a_package_that_does_not_exist_is_named(place: Place) -> None:
    async with place.cache() as cache:
        with pytest.raises(VenvError, match="extra requirements could not be installed") as failure:
            await cache.get(place.spec("1.0", "no-such-thing>=1"), Log())
    assert "no-such-thing" in str(failure.value)
    assert place.left() == []


async def test_a_full_disk_is_named(place: Place) -> None:
    place.script("#!/bin/sh\necho 'error: failed to write: No space left on device (os error 28)'; exit 2\n")
    async with place.cache() as cache:
        with pytest.raises(VenvError, match="the disk is full"):
            await cache.get(place.spec(), Log())
    assert place.left() == []


async def test_a_missing_uv_is_named(place: Place) -> None:
    place.uv.unlink()
    async with place.cache() as cache:
        for version in ("1.0", "latest"):
            with pytest.raises(VenvError, match=r"uv can't be started \(No such file or directory\)"):
                await cache.get(place.spec(version), Log())


async def test_a_constraint_on_a_version_that_the_index_lost_is_left_out(
    place: Place, index: PackageIndex
) -> None:
    index.add(cli("1.1", constraints="driver==1.7\nlogs==1.0\n", requires=["logs"]), wheel("logs", "1.0"))
    index.add(wheel("logs", "2.0"))
    log = Log()
    async with place.cache() as cache:
        venv = await cache.get(place.spec("1.1"), log)
    assert installed(venv) == {"acryl_datahub-1.1", "driver-2.0", "logs-1.0"}
    assert "Not in the package index, left out of the CLI's constraints: driver==1.7\n" in log.text
    assert "No solution found" not in log.text
    assert "error" not in log.text


async def test_what_uv_says_of_a_build_that_fails_for_another_reason_is_in_the_log(
    place: Place, index: PackageIndex
) -> None:
    index.add(cli("1.1", constraints="driver==1.7\n", requires=["no-such-thing"]))
    log = Log()
    async with place.cache() as cache:
        with pytest.raises(VenvError, match="could not be installed"):
            await cache.get(place.spec("1.1"), log)
    assert log.text.count("no-such-thing") > 0


@pytest.mark.parametrize("constraints", [b"# caf\xe9\ndriver==1.0\n", b"caf\xe9==1\n"])
async def test_a_package_with_unreadable_constraints_ends_its_own_build_at_most(
    constraints: bytes, place: Place, index: PackageIndex
) -> None:
    index.add(cli("1.1", constraints=constraints))
    async with place.cache() as cache:
        with suppress(VenvError):
            await cache.get(place.spec("1.1"), Log())
        assert await output(await cache.get(place.spec("1.0"), Log())) == "1.0"
    assert place.left() == []


@pytest.mark.parametrize("version", ["1.0", "latest"])
async def test_an_error_that_nobody_thought_of_ends_one_build_and_no_more(version: str, place: Place) -> None:
    async def broken(*_: object) -> int:
        raise ExceptionGroup("several", [ValueError("an odd package")])

    cache = VenvCache(root=place.venvs, bundled=place.path, uv=place.uv, environ=place.environ, run=broken)
    log = Log()
    async with cache:
        for _ in range(2):
            with pytest.raises(VenvError, match=r"ExceptionGroup: several \(1 sub-exception\)"):
                await cache.get(place.spec(version), log)
    assert "ValueError: an odd package" in log.text
    assert place.left() == []


async def test_a_plugin_that_the_cli_does_not_have_is_told_with_every_use_of_the_venv(place: Place) -> None:
    for _ in range(2):
        async with place.cache() as cache:
            venv = await cache.get(place.spec(plugin="shopp"), Log())
        assert len(venv.warnings) == 1
        assert "has no plugin named `shopp`" in venv.warnings[0]
    async with place.cache() as cache:
        assert (await cache.get(place.spec(), Log())).warnings == ()


async def test_builds_leave_no_locks(place: Place) -> None:
    place.venvs.mkdir(parents=True)
    (place.venvs / ".lock-of-a-killed-one").touch()
    async with place.cache() as cache:
        await cache.get(place.spec(), Log())
        with pytest.raises(VenvError):
            await cache.get(place.spec("7.0"), Log())
        assert list(place.venvs.glob(".lock-*")) == []


async def test_extra_requirements_may_deviate_but_the_cli_stays(place: Place, index: PackageIndex) -> None:
    index.add(wheel("our-source", "1.0", requires=["acryl-datahub", "driver"]))
    async with place.cache() as cache:
        venv = await cache.get(place.spec("1.0", "driver>=2", "our-source"), Log())
    assert installed(venv) == {"acryl_datahub-1.0", "driver-2.0", "our_source-1.0"}


async def test_an_extra_requirement_that_needs_another_cli_fails_the_build(
    place: Place, index: PackageIndex
) -> None:
    index.add(wheel("our-source", "1.0", requires=["acryl-datahub>=2"]))
    async with place.cache() as cache:
        with pytest.raises(VenvError, match="extra requirements could not be installed"):
            await cache.get(place.spec("1.0", "our-source"), Log())


async def test_a_secret_that_uv_prints_is_masked(place: Place) -> None:
    place.script(
        f'#!/bin/sh\ncase "$*" in *cli.txt*) cat; exit 2;; esac\nexec {uv.find_uv_bin()} "$@"\n'
    )  # says all that it is given when it installs the extra requirements
    log = Log()
    async with place.cache() as cache:
        with pytest.raises(VenvError) as failure:
            await cache.get(place.spec("1.0", "mine @ https://me:${INDEX_PASSWORD}@127.0.0.1/mine.zip"), log)
    for text in (log.text, str(failure.value)):
        assert "mine @ https://me:****@127.0.0.1/mine.zip" in text
        assert place.index.password not in text


async def test_a_secret_in_a_requirement_reaches_the_index_and_nothing_else(
    place: Place, index: PackageIndex
) -> None:
    name, content = wheel("mine", "1.0")
    index.add((name, content))
    address = f"https://{index.user}:${{INDEX_PASSWORD}}@{index.address}/private/mine/{name}"
    log = Log()
    async with place.cache() as cache:
        venv = await cache.get(place.spec("1.0", f"mine @ {address}"), log)
        with pytest.raises(VenvError) as failure:
            await cache.get(place.spec("1.0", f"mine @ {address.replace('1.0', '9.0')}"), log)
    assert "mine-1.0" in installed(venv)
    assert index.password not in str(failure.value)
    assert index.password not in log.text
    assert index.password not in "".join(place.calls())
    secret = index.password.encode()
    assert [path for path in place.path.rglob("*") if path.is_file() and secret in path.read_bytes()] == []


async def test_latest_is_the_newest_version_and_kept_for_a_while(place: Place, index: PackageIndex) -> None:
    log = Log()
    async with place.cache() as cache:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(cache.get, place.spec("latest"), log)
        index.add(cli("3.0"))
        venv = await cache.get(place.spec(None), log)
        assert await cache.get(place.spec("2.0"), log) == venv
    assert str(venv.cli_version) == "2.0"
    assert "The latest version is 2.0" in log.text
    assert len(place.calls("pip compile")) == 1
    assert len(place.calls(" venv ")) == 1


async def test_latest_makes_do_with_a_venv_from_before_while_the_index_is_away(
    place: Place, index: PackageIndex
) -> None:
    async with place.cache() as cache:
        older = await cache.get(place.spec("1.0"), Log())
    index.down = True
    log = Log()
    async with place.cache() as cache:
        assert await cache.get(place.spec("latest"), log) == older
        assert "can't be looked up now" in log.text
        assert await cache.get(place.spec("latest"), log) == older
        assert len(place.calls("pip compile")) == 1  # the second one did not wait for the index again
        with pytest.raises(VenvError, match="could not be looked up"):
            await cache.get(place.spec("latest", plugin=None), log)


async def test_those_who_waited_for_a_look_up_share_its_failure(place: Place, index: PackageIndex) -> None:
    index.down = True
    failures: list[str] = []

    async def ask(cache: VenvCache) -> None:
        with pytest.raises(VenvError, match="could not be looked up") as failure:
            await cache.get(place.spec("latest"), Log())
        failures.append(str(failure.value))

    async with place.cache() as cache:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask, cache)
        assert len(failures) == 3
        assert len(place.calls("pip compile")) == 1
        index.down = False
        assert str((await cache.get(place.spec("latest"), Log())).cli_version) == "2.0"


async def test_a_wheels_address_is_the_version(place: Place, index: PackageIndex) -> None:
    name, content = cli("9.9.dev1", constraints="driver==1.0\n")
    index.add((name, content))
    async with place.cache() as cache:
        venv = await cache.get(
            place.spec(f"https://{index.address}/files/acryl-datahub/{name}", "driver"), Log()
        )
    assert installed(venv) == {"acryl_datahub-9.9.dev1", "driver-1.0"}
    assert await output(venv) == "9.9.dev1"


async def test_leaving_the_cache_ends_a_build_and_tells_who_waits(place: Place) -> None:
    place.gate.touch()
    log = Log()
    failures: list[str] = []

    async def ask(cache: VenvCache) -> None:
        with pytest.raises(VenvError) as failure:
            await cache.get(place.spec(), log)
        failures.append(str(failure.value))

    async with anyio.create_task_group() as tasks, place.cache() as cache:
        tasks.start_soon(ask, cache)
        await log.wait_for("Building")
    assert "the executor is stopping" in failures[0]
    assert place.left() == []


async def test_a_bundled_venv_is_used_as_it_is(place: Place) -> None:
    folder = place.path / "bundled" / "shop-bundled"
    await anyio.run_process([uv.find_uv_bin(), "venv", "-q", "--python", sys.executable, folder])
    script = folder / "bin" / "datahub"
    script.write_text("#!/bin/sh\necho bundled $*\n")
    script.chmod(0o755)
    log = Log()
    async with place.cache() as cache:
        venv = await cache.get(place.spec("bundled", "driver"), log)
    assert venv.path == folder
    assert await output(venv, "x") == "bundled x"
    assert "extra plugins and requirements are left out" in log.text
    assert place.calls() == []


async def test_a_missing_bundled_venv_is_answered_with_those_that_are_there(place: Place) -> None:
    for name in ("postgres", "bigquery"):
        folder = place.path / "bundled" / f"{name}-bundled" / "bin"
        folder.mkdir(parents=True)
        (folder / "python").symlink_to(sys.executable)
    async with place.cache() as cache:
        with pytest.raises(VenvError, match="no bundled venv for shop") as failure:
            await cache.get(place.spec("bundled"), Log())
    assert "bigquery, postgres" in str(failure.value)
    assert "'latest'" in str(failure.value)


async def test_the_real_cli_is_built_from_the_registry(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environ.setdefault("UV_CACHE_DIR", str(ROOT / ".cache" / "uv"))
    wanted = venv_spec(
        version="latest",
        plugin="sqlalchemy",
        extra_plugins=[],
        extra_requirements=[],
        dependency_resolution_enabled=True,
        environ=environ,
    )
    root = tmp_path / "venvs"
    async with VenvCache(root=root, bundled=tmp_path, uv=Path(uv.find_uv_bin()), environ=environ) as cache:
        venv = await cache.get(wanted, Log())
    assert f"DataHub CLI version: {venv.cli_version}" in await output(venv, "version")
    assert {"acryl_datahub", "sqlalchemy"} <= {name.partition("-")[0] for name in installed(venv)}
    assert json.loads((venv.path / "complete.json").read_text())["cli_version"] == str(venv.cli_version)
