"""DataHub's answers read with suspicion: a proxy in between may answer anything (contract, section 3).

Each reader raises NotUnderstoodError for what has another shape than it must have.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from executor.datahub.errors import (
    DataHubError,
    DataHubRefusedError,
    DataHubUnavailableError,
    ForbiddenError,
    NotFoundError,
    NotUnderstoodError,
    UnauthorizedError,
    UnsupportedError,
    forbidden,
    refusal,
    shortened,
    write_refusal,
)

Object = Mapping[str, Any]

WAIT_AND_SEE = {408, 425, 429}  # client errors that pass by themselves

_NUMBER = re.compile(r"[0-9]{1,18}")
# GraphQL's own errors, by the classification that the server's library gives them.
_DOCUMENT_ERRORS = {"ValidationError", "InvalidSyntax", "OperationNotSupported"}
_MISSING_VALUE = "NullValueInNonNullableField"


class GraphQLAnswer:
    """An answer's data, and the errors that came with it."""

    def __init__(self, answer: object) -> None:
        found = an_object(answer, "GraphQL's answer")
        self._data = _optional(found.get("data"), "GraphQL's `data`")
        self._errors = _list(found.get("errors") or [], "GraphQL's `errors`")

    def field(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """One root field of the data.

        Raises:
            UnsupportedError: the server's schema does not allow the document.
            DataHubError: whatever else the errors say. Half an answer is none: what is missing in it would
                look as if it did not exist.
        """
        if self._errors:
            raise _graphql_error(name, self._errors)
        if name not in self._data:
            raise NotUnderstoodError(f"GraphQL's `data` has no {name}")
        return self._data[name]


def execution_request(answer: GraphQLAnswer) -> Object | None:
    """The request that was asked for; None if there is no such request."""
    try:
        found = answer.field("executionRequest")
    except NotFoundError:
        return None
    return None if found is None else an_object(found, "executionRequest")


def run_result(answer: GraphQLAnswer) -> Object:
    """`status`, `startTimeMs`, … of the request that was asked for; empty where there is none."""
    result = _optional((execution_request(answer) or {}).get("result"), "result")
    for name in ("status", "report"):
        optional_text(result.get(name), name)
    for name in ("startTimeMs", "durationMs"):
        optional_number(result.get(name), name)
    return result


def request_input(answer: GraphQLAnswer) -> Object | None:
    """`task`, `arguments` (a mapping), `executorId` of the request; None if there is no such request."""
    found = execution_request(answer)
    if found is None:
        return None
    given = an_object(found.get("input"), "input")
    entries = [an_object(entry, "an argument") for entry in _list(given.get("arguments") or [], "arguments")]
    return {
        "task": _text(given.get("task"), "task"),
        "executorId": optional_text(given.get("executorId"), "executorId"),
        "arguments": {
            _text(entry.get("key"), "an argument's key"): optional_text(entry.get("value"), "an argument")
            for entry in entries
        },
    }


def secret_values(answer: GraphQLAnswer) -> dict[str, str]:
    """Values by name."""
    found = _list(answer.field("getSecretValues") or [], "getSecretValues")
    secrets = [an_object(entry, "a secret") for entry in found]
    return {
        _text(entry.get("name"), "a secret's name"): _text(entry.get("value"), "a secret's value")
        for entry in secrets
    }


def patched(answer: GraphQLAnswer) -> str | None:
    """None for a patch that is stored, else the words against it."""
    return _patched(answer.field("patchEntity"))


def stored(answer: GraphQLAnswer) -> None:
    """Raises the DataHubError that kept a patch out."""
    words = patched(answer)
    if words is not None:
        raise write_refusal(words)


def all_stored(answer: GraphQLAnswer, count: int) -> bool:
    """Whether all `count` patches of one call are stored."""
    results = _list(answer.field("patchEntities"), "patchEntities")
    if len(results) != count:
        raise NotUnderstoodError(f"{len(results)} results for {count} patches")
    words = [_patched(result) for result in results]
    return all(word is None for word in words)


def entities(answer: object) -> dict[str, Object]:
    """OpenAPI's list of entities, by URN; each aspect is an object that holds objects, or is absent."""
    found = [an_object(entity, "an entity") for entity in _list(answer, "OpenAPI's answer")]
    return {_text(entity.get("urn"), "an entity's urn"): entity for entity in found}


def aspect(entity: Object, name: str) -> Object:
    """An aspect of an entity, with `value` and perhaps `systemMetadata`; empty where there is none."""
    found = _optional(entity.get(name), name)
    if found:
        value = an_object(found.get("value"), f"{name}'s value")
        for text in ("status", "signal"):
            optional_text(value.get(text), f"{name}'s {text}")
        metadata = _optional(found.get("systemMetadata"), f"{name}'s systemMetadata")
        _optional(metadata.get("properties"), f"{name}'s properties")
    return found


def version(found: Object) -> int | None:
    """The version of what `aspect` found; None on a server that tells none."""
    told = (found.get("systemMetadata") or {}).get("version")
    words = str(told) if isinstance(told, int | str) else ""
    return int(words) if _NUMBER.fullmatch(words) else None


def properties(found: Object) -> dict[str, str]:
    """The properties that the last write of what `aspect` found left there."""
    told = (found.get("systemMetadata") or {}).get("properties") or {}
    return {name: value for name, value in told.items() if isinstance(value, str)}


def server_version(answer: object) -> str:
    """The version that `/config` tells."""
    versions = an_object(an_object(answer, "/config").get("versions"), "versions")
    ours = _optional(versions.get("acryldata/datahub"), "acryldata/datahub")
    return optional_text(ours.get("version"), "version") or "unknown"


def an_object(value: object, what: str) -> Object:
    """`value`, which must be a JSON object."""
    if not isinstance(value, dict):
        raise NotUnderstoodError(f"{what} is {_kind(value)} in place of an object")
    return value


def optional_text(value: object, what: str) -> str | None:
    """`value`, which must be a string or null."""
    return None if value is None else _text(value, what)


def optional_number(value: object, what: str) -> int | None:
    """`value`, which must be a whole number or null."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise NotUnderstoodError(f"{what} is {_kind(value)} in place of a whole number")


def _optional(value: object, what: str) -> Object:
    return {} if value is None else an_object(value, what)


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise NotUnderstoodError(f"{what} is {_kind(value)} in place of a list")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise NotUnderstoodError(f"{what} is {_kind(value)} in place of a string")
    return value


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _patched(result: object) -> str | None:
    found = an_object(result, "a patch's result")
    success = found.get("success")
    if not isinstance(success, bool):
        raise NotUnderstoodError(f"`success` is {_kind(success)} in place of a bool")
    return None if success else (optional_text(found.get("error"), "error") or "it does not say why")


def _graphql_error(name: str, errors: Sequence[object]) -> DataHubError:
    """What a list of errors comes to: as long as one of them may pass by itself, the call may be made again."""
    found = [_one_error(name, error if isinstance(error, dict) else {}) for error in errors]
    passing = (error for error in found if isinstance(error, DataHubUnavailableError))
    return next(passing, found[0])


def _one_error(name: str, error: Object) -> DataHubError:
    message, extensions = error.get("message"), error.get("extensions")
    words = message if isinstance(message, str) else "it does not say why"
    code, classification = _classified(extensions if isinstance(extensions, dict) else {})
    if ruled := refusal(words) or forbidden(words):
        return ruled
    said = shortened(words)
    # Without a classification, an error of the document is one that points into it, and not into the data.
    points = bool(error.get("locations")) and not error.get("path") and not classification and code is None
    if points or classification in _DOCUMENT_ERRORS:
        return UnsupportedError(f"this DataHub does not know {name} as it was asked for: {said}")
    match code:
        case 401:
            return UnauthorizedError(f"DataHub does not accept the token for {name}: check DATAHUB_GMS_TOKEN")
        case 403:
            return ForbiddenError(
                f"DataHub does not allow {name}: {said}. Give the owner of DATAHUB_GMS_TOKEN the privilege"
            )
        case 404:
            return NotFoundError(f"DataHub does not find it: {said}")
        case int() if 400 <= code < 500 and code not in WAIT_AND_SEE:
            return DataHubRefusedError(f"DataHub refused {name} ({code}): {said}", str(code))
    if classification == _MISSING_VALUE:
        return DataHubRefusedError(f"DataHub has only a part of what {name} asks for: {said}")
    return DataHubUnavailableError(
        f"DataHub failed at {name} ({code or 'no code'}): {said}. See DataHub's own log, and that its "
        "database and its search are there",
        str(code) if code else "graphql",
    )


def _classified(extensions: Object) -> tuple[int | None, str | None]:
    code, classification = extensions.get("code"), extensions.get("classification")
    known = isinstance(code, int) and not isinstance(code, bool) and 100 <= code < 600
    return (code if known else None), (classification if isinstance(classification, str) else None)
