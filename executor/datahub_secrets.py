"""DataHub's own secrets, as one of the places where a recipe's names are looked up."""

from collections.abc import Collection

from executor.datahub.client import DataHub
from executor.datahub.errors import DataHubRefusedError, UnauthorizedError
from executor.ingestion.secrets import SecretError


class DataHubSecretStore:
    """The secrets that people enter in DataHub's page; the token needs the privilege to manage secrets."""

    name = "DataHub's secrets"

    def __init__(self, datahub: DataHub) -> None:
        self._datahub = datahub

    async def lookup(self, names: Collection[str]) -> dict[str, str]:
        """Those of `names` that exist there.

        Raises:
            SecretError: DataHub won't tell them to this token.
            DataHubUnavailableError, UnauthorizedError: it could not be asked now.
        """
        try:
            return await self._datahub.secret_values(names)
        except UnauthorizedError:
            raise
        except DataHubRefusedError as error:
            raise SecretError(
                f"DataHub does not tell the secrets {', '.join(sorted(names))}: {error}. Give the owner of "
                "DATAHUB_GMS_TOKEN the privilege to manage secrets, or put them into files or the environment."
            ) from error
