"""LangChain's chunks as pieces: a stream says the same, piece by piece, as the message that it makes."""

from __future__ import annotations

import copy
import functools
import json
import operator
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("langchain_openai")
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessageChunk, HumanMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from guardrail_vl.errors import ContentError
from guardrail_vl.integrations.langchain._chunks import ChunkReader
from guardrail_vl.integrations.langchain._messages import read_reply
from guardrail_vl.parts import ImagePart, Part, ReasoningPart, RefusalPart, TextPart, ToolCallPart
from guardrail_vl.streaming import HoldBack, Piece, Streaming
from guardrail_vl.wire.base import Reading
from tests.integrations.langchain.samples import (
    ANTHROPIC_CHUNKS,
    GOOGLE_CHUNKS,
    PIXELS,
    STANDARD_CHUNKS,
    OpenAi,
    judged,
    judged_chunks,
    unseen,
    vanishing_in,
)
from tests.wire import responses_bodies, test_chat
from tests.wire.leaves import PIXEL, READING

STREAMS = {"anthropic": ANTHROPIC_CHUNKS, "google": GOOGLE_CHUNKS, "standard": STANDARD_CHUNKS}
NO_CONTENT = {
    "anthropic": {
        "content.*.id", "content.*.signature", "content.*.citations.*.type", "tool_call_chunks.*.id",
        "response_metadata.model_name", "response_metadata.model_provider", "response_metadata.stop_reason",
    },
    "google": {"tool_call_chunks.*.id", "response_metadata.finish_reason"},
    "standard": {
        "content.*.id", "content.*.index", "content.*.extras.phase", "tool_call_chunks.*.id",
        "additional_kwargs.tool_calls.*.id",
    },
}  # fmt: skip


def parts_of(chunks: Iterable[BaseMessage], reading: Reading = READING) -> list[Part]:
    """The parts that the chunks make, as the driver of a stream puts them together at its end."""
    reader = ChunkReader(reading)
    hold: HoldBack[Any] = HoldBack((), Streaming("full"))
    for chunk in chunks:
        hold.feed(chunk, reader.read_message(chunk), 0.0)
    hold.end()
    found = [check.turn().messages[-1].content for check in hold.checks(0.0)]
    return list(found[0]) if found else []


def pieces(*chunks: BaseMessage) -> list[Piece]:
    reader = ChunkReader(READING)
    return [piece for chunk in chunks for piece in reader.read_message(chunk)]


def call(name: str | None, args: str | None, index: int | None, call_id: str | None = None) -> AIMessageChunk:
    raw: Any = {"name": name, "args": args, "id": call_id, "index": index, "type": "tool_call_chunk"}
    return AIMessageChunk(content="", tool_call_chunks=[raw])


@pytest.mark.parametrize("style", STREAMS)
def test_no_content_of_a_chunk_vanishes(style: str) -> None:
    gone = set()
    for chunk in STREAMS[style]:
        gone |= vanishing_in(chunk, lambda message: judged_chunks([message]))
    assert gone == NO_CONTENT[style]


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # openai's own, of a content that is a list
def test_no_content_of_a_stream_of_openais_chat_vanishes() -> None:
    chunks = copy.deepcopy(test_chat.CHUNKS[:-1])
    chunks[5]["choices"][0]["delta"]["tool_calls"].pop()  # LangChain does not read custom tools here
    assert unseen(chunks, OpenAi().judge_chunks) == {
        "*.model", "*.choices.*.finish_reason", "*.choices.*.delta.tool_calls.*.id",
    }  # fmt: skip


@pytest.mark.parametrize("version", ["responses/v1", "v1", "v0"])
def test_no_content_of_a_stream_of_openais_responses_vanishes(version: str) -> None:
    told = json.dumps(responses_bodies.events()).replace('"encrypted_content": "gAAAA"', '"encrypted_content": null')
    gone = unseen(json.loads(told), OpenAi(use_responses_api=True, output_version=version).judge_chunks)
    assert gone <= {
        "*.item_id", "*.item.id", "*.item.call_id", "*.item.phase", "*.item.status", "*.item.action",
        "*.item.background", "*.item.output_format", "*.item.quality", "*.item.size", "*.annotation.type",
        "*.annotation.file_id", "*.response.id", "*.response.model", "*.response.object", "*.response.service_tier",
        "*.response.status", "*.response.user",
    }  # fmt: skip


@pytest.mark.parametrize("style", ["anthropic", "google"])
def test_a_stream_says_what_its_message_says(style: str) -> None:
    whole: Any = functools.reduce(operator.add, STREAMS[style])
    streamed = "\n".join(judged_chunks(STREAMS[style]))
    assert all(text in streamed for text in judged(whole))


def test_separate_blocks_are_separate_parts_and_what_is_joined_is_one() -> None:
    found = parts_of(
        [
            AIMessageChunk(content=[{"type": "text", "text": "on", "index": 0}]),
            AIMessageChunk(
                content=[{"type": "text", "text": "e", "index": 0}, {"type": "text", "text": "two", "index": 1}]
            ),
            AIMessageChunk(content=[{"type": "reasoning", "reasoning": "hm", "index": 0}]),
            AIMessageChunk(content=[{"type": "text", "text": "BAD"}]),
            AIMessageChunk(content=[{"type": "text", "text": "WORD"}]),
            AIMessageChunk(content=[{"type": "image", "base64": PIXELS, "mime_type": "image/png", "index": 2}]),
        ]
    )
    picture = ImagePart.load(PIXEL)
    assert found == [TextPart("one"), TextPart("two"), ReasoningPart("hm"), TextPart("BADWORD"), picture]


def test_a_call_is_one_part_and_is_never_done_before_the_end() -> None:
    chunks = [call("look", "", 1, "c1"), call(None, '{"at": ', 1), call("open", "{}", 2, "c2"), call(None, '"it"}', 1)]
    assert parts_of(chunks) == [ToolCallPart("look", '{"at": "it"}', "c1"), ToolCallPart("open", "{}", "c2")]
    assert not any(piece.done for piece in pieces(*chunks))


def test_calls_without_an_index_are_calls_of_their_own() -> None:
    assert parts_of([call("a", "{}", None, "1"), call("a", "{}", None, "2")]) == [
        ToolCallPart("a", "{}", "1"),
        ToolCallPart("a", "{}", "2"),
    ]


@pytest.mark.parametrize("style", ["anthropic", "google"])
def test_a_call_that_a_chunk_tells_twice_is_read_once(style: str) -> None:
    calls = [part for part in parts_of(STREAMS[style]) if isinstance(part, ToolCallPart)]
    assert len(calls) == 1
    assert json.loads(calls[0].arguments)


def test_a_call_in_a_block_that_differs_is_read_too() -> None:
    chunk = call(None, '{"a": 1', 0)
    chunk.content = [{"type": "input_json_delta", "partial_json": "BADWORD", "index": 0}]
    assert [piece.text for piece in pieces(chunk)] == ["BADWORD", '{"a": 1']
    chunk.content = [{"type": "input_json_delta", "partial_json": '{"a": 1', "index": n} for n in (0, 1)]
    assert [piece.text for piece in pieces(chunk)] == ['{"a": 1', '{"a": 1']


def test_a_call_beside_the_chunks_is_read() -> None:
    chunk = call("look", '{"at": ', 0)
    chunk.tool_calls = [*chunk.tool_calls, {"name": "other", "args": {"x": "y"}, "id": "c", "type": "tool_call"}]
    assert {piece.name for piece in pieces(chunk)} == {"look", "other"}
    raw = {"index": 0, "id": "c1", "type": "function", "function": {"name": "raw", "arguments": "{}"}}
    chunk = call("look", "{}", 0)
    chunk.additional_kwargs["tool_calls"] = [raw]
    assert {piece.name for piece in pieces(chunk)} == {"look", "raw"}


def test_an_old_function_call_has_the_index_before_the_first() -> None:
    chunks = [
        AIMessageChunk(content="", additional_kwargs={"function_call": {"name": "old", "arguments": '{"a"'}}),
        AIMessageChunk(content="", additional_kwargs={"function_call": {"name": None, "arguments": ": 1}"}}),
    ]
    assert {piece.index for piece in pieces(*chunks)} == {-1}
    assert parts_of(chunks) == [ToolCallPart("old", '{"a": 1}')]


def test_what_comes_beside_the_message_is_judged_or_refused() -> None:
    chunk = ChatGenerationChunk(
        message=AIMessageChunk(content="a"), generation_info={"finish_reason": "stop", "novelty": "b"}
    )
    assert [piece.text for piece in ChunkReader(READING).read(chunk)] == ["a", "b"]
    chunk = ChatGenerationChunk(
        message=AIMessageChunk(content="a"), generation_info={"logprobs": {"content": [{"token": "a"}]}}
    )
    with pytest.raises(ContentError, match="logprobs"):
        ChunkReader(READING).read(chunk)
    assert len(ChunkReader(Reading(ImagePart.load, {"logprobs"})).read(chunk)) == 1


def test_a_refusal_and_a_parsed_answer() -> None:
    chunks = [
        AIMessageChunk(content='{"said": '),
        AIMessageChunk(content='"yes"}', additional_kwargs={"parsed": {"said": "yes"}}),
        AIMessageChunk(content="", additional_kwargs={"refusal": "N"}),
        AIMessageChunk(content="", additional_kwargs={"refusal": "o."}),
    ]
    assert parts_of(chunks) == [TextPart('{"said": "yes"}'), RefusalPart("No.")]
    late = AIMessageChunk(content="", additional_kwargs={"parsed": {"said": "no"}})
    assert TextPart('{"said": "no"}') in parts_of([*chunks, late])


def test_calls_and_results_that_are_no_chunks() -> None:
    message = AIMessage("", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "c"}])
    message.invalid_tool_calls = [{"name": "g", "args": "{", "id": "d", "error": "e", "type": "invalid_tool_call"}]
    assert parts_of([message]) == [ToolCallPart("f", '{"a": 1}', "c"), ToolCallPart("g", "{", "d"), TextPart("e")]


def test_a_name_is_told_once() -> None:
    assert [
        piece.text for piece in pieces(AIMessageChunk(content="a", name="n"), AIMessageChunk(content="b", name="n"))
    ] == [
        "n\n",
        "a",
        "b",
    ]


def test_a_chunk_is_the_assistants() -> None:
    assert pieces(ChatMessageChunk(content="a", role="assistant"))[0].text == "a"
    for chunk in (HumanMessageChunk(content="a"), ChatMessageChunk(content="a", role="user")):
        with pytest.raises(ContentError, match="assistant"):
            pieces(chunk)
    with pytest.raises(ContentError, match="novelty"):
        pieces(AIMessageChunk.model_validate({"content": "a", "novelty": "b"}))


def test_what_carries_no_content_makes_no_piece() -> None:
    usage: Any = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    silent = AIMessageChunk(
        content="", usage_metadata=usage, id="run-1", response_metadata={"model_name": "m"}, chunk_position="last"
    )
    assert pieces(silent) == []


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def _cut(data: st.DataObject, text: str) -> list[str]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(
    st.lists(st.tuples(st.sampled_from(["text", "reasoning", "thinking", "refusal", "call"]), TEXTS), max_size=5),
    st.booleans(),
    st.data(),
)
def test_a_message_cut_into_chunks_says_what_it_says_whole(
    blocks: list[tuple[str, str]], named: bool, data: st.DataObject
) -> None:
    chunks = []
    for number, (kind, text) in enumerate(blocks):
        index = f"lc_{number}" if named else number
        for at, part in enumerate(_cut(data, text)):
            if kind == "call":
                chunks.append(call("look" if not at else None, part, number, "c" if not at else None))
                if data.draw(st.booleans()):
                    names = {} if at else {"name": "look"}
                    chunks[-1].content = [{"type": "input_json_delta", "partial_json": part, "index": index, **names}]
            else:
                chunks.append(AIMessageChunk(content=[{"type": kind, kind: part, "index": index}]))
    said = [text for kind, text in blocks if kind != "call" and text.strip()]
    calls = [text for kind, text in blocks if kind == "call"]
    found = parts_of(chunks)
    whole = read_reply(
        AIMessageChunk(
            content=[{"type": kind, kind: text} for kind, text in blocks if kind != "call" and text.strip()]
        ),
        READING,
    )[0].content
    streamed = [part for part in found if not isinstance(part, ToolCallPart) and getattr(part, "text", "").strip()]
    assert sorted(map(repr, streamed)) == sorted(map(repr, whole))
    assert sorted(part.text for part in streamed if not isinstance(part, ImagePart | ToolCallPart)) == sorted(said)  # type: ignore[union-attr]
    assert [part.arguments for part in found if isinstance(part, ToolCallPart)] == calls


@given(TEXTS, st.data())
def test_a_text_cut_into_chunks_is_the_same_text(text: str, data: st.DataObject) -> None:
    chunks = [AIMessageChunk(content=part) for part in _cut(data, text)]
    assert "".join(piece.text for piece in pieces(*chunks)) == text
    assert {piece.index for piece in pieces(*chunks)} == {0}
