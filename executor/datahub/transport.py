"""HTTP to DataHub: one connection pool, every failure turned into an error type with words."""

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from executor.datahub.errors import DataHubRefusedError, DataHubUnavailableError, UnauthorizedError, refusal

CONNECT_TIMEOUT = 5.0  # seconds
ANSWER_TIMEOUT = 30.0  # seconds of silence

_WAIT_AND_SEE = {408, 425, 429}  # client errors that pass by themselves

# What the metrics count: operation, and the kind of failure or None.
Observer = Callable[[str, str | None], None]


def is_outage(failure: str | None) -> bool:
    """Whether an observed failure means that DataHub is away, not merely that it said no."""
    return failure in {"timeout", "connection", "invalid", "401", "403"} or bool(
        failure and failure[0] == "5"
    )


class Transport:
    """Sends requests; knows addresses, the token and what went wrong, but nothing of what is asked."""

    def __init__(self, client: httpx.AsyncClient, observe: Observer) -> None:
        self._client = client
        self._observe = observe
        self.date: str | None = None
        """The server's clock as its last answer told it, in HTTP's form."""

    async def graphql(
        self, operation: str, document: str, variables: Mapping[str, object]
    ) -> "GraphQLAnswer":
        """Execute a document.

        Raises:
            DataHubUnavailableError: no usable answer.
            UnauthorizedError: the token is not accepted.
            DataHubRefusedError: the server does not know this address.
        """
        body = {"query": document, "variables": variables}
        answer = await self.json(operation, "POST", "/api/graphql", body)
        if not isinstance(answer, dict):
            self._observe(operation, "invalid")
            raise DataHubUnavailableError("DataHub's GraphQL answered with something that is no object")
        errors = [error for error in answer.get("errors") or () if isinstance(error, dict)]
        if errors:
            self._observe(operation, "graphql")
        return GraphQLAnswer(answer.get("data") or {}, errors)

    async def json(self, operation: str, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        """Send JSON, get JSON; raises like `graphql`."""
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx.TimeoutException as error:
            self._observe(operation, "timeout")
            raise DataHubUnavailableError(
                f"DataHub did not answer in time ({type(error).__name__})"
            ) from error
        except httpx.HTTPError as error:
            self._observe(operation, "connection")
            words = str(error) or type(error).__name__
            raise DataHubUnavailableError(f"DataHub could not be reached: {words}") from error
        self.date = answer.headers.get("date")
        failure = _failure(answer)
        self._observe(operation, str(answer.status_code) if failure else None)
        if failure:
            raise failure
        try:
            return answer.json()
        except ValueError as error:
            self._observe(operation, "invalid")
            kind = answer.headers.get("content-type", "no content type")
            raise DataHubUnavailableError(
                f"something in front of DataHub answered {method} {path} with {kind}, not JSON: "
                "check DATAHUB_GMS_URL and the proxies in between"
            ) from error


class GraphQLAnswer:
    """Data, and the errors that came with it."""

    def __init__(self, data: Mapping[str, Any], errors: list[dict[str, Any]]) -> None:
        self.data = data
        self.errors = errors

    def field(self, name: str) -> Any:  # noqa: ANN401 - JSON
        """One root field of the data.

        Raises:
            DataHubRefusedError: the answer has errors and nothing in this field.
        """
        value = self.data.get(name)
        if value is None and self.errors:
            words = "; ".join(str(error.get("message")) for error in self.errors)
            raise DataHubRefusedError(f"DataHub refused {name}: {words}")
        return value

    @property
    def invalid(self) -> str | None:
        """Why the server's schema does not allow the document: such errors have no path into the data."""
        if self.data:
            return None
        words = [str(error.get("message")) for error in self.errors if not error.get("path")]
        return "; ".join(words) or None


@asynccontextmanager
async def open_transport(base_url: str, token: str | None, observe: Observer) -> AsyncIterator[Transport]:
    """A transport for `base_url`; the token goes into a header and nowhere else."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # Loading the certificates costs 6 MB and 20 ms: only where there is something to verify.
    verify = ssl.create_default_context() if base_url.startswith("https:") else False
    async with httpx.AsyncClient(
        base_url=base_url,
        headers=headers,
        verify=verify,
        timeout=httpx.Timeout(ANSWER_TIMEOUT, connect=CONNECT_TIMEOUT),
        limits=httpx.Limits(max_connections=16, max_keepalive_connections=4, keepalive_expiry=30),
    ) as client:
        yield Transport(client, observe)


def _failure(answer: httpx.Response) -> Exception | None:
    code = answer.status_code
    if code < 300:
        return None
    where = f"{answer.request.method} {answer.request.url.path}"
    if ruled := refusal(answer.text):
        return ruled
    if code in {401, 403}:
        return UnauthorizedError(
            f"DataHub answered {code} to {where}: check DATAHUB_GMS_TOKEN (expired, revoked, or it lacks a "
            "privilege)"
        )
    if code >= 500 or code in _WAIT_AND_SEE:
        return DataHubUnavailableError(f"DataHub answered {code} to {where}")
    if code < 400:
        target = answer.headers.get("location", "elsewhere")
        return DataHubRefusedError(
            f"{where} is redirected to {target}: set DATAHUB_GMS_URL to the final address"
        )
    return DataHubRefusedError(f"DataHub answered {code} to {where}: check DATAHUB_GMS_URL")
