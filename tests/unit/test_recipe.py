"""Recipes as people and DataHub write them, the errors for those that are none, and what the CLI gets of them."""

import json
from datetime import date
from typing import Any

import pytest
import yaml
from packaging.version import Version

from executor.ingestion.recipe import (
    MAX_NODES,
    MAX_RECIPE,
    MAX_YAML,
    Recipe,
    RecipeError,
    parse_recipe,
    stdin_for,
)
from executor.ingestion.references import MAX_NESTING, SecretReferences, references, substitute

NEW, OLD = Version("1.5.0.15"), Version("1.5.0.14")


def recipe_with(value: object) -> Recipe:
    return Recipe("postgres", "postgres", {"source": {"type": "postgres", "config": {"value": value}}})


def refer(*required: str, optional: tuple[str, ...] = ()) -> SecretReferences:
    return SecretReferences(frozenset(required), frozenset(optional))


@pytest.mark.parametrize(
    "text",
    [
        '{"source": {"type": "postgres", "config": {"host_port": "db:5432"}}}',
        '\ufeff {"source": {"type": "postgres", "config": {"host_port": "db:5432"}}}\n',
        "source:\n  type: postgres\n  config:\n    host_port: db:5432\n",
        '{source: {type: postgres, config: {host_port: "db:5432"}}}',
        "x: &c {host_port: 'db:5432'}\nsource: {type: postgres, config: {<<: *c}}\n",
    ],
)
def test_json_and_yaml_are_read(text: str) -> None:
    recipe = parse_recipe(text)
    assert recipe.plugin == recipe.source_type == "postgres"
    assert recipe.document["source"]["config"] == {"host_port": "db:5432"}


def test_a_raw_line_end_inside_a_json_string_is_forgiven() -> None:
    text = '{"source": {"type": "file", "config": {"key": "line 1\nline 2\t"}}}'
    assert parse_recipe(text).document["source"]["config"]["key"] == "line 1\nline 2\t"


@pytest.mark.parametrize(
    ("source_type", "plugin"),
    [
        ("postgres", "postgres"),
        ("bigquery-queries", "bigquery-queries"),
        ("my_pkg.module.Source", None),
        ("my_pkg.module:Source", None),
    ],
)
def test_a_class_of_ones_own_needs_no_extra(source_type: str, plugin: str | None) -> None:
    recipe = parse_recipe(json.dumps({"source": {"type": source_type}}))
    assert (recipe.source_type, recipe.plugin) == (source_type, plugin)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("just words", "object"),
        ("[1, 2]", "object"),
        ("{}", "`source`"),
        ("source: postgres", "`source`"),
        ("source: {config: {}}", "`type`"),
        ("source: {type: 5}", "`type`"),
        ('source: {type: "postgres]==1 --index-url x"}', "source.type"),
        ("source: {type: ../x}", "source.type"),
        ("source:\n  type: postgres\n config: {password: hunter2}", "line 3, column 2"),
        ('{"source": {"type": "x",\n "password": "hunter2" oops}}', "line 2, column 24"),
        ("source: {type: postgres, password: !!python/object:os.hunter2 x}", "line 1, column 36"),
        ("source: *hunter2", "line 1, column 9"),
        ("source: hunter2\x01", "forbids"),
        ("source: {type: file, at: 2024-13-45, password: hunter2}", "date"),
        ("source: {type: file, at: !!timestamp hunter2}", "date"),
        ("source: {type: file, at: !!bool hunter2}", "date"),
        ("source: 1\n---\nsource: 2", "line 2"),
        ('{"source": ' + "9" * 5000 + "}", "too long"),
        ("source: {type: file, at: 1:" + "59:" * 180 + "59.5, password: hunter2}", "number"),
        ("source: {type: file, at: 1" + ":59" * 5000 + ", password: hunter2}", "too long"),
        ("source: {type: file, at: 0x" + "f" * 5000 + ", password: hunter2}", "too long"),
        ("source: {type: file, at: !!int {=: '0x" + "f" * 5000 + "'}, password: hunter2}", "too long"),
        ("source: {type: file, at: !!timestamp {=: hunter2}}", "date"),
        ("source: {type: file, at: !!timestamp {=: 2024-01-31}, password: hunter2}", "date"),
        ("source: {type: file, at: 2024-01-31 00:00:00 +99:00, password: hunter2}", "date"),
        ("source: {type: file, at: !!float '', password: hunter2}", "number"),
        ("source: {type: file, at: !!int '', password: hunter2}", "number"),
        ("source: {type: file, at: !!bool {=: hunter2}}", "date"),
        ("source: {type: file, at: !!binary hunter2}", "line 1"),
        ("source: {type: file, ? [hunter2] : 1}", "line 1"),
        ("source: {type: file, <<: hunter2}", "line 1"),
        ("source: {type: file, at: !!omap [hunter2]}", "line 1"),
        ("source: !!set {type, hunter2}", "`source`"),
    ],
)
def test_what_is_no_recipe_is_refused_in_words_without_quoting_it(text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "- " * 100_000,
        '{"a":' * 100_000,
        '{"a":' * 500 + "1" + "}" * 500,
        "a: " + "[" * 500 + "]" * 500,
        "&a [*a]",
        "source: &s {type: file, config: *s}",
    ],
)
def test_a_recipe_nested_without_end_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"source": {"type": "file"}, "x": "' + "x" * MAX_RECIPE + '"}', f"{MAX_RECIPE:,} characters"),
        ("source: {type: file}\nx: " + "x" * MAX_YAML, "give it as JSON"),
        ("source: {type: file}\nx:" + "\n- 1" * MAX_NODES, f"{MAX_NODES:,} values"),
    ],
)
def test_a_recipe_that_would_take_long_to_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_recipe(text)


@pytest.mark.parametrize("levels", [6, 40])
@pytest.mark.parametrize("level", ["&{0} [{1}]", "&{0} {{<<: [{1}], k{0}: 1}}"])
def test_a_yaml_bomb_is_refused_before_it_goes_off(level: str, levels: int) -> None:
    lines = ["n0: &n0 {x: 1}" if "<<" in level else "n0: &n0 [1]"]
    for number in range(1, levels + 1):
        inner = ", ".join([f"*n{number - 1}"] * 9)
        lines.append(f"n{number}: " + level.format(f"n{number}", inner))
    with pytest.raises(RecipeError, match=f"{MAX_NODES:,}|levels"):
        parse_recipe("\n".join([*lines, "source: {type: file}"]))


@pytest.mark.parametrize(
    "value",
    [
        "0x" + "f" * 998,
        "1" + ":59" * 333,
        "1:" + "59:" * 150 + "59.5",
        "!!set {'${A}'}",
        "!!omap [{k: '${A}'}]",
        "!!pairs [{k: v}]",
        "{? 0001-01-01 00:00:00 +05:00 : 9999-12-31 23:59:59 -05:00}",
        "!!binary aGk=",
        "{.nan: .inf, ~: 2, 1: !!str {=: x}}",
    ],
)
@pytest.mark.parametrize("version", [NEW, OLD])
def test_odd_values_of_yaml_go_to_the_cli(value: str, version: Version) -> None:
    recipe = parse_recipe(f"source: {{type: file, at: {value}}}").with_run_id("exec-1")
    assert recipe.source_type == "file"
    assert recipe.references.required <= {"A"}
    assert stdin_for(version, recipe, {"A": "alpha"}).isascii()


def test_the_run_id_is_the_execution_requests() -> None:
    recipe = parse_recipe('{"source": {"type": "file"}, "run_id": "mine"}')
    assert recipe.with_run_id("exec-1").document == {"source": {"type": "file"}, "run_id": "exec-1"}
    assert recipe.document["run_id"] == "mine"


def test_the_repr_shows_nothing_of_the_content() -> None:
    assert "hunter2" not in repr(recipe_with("hunter2"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", refer()),
        ("costs $5 and $NAME", refer()),
        ("${A}", refer("A")),
        ("x${A}y${B}z$C", refer("A", "B", "C")),
        ("$A", refer(optional=("A",))),
        ("$A/${B}", refer("A", "B")),
        ("${A:-x}${B-x}${C:=x}${D:+x}${E:0:3}${#F}", refer(optional=("A", "B", "C", "D", "E", "F"))),
        ("${A:?must be}${!B}", refer("A", "B")),
        ("${A:-${B}}", refer(optional=("A", "B"))),
        ("${A:-${B:?}}", refer("B", optional=("A",))),
        ("${A:-x}${A}", refer("A")),
        (r"\${A}", refer()),
        (r"\\${A}", refer("A")),
        (r"\$A${B}", refer("B")),
        ("$$", refer()),
        ("${A", refer()),
        ("$", refer()),
        ("${A} and a backslash \\", refer()),
    ],
)
def test_the_names_in_a_string_are_those_that_the_cli_looks_up(text: str, expected: SecretReferences) -> None:
    assert references(text) == expected


@pytest.mark.parametrize("text", ["${" * 500_000, "${A:-" * 150_000 + "}" * 150_000, "\\" * 999_999])
def test_references_without_end_are_left_to_the_cli(text: str) -> None:
    assert references(text) == refer()
    assert substitute(text, {"A": "alpha"}) == text


def test_references_within_references_are_read_up_to_some_depth() -> None:
    text = "${A:-" * MAX_NESTING + "${B}" + "}" * MAX_NESTING
    assert references(text) == refer(optional=("A", "B"))
    assert substitute(text, {"B": "beta"}) == "beta"
    assert references("${A:-" + text + "}") == refer()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("${\n}x", refer()), ("a${}", refer()), ("x${A}\n}", refer("A")), ("x\n ${A} }\n$", refer("A"))],
)
def test_a_reference_ends_in_its_line(text: str, expected: SecretReferences) -> None:
    assert references(text) == expected


def test_names_are_found_in_values_and_not_in_keys() -> None:
    recipe = recipe_with([{"${KEY}": "${A}"}, ["${B:-x}"], 5, None])
    assert recipe.references == refer("A", optional=("B",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "alpha"),
        ("$A", "alpha"),
        ("x ${A}/$A y", "x alpha/alpha y"),
        ("keep $A", "keep $A"),
        ("${B:-default}", "${B:-default}"),
        ("${A:-default}", "alpha"),
        ("${EMPTY:-default}", "default"),
        ("${B:-${A}}", "alpha"),
        (
            "${A:+set}${B:+set}${A}",
            "${DATAHUB_EXECUTOR_NOTHING:+}set${B:+set}${DATAHUB_EXECUTOR_NOTHING:+}alpha",
        ),
        ("${A:1:3}${#A}", "lph5"),
        ("${!LINK}", "alpha"),
        ("$B and $A", "$B and $A"),
        (r"\${A}", r"\${A}"),
        ("${A", "${A"),
        ("${SPECIAL}", "a$b\\c"),
        ("${REFERENCE}", r"${DATAHUB_EXECUTOR_NOTHING:+}\${X}"),
        ("${DOLLAR}", r"${DATAHUB_EXECUTOR_NOTHING:+}\$x"),
    ],
)
def test_values_are_put_where_the_cli_would_put_them(text: str, expected: str) -> None:
    values = {
        "A": "alpha", "EMPTY": "", "LINK": "A", "SPECIAL": "a$b\\c", "REFERENCE": "${X}", "DOLLAR": "$x",
    }  # fmt: skip
    assert substitute(text, values) == expected


def test_a_cli_that_takes_the_envelope_gets_secrets_beside_the_recipe() -> None:
    recipe = recipe_with("${A}")
    envelope = json.loads(stdin_for(NEW, recipe, {"A": "hunter2"}))
    assert envelope["__secrets__"] == {"A": "hunter2"}
    assert json.loads(envelope["__recipe_yaml__"]) == recipe.document


@pytest.mark.parametrize("version", [OLD, None])
def test_any_other_cli_gets_the_recipe_with_the_values_in_it(version: Version | None) -> None:
    sent = json.loads(stdin_for(version, recipe_with(["${A}", "${B:-x}"]), {"A": "hunter2"}))
    assert sent == recipe_with(["hunter2", "${B:-x}"]).document


@pytest.mark.parametrize(
    "value",
    [
        date(2024, 1, 31), 1e16, 1e-7, -0.5, float("inf"), 2**70, True, None, b"bytes", {1: {"a", "b"}},
        "2024-01-31", "1e3", "no", "", " x ", "a: b # c", "tab\there\r\n",
        "\x00\x07\x7f\x85\xa0\u2028\ufeff\uffff", "😀 \\ud83d\\ude00 \\", "\ud83d lone",
        {"k" * 2000: {}}, ["x" * 3000, []], {"é" * 70: "ü"}, "=", "<<", "'\"",
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [NEW, OLD])
def test_every_value_survives_the_way_through_yaml(value: Any, version: Version) -> None:
    recipe = recipe_with(value)
    sent = stdin_for(version, recipe, {})
    assert sent.isascii()
    text = json.loads(sent)["__recipe_yaml__"] if version == NEW else sent.decode()
    read = yaml.safe_load(text)
    assert read == recipe.document
    assert repr(read) == repr(recipe.document) or isinstance(value, dict)
