"""What is counted, for Prometheus. Names that the peer documents are kept: dashboards go on working."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    disable_created_metrics,
)
from prometheus_client.process_collector import ProcessCollector

_DURATIONS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)  # seconds
_LATENCIES = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)  # seconds


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads


class Metrics:
    """All metrics on one registry. `executor_id` labels the peer's two counters, as it does there."""

    def __init__(self, executor_id: str) -> None:
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._requests = Counter(
            "datahub_executor_worker_ingestion_requests",
            "Requests received",
            ["executor_id"],
            registry=registry,
        )
        self._errors = Counter(
            "datahub_executor_worker_ingestion_errors",
            "Runs that ended as FAILURE",
            ["executor_id"],
            registry=registry,
        )
        self.requests = self._requests.labels(executor_id)
        self.errors = self._errors.labels(executor_id)
        self.leases_lost = Counter(
            "datahub_executor_worker_ingestion_visibility_timeout",
            "Runs stopped because the hold on their message ended",
            registry=registry,
        )
        self.malformed = Counter(
            "datahub_executor_malformed_messages",
            "Messages that are no request, signal or event, left to the queue's redrive policy",
            registry=registry,
        )
        self.foreign = Counter(
            "datahub_executor_foreign_messages",
            "Messages for another executor id, given back",
            registry=registry,
        )
        self.lease_extensions = Counter(
            "datahub_executor_lease_extensions", "Times a message's visibility was renewed", registry=registry
        )
        self.run_seconds = Histogram(
            "datahub_executor_run_duration_seconds",
            "From the claim to the end of the run",
            ["source_type", "status"],
            buckets=_DURATIONS,
            registry=registry,
        )
        self.queue_latency = Histogram(
            "datahub_executor_queue_latency_seconds",
            "From a message's sending to its receipt, first receipts only",
            buckets=_LATENCIES,
            registry=registry,
        )
        self.settle_seconds = Histogram(
            "datahub_executor_settle_duration_seconds",
            "From a run's end to its final status stored and its message deleted",
            buckets=_LATENCIES,
            registry=registry,
        )
        self._datahub_calls = Counter(
            "datahub_executor_graphql_calls",
            "Calls to DataHub, GraphQL and OpenAPI",
            ["operation"],
            registry=registry,
        )
        self._datahub_failures = Counter(
            "datahub_executor_graphql_failures",
            "Calls to DataHub that got no usable answer or an error",
            ["operation", "kind"],
            registry=registry,
        )
        self.queue_failures = Counter(
            "datahub_executor_queue_failures", "Receives that failed", registry=registry
        )

    def follow_pool(self, slots: int, active: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Export the pool's figures, read when they are scraped."""
        self._gauge("datahub_executor_slots", "Runs at a time, at the default weight").set(slots)
        # The peer's name for the same figure; there a run is a thread.
        self._gauge("datahub_executor_worker_active_threads", "Runs that hold a slot").set_function(active)
        self._gauge("datahub_executor_slots_active", "Runs that hold a slot").set_function(active)
        self._gauge("datahub_executor_slots_waiting", "Runs that wait for a slot").set_function(waiting)

    def follow_protection(self, held: Callable[[], float]) -> None:
        """Export whether ECS keeps this task, read when it is scraped."""
        words = "1 while ECS's scale-in protection is held, else 0; on ECS only"
        self._gauge("datahub_executor_task_protected", words).set_function(held)

    def follow_warm_parents(self, count: Callable[[], float], memory: Callable[[], float]) -> None:
        """Export how many processes wait to fork runs, and the bytes (PSS) that they take."""
        self._gauge("datahub_executor_warm_parents", "Processes that wait to fork runs").set_function(count)
        self._gauge(
            "datahub_executor_warm_memory_bytes", "What they take (PSS), before runs share any of it"
        ).set_function(memory)

    def datahub_call(self, operation: str, failure: str | None) -> None:
        """Count a call to DataHub; `failure` is its kind, None where it was answered."""
        self._datahub_calls.labels(operation).inc()
        if failure is not None:
            self._datahub_failures.labels(operation, failure).inc()

    def _gauge(self, name: str, words: str) -> Gauge:
        return Gauge(name, words, registry=self.registry)
