"""What the executor asks of DataHub, with typed answers (contract, section 3)."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from executor.datahub import documents
from executor.datahub.errors import (
    DataHubError,
    DataHubRefusedError,
    DataHubUnavailableError,
    refusal,
)
from executor.datahub.state import (
    ABSENT_VERSION,
    StateWrite,
    StoredState,
    urn_of,
)
from executor.datahub.transport import GraphQLAnswer, Observer, Transport, open_transport

INPUT = "dataHubExecutionRequestInput"
RESULT = "dataHubExecutionRequestResult"
SIGNAL = "dataHubExecutionRequestSignal"
ENTITY = "/openapi/v3/entity/datahubexecutionrequest"

_ACTOR = "urn:li:corpuser:__datahub_system"


class DataHub:
    """DataHub's API, as far as a run needs it. Made by `open_datahub`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._patches = True  # until an older server says that it can't

    async def ping(self) -> str:
        """The server's version (`/config`, which needs no token). Raises DataHubError."""
        config = await self._transport.json("config", "GET", "/config")
        versions = config.get("versions") if isinstance(config, dict) else None
        ours = versions.get("acryldata/datahub") if isinstance(versions, dict) else None
        return str(ours.get("version", "unknown")) if isinstance(ours, dict) else "unknown"

    async def stored_state(self, exec_id: str) -> StoredState:
        """What DataHub knows of a request: status by GraphQL, version and signal by OpenAPI, side by side.

        Raises:
            DataHubError: see `executor.datahub.errors`.
        """
        answers: dict[str, Any] = {}

        async def by_graphql() -> None:
            answer = await self._transport.graphql(
                "executionRequest", documents.STATE, {"urn": urn_of(exec_id)}
            )
            answers["result"] = (answer.field("executionRequest") or {}).get("result") or {}

        async def by_openapi() -> None:
            answers["aspects"] = await self._aspects([exec_id], RESULT, SIGNAL)

        await _side_by_side(by_graphql, by_openapi)
        aspects = answers["aspects"].get(urn_of(exec_id), {})
        result: Mapping[str, Any] = answers["result"]
        stored = aspects.get(RESULT) or {}
        metadata = stored.get("systemMetadata") or {}
        return StoredState(
            # The version's own value goes first: a write that is conditional on it is judged by it.
            status=(stored.get("value") or result).get("status"),
            start_time_ms=result.get("startTimeMs"),
            version=_version(stored, metadata),
            properties=metadata.get("properties") or {},
            killed=_is_kill(aspects),
        )

    async def kill_signals(self, exec_ids: Collection[str]) -> set[str]:
        """Those of `exec_ids` whose cancel button was pressed: one call for all. Raises DataHubError."""
        aspects = await self._aspects(exec_ids, SIGNAL)
        return {exec_id for exec_id in exec_ids if _is_kill(aspects.get(urn_of(exec_id), {}))}

    async def write_kill_signal(self, exec_id: str, executor_id: str, now_ms: int) -> None:
        """Record a kill where every executor looks for it. Raises DataHubError."""
        created = {"time": now_ms, "actor": _ACTOR}
        value = {"signal": "KILL", "executorId": executor_id, "createdAt": created}
        body = [{"urn": urn_of(exec_id), SIGNAL: {"value": value}}]
        await self._transport.json("writeSignal", "POST", f"{ENTITY}?async=false", body)

    async def request_input(self, exec_id: str) -> Mapping[str, Any] | None:
        """A request's input: `task`, `arguments` (a mapping), `executorId`; None if there is no such request.

        Raises DataHubError.
        """
        answer = await self._transport.graphql(
            "executionRequest", documents.REQUEST, {"urn": urn_of(exec_id)}
        )
        found = answer.field("executionRequest")
        if found is None:
            return None
        arguments = {entry["key"]: entry.get("value") for entry in found["input"].get("arguments") or ()}
        return {**found["input"], "arguments": arguments}

    async def followed_state(self, exec_id: str) -> Mapping[str, Any]:
        """Status, times and report of a run, for somebody who watches it. Raises DataHubError."""
        answer = await self._transport.graphql("executionRequest", documents.FOLLOW, {"urn": urn_of(exec_id)})
        found = answer.field("executionRequest") or {}
        result: Mapping[str, Any] = found.get("result") or {}
        return result

    async def write_input(
        self, exec_id: str, task: str, arguments: Mapping[str, str], executor_id: str, now_ms: int
    ) -> None:
        """Make a request known to DataHub, as its page does before it asks for the run. Raises DataHubError."""
        source = "MANUAL_TEST_CONNECTION" if task == "TEST_CONNECTION" else "MANUAL_INGESTION_SOURCE"
        value = {
            "task": task,
            "args": dict(arguments),
            "executorId": executor_id,
            "source": {"type": source},
            "requestedAt": now_ms,
            "actorUrn": _ACTOR,
        }
        body = [{"urn": urn_of(exec_id), INPUT: {"value": value}}]
        await self._transport.json("writeInput", "POST", f"{ENTITY}?async=false", body)

    async def secret_values(self, names: Collection[str]) -> dict[str, str]:
        """Those of the secrets `names` that exist in DataHub's store. Raises DataHubError."""
        variables = {"input": {"secrets": sorted(names)}}
        answer = await self._transport.graphql("getSecretValues", documents.SECRETS, variables)
        return {entry["name"]: entry["value"] for entry in answer.field("getSecretValues") or ()}

    async def write_states(self, writes: Sequence[StateWrite]) -> list[DataHubError | None]:
        """Store run states, many in one call; for each, None once it is stored or the error that kept it out.

        A server that has no `patchEntity`, or one that can't do this aspect, is found out once; from then on
        the aspect is written whole through OpenAPI.
        """
        if self._patches:
            try:
                return await self._patch(writes)
            except _NoPatchError:
                self._patches = False
            except DataHubError as error:
                return [error] * len(writes)
        return [await self._put(write) for write in writes]

    async def _patch(self, writes: Sequence[StateWrite]) -> list[DataHubError | None]:
        if len(writes) == 1:
            return [await self._patch_one(writes[0])]
        inputs = [_patch_input(write) for write in writes]
        answer = await self._transport.graphql("patchEntities", documents.PATCH, {"input": inputs})
        if all(result["success"] for result in _patched(answer, "patchEntities")):
            return [None] * len(writes)
        # They are one transaction: a refusal of one of them kept all of them out, and is said of each.
        return [await self._patch_one(write) for write in writes]

    async def _patch_one(self, write: StateWrite) -> DataHubError | None:
        variables = {"input": _patch_input(write)}
        try:
            answer = await self._transport.graphql("patchEntity", documents.PATCH_ONE, variables)
            result = _patched(answer, "patchEntity")
        except DataHubError as error:
            return error
        return None if result["success"] else _refusal(str(result.get("error")))

    async def _put(self, write: StateWrite) -> DataHubError | None:
        aspect: dict[str, Any] = {
            "value": write.state.aspect(),
            "systemMetadata": {"properties": dict(write.properties)},
        }
        if write.expected_version is not None:
            aspect["headers"] = {"If-Version-Match": str(write.expected_version)}
        body = [{"urn": urn_of(write.exec_id), RESULT: aspect}]
        try:
            await self._transport.json("writeState", "POST", f"{ENTITY}?async=false", body)
        except DataHubError as error:
            return error
        return None

    async def _aspects(self, exec_ids: Collection[str], *names: str) -> dict[str, dict[str, Any]]:
        body = [{"urn": urn_of(exec_id), **{name: {} for name in names}} for exec_id in exec_ids]
        path = f"{ENTITY}/batchGet?systemMetadata=true"
        answer = await self._transport.json("batchGet", "POST", path, body)
        if not isinstance(answer, list):
            raise DataHubUnavailableError(f"{path} answered with something that is no list")
        return {entity["urn"]: entity for entity in answer if isinstance(entity, dict) and "urn" in entity}


@asynccontextmanager
async def open_datahub(base_url: str, token: str | None, observe: Observer) -> AsyncIterator[DataHub]:
    """DataHub at `base_url`; `observe` is told of every call's operation and kind of failure."""
    async with open_transport(base_url, token, observe) as transport:
        yield DataHub(transport)


class _NoPatchError(Exception):
    """This server can't patch the aspect."""


def _patch_input(write: StateWrite) -> dict[str, Any]:
    patch = [
        {"op": "ADD", "path": f"/{name}", "value": json.dumps(value)}
        for name, value in write.state.aspect().items()
    ]
    headers = []
    if write.expected_version is not None:
        headers = [{"key": "If-Version-Match", "value": str(write.expected_version)}]
    return {
        "urn": urn_of(write.exec_id),
        "entityType": "dataHubExecutionRequest",
        "aspectName": RESULT,
        "patch": patch,
        "forceGenericPatch": True,
        "headers": headers,
        "systemMetadata": {
            "properties": [{"key": key, "value": value} for key, value in write.properties.items()]
        },
    }


def _patched(answer: GraphQLAnswer, field: str) -> Any:  # noqa: ANN401 - JSON
    if answer.invalid and ("atchEntit" in answer.invalid or "forceGenericPatch" in answer.invalid):
        raise _NoPatchError(answer.invalid)
    return answer.field(field)


def _refusal(words: str) -> DataHubError:
    if "patching is not supported" in words.lower() or "patch is not supported" in words.lower():
        raise _NoPatchError(words)
    return refusal(words) or DataHubRefusedError(f"DataHub refused the run's state: {words}")


def _version(stored: Mapping[str, Any], metadata: Mapping[str, Any]) -> int | None:
    if not stored:
        return ABSENT_VERSION
    version = str(metadata.get("version") or "")
    return int(version) if version.isdigit() else None


def _is_kill(aspects: Mapping[str, Any]) -> bool:
    value = (aspects.get(SIGNAL) or {}).get("value") or {}
    return value.get("signal") == "KILL"


async def _side_by_side(*calls: Callable[[], Awaitable[None]]) -> None:
    """Run both; the first error ends the other and is raised as it is, not in a group."""
    errors: list[DataHubError] = []

    async def guarded(call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except DataHubError as error:
            errors.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(guarded, call)
    if errors:
        raise errors[0]
