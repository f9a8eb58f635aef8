"""`Guard.sanitize`: what is blocked goes, everything else stays as it was, and what is left is not blocked."""

from __future__ import annotations

import asyncio
import copy
import io
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from guardrail_vl import Decision, Guard, ImagePart, Message, TextPart, Turn
from guardrail_vl.errors import ConfigurationError, ContentError, EngineUnavailableError
from guardrail_vl.parts import ToolCallPart, ToolResultPart
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Action, Judgement

SENTENCE = "[withheld]"
GUARD = Guard(engine=ScriptedEngine(by_keyword("bomb")))


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def bot(text: str | None, *calls: str, **more: Any) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, **more}
    if calls:
        message["tool_calls"] = [
            {"id": c, "type": "function", "function": {"name": "look", "arguments": json.dumps({"x": text or "y"})}}
            for c in calls
        ]
    return message


def tool(call: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": text}


def without_ids(messages: list[Any]) -> list[Any]:
    return [{k: v for k, v in m.items() if k != "id"} if isinstance(m, dict) else m for m in messages]


def paired(messages: list[Any]) -> bool:
    """Whether each result has its call before it, and each call its result."""
    calls: list[str] = []
    results: list[str] = []
    for message in messages:
        calls += [c["id"] for c in message.get("tool_calls", ())]
        if message["role"] == "tool":
            if message["tool_call_id"] not in calls:
                return False
            results.append(message["tool_call_id"])
    return calls == results


# ---- by example -----------------------------------------------------------------------------------------------------


def test_a_blocked_exchange_goes_and_the_rest_stays_as_it_was() -> None:
    history = [{"role": "system", "content": "Be kind."}, user("hi", id="m1"), bot("hello", id="m2"),
               user("bomb", id="m3"), bot("No.", id="m4"), user("thanks", id="m5")]  # fmt: skip
    before = copy.deepcopy(history)
    left = GUARD.sanitize(history)
    assert left == [history[at] for at in (0, 1, 2, 5)]
    assert history == before
    assert left is not history
    assert asyncio.run(GUARD.asanitize(history)) == left


def test_the_newest_goes_only_for_what_it_says_itself() -> None:
    # In its context the newest is judged with the bomb before it; without that it is harmless.
    assert GUARD.sanitize([user("bomb"), bot("No."), user("cake")]) == [user("cake")]
    assert GUARD.sanitize([user("cake"), bot("Yes."), user("bomb")]) == [user("cake"), bot("Yes.")]
    assert GUARD.sanitize([user("bomb")]) == []
    assert GUARD.sanitize([]) == []


def test_a_harmful_request_that_was_answered_harmlessly_may_stay_as_the_policy_says() -> None:
    history = [user("bomb"), bot("No.")]
    assert GUARD.sanitize(history) == history
    assert GUARD.check(history).action is Action.ALLOW
    # But where it makes the next one look harmful, it goes, and not the next one.
    assert GUARD.check([*history, user("and then?")]).blocked
    assert GUARD.sanitize([*history, user("and then?")]) == [user("and then?")]
    assert GUARD.sanitize([*history, user("a bomb!")]) == history


def test_a_blocked_reply() -> None:
    history = [user("hi"), bot("take a bomb"), user("thanks")]
    assert GUARD.sanitize(history) == [user("thanks")]
    replaced = GUARD.sanitize(history, replace=SENTENCE)
    assert replaced == [user(SENTENCE), bot(SENTENCE), user("thanks")]


def test_tool_calls_and_results_go_together() -> None:
    bad_result = [user("look"), bot(None, "c1", "c2"), tool("c1", "fine"), tool("c2", "bomb"), bot("Done.")]
    assert GUARD.sanitize(bad_result[:-1]) == [user("look")]
    assert GUARD.sanitize([*bad_result[:-1], bot("A bomb.")]) == [user("look")]
    bad_request = [user("hi"), bot("bomb", "c1"), tool("c1", "fine"), bot("Done.")]
    assert GUARD.sanitize(bad_request) == [bot("Done.")]
    same_id_again = [
        user("a"),
        bot(None, "c"),
        tool("c", "bomb"),
        bot("bomb"),
        user("b"),
        bot(None, "c"),
        tool("c", "ok"),
        bot("x"),
    ]
    assert GUARD.sanitize(same_id_again) == [user("a"), user("b"), bot(None, "c"), tool("c", "ok"), bot("x")]


def test_replaced_calls_keep_their_ids_and_lose_what_they_said() -> None:
    history = [
        user("hi", id="m1", name="ann"),
        bot("bomb", "c1", id="m2", reasoning_content="bomb", refusal="bomb"),
        tool("c1", "bomb"),
        bot("bomb"),
    ]
    left = GUARD.sanitize(history, replace=SENTENCE)
    assert "bomb" not in json.dumps(left)
    assert [m.get("id") for m in left] == ["m1", "m2", None, None]
    assert left[0] == user(SENTENCE, id="m1", name="ann")
    assert left[1]["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    assert left[2] == tool("c1", SENTENCE)


def test_pictures_in_what_is_replaced_are_gone() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "PNG")
    picture = ImagePart(buffer.getvalue())
    history = [user("", content=[{"type": "text", "text": "bomb"},
                                 {"type": "image_url", "image_url": {"url": picture.data_url}}])]  # fmt: skip
    assert GUARD.sanitize(history, replace=SENTENCE) == [user(SENTENCE)]
    values = [
        Message("user", (TextPart("bomb"), picture), name="ann"),
        Message("assistant", (ToolCallPart("look", "bomb", "c1"),)),
        Message("tool", (ToolResultPart((TextPart("bomb"), picture), "c1"),)),
    ]
    assert GUARD.sanitize(values, replace=SENTENCE) == [
        Message("user", (TextPart(SENTENCE),), name="ann"),
        Message("assistant", (ToolCallPart("look", "{}", "c1"),)),
        Message("tool", (ToolResultPart((TextPart(SENTENCE),), "c1"),)),
    ]
    assert GUARD.sanitize(values) == []


def test_custom_and_old_calls() -> None:
    custom = {"id": "c", "type": "custom", "custom": {"name": "run", "input": "bomb"}}
    old = {"name": "run", "arguments": "bomb"}
    history = [user("hi"), {"role": "assistant", "content": None, "tool_calls": [custom], "function_call": old}]
    said = GUARD.sanitize(history, replace=SENTENCE)[1]
    assert said["tool_calls"] == [{"id": "c", "type": "custom", "custom": {"name": "run", "input": "{}"}}]
    assert said["function_call"] == {"name": "run", "arguments": "{}"}
    assert said["content"] is None


def test_the_sentence_may_depend_on_the_judgement() -> None:
    seen: list[Judgement] = []

    def sentence(judgement: Judgement) -> str:
        seen.append(judgement)
        return f"gone: {judgement.first}"

    left = GUARD.sanitize([user("hi"), bot("bomb"), user("x")], replace=sentence)
    assert left == [user("gone: 0"), bot("gone: 0"), user("x")]
    assert [(j.first, j.last, j.action) for j in seen] == [(0, 1, Action.BLOCK)]


def test_what_replacing_does_not_cure_is_dropped() -> None:
    guard = Guard(engine=ScriptedEngine(by_keyword("bomb", "withheld")))
    assert guard.sanitize([user("bomb"), bot("No."), user("x")], replace=SENTENCE) == [user("x")]


def test_a_failure_is_an_error() -> None:
    down = Guard(engine=ScriptedEngine(lambda prompt: EngineUnavailableError("Down.")))
    with pytest.raises(EngineUnavailableError):
        down.sanitize([user("hi")])
    with pytest.raises(ContentError, match="'video'"):
        GUARD.sanitize([user("hi", video="bomb")])
    with pytest.raises(ContentError):
        GUARD.sanitize([user("hi", id={"text": "bomb"})])
    opened = down.replace(policy={"fail": "open"})
    assert opened.sanitize([user("hi")]) == [user("hi")]


@pytest.mark.parametrize("odd", ["hi", 3, None, {"role": "user", "content": "hi"}])
def test_only_lists_of_messages(odd: Any) -> None:
    with pytest.raises(ConfigurationError, match="list of messages"):
        GUARD.sanitize(odd)


@pytest.mark.parametrize("empty", ["", " ", lambda judgement: "", lambda judgement: None])
def test_a_sentence_must_say_something(empty: Any) -> None:
    with pytest.raises(ConfigurationError, match="sentence"):
        GUARD.sanitize([user("bomb")], replace=empty)


def test_hooks_have_the_last_word() -> None:
    def allow(turn: Any, decision: Decision) -> Decision:
        return Decision(Action.ALLOW, decision.stage, "Allowed.", verdict=decision.verdict)

    def block(turn: Any, decision: Decision) -> Decision | None:
        if turn is None or len(turn.messages) < 3:
            return None
        return Decision(Action.BLOCK, decision.stage, "No.", verdict=decision.verdict, judgements=decision.judgements)

    history = [user("bomb")]
    assert GUARD.replace(pre_prompt=allow).sanitize(history) == history
    long = [user("a"), bot("b"), user("c")]
    assert GUARD.replace(pre_prompt=block).sanitize(long) == long[:2]


def test_unchanged_history_is_not_judged_again() -> None:
    engine = ScriptedEngine(by_keyword("bomb"))
    guard = Guard(engine=engine)
    history = [user("hi"), bot("hello"), user("bomb")]
    guard.sanitize(history)
    asked = len(engine.prompts)
    guard.sanitize(history)
    assert len(engine.prompts) == asked


# ---- by law ---------------------------------------------------------------------------------------------------------

words = st.sampled_from(["cake", "bread", "bomb", "paint", ""])


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for number in range(draw(st.integers(0, 6))):
        match draw(st.sampled_from(["ask", "ask", "system", "tools", "answer"])):
            case "ask":
                out += [user(draw(words) + f" {number}"), bot(draw(words))]
            case "system":
                out.append({"role": "system", "content": draw(words) + "."})
            case "answer":
                out.append(bot(draw(words) + f" {number}"))
            case _:
                calls = [f"c{number}.{i}" for i in range(draw(st.integers(1, 2)))]
                out += [user(draw(words) + "?"), bot(draw(words), *calls), *(tool(c, draw(words) + "!") for c in calls)]
                if draw(st.booleans()):
                    out.append(bot(draw(words)))
    for at, message in enumerate(out):
        message["id"] = f"m{at}"
    if out and not (out[-1]["content"] or "").strip():
        out[-1]["content"] = "end"
    return out


def exchange_of(conversation: list[dict[str, Any]], at: int) -> list[dict[str, Any]]:
    return next(
        conversation[one.first : one.last + 1]
        for one in Turn.of(without_ids(conversation)).exchanges()
        if one.first <= at <= one.last
    )


def beside_harm(conversation: list[dict[str, Any]], kept: set[str], at: int) -> bool:
    """Whether there is harm among the neighbours that went along. When what stood between two messages goes, they become
    one exchange, and if that is harmful both go."""
    first = next((i + 1 for i in range(at, -1, -1) if conversation[i]["id"] in kept), 0)
    last = next((i for i in range(at, len(conversation)) if conversation[i]["id"] in kept), len(conversation))
    return "bomb" in json.dumps(conversation[first:last])


APART = [
    ("user", "bomb 0"), ("assistant", "cake"), ("system", "bomb."), ("assistant", "cake 2"), ("user", "cake 3"),
    ("assistant", "cake"), ("system", "cake."),
]  # fmt: skip
"""When the third is gone, the fourth belongs to the answer of the first, and goes with it."""


@given(conversations(), st.sampled_from([None, SENTENCE]))
@example([{"role": role, "content": said, "id": f"m{at}"} for at, (role, said) in enumerate(APART)], None)
def test_the_law(conversation: list[dict[str, Any]], replace: str | None) -> None:
    before = copy.deepcopy(conversation)
    left = GUARD.sanitize(conversation, replace=replace)
    assert conversation == before
    # What is left is not blocked, and doing it again changes nothing.
    assert not left or not GUARD.check(without_ids(left)).blocked
    assert GUARD.sanitize(left, replace=replace) == left
    # Order stays, by id, and tool pairs stay valid.
    ids = [m["id"] for m in left]
    assert ids == [m["id"] for m in conversation if m["id"] in set(ids)]
    assert paired(left)
    # What is blocked is gone; what is harmless stays, but for the other half of a tool pair, and silence at the end.
    by_id = {m["id"]: m for m in left}
    gone = [m for m in conversation if m["id"] not in by_id]
    halves = {c["id"] for m in gone for c in m.get("tool_calls", ())} | {m.get("tool_call_id") for m in gone} - {None}
    blocked = [j for j in judgements(conversation) if j.action is Action.BLOCK and not j.in_context]
    for at, message in enumerate(conversation):
        kept = by_id.get(message["id"])
        if any(j.first <= at <= j.last for j in blocked):
            assert (kept is None) == (replace is None)
            assert kept is None or (kept != message and kept["role"] == message["role"])
        elif "bomb" not in json.dumps(exchange_of(conversation, at)):
            own = {c["id"] for c in message.get("tool_calls", ())} | {message.get("tool_call_id")}
            assert kept == message or (kept is None and replace is None)
            assert kept or own & halves or not message["content"] or beside_harm(conversation, set(by_id), at)


def judgements(conversation: list[dict[str, Any]]) -> tuple[Judgement, ...]:
    return GUARD.check(without_ids(conversation)).judgements if conversation else ()
