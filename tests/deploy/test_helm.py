"""The Helm chart: what Helm makes of it, what Kubernetes says to that, and the service started as its pod is."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import yaml

from executor.local.datahub import DataHubStandIn
from executor.settings import Settings, load_settings, unknown_variables
from tests.conftest import ROOT
from tests.deploy.judges import judged
from tests.servers import LocalStack
from tests.servers.executor import DEADLINE, ExecutorProcess
from tests.servers.process import free_port
from tests.system.image import read_dockerfile

pytestmark = pytest.mark.xdist_group("chart")  # rendered once

CHART = ROOT / "deploy" / "helm" / "datahub-executor"
ARN = "arn:aws-cn:sqs:cn-north-1:123456789012:requests"
SECRETS = {("datahub-access-token-secret", "datahub-access-token-secret-key"): "t"}

MINIMAL = yaml.safe_load((CHART / "ci" / "minimal-values.yaml").read_text())
# As people have it for the chart `datahub-executor-worker`, every section of that one in use; but for the image.
PEER: dict[str, Any] = {
    "global": {
        "datahub": {
            "gms": {
                "url": "https://example.acryl.io/gms",
                "secretRef": "datahub-access-token-secret",
                "secretKey": "datahub-access-token-secret-key",
            },
            "auth": {"type": "", "tokenFileEnabled": False, "tokenFile": ""},
            "executor": {
                "pool_id": "warehouse",
                "channel": "SQS",
                "uv_link_mode": "hardlink",
                "allow_call_statements": False,
                "ingestions": {"max_workers": "8", "signal_poll_interval": 5},
                "monitors": {"max_workers": 10},
                "snowflake": {"timeout": 600, "quote_columns": False},
            },
            "observability": {"online_smart_assertions": {"enabled": True}},
        }
    },
    "workloadKind": "Deployment",
    "replicaCount": 2,
    "image": {"repository": "registry.example.com/executor", "pullPolicy": "Always", "tag": "1.0.0"},
    "imagePullSecrets": [{"name": "registry"}],
    "terminationGracePeriodSeconds": 150,
    "pdb": {"enabled": True, "minAvailable": 1},
    "serviceAccount": {"create": False, "annotations": {}, "name": "ingestion"},
    "podAnnotations": {"co.elastic.logs/enabled": "true"},
    "podSecurityContext": {"fsGroup": 1000},
    "securityContext": {"runAsUser": 1000},
    "command": ["/start_datahub_executor.sh"],
    "args": [],
    "extraEnvs": [
        {"name": "AWS_COMMAND_QUEUE_URL", "value": "https://sqs.us-west-2.amazonaws.com/123456789012/peer"},
        {"name": "DATAHUB_EXECUTOR_TASK_TIMEOUT", "value": "3600"},
    ],
    "extraEnvsFrom": [{"secretRef": {"name": "recipe-variables"}}],
    "extraVolumes": [{"name": "recipe-secrets", "secret": {"secretName": "recipe-secrets"}}],
    "extraVolumeMounts": [{"name": "recipe-secrets", "mountPath": "/mnt/secrets", "readOnly": True}],
    "extraInitContainers": [{"name": "wait", "image": "busybox:1.37", "command": ["true"]}],
    "extraCaCerts": {"corporate": "corporate-ca"},
    "extraConfigmap": {"name": "more", "data": [{"odbc.ini": "[a]\nb=c\n"}]},
    "extraLabels": {"team": "data"},
    "extraPodLabels": {"team": "data"},
    "resources": {"requests": {"memory": "8Gi", "cpu": "4", "ephemeral-storage": "25Gi"}},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "ingestion", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "livenessProbe": {
        "initialDelaySeconds": 60,
        "periodSeconds": 60,
        "failureThreshold": 3,
        "timeoutSeconds": 5,
    },
    "readinessProbe": {"initialDelaySeconds": 60, "periodSeconds": 60},
    "persistentVolume": {"enabled": False, "accessModes": ["ReadWriteOnce"], "mountPath": "/tmp/datahub"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "minimal": {},
    "an older chart's values": PEER,
    "scaled": {
        "queue": {"url": ARN},
        "keda": {"enabled": True, "minReplicas": 0, "maxReplicas": 30},
        "metrics": {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        "terminationGracePeriodSeconds": 14400,
    },
    "scaled by another's right": {
        "keda": {"enabled": True, "roleArn": "arn:aws:iam::123456789012:role/keda", "messagesPerReplica": 2},
        "global": {"readonly": True},
        "pdb": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
    "a volume for each": {
        "workloadKind": "StatefulSet",
        "strategy": {"type": "RollingUpdate"},
        "persistentVolume": {
            "enabled": True,
            "storageClass": "gp3",
            "labels": {"a": "b"},
            "annotations": {"c": "d"},
        },
        "global": {"datahub": {"auth": {"type": "pat", "tokenFileEnabled": True}}},
        "keda": {"enabled": True, "triggerAuthentication": "ours"},
        "pdb": {"minAvailable": None, "maxUnavailable": "50%"},
    },
    "one volume for all": {
        "persistentVolume": {"enabled": True, "existingClaim": "venvs", "subPath": "executor"},
        "extraCaCerts": {"corporate": "corporate-ca"},
        "enabled": True,
        "strategy": {"type": "Recreate"},
        "priorityClassName": "low",
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
            }
        ],
    },
    "mounts of one's own": {
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [
            {"name": "scratch", "mountPath": "/tmp/", "subPath": "a"},
            {"name": "scratch", "mountPath": "/tmp/datahub", "subPath": "b"},
        ],
        "workVolumeSizeLimit": "40Gi",
        "pdb": {"minAvailable": 0, "maxUnavailable": ""},
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no queue": ({"queue": {"url": ""}}, "queue.url is not set: it must be the SQS queue's URL, ARN or name"),
    "no DataHub": ({"global": {"datahub": {"gms": {"url": ""}}}}, "global.datahub.gms.url is not set"),
    "a strange address": (
        {"global": {"datahub": {"gms": {"url": "datahub:8080"}}}},
        "must be DataHub's address",
    ),
    "a strange queue": ({"queue": {"url": "arn:aws:sns:eu-west-1:1:q"}}, 'queue.url is "arn:aws:sns:'),
    "a name without a region": ({"queue": {"url": "requests"}}, "queue.region is not set"),
    "Kafka": ({"global": {"datahub": {"executor": {"channel": "KAFKA"}}}}, "takes its requests off SQS only"),
    "OAuth": ({"global": {"datahub": {"auth": {"type": "azure_entra"}}}}, "knows access tokens only"),
    "another's image": (
        {"image": {"repository": "795586375822.dkr.ecr.us-west-2.amazonaws.com/datahub-executor"}},
        "the image of another executor: build docker/Dockerfile",
    ),
    "no image": (
        {"image": {"repository": ""}},
        "image.repository is not set: build docker/Dockerfile, push it, and name it here",
    ),
    "no tag": ({"image": {"tag": ""}}, "image.tag is not set"),
    "another's start": (
        {"command": ["/bin/sh", "-c"], "args": ["exec /start_datahub_executor.sh"]},
        "/usr/bin/tini -s -- datahub-executor run",
    ),
    "two starts": (
        {"global": {"datahub": {"auth": {"tokenFileEnabled": True}}}, "command": ["sh"]},
        "leave command and args empty",
    ),
    "a volume that is opened": (
        {
            "workloadKind": "StatefulSet",
            "persistentVolume": {"enabled": True},
            "podSecurityContext": {"fsGroupChangePolicy": "Always"},
        },
        "podSecurityContext.fsGroupChangePolicy must be OnRootMismatch",
    ),
    "a volume that is opened without a word": (
        {
            "workloadKind": "StatefulSet",
            "persistentVolume": {"enabled": True},
            "podSecurityContext": {"fsGroupChangePolicy": None},
        },
        "podSecurityContext.fsGroupChangePolicy must be OnRootMismatch",
    ),
    "a volume without a set": ({"persistentVolume": {"enabled": True}}, "needs workloadKind: StatefulSet"),
    "scaling backwards": ({"keda": {"enabled": True, "minReplicas": 11}}, "greater than keda.maxReplicas"),
    "a port behind the probes' back": (
        {"extraEnvs": [{"name": "DATAHUB_EXECUTOR_METRICS_PORT", "value": "1"}]},
        "set metrics.port",
    ),
    "runs that outlive their pod": (
        {"extraEnvs": [{"name": "DATAHUB_EXECUTOR_DRAIN_TIMEOUT", "value": "600"}]},
        "set terminationGracePeriodSeconds",
    ),
    "a budget of nothing": ({"pdb": {"maxUnavailable": ""}}, "pdb.maxUnavailable is not set"),
    "a budget that was taken away": ({"pdb": {"maxUnavailable": None}}, "pdb.maxUnavailable is not set"),
    "no worker": (
        {"global": {"datahub": {"executor": {"ingestions": {"max_workers": 0}}}}},
        "max_workers': minimum: got 0, want 1",
    ),
    "no time": (
        {"terminationGracePeriodSeconds": 10},
        "/terminationGracePeriodSeconds': minimum: got 10, want 30",
    ),
    "a word for a number": ({"replicaCount": "two"}, "'/replicaCount': got string, want integer"),
    "another's name": ({"replicas": 3}, "'': additional properties 'replicas' not allowed"),
    "a typing error": ({"keda": {"enable": True}}, "'/keda': additional properties 'enable' not allowed"),
    "a number for a text": (
        {"extraEnvs": [{"name": "A", "value": 1}]},
        "/extraEnvs/0/value': got number, want string",
    ),
    "another kind": ({"workloadKind": "DaemonSet"}, "value must be one of 'Deployment', 'StatefulSet'"),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """What comes of all variants and faults, by their names; one process makes them all."""
    given = {**VARIANTS, **{name: values for name, (values, _) in REFUSED.items()}}
    made = judged("chart.py", given=[*map(with_minimal, given.values()), {}])
    return dict(zip([*given, "bare"], made, strict=True))


def with_minimal(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values on top of those that every release needs; on their own where they say all."""
    return merged(copy.deepcopy(MINIMAL), values) if values is not PEER else PEER


def merged(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in values.items():
        deeper = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = merged(base[key], value) if deeper else value
    return base


class Release:
    """The objects of a release."""

    def __init__(self, made: Mapping[str, Any]) -> None:
        assert "refused" not in made, made
        assert made["faults"] == []
        self.notes: str = made["notes"]
        self.objects: list[dict[str, Any]] = made["objects"]

    def all(self, *kinds: str) -> list[dict[str, Any]]:
        return [found for found in self.objects if found["kind"] in kinds]

    @property
    def workload(self) -> dict[str, Any]:
        [workload] = self.all("Deployment", "StatefulSet")
        return workload

    @property
    def pod(self) -> dict[str, Any]:
        pod: dict[str, Any] = self.workload["spec"]["template"]["spec"]
        return pod

    @property
    def container(self) -> dict[str, Any]:
        [container] = self.pod["containers"]
        return dict(container)

    @property
    def env(self) -> dict[str, str]:
        """What the container finds set, its secrets being `SECRETS`; no name comes twice."""
        found: dict[str, str] = {}
        for variable in self.container["env"]:
            assert variable["name"] not in found
            found[variable["name"]] = (
                variable["value"] if "value" in variable else secret(variable["valueFrom"])
            )
        return found

    @property
    def settings(self) -> Settings:
        assert unknown_variables(self.env) == []
        return load_settings(self.env)


def secret(source: Mapping[str, Any]) -> str:
    reference = source["secretKeyRef"]
    return SECRETS[reference["name"], reference["key"]]


@pytest.fixture(scope="module", params=list(VARIANTS))
def release(request: pytest.FixtureRequest, outcomes: Mapping[str, Any]) -> Release:
    return Release(outcomes[request.param])


def test_helm_lint_has_nothing_to_say() -> None:
    assert judged("chart.py", "lint", given=[{}, MINIMAL, PEER]) == [[], [], []]


def test_the_service_takes_the_environment_of_the_pod(release: Release) -> None:
    settings = release.settings
    assert settings.gms_token is not None or "DATAHUB_AUTH_TOKEN_FILE" in release.env
    assert settings.drain_timeout == release.pod["terminationGracePeriodSeconds"] - 20
    assert release.container["ports"] == [{"name": "metrics", "containerPort": settings.metrics_port}]


def test_all_that_is_written_goes_to_mounts_and_the_work_folder_is_below_one(release: Release) -> None:
    mounts = {
        Path(mount["mountPath"]) for mount in release.container["volumeMounts"] if not mount.get("readOnly")
    }
    assert len(mounts) == len([m for m in release.container["volumeMounts"] if not m.get("readOnly")])
    assert Path("/tmp") in mounts  # heartbeat files
    work = release.settings.work_dir
    assert work not in mounts  # an emptyDir's root is open to everybody: the executor refuses it
    assert work.parent in mounts  # so that it is made, mode 0700, on the disk that the mount is on
    assert release.env["HOME"] == str(work)
    volumes = {volume["name"] for volume in release.pod["volumes"]}
    claims = {claim["metadata"]["name"] for claim in release.workload["spec"].get("volumeClaimTemplates", [])}
    assert {mount["name"] for mount in release.container["volumeMounts"]} <= volumes | claims
    assert not volumes & claims


def test_the_pod_has_no_rights(release: Release) -> None:
    pod, security = release.pod, release.container["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    assert not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    [user] = read_dockerfile()["system"].all("USER")
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == user


def test_what_selects_pods_selects_these(release: Release) -> None:
    labels = release.workload["spec"]["template"]["metadata"]["labels"].items()
    selectors = [release.workload["spec"]["selector"]]
    selectors += [
        found["spec"].get("selector") or found["spec"]["podSelector"]
        for found in release.all("PodDisruptionBudget", "NetworkPolicy", "PodMonitor")
    ]
    assert all(selector["matchLabels"].items() <= labels for selector in selectors)


@pytest.mark.parametrize(
    ("variant", "budget"),
    [
        ("minimal", {"maxUnavailable": 1}),
        ("an older chart's values", {"minAvailable": 1}),
        ("a volume for each", {"maxUnavailable": "50%"}),
        ("mounts of one's own", {"minAvailable": 0}),
    ],
)
def test_the_budget_is_for_pods_that_are_ready(
    variant: str, budget: Mapping[str, Any], outcomes: Mapping[str, Any]
) -> None:
    [found] = Release(outcomes[variant]).all("PodDisruptionBudget")
    spec = {name: value for name, value in found["spec"].items() if name != "selector"}
    assert spec == {**budget, "unhealthyPodEvictionPolicy": "AlwaysAllow"}  # from 1.27 on: see chart.py


def test_scaling_counts_messages_and_leaves_the_number_of_pods_to_keda(release: Release) -> None:
    scaled = release.all("ScaledObject")
    assert scaled == [] or release.workload["spec"].get("replicas", 0) == 0
    assert scaled != [] or "replicas" in release.workload["spec"]
    for found in scaled:
        target, [trigger] = found["spec"]["scaleTargetRef"], found["spec"]["triggers"]
        assert target["name"] == release.workload["metadata"]["name"]
        assert target["kind"] == release.workload["kind"]
        assert trigger["metadata"]["scaleOnInFlight"] == "true"  # else a pod goes while its last run goes on
        assert trigger["metadata"]["awsRegion"] == release.settings.aws_region
        named = {found["metadata"]["name"] for found in release.all("TriggerAuthentication")} or {"ours"}
        assert trigger["authenticationRef"]["name"] in named


def test_keda_gets_a_url_where_the_queue_is_an_arn(outcomes: Mapping[str, Any]) -> None:
    [scaled] = Release(outcomes["scaled"]).all("ScaledObject")
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["metadata"]["queueURL"] == "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/requests"
    assert trigger["metadata"]["queueLength"] == "4"
    assert scaled["spec"]["minReplicaCount"] == 0


def test_nothing_comes_in_but_scraping(outcomes: Mapping[str, Any]) -> None:
    [policy] = Release(outcomes["scaled"]).all("NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert policy["spec"]["ingress"] == [
        {
            "ports": [{"port": "metrics", "protocol": "TCP"}],
            "from": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        }
    ]


def test_an_older_charts_values_keep_their_meaning(outcomes: Mapping[str, Any]) -> None:
    release = Release(outcomes["an older chart's values"])
    settings = release.settings
    assert (settings.pool_id, settings.max_workers, settings.signal_poll_interval) == ("warehouse", 8, 5)
    assert settings.gms_url == "https://example.acryl.io"
    assert settings.queue.region == "us-west-2"
    assert settings.task_timeout == 3600
    assert release.workload["spec"]["replicas"] == 2
    assert "command" not in release.container  # theirs is none that this image has
    assert release.container["image"] == "registry.example.com/executor:1.0.0"
    assert release.container["resources"] == PEER["resources"]
    assert release.pod["serviceAccountName"] == "ingestion"
    assert release.all("ServiceAccount") == []
    assert release.pod["securityContext"]["fsGroup"] == 1000
    assert release.container["securityContext"]["runAsUser"] == 1000
    assert release.container["livenessProbe"]["initialDelaySeconds"] == 60
    assert release.env["SSL_CERT_FILE"].startswith("/etc/datahub/ca/")
    assert {key: release.pod[key] for key in ("nodeSelector", "tolerations", "affinity")} == {
        key: PEER[key] for key in ("nodeSelector", "tolerations", "affinity")
    }
    for ignored in (
        "executor.monitors",
        "executor.snowflake",
        "executor.allow_call_statements",
        "observability",
    ):
        assert f"global.datahub.{ignored}" in release.notes
    assert "without" not in outcomes["minimal"]["notes"].lower()


def test_certificates_of_ones_own_are_added_to_the_systems(
    outcomes: Mapping[str, Any], tmp_path: Path
) -> None:
    release = Release(outcomes["an older chart's values"])
    [init] = [found for found in release.pod["initContainers"] if found["name"] == "ca-certificates"]
    for name, text in {
        "etc/ssl/certs/ca-certificates.crt": "system",
        "extra-ca/corporate/root.pem": "ours\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "ca").mkdir()
    [script] = init["args"]
    subprocess.run([*init["command"], re.sub(r"(?<= )/", f"{tmp_path}/", script)], check=True)
    bundle = Path(release.env["SSL_CERT_FILE"])
    assert (tmp_path / "ca" / bundle.name).read_text() == "system\nours\n"
    mounts = {mount["name"]: mount["mountPath"] for mount in release.container["volumeMounts"]}
    assert mounts["executor-ca"] == str(bundle.parent)


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_work_is_refused_in_words(name: str, outcomes: Mapping[str, Any]) -> None:
    _, words = REFUSED[name]
    assert words in outcomes[name].get("refused", "accepted")


def test_several_faults_are_said_at_once(outcomes: Mapping[str, Any]) -> None:
    refused = outcomes["bare"]["refused"]
    assert "global.datahub.gms.url is not set" in refused
    assert "queue.url is not set" in refused
    assert "image.repository is not set" in refused


@pytest.mark.parametrize(
    ("variant", "volume"), [("a volume for each", True), ("one volume for all", True), ("minimal", False)]
)
def test_a_work_folder_that_kubernetes_opened_to_the_group_is_closed_before_the_executor_sees_it(
    variant: str, volume: bool, outcomes: Mapping[str, Any], tmp_path: Path
) -> None:
    release = Release(outcomes[variant])
    found = [
        init
        for init in release.pod.get("initContainers", [])
        if "executor-work" in json.dumps(init["volumeMounts"])
    ]
    assert bool(found) is volume  # an emptyDir is new for each pod
    for init in found:
        [mount] = init["volumeMounts"]
        assert mount in release.container["volumeMounts"]
        assert init["securityContext"] == release.container["securityContext"]
        command = [*init["command"], *init["args"]]
        assert release.env["DATAHUB_EXECUTOR_WORK_DIR"] in command[-1]
        folder = tmp_path / "executor"
        command[-1] = command[-1].replace(release.env["DATAHUB_EXECUTOR_WORK_DIR"], str(folder))
        subprocess.run(command, check=True)  # there is none at the first start
        assert not folder.exists()
        folder.mkdir()
        folder.chmod(0o2770)
        subprocess.run(command, check=True)
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("delivery", ["environment", "file"])
async def test_the_service_started_as_its_pod_serves_its_probes_and_takes_requests(
    delivery: str, localstack: LocalStack, stand_in: DataHubStandIn, tmp_path: Path
) -> None:
    """Nothing is set but what the Deployment sets, and the image's PATH; anybody may write to its volume."""
    queue = await localstack.make_queue(redrive=5)
    mount, token = tmp_path / "mount", tmp_path / "token"
    mount.mkdir()
    mount.chmod(0o777)
    token.write_text("t\n")
    values = with_minimal(
        {
            "global": {
                "datahub": {
                    "gms": {"url": stand_in.url},
                    "auth": {"tokenFileEnabled": delivery == "file", "tokenFile": str(token)},
                }
            },
            "queue": {"url": queue, "region": localstack.env["AWS_REGION"]},
            "metrics": {"port": free_port()},
            "persistentVolume": {"mountPath": str(mount)},
            "extraEnvs": [
                {"name": name, "value": value}
                for name, value in localstack.env.items()
                if name != "AWS_REGION"
            ],
        }
    )
    [made] = judged("chart.py", given=[values])
    release = Release(made)
    env = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}", **release.env}

    async with PodProcess(release, env, tmp_path / "log").running() as service:
        await service.until("consuming")
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{env['DATAHUB_EXECUTOR_METRICS_PORT']}"
        ) as client:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                answer = await client.get(release.container[probe]["httpGet"]["path"])
                assert answer.status_code == httpx.codes.OK, answer.text
        check, submit = re.findall(r" exec (?:-i )?\S+ -- ([^<\n]+)", release.notes)
        checked = await anyio.run_process(shlex.split(check), env=env, check=False)
        assert re.search("✓ token", checked.stdout.decode()), checked
        recipe = b"source: {type: nothing}"
        with anyio.fail_after(DEADLINE):
            submitted = await anyio.run_process(shlex.split(submit), input=recipe, env=env, check=False)
        assert submitted.returncode == 1
        assert "FAILURE" in submitted.stdout.decode(), submitted
        service.process.terminate()
        await service.until("stopping")
    assert {path.name: path.stat().st_mode & 0o777 for path in mount.iterdir()} == {"executor": 0o700}


class PodProcess(ExecutorProcess):
    """The container's command, without the init that is the image's alone."""

    def __init__(self, release: Release, env: Mapping[str, str], log: Path) -> None:
        image = read_dockerfile()["executor"]
        container = release.container
        words = container.get("command", image.words("ENTRYPOINT"))
        words += container.get("args", [] if "command" in container else image.words("CMD"))
        super().__init__(env, log, words[words.index("--") + 1 :])
