"""DataHub's rules of the contract's section 3: versions, conditions, statuses that stay, signals."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from executor.datahub.client import RESULT, SIGNAL
from executor.datahub.state import URN_PREFIX
from tests.simulation.clients import Refusal
from tests.simulation.plan import EXECUTOR_ID

if TYPE_CHECKING:
    from tests.simulation.fleet import SimExecutor
    from tests.simulation.world import World

Json = dict[str, Any]

IMMUTABLE = frozenset({"SUCCESS", "CANCELLED", "ABORTED", "DUPLICATE"})
RECIPE = '{"source": {"type": "demo", "config": {}}}'


class Entity:
    """What is stored of one request."""

    __slots__ = ("properties", "signal", "value", "version")

    def __init__(self) -> None:
        self.value: Json = {}
        self.version = 0
        self.properties: Json = {}
        self.signal: Json | None = None


class DataHubServer:
    """One DataHub. Each call happens at one moment."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.entities: dict[str, Entity] = {}

    def status(self, exec_id: str) -> str | None:
        """The stored status."""
        status: str | None = self.entities[exec_id].value.get("status")
        return status

    def kill(self, exec_id: str) -> None:
        """The cancel button."""
        self.entities[exec_id].signal = {"signal": "KILL", "executorId": EXECUTOR_ID}
        self._world.tell("datahub", "kill recorded", exec_id)
        self._world.checks.kill_recorded(exec_id)

    def answer(self, operation: str, path: str, body: Any, executor: "SimExecutor") -> Any:
        """What it says to a call."""
        if path.endswith("/graphql"):
            return self._graphql(body, executor)
        if "batchGet" in path:
            return [self._entity(entry) for entry in body]
        for entry in body:
            if refused := self._write(entry, executor):
                return Refusal(refused)
        return []

    def _graphql(self, body: Json, executor: "SimExecutor") -> Json:
        variables, document = body["variables"], body["query"]
        if "patchEntity" in document or "patchEntities" in document:
            if not self._world.plan.server.patches:
                words = "Validation error: Field 'patchEntity' in type 'Mutation' is undefined"
                error = {"message": words, "extensions": {"classification": "ValidationError"}}
                return {"errors": [error], "data": None}
            many = isinstance(variables["input"], list)
            inputs = variables["input"] if many else [variables["input"]]
            results = self._patch(inputs, executor)
            return {"data": {"patchEntities": results} if many else {"patchEntity": results[0]}}
        if "secretValues" in document:
            return {"data": {"getSecretValues": []}}
        entity = self.entities.get(_exec_id(variables["urn"]))
        return {"data": {"executionRequest": None if entity is None else _shown(variables["urn"], entity)}}

    def _patch(self, inputs: list[Json], executor: "SimExecutor") -> list[Json]:
        """All of them or none."""
        refusals = []
        for one in inputs:
            headers = {entry["key"]: entry["value"] for entry in one["headers"]}
            refusals.append(self._refusal(_exec_id(one["urn"]), headers))
        words = next((refusal for refusal in refusals if refusal), None)
        if words is not None:
            return [{"urn": one["urn"], "success": False, "error": words} for one in inputs]
        for one in inputs:
            value = dict(self.entities[_exec_id(one["urn"])].value)
            for operation in one["patch"]:
                value[operation["path"][1:]] = json.loads(operation["value"])
            properties = {entry["key"]: entry["value"] for entry in one["systemMetadata"]["properties"]}
            self._store(_exec_id(one["urn"]), value, properties, executor)
        return [{"urn": one["urn"], "success": True, "error": None} for one in inputs]

    def _write(self, entry: Json, executor: "SimExecutor") -> str | None:
        exec_id = _exec_id(entry["urn"])
        if SIGNAL in entry:
            self.kill(exec_id)
            return None
        aspect = entry[RESULT]
        if refused := self._refusal(exec_id, aspect.get("headers", {})):
            return refused
        properties = dict(aspect.get("systemMetadata", {}).get("properties", {}))
        self._store(exec_id, dict(aspect["value"]), properties, executor)
        return None

    def _refusal(self, exec_id: str, headers: Mapping[str, str]) -> str | None:
        entity = self.entities[exec_id]
        if entity.value.get("status") in IMMUTABLE:
            return "Invalid update to immutable state for aspect dataHubExecutionRequestResult"
        expected = headers.get("If-Version-Match")
        actual = entity.version or -1
        if expected is not None and self._world.plan.server.conditions and expected != str(actual):
            return f"Expected version {expected}, actual version {actual}"
        return None

    def _store(self, exec_id: str, value: Json, properties: Json, executor: "SimExecutor") -> None:
        entity = self.entities[exec_id]
        if value == entity.value:
            return
        before = entity.value.get("status")
        entity.value = value
        entity.version += 1
        entity.properties = properties if self._world.plan.server.properties else {}
        if before != value["status"]:
            self._world.tell("datahub", exec_id, before, "->", value["status"], f"by {executor.name}")
        self._world.checks.stored(exec_id, before, value["status"], properties, executor)

    def _entity(self, entry: Json) -> Json:
        urn = entry["urn"]
        entity = self.entities.get(_exec_id(urn))
        found: Json = {"urn": urn}
        if entity is None:
            return found
        if RESULT in entry and entity.version:
            metadata: Json = {"version": str(entity.version)}
            if entity.properties:
                metadata["properties"] = dict(entity.properties)
            found[RESULT] = {"value": dict(entity.value), "systemMetadata": metadata}
        if SIGNAL in entry and entity.signal is not None:
            found[SIGNAL] = {"value": dict(entity.signal)}
        return found


def _exec_id(urn: str) -> str:
    return urn.removeprefix(URN_PREFIX)


def _shown(urn: str, entity: Entity) -> Json:
    arguments = [{"key": "recipe", "value": RECIPE}, {"key": "version", "value": "1.5.0"}]
    return {
        "urn": urn,
        "input": {"task": "RUN_INGEST", "arguments": arguments, "executorId": EXECUTOR_ID},
        "result": dict(entity.value) or None,
    }
