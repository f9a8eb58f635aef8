"""Legacy completions: a turn for each prompt, choices that find their prompt, refusals that the real types read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import Message, TextPart
from guardrail_vl.wire.base import Reading
from guardrail_vl.wire.completions import Completions
from guardrail_vl.wire.sse import FrameSplitter
from tests.wire.leaves import READING, load, piece_texts, texts, vanishing
from tests.wire.test_chat import frame

LEGACY = Completions()

REQUEST: dict[str, Any] = {
    "model": "m",
    "prompt": ["once", "twice"],
    "suffix": "the end",
    "echo": True,
    "n": 2,
    "best_of": 2,
    "stop": "END",
    "user": "u",
    "logprobs": None,
    "logit_bias": {"50256": -100},
    "stream_options": {"include_usage": True},
    "guided_regex": "a|b",
    "max_tokens": 5,
}
REPLY: dict[str, Any] = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "m",
    "system_fingerprint": "fp",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "choices": [
        {"index": 0, "text": "a", "finish_reason": "stop", "logprobs": None, "stop_reason": "END"},
        {"index": 1, "text": "b", "finish_reason": "stop", "logprobs": None, "reasoning": "hm"},
        {"index": 2, "text": "c", "finish_reason": "length", "logprobs": None, "reasoning_content": "hm hm"},
        {"index": 3, "text": "d", "finish_reason": "stop", "logprobs": None, "prompt_logprobs": None},
    ],
}


def test_no_content_of_a_request_vanishes() -> None:
    def judge(body: Any) -> list[str]:
        turns = [LEGACY.read_request(body, i, READING) for i in range(LEGACY.prompts(body))]
        return [text for turn in turns for text in texts(turn.messages)]

    assert vanishing(REQUEST, judge) == {"model", "user", "stop"}


def test_no_content_of_a_reply_or_chunk_vanishes() -> None:
    def judge(body: Any) -> list[str]:
        return [text for one in LEGACY.read_reply(body, REQUEST, READING) for text in texts(one.messages)]

    nothing = {"id", "object", "model", "system_fingerprint", "choices.*.finish_reason"}
    assert vanishing(REPLY, judge) == nothing
    assert vanishing(REPLY, lambda b: piece_texts(LEGACY.reader(REQUEST, READING).read(frame(b)))) == nothing


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("logprobs", {"logprobs": 3}),
        ("new_thing", {"new_thing": "x"}),
        ("prompt_embeds", {"prompt_embeds": "AAAA"}),
        ("messages", {"messages": [{"role": "user", "content": "x"}]}),
        ("token numbers", {"prompt": [1, 2, 3]}),
        ("token numbers", {"prompt": [[1, 2], [3]]}),
        ("token numbers", {"prompt": ["x", [1]]}),
        ("text", {"prompt": 3}),
        ("nothing to judge", {"prompt": [], "suffix": None}),
        ("nothing to judge", {"prompt": None, "suffix": None}),
        ("suffix", {"suffix": ["x"]}),
    ],
)
def test_what_cannot_be_judged_is_refused(named: str, change: dict[str, Any]) -> None:
    body = {**REQUEST, **change}
    assert LEGACY.prompts(body) >= 1
    with pytest.raises(ContentError, match=named):
        LEGACY.read_request(body, 0, READING)


def test_an_app_may_let_it_pass_by_name() -> None:
    LEGACY.read_request({**REQUEST, "logprobs": 3, "new_thing": "x"}, 0, Reading(load, {"logprobs", "new_thing"}))


def test_the_prompt_and_what_follows_it_are_the_users() -> None:
    turn = LEGACY.read_request({"prompt": "once", "suffix": "the end"}, 0, READING)
    assert turn.messages == (Message("user", (TextPart("once"), TextPart("the end"))),)


@given(st.integers(1, 4), st.integers(1, 4))
def test_each_choice_answers_its_prompt(prompts: int, n: int) -> None:
    request = {"prompt": [f"p{i}" for i in range(prompts)], "n": n}
    assert LEGACY.prompts(request) == prompts
    choices = [{"index": i, "text": f"t{i}"} for i in range(prompts * n)]
    found = LEGACY.read_reply({"choices": choices}, request, READING)
    assert [(c.key, c.prompt) for c in found] == [(i, i // n) for i in range(prompts * n)]
    assert len(LEGACY.refuse(request, "No.")["choices"]) == prompts * n
    assert {c.prompt for c in LEGACY.read_reply({"choices": [{"index": 99, "text": "x"}]}, request, READING)} == {
        prompts - 1
    }


def test_refusals_are_of_the_real_type() -> None:
    reply = Completion.model_validate(LEGACY.refuse(REQUEST, "No."))
    assert [(c.index, c.text, c.finish_reason) for c in reply.choices] == [
        (i, "No.", "content_filter") for i in range(4)
    ]


def test_a_withheld_choice_leaves_the_rest_as_it_was() -> None:
    out = LEGACY.withhold(REPLY, [1, 2], "No.")
    Completion.model_validate(out)
    assert {**out, "choices": None} == {**REPLY, "choices": None}
    assert [out["choices"][i] for i in (0, 3)] == [REPLY["choices"][i] for i in (0, 3)]
    for i in (1, 2):
        assert out["choices"][i] == {"index": i, "text": "No.", "finish_reason": "content_filter", "logprobs": None}


def test_a_stopped_stream_ends_each_choice_that_had_not_ended() -> None:
    reader = LEGACY.reader(REQUEST, READING)
    for choice in (
        {"index": 0, "text": "a", "finish_reason": None},
        {"index": 1, "text": "b", "finish_reason": "stop"},
    ):
        one = frame({**REPLY, "choices": [choice]})
        reader.read(one)
        reader.released(one)
    *chunks, done = [f.data or "" for f in FrameSplitter().feed(reader.refuse("No."))]
    assert done == "[DONE]"
    ends = [Completion.model_validate(json.loads(one)) for one in chunks]
    assert [(c.id, c.choices[0].index, c.choices[0].finish_reason) for c in ends] == [
        ("cmpl-1", i, "content_filter") for i in (0, 2, 3)
    ]


def test_a_small_request_can_not_ask_for_endless_refusals() -> None:
    reply = LEGACY.refuse({"prompt": ["x"] * 1_000, "n": 128}, "No.")
    assert len(reply["choices"]) <= 2_048
