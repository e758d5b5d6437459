"""GraphQL as DataHub answers it: the contract's schema, executed, and the resolvers of a run's state."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, Final, Literal

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    build_schema,
    execute,
    parse,
    validate,
)

from executor.local import rules, views
from executor.local.rules import Json
from executor.local.store import RefusedError, Store, Write

Generation = Literal["current", "no_force_generic_patch", "no_patch_entity"]
"""What a server knows of `patchEntity`: all, no `forceGenericPatch`, or nothing (contract, section 3)."""

Resolver = Callable[..., Any]

_DOCUMENTS: Final = 512  # parsed and validated documents kept


@lru_cache
def schema(generation: Generation) -> GraphQLSchema:
    """Return the contract's schema as a server of that generation has it."""
    text = resources.files("executor.local").joinpath("datahub.graphql").read_text(encoding="utf-8")
    lines = text.splitlines()
    if generation == "no_force_generic_patch":
        lines = [line for line in lines if not line.strip().startswith("forceGenericPatch:")]
    elif generation == "no_patch_entity":
        lines = [line for line in lines if not line.strip().startswith(("patchEntity(", "patchEntities("))]
    return build_schema("\n".join(lines))


@lru_cache(maxsize=_DOCUMENTS)
def _document(query: str) -> DocumentNode | GraphQLError:
    try:
        return parse(query)
    except GraphQLError as error:
        return error


@lru_cache(maxsize=_DOCUMENTS)
def _document_errors(generation: Generation, query: str) -> tuple[GraphQLError, ...]:
    document = _document(query)
    if isinstance(document, GraphQLError):
        return (document,)
    return tuple(validate(schema(generation), document))


@lru_cache(maxsize=_DOCUMENTS)
def root_fields(query: str) -> tuple[str, ...]:
    """Return the names of a document's root fields, in order; empty when it cannot be parsed."""
    document = _document(query)
    if isinstance(document, GraphQLError):
        return ()
    return tuple(
        selection.name.value
        for definition in document.definitions
        if isinstance(definition, OperationDefinitionNode)
        for selection in definition.selection_set.selections
        if isinstance(selection, FieldNode)
    )


async def answer(generation: Generation, resolvers: Mapping[str, Resolver], body: object) -> Json:
    """Execute one GraphQL request body; faults are in the answer's `errors`, nothing is raised."""
    if not isinstance(body, dict) or not isinstance(query := body.get("query"), str):
        return {"errors": [{"message": "The body must be a JSON object with a `query`"}]}
    if errors := _document_errors(generation, query):
        return {"errors": [error.formatted for error in errors]}
    document = _document(query)
    if isinstance(document, GraphQLError):
        return {"errors": [document.formatted]}
    outcome = execute(
        schema(generation),
        document,
        root_value=resolvers,
        variable_values=body.get("variables") or None,
        operation_name=body.get("operationName"),
    )
    result = outcome if isinstance(outcome, ExecutionResult) else await outcome
    return dict(result.formatted)


class RunStateApi:
    """Resolvers of `executionRequest`, `patchEntity` and `patchEntities`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def resolvers(self) -> dict[str, Resolver]:
        """Return the root fields this part answers."""
        return {
            "executionRequest": lambda _info, urn: views.execution_request(self._store, urn),
            "patchEntity": lambda _info, **arguments: self.patch_entity(arguments["input"]),
            "patchEntities": lambda _info, **arguments: self.patch_entities(arguments["input"]),
        }

    def patch_entity(self, given: Json) -> Json:
        """Apply one patch and store it before answering."""
        try:
            self._store.apply([_write(given)])
        except (RefusedError, rules.InvalidWriteError) as error:
            return _patch_result(given, error=f"Failed to apply patch: {error}")
        return _patch_result(given)

    def patch_entities(self, given: list[Json]) -> list[Json]:
        """Apply many patches as the server does: in one transaction, so one refusal refuses them all."""
        try:
            self._store.apply([_write(entity) for entity in given])
        except (RefusedError, rules.InvalidWriteError) as error:
            return [_patch_result(entity, error=f"Failed to apply batch patch: {error}") for entity in given]
        return [_patch_result(entity) for entity in given]


def _write(given: Json) -> Write:
    urn, aspect = given.get("urn"), given["aspectName"]
    if not urn:
        raise rules.InvalidWriteError("URN must be provided for patch operations")
    if aspect in rules.EXECUTION_REQUEST_ASPECTS and not given.get("forceGenericPatch"):
        raise rules.InvalidWriteError(f"Patching is not supported for this aspect: {aspect} of {urn}")
    metadata = dict(given.get("systemMetadata") or {})
    metadata["properties"] = _string_map(metadata.get("properties"))
    return Write(
        urn=urn,
        aspect=aspect,
        patch=[_operation(operation) for operation in given["patch"]],
        headers=_string_map(given.get("headers")),
        system_metadata=metadata,
    )


def _operation(given: Json) -> Json:
    operation: Json = {"op": given["op"].lower(), "path": given["path"]}
    if given.get("value") is not None:
        try:
            operation["value"] = json.loads(given["value"])
        except ValueError as error:
            path = given["path"]
            raise rules.InvalidWriteError(
                f"The value at {path} is no JSON text ({error}); a string goes in quotes"
            ) from error
    if given.get("from") is not None:
        operation["from"] = given["from"]
    return operation


def _string_map(entries: list[Json] | None) -> dict[str, str]:
    return {entry["key"]: entry.get("value") or "" for entry in entries or ()}


def _patch_result(given: Json, *, error: str | None = None) -> Json:
    name = next(
        (item.get("value") for item in given["patch"] if item["path"] == "/name" and error is None), None
    )
    return {
        "urn": given.get("urn") or "urn:li:unknown:error",
        "name": name,
        "success": error is None,
        "error": error,
    }
