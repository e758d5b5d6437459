"""The real CLI finds in what it is handed the values that the recipe refers to."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from executor.ingestion.recipe import ENVELOPE_SINCE, Recipe, parse_recipe, stdin_for

# What the CLI's own loader makes of a list of standard inputs, each in place of `sys.stdin`.
LOADER = """
import io, json, sys
from datahub.configuration.config_loader import load_config_file
cases, loaded = json.load(sys.stdin), []
for case in cases:
    sys.stdin = io.StringIO(case)
    loaded.append(load_config_file("-", allow_stdin=True, process_directives=True))
json.dump(loaded, sys.stdout)
"""
LISTER = """
import json, sys
from expandvars import ExpandvarsException
from datahub.configuration.config_loader import EnvResolver
def listed(text):
    try:
        return sorted(EnvResolver.list_referenced_variables({"x": text}))
    except ExpandvarsException:
        return []
json.dump([listed(text) for text in json.load(sys.stdin)], sys.stdout)
"""
REFUSED = ["${A:}", "${}", "${A", "x${A:-${B}", "${A} \\", "${ A }"]
OLD = Version("1.5.0.14")

VALUES = {
    "PLAIN": "hunter2",
    "EMPTY": "",
    "REFERENCE": "pa${PLAIN}ss",
    "DOLLAR_FIRST": "$PLAIN",
    "DOLLARS": "a$b$$c$",
    "BACKSLASHES": "\\a\\\\b\\$c\\",
    "BOTH": "${x}\\${y}\\",
    "BRACES": "}{:-}",
    "LINES": "-----BEGIN-----\n${a\n}\\n\n-----END-----\n",
    "UNICODE": "zwölf 日本 😀",
    "QUOTES": "'\"#: {}",
    "LINK": "PLAIN",
}
TEXTS = [
    "no reference, costs $5",
    *(f"${{{name}}}" for name in VALUES),
    *(f"${name}" for name in VALUES),
    *(f"sql://user:${{{name}}}@host/\\${{kept}}\\\\" for name in VALUES),
    *(f"${{UNSET:-default}}-${{{name}}}" for name in VALUES),
    *(f"${{{name}:-default}}" for name in VALUES),
    "${UNSET:-default}",
    "${UNSET-default}",
    "${UNSET:-${PLAIN}}",
    "${UNSET:-}$PLAIN$IN_THE_ENVIRONMENT/x",
    "${UNSET:+never}${PLAIN:+set}",
    "${PLAIN:=x}${PLAIN:?must be}",
    "${PLAIN:1:3}${#PLAIN}${!LINK}",
    "${IN_THE_ENVIRONMENT}",
    "$IN_THE_ENVIRONMENT",
    "$UNSET",
    "keep $PLAIN as it is",
    r"\${PLAIN}",
    r"\\${PLAIN}",
]


def run_in_cli(cli_venv: Path, script: str, cases: list[str]) -> Any:
    result = subprocess.run(
        [cli_venv / "bin" / "python", "-c", script],
        input=json.dumps(cases).encode(),
        env={"PATH": os.environ["PATH"], "IN_THE_ENVIRONMENT": "from the environment"},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


def recipe_of(texts: list[str]) -> Recipe:
    return parse_recipe(json.dumps({"source": {"type": "file", "config": {"texts": texts}}}))


def test_the_cli_resolves_the_same_from_the_envelope_and_from_the_recipe_with_values(cli_venv: Path) -> None:
    recipe = recipe_of(TEXTS)
    inputs = [stdin_for(version, recipe, VALUES).decode() for version in (ENVELOPE_SINCE, OLD)]
    from_envelope, from_recipe = run_in_cli(cli_venv, LOADER, inputs)
    resolved = dict(zip(TEXTS, from_envelope["source"]["config"]["texts"], strict=True))
    assert dict(zip(TEXTS, from_recipe["source"]["config"]["texts"], strict=True)) == resolved
    for name, value in VALUES.items():
        assert resolved[f"${{{name}}}"] == value
        assert (
            resolved[f"sql://user:${{{name}}}@host/\\${{kept}}\\\\"] == f"sql://user:{value}@host/${{kept}}\\"
        )
    assert resolved["${UNSET:-default}"] == resolved["${EMPTY:-default}"] == "default"
    assert resolved["$PLAIN"] == "hunter2"
    assert resolved["$UNSET"] == "$UNSET"
    assert resolved["keep $PLAIN as it is"] == "keep $PLAIN as it is"


def test_the_names_that_we_find_are_those_that_the_cli_finds(cli_venv: Path) -> None:
    texts = [
        *TEXTS,
        *REFUSED,
        "$",
        "$$",
        "${A:-${B}}x$C",
        "$A$B-C",
        "${Ä}",
        "${A:-{}}$B${C}",
        "$A{B}",
        "${A:+${B-x}}",
    ]
    for text, listed in zip(texts, run_in_cli(cli_venv, LISTER, texts), strict=True):
        references = recipe_of([text]).references
        # What `${!LINK}` leads to is no name of the recipe; the CLI lists it out of an environment it makes up.
        assert references.required | references.optional == set(listed) - {"mocked_value"}, text


def run_cli(cli_venv: Path, stdin: bytes, env: Mapping[str, str]) -> str:
    result = subprocess.run(
        [cli_venv / "bin" / "datahub", "ingest", "run", "-c", "-", "--no-default-report", "--no-spinner"],
        input=stdin,
        env={"PATH": os.environ["PATH"], "DATAHUB_TELEMETRY_ENABLED": "false", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=120,
    )
    output = result.stdout.decode()
    assert result.returncode == 0, output
    return output


@pytest.mark.parametrize("version", [ENVELOPE_SINCE, OLD], ids=["envelope", "recipe"])
def test_a_real_ingestion_runs_with_secrets_that_look_like_references(
    cli_venv: Path, sqlite_db: Path, tmp_path: Path, version: Version
) -> None:
    folder = tmp_path / "we$ird \\${dir}"
    folder.mkdir()
    database = sqlite_db.rename(folder / "shop.db")
    recipe = parse_recipe("""
        source:
          type: sqlalchemy
          config: {connect_uri: "sqlite:///${DB_FILE}", platform: "${PLATFORM:-sqlite}", include_views: false}
        sink:
          type: file
          config: {filename: $OUT}
        """)
    out = folder / "out.json"
    secrets = {"DB_FILE": str(database), "OUT": str(out)}
    assert recipe.references.required == {"DB_FILE"}
    run_cli(cli_venv, stdin_for(version, recipe.with_run_id("exec-1"), secrets), {"HOME": str(tmp_path)})
    written = out.read_text()
    assert "urn:li:dataPlatform:sqlite" in written
    assert "customers" in written
    assert {record["systemMetadata"]["runId"] for record in json.loads(written)} == {"exec-1"}
