"""What lies between an executor and a server: latency, loss, cuts. A call's effect is one moment at the server."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.fleet import SimExecutor
    from tests.simulation.world import World

SERVERS = ("queue", "datahub")

Reply = Callable[[Any], None]
Serve = Callable[[Reply], None]

FASTEST, USUAL = 0.003, 0.05  # seconds, one way
SLOW = 12.0  # seconds, the mean of a slow call's one way
TOO_SLOW = 1.0  # seconds there and back: whoever waits so long may not get done in time what it wants to
GIVEN_UP_AFTER = 5.0  # seconds that a progress write waits for its answer
CONNECT_LIMIT = 5.0  # seconds, of both clients
ANSWER_LIMIT = 30.0  # seconds


class ConnectError(Exception):
    """There was no connection."""


class ConnectLateError(Exception):
    """There was no connection in time."""


class ResetError(Exception):
    """The connection ended before the answer came."""


class LateError(Exception):
    """No answer came in time."""


class Network:
    """All links; `cut` lets nothing through for a while. In the calm everything works, and fast."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._cut_until: dict[tuple[int, str], tuple[float, bool]] = {}

    def cut(self, executor: int, server: str, until: float, *, silent: bool) -> None:
        """Let nothing through until then. Where it is `silent`, callers wait for their time-outs."""
        self._cut_until[executor, server] = until, silent

    def restore(self) -> None:
        """Everything gets through again."""
        self._cut_until.clear()

    def is_cut(self, executor: int, server: str) -> bool:
        """Whether nothing gets through now."""
        if not self._cut_until:
            return False
        found = self._cut_until.get((executor, server))
        return found is not None and found[0] > self._world.kernel.now

    async def call(self, executor: "SimExecutor", server: str, serve: Serve) -> Any:
        """Have `serve` called at the server, and wait for its reply.

        Raises ConnectError, ConnectLateError, ResetError, LateError.
        """
        future: asyncio.Future[Any] = executor.loop.create_future()
        call = _Call(self._world, self, executor, server, serve, future)
        self._world.stumble(executor)  # stopped after it decided to call, before the call is out
        if executor.loop.paused:
            executor.on_wake.append(call.send)
        else:
            call.send()
        return await future

    def latency(self) -> float:
        """Seconds that one way takes."""
        world = self._world
        if not world.calm and world.chance.random() < world.plan.slow:
            world.counts["slow calls"] += 1
            return world.chance.expovariate(1 / SLOW)
        return FASTEST + USUAL * world.chance.random()


class _Call:
    """One call on its way."""

    __slots__ = ("executor", "future", "network", "sent_at", "serve", "server", "travelled", "world")

    def __init__(
        self,
        world: "World",
        network: Network,
        executor: "SimExecutor",
        server: str,
        serve: Serve,
        future: "asyncio.Future[Any]",
    ) -> None:
        self.world = world
        self.network = network
        self.executor = executor
        self.server = server
        self.serve = serve
        self.future = future
        self.sent_at = 0.0
        self.travelled = 0.0  # seconds on the way: the server may take its time besides, as for a long poll

    def send(self) -> None:
        kernel = self.world.kernel
        self.sent_at = kernel.now
        if self.network.is_cut(self.executor.index, self.server):
            self._unconnected()
        else:
            latency = self._travel()
            if latency > ANSWER_LIMIT:  # it has its effect all the same
                kernel.after(ANSWER_LIMIT, self._deliver, LateError())
            kernel.after(latency, self._arrive)

    def _unconnected(self) -> None:
        _, silent = self.network._cut_until[self.executor.index, self.server]
        if silent:
            self._answer_at(self.sent_at + CONNECT_LIMIT, ConnectLateError())
        else:
            self._answer_at(self.sent_at + 0.01, ConnectError())

    def _arrive(self) -> None:
        if self.network.is_cut(self.executor.index, self.server):
            self._lost(effect=False)
        else:
            self.serve(self._reply)

    def _reply(self, answer: Any) -> None:
        world = self.world
        cut = self.network.is_cut(self.executor.index, self.server)
        if cut or (not world.calm and world.chance.random() < world.plan.loss):
            self._lost(effect=True)
        else:
            self._answer_at(world.now + self._travel(), answer)

    def _travel(self) -> float:
        """Seconds that the way takes, there or back."""
        latency = self.network.latency()
        self.travelled += latency
        if self.travelled > TOO_SLOW:
            self._hampered(self.world.now + min(latency, GIVEN_UP_AFTER))
        return latency

    def _lost(self, *, effect: bool) -> None:
        self.world.counts["answers lost after the effect" if effect else "calls lost"] += 1
        self._hampered(self.world.now + GIVEN_UP_AFTER)
        if self.world.chance.random() < 0.5:
            self._answer_at(self.world.now + 0.01, ResetError())
        else:
            self._answer_at(self.sent_at + ANSWER_LIMIT + 1, None)

    def _answer_at(self, when: float, answer: Any) -> None:
        limit = self.sent_at + ANSWER_LIMIT
        if when > limit:
            when, answer = limit, LateError()
        if isinstance(answer, Exception):
            self._hampered(min(when, self.world.now + GIVEN_UP_AFTER))
        self.world.kernel.at(when, self._deliver, answer)

    def _hampered(self, until: float) -> None:
        """Until then its executor may not have told the server what it wanted to."""
        self.executor.hampered_at[self.server] = max(self.executor.hampered_at[self.server], until)

    def _deliver(self, answer: Any) -> None:
        if isinstance(answer, Exception) or self.travelled > TOO_SLOW:
            self._hampered(self.world.now)
        self.executor.post_to(self.future, answer)
