"""What Prometheus reads. Labels hold names of apps, endpoints and actions; never content."""

from __future__ import annotations

import functools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from guardrail_vl.turn import Turn
from guardrail_vl.verdict import Decision

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "guardrail_requests", "Requests, by endpoint, app and status.", ("endpoint", "app", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "guardrail_request_seconds", "Seconds until a reply begins.", ("endpoint",), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("guardrail_in_flight", "Requests under way.", registry=self.registry)
        self.decisions = Counter(
            "guardrail_decisions", "Decisions, by stage and action.", ("stage", "action"), registry=self.registry
        )
        self.failures = Counter(
            "guardrail_failures", "Checks without a verdict, by kind of error.", ("error",), registry=self.registry
        )
        self.engine_seconds = Histogram(
            "guardrail_engine_seconds", "Seconds that the engine took for a verdict that was not remembered.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.ready = Gauge("guardrail_ready", "1 while the guard can be trusted, else 0.", registry=self.registry)
        # Looked up once: a look-up costs more than the counting.
        self._requests_of = functools.cache(self.requests.labels)
        self._seconds_of = functools.cache(self.seconds.labels)
        self._decisions_of = functools.cache(self.decisions.labels)

    def replied(self, endpoint: str, app: str, status: int, seconds: float) -> None:
        """Count a reply that begins.

        Args:
            endpoint: The route's own path.
            app: Name of the key that asked; empty: none.
            status: HTTP status.
            seconds: Since the request came.
        """
        self._requests_of(endpoint, app, status).inc()
        self._seconds_of(endpoint).observe(seconds)

    def count(self, turn: Turn | None, decision: Decision) -> None:
        """A hook: count a decision."""
        self._decisions_of(decision.stage.value, decision.action.value).inc()
        if decision.error is not None:
            self.failures.labels(type(decision.error).__name__).inc()
        elif decision.verdict is not None and not all(j.remembered for j in decision.judgements):
            self.engine_seconds.observe(decision.verdict.latency)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
