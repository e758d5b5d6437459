"""DataHub's own secrets, as one of the places where a recipe's names are looked up."""

from collections.abc import Collection

from executor.datahub.client import DataHub


class DataHubSecretStore:
    """The secrets that people enter in DataHub's page; the token needs the privilege to manage secrets."""

    name = "DataHub's secrets"

    def __init__(self, datahub: DataHub) -> None:
        self._datahub = datahub

    async def lookup(self, names: Collection[str]) -> dict[str, str]:
        """Those of `names` that exist there. Raises DataHubError."""
        return await self._datahub.secret_values(names)
