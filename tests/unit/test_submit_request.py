import argparse
import json
from typing import Any

import pytest

from executor.commands.request import NewRequest, SubmitError, make_request
from executor.messages import ExecutionRequest, parse

RECIPE = "source:\n  type: postgres\n  config:\n    password: ${PG_PASSWORD}\n"


def make(recipe: str = RECIPE, **given: Any) -> NewRequest:
    options: dict[str, Any] = {
        "debug": False,
        "cli_version": None,
        "requirement": [],
        "plugin": [],
        "env": [],
        "test_connection": False,
    }
    return make_request(recipe, argparse.Namespace(**options | given), "e-1", "remote")


def read(request: NewRequest) -> ExecutionRequest:
    message = parse(request.message())
    assert isinstance(message, ExecutionRequest)
    return message


def test_the_executor_reads_what_was_asked_for() -> None:
    request = read(
        make(
            debug=True,
            cli_version="1.7.0",
            requirement=["pandas<3"],
            plugin=["okta"],
            env=["EXECUTOR_TASK_WEIGHT=0.5", "QUERY=a=b"],
            test_connection=True,
        )
    )
    assert (request.exec_id, request.executor_id, request.name) == ("e-1", "remote", "TEST_CONNECTION")
    assert (request.version, request.debug_mode) == ("1.7.0", True)
    assert (request.extra_pip_requirements, request.extra_pip_plugins) == (("pandas<3",), ("okta",))
    assert request.extra_env_vars == {"EXECUTOR_TASK_WEIGHT": "0.5", "QUERY": "a=b"}


def test_every_argument_is_text_and_the_recipe_json_with_the_runs_id() -> None:
    arguments = make().arguments
    assert all(isinstance(value, str) for value in arguments.values())
    assert json.loads(arguments["recipe"]) == {
        "source": {"type": "postgres", "config": {"password": "${PG_PASSWORD}"}},
        "run_id": "e-1",
    }


def test_a_recipe_that_json_cannot_hold_is_sent_as_it_was_written() -> None:
    recipe = "source:\n  type: file\n  config: {since: 2024-01-31}\n"
    assert read(make(recipe)).recipe == recipe


@pytest.mark.parametrize(
    ("recipe", "given", "words"),
    [
        ("a: [", {}, "not valid YAML"),
        ("", {}, "empty"),
        ("sink: {}", {}, "needs a `source`"),
        (RECIPE, {"env": ["NAME"]}, "NAME=VALUE"),
        (RECIPE, {"env": ["=x"]}, "NAME=VALUE"),
        (RECIPE, {"env": ["MY NAME=x"]}, "has a blank"),
        (RECIPE, {"env": ["EXECUTOR_TASK_WEIGHT=heavy"]}, "EXECUTOR_TASK_WEIGHT"),
        (RECIPE, {"cli_version": "banana"}, "'banana' is none"),
        (RECIPE, {"plugin": ["okta", "no/extra"]}, "extra plugin 2"),
        (RECIPE, {"requirement": ["${NAMED_THERE}", "six ==== 9"]}, "extra requirement 2"),
        (RECIPE, {"requirement": ["${REQUIREMENT}"], "env": ["REQUIREMENT=-r other.txt"]}, "is an option"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(recipe: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(SubmitError, match=words):
        make(recipe, **given)


@pytest.mark.parametrize("requirement", ["${PACKAGE}", "six @ ${WHEEL}", "six==${SIX_VERSION}", "-${X}"])
def test_what_only_the_executors_environment_can_tell_is_let_pass(requirement: str) -> None:
    assert read(make(requirement=[requirement])).extra_pip_requirements == (requirement,)


@pytest.mark.parametrize(("weight", "notes"), [("0.5", 0), ("1", 0), ("1.5", 1)])
def test_a_weight_over_a_whole_executor_is_noted(weight: str, notes: int) -> None:
    request = make(env=[f"EXECUTOR_TASK_WEIGHT={weight}"])
    assert len(request.notes) == notes
    assert all("counts as 1.0" in note for note in request.notes)


def test_a_request_that_is_too_large_for_the_queue_is_refused() -> None:
    with pytest.raises(SubmitError, match="at most 1,048,576"):
        make(json.dumps({"source": {"type": "file"}, "x": "ü" * 160_000})).message()


def test_the_recipe_is_not_in_the_repr() -> None:
    assert "PG_PASSWORD" not in repr(make())
