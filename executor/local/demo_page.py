"""What a person does in DataHub's page, by the same GraphQL."""

from typing import Any, Final

from executor.datahub.transport import Transport

_CREATE_SECRET: Final = "mutation ($input: CreateSecretInput!) { createSecret(input: $input) }"  # noqa: S105 - no secret
_CREATE_SOURCE: Final = (
    "mutation ($input: UpdateIngestionSourceInput!) { createIngestionSource(input: $input) }"
)
_EXECUTE: Final = """\
mutation ($input: CreateIngestionExecutionRequestInput!) { createIngestionExecutionRequest(input: $input) }
"""


class Page:
    """The ingestion page. Each method raises DataHubError where DataHub does not do it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create_secret(self, name: str, value: str) -> None:
        """Put a secret into DataHub's own store."""
        await self._mutate("createSecret", _CREATE_SECRET, {"name": name, "value": value})

    async def create_source(self, name: str, source_type: str, recipe: str, version: str) -> str:
        """Create an ingestion source for the executor id `remote`, debug mode on; returns its URN."""
        config = {"recipe": recipe, "version": version, "executorId": "remote", "debugMode": True}
        given = {"name": name, "type": source_type, "config": config}
        return await self._mutate("createIngestionSource", _CREATE_SOURCE, given)

    async def execute(self, source_urn: str) -> str:
        """Press *Execute*; returns the execution id."""
        given = {"ingestionSourceUrn": source_urn}
        urn = await self._mutate("createIngestionExecutionRequest", _EXECUTE, given)
        return urn.rsplit(":", 1)[-1]

    async def _mutate(self, name: str, document: str, given: dict[str, Any]) -> str:
        answer = await self._transport.graphql(name, document, {"input": given})
        return str(answer.field(name))
