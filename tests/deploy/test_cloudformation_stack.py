"""Stacks of deploy/cloudformation/executor.yaml in moto, and the executor run as their task definition says."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name

from benchmarks.scaling.metric_math import Point
from benchmarks.scaling.metrics import BACKLOG_PER_TASK, WAITS_FOR_A_TASK
from benchmarks.scaling.policy import COOLDOWN, FIRST_OF, FIRST_POINTS, OUT_POINTS, Settings
from executor.queue.name import QueueName
from executor.settings import load_settings
from tests.conftest import ROOT
from tests.deploy.alarms import Series, rings, series
from tests.deploy.cloud import ACCOUNT, REGION, Cloud, Stack, whole_secret

KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/0f9de17a-6465-404e-8b1b-2356dc13c2f8"
BOUNDARY = f"arn:aws:iam::{ACCOUNT}:policy/boundary"
SOURCE_POLICIES = [f"arn:aws:iam::{ACCOUNT}:policy/{name}" for name in ("lake", "warehouse")]
TOPIC = f"arn:aws:sns:{REGION}:{ACCOUNT}:alarms"
ELSEWHERE = "210987654321"
READS_ECR = {"ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"}
WRITES_LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}

pytestmark = pytest.mark.xdist_group("cloud")  # one moto for all stacks


@pytest.fixture(scope="module")
def plain(cloud: Cloud) -> Stack:
    """A stack with nothing beyond what every stack needs."""
    return cloud.stack()


@pytest.fixture(scope="module")
def full(cloud: Cloud) -> Stack:
    """A stack that makes its queue, with all that can be asked of it."""
    statement = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    for arn in SOURCE_POLICIES:
        cloud.client("iam").create_policy(PolicyName=arn.rpartition("/")[2], PolicyDocument=document)
    return cloud.stack(
        AssignPublicIp="ENABLED",
        DataHubAccessToken="secret-token",
        ExecutorPoolId="warehouse",
        QueueSenderAccount=ELSEWHERE,
        QueueMaxReceiveCount="20",
        CpuArchitecture="ARM64",
        TaskCpu="4096",
        TaskMemory="16384",
        TaskEphemeralStorageSizeInGiB="100",
        DataHubIngestionsMaxWorkers="8",
        OptionalEnvVars=",".join(f"V{n}=value {n}" for n in range(60)),
        OptionalSecrets=",".join(
            f"S{n}={cloud.secret(json.dumps({'key': str(n)}))}:key::" for n in range(10)
        ),
        OptionalSecretsArn=cloud.secret(json.dumps({f"J{n}": str(n) for n in range(60)})),
        MinTasks="0",
        MaxTasks="12",
        BacklogPerTask="6",
        ScaleInCooldown="900",
        SpotPercent="75",
        SourcePolicyArns=",".join(SOURCE_POLICIES),
        PermissionsBoundaryArn=BOUNDARY,
        KmsKeyArn=KEY,
        LogRetentionInDays="90",
        AlarmTopicArn=TOPIC,
    )


@pytest.fixture(scope="module")
def elsewhere(cloud: Cloud) -> Stack:
    """A stack whose queue is in another account and region, in a cluster that was there before."""
    cloud.client("ecs").create_cluster(clusterName="data")
    return cloud.stack(
        AwsCommandQueueArn=f"arn:aws:sqs:us-west-2:{ELSEWHERE}:datahub-ingestion.fifo",
        QueueKmsKeyArn=f"arn:aws:kms:us-west-2:{ELSEWHERE}:key/1234",
        ExistingDataHubAccessTokenSecretArn=f"{cloud.secret(json.dumps({'token': 'their-token'}))}:token::",
        OptionalSecretsArn=f"{cloud.secret(json.dumps({'recipes': json.dumps({'A': 'a'})}))}:recipes::",
        SecretsKmsKeyArn=KEY,
        ExistingClusterName="data",
        MinTasks="2",
        Image="ghcr.io/example/datahub-remote-executor:1.0.0",
    )


@pytest.fixture(scope="module")
def local(cloud: Cloud) -> Stack:
    """A stack whose queue was there before, in its own account and region."""
    return cloud.stack(AwsCommandQueueArn=cloud.queue())


# --- permissions ----------------------------------------------------------------------------------------------


def called_operations() -> set[str]:
    """The SQS operations that the code calls: they stand there as methods or as texts, batches among them."""
    model = botocore.session.get_session().get_service_model("sqs")
    names = {xform_name(operation): operation for operation in model.operation_names}
    found, services = set(), set()
    for path in (ROOT / "executor").rglob("*.py"):
        if "local" in path.relative_to(ROOT).parts:  # the demo's servers
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(attr=word) | ast.Constant(value=str() as word) if word in names:
                    found.add(names[word].removesuffix("Batch"))
                case ast.Call(
                    func=ast.Attribute(attr="create_client"), args=[ast.Constant(value=service), *_]
                ):
                    services.add(service)
    assert services == {"sqs"}
    return found


def test_the_task_may_do_what_its_code_does_and_nothing_else(
    plain: Stack, full: Stack, elsewhere: Stack
) -> None:
    operations = called_operations()
    assert {"ReceiveMessage", "SendMessage"} <= operations
    for stack in (plain, full, elsewhere):
        queue = stack.outputs["QueueArn"]
        assert stack.environment()["DATAHUB_EXECUTOR_QUEUE"] == queue
        # A queue that is named by its ARN is not looked up by its name.
        assert QueueName.parse(queue).account is not None
        expected = {f"sqs:{operation}": {queue} for operation in operations - {"GetQueueUrl"}}
        task = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/{stack.outputs['ClusterName']}/*"
        expected["ecs:UpdateTaskProtection"] = {task}  # what a PUT to the agent comes to, see the run below
        key = {plain: set(), full: {KEY}, elsewhere: {f"arn:aws:kms:us-west-2:{ELSEWHERE}:key/1234"}}[stack]
        if key:  # SQS's *Key management*: consumers decrypt, producers need a data key, too
            expected |= {"kms:Decrypt": key, "kms:GenerateDataKey": key}
        assert stack.allowed("TaskRole") == expected


def test_ecs_may_fetch_the_image_and_the_secrets_and_write_the_log(
    plain: Stack, full: Stack, elsewhere: Stack
) -> None:
    repository = {f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/data/executor"}
    image = {"ecr:GetAuthorizationToken": {"*"}, **dict.fromkeys(READS_ECR, repository)}
    for stack in (plain, full, elsewhere):
        group = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{stack.outputs['LogGroupName']}:*"
        expected = {action: {group} for action in WRITES_LOGS}
        secrets = {whole_secret(secret["valueFrom"]) for secret in stack.container()["secrets"]}
        if stack is not elsewhere:
            expected |= image
        if stack is not plain:
            expected |= {"secretsmanager:GetSecretValue": secrets, "kms:Decrypt": {KEY}}
        assert stack.allowed("ExecutionRole") == expected


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("public.ecr.aws/example/executor:1", None),
        (
            f"{ELSEWHERE}.dkr.ecr.us-west-2.amazonaws.com/a/b/executor:1.0@sha256:{'0' * 64}",
            f"us-west-2:{ELSEWHERE}:repository/a/b/executor",
        ),
        (
            f"{ELSEWHERE}.dkr.ecr.cn-north-1.amazonaws.com.cn/a/executor@sha256:{'0' * 64}",
            f"cn-north-1:{ELSEWHERE}:repository/a/executor",
        ),
        (
            f"{ELSEWHERE}.dkr.ecr-fips.us-east-1.amazonaws.com/ecr/executor:1.0",
            f"us-east-1:{ELSEWHERE}:repository/ecr/executor",
        ),
        (
            f"{ELSEWHERE}.dkr-ecr.us-west-2.on.aws/a/executor:1.0",
            f"us-west-2:{ELSEWHERE}:repository/a/executor",
        ),
        ("ghcr.io/ecr/executor:1", None),
    ],
)
def test_the_image_may_be_fetched_from_its_own_repository_alone(
    cloud: Cloud, image: str, repository: str | None
) -> None:
    allowed = cloud.stack(Image=image).allowed("ExecutionRole")
    if repository is None:
        assert set(allowed) == WRITES_LOGS
    else:
        assert [allowed[action] for action in READS_ECR] == [{f"arn:aws:ecr:{repository}"}] * len(READS_ECR)


def test_roles_are_for_the_tasks_of_this_account_within_its_boundary(plain: Stack, full: Stack) -> None:
    for stack, boundary in ((plain, None), (full, BOUNDARY)):
        roles = stack.asked("CreateRole")
        assert len(roles) == 2
        for role in roles:
            assert role.get("PermissionsBoundary") == boundary
            [trust] = json.loads(role["AssumeRolePolicyDocument"])["Statement"]
            assert trust["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
            assert trust["Condition"] == {
                "StringEquals": {"aws:SourceAccount": ACCOUNT},
                "ArnLike": {"aws:SourceArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:*"},
            }
        task = stack.task_definition()
        arns = (stack.outputs["TaskRoleArn"], stack.outputs["ExecutionRoleArn"])
        assert (task["taskRoleArn"], task["executionRoleArn"]) == arns


def test_sources_of_aws_get_the_policies_that_are_named(plain: Stack, full: Stack) -> None:
    assert plain.asked("AttachRolePolicy") == []
    attached = [(role["RoleName"], role["PolicyArn"]) for role in full.asked("AttachRolePolicy")]
    assert attached == [(full.resources["TaskRole"], policy) for policy in SOURCE_POLICIES]


# --- queue, task, service -------------------------------------------------------------------------------------


def test_a_queue_is_made_with_a_place_for_what_nobody_can_work_on(plain: Stack, full: Stack) -> None:
    for stack, receives in ((plain, 10), (full, 20)):
        queue = stack.queue_attributes(stack.outputs["QueueUrl"])
        assert queue["QueueArn"] == stack.outputs["QueueArn"]
        dead = {"deadLetterTargetArn": stack.outputs["DeadLetterQueueArn"], "maxReceiveCount": receives}
        assert json.loads(queue["RedrivePolicy"]) == dead
        for url in (stack.outputs["QueueUrl"], stack.outputs["DeadLetterQueueUrl"]):
            found = stack.queue_attributes(url)
            assert found["MessageRetentionPeriod"] == "1209600"
            encryption = {"KmsMasterKeyId": KEY} if stack is full else {"SqsManagedSseEnabled": "true"}
            assert encryption.items() <= found.items()


def test_another_account_may_send_and_nothing_else(plain: Stack, full: Stack) -> None:
    assert "Policy" not in plain.queue_attributes(plain.outputs["QueueUrl"])
    [statement] = json.loads(full.queue_attributes(full.outputs["QueueUrl"])["Policy"])["Statement"]
    assert statement["Principal"] == {"AWS": f"arn:aws:iam::{ELSEWHERE}:root"}
    assert (statement["Action"], statement["Resource"]) == ("sqs:SendMessage", full.outputs["QueueArn"])


def test_no_queue_is_made_beside_one_that_is_there(elsewhere: Stack, local: Stack) -> None:
    for stack in (elsewhere, local):
        made = {"Queue", "DeadLetterQueue", "QueuePolicy", "DeadLettersAlarm"} & set(stack.resources)
        assert not made
        assert not {"QueueUrl", "DeadLetterQueueUrl", "DeadLetterQueueArn"} & set(stack.outputs)


def test_a_task_is_of_the_size_that_was_asked_for(plain: Stack, full: Stack) -> None:
    expected = {plain: ("2048", "8192", 50, "X86_64"), full: ("4096", "16384", 100, "ARM64")}
    for stack, (cpu, memory, disk, architecture) in expected.items():
        task = stack.task_definition()
        assert (task["cpu"], task["memory"]) == (cpu, memory)
        assert task["ephemeralStorage"] == {"sizeInGiB": disk}
        assert task["runtimePlatform"]["cpuArchitecture"] == architecture
        assert task["requiresCompatibilities"] == ["FARGATE"]


def test_lists_of_any_length_reach_the_executor(full: Stack, tmp_path: Path) -> None:
    """What the command's last word would find in its environment."""
    argv, env = full.command(), full.environment()
    assert argv[-2:] == ["datahub-executor", "run"]
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    path = {"PATH": os.environ["PATH"]}
    done = subprocess.run([*argv[:-2], *show], env={**path, **env}, capture_output=True, check=True)
    seen = json.loads(done.stdout)
    assert {f"V{n}": f"value {n}" for n in range(60)}.items() <= seen.items()
    assert {f"S{n}": str(n) for n in range(10)}.items() <= seen.items()
    settings = load_settings(seen)
    assert settings.secrets is not None
    assert json.loads(settings.secrets.get_secret_value()) == {f"J{n}": str(n) for n in range(60)}
    assert settings.gms_token is not None
    assert settings.gms_token.get_secret_value() == "secret-token"
    assert (settings.pool_id, settings.max_workers) == ("warehouse", 8)


def test_tokens_and_secrets_stand_in_no_task_definition(full: Stack, elsewhere: Stack) -> None:
    for stack in (full, elsewhere):
        assert "-token" not in json.dumps(stack.container()["environment"])
        assert "-token" not in json.dumps(stack.container()["command"])
        assert stack.environment()["DATAHUB_GMS_TOKEN"] in {"secret-token", "their-token"}
    assert elsewhere.environment()["DATAHUB_EXECUTOR_SECRETS"] == json.dumps({"A": "a"})


def test_without_a_token_there_is_no_secret_at_all(plain: Stack) -> None:
    assert plain.container()["secrets"] == []
    assert plain.command() == ["env", "datahub-executor", "run"]
    assert "TokenSecret" not in plain.resources


@pytest.mark.parametrize(
    ("fixture", "strategy", "public"),
    [
        ("plain", [("FARGATE", 1, 1), ("FARGATE_SPOT", 0, 0)], "DISABLED"),
        ("full", [("FARGATE", 1, 1), ("FARGATE_SPOT", 0, 3)], "ENABLED"),
    ],
)
def test_the_service_is_where_and_on_what_was_asked_for(
    request: pytest.FixtureRequest, fixture: str, strategy: Sequence[tuple[str, int, int]], public: str
) -> None:
    stack: Stack = request.getfixturevalue(fixture)
    service = stack.service()
    given = [
        (part["capacityProvider"], part.get("base", 0), part["weight"])
        for part in service["capacityProviderStrategy"]
    ]
    assert given == list(strategy)
    network = service["networkConfiguration"]["awsvpcConfiguration"]
    assert network["assignPublicIp"] == public
    assert len(network["subnets"]) == 2
    assert network["securityGroups"] == [stack.outputs["SecurityGroupId"]]
    assert service["deploymentConfiguration"]["deploymentCircuitBreaker"] == {
        "enable": True,
        "rollback": True,
    }
    [group] = stack.cloud.client("ec2").describe_security_groups(GroupIds=network["securityGroups"])[
        "SecurityGroups"
    ]
    assert group["IpPermissions"] == []


def test_a_cluster_is_made_that_counts_its_tasks_or_taken(plain: Stack, elsewhere: Stack) -> None:
    [cluster] = plain.asked("CreateCluster")
    assert cluster["capacityProviders"] == ["FARGATE", "FARGATE_SPOT"]
    assert cluster["settings"] == [{"name": "containerInsights", "value": "enhanced"}]
    assert elsewhere.asked("CreateCluster") == []
    assert elsewhere.service()["cluster"] == elsewhere.outputs["ClusterName"] == "data"


def test_the_log_is_kept_as_long_as_asked_for(plain: Stack, full: Stack) -> None:
    for stack, days, key in ((plain, 30, None), (full, 90, KEY)):
        [group] = stack.asked("CreateLogGroup")
        assert group.get("kmsKeyId") == key
        assert [kept["retentionInDays"] for kept in stack.asked("PutRetentionPolicy")] == [days]
        options = stack.container()["logConfiguration"]["options"]
        assert options["awslogs-group"] == stack.outputs["LogGroupName"]
        assert options["mode"] == "non-blocking"


# --- scaling --------------------------------------------------------------------------------------------------


LATE = None  # a point that has not come yet, or never will


def watched(stack: Stack, alarm: str) -> dict[str, tuple[str, str, int]]:
    """The metrics of an alarm's expression by their ids: name, statistic, period in seconds."""
    found = [query for query in stack.alarms()[alarm]["Metrics"] if not query["ReturnData"]]
    stats = {query["Id"]: query["MetricStat"] for query in found}
    return {
        name: (stat["Metric"]["MetricName"], stat["Stat"], stat["Period"]) for name, stat in stats.items()
    }


def test_tasks_follow_the_requests_per_task(plain: Stack, full: Stack, local: Stack) -> None:
    for stack, target, cooldown in ((plain, 4, 300), (full, 6, 900), (local, 4, 300)):
        policy = stack.asked("PutScalingPolicy")[0]
        tracking = policy["TargetTrackingScalingPolicyConfiguration"]
        assert (tracking["TargetValue"], tracking["ScaleInCooldown"]) == (target, cooldown)
        *metrics, result = tracking["CustomizedMetricSpecification"]["Metrics"]
        of = {metric["Id"]: metric["MetricStat"]["Metric"] for metric in metrics}
        queue = [{"Name": "QueueName", "Value": QueueName.parse(stack.outputs["QueueArn"]).name}]
        assert of["visible"]["Dimensions"] == of["hidden"]["Dimensions"] == queue
        assert of["running"]["Dimensions"] == [
            {"Name": "ClusterName", "Value": stack.outputs["ClusterName"]},
            {"Name": "ServiceName", "Value": stack.outputs["ServiceName"]},
        ]
        assert [metric["ReturnData"] for metric in (*metrics, result)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("visible", "hidden", "running", "backlog"),
    [
        ([12], [8], [5], [4]),
        ([0], [8], [2], [4]),
        ([12, LATE], [8, LATE], [5, LATE], [4, None]),
        ([12, 12], [8, 8], [5, LATE], [4, None]),  # the newest is no reason to think that one task has it all
        ([12, LATE], [8, LATE], [5, 5], [4, None]),  # ... nor to think that nothing waits
        ([3], [0], [LATE], [None]),  # no task runs
        ([3], [0], [0], [None]),
        ([LATE], [LATE], [2], [None]),  # nobody used the queue for six hours: SQS sends no points
        ([LATE], [LATE], [LATE], [None]),
    ],
)
def test_no_task_has_no_backlog_to_scale_by(
    plain: Stack, visible: Series, hidden: Series, running: Series, backlog: Sequence[Point]
) -> None:
    tracking = plain.asked("PutScalingPolicy")[0]["TargetTrackingScalingPolicyConfiguration"]
    expression = tracking["CustomizedMetricSpecification"]["Metrics"][-1]["Expression"]
    assert series(expression, visible=visible, hidden=hidden, running=running) == backlog


QUEUE_LATE = {"visible": [40, 40, 40, LATE, LATE], "hidden": [0, 0, 0, LATE, LATE], "running": [1] * 5}
TASKS_LATE = {"visible": [40] * 5, "hidden": [0] * 5, "running": [1, 1, 1, LATE, LATE]}


@pytest.mark.parametrize(
    ("tracked", "late", "scales_out"),
    [
        (BACKLOG_PER_TASK, QUEUE_LATE, True),
        (BACKLOG_PER_TASK, TASKS_LATE, True),
        ("(visible + hidden) / running", QUEUE_LATE, False),
        ("(visible + hidden) / running", TASKS_LATE, True),
        ("IF(visible, (visible + hidden) / running, hidden / running)", QUEUE_LATE, True),
        ("IF(visible, (visible + hidden) / running, hidden / running)", TASKS_LATE, False),
    ],
)
def test_where_a_metric_comes_late_tasks_are_added_all_the_same(
    tracked: str, late: Mapping[str, Series], scales_out: bool
) -> None:
    """An alarm like the one that Application Auto Scaling makes; with simpler expressions it would never ring."""
    query = {"Expression": tracked, "ReturnData": True}
    counts = {"EvaluationPeriods": OUT_POINTS, "Threshold": 4, "TreatMissingData": "notBreaching"}
    alarm = {"Metrics": [query], "ComparisonOperator": "GreaterThanThreshold", **counts}
    assert rings(alarm, **late) is scales_out


def test_the_study_scales_as_the_template_does(plain: Stack, full: Stack) -> None:
    """docs/scaling.md, which names the expressions that benchmarks/scaling has."""
    tracking = plain.asked("PutScalingPolicy")[0]["TargetTrackingScalingPolicyConfiguration"]
    assert tracking["CustomizedMetricSpecification"]["Metrics"][-1]["Expression"] == BACKLOG_PER_TASK
    assert tracking["ScaleInCooldown"] == tracking["ScaleOutCooldown"] == COOLDOWN
    assert tracking["TargetValue"] == Settings().backlog_target
    alarm = full.alarms()["FirstTaskAlarm"]
    assert alarm["Metrics"][-1]["Expression"] == WAITS_FOR_A_TASK
    assert (alarm["DatapointsToAlarm"], alarm["EvaluationPeriods"]) == (FIRST_POINTS, FIRST_OF)
    step = full.asked("PutScalingPolicy")[1]["StepScalingPolicyConfiguration"]
    assert step["Cooldown"] == COOLDOWN


def test_the_number_of_tasks_stays_within_what_was_asked_for(plain: Stack, full: Stack) -> None:
    for stack, least, most in ((plain, 1, 4), (full, 0, 12)):
        [target] = stack.asked("RegisterScalableTarget")
        assert (target["MinCapacity"], target["MaxCapacity"]) == (least, most)
        cluster, service = stack.outputs["ClusterName"], stack.outputs["ServiceName"]
        assert target["ResourceId"] == f"service/{cluster}/{service}"


def test_a_first_task_is_started_where_there_may_be_none(plain: Stack, full: Stack) -> None:
    assert len(plain.asked("PutScalingPolicy")) == 1
    assert "FirstTaskAlarm" not in plain.resources
    step = full.asked("PutScalingPolicy")[1]["StepScalingPolicyConfiguration"]
    assert step["AdjustmentType"] == "ChangeInCapacity"
    assert step["StepAdjustments"] == [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}]
    alarm = full.alarms()["FirstTaskAlarm"]
    assert alarm["AlarmActions"] == [full.resources["FirstTask"]]
    assert watched(full, "FirstTaskAlarm") == {
        "visible": ("ApproximateNumberOfMessagesVisible", "Maximum", 60),
        "desired": ("DesiredTaskCount", "Maximum", 60),
    }
    assert rings(alarm, visible=[0, 1, 1], desired=[0, 0, 0])
    assert rings(alarm, visible=[LATE, 1, 1], desired=[LATE, LATE, LATE])
    assert rings(alarm, visible=[1, 1, LATE], desired=[0, 0, LATE])
    late: dict[str, Series] = {"visible": [0, 1, 1, LATE, LATE], "desired": [LATE] * 5}
    assert rings(alarm, **late)
    [*metrics, query] = alarm["Metrics"]
    query = {**query, "Expression": "IF(visible > 0 AND FILL(desired, 0) < 1, 1, 0)"}
    assert not rings({**alarm, "Metrics": [*metrics, query]}, **late)  # what is late would be taken for 0
    assert not rings(alarm, visible=[1, 1, 1], desired=[1, 1, 1])  # one is wanted already
    assert not rings(alarm, visible=[9, 9, 9], desired=[4, 4, LATE])  # none is taken for want of one point
    assert not rings(alarm, visible=[0, 0, 0], desired=[0, 0, 0])
    assert not rings(alarm, visible=[LATE, LATE, LATE], desired=[LATE, LATE, LATE])


def test_a_queue_whose_metrics_are_elsewhere_has_a_fixed_number_of_tasks(
    elsewhere: Stack, plain: Stack
) -> None:
    assert elsewhere.service()["desiredCount"] == 2
    assert elsewhere.asked("RegisterScalableTarget") == elsewhere.asked("PutScalingPolicy") == []
    assert set(elsewhere.alarms()) == {"FailedRunsAlarm", "NoTaskAlarm", "UnreachableAlarm"}
    queue = elsewhere.dashboard()["widgets"][0]["properties"]
    assert queue["region"] == "us-west-2"
    assert "datahub-ingestion.fifo" in queue["metrics"][0]


# --- watching it ----------------------------------------------------------------------------------------------


def test_alarms_go_to_the_topic(plain: Stack, full: Stack) -> None:
    watching = {
        "OldestMessageAlarm",
        "DeadLettersAlarm",
        "FailedRunsAlarm",
        "UnreachableAlarm",
        "NoTaskAlarm",
    }
    assert set(plain.alarms()) == watching
    assert not any("AlarmActions" in alarm for alarm in plain.alarms().values())
    alarms = full.alarms()
    for name in watching:
        assert alarms[name]["AlarmActions"] == alarms[name]["OKActions"] == [TOPIC]
    assert set(alarms) == watching | {"FirstTaskAlarm"}


def test_no_task_is_an_alarm_where_one_should_run(plain: Stack, full: Stack, elsewhere: Stack) -> None:
    counts = {
        "running": ("RunningTaskCount", "Maximum", 60),
        "sick": ("UnHealthyContainerHealthStatus", "Minimum", 60),  # 1 where all are
    }
    unknown = [LATE] * 10  # no task runs, or the cluster's Container Insights are not enhanced
    for stack in (plain, elsewhere):
        assert watched(stack, "NoTaskAlarm") == counts
        alarm = stack.alarms()["NoTaskAlarm"]
        sick = next(query for query in alarm["Metrics"] if query["Id"] == "sick")
        assert sick["MetricStat"]["Metric"]["Dimensions"] == [
            {"Name": "ClusterName", "Value": stack.outputs["ClusterName"]},
            {"Name": "ServiceName", "Value": stack.outputs["ServiceName"]},
            {"Name": "ContainerName", "Value": stack.container()["name"]},
        ]
        assert rings(alarm, running=[0] * 10, sick=unknown)
        assert rings(alarm, running=[LATE] * 10, sick=unknown)
        assert rings(alarm, running=[*[LATE] * 8, 1, 1], sick=unknown)
        assert not rings(alarm, running=[*[1] * 3, *[LATE] * 7], sick=unknown)  # replaced, and late
        assert not rings(alarm, running=[5] * 10, sick=unknown)
        assert not rings(alarm, running=[5] * 10, sick=[0] * 10)
        # ECS keeps the unhealthy one, and starts another time and again, whose health is not known yet.
        assert rings(alarm, running=[*[1, 2] * 5], sick=[*[1] * 9, LATE])
        assert not rings(alarm, running=[*[1] * 5, *[2] * 5], sick=[*[1] * 5, *[0] * 5])
    waiting = ("ApproximateNumberOfMessagesVisible", "Maximum", 60)
    assert watched(full, "NoTaskAlarm") == {"visible": waiting, **counts}
    alarm = full.alarms()["NoTaskAlarm"]
    assert rings(alarm, visible=[*[1] * 8, LATE, LATE], running=unknown, sick=unknown)
    assert rings(alarm, visible=[*[1] * 9, *[LATE] * 3], running=[LATE] * 12, sick=[LATE] * 12)
    assert rings(alarm, visible=[1] * 10, running=[1] * 10, sick=[1] * 10)
    started = [*[LATE] * 3, *[1] * 5, LATE, LATE]
    assert not rings(alarm, visible=[1] * 10, running=started, sick=unknown)
    assert not rings(alarm, visible=[0] * 10, running=unknown, sick=unknown)
    assert not rings(alarm, visible=[0] * 10, running=[1] * 10, sick=[1] * 10)  # nobody waits for it
    assert not rings(alarm, visible=unknown, running=unknown, sick=unknown)


def test_where_no_task_is_wanted_none_is_missed(cloud: Cloud) -> None:
    stack = cloud.stack(AwsCommandQueueArn=f"arn:aws:sqs:us-west-2:{ELSEWHERE}:requests", MinTasks="0")
    assert stack.service()["desiredCount"] == 0
    assert set(stack.alarms()) == {"FailedRunsAlarm", "UnreachableAlarm"}


def test_an_old_message_is_an_alarm_while_something_waits(plain: Stack) -> None:
    alarm = plain.alarms()["OldestMessageAlarm"]
    assert watched(plain, "OldestMessageAlarm") == {
        "visible": ("ApproximateNumberOfMessagesVisible", "Minimum", 300),
        "age": ("ApproximateAgeOfOldestMessage", "Maximum", 300),
    }
    assert rings(alarm, visible=[1, 1, 1], age=[1900, 2200, 2500])
    assert rings(alarm, visible=[1, 1, LATE], age=[1900, 2200, LATE])
    assert not rings(alarm, visible=[0, 0, 0], age=[40000, 40000, 40000])  # a long run, nothing waits
    assert not rings(alarm, visible=[0, 1, 0], age=[40000, 40000, 40000])  # ... and something did for a while
    assert not rings(alarm, visible=[1, 1, 1], age=[60, 360, 660])
    assert not rings(alarm, visible=[LATE, LATE, LATE], age=[LATE, LATE, LATE])


def test_what_can_not_be_reached_for_minutes_is_an_alarm(plain: Stack) -> None:
    alarm = plain.alarms()["UnreachableAlarm"]
    names = (f"DataHubExecutor/{plain.name}", "Unreachable", "Sum", 300)
    assert tuple(alarm[name] for name in ("Namespace", "MetricName", "Statistic", "Period")) == names
    assert rings(alarm, unreachable=[1, 0, 1])  # it is said every five minutes, and a bit more
    assert rings(alarm, unreachable=[2, 1, LATE])
    assert not rings(alarm, unreachable=[0, 3, 0])
    assert not rings(alarm, unreachable=[LATE, LATE, LATE])


def test_the_dashboard_shows_this_stack(full: Stack) -> None:
    shown = json.dumps(full.dashboard())
    for name in ("ClusterName", "ServiceName", "LogGroupName"):
        assert full.outputs[name] in shown
    dead = full.outputs["DeadLetterQueueArn"].rpartition(":")[2]
    assert dead in shown
    assert f"DataHubExecutor/{full.name}" in shown
