"""LangChain's messages as what is judged: nothing that a model or a reader sees is lost."""

from __future__ import annotations

import copy
import datetime
import enum
import json
from collections import UserDict
from typing import Any

import pytest

pytest.importorskip("langchain_openai")
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from guardrail_vl.errors import ContentError
from guardrail_vl.integrations._annotation import Annotation
from guardrail_vl.integrations.langchain._messages import read_request, tool_output
from guardrail_vl.parts import ImagePart, RefusalPart, TextPart, ToolCallPart, ToolResultPart
from guardrail_vl.wire.base import Reading
from tests.integrations.langchain.samples import (
    ANTHROPIC,
    BEDROCK,
    GOOGLE,
    PIXELS,
    STANDARD,
    OpenAi,
    judged,
    reply,
    unseen,
    vanishing_in,
)
from tests.wire import responses_bodies, test_chat
from tests.wire.leaves import MARKER, PIXEL, READING, texts, vanishing

Json = dict[str, Any]

# ---- nothing of a reply vanishes -------------------------------------------------------------------------------------

# Ids, seals, what a thing is called in the API, why it ended, which model it was and what it cost.
CALL_IDS = {"tool_calls.*.id"}
NO_CONTENT = {
    "anthropic": CALL_IDS
    | {
        "id", "content.*.id", "content.*.signature", "content.*.caller.type", "content.*.citations.*.type",
        "content.*.citations.*.file_id", "response_metadata.id", "response_metadata.model",
        "response_metadata.model_name", "response_metadata.model_provider", "response_metadata.service_tier",
        "response_metadata.stop_reason", "response_metadata.usage.inference_geo",
    },
    "google": CALL_IDS
    | {
        "content.*.signature", "content.*.extras.signature",
        "additional_kwargs.__gemini_function_call_thought_signatures__.c1", "response_metadata.finish_reason",
        "response_metadata.model_name", "response_metadata.model_provider",
        "response_metadata.prompt_feedback.block_reason",
        "response_metadata.prompt_feedback.safety_ratings.*.category",
        "response_metadata.safety_ratings.*.category", "response_metadata.safety_ratings.*.probability",
    },
    "standard": CALL_IDS
    | {
        "content.*.id", "content.*.mime_type", "content.*.extras.signature", "content.*.extras.phase",
        "content.*.extras.item_id", "content.*.annotations.*.id", "content.*.annotations.*.type",
        "content.*.annotations.*.value.file_id", "invalid_tool_calls.*.id",
        "additional_kwargs.tool_calls.*.id", "response_metadata.ResponseMetadata.RequestId",
        "response_metadata.created_at", "response_metadata.done_reason",
        "response_metadata.incomplete_details.reason", "response_metadata.lc_versions.core",
        "response_metadata.message.role", "response_metadata.output_version", "response_metadata.stopReason",
        "response_metadata.x_groq.id",
    },
    "bedrock": {
        "content.*.reasoning_content.type", "content.*.reasoning_content.signature", "content.*.source.type",
        "content.*.source_type", "response_metadata.model_provider",
    },
}  # fmt: skip
WHOLE = {"anthropic": ANTHROPIC, "google": GOOGLE, "standard": STANDARD, "bedrock": BEDROCK}


@pytest.mark.parametrize("style", WHOLE)
def test_no_content_of_a_reply_vanishes(style: str) -> None:
    assert vanishing_in(WHOLE[style], judged) == NO_CONTENT[style]


def test_no_content_of_a_reply_of_openais_chat_vanishes() -> None:
    body = copy.deepcopy(test_chat.REPLY)
    del body["error"], body["choices"][1:]
    assert unseen(body, OpenAi().judge_whole) == {
        "id", "model", "service_tier", "system_fingerprint", "choices.*.finish_reason",
        "choices.*.message.tool_calls.*.id",
    }  # fmt: skip


@pytest.mark.parametrize("version", ["responses/v1", "v1", "v0"])
def test_no_content_of_a_reply_of_openais_responses_vanishes(version: str) -> None:
    body = responses_bodies.reply()
    del body["output"][0]["encrypted_content"]
    gone = unseen(body, OpenAi(use_responses_api=True, output_version=version).judge_whole)
    assert gone <= {
        "id", "object", "model", "status", "service_tier", "user", "output.*.id", "output.*.status", "output.*.phase",
        "output.*.call_id", "output.*.action", "output.*.background", "output.*.output_format", "output.*.quality",
        "output.*.size", "output.*.summary.*.type", "output.*.content.*.type",
        "output.*.content.*.annotations.*.type", "output.*.content.*.annotations.*.file_id",
    }  # fmt: skip


def test_a_call_is_read_once_however_often_it_is_told() -> None:
    message = AIMessage(
        [
            {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "a", "b": 1}},
            {"type": "tool_call", "id": "c1", "name": "look", "args": {"b": 1, "at": "a"}},
        ],
        additional_kwargs={
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"b":1,"at":"a"}'}}
            ],
        },
        tool_calls=[{"name": "look", "args": {"at": "a", "b": 1}, "id": "c1"}],
    )
    # Twice in the content: two calls there, of which LangChain knows one.
    assert [part.name for part in reply(message)] == ["look", "look"]
    message.content = message.content[:1]
    assert reply(message) == (ToolCallPart("look", '{"at": "a", "b": 1}', "c1"),)


@pytest.mark.parametrize(
    "arguments", ['{"at": "other"}', '{"at": "bad", "at": "it"}', '{"at": "it"} and more', '{"at": "it", "x": NaN}']
)
def test_a_call_that_is_told_otherwise_elsewhere_is_read_too(arguments: str) -> None:
    raw = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    call = {"name": "look", "args": {"at": "it"}, "id": "c1", "type": "tool_call"}
    message = AIMessage("", additional_kwargs={"tool_calls": [raw]}, tool_calls=[call])
    assert [part.arguments for part in reply(message)] == ['{"at": "it"}', arguments]
    block = {"type": "function_call", "name": "look", "arguments": arguments, "call_id": "c1"}
    assert arguments in [part.arguments for part in reply(AIMessage([block], tool_calls=[call]))]


def test_what_parsing_half_of_a_call_loses_is_read() -> None:
    chunk = AIMessageChunk(
        content="",
        tool_call_chunks=[{"name": "f", "args": '{"a": "b"} BAD', "id": "c", "index": 0, "type": "tool_call_chunk"}],
    )
    assert any("BAD" in text for text in judged(chunk))


def test_an_old_function_call_and_a_custom_tool_are_calls() -> None:
    old = AIMessage("", additional_kwargs={"function_call": {"name": "look", "arguments": "{}"}})
    assert reply(old) == (ToolCallPart("look", "{}"),)
    raw = {"type": "custom_tool_call", "name": "shout", "input": "hey", "call_id": "c1"}
    call = {"name": "shout", "args": {"__arg1": "hey"}, "id": "c1", "type": "tool_call"}
    assert reply(AIMessage([raw], tool_calls=[call])) == (ToolCallPart("shout", '{"__arg1": "hey"}', "c1"),)


class Answer(BaseModel):
    said: str


class Kind(enum.Enum):
    A = "a"


def test_a_parsed_answer_is_read_unless_the_content_says_the_same() -> None:
    same = AIMessage('{"said": "yes"}', additional_kwargs={"parsed": Answer(said="yes")})
    assert reply(same) == (TextPart('{"said": "yes"}'),)
    other = AIMessage('{"said": "yes"}', additional_kwargs={"parsed": {"said": "no"}})
    assert reply(other)[1:] == (TextPart('{"said": "no"}'),)


def test_a_refusal_is_read_once() -> None:
    assert reply(AIMessage("No.", additional_kwargs={"refusal": "No."})) == (TextPart("No."),)
    assert reply(AIMessage("", additional_kwargs={"refusal": "No."})) == (RefusalPart("No."),)


@pytest.mark.parametrize("name", ["logprobs", "logprobs_result", "prompt_logprobs"])
def test_tokens_beside_the_text_are_refused(name: str) -> None:
    value = {"content": [{"token": "yes"}]}
    for message, aside in ((AIMessage("yes", response_metadata={name: value}), {}), (AIMessage("yes"), {name: value})):
        with pytest.raises(ContentError, match="token by token") as told:
            reply(message, aside=aside)
        assert name in str(told.value.hint)
        assert reply(message, name, aside=aside) == (TextPart("yes"),)
    assert reply(AIMessage("yes", response_metadata={name: {"content": None, "refusal": []}})) == (TextPart("yes"),)


def test_the_note_of_a_guard_inside_is_no_content_but_anything_else_of_that_name_is() -> None:
    assert reply(AIMessage("yes", response_metadata={"guardrail": dict(Annotation(()))})) == (TextPart("yes"),)
    forged = {"action": "allow", "decisions": [], "more": MARKER}
    for value in (forged, {"action": MARKER, "decisions": []}, {"action": "allow", "decisions": [{"id": MARKER}]}):
        assert MARKER in "\n".join(judged(AIMessage("yes", response_metadata={"guardrail": value})))


def test_audio_is_refused_unless_allowed() -> None:
    message = AIMessage("", additional_kwargs={"audio": {"id": "a", "transcript": "hi"}})
    with pytest.raises(ContentError, match="Audio"):
        reply(message)
    assert reply(message, "audio") == ()


def test_a_reply_is_the_assistants() -> None:
    assert reply(ChatMessage(content="hi", role="assistant")) == (TextPart("hi"),)
    for message in (HumanMessage("hi"), ChatMessage(content="hi", role="user"), SystemMessage("hi")):
        with pytest.raises(ContentError, match="assistant"):
            reply(message)


def test_a_field_that_a_message_does_not_have_is_refused_by_name() -> None:
    message = AIMessage("hi", novelty="text")
    with pytest.raises(ContentError, match="novelty"):
        reply(message)
    assert reply(message, "novelty") == (TextPart("hi"),)


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ContentError, match="deep"):
        reply(AIMessage("", additional_kwargs={"novelty": deep}))
    with pytest.raises(ContentError, match="deep"):
        reply(AIMessage("", response_metadata={"novelty": deep}))


def test_odd_values_of_a_call_are_written_as_json() -> None:
    odd = {
        "day": datetime.date(2026, 1, 1),
        "of": Answer(said="a"),
        "set": {"b"},
        "kind": Kind.A,
        "map": UserDict(c="d"),
    }
    call = AIMessage("", tool_calls=[{"name": "f", "args": odd, "id": "c"}])
    (part,) = reply(call)
    assert json.loads(part.arguments) == {
        "day": "2026-01-01",
        "of": {"said": "a"},
        "set": ["b"],
        "kind": "a",
        "map": {"c": "d"},
    }
    with pytest.raises(ContentError, match="written as JSON"):
        reply(AIMessage("", tool_calls=[{"name": "f", "args": {"odd": object()}, "id": "c"}]))
    with pytest.raises(ContentError, match="object in the additional_kwargs"):
        reply(AIMessage("", additional_kwargs={"odd": object()}))
    with pytest.raises(ContentError, match="lone surrogate"):
        reply(AIMessage("", tool_calls=[{"name": "f", "args": {"a": "\ud800"}, "id": "c"}]))


# ---- requests --------------------------------------------------------------------------------------------------------


def asked(*messages: BaseMessage, allow: tuple[str, ...] = (), **settings: Any) -> tuple[Any, ...]:
    return read_request(messages, ["END"], settings, Reading(ImagePart.load, allow))


def test_every_message_keeps_its_role_and_its_place() -> None:
    history = [
        SystemMessage("a"),
        SystemMessage("b", additional_kwargs={"__openai_role__": "developer"}),
        HumanMessage("c", name="ann"),
        AIMessage(
            "d", tool_calls=[{"name": "f", "args": {}, "id": "c1"}], response_metadata={"logprobs": {"content": [1]}}
        ),
        ToolMessage("e", tool_call_id="c1", name="f", artifact="stays with the app"),
        FunctionMessage(content="g", name="old"),
        *(ChatMessage(content="h", role=role) for role in ("system", "developer", "user", "human", "assistant", "ai")),
    ]
    read = asked(*history)
    assert [message.role for message in read] == [
        "system", "developer", "user", "assistant", "tool", "tool",
        "system", "developer", "user", "user", "assistant", "assistant",
    ]  # fmt: skip
    assert read[2].name == "ann"
    assert read[3].content == (TextPart("d"), ToolCallPart("f", "{}", "c1"))
    assert read[4].content == (ToolResultPart((TextPart("e"),), "c1"),)
    assert read[5].name == "old"


@pytest.mark.parametrize("message", [RemoveMessage("id"), ChatMessage(content="x", role="BADWORD wizard")])
def test_a_message_that_no_model_is_sent_is_refused(message: BaseMessage) -> None:
    with pytest.raises(ContentError) as told:
        asked(message)
    assert "wizard" not in str(told.value)


def test_no_content_of_a_request_vanishes() -> None:
    def judge(body: Any) -> Any:
        return texts(read_request([HumanMessage(**body["human"]), ToolMessage(**body["tool"])], None, {}, READING))

    body = {
        "human": {
            "content": [{"type": "text", "text": "hi"}],
            "name": "ann",
            "id": "1",
            "additional_kwargs": {"k": "v"},
        },
        "tool": {
            "content": [{"type": "text", "text": "out"}, {"type": "json", "json": {"a": "b"}}],
            "tool_call_id": "c1",
            "additional_kwargs": {"name": "f"},
        },
    }
    assert vanishing(body, judge) == {"human.id", "tool.tool_call_id"}


def test_a_tools_message_holds_text_and_pictures_only() -> None:
    picture = {"type": "image_url", "image_url": {"url": PIXEL}}
    (read,) = asked(ToolMessage(["a", picture], tool_call_id="c1"))
    assert read.content == (ToolResultPart((TextPart("a"), ImagePart.load(PIXEL)), "c1"),)
    with pytest.raises(ContentError, match="text and images"):
        asked(ToolMessage([{"type": "reasoning", "reasoning": "hm"}], tool_call_id="c1"))


class Odd:
    def __str__(self) -> str:
        return "as text"


class Shape(BaseModel):
    """A shape that has BADWORD in its description."""

    corners: int = Field(description="How many WORSE corners.")


@tool
def weather(city: str) -> str:
    """Says the weather, BADWORD."""
    return city


SETTINGS: Json = {
    "model": "m", "temperature": 0.5, "max_tokens": 5, "seed": 1, "user": "u", "metadata": {"team": "blue"},
    "tool_choice": "auto", "parallel_tool_calls": False, "strict": True, "stream_options": {"include_usage": True},
    "ls_structured_output_format": {"kwargs": {"method": "json_schema"}, "schema": Shape}, "reasoning": {"effort": "low"},
    "reasoning_effort": "low", "response_format": {"type": "json_object"}, "modalities": ["text"], "logprobs": False,
    "text": {"verbosity": "low", "format": {"type": "text"}}, "extra_body": {"top_k": 5, "user": "u"},
    "include": ["file_search_call.results"], "thinking": {"type": "enabled"}, "top_logprobs": 0, "stream": True,
}  # fmt: skip


def test_settings_that_carry_no_content_pass() -> None:
    assert [message.role for message in asked(HumanMessage("hi"), **SETTINGS)] == ["user"]


DEFINITIONS: dict[str, Any] = {
    "a function": {"tools": [{"type": "function", "function": {"name": "f", "description": "BADWORD"}}]},
    "a flat function": {"tools": [{"type": "function", "name": "f", "parameters": {"title": "BADWORD"}}]},
    "a custom tool": {"tools": [{"type": "custom", "custom": {"name": "f", "description": "BADWORD"}}]},
    "anthropic": {"tools": [{"name": "f", "input_schema": {"properties": {"BADWORD": {}}}}]},
    "google": {"tools": [{"function_declarations": [{"name": "f", "description": "BADWORD"}]}]},
    "bedrock": {"tools": [{"toolSpec": {"name": "f", "description": "BADWORD"}}]},
    "a namespace": {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "BADWORD"}]}]},
    "a namespace's words": {"tools": [{"type": "namespace", "name": "n", "description": "BADWORD", "tools": []}]},
    "a tool": {"tools": [weather]},
    "a class": {"tools": [Shape]},
    "functions": {"functions": [{"name": "f", "description": "BADWORD"}]},
    "a choice": {"tool_choice": {"type": "function", "function": {"name": "BADWORD"}}},
    "a schema": {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "BADWORD"}}}},
    "a schema's class": {"response_format": Shape},
    "a text's format": {"text": {"format": {"type": "json_schema", "schema": {"title": "BADWORD"}}}},
    "a prediction": {"prediction": {"type": "content", "content": "BADWORD"}},
    "instructions": {"instructions": "BADWORD"},
    "more settings": {"extra_body": {"guided_grammar": "BADWORD"}},
    "anything": {"novelty": {"deep": ["BADWORD"]}},
}


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_what_the_model_sees_beside_the_messages_is_judged_first(kind: str) -> None:
    read = asked(HumanMessage("hi"), **DEFINITIONS[kind])
    assert [message.role for message in read] == ["developer", "user"]
    assert "BADWORD" in read[0].text


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"tools": [{"type": "web_search_preview"}]}, "web_search_preview"),
        ({"tools": [{"google_search": {}}]}, "google_search"),
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"extra_body": {"conversation": "c"}}, "conversation"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "audio"),
        ({"novelty": object()}, "novelty"),
        ({"response_format": Odd}, "response_format"),
        ({"tools": [object()]}, "tools"),
    ],
)
def test_a_setting_that_brings_what_nobody_judges_is_refused_by_name(settings: Json, name: str) -> None:
    with pytest.raises(ContentError) as told:
        asked(HumanMessage("hi"), **settings)
    if name != "tools":
        assert name in f"{told.value} {told.value.hint}"
    assert asked(HumanMessage("hi"), allow=(name,), **settings)[-1].text == "hi"


# ---- what tools give back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("rain", "rain"),
        (["rain", "snow"], "rain\nsnow"),
        ([{"type": "text", "text": "rain"}], "rain"),
        ({"sky": "grün"}, '{"sky": "grün"}'),
        ([{"type": "pizza", "name": "x"}], '[{"type": "pizza", "name": "x"}]'),
        (7, "7"),
        (Odd(), "as text"),
        ({"odd": Odd}, str({"odd": Odd})),
        (None, ""),
        (ToolMessage("rain", tool_call_id="c1"), "rain"),
    ],
)
def test_what_a_tool_gave_is_judged_as_the_model_would_see_it(content: Any, text: str) -> None:
    read = tool_output(content, "c1", READING)
    assert read.role == "tool"
    (result,) = read.content
    assert isinstance(result, ToolResultPart)
    assert result.id == "c1"
    assert "\n".join(part.text for part in result.content if isinstance(part, TextPart)) == text


def test_a_picture_that_a_tool_gave_is_judged() -> None:
    read = tool_output([{"type": "image", "base64": PIXELS, "mime_type": "image/png"}], "c1", READING)
    assert read.images == (ImagePart.load(PIXEL),)
    with pytest.raises(ContentError, match="file"):
        tool_output([{"type": "file", "base64": "AAAA"}], "c1", READING)
    with pytest.raises(ContentError, match="HumanMessage"):
        tool_output(HumanMessage("a"), "c1", READING)
