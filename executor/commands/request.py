"""A request made from a recipe and the options of `submit`, in the form in which DataHub asks for a run. Pure."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from executor.ingestion.recipe import Recipe, RecipeError, parse_recipe
from executor.requests import MalformedMessage, TaskName, request_from_input

MESSAGE_LIMIT: Final = 1024 * 1024  # bytes (contract, section 2)


class SubmitError(Exception):
    """What was asked for makes no request; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request that is on its way; `arguments` may hold what people wrote into their recipe."""

    exec_id: str
    executor_id: str
    task: TaskName
    arguments: Mapping[str, str] = field(repr=False)

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
        request_from_input(exec_id, task=task.value, arguments=arguments, executor_id=executor_id)
    except MalformedMessage as error:
        raise SubmitError(error.reason) from error
    return NewRequest(exec_id, executor_id, task, arguments)


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
        variables[name] = value
    return variables
