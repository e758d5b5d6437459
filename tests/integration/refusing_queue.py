"""A queue that refuses some calls as AWS does, in front of a real one."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
from aiohttp import web

from tests.servers.web import serving


@asynccontextmanager
async def refusing_queue(
    queue: str,
    operations: set[str],
    code: str = "AccessDeniedException",
    meanwhile: Callable[[], None] = lambda: None,
) -> AsyncIterator[str]:
    """The queue's URL behind a server that refuses `operations` in AWS' own form, and passes on all others.

    `meanwhile` happens just before each refusal.
    """
    target = f"http://{urlsplit(queue).netloc}"

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        operation = request.headers["X-Amz-Target"].removeprefix("AmazonSQS.")
        if operation in operations:
            meanwhile()
        if operation in operations and operation.endswith("Batch"):
            entries = json.loads(body)["Entries"]
            failed = [{"Id": e["Id"], "Code": code, "Message": code, "SenderFault": True} for e in entries]
            return web.json_response({"Failed": failed, "Successful": []}, headers={"x-amzn-RequestId": "1"})
        if operation in operations:
            refusal = {"__type": f"com.amazon.coral.service#{code}", "Message": f"no {operation} here"}
            return web.json_response(refusal, status=403, headers={"x-amzn-RequestId": "1"})
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            passed = await client.post(target + request.path, content=body, headers=headers)
        kept = ("x-amzn-RequestId", "Content-Type")
        back = {name: passed.headers[name] for name in kept if name in passed.headers}
        return web.Response(body=passed.content, status=passed.status_code, headers=back)

    async with serving(answer) as url:
        yield url + urlsplit(queue).path
