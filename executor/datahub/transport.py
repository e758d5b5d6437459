"""HTTP to DataHub: one connection pool, every failure turned into an error type with words."""

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx

from executor import lack
from executor.datahub.answers import WAIT_AND_SEE, GraphQLAnswer
from executor.datahub.errors import (
    BlockedError,
    DataHubError,
    DataHubRefusedError,
    DataHubUnavailableError,
    NotUnderstoodError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
    refusal,
    shortened,
)

CONNECT_TIMEOUT = 5.0  # seconds
ANSWER_TIMEOUT = 30.0  # seconds of silence

_NOT_DATAHUB = {404, 405}  # no address of ours is one that DataHub might not know

Answer = TypeVar("Answer")


class Failure(str):
    """How a call failed: the kind of it, which the metrics count, and the error, which has the words."""

    error: DataHubError

    def __new__(cls, error: DataHubError) -> "Failure":
        """What `error` is called."""
        failure = super().__new__(cls, error.kind)
        failure.error = error
        return failure

    @property
    def unreachable(self) -> bool:
        """Whether there was no answer at all, which says something of all operations."""
        return isinstance(self.error, UnreachableError)


Observer = Callable[[str, Failure | None], None]
"""Is told of each call once, when its answer was read: the operation, and how it failed (None: it did not)."""


def is_outage(failure: Failure | None) -> bool:
    """Whether an observed failure means that DataHub is away, not merely that it said no, or is busy."""
    if failure is None or failure in {str(code) for code in WAIT_AND_SEE}:
        return False
    return isinstance(failure.error, DataHubUnavailableError | UnauthorizedError)


class Transport:
    """Sends requests; knows addresses, the token and what went wrong, but nothing of what is asked."""

    def __init__(self, client: httpx.AsyncClient, observe: Observer) -> None:
        self._client = client
        self._observe = observe
        self.date: str | None = None
        """The server's clock as its last answer told it, in HTTP's form."""

    async def graphql(self, operation: str, document: str, variables: Mapping[str, object]) -> GraphQLAnswer:
        """Execute a document whose answer the caller reads; raises like `query`."""
        return await self.query(operation, document, variables, lambda answer: answer)

    async def query(
        self,
        operation: str,
        document: str,
        variables: Mapping[str, object],
        read: Callable[[GraphQLAnswer], Answer],
    ) -> Answer:
        """Execute a document; what `read` makes of its answer. A DataHubError of `read` counts as the call's.

        Raises:
            DataHubUnavailableError: no usable answer.
            UnauthorizedError: the token is not accepted; BlockedError: HTTP 403.
            DataHubRefusedError: the server does not take what was sent.
        """
        body = {"query": document, "variables": variables}
        return await self.json(
            operation, "POST", "/api/graphql", body, lambda answer: read(GraphQLAnswer(answer))
        )

    async def json(
        self,
        operation: str,
        method: str,
        path: str,
        body: object,
        read: Callable[[Any], Answer],
    ) -> Answer:
        """Send JSON, get JSON; what `read` makes of it. Raises like `query`."""
        try:
            answer = read(_parsed(await self._send(method, path, body)))
        except DataHubError as error:
            self._observe(operation, Failure(error))
            raise
        self._observe(operation, None)
        return answer

    async def _send(self, method: str, path: str, body: object) -> httpx.Response:
        where = f"{method} {path.partition('?')[0]}"
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx.TimeoutException as error:
            words = f"DataHub did not answer {where} in time ({type(error).__name__}): is it overloaded?"
            away = isinstance(error, httpx.ConnectTimeout)
            raise (UnreachableError if away else DataHubUnavailableError)(words, "timeout") from error
        except httpx.HTTPError as error:
            words = lack.behind(error) or str(error) or type(error).__name__
            raise UnreachableError(
                f"DataHub could not be reached at {self._client.base_url.netloc.decode()} ({words}): check "
                "DATAHUB_GMS_URL, and that the network lets us through"
            ) from error
        except (
            AttributeError
        ) as error:  # httpcore asks a connection that was reset at once for its TLS; uvloop has none
            raise UnreachableError(
                f"DataHub at {self._client.base_url.netloc.decode()} dropped a connection as soon as it took it: "
                "check DATAHUB_GMS_URL, and what is in front of it"
            ) from error
        except ValueError as error:  # half a character, or a number that JSON does not have
            raise DataHubRefusedError(f"{where} can't be sent as JSON: {type(error).__name__}") from error
        self.date = answer.headers.get("date")
        return answer


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


def _parsed(answer: httpx.Response) -> Any:  # noqa: ANN401 - JSON
    if answer.status_code >= 300:
        raise _failure(answer)
    try:
        return json.loads(answer.content)
    except (ValueError, RecursionError) as error:
        kind = shortened(answer.headers.get("content-type", "no content type"))
        raise NotUnderstoodError(f"{_where(answer)} brought {kind}, not JSON that can be read") from error


def _failure(answer: httpx.Response) -> DataHubError:
    code, where = answer.status_code, _where(answer)
    text = answer.content.decode(errors="replace")
    if code in {401, 403}:
        refused = UnauthorizedError if code == httpx.codes.UNAUTHORIZED else BlockedError
        return refused(
            f"DataHub answered {code} to {where}: check DATAHUB_GMS_TOKEN (expired, revoked, or it lacks a "
            "privilege)"
        )
    if ruled := refusal(text):
        return ruled
    if code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return TooLargeError(f"DataHub, or a proxy in between, finds {where} too large (413)")
    if code >= 500 or code in WAIT_AND_SEE:
        return DataHubUnavailableError(
            f"DataHub answered {code} to {where}: see its own log, or that of the proxy in front of it",
            str(code),
        )
    if code < 400:
        target = shortened(answer.headers.get("location", "elsewhere"))
        return DataHubUnavailableError(
            f"{where} is redirected to {target}: set DATAHUB_GMS_URL to the final address, or log in to the "
            "proxy in between",
            str(code),
        )
    if code in _NOT_DATAHUB:
        return DataHubUnavailableError(
            f"{code} was answered to {where}, which DataHub knows: check DATAHUB_GMS_URL", str(code)
        )
    said = _message(text) or "it does not say why"
    return DataHubRefusedError(f"DataHub answered {code} to {where}: {said}", str(code))


def _where(answer: httpx.Response) -> str:
    return f"{answer.request.method} {answer.request.url.path}"


def _message(text: str) -> str | None:
    """What DataHub's own error pages say, which are JSON."""
    try:
        page = json.loads(text)
    except (ValueError, RecursionError):
        return None
    message = page.get("message") if isinstance(page, dict) else None
    return shortened(message) if isinstance(message, str) and message else None
