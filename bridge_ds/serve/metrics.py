"""What Prometheus is told: requests, what waits and runs, tokens, batches, seconds."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]


class Metrics:
    """A registry of its own, so that several servers can live in one process."""

    def __init__(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """Args:
        waiting: rows in the queue, asked when the page is.
        running: rows that are being written.
        """
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bridge_requests", "Requests, by path and HTTP status.", ["path", "status"], registry=self.registry
        )
        self.tokens = Counter(
            "bridge_tokens", "LLM places of prompts, tokens of answers.", ["kind"], registry=self.registry
        )
        self.truncated = Counter(
            "bridge_truncated_texts", "Texts that were too long to be read whole.", registry=self.registry
        )
        self.seconds = Histogram(
            "bridge_request_seconds", "From the first byte to the end of the answer.", registry=self.registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
        )  # fmt: skip
        self.batch = Histogram(
            "bridge_batch_rows", "Rows of a batch.", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        for name, what, read in (
            ("bridge_waiting_rows", "Rows in the queue.", waiting),
            ("bridge_running_rows", "Rows that are being written.", running),
        ):
            Gauge(name, what, registry=self.registry).set_function(read)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
