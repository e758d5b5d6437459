"""A TCP proxy that can be cut, to take a server away from one of its clients."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream, TaskGroup

LOOPBACK = "127.0.0.1"
HEARD_OUT = 25.0  # seconds that an answer is waited for whose client has left; SQS's longest poll is 20 s

Listener = Callable[[bytes, bool], None]
"""Is told what the server answered, and whether that reached nobody."""


class TcpProxy:
    """Passes connections on to a port of this machine, until it is told not to. Made by `tcp_proxy`."""

    def __init__(self, target_port: int, tasks: TaskGroup, listener: Listener | None = None) -> None:
        self.port = 0
        self._target_port = target_port
        self._tasks = tasks
        self._listener = listener
        self._scope = anyio.CancelScope()
        self._closed = anyio.Event()
        self._flowing = anyio.Event()
        self._flowing.set()
        self._loses_answers = False

    async def cut(self) -> None:
        """Drop every connection and refuse new ones, until `restore`."""
        self._scope.cancel()
        await self._closed.wait()

    def hold(self) -> None:
        """Pass no byte on, and close nothing, until `let_pass`: connections are half-open. New ones are taken."""
        if self._flowing.is_set():
            self._flowing = anyio.Event()

    def lose_answers(self) -> None:
        """Pass requests on, and drop the connection when the answer comes, until `let_pass`."""
        self._loses_answers = True

    def let_pass(self) -> None:
        """Undo `hold` and `lose_answers`: what was held goes its way."""
        self._loses_answers = False
        self._flowing.set()

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
        async with client:
            server = await anyio.connect_tcp(LOOPBACK, self._target_port)
            try:
                async with anyio.create_task_group() as both:
                    both.start_soon(self._requests, client, server, both)
                    await self._answers(server, client)
                    both.cancel_scope.cancel()
            finally:
                if self._listener is None:
                    await anyio.aclose_forcefully(server)
                else:
                    self._tasks.start_soon(self._hear_out, server)

    async def _requests(self, client: ByteStream, server: ByteStream, both: TaskGroup) -> None:
        """Copy until one side is gone, then end the other direction as well."""
        try:
            async for data in client:
                await self._flowing.wait()
                await server.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        both.cancel_scope.cancel()

    async def _answers(self, server: ByteStream, client: ByteStream) -> None:
        try:
            async for data in server:
                lost = self._loses_answers
                if self._listener is not None:
                    self._listener(data, lost)
                if lost:
                    return
                await self._flowing.wait()
                await client.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass

    async def _hear_out(self, server: ByteStream) -> None:
        """What a server still answers to a client that left: such an answer reaches nobody."""
        assert self._listener is not None
        async with server:
            with anyio.move_on_after(HEARD_OUT):
                try:
                    async for data in server:
                        self._listener(data, True)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    pass


@asynccontextmanager
async def tcp_proxy(target_port: int, listener: Listener | None = None) -> AsyncIterator[TcpProxy]:
    """A proxy for a port of this machine, on a free port of its own.

    With a `listener`, a connection whose client left is read on for HEARD_OUT, to learn what was answered.
    """
    async with anyio.create_task_group() as tasks:
        proxy = TcpProxy(target_port, tasks, listener)
        await proxy.restore()
        try:
            yield proxy
        finally:
            tasks.cancel_scope.cancel()
