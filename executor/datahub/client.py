"""What the executor asks of DataHub, with typed answers (contract, section 3)."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from executor.datahub import answers, documents
from executor.datahub.errors import (
    DataHubError,
    UnsupportedError,
    is_of_the_content,
)
from executor.datahub.state import (
    ABSENT_VERSION,
    StateWrite,
    StoredState,
    urn_of,
)
from executor.datahub.transport import Observer, Transport, open_transport

INPUT = "dataHubExecutionRequestInput"
RESULT = "dataHubExecutionRequestResult"
SIGNAL = "dataHubExecutionRequestSignal"
ENTITY = "/openapi/v3/entity/datahubexecutionrequest"

_ACTOR = "urn:li:corpuser:__datahub_system"
_NOBODY = "ping"  # the id of a request that there is not


class DataHub:
    """DataHub's API, as far as a run needs it. Made by `open_datahub`. Whatever is answered, only DataHubError
    comes out of it.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.patches = True
        """Whether a part of a run's state can be written; True until an older server says that it can't."""

    async def ping(self) -> str:
        """The server's version (`/config`, which needs no token). Raises DataHubError."""
        return await self._transport.json("config", "GET", "/config", None, answers.server_version)

    async def probe(self) -> None:
        """See, by the cheapest call that needs one, whether DataHub answers and accepts the token.

        Raises:
            UnauthorizedError: it does not accept the token.
            DataHubError: see `executor.datahub.errors`.
        """
        await self.kill_signals([_NOBODY])

    async def stored_state(self, exec_id: str) -> StoredState:
        """What DataHub knows of a request: status by GraphQL, version and signal by OpenAPI, side by side.

        Raises:
            DataHubError: see `executor.datahub.errors`.
        """
        result: answers.Object = {}
        aspects: dict[str, dict[str, answers.Object]] = {}

        async def by_graphql() -> None:
            nonlocal result
            result = await self._result(documents.STATE, exec_id)

        async def by_openapi() -> None:
            nonlocal aspects
            aspects = await self._aspects([exec_id], RESULT, SIGNAL)

        await _side_by_side(by_graphql, by_openapi)
        return _stored_state(result, aspects.get(urn_of(exec_id), {}))

    async def kill_signals(self, exec_ids: Collection[str]) -> set[str]:
        """Those of `exec_ids` whose cancel button was pressed: one call for all. Raises DataHubError."""
        aspects = await self._aspects(exec_ids, SIGNAL)
        return {exec_id for exec_id in exec_ids if _is_kill(aspects.get(urn_of(exec_id), {}))}

    async def write_kill_signal(self, exec_id: str, executor_id: str, now_ms: int) -> None:
        """Record a kill where every executor looks for it. Raises DataHubError."""
        created = {"time": now_ms, "actor": _ACTOR}
        value = {"signal": "KILL", "executorId": executor_id, "createdAt": created}
        await self._write("writeSignal", exec_id, SIGNAL, {"value": value})

    async def request_input(self, exec_id: str) -> Mapping[str, Any] | None:
        """A request's input: `task`, `arguments` (a mapping), `executorId`; None if there is no such request.

        Raises DataHubError.
        """
        variables = {"urn": urn_of(exec_id)}
        return await self._transport.query(
            "executionRequest", documents.REQUEST, variables, answers.request_input
        )

    async def followed_state(self, exec_id: str) -> Mapping[str, Any]:
        """Status, times and report of a run, for somebody who watches it. Raises DataHubError."""
        return await self._result(documents.FOLLOW, exec_id)

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
        await self._write("writeInput", exec_id, INPUT, {"value": value})

    async def secret_values(self, names: Collection[str]) -> dict[str, str]:
        """Those of the secrets `names` that exist in DataHub's store. Raises DataHubError."""
        variables = {"input": {"secrets": sorted(names)}}
        return await self._transport.query(
            "getSecretValues", documents.SECRETS, variables, answers.secret_values
        )

    async def write_states(self, writes: Sequence[StateWrite]) -> list[DataHubError | None]:
        """Store run states, many in one call; for each, None once it is stored or the error that kept it out.

        A server that has no `patchEntity`, or one that can't do this aspect, is found out once; from then on
        the aspect is written whole through OpenAPI.
        """
        if self.patches:
            try:
                return await self._patch(writes)
            except UnsupportedError:
                self.patches = False
        return [await self._put(write) for write in writes]

    async def _patch(self, writes: Sequence[StateWrite]) -> list[DataHubError | None]:
        """Raises UnsupportedError."""
        if len(writes) == 1:
            return [await self._patch_one(writes[0])]
        inputs, count = [_patch_input(write) for write in writes], len(writes)
        try:
            stored = await self._transport.query(
                "patchEntities",
                documents.PATCH,
                {"input": inputs},
                lambda answer: answers.all_stored(answer, count),
            )
        except UnsupportedError:
            raise
        except DataHubError as error:
            if not is_of_the_content(error):
                return [error] * count
            stored = False  # perhaps because of one of them alone, or of their size together
        if stored:
            return [None] * count
        # They are one transaction: a refusal of one of them kept all of them out, and is said of each.
        return [await self._patch_one(write) for write in writes]

    async def _patch_one(self, write: StateWrite) -> DataHubError | None:
        variables = {"input": _patch_input(write)}
        try:
            await self._transport.query("patchEntity", documents.PATCH_ONE, variables, answers.stored)
        except UnsupportedError:
            raise
        except DataHubError as error:
            return error
        return None

    async def _put(self, write: StateWrite) -> DataHubError | None:
        aspect: dict[str, Any] = {
            "value": write.state.aspect(),
            "systemMetadata": {"properties": dict(write.properties)},
        }
        if write.expected_version is not None:
            aspect["headers"] = {"If-Version-Match": str(write.expected_version)}
        try:
            await self._write("writeState", write.exec_id, RESULT, aspect)
        except DataHubError as error:
            return error
        return None

    async def _write(self, operation: str, exec_id: str, name: str, aspect: Mapping[str, Any]) -> None:
        body = [{"urn": urn_of(exec_id), name: aspect}]
        await self._transport.json(operation, "POST", f"{ENTITY}?async=false", body, answers.entities)

    async def _result(self, document: str, exec_id: str) -> answers.Object:
        variables = {"urn": urn_of(exec_id)}
        return await self._transport.query("executionRequest", document, variables, answers.run_result)

    async def _aspects(self, exec_ids: Collection[str], *names: str) -> dict[str, dict[str, answers.Object]]:
        """Aspects by URN and name, empty where there is none."""
        body = [{"urn": urn_of(exec_id), **{name: {} for name in names}} for exec_id in exec_ids]

        def read(answer: object) -> dict[str, dict[str, answers.Object]]:
            found = answers.entities(answer)
            return {
                urn: {name: answers.aspect(entity, name) for name in names} for urn, entity in found.items()
            }

        path = f"{ENTITY}/batchGet?systemMetadata=true"
        return await self._transport.json("batchGet", "POST", path, body, read)


@asynccontextmanager
async def open_datahub(base_url: str, token: str | None, observe: Observer) -> AsyncIterator[DataHub]:
    """DataHub at `base_url`; `observe` is told of every call's operation and kind of failure."""
    async with open_transport(base_url, token, observe) as transport:
        yield DataHub(transport)


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


def _stored_state(result: answers.Object, aspects: Mapping[str, answers.Object]) -> StoredState:
    stored = aspects.get(RESULT, {})
    return StoredState(
        # The version's own value goes first: a write that is conditional on it is judged by it.
        status=(stored.get("value") or result).get("status"),
        start_time_ms=result.get("startTimeMs"),
        version=answers.version(stored) if stored else ABSENT_VERSION,
        properties=answers.properties(stored),
        killed=_is_kill(aspects),
        duration_ms=answers.optional_number((stored.get("value") or {}).get("durationMs"), "durationMs"),
    )


def _is_kill(aspects: Mapping[str, answers.Object]) -> bool:
    signal = aspects.get(SIGNAL, {}).get("value", {})
    return bool(signal.get("signal") == "KILL")


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
