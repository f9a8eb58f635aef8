"""Content blocks, LangChain's own and the providers': each is read in every form, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("langchain_openai")
from langchain_core.messages import AIMessage, HumanMessage

from guardrail_vl.errors import ContentError
from guardrail_vl.integrations.langchain._messages import read_request
from guardrail_vl.parts import ImagePart, ReasoningPart, TextPart
from tests.integrations.langchain.samples import PIXELS, block, reply
from tests.wire.leaves import PIXEL, READING

Json = dict[str, Any]

PICTURES: dict[str, Json] = {
    "version 1": {"type": "image", "base64": PIXELS, "mime_type": "image/png"},
    "version 1 url": {"type": "image", "url": PIXEL},
    "version 0": {"type": "image", "source_type": "base64", "data": PIXELS, "mime_type": "image/png"},
    "version 0 url": {"type": "image", "source_type": "url", "url": PIXEL},
    "anthropic": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXELS}},
    "anthropic url": {"type": "image", "source": {"type": "url", "url": PIXEL}},
    "openai": {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
    "openai text": {"type": "image_url", "image_url": PIXEL},
    "responses": {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
    "drawn": {"type": "image_generation_call", "result": PIXELS, "status": "completed"},
    "google": {"type": "media", "mime_type": "image/png", "data": PIXELS},
    "google bytes": {"type": "media", "mime_type": "image/png", "data": ImagePart.load(PIXEL).data},
    "bedrock": {"image": {"format": "png", "source": {"bytes": ImagePart.load(PIXEL).data}}},
}


@pytest.mark.parametrize("form", PICTURES)
def test_a_picture_is_read_in_every_form(form: str) -> None:
    assert block(PICTURES[form]) == (ImagePart.load(PIXEL),)
    assert read_request([HumanMessage([PICTURES[form]])], None, {}, READING)[0].images == (ImagePart.load(PIXEL),)


@pytest.mark.parametrize(
    "raw",
    [
        {"type": "image", "file_id": "file_1"},
        {"type": "image", "id": "file_1"},
        {"type": "image", "base64": PIXELS, "file_id": "file_1"},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "input_image", "file_id": "file_1"},
        {"type": "image", "url": "/etc/hostname"},
        {"type": "image", "url": "https://a.example/x.png"},
        {"type": "image_url", "image_url": {"url": "gs://a/b"}},
        {"type": "image_url"},
        {"type": "image", "base64": PIXELS, "mime_type": "application/pdf"},
        {"type": "image", "source": {"source": {"url": PIXEL}}},
        {"type": "image", "base64": PIXELS, "source": {"url": "/etc/hostname"}},
        {"type": "image", "base64": "no picture", "mime_type": "image/png"},
        {"type": "image", "data": 7},
        {"type": "media", "mime_type": "video/mp4", "data": "AAAA"},
        {"type": "media", "mime_type": "image/png", "file_uri": "https://a.example/x.png"},
    ],
)
def test_a_picture_that_is_none_or_not_at_hand_is_refused(raw: Json) -> None:
    with pytest.raises(ContentError):
        block(raw)


def test_all_pictures_of_one_block_are_judged() -> None:
    raw = {"type": "image", "url": PIXEL, "base64": PIXELS, "source": {"data": PIXELS}}
    assert block(raw) == (ImagePart.load(PIXEL),) * 3


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({"type": "audio", "base64": "AAAA"}, "audio"),
        ({"type": "video", "url": "https://a.example"}, "video"),
        ({"type": "file", "file_id": "file_1"}, "file"),
        ({"type": "document", "source": {"type": "text", "data": "words"}}, "document"),
        ({"type": "search_result", "content": [{"type": "text", "text": "words"}]}, "search_result"),
        ({"type": "redacted_thinking", "data": "AAAA"}, "redacted_thinking"),
        ({"type": "server_tool_call", "name": "web_search", "args": {"query": "words"}}, "server_tool_call"),
        ({"type": "server_tool_use", "name": "web_search", "input": {"query": "words"}}, "web_search"),
        ({"type": "web_search_tool_result", "content": [{"title": "words"}]}, "web_search"),
        ({"type": "server_tool_result", "output": "words"}, "server_tool_result"),
        ({"type": "web_search_call", "action": {"query": "words"}}, "web_search"),
        ({"type": "media", "mime_type": "video/mp4", "data": "AAAA"}, "media"),
        ({"type": "non_standard", "value": {"words": "words"}}, "non_standard"),
        ({"type": "non_standard", "value": {"type": "novelty", "text": "words"}}, "novelty"),
        ({"type": "novelty", "text": "words"}, "novelty"),
    ],
)
def test_a_block_that_can_not_be_judged_is_refused_by_name(raw: Json, name: str) -> None:
    with pytest.raises(ContentError) as told:
        block(raw)
    assert "words" not in str(told.value)
    assert block(raw, name) == ()


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"type": "text", "text": "hi", "novelty": "words"}, "novelty"),
        ({"type": "text", "text": "hi", "extras": {"novelty": "words"}}, "novelty"),
        ({"type": "text-plain", "text": "hi", "base64": "AAAA"}, "base64"),
        ({"type": "text-plain", "text": "hi", "url": "https://a.example"}, "url"),
        ({"type": "reasoning", "reasoning": "hm", "encrypted_content": "AAAA"}, "encrypted_content"),
        ({"type": "tool_call", "name": "f", "args": {}, "novelty": "words"}, "novelty"),
        ({"type": "tool_use", "name": "f", "input": {}, "caller": {"type": "x", "novelty": "words"}}, "novelty"),
        ({"type": "image", "url": PIXEL, "novelty": "words"}, "novelty"),
        ({"type": "image_url", "image_url": {"url": PIXEL, "novelty": "words"}}, "novelty"),
    ],
)
def test_an_unknown_field_of_a_block_is_refused_by_name(raw: Json, field: str) -> None:
    with pytest.raises(ContentError, match=field):
        block(raw)
    block(raw, field)


@pytest.mark.parametrize("raw", [{"text": "a", "more": "b"}, {}, {"type": 7}, {"type": "image", "source": "x"}])
def test_a_block_that_is_none_is_refused(raw: Json) -> None:
    with pytest.raises(ContentError):
        block(raw)


def test_reasoning_is_read_in_every_form() -> None:
    forms: list[Json] = [
        {"type": "reasoning", "reasoning": "Hm."},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}], "id": "rs"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "thinking", "thinking": "Hm.", "signature": "AAAA"},
        {"type": "reasoning_content", "reasoning_content": {"text": "Hm.", "signature": "AAAA"}},
        {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "AAAA"}}},
        {"type": "reasoning", "content": "Hm."},
        {"reasoning_content": "Hm."},
    ]
    for form in forms:
        assert block(form) == (ReasoningPart("Hm."),)
    details = [{"type": "reasoning.text", "text": "Hm.", "signature": "AAAA"}]
    beside: Json = {
        "reasoning_content": "Hm.",
        "reasoning": {"summary": [{"text": "Hm."}]},
        "reasoning_details": details,
    }
    for name, value in beside.items():
        assert reply(AIMessage("", additional_kwargs={name: value})) == (ReasoningPart("Hm."),)
    with pytest.raises(ContentError, match="encrypted"):
        reply(AIMessage("", additional_kwargs={"reasoning_details": [{"type": "reasoning.encrypted", "data": "AAAA"}]}))


def test_results_of_tools_and_drawn_pictures_in_blocks_are_read() -> None:
    result = {
        "type": "tool_result",
        "tool_use_id": "c1",
        "content": [{"type": "text", "text": "a"}, PICTURES["anthropic"]],
    }
    assert block(result) == (TextPart("a"), ImagePart.load(PIXEL))
    output = {"type": "custom_tool_call_output", "call_id": "c1", "name": "f", "output": "a"}
    assert block(output) == (TextPart("f"), TextPart("a"))
    drawn = {"type": "image_generation_call", "result": PIXELS, "revised_prompt": "a", "error": "b", "size": "1x1"}
    assert block(drawn) == (TextPart("a"), TextPart("b"), ImagePart.load(PIXEL))
    tagged = {"type": "text", "text": "a", "citations": [["b", {"c": ["d"]}]]}
    assert block(tagged) == (TextPart("a"), TextPart("b\nd\n"))
