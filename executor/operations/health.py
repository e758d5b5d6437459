"""Live and ready, over HTTP and as the heartbeat files that existing task definitions look at."""

from collections.abc import Sequence
from pathlib import Path

import anyio
from aiohttp import web
from anyio.abc import TaskStatus
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from executor.operations.metrics import Metrics
from executor.operations.reachability import Reachability

HEARTBEAT_FOLDER = Path("/tmp")  # noqa: S108 - health checks know these files by their full names
LIVENESS_FILE = "worker_liveness_heartbeat"
READINESS_FILE = "worker_readiness_heartbeat"
STALE_AFTER = 60.0  # seconds that a turn of one of the heartbeat's loops may take, beyond its pause
FILE_INTERVAL = 5.0  # seconds; the usual check wants the file younger than a minute


class Health:
    """Ready: queue and DataHub were reached, and not lost since. Live: event loop and heartbeat move."""

    def __init__(self, dependencies: Sequence[Reachability]) -> None:
        self._dependencies = dependencies
        self._beats: dict[str, float] = {}
        self._stopping = False

    def beat(self, loop: str, pause: float = 0) -> None:
        """A loop of the heartbeat takes a turn, after which it pauses for so many seconds."""
        self._beats[loop] = anyio.current_time() + pause

    def stop(self) -> None:
        """Not ready from now on: the service takes nothing more."""
        self._stopping = True

    def stale(self) -> list[str]:
        """The loops that have not taken a turn for too long; empty means live."""
        now = anyio.current_time()
        return [loop for loop, due in self._beats.items() if now - due > STALE_AFTER]

    def missing(self) -> list[str]:
        """What keeps the service from being ready; empty means ready."""
        missing = [f"{server.name} not reached" for server in self._dependencies if not server.reached]
        return [*missing, "stopping"] if self._stopping else missing

    async def touch_files(self, *folders: Path) -> None:
        """Keep the heartbeat files in these folders young while live and ready, until cancelled."""
        while True:
            for folder in folders:
                if not self.stale():
                    _touch(folder / LIVENESS_FILE)
                if not self.missing():
                    _touch(folder / READINESS_FILE)
            await anyio.sleep(FILE_INTERVAL)


async def serve_http(port: int, health: Health, metrics: Metrics, listening: TaskStatus[None]) -> None:
    """Serve `/health/live`, `/health/ready` and `/metrics` until cancelled; `listening` is told of the start.

    Raises:
        OSError: the port is taken.
    """

    async def live(_: web.Request) -> web.Response:
        return _answer(health.stale())

    async def ready(_: web.Request) -> web.Response:
        return _answer(health.missing())

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.router.add_get("/health/live", live)
    app.router.add_get("/health/ready", ready)
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/telemetry", exposition)  # where scrape configurations of the peer look
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        listening.started()
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()


def _touch(file: Path) -> None:
    try:
        file.touch()
    except OSError:
        return  # a read-only folder, as /tmp may be: then there is the file in the work folder, and the HTTP check


def _answer(faults: list[str]) -> web.Response:
    return web.Response(text="\n".join(faults or ["ok"]) + "\n", status=503 if faults else 200)
