"""Moto with more of CloudFormation, as a program: `python cloudformation_server.py PORT CALLS`.

It runs in the venv of requirements/deploy.txt. Moto's CloudFormation works out parameters, conditions and
functions, and makes queues and the security group. Of the types in `TYPES` it has none (secrets, alarms, metric
filters, queue policies, Application Auto Scaling), or leaves out most of what they are given (ECS, roles, logs,
dashboards). They are made here as CloudFormation makes them: by the call of the service's own API, to the same
server. Botocore checks each call against AWS's model of it: a name or a type that the API does not know fails the
stack. What a service was asked for goes to the file CALLS, a line of JSON each: moto forgets much of it, such as a
service's capacity providers.
"""

import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, Shape, StructureShape
from moto.cloudformation import parsing
from moto.core.common_models import CloudFormationModel
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

Call = Callable[..., Mapping[str, Any]]

_NUMBERS: Mapping[str, Callable[[str], object]] = {
    "integer": int,
    "long": int,
    "double": float,
    "float": float,
    "boolean": lambda text: {"true": True, "false": False}[text],
}


def as_input(value: Any, shape: Shape) -> Any:
    """A property as the API takes it: names as it spells them, numbers as numbers, which parameters are not."""
    match shape:
        case StructureShape():
            spelled = {name.lower(): name for name in shape.members}
            names = {name: spelled.get(name.lower()) for name in value}
            unknown = [name for name, known in names.items() if known is None]
            if unknown:
                raise ValueError(f"{shape.name} has no {', '.join(unknown)}")
            return {known: as_input(value[name], shape.members[known]) for name, known in names.items()}
        case ListShape():
            return [as_input(item, shape.member) for item in value]
        case MapShape():
            return {key: as_input(item, shape.value) for key, item in value.items()}
    if isinstance(value, str):
        return _NUMBERS.get(shape.type_name, str)(value)
    return str(value) if shape.type_name == "string" else value


@cache
def api(port: int, calls: Path, region: str) -> Call:
    """What calls an operation of a service, by both names, with a resource's properties."""
    session = botocore.session.get_session()

    @cache
    def client_of(service: str) -> Any:
        return session.create_client(
            service,
            region_name=region,
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def call(service: str, operation: str, properties: Mapping[str, Any]) -> Mapping[str, Any]:
        client = client_of(service)
        shape = client.meta.service_model.operation_model(operation).input_shape
        method = client.meta.method_to_api_mapping
        [name] = [python for python, aws in method.items() if aws == operation]
        given = as_input(properties, shape)
        answer: Mapping[str, Any] = getattr(client, name)(**given)
        with calls.open("a") as file:
            file.write(json.dumps({"operation": operation, "input": given}) + "\n")
        return answer

    return call


Made = dict[str, Any]  # what moto looks for in a resource


def made(physical_id: str, **attributes: str) -> Made:
    """A resource: what `Ref` gives, and what `GetAtt` does."""
    return {"physical_resource_id": physical_id, "attributes": attributes}


Maker = Callable[[Call, str, dict[str, Any]], Made]


def secret(call: Call, name: str, given: dict[str, Any]) -> Made:
    arn = call("secretsmanager", "CreateSecret", {"Name": name, **given})["ARN"]
    return made(arn, Id=arn)


def queue_policy(call: Call, name: str, given: dict[str, Any]) -> Made:
    for url in given["Queues"]:
        attributes = {"Policy": json.dumps(given["PolicyDocument"])}
        call("sqs", "SetQueueAttributes", {"QueueUrl": url, "Attributes": attributes})
    return made(name)


def role(call: Call, name: str, given: dict[str, Any]) -> Made:
    policies, managed = given.pop("Policies"), given.pop("ManagedPolicyArns", [])
    given["AssumeRolePolicyDocument"] = json.dumps(given["AssumeRolePolicyDocument"])
    arn = call("iam", "CreateRole", {"RoleName": name, **given})["Role"]["Arn"]
    for policy in policies:
        policy["PolicyDocument"] = json.dumps(policy["PolicyDocument"])
        call("iam", "PutRolePolicy", {"RoleName": name, **policy})
    for policy in managed:
        call("iam", "AttachRolePolicy", {"RoleName": name, "PolicyArn": policy})
    return made(name, Arn=arn)


def log_group(call: Call, name: str, given: dict[str, Any]) -> Made:
    retention = {"retentionInDays": given.pop("RetentionInDays"), "logGroupName": name}
    call("logs", "CreateLogGroup", {"logGroupName": name, **given})
    call("logs", "PutRetentionPolicy", retention)
    [group] = call("logs", "DescribeLogGroups", {"logGroupNamePrefix": name})["logGroups"]
    return made(name, Arn=group["arn"])


def cluster(call: Call, name: str, given: dict[str, Any]) -> Made:
    given["settings"] = given.pop("ClusterSettings")
    arn = call("ecs", "CreateCluster", {"ClusterName": name, **given})["cluster"]["clusterArn"]
    return made(name, Arn=arn)


def task_definition(call: Call, name: str, given: dict[str, Any]) -> Made:
    return made(call("ecs", "RegisterTaskDefinition", given)["taskDefinition"]["taskDefinitionArn"])


def service(call: Call, name: str, given: dict[str, Any]) -> Made:
    del given["ForceNewDeployment"]  # of updates
    arn = call("ecs", "CreateService", {"ServiceName": name, "DesiredCount": 1, **given})["service"][
        "serviceArn"
    ]
    return made(arn, Name=name)


def scalable_target(call: Call, name: str, given: dict[str, Any]) -> Made:
    call("application-autoscaling", "RegisterScalableTarget", given)
    return made("|".join(given[part] for part in ("ResourceId", "ScalableDimension", "ServiceNamespace")))


def scaling_policy(call: Call, name: str, given: dict[str, Any]) -> Made:
    parts = given.pop("ScalingTargetId").split("|")
    given |= dict(zip(("ResourceId", "ScalableDimension", "ServiceNamespace"), parts, strict=True))
    return made(call("application-autoscaling", "PutScalingPolicy", given)["PolicyARN"])


def metric_filter(call: Call, name: str, given: dict[str, Any]) -> Made:
    call("logs", "PutMetricFilter", {"FilterName": name, **given})
    return made(name)


def alarm(call: Call, name: str, given: dict[str, Any]) -> Made:
    call("cloudwatch", "PutMetricAlarm", {"AlarmName": name, **given})
    return made(name)


def dashboard(call: Call, name: str, given: dict[str, Any]) -> Made:
    call("cloudwatch", "PutDashboard", given)
    return made(given["DashboardName"])


TYPES: Mapping[str, Maker] = {
    "AWS::SecretsManager::Secret": secret,
    "AWS::SQS::QueuePolicy": queue_policy,
    "AWS::IAM::Role": role,
    "AWS::Logs::LogGroup": log_group,
    "AWS::ECS::Cluster": cluster,
    "AWS::ECS::TaskDefinition": task_definition,
    "AWS::ECS::Service": service,
    "AWS::ApplicationAutoScaling::ScalableTarget": scalable_target,
    "AWS::ApplicationAutoScaling::ScalingPolicy": scaling_policy,
    "AWS::Logs::MetricFilter": metric_filter,
    "AWS::CloudWatch::Alarm": alarm,
    "AWS::CloudWatch::Dashboard": dashboard,
}


def teach(kind: str, make: Maker, port: int, calls: Path) -> type:
    """Let moto's CloudFormation know a type; it finds the classes that derive from its own."""

    def create(
        cls: Any, /, name: str, resource: dict[str, Any], account: str, region: str, **_: object
    ) -> CloudFormationModel:
        found: CloudFormationModel = cls()
        vars(found).update(make(api(port, calls, region), name, dict(resource["Properties"])), type=kind)
        return found

    body = {
        "cloudformation_type": staticmethod(lambda: kind),
        "cloudformation_name_type": staticmethod(lambda: ""),
        "has_cfn_attr": classmethod(lambda cls, attribute: True),
        "get_cfn_attribute": lambda self, attribute: self.attributes[attribute],
        "create_from_cloudformation_json": classmethod(create),
    }
    return type(kind.replace(":", ""), (CloudFormationModel,), body)


def without_no_value(clean: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """AWS::NoValue takes an item out of a list; moto would leave a None there."""

    def cleaned(value: Any, resources: Any) -> Any:
        found = clean(value, resources)
        return [item for item in found if item is not None] if isinstance(value, list) else found

    return cleaned


def main(port: int, calls: Path) -> None:
    """Serve until killed."""
    vars(parsing)["clean_json"] = without_no_value(parsing.clean_json)
    taught = [teach(kind, make, port, calls) for kind, make in TYPES.items()]
    assert all(parsing.get_model_map()[kind] is known for kind, known in zip(TYPES, taught, strict=True))
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=MotoRequestHandler)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
