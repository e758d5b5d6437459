"""deploy/terraform: held against the CloudFormation template, and by Terraform itself where it can be had."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from executor.settings import load_settings, unknown_variables
from tests.conftest import ROOT
from tests.deploy.cloud import read_template
from tests.deploy.judges import judged

pytestmark = pytest.mark.xdist_group("module")  # initialised once

MODULE = ROOT / "deploy" / "terraform"
EXAMPLES = sorted(path for path in (MODULE / "examples").iterdir() if path.is_dir())
OURS = {"name", "tags"}  # what a stack has of its own accord
CASES = (
    "minimal",
    "everything",
    "queue_that_is_there",
    "queue_elsewhere",
    "nothing_elsewhere",
    "made_along",
)
ROLES = {"TaskRole": "aws_iam_role.task", "ExecutionRole": "aws_iam_role.execution"}


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return read_template()


@pytest.fixture(scope="module")
def module() -> dict[str, list[dict[str, Any]]]:
    blocks: dict[str, list[dict[str, Any]]] = judged("hcl.py", str(MODULE))
    return blocks


def named(blocks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: body for block in blocks for name, body in block.items()}


def snake_case(name: str) -> str:
    """DataHubBaseUrl becomes datahub_base_url, VPCID vpc_id."""
    for whole, part in {
        "DataHub": "Datahub",
        "VPCID": "VpcId",
        "SubnetIDs": "SubnetIds",
        "GiB": "Gib",
    }.items():
        name = name.replace(whole, part)
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def resources(blocks: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The bodies by their addresses."""
    return {
        f"{kind}.{name}": body
        for block in blocks
        for kind, found in block.items()
        for name, body in found.items()
    }


def listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def actions_in(value: Any) -> set[str]:
    """The actions of all statements below a part of the template, those under conditions included."""
    match value:
        case {"Effect": "Allow", "Action": actions}:
            return set(listed(actions))
        case dict():
            return {action for inner in value.values() for action in actions_in(inner)}
        case list():
            return {action for inner in value for action in actions_in(inner)}
    return set()


# --- as text: on every machine ----------------------------------------------------------------------------


def test_it_takes_what_the_template_takes_with_the_same_defaults(
    module: Mapping[str, Any], template: Mapping[str, Any]
) -> None:
    variables = named(module["variable"])
    parameters = {snake_case(name): body for name, body in template["Parameters"].items()}
    assert set(variables) - OURS == set(parameters)
    same: dict[Any, Any] = {"DISABLED": False}
    for name, parameter in parameters.items():
        assert ("default" in variables[name]) == ("Default" in parameter), name
        if "Default" in parameter:
            default = variables[name]["default"]
            assert default == same.get(parameter["Default"], parameter["Default"]) or (
                str(default) == parameter["Default"] or (default in ({}, []) and parameter["Default"] == "")
            ), name


def test_every_variable_and_output_says_what_it_is(module: Mapping[str, Any]) -> None:
    variables = named(module["variable"])
    assert [
        name for name, body in variables.items() if not (body.get("type") and body.get("description"))
    ] == []
    assert [name for name, body in named(module["output"]).items() if not body.get("description")] == []
    assert variables["datahub_access_token"]["sensitive"] is True
    # So that null, as callers pass on what they were not given, is the default.
    with_default = {name for name, body in variables.items() if "default" in body}
    assert {name for name, body in variables.items() if body.get("nullable") is False} == with_default


def test_it_gives_what_the_template_gives(module: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    assert set(named(module["output"])) == {snake_case(name) for name in template["Outputs"]}


def test_every_reference_is_to_something_and_nothing_is_there_for_nothing(module: Mapping[str, Any]) -> None:
    text = "\n".join(path.read_text() for path in MODULE.glob("*.tf"))
    local = {name for block in module["locals"] for name in block}
    data = {f"data.{address}" for address in resources(module["data"])}
    made = set(resources(module["resource"]))
    assert set(re.findall(r"\bvar\.(\w+)", text)) == set(named(module["variable"]))
    assert set(re.findall(r"\blocal\.(\w+)", text)) == local
    assert set(re.findall(r"\bdata\.\w+\.\w+", text)) == data
    assert set(re.findall(r"(?<!data\.)\b(aws_\w+\.\w+)", text)) <= made


@pytest.mark.parametrize("role", ROLES)
def test_its_roles_may_do_what_the_templates_may(
    role: str, module: Mapping[str, Any], template: Mapping[str, Any]
) -> None:
    policies = [
        body
        for address, body in resources(module["resource"]).items()
        if address.startswith("aws_iam_role_policy.") and body["role"] == f"${{{ROLES[role]}.id}}"
    ]
    found = re.findall(r'"([a-z0-9-]+:[A-Z]\w+)\\?"', json.dumps(policies).replace('\\"', '"'))
    given = {action for action in found if action != "kms:ViaService"}
    assert given == actions_in(template["Resources"][role]["Properties"]["Policies"])
    boundary = resources(module["resource"])[ROLES[role]]["permissions_boundary"]
    assert "var.permissions_boundary_arn" in boundary


def texts_in(value: Any, *keys: str) -> set[str]:
    """What lies under these keys, anywhere below a part of the template."""
    match value:
        case dict():
            own = {inner for key, inner in value.items() if key in keys and isinstance(inner, str)}
            return own.union(*(texts_in(inner, *keys) for inner in value.values()))
        case list():
            return set().union(*(texts_in(inner, *keys) for inner in value))
    return set()


def test_it_scales_and_alarms_on_what_the_template_does(
    module: Mapping[str, Any], template: Mapping[str, Any]
) -> None:
    text = "\n".join(path.read_text() for path in MODULE.glob("*.tf")).replace('\\"', '"')
    wanted = texts_in(template["Resources"], "MetricName", "AlarmDescription", "FilterPattern")
    assert {words for words in wanted if words.replace("MaxTasks", "max_tasks") not in text} == set()
    kinds = {
        "AWS::CloudWatch::Alarm": "aws_cloudwatch_metric_alarm",
        "AWS::ApplicationAutoScaling::ScalingPolicy": "aws_appautoscaling_policy",
    }
    made = resources(module["resource"])
    for theirs, ours in kinds.items():
        asked = {
            snake_case(name).removesuffix("_alarm").removesuffix("_tracking"): body["Properties"]
            for name, body in template["Resources"].items()
            if body["Type"] == theirs
        }
        assert {f"{ours}.{name}" for name in asked} == {
            address for address in made if address.startswith(ours)
        }
        for name, properties in asked.items():
            for key in (
                "ComparisonOperator",
                "EvaluationPeriods",
                "DatapointsToAlarm",
                "Statistic",
                "Period",
            ):
                assert made[f"{ours}.{name}"].get(snake_case(key)) == properties.get(key), (name, key)
            chosen = [
                re.findall(r'"(.+?)"', text.replace('\\"', '"')) or [text]  # of a condition, its texts
                for text in texts_in(made[f"{ours}.{name}"], "expression")
            ]
            assert {text for texts in chosen for text in texts} == texts_in(properties, "Expression"), name


def test_what_goes_out_is_what_the_templates_lets_out(
    module: Mapping[str, Any], template: Mapping[str, Any]
) -> None:
    keys = ("ip_protocol", "from_port", "to_port", "cidr_ipv4", "cidr_ipv6", "description")
    theirs = ("IpProtocol", "FromPort", "ToPort", "CidrIp", "CidrIpv6", "Description")
    kind = "aws_vpc_security_group_egress_rule."
    found = {
        address: tuple(body.get(key) for key in keys)
        for address, body in resources(module["resource"]).items()
        if address.startswith(kind)
    }
    group = template["Resources"]["SecurityGroup"]["Properties"]
    assert sorted(map(str, found.values())) == sorted(
        str(tuple(rule.get(key) for key in theirs)) for rule in group["SecurityGroupEgress"]
    )
    assert "SecurityGroupIngress" not in group
    assert not any("ingress" in address for address in resources(module["resource"]))
    waits_for = resources(module["resource"])["aws_ecs_service.this"]["depends_on"]
    assert {f"${{{address}}}" for address in found} <= set(waits_for)  # else a task starts, and can't get out


def test_its_container_is_the_templates(module: Mapping[str, Any], template: Mapping[str, Any]) -> None:
    [container] = template["Resources"]["TaskDefinition"]["Properties"]["ContainerDefinitions"]
    [ours] = [block["container"] for block in module["locals"] if "container" in block]
    text = (MODULE / "service.tf").read_text()
    for variable in container["Environment"]:
        assert re.search(rf"\b{variable['Name']}\s+= ", text)
    assert ours["stopTimeout"] == container["StopTimeout"]
    assert ours["user"] == container["User"]
    assert ours["readonlyRootFilesystem"] is container["ReadonlyRootFilesystem"] is True
    assert ours["healthCheck"]["command"][-1] in json.dumps(container["HealthCheck"]["Command"])
    assert (
        ours["linuxParameters"]["capabilities"]["drop"]
        == container["LinuxParameters"]["Capabilities"]["Drop"]
    )
    assert ours["mountPoints"][0]["containerPath"] == container["MountPoints"][0]["ContainerPath"]


def test_checkov_has_nothing_to_say(deploy_venv: Path) -> None:
    argv = [
        str(deploy_venv / "bin/checkov"),
        "--framework",
        "terraform",
        "--skip-download",
        "--skip-path",
        "/tests/",
        "--output",
        "json",
    ]
    done = subprocess.run([*argv, "--directory", str(MODULE)], capture_output=True, text=True, check=False)
    results = json.loads(done.stdout)["results"]
    assert [(check["check_id"], check["resource"]) for check in results["failed_checks"]] == []
    skipped = {check["check_id"] for check in results["skipped_checks"]}
    assert skipped == {"CKV_AWS_338", "CKV2_AWS_57"}  # argued where they are
    passed = {check["resource"] for check in results["passed_checks"]}
    assert "module.executor.aws_ecs_service.this" in passed  # by way of an example


# --- by Terraform: where it and its provider can be had -----------------------------------------------------


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The module in a folder of its own, its provider there."""
    if shutil.which("terraform") is None:
        pytest.skip("no terraform on PATH")
    folder = tmp_path_factory.mktemp("terraform") / "module"
    shutil.copytree(MODULE, folder, ignore=shutil.ignore_patterns(".terraform*"))
    done = terraform(folder, "init", "-backend=false")
    if done.returncode != 0:
        pytest.skip(
            "no provider hashicorp/aws to be had; where it lies in a folder, TF_CLI_ARGS_init=-plugin-dir=FOLDER "
            f"says so:\n{done.stderr[-1000:]}"
        )
    yield folder
    shutil.rmtree(folder)  # the provider may be copied: half a gigabyte


def terraform(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if name.startswith("TF_")}
    if not Path(given.get("TF_CLI_CONFIG_FILE", os.devnull)).exists():
        given["TF_CLI_CONFIG_FILE"] = os.devnull
    env = {**given, "PATH": os.environ["PATH"], "HOME": str(folder), "CHECKPOINT_DISABLE": "1"}
    argv = ["terraform", f"-chdir={folder}", *arguments]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


def test_it_is_formatted() -> None:
    if shutil.which("terraform") is None:
        pytest.skip("no terraform on PATH")
    done = terraform(MODULE, "fmt", "-check", "-recursive", "-diff")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid_and_with_it_the_module(example: Path, initialised: Path) -> None:
    folder = initialised / example.relative_to(MODULE)
    assert terraform(folder, "init", "-backend=false").returncode == 0
    assert json.loads(terraform(folder, "validate", "-json").stdout)["diagnostics"] == []


@pytest.fixture(scope="module")
def states(initialised: Path) -> dict[str, dict[str, Any]]:
    """What `terraform test` made of each case, as resources' values by their addresses in the module; its own
    assertions hold."""
    done = terraform(initialised, "test", "-json", "-verbose")
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    faults = [message["diagnostic"] for message in messages if message["type"] == "diagnostic"]
    assert (done.returncode, [(fault["summary"], fault.get("detail")) for fault in faults]) == (0, [])
    return {
        message["@testrun"]: {
            resource["address"].removeprefix("module.executor."): resource["values"]
            for part in modules(message["test_state"]["root_module"])
            for resource in part["resources"]
        }
        for message in messages
        if message["type"] == "test_state"
    }


def modules(root: dict[str, Any]) -> list[dict[str, Any]]:
    return [root, *root.get("child_modules", [])]


@pytest.mark.parametrize("case", CASES)
def test_the_service_takes_the_environment_of_the_task(case: str, states: Mapping[str, Any]) -> None:
    [container] = json.loads(states[case]["aws_ecs_task_definition.this"]["container_definitions"])
    pairs = [(pair["name"], pair["value"]) for pair in container["environment"]]
    contents = {"DATAHUB_EXECUTOR_SECRETS": '{"ONE": "of many", "ANOTHER": 2}'}
    secrets = {secret["name"]: contents.get(secret["name"], "secret") for secret in container["secrets"]}
    env = dict(pairs)
    assert len(env) == len(pairs)
    assert not env.keys() & secrets.keys()
    assert unknown_variables({**env, **secrets}) == []
    settings = load_settings({**env, **secrets})
    assert settings.aws_region == ("us-west-2" if case.endswith("_elsewhere") else "eu-central-1")
    assert settings.drain_timeout < container["stopTimeout"]
    if case == "everything":
        assert (settings.pool_id, settings.max_workers, settings.task_timeout) == ("another", 8, 3600)
        assert settings.gms_token is not None
        assert settings.secrets is not None
        assert {"PASSWORD", "USERNAME", "OTHER"} < secrets.keys()
    assert container["command"] == ["datahub-executor", "run"]


def test_it_reckons_with_the_templates_metrics(
    states: Mapping[str, Any], template: Mapping[str, Any]
) -> None:
    made, asked = states["everything"], template["Resources"]
    configuration = asked["BacklogTracking"]["Properties"]["TargetTrackingScalingPolicyConfiguration"]
    backlog = made["aws_appautoscaling_policy.backlog[0]"]
    [tracking] = backlog["target_tracking_scaling_policy_configuration"]
    [tracked] = tracking["customized_metric_specification"]
    pairs = [(configuration["CustomizedMetricSpecification"]["Metrics"], tracked["metrics"])]
    for name in ("first_task", "oldest_message", "no_task"):
        query = made[f"aws_cloudwatch_metric_alarm.{name}[0]"]["metric_query"]
        entries = asked[f"{name.title().replace('_', '')}Alarm"]["Properties"]["Metrics"]
        # Of a choice, what a minimum of 0 chooses, which this case has.
        pairs.append(([entry["Fn::If"][1] if "Fn::If" in entry else entry for entry in entries], query))
    keys = ("Expression", "Namespace", "MetricName", "Stat")
    for theirs, ours in pairs:
        found = {query["id"]: texts_in(query, *map(snake_case, keys)) for query in ours}
        assert found == {query["Id"]: texts_in(query, *keys) for query in theirs}
    theirs, ours = pairs[0]
    dimensions = {query["id"]: texts_in(query, "name") for query in ours}
    assert dimensions == {query["Id"]: texts_in(query, "Name") for query in theirs}


def test_the_token_is_not_in_the_state(states: Mapping[str, Any]) -> None:
    version = states["everything"]["aws_secretsmanager_secret_version.token[0]"]
    assert version["secret_string_wo_version"] > 0
    assert "t0ken" not in json.dumps(states["everything"])


@pytest.mark.parametrize("case", CASES)
def test_policies_name_what_they_are_for(case: str, states: Mapping[str, Any]) -> None:
    statements = [
        statement
        for address, values in states[case].items()
        if address.startswith("aws_iam_role_policy.")
        for statement in json.loads(values["policy"])["Statement"]
    ]
    for statement in statements:
        for resource in listed(statement["Resource"]):
            assert resource.startswith("arn:aws:") or statement["Action"] == ["ecr:GetAuthorizationToken"]
            assert not resource.endswith(":*") or "logs:PutLogEvents" in statement["Action"]
        assert not any("*" in action for action in listed(statement["Action"]))
