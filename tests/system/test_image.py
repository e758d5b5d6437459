"""The image, built by the Dockerfile's own steps: in a folder, and in clean roots where TEST_CLEAN_ROOT is set."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import anyio
import httpx
import pytest

from executor.local.datahub import DataHubStandIn
from executor.operations.health import LIVENESS_FILE, Health
from executor.settings import load_settings
from tests.conftest import ROOT, cannot_be_had
from tests.servers import LocalStack
from tests.servers.executor import DEADLINE, eventually
from tests.servers.process import free_port
from tests.system.image import (
    DEBIAN,
    DOCKERFILE,
    Image,
    clean_root,
    command_of,
    container,
    read_dockerfile,
    variables,
)

SOURCES = "sqlalchemy, datahub-mock-data"
NO_REGISTRY = {"UV_OFFLINE": "1", "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple"}

pytestmark = pytest.mark.xdist_group("image")  # built once


@pytest.fixture(scope="module", params=["folder", "clean root"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The executor's image and the stand-in's, as far as they can be built here."""
    base = None
    if request.param == "clean root":
        if not os.environ.get("TEST_CLEAN_ROOT"):
            pytest.skip(
                "TEST_CLEAN_ROOT=1 builds it in a Debian of its own, too (root, debootstrap, a minute)"
            )
        base = clean_root(ROOT / ".cache" / "clean-root")
    folder = tmp_path_factory.mktemp("image")
    image = Image(folder, {"BUNDLED_SOURCES": SOURCES}, base)
    image.build("build")
    image.build("stand-in-venv", alone=True)
    image.build("bundles")
    if base is not None:
        image.build("system")
        image.build("stand-in", alone=True)
        image.build("executor")
    else:
        image.runs_as("executor", "bundles")
        image.runs_as("stand-in", "stand-in-venv")
    yield image
    shutil.rmtree(folder)  # half a gigabyte, or two


@pytest.fixture
async def queue(localstack: LocalStack) -> str:
    return await localstack.make_queue(redrive=5)


@pytest.fixture
def env(localstack: LocalStack, stand_in: DataHubStandIn, queue: str) -> dict[str, str]:
    return {
        **localstack.env,
        **NO_REGISTRY,
        "DATAHUB_GMS_URL": stand_in.url,
        "DATAHUB_GMS_TOKEN": "t",
        "DATAHUB_EXECUTOR_QUEUE": queue,
        "DATAHUB_EXECUTOR_METRICS_PORT": str(free_port()),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


async def test_sources_of_the_image_run_with_no_registry_and_nothing_written_to_it(
    image: Image,
    localstack: LocalStack,
    stand_in: DataHubStandIn,
    queue: str,
    env: Mapping[str, str],
    sqlite_db: Path,
    tmp_path: Path,
) -> None:
    (image.root("executor") / "srv").mkdir(exist_ok=True)
    database = image.root("executor") / "srv" / "shop.db"
    shutil.copyfile(sqlite_db, database)
    place = database if image.base is None else "/srv/shop.db"
    recipe = {
        "source": {
            "type": "sqlalchemy",
            "config": {"connect_uri": f"sqlite:///{place}", "platform": "sqlite"},
        }
    }
    args = {"recipe": json.dumps(recipe), "version": "bundled"}
    request = {"executor_id": "remote", "exec_id": "shop", "name": "RUN_INGEST", "args": args}
    files = sorted((image.root("executor") / "opt").rglob("*"))

    async with container(image, "executor", env=env, log=tmp_path / "log") as service:
        await service.until("consuming")
        if image.base is not None:
            assert (service.first() / "comm").read_text() == "tini\n"
            assert service.first().stat().st_uid == 10001
        async with localstack.client() as sqs:
            await sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(request))
        with anyio.fail_after(DEADLINE):
            status = await stand_in.wait_for_status("shop", "SUCCESS", "FAILURE")
        assert status == "SUCCESS", stand_in.store.history("shop")[-1].value["report"]

        submit = image.command("executor", "submit", "-", "--wait", "--cli-version", "bundled")
        whole = {**image.environment("executor"), **env}
        example = (ROOT / "docker" / "example.yml").read_bytes()
        with anyio.fail_after(DEADLINE):
            submitted = await anyio.run_process(submit, input=example, env=whole, check=False)
        assert submitted.returncode == 0, submitted.stdout.decode() + submitted.stderr.decode()

        health = image.exec("executor", *health_check(image))
        assert (await anyio.run_process(health, env=whole, check=False)).returncode == 0
        assert await service.stop() == 0

    tables = {urn.split(",")[1] for urn in stand_in.store.datasets()}
    assert {"main.customers", "main.orders"} < tables
    assert sorted((image.root("executor") / "opt").rglob("*")) == files


async def test_the_stand_in_of_the_image_answers(image: Image, tmp_path: Path) -> None:
    port = str(free_port())
    async with (
        container(
            image, "stand-in", "--host", "127.0.0.1", "--port", port, env={}, log=tmp_path / "log"
        ) as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        await eventually(lambda: server.log.read_text() or None, lambda: "it says nothing")
        assert (await client.get("/health")).status_code == 200
        assert await server.stop() == 0


def test_the_executor_itself_has_nothing_of_the_stand_ins_and_no_compiler(image: Image) -> None:
    [packages] = (image.root("executor") / "opt/datahub-executor/lib").glob("python3*/site-packages")
    names = {path.name.partition("-")[0] for path in packages.glob("*.dist-info")}
    assert "datahub_remote_executor" in names
    assert not names & {"graphql_core", "moto", "pytest", "pip"}
    assert (packages / "executor" / "cli.py").is_file()  # a copy: not the working tree
    if image.base is not None:
        assert not list((image.root("executor") / "usr/bin").glob("*gcc*"))


@pytest.mark.parametrize(
    ("version", "source", "words"),
    [
        ("bundled", "postgres", "no version to build"),
        ("1.x", "postgres", "version '1.x' is none"),
        ("1.7.0.17", "postgres;", "the source type is 'postgres;'"),
    ],
)
def test_what_can_not_be_baked_in_ends_the_build_with_a_reason(
    image: Image, tmp_path: Path, version: str, source: str, words: str
) -> None:
    if image.base is not None:
        pytest.skip("it needs no root of its own")
    python = image.root("executor") / "opt/datahub-executor/bin/python"
    argv = [str(python), str(ROOT / "docker/build/bundle.py"), str(tmp_path / "venvs"), version, source]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "venvs").iterdir()) == []


# --- its health check -------------------------------------------------------------------------------------


def health_check(image: Image | None = None) -> list[str]:
    stages = image.stages if image is not None else read_dockerfile()
    words: list[str] = json.loads(stages["executor"].all("HEALTHCHECK")[-1].partition("CMD ")[2])
    return words


def check_health(port: int, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", str(ROOT / "docker" / "healthcheck.py")]
    env |= {"DATAHUB_EXECUTOR_METRICS_PORT": f"'{port}' "}  # as a file of variables may have it
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


def test_an_executor_that_does_not_answer_is_not_healthy() -> None:
    port = free_port()
    checked = check_health(port)
    assert checked.returncode == 1
    assert f"port {port} does not answer" in checked.stderr


async def test_without_a_port_the_file_in_the_work_folder_tells(tmp_path: Path) -> None:
    file = tmp_path / LIVENESS_FILE
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Health([]).touch_files, tmp_path)
        await eventually(lambda: file.exists() or None, lambda: "it touched no file")
        tasks.cancel_scope.cancel()
    folder = {"DATAHUB_EXECUTOR_WORK_DIR": str(tmp_path)}
    assert check_health(0, **folder).returncode == 0
    os.utime(file, (0, 0))
    assert "s old" in check_health(0, **folder).stderr
    file.unlink()
    assert f"{file}: No such file" in check_health(0, **folder).stderr


def test_an_executor_that_is_stuck_is_not_healthy_and_docker_is_told_why() -> None:
    class Stuck(BaseHTTPRequestHandler):
        paths: ClassVar[list[str]] = []

        def do_GET(self) -> None:
            self.paths.append(self.path)
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b"leases\n")

        def log_message(self, format: str, *_args: object) -> None:  # noqa: A002 - so named in the base class
            return

    with HTTPServer(("127.0.0.1", 0), Stuck) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        checked = check_health(server.server_port)
        thread.join()
    assert (checked.returncode, checked.stderr) == (1, "stuck: leases\n")
    assert Stuck.paths == ["/health/live"]


# --- the Dockerfile ---------------------------------------------------------------------------------------


def test_each_step_of_the_dockerfile_is_a_script_that_is_there() -> None:
    for stage in read_dockerfile().values():
        for text in stage.all("RUN"):
            command, mounts = command_of(text)
            assert not re.search(r"&&|[;|>]", command)
            [script] = re.findall(r"(?:docker|/)build/\w+\.\w+", command.replace("docker/build", "/build"))
            assert mounts in ({}, {"/build": "docker/build"})
            assert os.access(ROOT / "docker" / script.lstrip("/"), os.X_OK)


def test_the_base_is_pinned_and_every_stage_is_made_from_it() -> None:
    stages = read_dockerfile()
    base = variables(stages.pop(""), "ARG")["BASE_IMAGE"]
    assert re.fullmatch(rf"python:3\.\d+-slim-{DEBIAN}@sha256:[0-9a-f]{{64}}", base)
    assert all(stage.base in {"${BASE_IMAGE}", *stages} for stage in stages.values())
    assert list(stages)[-1] == "executor"  # what a build without --target makes


def test_it_runs_as_a_user_without_rights_under_an_init_that_reaps() -> None:
    stages = read_dockerfile()
    uid, gid = stages["system"].all("USER")[-1].split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert f"system.sh {uid} " in stages["system"].all("RUN")[-1]
    assert not stages["executor"].all("USER")
    for name, program in (
        ("executor", ["datahub-executor"]),
        ("stand-in", ["python", "-m", "executor.local.datahub"]),
    ):
        assert stages[name].words("ENTRYPOINT") == ["/usr/bin/tini", "-s", "--", *program]
    assert stages["executor"].words("CMD") == ["run"]


def test_its_folders_are_those_that_the_executor_takes_by_default() -> None:
    stages = read_dockerfile()
    settings = load_settings(
        {"DATAHUB_GMS_URL": "http://datahub:8080", "DATAHUB_EXECUTOR_QUEUE": "q", "AWS_REGION": "us-east-1"}
    )
    [venvs] = [text.split()[-1] for text in stages["executor"].all("COPY") if "bundles" in text]
    assert venvs == str(settings.bundled_venv_path)
    assert stages["system"].words("VOLUME") == [str(settings.work_dir)]
    assert variables(stages["system"], "ENV")["HOME"] == str(settings.work_dir)
    assert stages["executor"].all("EXPOSE") == [str(settings.metrics_port)]
    assert settings.metrics_port == int(health_check_port())


def health_check_port() -> str:
    found = re.search(r'^PORT = "(\d+)"', (ROOT / "docker" / "healthcheck.py").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_it_bundles_the_cli_that_the_tests_run_and_says_what_it_is() -> None:
    stages = read_dockerfile()
    version = variables(stages["bundles"], "ARG")["CLI_VERSION"]
    assert f"=={version}\n" in (ROOT / "requirements" / "cli.in").read_text()
    labels = dict(
        word.partition("=")[::2] for word in stages["executor"].all("LABEL")[-1].split() if "=" in word
    )
    for name in ("version", "revision", "created"):
        assert labels[f"org.opencontainers.image.{name}"] == f'"${{{name.upper()}}}"'


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    first, *rest = [line for line in lines if line and not line.startswith("#")]
    assert first == "*"
    let_in = {line[1:] for line in rest if line.startswith("!")}
    copied = {
        word.split("/")[0]
        for stage in read_dockerfile().values()
        for text in stage.all("COPY")
        if not text.startswith("--from")
        for word in text.split()[:-1]
    }
    assert let_in == copied
    assert "**/.env" in rest


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = tool("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_shellcheck_has_nothing_to_say() -> None:
    shellcheck = tool("shellcheck")
    scripts = sorted((ROOT / "docker").rglob("*.sh"))
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{ROOT / '.cache/docker/bin'}:{os.environ['PATH']}")
    if found is None:
        cannot_be_had(f"no {name} here: `make setup-tests` brings it (requirements/docker.in)")
    return found
