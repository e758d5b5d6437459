"""Moto's AWS as a server, and stacks of deploy/cloudformation/executor.yaml on it."""

import json
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import httpx
import yaml

from tests.conftest import ROOT
from tests.servers.process import free_port, server_process

TEMPLATE = ROOT / "deploy" / "cloudformation" / "executor.yaml"
ACCOUNT = "123456789012"  # that of everything in moto, unless another one is asked for
REGION = "eu-central-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class _Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms (`!Ref x`) as its long ones (`{"Ref": "x"}`)."""


def _function(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    match node:
        case yaml.ScalarNode():
            value = loader.construct_scalar(node)
        case yaml.SequenceNode():
            value = loader.construct_sequence(node, deep=True)
        case _:
            raise TypeError(f"!{suffix} {node}")
    if suffix == "GetAtt":
        value = value.split(".")
    return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _function)


def read_template() -> dict[str, Any]:
    """The template, its functions in their long forms."""
    template: dict[str, Any] = yaml.load(TEMPLATE.read_text(), _Loader)
    return template


@dataclass(frozen=True, eq=False)
class Stack:
    """What a stack brought about, each as its service's API tells it."""

    cloud: "Cloud"
    name: str
    resources: Mapping[str, str]  # physical ids by the template's names
    outputs: Mapping[str, str]
    calls: Sequence[Mapping[str, Any]]

    def task_definition(self) -> dict[str, Any]:
        """What ECS would run."""
        ecs = self.cloud.client("ecs")
        arn = self.resources["TaskDefinition"]
        found: dict[str, Any] = ecs.describe_task_definition(taskDefinition=arn)["taskDefinition"]
        return found

    def asked(self, operation: str) -> list[dict[str, Any]]:
        """What the stack asked of an API, call by call."""
        return [call["input"] for call in self.calls if call["operation"] == operation]

    def container(self) -> dict[str, Any]:
        """The task definition's only container."""
        [container] = self.task_definition()["containerDefinitions"]
        found: dict[str, Any] = container
        return found

    def service(self) -> dict[str, Any]:
        """The ECS service as it was asked for."""
        [service] = self.asked("CreateService")
        return service

    def allowed(self, role: str) -> dict[str, set[str]]:
        """The resources by each action that a role may take."""
        actions: dict[str, set[str]] = {}
        for policy in self.asked("PutRolePolicy"):
            if policy["RoleName"] == self.resources[role]:
                for statement in json.loads(policy["PolicyDocument"])["Statement"]:
                    assert statement["Effect"] == "Allow"
                    for action in _listed(statement["Action"]):
                        actions.setdefault(action, set()).update(_listed(statement["Resource"]))
        return actions

    def command(self) -> list[str]:
        """What the container's init starts."""
        container = self.container()
        entry = container["entryPoint"]
        return [*entry[entry.index("--") + 1 :], *container["command"]]

    def environment(self) -> dict[str, str]:
        """The container's variables as ECS's agent sets them: given ones, and secrets by their ARN."""
        container = self.container()
        given = {pair["name"]: pair["value"] for pair in container["environment"]}
        secrets = {
            secret["name"]: self.cloud.secret_of(secret["valueFrom"]) for secret in container["secrets"]
        }
        assert len(secrets) == len(container["secrets"])  # ECS refuses a name that is there twice
        assert not given.keys() & secrets.keys()
        return given | secrets

    def queue_attributes(self, url: str) -> dict[str, str]:
        """What a queue is and holds."""
        sqs = self.cloud.client("sqs")
        found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        return found

    def alarms(self) -> dict[str, dict[str, Any]]:
        """The alarms by the template's names."""
        names = {physical: name for name, physical in self.resources.items()}
        return {names[alarm["AlarmName"]]: alarm for alarm in self.asked("PutMetricAlarm")}

    def dashboard(self) -> dict[str, Any]:
        """What the dashboard shows."""
        [dashboard] = self.asked("PutDashboard")
        found: dict[str, Any] = json.loads(dashboard["DashboardBody"])
        return found


@dataclass(frozen=True)
class Cloud:
    """A running moto."""

    endpoint: str
    calls: Path  # what CloudFormation asked of other services

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to reach it, beside what the task definition says."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self, service: str, region: str = REGION) -> Any:
        """A client of one of its services."""
        return _client(self.endpoint, service, region)

    def secret(self, text: str) -> str:
        """The ARN of a secret that somebody made before."""
        name = f"test/{secrets.token_hex(4)}"
        arn: str = self.client("secretsmanager").create_secret(Name=name, SecretString=text)["ARN"]
        return arn

    def secret_of(self, value_from: str) -> str:
        """The text that ECS finds: a secret's own, or that of a key; `ARN[:KEY:STAGE:VERSION]`."""
        parts = value_from.split(":")
        arn, (key, stage, version) = whole_secret(value_from), parts[7:] or ("", "", "")
        given = {"SecretId": arn, "VersionStage": stage, "VersionId": version}
        manager = self.client("secretsmanager", parts[3])
        found = manager.get_secret_value(**{name: value for name, value in given.items() if value})
        text: str = json.loads(found["SecretString"])[key] if key else found["SecretString"]
        return text

    def queue(self, region: str = REGION) -> str:
        """The ARN of a queue that somebody made before."""
        sqs = self.client("sqs", region)
        url = sqs.create_queue(QueueName=f"test-{secrets.token_hex(4)}")["QueueUrl"]
        got = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        arn: str = got["Attributes"]["QueueArn"]
        return arn

    def network(self) -> dict[str, str]:
        """The parameters that every stack needs, for a network of its own."""
        ec2 = self.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        blocks = ("10.0.1.0/24", "10.0.2.0/24")
        subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=block)["Subnet"]["SubnetId"] for block in blocks]
        return {"VPCID": vpc, "SubnetIDs": ",".join(subnets)}

    def stack(self, **parameters: str) -> Stack:
        """Make a stack with these parameters over the ones that every stack needs."""
        cloudformation = self.client("cloudformation")
        name = f"executor-{secrets.token_hex(4)}"
        image = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/data/executor:1.0.0"
        given = {
            **self.network(),
            "DataHubBaseUrl": "https://datahub.example.com",
            "Image": image,
            **parameters,
        }
        before = len(self.calls.read_text().splitlines())
        cloudformation.create_stack(
            StackName=name,
            TemplateBody=json.dumps(read_template()),  # moto misreads `!Condition`
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
            Capabilities=["CAPABILITY_IAM"],
        )
        [stack] = cloudformation.describe_stacks(StackName=name)["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        listed = cloudformation.list_stack_resources(StackName=name)["StackResourceSummaries"]
        made = [
            entry for entry in listed if entry["LogicalResourceId"]
        ]  # the others are left out by conditions
        resources = {entry["LogicalResourceId"]: entry["PhysicalResourceId"] for entry in made}
        outputs = {entry["OutputKey"]: entry["OutputValue"] for entry in stack.get("Outputs", ())}
        calls = [json.loads(line) for line in self.calls.read_text().splitlines()[before:]]
        return Stack(self, name, resources, outputs, calls)


def whole_secret(value_from: str) -> str:
    """The ARN that IAM knows the secret by, without the key, stage and version that ECS takes after it."""
    return ":".join(value_from.split(":")[:7])


@cache
def _client(endpoint: str, service: str, region: str) -> Any:
    return botocore.session.get_session().create_client(
        service,
        region_name=region,
        endpoint_url=endpoint,
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )


def _listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


@contextmanager
def run_cloud(venv: Path, folder: Path) -> Iterator[Cloud]:
    """Run moto from its venv on a free port.

    Raises:
        ServerUnavailableError: it does not start.
    """
    port = free_port()
    cloud = Cloud(f"http://127.0.0.1:{port}", folder / "calls")
    cloud.calls.touch()

    def ready() -> bool:
        try:
            return httpx.get(f"{cloud.endpoint}/moto-api/", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    program = Path(__file__).with_name("cloudformation_server.py")
    argv = [str(venv / "bin" / "python"), str(program), str(port), str(cloud.calls)]
    env = {"PATH": str(venv / "bin"), "HOME": str(folder)}
    with server_process(argv, ready=ready, log=folder / "moto.log", env=env, stop_signal=signal.SIGKILL):
        yield cloud
