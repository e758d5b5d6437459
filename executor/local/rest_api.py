"""The doors besides GraphQL: OpenAPI v3 entities, and what the `datahub` CLI sends to rest.li."""

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web

from executor.local import rules
from executor.local.rules import Json
from executor.local.store import Record, RefusedError, Store, Write

_LIST: Final = re.compile(r"List\((.*)\)")
_BODY_KEYS: Final = frozenset({"urn"})


class OpenApi:
    """`/openapi/v3/entity/…`: writes are synchronous and all-or-nothing a call, whatever `async` says."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """Return the routes under `prefix`."""
        base = f"{prefix}/openapi/v3/entity/{{entity}}"
        return [
            web.get(base, self.list),
            web.post(base, self.write),
            web.patch(base, self.write),
            web.post(f"{base}/batchGet", self.batch_get),
            web.get(f"{base}/{{urn}}", self.get),
            web.delete(f"{base}/{{urn}}", self.delete),
            web.get(f"{prefix}/openapi/v1/registry/models/entity/specifications", self.specifications),
        ]

    async def write(self, request: web.Request) -> web.Response:
        """Write aspects whole (POST) or as JSON Patches (PATCH)."""
        try:
            entities = _entities(await request.json())
            writes = [
                _openapi_write(entity["urn"], aspect, body, patch=request.method == "PATCH")
                for entity in entities
                for aspect, body in _aspects(entity)
            ]
            _check_entity_type(request.match_info["entity"], (write.urn for write in writes))
            records = self._store.apply(writes)
        except RefusedError as error:
            status, name = (412, "Precondition Error") if error.precondition else (400, "Validation Error")
            return web.json_response({"error": name, "message": str(error)}, status=status)
        except rules.InvalidWriteError as error:
            return web.json_response({"error": "Validation Error", "message": str(error)}, status=400)
        return web.json_response(
            _answer_entities(records, [entity["urn"] for entity in entities], metadata=True)
        )

    async def batch_get(self, request: web.Request) -> web.Response:
        """Read aspects of many entities; an aspect that does not exist is left out (contract, section 3)."""
        try:
            entities = _entities(await request.json())
        except rules.InvalidWriteError as error:
            return web.json_response({"error": "Validation Error", "message": str(error)}, status=400)
        found = [
            record
            for entity in entities
            for name, record in self._store.records(entity["urn"]).items()
            if name in entity or entity.keys() == _BODY_KEYS
        ]
        urns = [entity["urn"] for entity in entities]
        return web.json_response(_answer_entities(found, urns, metadata=_wants_metadata(request)))

    async def get(self, request: web.Request) -> web.Response:
        """Read one entity, all aspects of it or those the query names."""
        urn = request.match_info["urn"]
        names = request.query.getall("aspects", []) or list(self._store.records(urn))
        found = [record for name in names if (record := self._store.record(urn, name)) is not None]
        if not found:
            return web.json_response({"error": "Not Found", "message": f"{urn} not found"}, status=404)
        return web.json_response(_answer_entities(found, [urn], metadata=_wants_metadata(request))[0])

    async def list(self, request: web.Request) -> web.Response:
        """Read every entity of a type, in one page; a `query` is not read."""
        wanted = request.match_info["entity"].lower()
        found = [
            record
            for urn in self._store.urns()
            if rules.entity_type(urn).lower() == wanted
            for record in self._store.records(urn).values()
        ]
        urns = dict.fromkeys(record.urn for record in found)
        entities = _answer_entities(found, urns, metadata=_wants_metadata(request))
        return web.json_response({"scrollId": None, "entities": entities})

    async def delete(self, request: web.Request) -> web.Response:
        """Forget one entity."""
        return web.Response(status=200 if self._store.delete(request.match_info["urn"]) else 404)

    async def specifications(self, _request: web.Request) -> web.Response:
        """Name no entity models: the CLI then makes no use of the newest ones."""
        return web.json_response({"start": 0, "count": 0, "total": 0, "elements": []})


def _entities(body: object) -> list[Json]:
    if not isinstance(body, list) or not all(
        isinstance(entity, dict) and isinstance(entity.get("urn"), str) for entity in body
    ):
        raise rules.InvalidWriteError('The body must be a list of {"urn": …, "<aspect>": {…}}')
    return body


def _aspects(entity: Json) -> list[tuple[str, Json]]:
    aspects = [(name, body) for name, body in entity.items() if name not in _BODY_KEYS]
    for name, body in aspects:
        if not isinstance(body, dict) or not isinstance(body.get("value"), dict):
            raise rules.InvalidWriteError(f'{name} of {entity["urn"]} must be {{"value": {{…}}}}')
    return aspects


def _openapi_write(urn: str, aspect: str, body: Json, *, patch: bool) -> Write:
    value = body["value"]
    headers, metadata = body.get("headers") or {}, body.get("systemMetadata") or {}
    if not patch:
        return Write(urn, aspect, value=value, headers=headers, system_metadata=metadata)
    return Write(urn, aspect, patch=value.get("patch", ()), headers=headers, system_metadata=metadata)


def _check_entity_type(name: str, urns: Iterable[str]) -> None:
    for urn in urns:
        if rules.entity_type(urn).lower() != name.lower():
            raise rules.InvalidWriteError(f"{urn} is no {name}")


def _wants_metadata(request: web.Request) -> bool:
    return request.query.get("systemMetadata", "false").lower() == "true"


def _answer_entities(records: Iterable[Record], urns: Iterable[str], *, metadata: bool) -> list[Json]:
    entities: dict[str, Json] = {urn: {"urn": urn} for urn in urns}
    for record in records:
        envelope: Json = {"value": record.value}
        if metadata:
            envelope["systemMetadata"] = record.system_metadata()
        entities[record.urn][record.aspect] = envelope
    return list(entities.values())


class RestLi:
    """`/aspects`, `/entities` and `/entitiesV2` as far as the CLI's ingestion needs them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """Return the routes under `prefix`."""
        return [
            web.post(f"{prefix}/aspects", self.aspects),
            web.get(f"{prefix}/aspects/{{urn}}", self.aspect),
            web.post(f"{prefix}/entities", self.entities),
            web.get(f"{prefix}/entitiesV2/{{urn}}", self.entity),
        ]

    async def aspects(self, request: web.Request) -> web.Response:
        """Take proposals, one or a batch; answer that there are no time series."""
        body = await request.json()
        match request.query.get("action"):
            case "ingestProposal":
                return self._ingest([body["proposal"]])
            case "ingestProposalBatch":
                return self._ingest(body["proposals"])
            case "getTimeseriesAspectValues":
                return web.json_response({"value": {"values": []}})
            case action:
                return _restli_error(400, f"The stand-in has no action {action} on /aspects")

    def _ingest(self, proposals: list[Json]) -> web.Response:
        try:
            writes = [_proposed_write(proposal) for proposal in proposals if proposal.get("aspect")]
            self._store.apply(writes)
        except (RefusedError, rules.InvalidWriteError) as error:
            return _restli_error(422, str(error))
        return web.json_response({"value": proposals[0].get("entityUrn") if len(proposals) == 1 else None})

    async def entities(self, request: web.Request) -> web.Response:
        """Take a snapshot (the older form of a proposal) or a deletion."""
        body = await request.json()
        match request.query.get("action"):
            case "ingest":
                try:
                    self._store.apply(_snapshot_writes(body))
                except RefusedError as error:
                    return _restli_error(422, str(error))
                return web.json_response({"value": None})
            case "delete":
                deleted = self._store.delete(body["urn"])
                return web.json_response({"value": {"urn": body["urn"], "rows": int(deleted)}})
            case action:
                return _restli_error(400, f"The stand-in has no action {action} on /entities")

    async def aspect(self, request: web.Request) -> web.Response:
        """Answer one aspect under its short name."""
        urn, name = request.match_info["urn"], request.query.get("aspect", "")
        if (record := self._store.record(urn, name)) is None:
            return _restli_error(404, f"No aspect {name} of {urn}")
        return web.json_response({"version": 0, "aspect": {name: record.value}})

    async def entity(self, request: web.Request) -> web.Response:
        """Answer an entity's aspects, all or those of `aspects=List(a,b)`."""
        urn = request.match_info["urn"]
        asked = _LIST.fullmatch(request.query.get("aspects", ""))
        names = asked.group(1).split(",") if asked else list(self._store.records(urn))
        found = {name: record for name in names if (record := self._store.record(urn, name)) is not None}
        aspects = {
            name: {
                "name": name,
                "type": "VERSIONED",
                "version": 0,
                "value": record.value,
                "systemMetadata": record.system_metadata(),
            }
            for name, record in found.items()
        }
        return web.json_response({"urn": urn, "entityName": rules.entity_type(urn), "aspects": aspects})


def _proposed_write(proposal: Json) -> Write:
    urn, aspect, kind = proposal.get("entityUrn"), proposal.get("aspectName"), proposal.get("changeType")
    if not isinstance(urn, str) or not isinstance(aspect, str):
        raise rules.InvalidWriteError("A proposal needs entityUrn and aspectName")
    try:
        value: Any = json.loads(proposal["aspect"]["value"])
    except json.JSONDecodeError as error:
        raise rules.InvalidWriteError(f"{aspect} of {urn} is no JSON: {error}") from error
    metadata, headers = proposal.get("systemMetadata") or {}, proposal.get("headers") or {}
    if kind != "PATCH":
        return Write(urn, aspect, value=value, headers=headers, system_metadata=metadata)
    operations = value if isinstance(value, list) else value.get("patch", ())
    return Write(urn, aspect, patch=operations, headers=headers, system_metadata=metadata)


def _snapshot_writes(body: Json) -> list[Write]:
    metadata = body.get("systemMetadata") or {}
    return [
        Write(snapshot["urn"], _aspect_name(record), value=value, system_metadata=metadata)
        for snapshot in body["entity"]["value"].values()
        for union in snapshot["aspects"]
        for record, value in union.items()
    ]


def _aspect_name(record: str) -> str:
    name = record.rsplit(".", 1)[-1]
    return name[0].lower() + name[1:]


def _restli_error(status: int, message: str) -> web.Response:
    return web.json_response({"status": status, "message": message}, status=status)
