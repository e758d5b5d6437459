"""The stand-in's aspects. Every door writes through `Store.apply`, so one set of rules holds."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from executor.local import rules
from executor.local.rules import Json

REQUEST_URN_PREFIX: Final = "urn:li:dataHubExecutionRequest:"
_FIELD_PATH_MARKUP: Final = re.compile(r"\[[^\]]*\]\.?")


class RefusedError(Exception):
    """A transaction that broke the server's rules: nothing of it was stored.

    `precondition` says that a conditional write met another version (HTTP 412 in the OpenAPI doors).
    """

    def __init__(self, errors: Sequence[str], *, precondition: bool = False) -> None:
        super().__init__("; ".join(errors))
        self.precondition = precondition


@dataclass(frozen=True)
class Write:
    """One proposed write of one aspect: the whole `value`, or a JSON Patch in `patch`."""

    urn: str
    aspect: str
    value: Json | None = None
    patch: Sequence[Mapping[str, Any]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    system_metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One stored state of an aspect. Its `value` is shared with the store: read it, never change it."""

    urn: str
    aspect: str
    value: Json
    version: int
    run_id: str
    properties: Mapping[str, str]
    monotonic: float  # seconds, the event loop's clock
    epoch: float  # seconds

    @property
    def status(self) -> str | None:
        """The status, where this is a result."""
        return self.value.get("status")

    def system_metadata(self) -> Json:
        """The aspect's system metadata as the doors answer it: the version is a string."""
        metadata: Json = {
            "version": str(self.version),
            "lastObserved": int(self.epoch * 1000),
            "runId": self.run_id,
        }
        return {**metadata, "properties": dict(self.properties)} if self.properties else metadata


class Store:
    """Aspects by URN and name, and every accepted write of a result, in order."""

    def __init__(
        self,
        *,
        max_aspect_chars: int = rules.MAX_ASPECT_CHARS,
        monotonic: Callable[[], float] = anyio.current_time,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_aspect_chars = max_aspect_chars
        self.ignores_conditions = False
        self.keeps_properties = True
        self.on_result: Callable[[], None] | None = None
        self._monotonic = monotonic
        self._clock = clock
        self._aspects: dict[str, dict[str, Record]] = {}
        self._history: dict[str, list[Record]] = {}

    def apply(self, writes: Sequence[Write]) -> list[Record]:
        """Store all of `writes` or, when one is refused, none.

        Returns:
            The state of each written aspect; its version has not grown where the write changed nothing.

        Raises:
            RefusedError: a rule of section 3 was broken; the message holds every breach.
        """
        staged: dict[tuple[str, str], Record] = {}
        accepted: list[Record] = []
        errors: list[str] = []
        precondition = False
        for write in writes:
            key = (write.urn, write.aspect)
            old = staged.get(key) or self.record(*key)
            try:
                record = self._checked(write, old)
            except RefusedError as error:
                errors.append(str(error))
                precondition = precondition or error.precondition
                continue
            staged[key] = record
            accepted.append(record)
        if errors:
            raise RefusedError(errors, precondition=precondition)
        self._commit(accepted)
        return accepted

    def _checked(self, write: Write, old: Record | None) -> Record:
        old_value = None if old is None else old.value
        try:
            rules.entity_type(write.urn)
            value = write.value if write.patch is None else self._patched(write, old_value)
        except rules.InvalidWriteError as error:
            raise RefusedError([str(error)]) from error
        if value is None:
            raise RefusedError([f"A write of {write.aspect} must hold a value"])
        if errors := rules.model_errors(write.aspect, value):
            raise RefusedError(errors)
        size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
        if size > self.max_aspect_chars:
            limit = f"an aspect may have {self.max_aspect_chars} at most"
            raise RefusedError([f"{write.aspect} of {write.urn} has {size} characters; {limit}"])
        expected = None if self.ignores_conditions else write.headers.get(rules.VERSION_HEADER)
        stale = rules.version_error(expected, None if old is None else old.version)
        ended = rules.immutability_error(write.urn, write.aspect, old_value, value)
        if refusals := [error for error in (ended, stale) if error is not None]:
            raise RefusedError(refusals, precondition=stale is not None)
        return self._next(write, old, value)

    @staticmethod
    def _patched(write: Write, old: Json | None) -> Json:
        grow = write.aspect not in rules.EXECUTION_REQUEST_ASPECTS
        return rules.patched(old, write.patch or (), grow=grow)

    def _next(self, write: Write, old: Record | None, value: Json) -> Record:
        unchanged = old is not None and old.value == value
        if old is not None and unchanged:
            version, run_id, properties = old.version, old.run_id, old.properties
        else:
            version = 1 if old is None else old.version + 1
            run_id = str(write.system_metadata.get("runId") or "no-run-id-provided")
            given = write.system_metadata.get("properties") or {}
            properties = {str(k): str(v) for k, v in given.items()} if self.keeps_properties else {}
        return Record(
            urn=write.urn,
            aspect=write.aspect,
            value=value,
            version=version,
            run_id=run_id,
            properties=properties,
            monotonic=self._monotonic(),
            epoch=self._clock(),
        )

    def _commit(self, records: Sequence[Record]) -> None:
        results = False
        for record in records:
            self._aspects.setdefault(record.urn, {})[record.aspect] = record
            if record.aspect == rules.RESULT_ASPECT:
                self._history.setdefault(record.urn, []).append(record)
                results = True
        if results and self.on_result is not None:
            self.on_result()

    def delete(self, urn: str) -> bool:
        """Forget an entity with all of its aspects; False when there was none."""
        self._history.pop(urn, None)
        return self._aspects.pop(urn, None) is not None

    def record(self, urn: str, aspect: str) -> Record | None:
        """Return the stored state of one aspect."""
        return self._aspects.get(urn, {}).get(aspect)

    def records(self, urn: str) -> Mapping[str, Record]:
        """Return every aspect of an entity by name; empty when it does not exist."""
        return self._aspects.get(urn, {})

    def aspect(self, urn: str, aspect: str) -> Json | None:
        """Return the value of one aspect."""
        record = self.record(urn, aspect)
        return None if record is None else record.value

    def urns(self, entity: str | None = None) -> Iterator[str]:
        """Yield the URNs, of one entity type or all, in the order they were first written."""
        prefix = "urn:li:" if entity is None else f"urn:li:{entity}:"
        return (urn for urn in list(self._aspects) if urn.startswith(prefix))

    def status(self, exec_id: str) -> str | None:
        """Return the status of an execution request; None before anything was written."""
        value = self.aspect(REQUEST_URN_PREFIX + exec_id, rules.RESULT_ASPECT)
        return None if value is None else value["status"]

    def history(self, exec_id: str) -> list[Record]:
        """Return every accepted write of a request's result, oldest first, those that changed nothing too."""
        return list(self._history.get(REQUEST_URN_PREFIX + exec_id, ()))

    def datasets(self) -> dict[str, list[str]]:
        """Return the column names of each dataset, as its `schemaMetadata` has them."""
        return {urn: self._columns(urn) for urn in self.urns("dataset")}

    def _columns(self, urn: str) -> list[str]:
        schema = self.aspect(urn, "schemaMetadata") or {}
        return [_FIELD_PATH_MARKUP.sub("", column["fieldPath"]) for column in schema.get("fields", ())]
