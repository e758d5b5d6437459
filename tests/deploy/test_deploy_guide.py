"""What people are told to type and to set when they deploy: held against what there is."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import pytest
import yaml

from executor.messages import ExecutionRequest, Message, Signal, parse
from executor.operations.metrics import Metrics
from executor.settings import Settings, unknown_variables
from tests import servers
from tests.conftest import ROOT
from tests.deploy.cloud import read_template
from tests.deploy.judges import judged
from tests.system.image import read_dockerfile, variables

CHART = ROOT / "deploy" / "helm" / "datahub-executor"
MODULE = ROOT / "deploy" / "terraform"
GUIDE = ROOT / "docs" / "deploy.md"
TEXTS = (GUIDE, CHART / "README.md", MODULE / "README.md")
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_PLACEHOLDER = re.compile(r"<(\w+)>")
_FOLDERS = ("docker/", "deploy/", "docs/", "tests/")


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a language; those of none are for the shell."""
    return [dedent(body) for _, found, body in _BLOCK.findall(text) if found == language]


def section(title: str) -> str:
    [found] = [part for part in GUIDE.read_text().split("\n## ") if part.startswith(f"{title}\n")]
    return found


def quoted(text: str) -> Iterator[str]:
    """What stands in backticks outside of blocks."""
    return (found[1] for found in re.finditer(r"`([^`\n]+)`", _BLOCK.sub("", text)))


def words(block: str) -> list[str]:
    return shlex.split(_PLACEHOLDER.sub(r"\1", block), comments=True)


@pytest.fixture(scope="module")
def module() -> dict[str, dict[str, Any]]:
    """The Terraform module's variables and outputs by name."""
    found = judged("hcl.py", str(MODULE))
    return {
        kind: {name: body for block in found[kind] for name, body in block.items()}
        for kind in ("variable", "output")
    }


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_parse_and_files_are_there(file: Path) -> None:
    shell = blocks(file.read_text())
    assert shell
    for block in shell:
        given = _PLACEHOLDER.sub(r"\1", block)
        done = subprocess.run(["bash", "-n"], input=given, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), block
        for word in words(block):
            assert not word.startswith(_FOLDERS) or (ROOT / word).exists(), word
            if word.startswith(("{", "[")):
                json.loads(word)


def test_policies_are_json_and_those_of_keys_name_services() -> None:
    statements = [json.loads(block) for block in blocks(GUIDE.read_text(), "json")]
    services = {
        statement["Principal"]["Service"]
        for statement in statements
        if any(action.startswith("kms:") for action in statement["Action"])
    }
    assert services == {"events.amazonaws.com", "logs.REGION.amazonaws.com"}


async def test_what_the_bridge_sends_is_understood(localstack: servers.LocalStack, cli_venv: Path) -> None:
    [code], [given] = (blocks(section("Filling the queue"), language) for language in ("python", "yaml"))
    settings = yaml.safe_load(given)
    passes = settings["filter"]["event"]
    executor_id = Settings.model_fields["pool_id"].default
    assert settings["action"]["type"] == "bridge:ToQueue"
    assert passes["aspect"]["value"] == {"executorId": executor_id}
    recipe = {"source": {"type": "datahub-mock-data", "config": {"owner": "Zoë"}}}
    arguments = {
        "recipe": json.dumps(recipe, ensure_ascii=False),
        "version": "bundled",
        "debug_mode": "false",
    }
    asked: dict[str, object] = {
        "task": "RUN_INGEST",
        "args": arguments,
        "requestedAt": 1,
        "source": {"type": "MANUAL_INGESTION_SOURCE"},
    }
    killed: dict[str, object] = {
        "signal": "KILL",
        "createdAt": {"time": 2, "actor": "urn:li:corpuser:datahub"},
    }
    events = [
        {
            "entityType": passes["entityType"],
            "entityUrn": "urn:li:dataHubExecutionRequest:9e5ad3c8",
            "changeType": passes["changeType"],
            "aspectName": aspect_name,
            "aspect": {
                "value": json.dumps({**value, "executorId": executor_id}, ensure_ascii=False),
                "contentType": "application/json",
            },
        }
        for aspect_name, value in zip(passes["aspectName"], (asked, killed), strict=True)
    ]

    queue = await localstack.make_queue()
    argv = [str(cli_venv / "bin" / "python"), str(Path(__file__).with_name("bridge.py")), queue]
    given = json.dumps({"code": code, "events": events})
    done = await anyio.run_process(
        argv, input=given.encode(), env={**os.environ, **localstack.env}, check=False
    )
    assert done.returncode == 0, done.stderr.decode()

    sent: list[Message] = []
    async with localstack.client() as sqs:
        while len(sent) < len(events):
            answer = await sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=10)
            assert answer.get("Messages"), "nothing more is sent"
            sent += [parse(message["Body"]) for message in answer["Messages"]]
    request, signal = sorted(sent, key=lambda message: isinstance(message, Signal))
    assert isinstance(request, ExecutionRequest)
    assert (request.exec_id, request.executor_id, request.version) == ("9e5ad3c8", executor_id, "bundled")
    assert json.loads(request.recipe) == recipe
    assert signal == Signal("9e5ad3c8", executor_id)


@pytest.mark.parametrize("tool", ["CloudFormation", "Terraform"])
def test_check_as_a_task_is_what_the_container_starts(tool: str) -> None:
    """It takes the place of the command; the entry point stays, which ends with `env` in the template alone."""
    [run] = [block for block in blocks(section(f"ECS Fargate, with {tool}")) if "run-task" in block]
    given = words(run)
    [override] = json.loads(given[given.index("--overrides") + 1])["containerOverrides"]
    if tool == "Terraform":
        local = judged("hcl.py", str(MODULE))["locals"]
        [container] = [block["container"] for block in local if "container" in block]
        name, entry = container["name"], container["entryPoint"]
    else:
        definition = read_template()["Resources"]["TaskDefinition"]["Properties"]
        [container] = definition["ContainerDefinitions"]
        name, entry = container["Name"], container["EntryPoint"]
    assert override["name"] == name
    *assigned, program, verb = override["command"]
    assert [program, verb] == ["datahub-executor", "check"]
    assert (entry[-1] == "env") is bool(assigned)


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_executors_own_commands_have_these_options(file: Path) -> None:
    text = "\n".join(blocks(file.read_text())).replace("\\\n", " ")
    commands = re.findall(r"(?<![\w/.-])(?:\.venv/bin/)?datahub-executor +([a-z]+)([^|<>\n]*)", text)
    assert commands
    for verb, rest in commands:
        help_of = [sys.executable, "-m", "executor", verb, "--help"]
        told = subprocess.run(help_of, capture_output=True, text=True, check=True).stdout
        assert set(re.findall(r"--[\w-]+", rest)) <= set(re.findall(r"--[\w-]+", told)), (verb, rest)


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text()):
        path, _, anchor = target.partition("#")
        found = (file.parent / path).resolve() if path else file
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", _BLOCK.sub("", found.read_text()), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_build_arguments_are_the_dockerfiles() -> None:
    known = {name for stage in read_dockerfile().values() for name in variables(stage, "ARG")}
    known |= {text for stage in read_dockerfile().values() for text in stage.all("ARG") if "=" not in text}
    given = re.findall(r"--build-arg\s+(\w+)=", GUIDE.read_text())
    assert "BUNDLED_SOURCES" in given
    assert set(given) <= known


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_what_the_image_installs_has_wheels_for_both_architectures(architecture: str, tmp_path: Path) -> None:
    base = next(
        text for text in (ROOT / "docker" / "Dockerfile").read_text().splitlines() if "BASE_IMAGE=" in text
    )
    [python] = re.findall(r"python:(\d+\.\d+)", base)
    locks = [f"--requirement={ROOT / 'requirements' / name}" for name in ("runtime.txt", "uv.txt")]
    platform = f"--python-platform={architecture}-unknown-linux-gnu"
    options = ["--dry-run", "--require-hashes", "--only-binary=:all:", f"--target={tmp_path}"]
    uv = str(Path(sys.executable).with_name("uv"))
    argv = [uv, "pip", "install", *options, f"--python-version={python}", platform, *locks]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "uvloop" in done.stderr


def test_variables_metrics_and_alarms_exist(module: object) -> None:
    text = GUIDE.read_text()
    assert unknown_variables(dict.fromkeys(re.findall(r"\bDATAHUB_[A-Z_]+[A-Z]\b", text), "")) == []
    families = list(Metrics("remote").registry.collect())
    metrics = {sample.name for family in families for sample in family.samples}
    named = set(re.findall(r"\bdatahub_executor_\w+", text))
    assert named
    assert named <= metrics
    alarms = {name for name in read_template()["Resources"] if name.endswith("Alarm")}
    assert set(re.findall(r"`(\w+Alarm)`", text)) == alarms
    ours = "".join(file.read_text() for file in MODULE.glob("*.tf"))
    assert all(
        f'alarm_name          = "${{var.name}}-{name}"' in ours for name in re.findall(r"`…-([a-z-]+)`", text)
    )


def test_what_the_cloudformation_section_names_is_in_the_template() -> None:
    text, template = section("ECS Fargate, with CloudFormation"), read_template()
    text = re.sub(r"\*\*Coming from .*?\n\n", "", text, flags=re.DOTALL)  # it has the other template's names
    parameters, outputs = set(template["Parameters"]), set(template["Outputs"])
    known = parameters | outputs | set(template["Resources"])
    assert {found for block in blocks(text) for found in _PLACEHOLDER.findall(block)} <= outputs
    camel = re.compile(r"([A-Z]+[a-z]\w*)(?:=.*)?")
    assert {match[1] for name in quoted(text) if (match := camel.fullmatch(name))} <= known
    [deploy] = [block for block in blocks(text) if "--parameter-overrides" in block]
    given = {word.partition("=")[0] for word in words(deploy) if re.match(r"[A-Z]\w+=", word)}
    needed = {name for name, body in template["Parameters"].items() if "Default" not in body}
    assert needed <= given <= parameters


def test_what_the_terraform_section_names_is_in_the_module(
    module: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    text = section("ECS Fargate, with Terraform")
    snake = re.compile(r"([a-z]+(?:_[a-z]+)+)(?: = .*)?")
    named = {match[1] for name in quoted(text) if (match := snake.fullmatch(name))}
    assert named <= set(module["variable"]) | set(module["output"])
    for guide in (text, (MODULE / "README.md").read_text()):
        placeholders = {found for block in blocks(guide) for found in _PLACEHOLDER.findall(block)}
        assert placeholders <= set(module["output"])
        [hcl] = blocks(guide, "hcl")
        (tmp_path / "main.tf").write_text(hcl)
        [called] = judged("hcl.py", str(tmp_path))["module"]
        given = set(called["executor"]) - {"source"}
        needed = {name for name, body in module["variable"].items() if "default" not in body}
        assert needed <= given <= set(module["variable"])


def test_the_charts_values_make_a_release() -> None:
    text, defaults = section("Kubernetes"), yaml.safe_load((CHART / "values.yaml").read_text())
    examples = [blocks(guide, "yaml") for guide in (text, (CHART / "README.md").read_text())]
    values = [yaml.safe_load(found) for found, *_ in examples]
    extra = yaml.safe_load(examples[1][1])
    workloads = {found for guide in TEXTS for found in re.findall(r"deployment/(\S+)", guide.read_text())}
    for outcome in judged("chart.py", given=[*values, {**values[1], **extra}]):
        assert "refused" not in outcome
        assert outcome["faults"] == []
        [name] = [made["metadata"]["name"] for made in outcome["objects"] if made["kind"] == "Deployment"]
        assert workloads == {name.replace("demo-", "executor-")}  # the release's name
    for name in quoted(text):
        keys = name.partition(":")[0].split(".")
        found: Any = defaults
        while len(keys) > 1 and keys[0] in found:
            found = found[keys.pop(0)]
        assert found is defaults or keys[0] in found, name
