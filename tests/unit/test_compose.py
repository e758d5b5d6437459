"""docker/compose.yml, as far as it can be judged without a container engine."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from executor.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker" / "compose.yml"
QUEUE = "http://localstack:4566/000000000000/datahub-ingestion"

Service = dict[str, Any]


@pytest.fixture
def services() -> dict[str, Service]:
    found: dict[str, Service] = yaml.safe_load(FILE.read_text())["services"]
    return found


def substituted(value: str, **given: str) -> str:
    """`value` with `${NAME:-default}` and the like filled in as Compose does."""

    def variable(match: re.Match[str]) -> str:
        name, sign, default = match.groups()
        chosen = given.get(name)
        return default if chosen is None or (sign == ":-" and not chosen) else chosen

    return re.sub(r"\$\{(\w+)(:?-)([^}]*)\}", variable, value)


def settings_of(executor: Service, **given: str) -> Settings:
    return load_settings(
        {name: substituted(value, **given) for name, value in executor["environment"].items()}
    )


def test_localstack_is_the_release_that_the_tests_run(services: dict[str, Service]) -> None:
    tag = services["localstack"]["image"].removeprefix("localstack/localstack:")
    assert f"localstack=={tag}\n" in (ROOT / "requirements" / "localstack.in").read_text()


def test_without_a_word_the_executor_speaks_to_the_stand_in(services: dict[str, Service]) -> None:
    settings = settings_of(services["executor"])
    assert settings.gms_url == "http://datahub:8080"
    assert settings.gms_token is None
    assert services["datahub"]["profiles"] == ["stand-in"]


def test_two_variables_lead_to_a_datahub_of_ones_own(services: dict[str, Service]) -> None:
    settings = settings_of(
        services["executor"], DATAHUB_GMS_URL="https://datahub.example.com", DATAHUB_GMS_TOKEN="secret-token"
    )
    assert settings.gms_url == "https://datahub.example.com"
    assert settings.gms_token is not None
    assert settings.gms_token.get_secret_value() == "secret-token"
    # The stand-in may be left out then, without Compose calling the dependency undefined.
    assert services["executor"]["depends_on"]["datahub"]["required"] is False


def test_executor_stand_in_and_hook_mean_the_same_queue(services: dict[str, Service]) -> None:
    assert services["executor"]["environment"]["DATAHUB_EXECUTOR_QUEUE"] == QUEUE
    command = services["datahub"]["command"]
    assert command[command.index("--queue-url") + 1] == QUEUE
    localstack = services["localstack"]["environment"]
    assert f"http://{localstack['LOCALSTACK_HOST']}/000000000000/{localstack['QUEUE_NAME']}" == QUEUE


def test_the_executor_may_write_to_its_work_folder_alone(services: dict[str, Service]) -> None:
    executor = services["executor"]
    assert executor["read_only"] is True
    assert executor["cap_drop"] == ["ALL"]
    assert executor["security_opt"] == ["no-new-privileges:true"]
    assert executor["volumes"] == [f"work:{settings_of(executor).work_dir}"]
    assert [mount.partition(":")[0] for mount in executor["tmpfs"]] == ["/tmp"]  # the heartbeat files


def test_a_stop_leaves_the_executor_time_to_hand_its_runs_over(services: dict[str, Service]) -> None:
    executor = services["executor"]
    assert int(executor["stop_grace_period"].removesuffix("s")) > settings_of(executor).drain_timeout


def test_nothing_starts_before_what_it_needs_is_healthy(services: dict[str, Service]) -> None:
    needed = {name: set(service.get("depends_on", {})) for name, service in services.items()}
    assert needed == {"localstack": set(), "datahub": {"localstack"}, "executor": {"localstack", "datahub"}}
    for service in services.values():
        for condition in service.get("depends_on", {}).values():
            assert condition["condition"] == "service_healthy"
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert "healthcheck" not in services["executor"]
    assert "HEALTHCHECK" in dockerfile[dockerfile.index("AS executor") :]
    assert all("healthcheck" in services[name] for name in ("localstack", "datahub"))


def test_ports_are_open_on_this_machine_alone(services: dict[str, Service]) -> None:
    ports = [port for service in services.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_what_it_builds_and_mounts_is_there(services: dict[str, Service]) -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for name in ("executor", "datahub"):
        build = services[name]["build"]
        assert (FILE.parent / build["context"] / build["dockerfile"]).is_file()
        assert f" AS {build['target']}\n" in dockerfile
        assert all(f"ARG {arg}=" in dockerfile for arg in build.get("args", {}))
    [mount] = services["localstack"]["volumes"]
    source, target, mode = mount.split(":")
    assert (FILE.parent / source / "ready.d" / "queues.py").is_file()
    assert (target, mode) == ("/etc/localstack/init", "ro")


@pytest.mark.parametrize("profile", [(), ("--profile", "stand-in")])
def test_docker_compose_takes_it(profile: tuple[str, ...]) -> None:
    command = [*compose(), "--file", str(FILE), *profile, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def compose() -> list[str]:
    """Docker Compose, version 2 or newer: as Docker's plugin, or as a program of its own."""
    path = f"{ROOT / '.cache' / 'docker' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for words in (["docker", "compose"], ["docker-compose"]):
        program = shutil.which(words[0], path=path)
        if program is not None:
            argv = [program, *words[1:]]
            asked = subprocess.run([*argv, "version", "--short"], capture_output=True, text=True, check=False)
            if asked.returncode == 0 and not asked.stdout.lstrip("v").startswith(("0.", "1.")):
                return argv
    pytest.skip("no Docker Compose here: its own words on the file are not asked for")
