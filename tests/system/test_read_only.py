"""The service where only its work folder can be written to: a read-only root, and no writable /tmp either."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
import pytest

from executor.local.datahub import DataHubStandIn
from tests.conftest import cannot_be_had
from tests.integration.package_index import serve, wheel
from tests.servers import LocalStack
from tests.servers.executor import DEADLINE, ExecutorProcess

# /tmp becomes a mount of its own, to be read-only wherever it lies; the work folder may lie below it, and is where
# things start, as with the image's WORKDIR.
_CONFINED = """
mount --bind /tmp /tmp && mount --bind "$0" "$0" && mount -o remount,bind,ro /tmp && mount -o remount,bind,ro / &&
for place in / /tmp /var/tmp "$0/.."; do ! touch "$place/touched" 2>&- || exit 1; done && cd "$0" && exec "$@"
"""
# A CLI that wants a place for temporary files, as sources do.
_CLI = "import sys, tempfile\ndef main():\n    sys.stdin.read()\n    print(tempfile.mkdtemp())\n"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def executor(work: Path) -> list[str]:
    """`datahub-executor`, so confined."""
    argv = ["unshare", "--mount", "sh", "-c", _CONFINED, str(work)]
    try:
        tried = subprocess.run([*argv, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        cannot_be_had(error)
    if tried.returncode:
        cannot_be_had(f"mounts of one's own take root: {tried.stderr}")
    return [*argv, sys.executable, "-m", "executor"]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables that lead uv to an index with a CLI of the test's own, version 1.0."""
    files = {"datahub/__init__.py": "", "datahub/main.py": _CLI}
    scripts = {"datahub": "datahub.main:main"}
    with serve(tmp_path) as index:
        index.add(wheel("acryl-datahub", "1.0", files=files, extras=["shop"], scripts=scripts))
        yield {"UV_DEFAULT_INDEX": index.url, "SSL_CERT_FILE": str(index.certificates)}


@pytest.fixture
async def env(
    localstack: LocalStack,
    stand_in: DataHubStandIn,
    index: dict[str, str],
    cli_venv: Path,
    work: Path,
    tmp_path: Path,
) -> dict[str, str]:
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    (bundled / "sqlalchemy-bundled").symlink_to(cli_venv)
    return {
        **localstack.env,
        **index,
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(work),
        "DATAHUB_TELEMETRY_ENABLED": "false",
        "DATAHUB_GMS_URL": stand_in.url,
        "DATAHUB_GMS_TOKEN": "t",
        "DATAHUB_EXECUTOR_QUEUE": await localstack.make_queue(redrive=10),
        "DATAHUB_EXECUTOR_WORK_DIR": str(work),
        "DATAHUB_EXECUTOR_METRICS_PORT": "0",
        "DATAHUB_BUNDLED_VENV_PATH": str(bundled),
    }


async def test_all_that_the_service_does_is_written_below_its_work_folder(
    executor: Sequence[str], env: dict[str, str], sqlite_db: Path, tmp_path: Path, work: Path
) -> None:
    async def command(*arguments: str, recipe: object = None) -> str:
        given = json.dumps(recipe).encode()
        with anyio.fail_after(DEADLINE):
            done = await anyio.run_process([*executor, *arguments], input=given, env=env, check=False)
        said = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == 0, said
        return said

    shop = {"connect_uri": f"sqlite:///{sqlite_db}", "platform": "sqlite"}
    tables = {"source": {"type": "sqlalchemy", "config": shop}}
    submit = ("submit", "-", "--wait", "--cli-version")
    async with ExecutorProcess(env, tmp_path / "log", [*executor, "run"]).running() as service:
        await service.until("consuming")
        said = await command("check")
        assert [line for line in said.splitlines() if not line.startswith("✓")] == []
        for _ in range(2):  # the first one leaves a process behind that the second is forked from
            await command(*submit, "bundled", recipe=tables)
        assert service.events("runs_start_cold") == []
        built = await command(*submit, "1.0", recipe={"source": {"type": "shop", "config": {}}})
        assert f"{work}/runs/" in built  # its temporary files
