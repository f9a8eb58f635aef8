"""Traces and metrics of checks, with OpenTelemetry. Content stays off: no text, reasoning, message of an error or URL.

Only names, numbers, hashes and the types of errors go into attributes. An event is never written, since one for an
exception would quote its message.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Final

from guardrail_vl.errors import MissingDependencyError
from guardrail_vl.observing import Answer, Call, Observer
from guardrail_vl.verdict import Decision

try:
    from opentelemetry import metrics, trace
except ImportError as error:
    raise MissingDependencyError("opentelemetry-api", extra="otel", needed_for="Telemetry") from error

Attributes = dict[str, str | bool | int | float]

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ADDRESS: Final = re.compile(r"\w[\w+.-]*://(?:\S*@)?([^\s/?#]*)\S*")
_LONGEST_NAME: Final = 200


class OpenTelemetry(Observer):
    """Spans and metrics of every check of a guard: `Guard(…, observer=OpenTelemetry())`.

    Spans: `guardrail.check` under the caller's span, `guardrail.generate` in it for each call of an engine; of
    `check_many`, a `guardrail.batch` that holds both. Metrics: `guardrail.check.duration` in seconds and
    `guardrail.decisions`. A copy that was pickled uses the global providers of the process that it is in.

    Args:
        tracer_provider: None: the global one.
        meter_provider: None: the global one.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer("guardrail_vl", tracer_provider=tracer_provider)
        meter = metrics.get_meter("guardrail_vl", meter_provider=meter_provider)
        self._duration = meter.create_histogram(
            "guardrail.check.duration",
            unit="s",
            description="Duration of checks.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._decisions = meter.create_counter(
            "guardrail.decisions", unit="{decision}", description="Decisions by stage, action and error."
        )

    def __reduce__(self) -> tuple[type[OpenTelemetry], tuple[()]]:
        return type(self), ()

    def __repr__(self) -> str:
        return "OpenTelemetry()"

    @contextlib.contextmanager
    def check(self, *, current: bool) -> Iterator[Callable[[Decision], None]]:
        """See `Observer.check`."""
        started = time.perf_counter()
        told: list[Decision] = []
        labels: Attributes = {}
        with self._span("guardrail.check", current=current) as span:
            try:
                yield told.append
            except BaseException as error:
                labels["error.type"] = type(error).__name__
                raise
            finally:
                for decision in told:
                    labels.update(_outcome(decision))
                    if span.is_recording():
                        span.set_attributes({**labels, **_details(decision)})
                        if decision.failed:
                            span.set_status(trace.StatusCode.ERROR)
                    self._decisions.add(1, labels)
                self._duration.record(time.perf_counter() - started, labels)

    @contextlib.contextmanager
    def batch(self, checks: int) -> Iterator[None]:
        """See `Observer.batch`."""
        with self._span("guardrail.batch", {"guardrail.batch.size": checks}):
            yield

    @contextlib.contextmanager
    def call(self, call: Call) -> Iterator[Callable[[Answer], None]]:
        """See `Observer.call`."""
        asked: Attributes = {
            "gen_ai.request.model": _shown(call.model),
            "guardrail.format": call.format,
            "guardrail.speed": call.speed,
            "guardrail.batch.size": call.prompts,
        }
        with self._span("guardrail.generate", asked) as span:

            def tell(answer: Answer) -> None:
                found: Attributes = {}
                if answer.usage.prompt_tokens or answer.usage.completion_tokens:
                    found["gen_ai.usage.input_tokens"] = answer.usage.prompt_tokens
                    found["gen_ai.usage.output_tokens"] = answer.usage.completion_tokens
                if answer.error is not None:
                    found["guardrail.failed"] = answer.failed
                    found["error.type"] = type(answer.error).__name__
                    span.set_status(trace.StatusCode.ERROR)
                span.set_attributes(found)

            yield tell

    @contextlib.contextmanager
    def _span(self, name: str, attributes: Attributes | None = None, *, current: bool = True) -> Iterator[trace.Span]:
        """A span from now on, under the current one. What ends it leaves its type, and nothing of its message."""
        span = self._tracer.start_span(name, attributes=attributes)
        # Both would write the message of an exception.
        inside = trace.use_span(span, record_exception=False, set_status_on_exception=False)
        try:
            with inside if current else contextlib.nullcontext():
                yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR)
            raise
        finally:
            span.end()


def _outcome(decision: Decision) -> Attributes:
    """What metrics tell apart: few values each."""
    labels: Attributes = {"guardrail.stage": decision.stage.value, "guardrail.action": decision.action.value}
    if decision.error is not None:
        labels["error.type"] = type(decision.error).__name__
    return labels


def _details(decision: Decision) -> Attributes:
    found: Attributes = {
        "guardrail.blocked": decision.blocked,
        "guardrail.decision.id": decision.id,
        "guardrail.policy.hash": decision.policy,
        "guardrail.judgements": len(decision.judgements),
        "guardrail.judgements.remembered": sum(judgement.remembered for judgement in decision.judgements),
    }
    verdict = decision.verdict
    if verdict is not None:
        found["guardrail.model"] = _shown(verdict.model)
        found["guardrail.format"] = verdict.format
        found["guardrail.speed"] = verdict.speed
        score = verdict.score_of(decision.stage)
        if score is not None:
            found["guardrail.score"] = score
    return found


def _shown(model: str) -> str:
    """The name of a model; of an address in it only the host: the rest may hold a key."""
    return _ADDRESS.sub(r"\1", model)[:_LONGEST_NAME]
