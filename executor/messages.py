"""A message's body, in any of the forms of the contract's section 2, to what it asks for."""

import base64
from collections.abc import Mapping
from itertools import chain

from executor.datahub.state import URN_PREFIX
from executor.requests import (
    ExecutionRequest,
    MalformedMessage,
    Reference,
    Signal,
    TaskName,
    checked_text,
    kind,
    load_json,
    request_from_input,
    safe_exec_id,
)

__all__ = [
    "ExecutionRequest",
    "MalformedMessage",
    "Message",
    "Reference",
    "Signal",
    "TaskName",
    "parse",
    "request_from_input",
]

Message = ExecutionRequest | Reference | Signal

_MAX_WRAPPINGS = 4  # SNS in EventBridge in Celery is three, and no end is known
_ENTITY = "dataHubExecutionRequest"
_INPUT_ASPECT = "dataHubExecutionRequestInput"
_SIGNAL_ASPECT = "dataHubExecutionRequestSignal"
# Avro's JSON names the member of a union that a value is, rest.li's may do so: {"string": "x"}.
_UNION_MEMBERS = frozenset({"string", "bytes", "map"})
_UNION_PREFIX = "com.linkedin."


def parse(body: str) -> Message:
    """Read one message.

    Raises MalformedMessage: with an id where an execution request was named that cannot be run as it is,
    without one where no request may be ended on account of this message.
    """
    value = _decode(body)
    for _ in range(_MAX_WRAPPINGS + 1):
        if not isinstance(value, dict):
            raise MalformedMessage(f"the message must be a JSON object, is {kind(value)}")
        if not _is_wrapping(value):
            return _read(value)
        value = _unwrap(value)
    raise MalformedMessage(f"the message is wrapped more than {_MAX_WRAPPINGS} times")


def _decode(text: str) -> object:
    """Read JSON, or JSON in base64, as Celery's SQS transport sends it."""
    text = text.strip()
    if not text:
        raise MalformedMessage("the message is empty")
    if text[0] not in {"{", "["}:
        try:
            unwrapped = "".join(text.split())  # some encoders break lines, some leave the padding out
            padding = "=" * (-len(unwrapped) % 4)
            text = base64.b64decode(unwrapped + padding, validate=True).decode()
        except ValueError:
            raise MalformedMessage("the message is neither a JSON object nor one in base64") from None
    return load_json(text)


def _is_wrapping(value: Mapping[str, object]) -> bool:
    return _is_notification(value) or _is_event(value) or _is_celery(value)


def _is_notification(value: Mapping[str, object]) -> bool:
    return value.get("Type") == "Notification" and "Message" in value


def _is_event(value: Mapping[str, object]) -> bool:
    return "detail" in value and "detail-type" in value


def _is_celery(value: Mapping[str, object]) -> bool:
    return "body" in value and ("properties" in value or "headers" in value)


def _unwrap(value: Mapping[str, object]) -> object:
    """What an SNS notification, an EventBridge event or a Celery message carries."""
    if _is_notification(value):
        carried = value["Message"]
    elif _is_event(value):
        carried = value["detail"]
    else:
        return _celery_object(value["body"])
    return _decode(carried) if isinstance(carried, str) else carried


def _celery_object(body: object) -> object:
    """The first object that is one of the forms, of a task message (protocol 2): [args, kwargs, embed]."""
    task = _decode(body) if isinstance(body, str) else body
    match task:
        case [list(args), dict(kwargs), *_]:
            for value in chain(args, [kwargs], kwargs.values()):
                if isinstance(value, dict) and (_is_wrapping(value) or _is_form(value)):
                    return value
            raise MalformedMessage("the Celery message has no execution request among its args and kwargs")
        case _:
            raise MalformedMessage("the Celery message's body must be [args, kwargs, embed]")


def _is_form(value: Mapping[str, object]) -> bool:
    return "aspectName" in value or "exec_id" in value or _is_reference(value)


def _is_reference(value: Mapping[str, object]) -> bool:
    urn = value.get("urn")
    return isinstance(urn, str) and urn.startswith(URN_PREFIX)


def _read(value: Mapping[str, object]) -> Message:
    if "aspectName" in value:
        return _change_event({key: _plain(entry) for key, entry in value.items()})
    if "exec_id" in value:
        exec_id = safe_exec_id(value["exec_id"])
        if "signal" in value:
            return _signal(exec_id, value["signal"], value.get("executor_id"))
        return _request(exec_id, value.get("name"), value.get("args"), value.get("executor_id"))
    if _is_reference(value):
        return Reference(_id_in_urn(value["urn"]))
    keys = ", ".join(sorted(ascii(key)[:40] for key in value)[:10]) or "none"
    raise MalformedMessage(f"the message has none of the known forms; its keys: {keys}")


def _request(exec_id: str, task: object, args: object, executor_id: object) -> ExecutionRequest:
    try:
        executor = _executor_id(executor_id)
    except MalformedMessage as error:
        raise MalformedMessage(error.reason, exec_id=exec_id) from None
    if not isinstance(args, dict):
        reason = f"the request's args must be an object, is {kind(args)}"
        raise MalformedMessage(reason, exec_id=exec_id, executor_id=executor)
    return request_from_input(exec_id, task=task, arguments=args, executor_id=executor)


def _signal(exec_id: str, signal: object, executor_id: object) -> Signal:
    """Raise MalformedMessage without the id: a run doesn't end because of a signal that is not understood."""
    if signal != "KILL":
        raise MalformedMessage("the only signal is KILL")
    return Signal(exec_id, _executor_id(executor_id))


def _executor_id(value: object) -> str | None:
    return None if value is None else checked_text("the executor id", value).strip() or None


def _id_in_urn(urn: object) -> str:
    if not isinstance(urn, str) or not urn.startswith(URN_PREFIX):
        raise MalformedMessage(f"an execution request's URN must begin with {URN_PREFIX}")
    return safe_exec_id(urn.removeprefix(URN_PREFIX))


def _change_event(event: Mapping[str, object]) -> ExecutionRequest | Signal:
    """A MetadataChangeLog, its own fields free of union wrappings."""
    if event.get("entityType") != _ENTITY:
        raise MalformedMessage("the change event is about another entity than an execution request")
    if event.get("changeType") != "UPSERT":
        raise MalformedMessage("the change event is no UPSERT")
    aspect_name = event["aspectName"]
    if aspect_name not in (_INPUT_ASPECT, _SIGNAL_ASPECT):
        raise MalformedMessage(
            "the change event is neither about an execution request's input nor its signal"
        )
    exec_id = _changed_id(event)
    try:
        aspect = _aspect(event, "aspect")
    except MalformedMessage as error:
        named = exec_id if aspect_name == _INPUT_ASPECT else None
        raise MalformedMessage(error.reason, exec_id=named) from None
    if aspect_name == _SIGNAL_ASPECT:
        return _signal(exec_id, aspect.get("signal"), aspect.get("executorId"))
    return _request(exec_id, aspect.get("task"), aspect.get("args"), aspect.get("executorId"))


def _changed_id(event: Mapping[str, object]) -> str:
    if event.get("entityKeyAspect") is not None:
        return safe_exec_id(_aspect(event, "entityKeyAspect").get("id"))
    return _id_in_urn(event.get("entityUrn"))


def _aspect(event: Mapping[str, object], field: str) -> Mapping[str, object]:
    """The fields of a GenericAspect: {"value": "<JSON>", "contentType": "application/json"}."""
    generic = event.get(field)
    value = _plain(generic.get("value")) if isinstance(generic, dict) else None
    try:
        fields = load_json(_utf8_of_bytes(value)) if isinstance(value, str) else value
    except MalformedMessage as error:
        raise MalformedMessage(f"the change event's {field}: {error.reason}") from None
    if not isinstance(fields, dict):
        raise MalformedMessage(f"the change event's {field} must hold a JSON object, is {kind(fields)}")
    return {key: _plain(entry) for key, entry in fields.items()}


def _plain(value: object) -> object:
    """A value without the union wrapping of Avro's and rest.li's JSON."""
    if isinstance(value, dict) and len(value) == 1:
        [(member, inner)] = value.items()
        if member in _UNION_MEMBERS or member.startswith(_UNION_PREFIX):
            return inner
    return value


def _utf8_of_bytes(text: str) -> str:
    """The text in a field of Avro's type bytes, whose JSON form has one character (up to U+00FF) a byte.

    Other serializers write it as text: then it holds characters above that, or is no valid UTF-8 as bytes.
    """
    try:
        return text.encode("latin-1").decode()
    except ValueError:
        return text
