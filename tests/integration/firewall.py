"""A web application firewall in front of DataHub, which refuses large bodies."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from aiohttp import web

from tests.servers.web import serving


@asynccontextmanager
async def firewall(datahub_url: str, largest: int, code: int) -> AsyncIterator[str]:
    """The URL of a DataHub behind a server that answers `code` to bodies of more than `largest` bytes."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        if len(body) > largest:
            return web.Response(status=code, text="<html>Request blocked</html>", content_type="text/html")
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            passed = await client.request(
                request.method, datahub_url + request.path_qs, content=body, headers=headers
            )
        back = {"Content-Type": passed.headers.get("Content-Type", "text/plain")}
        return web.Response(body=passed.content, status=passed.status_code, headers=back)

    async with serving(answer) as url:
        yield url
