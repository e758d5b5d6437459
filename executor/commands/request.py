"""A request made from a recipe and the options of `submit`, in the form in which DataHub asks for a run. Pure."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from executor.ingestion.recipe import Recipe, RecipeError, parse_recipe
from executor.ingestion.venv_spec import VenvError, venv_spec
from executor.requests import (
    WEIGHT_VARIABLE,
    ExecutionRequest,
    MalformedMessage,
    TaskName,
    request_from_input,
)

MESSAGE_LIMIT: Final = 1024 * 1024  # bytes (contract, section 2)

_TEMPLATE: Final = re.compile(r"\$\{(\w+)\}")
_ANY_REQUIREMENT: Final = "any"  # for one that can't be known here, so that the others keep their numbers


class SubmitError(Exception):
    """What was asked for makes no request; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request that is on its way; `arguments` may hold what people wrote into their recipe.

    `notes` are what to tell whoever asked for it.
    """

    exec_id: str
    executor_id: str
    task: TaskName
    arguments: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()

    def message(self) -> str:
        """The message for the queue (contract, section 2, Request). Raises SubmitError: it is too large."""
        request = {
            "executor_id": self.executor_id,
            "exec_id": self.exec_id,
            "name": self.task.value,
            "args": self.arguments,
        }
        body = json.dumps(request)
        if len(body) > MESSAGE_LIMIT:  # ASCII: as many bytes
            raise SubmitError(
                f"the request has {len(body):,} bytes, and a message on the queue at most {MESSAGE_LIMIT:,}: make "
                "the recipe smaller"
            )
        return body


def make_request(recipe: str, options: argparse.Namespace, exec_id: str, executor_id: str) -> NewRequest:
    """The request of a recipe's text.

    Raises:
        SubmitError: the recipe or an option makes no sense.
    """
    try:
        parsed = parse_recipe(recipe).with_run_id(exec_id)
    except RecipeError as error:
        raise SubmitError(str(error)) from error
    arguments = {
        "recipe": _recipe_text(parsed, recipe),
        "debug_mode": "true" if options.debug else "false",
        **({"version": options.cli_version} if options.cli_version else {}),
        **_json("extra_pip_requirements", options.requirement),
        **_json("extra_pip_plugins", options.plugin),
        **_json("extra_env_vars", _variables(options.env)),
    }
    task = TaskName.TEST_CONNECTION if options.test_connection else TaskName.RUN_INGEST
    try:  # as the executor will read it
        request = request_from_input(exec_id, task=task.value, arguments=arguments, executor_id=executor_id)
        _check_venv(request, parsed)
    except MalformedMessage as error:
        raise SubmitError(error.reason) from error
    except VenvError as error:
        raise SubmitError(str(error)) from error
    return NewRequest(exec_id, executor_id, task, arguments, _notes(request))


def _check_venv(request: ExecutionRequest, recipe: Recipe) -> None:
    """Raise VenvError for what no executor builds a venv of, as far as it shows here.

    What a requirement takes from the executor's own environment does not show, so such a one is let pass.
    """
    given = request.extra_env_vars
    known = [
        item if all(name in given for name in _TEMPLATE.findall(item)) else _ANY_REQUIREMENT
        for item in request.extra_pip_requirements
    ]
    venv_spec(
        version=request.version,
        plugin=recipe.plugin,
        extra_plugins=request.extra_pip_plugins,
        extra_requirements=known,
        dependency_resolution_enabled=True,
        environ=given,
    )


def _notes(request: ExecutionRequest) -> tuple[str, ...]:
    text = request.extra_env_vars.get(WEIGHT_VARIABLE, "").strip()
    if text and float(text) > 1:
        return (f"{WEIGHT_VARIABLE}={text} counts as 1.0: while the run lasts, its executor starts no other",)
    return ()


def _recipe_text(recipe: Recipe, written: str) -> str:
    """The recipe as JSON, as DataHub has them; as it was written where YAML says what JSON can't (a date)."""
    try:
        return json.dumps(recipe.document, allow_nan=False)
    except (TypeError, ValueError):
        return written


def _json(name: str, value: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    return {name: json.dumps(value)} if value else {}


def _variables(given: Sequence[str]) -> dict[str, str]:
    variables = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise SubmitError(
                f"--env needs NAME=VALUE, and {name or 'one of them'!r} has no {'=' if name else 'name'}"
            )
        if re.search(r"\s", name):
            raise SubmitError(f"--env needs NAME=VALUE, and the name {name!r} has a blank in it")
        variables[name] = value
    return variables
