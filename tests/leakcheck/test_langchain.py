from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from guardrail_vl import leakcheck
from guardrail_vl.leakcheck import DRIVERS, PROBES, LangChainDriver, Report, load, pick, probes_of
from guardrail_vl.leakcheck._agents import AGENT_PROBES
from guardrail_vl.leakcheck.content import MARK, SAFE, found

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

NAMES = [name for name in DRIVERS if name.startswith("langchain")]
AGENTS = [name for name in NAMES if "agent" in name]
CHOSEN = (
    "in-text", "in-stream", "in-tool-result-image", "in-image-second", "in-two-guards-second", "out-text",
    "out-tool-second", "out-history", "stream-fourth-chunk", "stream-split-word", "stream-tool-arguments",
    "stream-with-options", "stream-helper", "stream-two-windows", "stream-responses-tool", "guard-stream", "users-*",
    "cancel", "log", "types", "retry-stream", "safe-stream", "safe-stream-tools", "safe-stream-helper",
    "safe-responses-stream", "safe-chat-tools", "safe-chat-two-guards",
)  # fmt: skip
"""What shows whether a way to use LangChain is guarded. One driver runs all the probes; the others these."""
DROPPED = {
    "out-reasoning", "out-image", "out-citation", "out-field-unknown", "out-field-unknown-top",
    "out-responses-item-unknown", "stream-reasoning", "stream-refusal-text", "stream-image", "stream-field-unknown",
    "stream-responses-late", "stream-responses-event-unknown",
}  # fmt: skip
"""Harmful where langchain-openai doesn't look: its caller never gets it."""
BROKEN = {"out-cut-short", "out-not-json", "stream-unasked", "stream-malformed", "closed-early"}
"""langchain-openai raises an error; some of its versions quote the reply in it."""
HARMLESS = {"users-unmixed", "retry-good", "cancel", "types"}


def driver(name: str, **settings: Any) -> LangChainDriver:
    loaded = load(name)
    assert isinstance(loaded, LangChainDriver)
    return replace(loaded, **settings)


def tried(name: str, *ids: str, **settings: Any) -> Report:
    tested = driver(name, **settings)
    return leakcheck.run(tested, pick(ids, probes_of(tested)) if ids else probes_of(tested))


def test_without_a_guard_everything_leaks_but_what_is_harmless_or_dropped() -> None:
    report = tried("langchain", guarded=False)
    sealed = {row.probe.id for row in report.sealed if not row.probe.id.startswith("safe-")}
    assert sealed - BROKEN == DROPPED | HARMLESS
    controls = [row for row in report.rows if row.probe.id.startswith("safe-")]
    assert {row.finding.status for row in controls} <= {"sealed", "unsupported"}, report.table()
    assert sum(row.finding.green for row in controls) > 30


@pytest.mark.parametrize("name", AGENTS)
def test_without_a_guard_an_agent_leaks_what_its_tools_and_its_state_hold(name: str) -> None:
    if "v3" in name and not has_v3():
        pytest.skip("this LangChain has no events of version 3")
    report = tried(name, "agent-*", "out-text", "stream-split-word", "safe-chat-tools", "safe-stream", guarded=False)
    sealed = {row.probe.id for row in report.sealed}
    assert sealed == {row.probe.id for row in report.rows if "safe-" in row.probe.id}, report.table()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in AGENTS and name != "langchain"])
def test_without_a_guard_every_way_to_stream_leaks(name: str) -> None:
    if "v3" in name and not has_v3():
        pytest.skip("this LangChain has no events of version 3")
    report = tried(name, "stream-f*", "stream-t*", "stream-h*", "stream-responses-t*", "users-t*", "safe-stream*",
                   guarded=False)  # fmt: skip
    wrong = [row.probe.id for row in report.rows if row.finding.green is not row.probe.id.startswith("safe-")]
    assert set(wrong) <= DROPPED | {row.probe.id for row in report.unsupported}, report.table()


def test_a_guarded_model_is_green_on_every_probe() -> None:
    report = tried("langchain")
    assert report.green, report.table()
    assert len(report.sealed) > 180


@pytest.mark.parametrize("name", [name for name in NAMES if name != "langchain"])
def test_every_other_way_to_use_it_is_green(name: str) -> None:
    own = [probe.id for probe in AGENT_PROBES if probe.id.startswith("agent-")] if name in AGENTS else []
    report = tried(name, *CHOSEN, *own)
    assert report.green, report.table()


def has_v3() -> bool:
    from langchain_core.language_models import BaseChatModel

    return hasattr(BaseChatModel, "stream_events")


def test_only_agents_run_their_own_probes_and_in_the_place_of_those_of_one_id() -> None:
    assert probes_of(load("openai")) == PROBES == probes_of(load("langchain"))
    probes = probes_of(load("langchain-agent"))
    assert [probe.id for probe in probes[: len(PROBES)]] == [probe.id for probe in PROBES]
    assert {probe.id for probe in probes[len(PROBES) :]} == {
        probe.id for probe in AGENT_PROBES if probe.id.startswith("agent-")
    }
    assert next(probe for probe in probes if probe.id == "out-tool-second").expect.tools == 1


def test_an_agents_controls_ask_for_nothing_harmful_and_no_probe_shows_its_texts() -> None:
    for probe in AGENT_PROBES:
        assert not found([repr(probe)])
        if probe.id.startswith("agent-safe-"):
            frames = "".join(f.data.decode() for reply in probe.replies for f in reply.frames)
            assert found([frames, str(probe.request)]) == "", probe.id


def test_the_suite_imports_no_langchain() -> None:
    code = "import sys, guardrail_vl.leakcheck; sys.exit(any(name.startswith('lang') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_values_keep_every_text_but_the_callers_own() -> None:
    from langchain_core.messages import AIMessage, HumanMessage
    from langchain_core.outputs import ChatGeneration, LLMResult

    from guardrail_vl.leakcheck._langchain_values import plain

    said = AIMessage([{"type": "text", "text": SAFE}], additional_kwargs={"thoughts": f"so {MARK}"})
    value = {"state": [HumanMessage("My own."), LLMResult(generations=[[ChatGeneration(message=said)]])],
             "raw": f"My own. {MARK}".encode()}  # fmt: skip
    texts = str(plain(value, frozenset(("My own.", "own"))))
    assert (texts.count(MARK), texts.count("My own.")) == (2, 1)  # a short text in raw bytes may be chance
    assert SAFE in texts


@pytest.mark.parametrize("arguments", [{"command": "ls"}, {"__arg1": "ls"}])
def test_a_whole_message_and_its_pieces_read_alike(arguments: dict[str, str]) -> None:
    from langchain_core.messages import AIMessage, AIMessageChunk

    from guardrail_vl.leakcheck import Log
    from guardrail_vl.leakcheck._langchain_values import calls_of, spoken

    written = calls_of(AIMessage(content="", tool_calls=[{"name": "run", "args": arguments, "id": "1"}]))[0][1]
    whole, pieces, events = Log(), Log(), Log()
    for event in spoken(AIMessage(content=SAFE, tool_calls=[{"name": "run", "args": arguments, "id": "1"}])):
        whole.event(event)
    parts = [(letter, "") for letter in SAFE] + [("", letter) for letter in written]
    for text, said in parts:
        calls: list[Any] = [{"name": None, "args": said, "id": None, "index": 0}] if said else []
        chunk = AIMessageChunk(content=text, tool_call_chunks=calls)
        for event in spoken((("inner",), "messages", (chunk, {}))):
            pieces.event(event)
        delta = {"type": "tool-call-delta", "args": said} if said else {"type": "text-delta", "text": text}
        for event in spoken({"event": "content-block-delta", "index": 0, "delta": delta}):
            events.event(event)
    assert whole.seen().text == pieces.seen().text == events.seen().text == SAFE + written
