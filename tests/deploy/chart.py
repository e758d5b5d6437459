"""The Helm chart, rendered by Helm's own code and judged by Kubernetes' schemas.

Run with the interpreter of .cache/kubernetes. Standard input has a list of values, standard output gets a list of
outcomes, both as JSON.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "deploy" / "helm" / "datahub-executor"
CUSTOM = ROOT / "tests" / "data" / "kubernetes"
OLDEST = "1.25"  # the chart's kubeVersion
RELEASE = "demo"
NAMESPACE = "ingestion"


def outcome(values: dict[str, Any]) -> dict[str, Any]:
    """`refused` in Helm's words, or the `objects` made, the `notes`, and what the schemas have against them.

    Objects and notes are those for the newest Kubernetes; faults are the oldest's, too.
    """
    newest = kubernetes_validate.latest_version()
    found: list[str] = []
    for version in (OLDEST, newest):
        try:
            rendered = render(values, version)
        except (helm.HelmValuesError, helm.HelmRenderError) as error:
            return {"refused": str(error)}
        notes = next(text for name, text in rendered.items() if name.endswith("NOTES.txt"))
        objects = [
            made
            for name, text in sorted(rendered.items())
            if not name.endswith("NOTES.txt")
            for made in yaml.safe_load_all(text)
            if made is not None
        ]
        found += [fault for made in objects for fault in faults(made, version)]
    return {"objects": objects, "notes": notes, "faults": found}


def render(values: dict[str, Any], version: str) -> dict[str, str]:
    """What Helm makes for a Kubernetes; its library knows none but its own, so the version is written in."""
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(CHART, Path(folder) / CHART.name)
        for template in (copy / "templates").iterdir():
            text = template.read_text().replace(".Capabilities.KubeVersion.Version", f'"v{version}"')
            template.write_text(text)
        with helm.Chart.load(copy) as chart:
            rendered: dict[str, str] = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    return rendered


def faults(found: dict[str, Any], version: str) -> list[str]:
    """What the API server of a Kubernetes would refuse, unknown fields included."""
    custom = CUSTOM / f"{found['kind']}.json"
    if custom.exists():
        judge = jsonschema.Draft202012Validator(json.loads(custom.read_text()))
        return [f"{found['kind']}: {error.json_path}: {error.message}" for error in judge.iter_errors(found)]
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{found['kind']}: {error.json_path}: {error.message} (Kubernetes {version})"]
    return []


def lint(values: dict[str, Any]) -> list[str]:
    """What `helm lint --strict` complains of."""
    report = helm.lint(CHART, values, strict=True)
    warning = 2
    messages = [message["error"] for message in report["messages"] if message["severity"] >= warning]
    return [*messages, *report["errors"]]


if __name__ == "__main__":
    judge = lint if sys.argv[1:] == ["lint"] else outcome
    json.dump([judge(values) for values in json.load(sys.stdin)], sys.stdout)
