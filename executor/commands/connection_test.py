"""What a test of a source's connection found out: DataHub's status says only that the test was carried out."""

import json
from typing import Any, Final

from executor.commands.follow import Verdict
from executor.datahub.answers import run_result
from executor.datahub.state import Status, urn_of
from executor.datahub.transport import Transport

CONNECTION_FAILED: Final = "CONNECTION FAILED"

_DOCUMENT: Final = """
query connectionTest($urn: String!) {
  executionRequest(urn: $urn) { urn result { structuredReport { serializedValue } } }
}
"""
_UNKNOWN: Final = "the run left no report of it that can be read; see its log"


class ConnectionTest:
    """Judges a run by the file that the CLI wrote (contract, section 5)."""

    def __init__(self, transport: Transport, exec_id: str) -> None:
        self._transport = transport
        self._exec_id = exec_id

    async def verdict(self, status: str) -> Verdict:
        """How a run that ended with `status` is to be called. Raises DataHubError."""
        if status != Status.SUCCESS:
            return Verdict(status)
        result = await self._transport.query(
            "executionRequest", _DOCUMENT, {"urn": urn_of(self._exec_id)}, run_result
        )
        stored = result.get("structuredReport")
        failure = failure_of(stored.get("serializedValue") if isinstance(stored, dict) else None)
        if failure is None:
            return Verdict(status)
        return Verdict(CONNECTION_FAILED, f"The connection could not be made: {failure}")


def failure_of(serialized: object) -> str | None:
    """Why the source can't be reached, by the CLI's report; None if it can."""
    try:
        report: Any = json.loads(serialized) if isinstance(serialized, str) else None
    except (ValueError, RecursionError):
        return _UNKNOWN
    if not isinstance(report, dict):
        return _UNKNOWN
    if report.get("internal_failure"):
        return str(report.get("internal_failure_reason") or "the source could not test it")
    connectivity = report.get("basic_connectivity")
    if not isinstance(connectivity, dict):
        return _UNKNOWN
    if connectivity.get("capable") is True:
        return None
    said = (connectivity.get("failure_reason"), connectivity.get("mitigation_message"))
    return ". ".join(str(words) for words in said if words) or "the source does not say why"
