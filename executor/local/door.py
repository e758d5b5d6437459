"""The stand-in's front door: who may enter, what fails on purpose, and the log of it."""

import json
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from aiohttp import web

from executor.local.faults import Call, Calls, FaultKind, Faults
from executor.local.graphql_api import root_fields

ADMIN_PREFIX: Final = "/stand-in/"
GRAPHQL_PATH: Final = "/api/graphql"

_PUBLIC: Final = ("/config", "/health")  # need no token (contract, section 3)
_LOOPBACK: Final = ("127.0.0.1", "::1")
_UNAUTHORIZED_PAGE: Final = (
    "<html><head><title>Error 401</title></head>"
    "<body><h2>HTTP ERROR 401 Unauthorized to perform this action.</h2></body></html>"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Door:
    """The middleware every call passes: the stand-in's own pages by loopback alone, others by their token."""

    def __init__(self, *, token: str | None, calls: Calls, faults: Faults) -> None:
        self._token = token
        self._calls = calls
        self._faults = faults

    @web.middleware
    async def enter(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Pass one call on to its handler."""
        if request.path.startswith(ADMIN_PREFIX):
            if request.remote not in _LOOPBACK:
                raise web.HTTPForbidden(text="The stand-in's own pages answer to its own machine alone")
            return await self._handled(request, handler)
        came = anyio.current_time()
        body = await request.read()
        operations = _operations(body) if request.path.endswith(GRAPHQL_PATH) else ()
        status = 0
        try:
            response = await self._struck(request, handler, operations)
            status = 0 if _left(request) else response.status
        except web.HTTPException as error:
            status = error.status
            raise
        else:
            return response
        finally:
            size = len(body) if request.content_length is None else request.content_length
            self._calls.add(Call(operations, request.path, came, size, status))

    async def _struck(
        self, request: web.Request, handler: Handler, operations: tuple[str, ...]
    ) -> web.StreamResponse:
        rule = self._faults.take(operations, request.path)
        kind: FaultKind | None = None if rule is None else rule.fault.kind
        if rule is not None:
            if kind == "slow":
                await anyio.sleep(rule.fault.seconds)
            elif kind == "hang":
                await rule.cleared.wait()
            elif kind == "status":
                return web.Response(status=rule.fault.code, text=rule.fault.body, content_type="text/html")
        if kind == "cut_before_write" or _left(request):
            return _cut(request)
        response = await self._authorized(request, handler)
        return _cut(request) if kind == "cut_after_write" else response

    async def _authorized(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        public = request.path.endswith(_PUBLIC)
        if self._token and not public and request.headers.get("Authorization") != f"Bearer {self._token}":
            return web.Response(status=401, text=_UNAUTHORIZED_PAGE, content_type="text/html")
        return await self._handled(request, handler)

    @staticmethod
    async def _handled(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except json.JSONDecodeError as error:
            return web.json_response({"status": 400, "message": f"The body is no JSON: {error}"}, status=400)


def _operations(body: bytes) -> tuple[str, ...]:
    try:
        document = json.loads(body)
    except ValueError:
        return ()
    query = document.get("query") if isinstance(document, dict) else None
    return root_fields(query) if isinstance(query, str) else ()


def _left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _cut(request: web.Request) -> web.Response:
    """Drop the connection; what is returned reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
