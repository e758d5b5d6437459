"""What DataHub's ingestion page does by GraphQL: sources, executions and secrets."""

import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from graphql import GraphQLError

from executor.local import rules, views
from executor.local.graphql_api import Resolver
from executor.local.rules import Json
from executor.local.store import Record, RefusedError, Store, Write

ACTOR: Final = "urn:li:corpuser:datahub"
_JSON: Final = "application/json"

Sender = Callable[[Json], Awaitable[None]]
"""Takes a change event, a MetadataChangeLog as the contract's section 2 has it, on its way to the queue."""


@dataclass(frozen=True)
class Secret:
    """A secret of DataHub's own store."""

    value: str
    description: str | None = None


class PageApi:
    """Resolvers of the page's queries and mutations; a new request or a cancel hands its change event on."""

    def __init__(
        self,
        store: Store,
        sender: Sender | None,
        *,
        test_executor_id: str = "remote",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.secrets: dict[str, Secret] = {}
        self.may_manage_secrets = True
        self._store = store
        self._sender = sender
        self._test_executor_id = test_executor_id
        self._clock = clock

    def resolvers(self) -> dict[str, Resolver]:
        """Return the root fields this part answers."""
        return {
            "ingestionSource": lambda _info, urn: views.ingestion_source(self._store, urn),
            "listIngestionSources": lambda _info, **given: self.list_sources(given["input"]),
            "listExecutionRequests": lambda _info, **given: self.list_executions(given["input"]),
            "createIngestionSource": lambda _info, **given: self.create_source(given["input"]),
            "updateIngestionSource": lambda _info, **given: self.update_source(given["urn"], given["input"]),
            "createIngestionExecutionRequest": lambda _info, **given: self.execute(given["input"]),
            "cancelIngestionExecutionRequest": lambda _info, **given: self.cancel(given["input"]),
            "createTestConnectionRequest": lambda _info, **given: self.test_connection(given["input"]),
            "rollbackIngestion": lambda _info, **_given: _no_rollback(),
            "createSecret": lambda _info, **given: self.create_secret(given["input"]),
            "getSecretValues": lambda _info, **given: self.secret_values(given["input"]),
            "listSecrets": lambda _info, **given: self.list_secrets(given["input"]),
        }

    def create_source(self, given: Json) -> str:
        """Store a new ingestion source; returns its URN."""
        return self.update_source(f"urn:li:{views.SOURCE_ENTITY}:{uuid.uuid4()}", given)

    def update_source(self, urn: str, given: Json) -> str:
        """Store an ingestion source; returns its URN."""
        config = {key: value for key, value in given["config"].items() if value is not None}
        config["extraArgs"] = {
            entry["key"]: entry.get("value") or "" for entry in config.get("extraArgs", ())
        }
        info = {"name": given["name"], "type": given["type"], "config": config}
        if given.get("schedule") is not None:
            info["schedule"] = dict(given["schedule"])
        self._apply(Write(urn, views.SOURCE_ASPECT, value=info))
        return urn

    def list_sources(self, given: Json) -> Json:
        """List the sources; `query` is part of a name. Filters are not read."""
        query = (given.get("query") or "*").strip("*").lower()
        sources = [views.ingestion_source(self._store, urn) for urn in self._store.urns(views.SOURCE_ENTITY)]
        rows = [source for source in sources if source is not None and query in source["name"].lower()]
        return views.page("ingestionSources", rows, given.get("start"), given.get("count"))

    def list_executions(self, given: Json) -> Json:
        """List the requests, newest first, that pass every filter."""
        filters = given.get("filters") or []
        urns = views.newest_requests(
            self._store, lambda urn: all(_passes(self._facets(urn), facet) for facet in filters)
        )
        if (given.get("sort") or {}).get("sortOrder") == "ASCENDING":
            urns.reverse()
        return views.execution_page(self._store, urns, given.get("start"), given.get("count"))

    def _facets(self, urn: str) -> Mapping[str, str | None]:
        asked = self._store.aspect(urn, rules.INPUT_ASPECT) or {}
        result = self._store.aspect(urn, rules.RESULT_ASPECT) or {}
        return {
            "urn": urn,
            "executorId": asked.get("executorId"),
            "ingestionSource": views.ingestion_source_urn(self._store, urn),
            "executionResultStatus": result.get("status"),
        }

    async def execute(self, given: Json) -> str:
        """Press *Execute*: store a RUN_INGEST request of a source, hand its event on; returns its URN."""
        source_urn = given["ingestionSourceUrn"]
        source = self._source(source_urn)
        config = source["config"]
        exec_id = str(uuid.uuid4())
        recipe = _recipe_object(config["recipe"])
        recipe |= {"run_id": exec_id, "pipeline_name": source_urn}
        args = {
            "recipe": json.dumps(recipe),
            **config["extraArgs"],
            "debug_mode": "true" if config.get("debugMode") else "false",
        }
        if config.get("version"):
            args["version"] = config["version"]
        asked_by = {"type": "MANUAL_INGESTION_SOURCE", "ingestionSource": source_urn}
        return await self._request(exec_id, "RUN_INGEST", args, config["executorId"], asked_by)

    async def test_connection(self, given: Json) -> str:
        """Store a TEST_CONNECTION request and hand its change event on; returns its URN."""
        exec_id = str(uuid.uuid4())
        args = {"recipe": json.dumps(_recipe_object(given["recipe"]) | {"run_id": exec_id})}
        if given.get("version"):
            args["version"] = given["version"]
        asked_by = {"type": "MANUAL_TEST_CONNECTION"}
        return await self._request(exec_id, "TEST_CONNECTION", args, self._test_executor_id, asked_by)

    async def cancel(self, given: Json) -> str:
        """Press *Cancel*: store the KILL signal of a request, hand its event on; returns its URN."""
        urn = given["executionRequestUrn"]
        signal = {
            "signal": "KILL",
            "executorId": self._source(given["ingestionSourceUrn"])["config"]["executorId"],
            "createdAt": {"time": self._now(), "actor": ACTOR},
        }
        await self._send(self._apply(Write(urn, rules.SIGNAL_ASPECT, value=signal)))
        return str(urn)

    async def _request(
        self, exec_id: str, task: str, args: dict[str, str], executor_id: str, asked_by: Json
    ) -> str:
        value = {
            "task": task,
            "args": args,
            "executorId": executor_id,
            "source": asked_by,
            "requestedAt": self._now(),
            "actorUrn": ACTOR,
        }
        urn = f"urn:li:{views.REQUEST_ENTITY}:{exec_id}"
        await self._send(self._apply(Write(urn, rules.INPUT_ASPECT, value=value)))
        return urn

    def create_secret(self, given: Json) -> str:
        """Store a new secret; returns its URN."""
        self._check_secrets_privilege()
        if given["name"] in self.secrets:
            raise GraphQLError("This Secret already exists!")
        self.secrets[given["name"]] = Secret(given["value"], given.get("description"))
        return _secret_urn(given["name"])

    def secret_values(self, given: Json) -> list[Json]:
        """Return the secrets asked for that exist."""
        self._check_secrets_privilege()
        names = [name for name in given["secrets"] if name in self.secrets]
        return [{"name": name, "value": self.secrets[name].value} for name in names]

    def list_secrets(self, given: Json) -> Json:
        """List names and descriptions."""
        self._check_secrets_privilege()
        query = (given.get("query") or "*").strip("*").lower()
        rows = [
            {"urn": _secret_urn(name), "name": name, "description": secret.description}
            for name, secret in self.secrets.items()
            if query in name.lower()
        ]
        return views.page("secrets", rows, given.get("start"), given.get("count"))

    def _check_secrets_privilege(self) -> None:
        if not self.may_manage_secrets:
            raise GraphQLError(
                "Unauthorized to perform this action. Please contact your DataHub administrator."
            )

    def _source(self, urn: str) -> Json:
        info = self._store.aspect(urn, views.SOURCE_ASPECT)
        if info is None:
            raise GraphQLError(f"Failed to find ingestion source with urn {urn}")
        return info

    def _apply(self, write: Write) -> Record:
        try:
            return self._store.apply([write])[0]
        except RefusedError as error:
            raise GraphQLError(str(error)) from error

    async def _send(self, record: Record) -> None:
        if self._sender is not None:
            await self._sender(change_event(record))

    def _now(self) -> int:
        return int(self._clock() * 1000)


def change_event(record: Record) -> Json:
    """Return the MetadataChangeLog of one write, as the contract's section 2 has it."""
    exec_id = record.urn.rsplit(":", 1)[-1]
    return {
        "auditHeader": None,
        "entityType": rules.entity_type(record.urn),
        "entityUrn": record.urn,
        "entityKeyAspect": {"value": json.dumps({"id": exec_id}), "contentType": _JSON},
        "changeType": "UPSERT",
        "aspectName": record.aspect,
        "aspect": {"value": json.dumps(record.value), "contentType": _JSON},
        "systemMetadata": record.system_metadata(),
        "previousAspectValue": None,
        "previousSystemMetadata": None,
        "created": {"time": int(record.epoch * 1000), "actor": ACTOR},
    }


def _recipe_object(recipe: str) -> Json:
    try:
        value = json.loads(recipe)
    except ValueError as error:
        raise GraphQLError("Failed to create execution request: Invalid recipe json provided.") from error
    if not isinstance(value, dict):
        raise GraphQLError("Failed to create execution request: the recipe must be a JSON object.")
    return value


def _passes(facets: Mapping[str, str | None], facet: Json) -> bool:
    name = facet["field"]
    if name not in facets:
        raise GraphQLError(f"The stand-in has no filter {name}; it has {', '.join(facets)}")
    if facet.get("condition") not in (None, "EQUAL", "IN"):
        raise GraphQLError(f"The stand-in has no filter condition {facet['condition']}; it has EQUAL and IN")
    wanted = facet.get("values") or [facet.get("value")]
    return (facets[name] in wanted) is not bool(facet.get("negated"))


def _secret_urn(name: str) -> str:
    return f"urn:li:dataHubSecret:{name}"


def _no_rollback() -> str:
    raise GraphQLError("The stand-in does no rollbacks")
