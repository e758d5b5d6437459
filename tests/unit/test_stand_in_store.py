"""The DataHub stand-in keeps the server's rules (contract, section 3), whatever door a write takes."""

from itertools import count
from typing import Any

import pytest

from executor.local.rules import INPUT_ASPECT, RESULT_ASPECT, SIGNAL_ASPECT
from executor.local.store import Record, RefusedError, Store, Write

URN = "urn:li:dataHubExecutionRequest:e1"
DATASET = "urn:li:dataset:(urn:li:dataPlatform:sqlite,shop,PROD)"


@pytest.fixture
def store() -> Store:
    ticks = count()
    return Store(monotonic=lambda: float(next(ticks)), clock=lambda: 1_000.5)


def write(store: Store, urn: str = URN, *, version: str | None = None, **value: Any) -> Record:
    headers = {} if version is None else {"If-Version-Match": version}
    return store.apply([Write(urn, RESULT_ASPECT, value=value, headers=headers)])[0]


def patch(store: Store, *operations: dict[str, Any]) -> dict[str, Any]:
    return store.apply([Write(URN, RESULT_ASPECT, patch=operations)])[0].value


def test_a_version_starts_at_1_and_grows_with_what_changes(store: Store) -> None:
    versions = [write(store, status=status).version for status in ("RUNNING", "RUNNING", "FAILURE")]
    assert versions == [1, 1, 2]


@pytest.mark.parametrize("ended", ["SUCCESS", "CANCELLED", "ABORTED", "DUPLICATE"])
def test_an_ended_run_is_written_no_more(store: Store, ended: str) -> None:
    write(store, status=ended)
    for later in ("RUNNING", ended):
        with pytest.raises(RefusedError, match="Invalid update to immutable state"):
            write(store, status=later)
    assert store.status("e1") == ended


@pytest.mark.parametrize("status", ["RUNNING", "FAILURE", "UP_FOR_RETRY"])
def test_other_statuses_can_be_overwritten(store: Store, status: str) -> None:
    write(store, status=status)
    write(store, status="SUCCESS")
    assert store.status("e1") == "SUCCESS"


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        ({"status": "RUNNING", "attempt": 1}, "/attempt :: unrecognized field found but not allowed"),
        ({"report": "x"}, "/status :: field is required"),
        ({"status": 1}, "/status"),
        ({"status": None}, "/status"),
        ({"status": "RUNNING", "startTimeMs": "1"}, "/startTimeMs"),
        ({"status": "RUNNING", "startTimeMs": 1.5}, "/startTimeMs"),
        ({"status": "RUNNING", "durationMs": True}, "/durationMs"),
        ({"status": "RUNNING", "report": ["x"]}, "/report"),
        ({"status": "RUNNING", "structuredReport": "x"}, "/structuredReport"),
        ({"status": "RUNNING", "structuredReport": {"type": "t", "contentType": "c"}}, "/serializedValue"),
    ],
)
def test_a_result_has_the_fields_of_its_model(store: Store, value: dict[str, Any], refusal: str) -> None:
    with pytest.raises(RefusedError, match=refusal):
        write(store, **value)
    assert store.aspect(URN, RESULT_ASPECT) is None


def test_request_and_signal_have_the_fields_of_their_models(store: Store) -> None:
    asked = {"task": "RUN_INGEST", "args": {"n": 1}, "source": {"type": "x"}, "requestedAt": 1}
    with pytest.raises(RefusedError, match="/args"):
        store.apply([Write(URN, INPUT_ASPECT, value=asked)])
    with pytest.raises(RefusedError, match="/createdAt :: field is required"):
        store.apply([Write(URN, SIGNAL_ASPECT, value={"signal": "KILL"})])


@pytest.mark.parametrize("urn", ["e1", "urn:li:dataHubExecutionRequest:", "urn:x:dataset:a"])
def test_what_is_no_urn_is_refused(store: Store, urn: str) -> None:
    with pytest.raises(RefusedError, match="Invalid urn"):
        write(store, urn, status="RUNNING")


def test_a_conditional_write_meets_the_version_or_is_refused(store: Store) -> None:
    write(store, status="RUNNING", version="-1")
    with pytest.raises(RefusedError, match="Expected version -1, actual version 1") as refused:
        write(store, status="FAILURE", version="-1")
    assert refused.value.precondition
    assert write(store, status="FAILURE", version="1").version == 2


def test_an_ended_run_refuses_a_stale_condition_with_both_reasons(store: Store) -> None:
    write(store, status="SUCCESS")
    with pytest.raises(RefusedError, match=r"immutable state.*; Expected version 7, actual version 1"):
        write(store, status="RUNNING", version="7")


def test_an_old_server_ignores_conditions(store: Store) -> None:
    store.ignores_conditions = True
    write(store, status="RUNNING", version="5")
    assert store.status("e1") == "RUNNING"


def test_a_write_leaves_its_properties_beside_the_value(store: Store) -> None:
    metadata = {"runId": "r", "properties": {"owner": "task-1"}}
    record = store.apply([Write(URN, RESULT_ASPECT, value={"status": "RUNNING"}, system_metadata=metadata)])[
        0
    ]
    assert record.system_metadata() == {
        "version": "1",
        "lastObserved": 1_000_500,
        "runId": "r",
        "properties": {"owner": "task-1"},
    }
    assert write(store, status="RUNNING").properties == {"owner": "task-1"}, "nothing changed"
    assert write(store, status="FAILURE").properties == {}


def test_a_transaction_stores_all_or_nothing(store: Store) -> None:
    write(store, status="SUCCESS")
    other = "urn:li:dataHubExecutionRequest:e2"
    with pytest.raises(RefusedError, match="immutable state"):
        store.apply(
            [
                Write(other, RESULT_ASPECT, value={"status": "RUNNING"}),
                Write(URN, RESULT_ASPECT, value={"status": "RUNNING"}),
            ]
        )
    assert store.status("e2") is None


def test_the_second_write_of_a_transaction_sees_the_first(store: Store) -> None:
    claim = {"If-Version-Match": "-1"}
    with pytest.raises(RefusedError, match="Expected version -1, actual version 1"):
        store.apply([Write(URN, RESULT_ASPECT, value={"status": status}, headers=claim) for status in "AB"])


def test_a_patch_makes_the_aspect_and_changes_it(store: Store) -> None:
    patch(store, {"op": "add", "path": "/status", "value": "RUNNING"})
    patch(
        store, {"op": "add", "path": "/report", "value": "x"}, {"op": "test", "path": "/report", "value": "x"}
    )
    patch(store, {"op": "replace", "path": "/report", "value": "y"})
    patch(store, {"op": "copy", "from": "/report", "path": "/status"})
    assert patch(store, {"op": "move", "from": "/report", "path": "/status"}) == {"status": "y"}
    with pytest.raises(RefusedError, match="/status :: field is required"):
        patch(store, {"op": "remove", "path": "/status"})


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "replace", "path": "/report", "value": "no report yet"},
        {"op": "remove", "path": "/report"},
        {"op": "test", "path": "/status", "value": "FAILURE"},
        {"op": "add", "path": "/structuredReport/type", "value": "no parent"},
        {"op": "add", "path": "status", "value": "no pointer"},
        {"op": "replace", "path": "", "value": []},
    ],
)
def test_a_patch_that_does_not_fit_is_refused(store: Store, operation: dict[str, Any]) -> None:
    write(store, status="RUNNING")
    with pytest.raises(RefusedError, match="patch"):
        patch(store, operation)
    assert store.aspect(URN, RESULT_ASPECT) == {"status": "RUNNING"}


def test_other_aspects_grow_the_parents_a_patch_needs(store: Store) -> None:
    add = {"op": "add", "path": "/tags/urn:li:tag:a~1b/why", "value": "x"}
    record = store.apply([Write(DATASET, "globalTags", patch=[add])])[0]
    assert record.value == {"tags": {"urn:li:tag:a/b": {"why": "x"}}}


def test_an_aspect_over_the_limit_is_refused() -> None:
    store = Store(max_aspect_chars=100, monotonic=lambda: 0.0)
    write(store, status="RUNNING", report="x" * 68)
    with pytest.raises(RefusedError, match="101 characters; an aspect may have 100 at most"):
        write(store, status="RUNNING", report="é" * 69)


def test_history_holds_every_accepted_write_in_order(store: Store) -> None:
    for status in ("RUNNING", "RUNNING", "SUCCESS"):
        write(store, status=status)
    with pytest.raises(RefusedError):
        write(store, status="FAILURE")
    history = store.history("e1")
    assert [(record.status, record.version) for record in history] == [
        ("RUNNING", 1),
        ("RUNNING", 1),
        ("SUCCESS", 2),
    ]
    assert [record.monotonic for record in history] == sorted({record.monotonic for record in history})


def test_datasets_come_with_their_columns(store: Store) -> None:
    fields = [{"fieldPath": "id"}, {"fieldPath": "[version=2.0].[type=struct].[type=string].name"}]
    store.apply([Write(DATASET, "schemaMetadata", value={"fields": fields})])
    assert store.datasets() == {DATASET: ["id", "name"]}
