"""Stored aspects as the objects of the contract's GraphQL schema."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from executor.local import rules
from executor.local.rules import Json
from executor.local.store import Store

SOURCE_ENTITY: Final = "dataHubIngestionSource"
SOURCE_ASPECT: Final = "dataHubIngestionSourceInfo"
REQUEST_ENTITY: Final = "dataHubExecutionRequest"

_PAGE: Final = 20  # rows in an answer whose query names no count


def execution_request(store: Store, urn: str) -> Json | None:
    """Return an `ExecutionRequest`, None when no aspect of it exists.

    Its `input` is None when only other aspects were written: whoever asks for it gets a GraphQL error.
    """
    if not store.records(urn):
        return None
    asked = store.aspect(urn, rules.INPUT_ASPECT)
    source = ingestion_source_urn(store, urn)
    return {
        "urn": urn,
        "type": "EXECUTION_REQUEST",
        "id": urn.rsplit(":", 1)[-1],
        "input": None if asked is None else _execution_input(asked),
        "result": store.aspect(urn, rules.RESULT_ASPECT),
        "source": lambda _info: None if source is None else ingestion_source(store, source),
    }


def _execution_input(aspect: Json) -> Json:
    return {
        "task": aspect["task"],
        "source": aspect["source"],
        "arguments": _entries(aspect["args"]),
        "requestedAt": aspect["requestedAt"],
        "actorUrn": aspect.get("actorUrn"),
        "actor": _actor(aspect.get("actorUrn")),
        "executorId": aspect.get("executorId"),
    }


def _actor(urn: str | None) -> Json | None:
    return None if urn is None else {"urn": urn, "type": "CORP_USER", "username": urn.rsplit(":", 1)[-1]}


def _entries(values: dict[str, str]) -> list[Json]:
    return [{"key": key, "value": value} for key, value in values.items()]


def ingestion_source_urn(store: Store, request_urn: str) -> str | None:
    """Return the URN of the ingestion source a request was made for."""
    asked = store.aspect(request_urn, rules.INPUT_ASPECT) or {}
    source: str | None = asked.get("source", {}).get("ingestionSource")
    return source


def ingestion_source(store: Store, urn: str) -> Json | None:
    """Return an `IngestionSource`, None when it does not exist."""
    info = store.aspect(urn, SOURCE_ASPECT)
    if info is None:
        return None
    config = info["config"]
    platform = info.get("platform")

    def requests(*statuses: str) -> list[str]:
        return newest_requests(
            store,
            lambda request: (
                ingestion_source_urn(store, request) == urn
                and (not statuses or _status(store, request) in statuses)
            ),
        )

    def latest_successful(_info: object) -> Json | None:
        done = requests("SUCCESS")
        return execution_request(store, done[0]) if done else None

    return {
        "urn": urn,
        "type": info["type"],
        "name": info["name"],
        "schedule": info.get("schedule"),
        "platform": None
        if platform is None
        else {"urn": platform, "type": "DATA_PLATFORM", "name": platform.rsplit(":", 1)[-1]},
        "config": {**config, "extraArgs": _entries(config.get("extraArgs", {}))},
        "source": info.get("source"),
        "executions": lambda _info, start=None, count=None: execution_page(store, requests(), start, count),
        "latestSuccessfulExecution": latest_successful,
    }


def _status(store: Store, urn: str) -> str | None:
    return (store.aspect(urn, rules.RESULT_ASPECT) or {}).get("status")


def newest_requests(store: Store, wanted: Callable[[str], bool]) -> list[str]:
    """Return the URNs of the wanted requests that have an input, the latest requested first."""
    asked = [
        (record.value["requestedAt"], order, urn)
        for order, urn in enumerate(store.urns(REQUEST_ENTITY))
        if (record := store.record(urn, rules.INPUT_ASPECT)) is not None
    ]
    return [urn for _, _, urn in sorted(asked, reverse=True) if wanted(urn)]


def execution_page(store: Store, urns: Iterable[str], start: int | None, count: int | None) -> Json:
    """Return an `IngestionSourceExecutionRequests` of the URNs from `start` on."""
    return page("executionRequests", [execution_request(store, urn) for urn in urns], start, count)


def page(name: str, rows: list[Any], start: int | None, count: int | None) -> Json:
    """Return one page of rows under `name`, with the total."""
    first, length = start or 0, _PAGE if count is None else count
    shown = rows[first : first + length]
    return {"start": first, "count": len(shown), "total": len(rows), name: shown}
