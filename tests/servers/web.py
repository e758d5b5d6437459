"""An HTTP server of a test's own, which answers as the test says."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from aiohttp import web

from tests.servers.process import free_port

Answer = Callable[[web.Request], Awaitable[web.Response]]
LARGEST = 64 * 1024 * 1024  # bytes of a body


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """The base URL of a server of whose calls `answer` sees all."""
    app = web.Application(client_max_size=LARGEST)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()
