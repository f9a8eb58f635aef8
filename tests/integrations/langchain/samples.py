"""Messages as LangChain's integrations make them, and a real ChatOpenAI that is told what its API says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("langchain_openai")
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_openai import ChatOpenAI
from pydantic import SecretStr, ValidationError

from guardrail_vl.errors import ContentError
from guardrail_vl.integrations.langchain._messages import ChunkReader, read_reply
from guardrail_vl.parts import ImagePart
from guardrail_vl.wire.base import Reading
from tests.wire.leaves import MARKER, PIXEL, READING, marked, name, paths, piece_texts, texts, vanishing

PIXELS = PIXEL.partition(",")[2]
"""The picture's bytes alone, as base64."""
USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}

ANTHROPIC = AIMessage(
    content=[
        {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"},
        {
            "type": "text",
            "text": "The grass is green.",
            "citations": [
                {
                    "type": "char_location",
                    "cited_text": "Green it is.",
                    "document_index": 0,
                    "document_title": "On grass",
                    "file_id": "file_1",
                }
            ],
        },
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "grass"}, "caller": {"type": "direct"}},
    ],
    tool_calls=[{"name": "look", "args": {"at": "grass"}, "id": "toolu_1"}],
    response_metadata={
        "id": "msg_1",
        "model": "claude",
        "model_name": "claude",
        "model_provider": "anthropic",
        "stop_reason": "tool_use",
        "stop_sequence": "END",
        "service_tier": "standard",
        "usage": {"input_tokens": 1, "inference_geo": "eu"},
    },
    usage_metadata=USAGE,
    id="run-1",
    name="gardener",
)
GOOGLE = AIMessage(
    content=[
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        {"type": "text", "text": "A door.", "extras": {"signature": "c2ln"}},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ],
    additional_kwargs={
        "function_call": {"name": "open", "arguments": '{"door": "red"}'},
        "__gemini_function_call_thought_signatures__": {"c1": "c2ln"},
    },
    tool_calls=[{"name": "open", "args": {"door": "red"}, "id": "c1"}],
    response_metadata={
        "prompt_feedback": {"block_reason": "NONE", "block_reason_message": "m", "safety_ratings": [{"category": "c"}]},
        "finish_reason": "STOP",
        "finish_message": "done",
        "model_name": "gemini",
        "model_provider": "google_genai",
        "safety_ratings": [{"category": "HARM", "probability": "LOW"}],
        "grounding_metadata": {"grounding_chunks": [{"web": {"uri": "https://a.example", "title": "Doors"}}]},
    },
)
STANDARD = AIMessage(
    content=[
        {"type": "reasoning", "reasoning": "First.", "id": "rs_1", "extras": {"signature": "c2ln"}},
        {
            "type": "text",
            "text": "Hello.",
            "id": "lc_1",
            "annotations": [
                {"type": "citation", "id": "a1", "url": "https://a.example", "title": "t", "cited_text": "c"},
                {"type": "non_standard_annotation", "id": "a2", "value": {"filename": "f.txt", "file_id": "file_1"}},
            ],
            "extras": {"phase": "final_answer"},
        },
        {"type": "text-plain", "text": "A note.", "title": "Title", "context": "Context", "mime_type": "text/plain"},
        {"type": "image", "base64": PIXELS, "mime_type": "image/png", "id": "i1"},
        {"type": "tool_call", "id": "c1", "name": "look", "args": {"at": "it"}, "extras": {"item_id": "fc_1"}},
        {"type": "invalid_tool_call", "id": "c2", "name": "bad", "args": "{", "error": "no JSON"},
        {"type": "non_standard", "value": {"type": "refusal", "refusal": "Not that."}},
    ],
    tool_calls=[{"name": "look", "args": {"at": "it"}, "id": "c1"}],
    invalid_tool_calls=[{"name": "bad", "args": "{", "id": "c2", "error": "no JSON", "type": "invalid_tool_call"}],
    additional_kwargs={
        "refusal": "No.",
        "reasoning_content": "Because.",
        "parsed": {"answer": "yes"},
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}],
        "novelty": {"a key with words": ["deep"]},
    },
    response_metadata={
        "logprobs": {"content": None},
        "lc_versions": {"core": "1"},
        "message": {"role": "assistant", "content": "from Ollama"},
        "created_at": "2026",
        "done_reason": "stop",
        "total_duration": 1,
        "ResponseMetadata": {"RequestId": "r"},
        "stopReason": "end_turn",
        "x_groq": {"id": "g", "error": "e"},
        "metadata": {"team": "blue"},
        "incomplete_details": {"reason": "max_output_tokens"},
        "output_version": "v1",
    },
)
BEDROCK = AIMessage(
    content=[
        {"type": "reasoning_content", "reasoning_content": {"text": "Hm.", "type": "text", "signature": "c2ln"}},
        {"type": "text", "text": "Yes."},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXELS}},
        {"type": "image", "source_type": "base64", "data": PIXELS, "mime_type": "image/png"},
        {"text": "no type"},
    ],
    response_metadata={"model_provider": "bedrock_converse", "metrics": {"latencyMs": [1]}},
)

ANTHROPIC_CHUNKS = [
    AIMessageChunk(content=[], response_metadata={"model_name": "claude", "model_provider": "anthropic"}, name="n"),
    AIMessageChunk(content=[{"type": "thinking", "thinking": "Let me ", "index": 0}]),
    AIMessageChunk(content=[{"type": "thinking", "thinking": "see.", "index": 0}]),
    AIMessageChunk(content=[{"type": "thinking", "signature": "c2ln", "index": 0}]),
    AIMessageChunk(content=[{"type": "text", "text": "The gra", "index": 1}]),
    AIMessageChunk(content=[{"type": "text", "text": "ss.", "index": 1}]),
    AIMessageChunk(content=[{"type": "text", "text": "", "index": 1, "citations": [{"type": "x", "cited_text": "c"}]}]),
    AIMessageChunk(
        content=[{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}, "index": 2}],
        tool_call_chunks=[{"name": "look", "args": "", "id": "toolu_1", "index": 2, "type": "tool_call_chunk"}],
    ),
    AIMessageChunk(
        content=[{"type": "input_json_delta", "partial_json": '{"at": "gr', "index": 2}],
        tool_call_chunks=[{"name": None, "args": '{"at": "gr', "id": None, "index": 2, "type": "tool_call_chunk"}],
    ),
    AIMessageChunk(
        content=[{"type": "input_json_delta", "partial_json": 'ass"}', "index": 2}],
        tool_call_chunks=[{"name": None, "args": 'ass"}', "id": None, "index": 2, "type": "tool_call_chunk"}],
    ),
    AIMessageChunk(content="", response_metadata={"stop_reason": "tool_use"}, chunk_position="last"),
]
GOOGLE_CHUNKS = [
    AIMessageChunk(content="A do"),
    AIMessageChunk(content="or."),
    AIMessageChunk(
        content="",
        additional_kwargs={"function_call": {"name": "open", "arguments": '{"door": "red"}'}},
        tool_call_chunks=[{"name": "open", "args": '{"door": "red"}', "id": "c1", "index": None}],
        response_metadata={"safety_ratings": [], "finish_reason": "STOP", "finish_message": "done"},
    ),
]
STANDARD_CHUNKS = [
    AIMessageChunk(content=[{"type": "text", "text": "He", "index": "lc_txt_0"}]),
    AIMessageChunk(content=[{"type": "text", "text": "llo", "index": "lc_txt_0", "extras": {"phase": "final"}}]),
    AIMessageChunk(content=[{"type": "reasoning", "reasoning": "Hm", "index": "lc_rs_1"}]),
    AIMessageChunk(content=[{"type": "tool_call_chunk", "name": "f", "args": '{"a"', "id": "c1", "index": "lc_tc_2"}]),
    AIMessageChunk(content=[{"type": "tool_call_chunk", "args": ': "b"}', "id": None, "index": "lc_tc_2"}]),
    AIMessageChunk(content=[{"type": "image", "base64": PIXELS, "mime_type": "image/png", "index": 3}]),
    AIMessageChunk(content=["bare ", {"type": "refusal", "refusal": "No."}]),
    AIMessageChunk(
        content="",
        additional_kwargs={
            "refusal": "N",
            "reasoning_content": "B",
            "tool_calls": [{"index": 0, "id": "c9", "function": {"name": "g", "arguments": "{}"}, "type": "function"}],
            "novelty": {"deep": ["text"]},
            "parsed": {"answer": "yes"},
        },
    ),
    AIMessageChunk(content="", tool_calls=[{"name": "h", "args": {"x": "y"}, "id": "c3", "type": "tool_call"}]),
    AIMessageChunk(
        content="",
        invalid_tool_calls=[{"name": "i", "args": "{", "id": "c4", "error": "no JSON", "type": "invalid_tool_call"}],
    ),
]


def judged(message: BaseMessage, **more: Any) -> list[str]:
    """Everything of a whole reply that a judge reads."""
    return list(texts(read_reply(message, READING, **more)))


def judged_chunks(messages: Iterable[BaseMessage]) -> list[str]:
    """Everything of a stream that a judge reads, part by part."""
    reader = ChunkReader(READING)
    found: dict[Any, str] = {}
    for message in messages:
        for piece in reader.read_message(message):
            key = piece.kind, piece.index
            found[key] = found.get(key, "") + "".join(piece_texts([piece]))
    return list(found.values())


def vanishing_in(message: BaseMessage, judge: Callable[[BaseMessage], Iterable[str]]) -> set[str]:
    """Names of the places of a message from which content reaches no judge, though nothing was refused."""
    whole = message.model_dump()

    def read(dump: dict[str, Any]) -> Iterable[str]:
        try:
            made = type(message)(**dump)
        except ValidationError:  # LangChain itself makes no message of it
            raise ContentError("No message.") from None
        # What LangChain makes anew of other fields is not there.
        return judge(made) if MARKER in str(made.model_dump()) or dump == whole else [MARKER]

    return vanishing(whole, read)


def reply(message: BaseMessage, *allow: str, **more: Any) -> tuple[Any, ...]:
    (read,) = read_reply(message, Reading(ImagePart.load, allow), **more)
    assert read.role == "assistant"
    return read.content


def block(raw: Any, *allow: str) -> tuple[Any, ...]:
    return reply(AIMessage([raw]), *allow)


class OpenAi:
    """A real ChatOpenAI; `body` is what its API says next: a reply, or the events of a stream."""

    def __init__(self, **settings: Any) -> None:
        self.body: Any = None
        client = httpx.Client(transport=httpx.MockTransport(self._answer))
        self.model = ChatOpenAI(model="m", api_key=SecretStr("k"), http_client=client, max_retries=0, **settings)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(self.body, list):
            return httpx.Response(200, json=self.body)
        frames = [f"data: {json.dumps(one)}\n\n" for one in self.body] + ["data: [DONE]\n\n"]
        return httpx.Response(200, content="".join(frames), headers={"content-type": "text/event-stream"})

    def whole(self, body: Any) -> tuple[BaseMessage, dict[str, Any]]:
        """The message, and what comes beside it."""
        self.body = body
        result = self.model._generate([HumanMessage("hi")])
        (generation,) = result.generations
        return generation.message, {**(result.llm_output or {}), **(generation.generation_info or {})}

    def judge_whole(self, body: Any) -> tuple[str, list[str]]:
        """All that the app gets of a reply, and all that a judge reads of it."""
        try:
            message, aside = self.whole(body)
        except (TypeError, ValueError, AttributeError):  # LangChain or openai make nothing of it
            return "", []
        return f"{message.model_dump()} {aside}", judged(message, aside=aside)

    def judge_chunks(self, events: list[Any]) -> tuple[str, list[str]]:
        """The same, of a stream."""
        try:
            chunks = list(self.chunks(events))
        except (TypeError, ValueError, AttributeError):
            return "", []
        reader = ChunkReader(READING)
        read = [text for chunk in chunks for text in piece_texts(reader.read(chunk))]
        return str([(chunk.message.model_dump(), chunk.generation_info) for chunk in chunks]), read

    def chunks(self, events: list[Any]) -> Iterator[ChatGenerationChunk]:
        """The chunks of a stream."""
        self.body = events
        return self.model._stream([HumanMessage("hi")])


def unseen(body: Any, judge: Callable[[Any], tuple[str, Iterable[str]]]) -> set[str]:
    """As `leaves.vanishing`, of what the API says: places from which text reaches the app, but no judge.

    Args:
        body: What the API says.
        judge: Gives all that the app gets, and all that a judge reads.
    """
    given, read = judge(body)
    assert given
    assert list(read)
    out, tried = set(), set()
    for path in paths(body):
        event: Any = path[0]
        kind = body[event].get("type", event) if isinstance(body, list) else ""
        if (kind, name(path)) in tried:  # a stream has many events of a type
            continue
        tried.add((kind, name(path)))
        try:
            given, read = judge(marked(body, path))
        except ContentError as problem:
            given, read = str(problem), []  # a refusal shows no content
        if MARKER in given and MARKER not in "\n".join(read):
            out.add(name(path))
    return out
