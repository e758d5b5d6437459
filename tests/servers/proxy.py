"""A TCP proxy that can be cut, to take a server away from one of its clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream, TaskGroup

LOOPBACK = "127.0.0.1"


class TcpProxy:
    """Passes connections on to a port of this machine, until it is cut. Made by `tcp_proxy`."""

    def __init__(self, target_port: int, tasks: TaskGroup) -> None:
        self.port = 0
        self._target_port = target_port
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self._closed = anyio.Event()

    async def cut(self) -> None:
        """Drop every connection and refuse new ones."""
        self._scope.cancel()
        await self._closed.wait()

    async def restore(self) -> None:
        """Listen, on the same port as before."""
        listener = await anyio.create_tcp_listener(local_host=LOOPBACK, local_port=self.port)
        self.port = listener.extra(SocketAttribute.local_port)
        self._scope, self._closed = anyio.CancelScope(), anyio.Event()

        async def serve() -> None:
            with self._scope:
                async with listener:
                    await listener.serve(self._pass_on)
            self._closed.set()

        self._tasks.start_soon(serve)

    async def _pass_on(self, client: SocketStream) -> None:
        async with (
            client,
            await anyio.connect_tcp(LOOPBACK, self._target_port) as server,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(_copy, server, client, tasks)
            await _copy(client, server, tasks)


async def _copy(source: ByteStream, sink: ByteStream, both: TaskGroup) -> None:
    """Copy until one side is gone, then end the other direction as well."""
    try:
        async for data in source:
            await sink.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    both.cancel_scope.cancel()


@asynccontextmanager
async def tcp_proxy(target_port: int) -> AsyncIterator[TcpProxy]:
    """A proxy for a port of this machine, on a free port of its own."""
    async with anyio.create_task_group() as tasks:
        proxy = TcpProxy(target_port, tasks)
        await proxy.restore()
        try:
            yield proxy
        finally:
            tasks.cancel_scope.cancel()
