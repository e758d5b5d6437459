"""What a message asks for: a run, a run to be looked up, or a kill (contract, section 2)."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NoReturn

MEMORY_LIMIT_VARIABLE = "EXECUTOR_TASK_MEMORY_LIMIT"
WEIGHT_VARIABLE = "EXECUTOR_TASK_WEIGHT"

# DataHub's own ids are UUIDs. The id names folders, so it holds nothing that means something in a path, a
# URN or a PATH-like list (no `/`, `:`, leading `.`), nor could be taken for an option (no leading `-`).
_EXEC_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", re.ASCII)
_SHOWN_TASK = re.compile(r"[A-Za-z0-9_]{1,40}", re.ASCII)
_MAX_MEMORY_LIMIT_KB = 2**53 - 1  # in bytes, still within the kernel's 64 bits


class MalformedMessage(ValueError):  # noqa: N818 - it is the message that is malformed
    """A message that is none of the known forms, or a request that cannot be run.

    `reason` tells a person what is wrong and holds no values of the body, only names and types. `exec_id` is
    there only where an execution request should be ended as `FAILURE` with that reason.
    """

    def __init__(self, reason: str, *, exec_id: str | None = None, executor_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.exec_id = exec_id
        self.executor_id = executor_id


class TaskName(StrEnum):
    """The tasks that DataHub asks an executor for."""

    RUN_INGEST = "RUN_INGEST"
    TEST_CONNECTION = "TEST_CONNECTION"


@dataclass(frozen=True, slots=True)
class ExecutionRequest:
    """One run, whole. What may hold a secret is left out of the repr."""

    exec_id: str
    name: TaskName
    executor_id: str | None
    recipe: str = field(repr=False)
    version: str | None
    debug_mode: bool
    extra_pip_requirements: tuple[str, ...] = field(repr=False)
    extra_pip_plugins: tuple[str, ...]
    extra_env_vars: Mapping[str, str] = field(repr=False)

    @property
    def memory_limit_kb(self) -> int | None:
        """The run's address space in kilobytes, None for no limit."""
        text = self.extra_env_vars.get(MEMORY_LIMIT_VARIABLE, "").strip()
        if not text:
            return None
        limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 16 else 0
        if not 0 < limit <= _MAX_MEMORY_LIMIT_KB:
            raise ValueError(f"{MEMORY_LIMIT_VARIABLE} must be a whole number of kilobytes above 0")
        return limit

    @property
    def weight(self) -> float | None:
        """The run's share of the pool, above 0 and at most 1.0; None for the default share."""
        text = self.extra_env_vars.get(WEIGHT_VARIABLE, "").strip()
        if not text:
            return None
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"{WEIGHT_VARIABLE} must be a number above 0 (a share of 1.0)")
        return min(weight, 1.0)


@dataclass(frozen=True, slots=True)
class Reference:
    """A request that is to be read from DataHub."""

    exec_id: str


@dataclass(frozen=True, slots=True)
class Signal:
    """A request to end a run; KILL is the only kind there is."""

    exec_id: str
    executor_id: str | None


def safe_exec_id(value: object) -> str:
    """Return `value` if it can be an execution request's id, else raise MalformedMessage without an id."""
    if not isinstance(value, str):
        raise MalformedMessage(f"the execution request's id must be text, is {kind(value)}")
    if not _EXEC_ID.fullmatch(value):
        raise MalformedMessage(
            "the execution request's id is unsafe: it may have at most 200 characters, A-Z a-z 0-9 . _ -, "
            "and begins with none of . -"
        )
    return value


def request_from_input(
    exec_id: str, *, task: object, arguments: Mapping[str, object], executor_id: str | None
) -> ExecutionRequest:
    """Check a request's parts, as GraphQL, the input aspect and a request on the queue all have them.

    Raises MalformedMessage, with `exec_id` unless that is unsafe itself.
    """
    safe_exec_id(exec_id)
    arguments_of = _Arguments(arguments)
    try:
        request = ExecutionRequest(
            exec_id=exec_id,
            name=_task_name(task),
            executor_id=(executor_id or "").strip() or None,
            recipe=arguments_of.recipe(),
            version=arguments_of.text("version"),
            debug_mode=arguments_of.flag("debug_mode"),
            extra_pip_requirements=arguments_of.texts("extra_pip_requirements"),
            extra_pip_plugins=arguments_of.texts("extra_pip_plugins"),
            extra_env_vars=arguments_of.env("extra_env_vars"),
        )
        # Raise for values that make no sense now, while the request can still be refused.
        _ = request.memory_limit_kb, request.weight
    except ValueError as error:
        raise MalformedMessage(str(error), exec_id=exec_id, executor_id=executor_id) from None
    return request


def load_json(text: str) -> object:
    """Read JSON strictly: no key twice, no NaN, no Infinity.

    Raises MalformedMessage, whose reason never repeats the text.
    """
    try:
        value: object = json.loads(text, object_pairs_hook=_object_of_pairs, parse_constant=_refuse_constant)
    except MalformedMessage:
        raise
    except json.JSONDecodeError as error:
        raise MalformedMessage(f"not valid JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise MalformedMessage("JSON nested too deep") from None
    except ValueError:  # the one fault left: more digits than Python reads
        raise MalformedMessage("JSON with a number too long to read") from None
    return value


def kind(value: object) -> str:
    """What JSON calls a value's type, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case dict():
            return "an object"
        case _:
            return "a list"


def checked_text(what: str, value: object) -> str:
    """Return `value` if it is text that UTF-8 can hold, else raise MalformedMessage, naming `what` it is."""
    if not isinstance(value, str):
        raise MalformedMessage(f"{what} must be text, is {kind(value)}")
    if not _is_utf8(value):
        raise MalformedMessage(f"{what} holds half a surrogate pair, which is no text")
    return value


class _Arguments:
    """A request's `args`; every method raises MalformedMessage with words that name the key, and no id."""

    def __init__(self, arguments: Mapping[str, object]) -> None:
        self._arguments = arguments

    def _get(self, key: str) -> object:
        """Look the key up as snake_case, then as camelCase; None where it is absent or empty."""
        value = self._arguments.get(key)
        if value is None:
            head, *tail = key.split("_")
            value = self._arguments.get(head + "".join(part.capitalize() for part in tail))
        return None if isinstance(value, str) and not value.strip() else value

    def text(self, key: str) -> str | None:
        value = self._get(key)
        return None if value is None else checked_text(key, value).strip()

    def recipe(self) -> str:
        value = self._get("recipe")
        if value is None:
            raise MalformedMessage("the request has no recipe")
        return checked_text("recipe", value)

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        word = value.strip().lower() if isinstance(value, str) else ""
        if word not in {"true", "false"}:
            raise MalformedMessage(f"{key} must be true or false")
        return word == "true"

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._extra(key)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise MalformedMessage(f"{key} must be a list, is {kind(value)}")
        texts = (checked_text(f"each entry of {key}", entry).strip() for entry in value)
        return tuple(text for text in texts if text)

    def env(self, key: str) -> dict[str, str]:
        value = self._extra(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise MalformedMessage(f"{key} must be an object, is {kind(value)}")
        variables = {_variable(name): _variable_value(key, name, entry) for name, entry in value.items()}
        return {name: text for name, text in variables.items() if text}

    def _extra(self, key: str) -> object:
        """An extra is either the JSON value itself or text that holds it."""
        value = self._get(key)
        if not isinstance(value, str):
            return value
        try:
            return load_json(value)
        except MalformedMessage as error:
            raise MalformedMessage(f"{key}: {error.reason}") from None


def _task_name(task: object) -> TaskName:
    if isinstance(task, str) and task in TaskName.__members__:
        return TaskName(task)
    shown = f"{task}" if isinstance(task, str) and _SHOWN_TASK.fullmatch(task) else kind(task)
    raise MalformedMessage(f"the task's name must be {' or '.join(TaskName)}, is {shown}")


def _variable(name: object) -> str:
    text = checked_text("each name in extra_env_vars", name)
    if not text or "=" in text or "\0" in text:
        raise MalformedMessage("a name in extra_env_vars is empty or holds = or a NUL")
    return text


def _variable_value(key: str, name: object, value: object) -> str:
    what = f"{key}: the value of {ascii(name)[1:-1][:80]}"
    if value is None:
        return ""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    text = checked_text(what, value)
    if "\0" in text:
        raise MalformedMessage(f"{what} holds a NUL")
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object_of_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedMessage("JSON with the same key twice in an object")
    return value


def _refuse_constant(_name: str) -> NoReturn:
    raise MalformedMessage("JSON with NaN or Infinity")
