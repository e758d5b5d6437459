import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from executor.messages import (
    ExecutionRequest,
    MalformedMessage,
    Message,
    Reference,
    Signal,
    TaskName,
    parse,
    request_from_input,
)

DATA = Path(__file__).parents[1] / "data" / "messages"
BODIES = {path.stem: path.read_text() for path in sorted(DATA.iterdir())}
EXEC_ID = "5c1a2f0e-7b7d-4d39-9b0e-3f7f2c6d1a44"
RUNS = [name for name in BODIES if ("request" in name or "input" in name) and "connection" not in name]
SECRET = "hunter2-s3cret"


def request_body(args: dict[str, Any] | None = None, **changes: Any) -> str:
    args = {"recipe": "source: {type: demo}"} | (args or {})
    return json.dumps(
        {"executor_id": "remote", "exec_id": "run-1", "name": "RUN_INGEST", "args": args} | changes
    )


def parsed(body: str) -> ExecutionRequest:
    message = parse(body)
    assert isinstance(message, ExecutionRequest)
    return message


def refused(body: str) -> MalformedMessage:
    with pytest.raises(MalformedMessage) as caught:
        parse(body)
    assert str(caught.value) == caught.value.reason
    return caught.value


def nested(levels: int) -> str:
    body = request_body()
    for _ in range(levels):
        body = json.dumps({"Type": "Notification", "Message": body})
    return body


# --- every form of the contract's section 2 ---


@pytest.mark.parametrize("name", RUNS)
def test_a_request_reads_the_same_in_every_form(name: str) -> None:
    request = parsed(BODIES[name])

    assert request.exec_id == EXEC_ID
    assert request.name is TaskName.RUN_INGEST
    assert request.executor_id == "remote"
    assert json.loads(request.recipe)["source"]["config"]["database"] == "café"
    assert request.version == "1.5.0.15"
    assert request.debug_mode is False
    assert request.extra_pip_requirements == ("psycopg2-binary==2.9.10",)
    assert request.extra_pip_plugins == ("sql-parser",)
    assert request.extra_env_vars == {
        "PGSSLMODE": "require",
        "EXECUTOR_TASK_MEMORY_LIMIT": "4194304",
        "EXECUTOR_TASK_WEIGHT": "0.5",
    }
    assert request.memory_limit_kb == 4194304
    assert request.weight == 0.5


def test_a_connection_test_needs_no_more_than_a_recipe() -> None:
    request = parsed(BODIES["request_test_connection"])

    assert request.name is TaskName.TEST_CONNECTION
    assert request.version is None
    assert request.extra_pip_requirements == request.extra_pip_plugins == ()
    assert request.extra_env_vars == {}
    assert request.memory_limit_kb is request.weight is None


@pytest.mark.parametrize("name", [name for name in BODIES if "reference" in name])
def test_a_reference_reads_the_same_in_every_form(name: str) -> None:
    assert parse(BODIES[name]) == Reference(EXEC_ID)


@pytest.mark.parametrize("name", [name for name in BODIES if "signal" in name])
def test_a_kill_reads_the_same_in_every_form(name: str) -> None:
    assert parse(BODIES[name]) == Signal(EXEC_ID, "remote")


def test_every_file_of_the_test_data_is_covered() -> None:
    kinds = ("request", "input", "reference", "signal")
    assert [name for name in BODIES if not any(kind in name for kind in kinds)] == []


def test_base64_with_line_breaks_and_no_padding_is_read() -> None:
    body = base64.encodebytes(BODIES["celery_unencoded_request"].encode()).decode().rstrip("=\n")

    assert parsed(body).exec_id == EXEC_ID


def test_wrapping_is_followed_to_a_bounded_depth() -> None:
    assert parsed(nested(4)).exec_id == "run-1"
    assert refused(nested(5)).reason == "the message is wrapped more than 4 times"


# --- arguments ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        ("TRUE", True),
        ("true", True),
        ("False", False),
        (False, False),
        ("", False),
        (None, False),
    ],
)
def test_debug_mode_comes_as_a_boolean_or_its_name(value: object, expected: bool) -> None:
    assert parsed(request_body({"debug_mode": value})).debug_mode is expected
    assert parsed(request_body({"debugMode": value})).debug_mode is expected


def test_the_empty_string_means_none() -> None:
    empty = dict.fromkeys(("version", "extra_pip_requirements", "extra_pip_plugins", "extra_env_vars"), "")
    request = parsed(request_body(empty, executor_id=""))

    assert request.executor_id is request.version is None
    assert request.extra_pip_requirements == request.extra_pip_plugins == ()
    assert request.extra_env_vars == {}


def test_environment_values_become_the_text_json_has_for_them() -> None:
    env = {"BOOL": True, "INT": 7, "FLOAT": 0.25, "TEXT": "x", "BLANK": " ", "EMPTY": "", "NULL": None}

    assert parsed(request_body({"extra_env_vars": json.dumps(env)})).extra_env_vars == {
        "BOOL": "true",
        "INT": "7",
        "FLOAT": "0.25",
        "TEXT": "x",
        "BLANK": " ",
    }


def test_a_weight_over_one_counts_as_one() -> None:
    assert parsed(request_body({"extra_env_vars": {"EXECUTOR_TASK_WEIGHT": "2.5"}})).weight == 1.0


def test_a_request_read_over_graphql_is_checked_in_the_same_way() -> None:
    arguments = {"recipe": "{}", "version": None, "extra_env_vars": '{"A": 1}'}
    request = request_from_input("run-1", task="RUN_INGEST", arguments=arguments, executor_id="remote")
    assert request.extra_env_vars == {"A": "1"}

    with pytest.raises(MalformedMessage, match="no recipe") as caught:
        request_from_input("run-1", task="RUN_INGEST", arguments={}, executor_id="remote")
    assert (caught.value.exec_id, caught.value.executor_id) == ("run-1", "remote")


# --- faults that end the request as FAILURE ---


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"recipe": ""}, "the request has no recipe"),
        ({"recipe": None}, "the request has no recipe"),
        ({"recipe": {"source": SECRET}}, "recipe must be text, is an object"),
        ({"recipe": "\ud800" + SECRET}, "recipe holds half a surrogate pair, which is no text"),
        ({"version": 1.5}, "version must be text, is a number"),
        ({"debug_mode": SECRET}, "debug_mode must be true or false"),
        ({"extra_pip_plugins": {"a": SECRET}}, "extra_pip_plugins must be a list, is an object"),
        ({"extra_pip_plugins": [["x"]]}, "each entry of extra_pip_plugins must be text, is a list"),
        ({"extraPipRequirements": f"[{SECRET}"}, "extra_pip_requirements: not valid JSON (line 1, column 2)"),
        ({"extra_env_vars": f'{{"A": {SECRET}'}, "extra_env_vars: not valid JSON (line 1, column 7)"),
        ({"extra_env_vars": [SECRET]}, "extra_env_vars must be an object, is a list"),
        ({"extra_env_vars": {"A": [SECRET]}}, "extra_env_vars: the value of A must be text, is a list"),
        ({"extra_env_vars": {"A": f"{SECRET}\0"}}, "extra_env_vars: the value of A holds a NUL"),
        ({"extra_env_vars": {"A=B": SECRET}}, "a name in extra_env_vars is empty or holds = or a NUL"),
        ({"extra_env_vars": '{"A": 1, "A": 2}'}, "extra_env_vars: JSON with the same key twice in an object"),
        ({"extra_env_vars": '{"A": NaN}'}, "extra_env_vars: JSON with NaN or Infinity"),
    ],
)
def test_a_faulty_argument_is_named_without_its_value(args: dict[str, Any], reason: str) -> None:
    error = refused(request_body(args))

    assert (error.exec_id, error.executor_id) == ("run-1", "remote")
    assert error.reason == reason
    assert SECRET not in repr(error)


@pytest.mark.parametrize("weight", ["half", "0", "-1", "nan", "inf"])
def test_a_senseless_weight_is_refused(weight: str) -> None:
    error = refused(request_body({"extra_env_vars": {"EXECUTOR_TASK_WEIGHT": weight}}))

    assert error.reason == "EXECUTOR_TASK_WEIGHT must be a number above 0 (a share of 1.0)"
    assert error.exec_id == "run-1"


@pytest.mark.parametrize("limit", ["4 GB", "0", "-1", "1.5", "9" * 30, "²"])
def test_a_senseless_memory_limit_is_refused(limit: str) -> None:
    error = refused(request_body({"extra_env_vars": {"EXECUTOR_TASK_MEMORY_LIMIT": limit}}))

    assert error.reason == "EXECUTOR_TASK_MEMORY_LIMIT must be a whole number of kilobytes above 0"
    assert error.exec_id == "run-1"


@pytest.mark.parametrize(("name", "shown"), [("RUN_MONITOR", "RUN_MONITOR"), (None, "null"), ("a b", "text")])
def test_an_unknown_task_is_named(name: object, shown: str) -> None:
    error = refused(request_body(name=name))

    assert error.reason == f"the task's name must be RUN_INGEST or TEST_CONNECTION, is {shown}"
    assert error.exec_id == "run-1"


@pytest.mark.parametrize("args", [None, "{}", []])
def test_args_that_are_no_object_fail_the_request(args: object) -> None:
    error = refused(json.dumps({"exec_id": "run-1", "name": "RUN_INGEST", "args": args}))

    assert error.exec_id == "run-1"
    assert error.reason.startswith("the request's args must be an object, is ")


def test_a_change_event_with_an_unreadable_input_fails_its_request() -> None:
    event = json.loads(BODIES["change_event_input"])
    event["aspect"]["value"] = f'{{"args": {SECRET}'

    error = refused(json.dumps(event))

    assert error.exec_id == EXEC_ID
    assert error.reason == "the change event's aspect: not valid JSON (line 1, column 10)"


# --- faults that must not end any request ---


@pytest.mark.parametrize(
    "exec_id",
    ["../etc", "a/b", ".hidden", "-rf", "", "a b", "a:b", "a\n", "é", "a" * 201, "\ud800", 7, None, ["x"]],
)
def test_an_unsafe_id_is_never_handed_on(exec_id: object) -> None:
    assert refused(request_body(exec_id=exec_id)).exec_id is None
    assert refused(json.dumps({"exec_id": exec_id, "signal": "KILL"})).exec_id is None
    assert refused(json.dumps({"urn": f"urn:li:dataHubExecutionRequest:{exec_id} "})).exec_id is None


@pytest.mark.parametrize("exec_id", [EXEC_ID, "sqlite-2025_11_24-12_00_00-x1", "_run.7", "a" * 200])
def test_ids_as_datahub_makes_them_are_safe(exec_id: str) -> None:
    assert parsed(request_body(exec_id=exec_id)).exec_id == exec_id


@pytest.mark.parametrize("signal", ["PAUSE", "kill", None, {"a": 1}])
def test_a_signal_that_is_not_understood_does_not_fail_the_run(signal: object) -> None:
    error = refused(json.dumps({"exec_id": "run-1", "executor_id": "remote", "signal": signal}))
    assert error.exec_id is None

    event = json.loads(BODIES["change_event_signal"])
    event["aspect"]["value"] = json.dumps({"signal": signal})
    assert refused(json.dumps(event)).exec_id is None


@pytest.mark.parametrize(
    "changes",
    [
        {"entityType": "dataset"},
        {"changeType": "DELETE"},
        {"changeType": "RESTATE"},
        {"aspectName": "dataHubExecutionRequestResult"},
        {"aspectName": "dataHubExecutionRequestSignal", "aspect": None},
        {"entityKeyAspect": None, "entityUrn": "urn:li:dataset:x"},
        {"entityKeyAspect": None, "entityUrn": None},
    ],
)
def test_a_change_event_about_something_else_harms_no_request(changes: dict[str, Any]) -> None:
    assert refused(json.dumps(json.loads(BODIES["change_event_input"]) | changes)).exec_id is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (" ", "the message is empty"),
        ("hello", "the message is neither a JSON object nor one in base64"),
        ('"text"', "the message is neither a JSON object nor one in base64"),
        ("gIA=", "the message is neither a JSON object nor one in base64"),
        ("[]", "the message must be a JSON object, is a list"),
        ('{"a": 1, "a": 2}', "JSON with the same key twice in an object"),
        ('{"a": 1e400, "b": -Infinity}', "JSON with NaN or Infinity"),
        ('{"a": 1' + "0" * 5000 + "}", "JSON with a number too long to read"),
        ("[" * 200_000, "JSON nested too deep"),
        ('{"a":' * 200_000, "JSON nested too deep"),
        ('{"hello": "s3cret"}', "the message has none of the known forms; its keys: 'hello'"),
        ('{"urn": "urn:li:dataset:x"}', "the message has none of the known forms; its keys: 'urn'"),
        ('{"detail": 7, "detail-type": "x"}', "the message must be a JSON object, is a number"),
        ('{"body": "{}", "headers": {}}', "the Celery message's body must be [args, kwargs, embed]"),
        (
            '{"body": [[{"a": 1}, 7], {}, {}], "properties": {}}',
            "the Celery message has no execution request among its args and kwargs",
        ),
    ],
)
def test_a_body_that_is_none_of_the_forms_is_refused_with_the_reason(body: str, reason: str) -> None:
    error = refused(body)

    assert error.reason == reason
    assert error.exec_id is None


def test_what_may_hold_a_secret_is_not_in_the_repr() -> None:
    args = {
        "recipe": SECRET,
        "extra_env_vars": {"A": SECRET},
        "extra_pip_requirements": [f"x @ https://{SECRET}"],
    }

    assert SECRET not in repr(parse(request_body(args)))


# --- anything at all ---

JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    1e300,
    "",
    "x",
    "\ud800",
    "é\0",
    "[",
    "{}",
    [],
    {},
    [[]],
    {"": None},
]


def outcome_of(body: str) -> Message | MalformedMessage:
    try:
        return parse(body)
    except MalformedMessage as error:
        return error


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Replace, drop or double one part of a JSON value, at a random depth."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {other: entry for other, entry in value.items() if other != key}
        return value | {key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        index = rng.randrange(len(value))
        return [*value[:index], mutate_value(value[index], rng), *value[index + rng.randint(0, 1) :]]
    if isinstance(value, str) and value[:2] in ('{"', "[[") and rng.random() < 0.7:
        return json.dumps(mutate_value(json.loads(value), rng))
    return rng.choice(JUNK)


def mutate_text(text: str, rng: random.Random) -> str:
    """Cut out, double or replace a few characters."""
    start = rng.randrange(len(text))
    end = start + rng.randint(0, 8)
    return (
        text[:start]
        + rng.choice(["", text[start:end] * 2, '"', "}", "\\ud83d", "9" * 9, "\x00"])
        + text[end:]
    )


@pytest.mark.parametrize("name", BODIES)
def test_no_mutation_of_a_message_raises_anything_but_malformed_message(name: str) -> None:
    rng = random.Random(name)
    body = BODIES[name]
    encoded = body[0] != "{"
    plain = base64.b64decode(body).decode() if encoded else body
    refusals = 0

    for _ in range(200):
        value = mutate_value(json.loads(plain), rng)
        mutated = mutate_text(plain, rng) if rng.random() < 0.4 else json.dumps(value)
        if encoded and rng.random() < 0.9:
            mutated = base64.b64encode(mutated.encode(errors="surrogatepass")).decode()
        outcome = outcome_of(mutated)
        refusals += isinstance(outcome, MalformedMessage)
        assert repr(outcome).isprintable()
        assert "/" not in (outcome.exec_id or "")

    assert 0 < refusals < 200
