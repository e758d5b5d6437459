"""Health and metrics over real HTTP, and the heartbeat files."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.abc import TaskStatus
from prometheus_client.parser import text_string_to_metric_families

from executor.operations.health import LIVENESS_FILE, READINESS_FILE, STALE_AFTER, Health, serve_http
from executor.operations.metrics import Metrics
from executor.operations.reachability import Reachability
from tests.servers.process import free_port

DEADLINE = 30.0  # seconds; only a failing test takes them


@dataclass
class Server:
    """A service's health, as seen from outside."""

    port: int = field(default_factory=free_port)
    queue: Reachability = field(default_factory=lambda: Reachability("queue"))
    datahub: Reachability = field(default_factory=lambda: Reachability("datahub"))
    metrics: Metrics = field(default_factory=lambda: Metrics("remote"))
    health: Health = field(init=False)

    def __post_init__(self) -> None:
        self.health = Health([self.queue, self.datahub])

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        await serve_http(self.port, self.health, self.metrics, task_status)

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as client:
            return await client.get(path)

    async def answer(self, path: str) -> tuple[int, str]:
        response = await self.get(path)
        return response.status_code, response.text

    async def samples(self) -> dict[str, float]:
        """The value of each series, by its name and the values of its labels."""
        text = (await self.get("/metrics")).text
        return {
            " ".join([sample.name, *(sample.labels[label] for label in sorted(sample.labels))]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[None]:
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            await tasks.start(server.serve)
            yield
            tasks.cancel_scope.cancel()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with serving(server):
        yield server


async def test_ready_is_who_reached_queue_and_datahub(server: Server) -> None:
    assert await server.answer("/health/ready") == (503, "queue not reached\ndatahub not reached\n")
    server.queue.answered()
    assert await server.answer("/health/ready") == (503, "datahub not reached\n")
    server.datahub.answered()
    assert await server.answer("/health/ready") == (200, "ok\n")
    server.queue.failed("connection refused")
    assert await server.answer("/health/ready") == (503, "queue not reached\n")
    server.queue.answered()
    assert await server.answer("/health/ready") == (200, "ok\n")


async def test_who_is_stopping_is_live_but_not_ready(server: Server) -> None:
    server.queue.answered()
    server.datahub.answered()
    server.health.stop()
    assert await server.answer("/health/ready") == (503, "stopping\n")
    assert await server.answer("/health/live") == (200, "ok\n")


async def test_live_is_whose_loops_all_move(server: Server) -> None:
    assert await server.answer("/health/live") == (200, "ok\n")
    server.health.beat("leases")
    server.health.beat("signals")
    assert await server.answer("/health/live") == (200, "ok\n")
    server.health._beats["signals"] -= STALE_AFTER + 1
    assert await server.answer("/health/live") == (503, "signals\n")
    server.health.beat("signals")
    assert await server.answer("/health/live") == (200, "ok\n")


async def test_a_loop_that_is_told_to_pause_for_long_is_live_meanwhile(server: Server) -> None:
    server.health.beat("signals", 120.0)
    server.health._beats["signals"] -= 120.0 + STALE_AFTER - 1
    assert await server.answer("/health/live") == (200, "ok\n")
    server.health._beats["signals"] -= 2
    assert await server.answer("/health/live") == (503, "signals\n")


async def test_an_absent_server_does_not_make_the_service_less_live(server: Server) -> None:
    server.datahub.failed("no such host")
    assert await server.answer("/health/live") == (200, "ok\n")


@pytest.mark.parametrize("path", ["/metrics", "/telemetry"])
async def test_metrics_are_where_scrapers_look(server: Server, path: str) -> None:
    response = await server.get(path)
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert "# TYPE datahub_executor_worker_ingestion_requests_total counter" in response.text


async def test_another_path_is_not_found(server: Server) -> None:
    assert (await server.get("/")).status_code == 404


async def test_what_happened_is_counted_under_the_names_that_dashboards_know(server: Server) -> None:
    metrics = server.metrics
    active = 3
    metrics.follow_pool(4, lambda: active, lambda: 7)
    metrics.requests.inc()
    metrics.errors.inc()
    metrics.leases_lost.inc()
    metrics.malformed.inc()
    metrics.foreign.inc()
    metrics.lease_extensions.inc()
    metrics.queue_failures.inc()
    metrics.run_seconds.labels("postgres", "SUCCESS").observe(42)
    metrics.queue_latency.observe(0.2)
    metrics.settle_seconds.observe(0.02)
    metrics.datahub_call("patchEntity", None)
    metrics.datahub_call("patchEntity", "timeout")
    expected = {
        "datahub_executor_worker_ingestion_requests_total remote": 1,
        "datahub_executor_worker_ingestion_errors_total remote": 1,
        "datahub_executor_worker_ingestion_visibility_timeout_total": 1,
        "datahub_executor_worker_active_threads": 3,
        "datahub_executor_slots": 4,
        "datahub_executor_slots_active": 3,
        "datahub_executor_slots_waiting": 7,
        "datahub_executor_malformed_messages_total": 1,
        "datahub_executor_foreign_messages_total": 1,
        "datahub_executor_lease_extensions_total": 1,
        "datahub_executor_queue_failures_total": 1,
        "datahub_executor_run_duration_seconds_count postgres SUCCESS": 1,
        "datahub_executor_run_duration_seconds_sum postgres SUCCESS": 42,
        "datahub_executor_queue_latency_seconds_count": 1,
        "datahub_executor_settle_duration_seconds_count": 1,
        "datahub_executor_graphql_calls_total patchEntity": 2,
        "datahub_executor_graphql_failures_total timeout patchEntity": 1,
    }
    samples = await server.samples()
    assert {name: samples.get(name) for name in expected} == expected
    assert samples["process_resident_memory_bytes"] > 0
    active = 1
    assert (await server.samples())["datahub_executor_slots_active"] == 1


async def test_a_port_in_use_is_an_error_of_the_start() -> None:
    server = Server()
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        with pytest.raises(BaseExceptionGroup) as caught:
            async with serving(server):
                pytest.fail("it said that it listens")
    assert caught.group_contains(OSError, match="address already in use")


async def test_the_port_is_free_again_afterwards() -> None:
    server = Server()
    for _ in range(2):
        async with serving(server):
            assert (await server.get("/health/live")).status_code == 200
    with pytest.raises(httpx.ConnectError):
        await server.get("/health/live")


# Heartbeat files


@asynccontextmanager
async def touching(health: Health, folder: Path) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(health.touch_files, folder)
        await anyio.wait_all_tasks_blocked()
        yield
        tasks.cancel_scope.cancel()


async def files_of(health: Health, folder: Path) -> set[str]:
    """The files that one turn leaves."""
    async with touching(health, folder):
        return {path.name for path in folder.iterdir()}


def test_the_files_have_the_names_that_health_checks_know() -> None:
    assert (LIVENESS_FILE, READINESS_FILE) == ("worker_liveness_heartbeat", "worker_readiness_heartbeat")


async def test_both_files_are_kept_while_live_and_ready(tmp_path: Path) -> None:
    server = Reachability("queue")
    server.answered()
    assert await files_of(Health([server]), tmp_path) == {LIVENESS_FILE, READINESS_FILE}


async def test_who_is_not_ready_keeps_the_first_file_only(tmp_path: Path) -> None:
    assert await files_of(Health([Reachability("queue")]), tmp_path) == {LIVENESS_FILE}


async def test_who_is_not_live_lets_the_file_grow_old(tmp_path: Path) -> None:
    health = Health([])
    health.beat("leases")
    health._beats["leases"] -= STALE_AFTER + 1
    assert await files_of(health, tmp_path) == {READINESS_FILE}


async def test_a_folder_that_can_not_be_written_ends_nothing(tmp_path: Path) -> None:
    async with touching(Health([]), tmp_path / "missing"):
        assert list(tmp_path.iterdir()) == []
