"""Telemetry with the real SDK: the right spans under the right parents, real times, and never a word of content."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl import Guard, Policy
from guardrail_vl._drivers import Drivers
from guardrail_vl._observed import ObservedDrivers
from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.errors import ConfigurationError, EngineUnavailableError, GuardrailError
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Decision, Usage

pytest.importorskip("opentelemetry.sdk")
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from guardrail_vl.telemetry import OpenTelemetry, _shown


class Told:
    """What an exporter and a reader got."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = tracers.get_tracer("app")
        self.observer = OpenTelemetry(
            tracer_provider=tracers, meter_provider=MeterProvider(metric_readers=[self._reader])
        )

    def spans(self, name: str = "") -> list[ReadableSpan]:
        found = [span for span in self._exporter.get_finished_spans() if span.name == name or not name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def clear(self) -> None:
        self._exporter.clear()

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        if data is None:
            return []
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def everything(self) -> str:
        """All that left, as text."""
        data = self._reader.get_metrics_data()
        return json.dumps([span.to_json() for span in self.spans()]) + (data.to_json() if data else "")


@pytest.fixture
def told() -> Told:
    return Told()


def counted(prompt: Prompt) -> Completion:
    answer = by_keyword("crowbar")(prompt)
    assert isinstance(answer, Completion)
    return dataclasses.replace(answer, usage=Usage(11, 7))


def guard_of(told: Told, script: Callable[[Prompt], Any] = counted, **settings: Any) -> Guard:
    return Guard(engine=ScriptedEngine(script, delay=settings.pop("delay", 0.0)), observer=told.observer, **settings)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else int(span.parent.span_id)


def own_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def seconds(span: ReadableSpan) -> float:
    assert span.end_time is not None
    assert span.start_time is not None
    return (span.end_time - span.start_time) / 1e9


def check(guard: Guard, text: str, asynchronous: bool) -> Decision:
    return asyncio.run(guard.acheck_prompt(text)) if asynchronous else guard.check_prompt(text)


# ---- one check ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_check_and_its_call(told: Told, asynchronous: bool) -> None:
    guard = guard_of(told, delay=0.05, speed="reason")
    with told.tracer.start_as_current_span("app"):
        decision = check(guard, "Sell me a crowbar", asynchronous)
    generate, checked, app = (told.spans(name)[0] for name in ("guardrail.generate", "guardrail.check", "app"))
    assert len(told.spans()) == 3
    assert (parent(generate), parent(checked)) == (own_id(checked), own_id(app))
    assert attributes(checked) == {
        "guardrail.stage": "prompt",
        "guardrail.action": "block",
        "guardrail.blocked": True,
        "guardrail.decision.id": decision.id,
        "guardrail.policy.hash": guard.policy.hash,
        "guardrail.judgements": 1,
        "guardrail.judgements.remembered": 0,
        "guardrail.model": "scripted",
        "guardrail.format": "guardreasoner-vl/1",
        "guardrail.speed": "reason",
    }
    assert attributes(generate) == {
        "gen_ai.request.model": "scripted",
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 7,
        "guardrail.format": "guardreasoner-vl/1",
        "guardrail.speed": "reason",
        "guardrail.batch.size": 1,
    }
    assert 0.05 <= seconds(generate) <= seconds(checked) <= seconds(app)
    assert checked.status.status_code is trace.StatusCode.UNSET  # a block is no failure


def test_a_score_is_told(told: Told) -> None:
    decision = guard_of(told, speed="fast").check_prompt("Sell me a crowbar")
    assert decision.verdict is not None
    assert attributes(told.spans("guardrail.check")[0])["guardrail.score"] == decision.verdict.prompt_score


def test_what_was_remembered_asks_nothing(told: Told) -> None:
    guard = guard_of(told)
    guard.check_prompt("Hello")
    told.clear()
    guard.check_prompt("Hello")
    (span,) = told.spans()
    assert attributes(span)["guardrail.judgements.remembered"] == attributes(span)["guardrail.judgements"] == 1


def test_a_cascade_has_a_call_for_each_rung(told: Told) -> None:
    guard = guard_of(told, speed="auto", band=(0.0, 1.0))
    guard.check_prompt("Hello")
    (checked,) = told.spans("guardrail.check")
    calls = told.spans("guardrail.generate")
    assert [attributes(call)["guardrail.speed"] for call in calls] == ["fast", "reason"]
    assert {parent(call) for call in calls} == {own_id(checked)}


def test_a_check_that_is_watched(told: Told) -> None:
    async def main() -> list[Any]:
        with told.tracer.start_as_current_span("app"):
            return [piece async for piece in guard_of(told, speed="reason").awatch("Hello")]

    assert isinstance(asyncio.run(main())[-1], Decision)
    generate, checked, app = (told.spans(name)[0] for name in ("guardrail.generate", "guardrail.check", "app"))
    assert (parent(generate), parent(checked)) == (own_id(checked), own_id(app))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_engine_and_the_hooks_see_the_span_they_are_in(told: Told, asynchronous: bool) -> None:
    seen: list[int] = []

    def current() -> None:
        seen.append(trace.get_current_span().get_span_context().span_id)

    class Engine(ScriptedEngine):
        def _answer(self, prompts: Sequence[Prompt], deadline: Deadline) -> list[Outcome]:
            current()
            return super()._answer(prompts, deadline)

    guard = Guard(engine=Engine(by_keyword()), observer=told.observer, pre_prompt=lambda turn, decision: current())
    check(guard, "Hello", asynchronous)
    assert seen == [own_id(told.spans(name)[0]) for name in ("guardrail.generate", "guardrail.check")]
    assert not trace.get_current_span().get_span_context().is_valid


# ---- many ---------------------------------------------------------------------------------------------------------


def test_checks_in_step_have_a_batch(told: Told) -> None:
    guard = guard_of(told)
    with told.tracer.start_as_current_span("app"):
        decisions = []
        for decision in guard.check_many(["Hello", "Sell me a crowbar", "Hello again"], batch=2):
            decisions.append(decision)
            assert trace.get_current_span().name == "app"  # type: ignore[attr-defined]  # ours is not left behind
    (app,) = told.spans("app")
    batches = told.spans("guardrail.batch")
    assert [(parent(b), attributes(b)) for b in batches] == [
        (own_id(app), {"guardrail.batch.size": 2}),
        (own_id(app), {"guardrail.batch.size": 1}),
    ]
    calls, checks = told.spans("guardrail.generate"), told.spans("guardrail.check")
    assert [(parent(call), attributes(call)["guardrail.batch.size"]) for call in calls] == [
        (own_id(batches[0]), 2),
        (own_id(batches[1]), 1),
    ]
    assert [parent(span) for span in checks] == [own_id(batches[0])] * 2 + [own_id(batches[1])]
    assert [attributes(span)["guardrail.decision.id"] for span in checks] == [decision.id for decision in decisions]
    assert attributes(calls[0])["gen_ai.usage.input_tokens"] == 22


def test_asynchronous_checks_beside_each_other_keep_their_own_calls(told: Told) -> None:
    guard = guard_of(told, delay=0.01)

    async def main() -> list[Decision]:
        with told.tracer.start_as_current_span("app"):
            return [decision async for decision in guard.acheck_many([f"Hello {i}" for i in range(5)], batch=3)]

    assert len(asyncio.run(main())) == 5
    (app,) = told.spans("app")
    checks, calls = told.spans("guardrail.check"), told.spans("guardrail.generate")
    assert {parent(span) for span in checks} == {own_id(app)}
    assert sorted(own_id(span) for span in checks) == sorted(parent(call) or 0 for call in calls)


def test_threads_keep_their_own_calls(told: Told) -> None:
    guard = guard_of(told, delay=0.01)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(guard.check_prompt, [f"Hello {i}" for i in range(12)]))
    checks, calls = told.spans("guardrail.check"), told.spans("guardrail.generate")
    assert {parent(span) for span in checks} == {None}
    assert sorted(own_id(span) for span in checks) == sorted(parent(call) or 0 for call in calls)


# ---- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("raised", [False, True])
def test_a_failure_is_told_by_its_type(told: Told, asynchronous: bool, raised: bool) -> None:
    def script(prompt: Prompt) -> GuardrailError:
        error = EngineUnavailableError("Down: Sell me a crowbar")
        if raised:
            raise error
        return error

    assert check(guard_of(told, script), "Sell me a crowbar", asynchronous).failed
    for name in ("guardrail.check", "guardrail.generate"):
        (span,) = told.spans(name)
        assert attributes(span)["error.type"] == "EngineUnavailableError"
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.status.description is None
        assert span.events == ()
    (point,) = told.points("guardrail.decisions")
    assert dict(point.attributes)["error.type"] == "EngineUnavailableError"
    assert "crowbar" not in told.everything()


def test_content_that_is_refused_has_a_check_and_no_call(told: Told) -> None:
    assert guard_of(told).check_prompt("").failed
    (span,) = told.spans()
    assert attributes(span)["error.type"] == "ContentError"


def test_what_a_hook_raises_goes_through_and_is_counted(told: Told) -> None:
    def hook(turn: object, decision: Decision) -> None:
        raise RuntimeError("Sell me a crowbar")

    guard = guard_of(told, pre_prompt=hook)
    with pytest.raises(RuntimeError):
        guard.check_prompt("Hello")
    with pytest.raises(RuntimeError):
        list(guard.check_many(["Hello", "Hello again"]))
    checks = told.spans("guardrail.check")
    # Of checks in step, the error ends them all, and is that of their batch.
    assert [attributes(span)["error.type"] for span in checks] == ["RuntimeError", "GeneratorExit", "GeneratorExit"]
    assert attributes(told.spans("guardrail.batch")[0])["error.type"] == "RuntimeError"
    assert told.points("guardrail.decisions") == []
    assert sum(point.count for point in told.points("guardrail.check.duration")) == 3
    assert "crowbar" not in told.everything()


def test_a_cancelled_check_is_over(told: Told) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(guard_of(told, delay=30).acheck_prompt("Hello"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [attributes(span)["error.type"] for span in told.spans()] == ["CancelledError"] * 2


# ---- metrics ------------------------------------------------------------------------------------------------------


def test_decisions_are_counted_and_checks_timed(told: Told) -> None:
    guard = guard_of(told, delay=0.02)
    for text in ("Hello", "Hello", "Sell me a crowbar"):
        guard.check_prompt(text)
    guard.check_response("Take the crowbar", prompt="How?")
    counts = {
        (point.attributes["guardrail.stage"], point.attributes["guardrail.action"]): point.value
        for point in told.points("guardrail.decisions")
    }
    assert counts == {("prompt", "allow"): 2, ("prompt", "block"): 1, ("response", "block"): 1}
    durations = told.points("guardrail.check.duration")
    assert sum(point.count for point in durations) == 4
    assert max(point.max for point in durations) >= 0.02
    assert all(point.explicit_bounds[0] < 0.01 for point in durations)
    names = {name for point in durations for name in point.attributes}
    assert names == {"guardrail.stage", "guardrail.action"}  # few series, however many turns


# ---- no content ---------------------------------------------------------------------------------------------------

words = st.text(st.characters(categories=["L"]), min_size=6, max_size=30)


@given(text=words, kind=st.sampled_from(["crowbar", "label", "nonsense", "error", "raise"]), many=st.booleans())
def test_no_word_of_the_turn_leaves(text: str, kind: str, many: bool) -> None:
    told = Told()
    marked = f"§{text}§"

    def script(prompt: Prompt) -> Any:
        if kind == "nonsense":
            return f"I don't like {marked}"
        if kind == "error":
            return EngineUnavailableError(f"400: {marked}")
        if kind == "raise":
            raise ValueError(marked)
        answer = counted(prompt)
        return dataclasses.replace(answer, text=answer.text.replace("<think>", f"<think>{marked}"))

    guard = guard_of(told, script, policy=Policy(name="ours"))
    content = f"{marked} crowbar" if kind == "crowbar" else marked
    if many:
        list(guard.check_many([content, [{"role": "user", "content": content}]]))
    else:
        guard.check_response(content, prompt=content)
    left = told.everything()
    assert "guardrail.check" in left
    assert "§" not in left
    assert json.dumps("§")[1:-1] not in left.replace("\\\\", "\\")
    if len(text) > 12:  # shorter ones may be words of ours by chance
        assert text not in left


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("yueliu1999/GuardReasoner-VL-Eco-3B", "yueliu1999/GuardReasoner-VL-Eco-3B"),
        ("the only model of http://guard:8000/v1", "the only model of guard:8000"),
        ("https://user:pass@host/v1/key-123?key=abc#x is it", "host is it"),
        ("https://user:p@ss@host", "host"),
        ("x" * 300, "x" * 200),
        ("", ""),
    ],
)
def test_a_model_that_is_an_address_is_shown_by_its_host(model: str, shown: str) -> None:
    assert _shown(model) == shown


# ---- what it costs, and what stays as it is -----------------------------------------------------------------------


def test_importing_the_guard_does_not_import_it() -> None:
    code = "import sys, guardrail_vl.guard, guardrail_vl.observing; print([m for m in sys.modules if 'opentel' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_guard_that_nobody_observes_has_the_plain_drivers() -> None:
    guard = Guard(engine=ScriptedEngine(by_keyword()))
    assert type(guard._drivers) is Drivers


def test_every_driver_that_performs_something_is_observed_with_the_same_arguments() -> None:
    for name in ("run", "arun", "_run_batch", "_generate", "_agenerate"):
        assert inspect.signature(getattr(Drivers, name)) == inspect.signature(getattr(ObservedDrivers, name))


def test_replacing_and_pickling_keep_it(told: Told) -> None:
    guard = Guard(engine=ScriptedEngine(counted), observer=told.observer)
    guard.replace(fail="open").check_prompt("Hello")
    assert len(told.spans("guardrail.check")) == 1
    copy = pickle.loads(pickle.dumps(guard))
    assert isinstance(copy._settings["observer"], OpenTelemetry)  # of the global providers, which say nothing here
    assert not copy.check_prompt("Hello").blocked
    assert len(told.spans("guardrail.check")) == 1
    guard.replace(observer=None).check_prompt("Hello")
    assert len(told.spans("guardrail.check")) == 1


def test_without_an_sdk_it_costs_little() -> None:
    guard = Guard(engine=ScriptedEngine(by_keyword()), observer=OpenTelemetry())
    guard.check_prompt("Hello")
    best = min(_timed(guard) for _ in range(5))
    assert best < 0.01


def _timed(guard: Guard) -> float:
    started = time.perf_counter()
    guard.check_prompt("Hello")
    return time.perf_counter() - started


def test_an_observer_must_be_one() -> None:
    with pytest.raises(ConfigurationError, match="observer must be an Observer, not object"):
        Guard(engine=ScriptedEngine(by_keyword()), observer=object())  # type: ignore[arg-type]


def test_without_the_package_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; import guardrail_vl.telemetry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in done.stderr
    assert "pip install 'guardrail-vl[otel]'" in done.stderr
