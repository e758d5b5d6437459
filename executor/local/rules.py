"""The rules a DataHub server keeps when a run's aspects are written (contract, section 3). Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import jsonpatch

INPUT_ASPECT: Final = "dataHubExecutionRequestInput"
SIGNAL_ASPECT: Final = "dataHubExecutionRequestSignal"
RESULT_ASPECT: Final = "dataHubExecutionRequestResult"

IMMUTABLE_STATUSES: Final = frozenset({"SUCCESS", "CANCELLED", "ABORTED", "DUPLICATE"})
"""Once a result has one of these, every later write of it is refused."""

MAX_ASPECT_CHARS: Final = 15_368_520
"""The server's default limit on one aspect, in characters of its JSON."""

VERSION_HEADER: Final = "If-Version-Match"

Json = dict[str, Any]


class InvalidWriteError(ValueError):
    """A write that the server's model of the aspect, or its patch, does not allow."""


@dataclass(frozen=True)
class Field:
    """One field of an aspect: its type (a mapping of fields for a record), and whether it is required."""

    kind: Literal["string", "long", "string map"] | Mapping[str, "Field"]
    required: bool = False


_MODELS: Final[Mapping[str, Mapping[str, Field]]] = {
    RESULT_ASPECT: {
        "status": Field("string", required=True),
        "startTimeMs": Field("long"),
        "durationMs": Field("long"),
        "report": Field("string"),
        "structuredReport": Field(
            {
                "type": Field("string", required=True),
                "serializedValue": Field("string", required=True),
                "contentType": Field("string", required=True),
            }
        ),
    },
    INPUT_ASPECT: {
        "task": Field("string", required=True),
        "args": Field("string map", required=True),
        "executorId": Field("string"),
        "source": Field(
            {"type": Field("string", required=True), "ingestionSource": Field("string")}, required=True
        ),
        "requestedAt": Field("long", required=True),
        "actorUrn": Field("string"),
    },
    SIGNAL_ASPECT: {
        "signal": Field("string", required=True),
        "executorId": Field("string"),
        "createdAt": Field(
            {"time": Field("long", required=True), "actor": Field("string", required=True)}, required=True
        ),
    },
}

EXECUTION_REQUEST_ASPECTS: Final = tuple(_MODELS)


def entity_type(urn: str) -> str:
    """Return the entity type a URN names.

    Raises:
        InvalidWriteError: the text is no URN.
    """
    parts = urn.split(":", 3)
    if len(parts) != 4 or parts[:2] != ["urn", "li"] or not parts[2] or not parts[3]:
        raise InvalidWriteError(f"Invalid urn: {urn!r}; it must look like urn:li:<entity type>:<id>")
    return parts[2]


def model_errors(aspect: str, value: Json) -> list[str]:
    """List what the aspect's model refuses in `value`; aspects outside section 3 have no model and pass."""
    model = _MODELS.get(aspect)
    return [] if model is None else _record_errors(model, value, "")


def _record_errors(fields: Mapping[str, Field], value: Json, path: str) -> list[str]:
    errors = [
        f"ERROR :: {path}/{name} :: unrecognized field found but not allowed"
        for name in value
        if name not in fields
    ]
    for name, field in fields.items():
        if name in value:
            errors += _field_errors(field, value[name], f"{path}/{name}")
        elif field.required:
            errors.append(
                f"ERROR :: {path}/{name} :: field is required but not found and has no default value"
            )
    return errors


def _field_errors(field: Field, value: object, path: str) -> list[str]:
    match field.kind:
        case "string":
            good = isinstance(value, str)
        case "long":
            good = isinstance(value, int) and not isinstance(value, bool)
        case "string map":
            good = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
        case record:
            if isinstance(value, dict):
                return _record_errors(record, value, path)
            good = False
    name = field.kind if isinstance(field.kind, str) else "record"
    return [] if good else [f"ERROR :: {path} :: a {type(value).__name__} cannot be coerced to {name}"]


def immutability_error(urn: str, aspect: str, old: Json | None, new: Json) -> str | None:
    """Return the server's refusal when `old` is a result that has ended for good, else None."""
    if aspect != RESULT_ASPECT or old is None or old.get("status") not in IMMUTABLE_STATUSES:
        return None
    return (
        f"Invalid update to immutable state for aspect {aspect}. Execution urn: {urn} "
        f"previous status: {old['status']}. Denied status update: {new.get('status')}"
    )


def version_error(expected: str | None, version: int | None) -> str | None:
    """Return the server's refusal when a conditional write expects another version, else None.

    Args:
        expected: the value of the write's `If-Version-Match` header, None when it has none.
        version: the stored aspect's version, None when there is no aspect.
    """
    actual = "-1" if version is None else str(version)
    return None if expected in (None, actual) else f"Expected version {expected}, actual version {actual}"


def patched(value: Json | None, operations: Sequence[Mapping[str, Any]], *, grow: bool = False) -> Json:
    """Apply a JSON Patch (RFC 6902) to an aspect, `{}` where there is none; `value` itself is unchanged.

    Args:
        value: the stored aspect.
        operations: `{"op": "add", "path": "/status", "value": …}` and so on.
        grow: make the missing parents of what is added, as the server's templates of other aspects do.

    Raises:
        InvalidWriteError: an operation cannot be applied, a test fails, or the outcome is no object.
    """
    document: Any = {} if value is None else value
    if grow:
        operations = [*_missing_parents(document, operations), *operations]
    try:
        document = jsonpatch.apply_patch(document, operations)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise InvalidWriteError(f"The patch cannot be applied: {error}") from error
    if not isinstance(document, dict):
        raise InvalidWriteError("The patch leaves no object")
    return document


def _missing_parents(document: Json, operations: Sequence[Mapping[str, Any]]) -> list[Json]:
    made: dict[str, Json] = {}
    for path in (item.get("path", "") for item in operations if item.get("op") == "add"):
        node: Any = document
        parent = ""
        for token in path.split("/")[1:-1]:
            parent += f"/{token}"
            node = node.get(token.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
            if node is None:
                made.setdefault(parent, {"op": "add", "path": parent, "value": {}})
    return list(made.values())
