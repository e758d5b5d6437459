"""deploy/cloudformation/executor.yaml as it stands: what linters say, what the image says, what it refuses."""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.deploy.cloud import TEMPLATE, read_template
from tests.system.image import read_dockerfile

pytestmark = pytest.mark.xdist_group("templates")  # judged together

LARGEST = 51200  # bytes that CloudFormation takes without a detour over S3
SLOPPY = """
Resources:
  Queue:
    Type: AWS::SQS::Queue
    Properties: { KmsMasterKeyId: "", NoSuchProperty: 1 }
"""


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return read_template()


@pytest.fixture
def container(template: dict[str, Any]) -> dict[str, Any]:
    [found] = template["Resources"]["TaskDefinition"]["Properties"]["ContainerDefinitions"]
    return dict(found)


@pytest.fixture(scope="module")
def sloppy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A template that linters complain of, if they work at all."""
    path = tmp_path_factory.mktemp("sloppy") / "sloppy.yaml"
    path.write_text(SLOPPY)
    return path


def judged(venv: Path, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [venv / "bin" / program, *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_cfn_lint_has_nothing_to_say(deploy_venv: Path, sloppy: Path) -> None:
    options = ("--include-checks", "I", "--format", "json")
    done = judged(deploy_venv, "cfn-lint", *options, "--", TEMPLATE, sloppy)
    found = json.loads(done.stdout)
    assert "E3002" in {match["Rule"]["Id"] for match in found if match["Filename"] == str(sloppy)}
    assert [match for match in found if match["Filename"] != str(sloppy)] == []


def test_checkov_has_nothing_to_say(deploy_venv: Path, sloppy: Path) -> None:
    options = ("--framework", "cloudformation", "--skip-download", "--output", "json")
    done = judged(deploy_venv, "checkov", *options, "--file", TEMPLATE, sloppy)
    results = json.loads(done.stdout)["results"]
    failed = {(Path(check["file_abs_path"]), check["check_id"]) for check in results["failed_checks"]}
    assert {path for path, _ in failed} == {sloppy}
    passed = {check["resource"] for check in results["passed_checks"]}
    assert {"AWS::SQS::Queue.Queue", "AWS::ECS::TaskDefinition.TaskDefinition"} <= passed
    assert results["skipped_checks"] == []


def test_it_can_be_given_to_cloudformation_as_it_is() -> None:
    text = TEMPLATE.read_text()
    assert len(text.encode()) <= LARGEST
    events = list(yaml.parse(text, yaml.SafeLoader))
    assert not [event for event in events if isinstance(event, yaml.AliasEvent)]


def test_parameters_are_grouped_for_people(template: dict[str, Any]) -> None:
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    named = [name for group in groups for name in group["Parameters"]]
    assert sorted(named) == sorted(template["Parameters"])
    assert all(parameter["Description"] for parameter in template["Parameters"].values())


def test_it_runs_the_image_as_the_image_is_made(container: dict[str, Any]) -> None:
    stages = read_dockerfile()
    *init, program = stages["executor"].words("ENTRYPOINT")
    assert container["EntryPoint"] == [*init, "env"]
    assert joined(container["Command"]).split("\n")[-2:] == [program, *stages["executor"].words("CMD")]
    assert container["User"] == stages["system"].all("USER")[-1]
    [mount] = container["MountPoints"]
    assert [mount["ContainerPath"]] == stages["system"].words("VOLUME")
    [health_check] = [text for text in stages["executor"].all("HEALTHCHECK") if "CMD" in text]
    asked = joined(container["HealthCheck"]["Command"]).split("\n")
    assert asked[-3:] == json.loads(health_check[health_check.index("[") :])
    assert container["ReadonlyRootFilesystem"] is True


def joined(value: Any) -> str:
    """The text that is split into a command's words, without what conditions add."""
    _, join = value["Fn::Split"]
    _, parts = join["Fn::Join"]
    return "".join(part for part in parts if isinstance(part, str))


def test_a_task_has_longer_to_stop_than_runs_have_to_end(container: dict[str, Any]) -> None:
    row = re.search(r"`DATAHUB_EXECUTOR_DRAIN_TIMEOUT` \|[^|]*\| `(\d+)`", (ROOT / "README.md").read_text())
    assert row is not None
    assert int(row[1]) < container["StopTimeout"] == 120


def test_what_the_container_has_by_itself_is_no_secret_of_ones_own(
    template: dict[str, Any], container: dict[str, Any]
) -> None:
    """ECS refuses a task definition with a name that comes twice, when it is deployed."""
    branches = [entry["Fn::If"][1] if "Fn::If" in entry else entry for entry in container["Secrets"]]
    entries = [*container["Environment"], *branches]
    names = {entry["Name"] for entry in entries if isinstance(entry["Name"], str)}
    assert {"DATAHUB_GMS_URL", "DATAHUB_GMS_TOKEN", "DATAHUB_EXECUTOR_SECRETS"} < names
    for name in names:
        assert refused(template, OptionalSecrets=f"A={SECRET},{name}={SECRET}") != [], name


def test_another_share_of_spot_is_a_new_deployment(template: dict[str, Any]) -> None:
    """UpdateService: "making a change to a capacity provider strategy …, you must force a new deployment"."""
    forced = template["Resources"]["Service"]["Properties"]["ForceNewDeployment"]
    nonce = {"Ref": "SpotPercent"}
    assert forced == {"EnableForceNewDeployment": True, "ForceNewDeploymentNonce": nonce}


@pytest.mark.parametrize("percent", [0, 25, 50, 75, 100])
def test_the_share_of_spot_is_what_it_says(template: dict[str, Any], percent: int) -> None:
    shares = template["Mappings"]["Spot"]
    assert list(shares) == template["Parameters"]["SpotPercent"]["AllowedValues"]
    share = shares[str(percent)]
    assert share["OnSpot"] * 100 == percent * (share["OnSpot"] + share["OnDemand"])
    assert share["Base"] == (0 if percent == 100 else 1)


# --- what it refuses before anything is made ------------------------------------------------------------------


def refused(template: Mapping[str, Any], **given: str) -> list[str]:
    """What CloudFormation would say of these parameters: patterns of each, then rules among them."""
    parameters = {name: str(entry.get("Default", "")) for name, entry in template["Parameters"].items()}
    parameters |= given
    complaints = []
    for name, text in given.items():
        parameter = template["Parameters"][name]
        if not re.fullmatch(parameter.get("AllowedPattern", ".*"), text):
            complaints.append(parameter["ConstraintDescription"])
    for rule in template["Rules"].values():
        if "RuleCondition" not in rule or worked_out(rule["RuleCondition"], parameters):
            broken = [part for part in rule["Assertions"] if not worked_out(part["Assert"], parameters)]
            complaints += [part["AssertDescription"] for part in broken]
    return complaints


def worked_out(expression: Any, parameters: Mapping[str, str]) -> Any:
    """What a rule's function comes to."""
    if isinstance(expression, str):
        return expression
    [[function, given]] = expression.items()
    if function == "Ref":
        return parameters[given]
    if function == "Fn::Contains":
        return worked_out(given[1], parameters) in given[0]
    values = [worked_out(part, parameters) for part in given]
    match function:
        case "Fn::Equals":
            return values[0] == values[1]
        case "Fn::Not":
            return not values[0]
        case "Fn::Or":
            return any(values)
    raise AssertionError(f"no function of rules: {function}")


SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:datahub/token-AbCdEf"
QUEUE = "arn:aws:sqs:us-west-2:210987654321:datahub-ingestion.fifo"
KEY = "arn:aws:kms:eu-central-1:123456789012:key/0f9de17a-6465-404e-8b1b-2356dc13c2f8"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"DataHubAccessToken": "t", "ExistingDataHubAccessTokenSecretArn": SECRET}, "but not both"),
        ({"AwsCommandQueueArn": QUEUE, "QueueSenderAccount": "210987654321"}, "queue's own policy"),
        ({"QueueKmsKeyArn": KEY}, "takes KmsKeyArn"),
        ({"TaskCpu": "256", "TaskMemory": "4096"}, "512, 1024 or 2048"),
        ({"TaskCpu": "4096", "TaskMemory": "4096"}, "8192 to 30720"),
        ({"TaskCpu": "8192", "TaskMemory": "17408"}, "in steps of 4096"),
        ({"DataHubBaseUrl": "datahub.example.com"}, "https://datahub.example.com"),
        ({"DataHubAccessToken": "Bearer t"}, "without blanks"),
        ({"ExistingDataHubAccessTokenSecretArn": "datahub/token"}, "the whole ARN of a secret"),
        ({"AwsCommandQueueArn": "https://sqs.us-west-2.amazonaws.com/210987654321/q"}, "ARN of an SQS queue"),
        ({"OptionalEnvVars": "A=1,B"}, "NAME=value,NAME=value"),
        ({"OptionalEnvVars": "A=1, B=2"}, "NAME=value,NAME=value"),
        ({"OptionalEnvVars": "DATAHUB_GMS_TOKEN=t"}, "without tokens"),
        ({"OptionalEnvVars": "A=1,DATAHUB_ACCESS_TOKEN=t"}, "without tokens"),
        ({"OptionalEnvVars": "A=1,B=2,DATAHUB_EXECUTOR_SECRETS={}"}, "without tokens"),
        ({"OptionalSecrets": "PASSWORD=hunter2"}, "NAME=arn,NAME=arn"),
        ({"OptionalSecrets": ",".join(f"S{n}={SECRET}" for n in range(11))}, "OptionalSecretsArn"),
        ({"OptionalSecrets": f"PASSWORD={SECRET}:password"}, "NAME=arn,NAME=arn"),
        ({"OptionalSecretsArn": f"{SECRET}:one:two"}, ":KEY:STAGE:VERSION"),
        ({"OptionalEnvVars": ",A=1"}, "NAME=value,NAME=value"),
        ({"OptionalEnvVars": "A=1,DATAHUB_EXECUTOR_DRAIN_TIMEOUT=101"}, "at most 100"),
        ({"OptionalEnvVars": "DATAHUB_EXECUTOR_DRAIN_TIMEOUT=600,A=1"}, "at most 100"),
        ({"OptionalSecrets": f",A={SECRET}"}, "NAME=arn,NAME=arn"),
        ({"OptionalSecrets": f"A={SECRET},B={SECRET},A={SECRET}:key::"}, "no name twice"),
        ({"OptionalSecrets": f"A={SECRET},DATAHUB_GMS_TOKEN={SECRET}"}, "nor one of the template's own"),
        ({"ExistingClusterName": "arn:aws:ecs:eu-central-1:123456789012:cluster/data"}, "not its ARN"),
    ],
)
def test_parameters_that_can_not_work_are_refused_with_the_way_out(
    template: dict[str, Any], given: dict[str, str], word: str
) -> None:
    [complaint] = refused(template, **given)
    assert word in complaint


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"DataHubAccessToken": "eyJhbGciOiJIUzI1NiJ9.e30.sig"},
        {"ExistingDataHubAccessTokenSecretArn": SECRET, "DataHubBaseUrl": "example.acryl.io/gms"},
        {"AwsCommandQueueArn": QUEUE, "QueueKmsKeyArn": KEY},
        {"QueueSenderAccount": "210987654321", "KmsKeyArn": KEY},
        {"OptionalSecrets": ",".join(f"S{n}={SECRET}" for n in range(10))},
        {"OptionalSecrets": f"A={SECRET}:password::,B={SECRET},C={SECRET}::AWSPREVIOUS:,D={SECRET}:::1234-5"},
        {
            "OptionalSecretsArn": f"{SECRET}:recipes::",
            "ExistingDataHubAccessTokenSecretArn": f"{SECRET}:token::",
        },
        {"OptionalSecrets": f"A={SECRET},AA={SECRET},B={SECRET},BA={SECRET}"},
        {"OptionalSecrets": f"DATAHUB_GMS_URLS={SECRET},MY_DATAHUB_GMS_URL={SECRET}"},
        {"OptionalEnvVars": "MY_DATAHUB_GMS_TOKEN=t,A=DATAHUB_GMS_TOKEN=t"},
        {"OptionalEnvVars": "DATAHUB_EXECUTOR_DRAIN_TIMEOUT=100,A=1"},
        {"OptionalEnvVars": "A=1,DATAHUB_EXECUTOR_DRAIN_TIMEOUT=0"},
        {"ExistingClusterName": "data_warehouse-2"},
        {"OptionalEnvVars": ",".join(f"V{n}=https://example.com/?a=b&n={n}" for n in range(100))},
        {"TaskCpu": "16384", "TaskMemory": "122880"},
    ],
)
def test_parameters_that_can_work_are_taken(template: dict[str, Any], given: dict[str, str]) -> None:
    assert refused(template, **given) == []


def test_the_sizes_of_tasks_that_fargate_has_are_taken_and_no_others(template: dict[str, Any]) -> None:
    """See *Task size* in the ECS Developer Guide: MiB by CPU units."""
    sizes: dict[int, list[int]] = {256: [512, 1024, 2048]}
    steps = {512: (1024, 4096, 1024), 1024: (2048, 8192, 1024), 2048: (4096, 16384, 1024)}
    steps |= {4096: (8192, 30720, 1024), 8192: (16384, 61440, 4096), 16384: (32768, 122880, 8192)}
    sizes |= {cpu: list(range(least, most + 1, step)) for cpu, (least, most, step) in steps.items()}
    assert list(map(str, sizes)) == template["Parameters"]["TaskCpu"]["AllowedValues"]
    for cpu, fitting in sizes.items():
        for memory in (256, *range(512, 131073, 512)):
            taken = refused(template, TaskCpu=str(cpu), TaskMemory=str(memory)) == []
            assert taken == (memory in fitting), (cpu, memory)
