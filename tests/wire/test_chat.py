"""Chat completions: no content vanishes, nothing unknown passes, and refusals are what the real client reads."""

from __future__ import annotations

import contextlib
import importlib
import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import Message, ReasoningPart, RefusalPart, TextPart, ToolCallPart
from guardrail_vl.streaming import Piece
from guardrail_vl.wire.base import Reading
from guardrail_vl.wire.chat import ChatCompletions
from guardrail_vl.wire.completions import Completions
from guardrail_vl.wire.sse import Frame, FrameSplitter, parse_frame
from tests.wire.leaves import MARKER, PIXEL, READING, load, odd, piece_texts, texts, vanishing

CHAT = ChatCompletions()
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CITATION = {
    "type": "url_citation",
    "url_citation": {"title": "t", "url": "https://x", "start_index": 0, "end_index": 1},
}

REQUEST: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": "be kind", "name": "boss"},
        {"role": "system", "content": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "content": "I look",
            "refusal": "no",
            "reasoning": "hm",
            "reasoning_content": "hm hm",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "deep", "signature": "sealed", "id": "r1", "format": "f"},
                {"type": "reasoning.summary", "summary": "short"},
            ],
            "annotations": [CITATION],
            "images": [{"type": "image_url", "image_url": {"url": PIXEL}}],
            "tool_calls": [CALL, {"id": "c2", "type": "custom", "custom": {"name": "sh", "input": "ls"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a lock"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "a key"}]},
        {"role": "assistant", "content": None, "function_call": {"name": "old", "arguments": "{}"}},
        {"role": "function", "name": "old", "content": "done"},
        {"role": "assistant", "content": [{"type": "text", "text": "so"}, {"type": "refusal", "refusal": "not that"}]},
        {"role": "user", "content": "go on"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "look",
                "description": "looks",
                "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "where"}}},
                "strict": True,
            },
        },
        {
            "type": "custom",
            "custom": {
                "name": "sh",
                "description": "runs",
                "format": {"type": "grammar", "grammar": {"definition": "x", "syntax": "lark"}},
            },
        },
    ],
    "functions": [{"name": "old", "description": "was", "parameters": {"type": "object"}}],
    "function_call": {"name": "old"},
    "tool_choice": {"type": "function", "function": {"name": "look"}},
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "n", "description": "d", "schema": {"type": "object", "title": "t"}, "strict": True},
    },
    "prediction": {"type": "content", "content": [{"type": "text", "text": "perhaps"}]},
    "chat_template_kwargs": {"model_identity": "You are", "thinking": True},
    "guided_regex": "a|b",
    "guided_choice": ["yes", "no"],
    "documents": [{"title": "t", "text": "x"}],
    "modalities": ["text", "image"],
    "stop": ["END"],
    "user": "u",
    "safety_identifier": "s",
    "metadata": {"team": "a"},
    "service_tier": "auto",
    "reasoning_effort": "low",
    "verbosity": "low",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "moderation": {"model": "omni", "policy": {"input": {"mode": "score"}}},
    "stream_options": {"include_usage": True},
    "logit_bias": {"50256": -100},
    "provider": {"order": ["a"]},
    "kv_transfer_params": {"host": "h"},
    "logprobs": False,
    "top_logprobs": 0,
    "top_k": 5,
    "min_p": 0.1,
    "n": 2,
    "temperature": 1,
    "seed": 3,
    "stream": False,
    "store": True,
}

# What neither a model nor a reader sees: routing, accounting, caching, ids and words that must be one of the API's own.
REQUEST_NO_CONTENT = {
    "model", "stop.*", "user", "safety_identifier", "metadata.team", "service_tier", "reasoning_effort", "verbosity",
    "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options.mode", "prompt_cache_options.ttl",
    "moderation.model", "moderation.policy.input.mode", "provider.order.*", "kv_transfer_params.host",
    "prediction.type", "messages.*.content.*.cache_control.type", "messages.*.content.*.image_url.detail",
    "messages.*.tool_calls.*.id", "messages.*.tool_call_id",
    "messages.*.reasoning_details.*.id", "messages.*.reasoning_details.*.format",
    "messages.*.reasoning_details.*.signature",
}  # fmt: skip

REPLY: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "service_tier": "default",
    "system_fingerprint": "fp",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "provider": "p",
    "x_groq": {"id": "g", "error": "groq says"},
    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {"hate": {"severity": "safe"}}}],
    "citations": ["https://a"],
    "search_results": [{"title": "t", "url": "u", "snippet": "s"}],
    "error": {"message": "oops", "code": 1},
    "prompt_logprobs": None,
    "kv_transfer_params": None,
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "native_finish_reason": "eos",
            "stop_reason": "END",
            "logprobs": None,
            "content_filter_results": {"hate": {"severity": "safe", "filtered": False}},
            "message": {
                "role": "assistant",
                "content": "one",
                "refusal": "no",
                "reasoning": "hm",
                "reasoning_content": "hm hm",
                "reasoning_details": [{"type": "reasoning.summary", "summary": "short"}],
                "annotations": [CITATION],
                "images": [{"type": "image_url", "image_url": {"url": PIXEL}, "index": 0}],
                "tool_calls": [CALL],
                "function_call": {"name": "old", "arguments": "{}"},
                "audio": None,
            },
        },
        {
            "index": 1,
            "finish_reason": "length",
            "logprobs": {"content": None, "refusal": None},
            "message": {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
            "error": {"message": "cut"},
        },
    ],
}
REPLY_NO_CONTENT = {
    "id", "model", "object", "service_tier", "system_fingerprint", "provider", "x_groq.id",
    "prompt_filter_results.*.content_filter_results.hate.severity", "choices.*.finish_reason",
    "choices.*.native_finish_reason", "choices.*.content_filter_results.hate.severity",
    "choices.*.message.tool_calls.*.id",
}  # fmt: skip


def chunk(delta: dict[str, Any], index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice], **more}


def frame(value: Any) -> Frame:
    return parse_frame(f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode())


CHUNKS: list[dict[str, Any]] = [
    chunk({"role": "assistant", "content": ""}, obfuscation="xk", usage=None),
    chunk({"content": "one"}, content_filter_results=None),
    chunk({"content": [{"type": "text", "text": "two"}], "refusal": "no"}),
    chunk({"reasoning": "a", "reasoning_content": "b", "reasoning_details": [{"type": "reasoning.text", "text": "c"}]}),
    chunk({"annotations": [CITATION], "images": [{"type": "image_url", "image_url": {"url": PIXEL}}]}),
    chunk(
        {"tool_calls": [{"index": 0, **CALL}, {"index": 1, "type": "custom", "custom": {"name": "n", "input": "i"}}]}
    ),
    chunk({"function_call": {"name": "old", "arguments": "{}"}}),
    chunk({}, finish="stop", x_groq={"id": "g", "usage": {"total_tokens": 1}}),
    {**chunk({}), "error": {"message": "oops"}, "citations": ["https://a"]},
]
CHUNK_NO_CONTENT = {
    "id", "object", "model", "obfuscation", "x_groq.id", "choices.*.finish_reason", "choices.*.delta.tool_calls.*.id",
}  # fmt: skip


# ---- nothing vanishes ------------------------------------------------------------------------------------------------


def test_no_content_of_a_request_vanishes() -> None:
    gone = vanishing(REQUEST, lambda body: texts(CHAT.read_request(body, 0, READING).messages))
    assert gone == REQUEST_NO_CONTENT


def test_no_content_of_a_reply_vanishes() -> None:
    def judge(body: Any) -> list[str]:
        return [text for one in CHAT.read_reply(body, REQUEST, READING) for text in texts(one.messages)]

    assert vanishing(REPLY, judge) == REPLY_NO_CONTENT


def test_no_content_of_a_chunk_vanishes() -> None:
    gone: set[str] = set()
    for one in CHUNKS:
        gone |= vanishing(one, lambda body: piece_texts(CHAT.reader(REQUEST, READING).read(frame(body))))
    assert gone == CHUNK_NO_CONTENT


@pytest.mark.parametrize("where", [(), ("messages", 2), ("messages", 2, "content", 0), ("tools", 0), ("prediction",)])
@pytest.mark.parametrize("value", ["x", {"a": 1}, [1]])
def test_an_unknown_field_of_a_request_is_refused_by_name(where: tuple[str | int, ...], value: Any) -> None:
    body = json.loads(json.dumps(REQUEST))
    inner = body
    for step in where:
        inner = inner[step]
    inner["new_thing"] = value
    with pytest.raises(ContentError, match="new_thing"):
        CHAT.read_request(body, 0, READING)
    CHAT.read_request(body, 0, Reading(load, {"new_thing"}))
    inner["new_thing"] = None
    CHAT.read_request(body, 0, READING)


@pytest.mark.parametrize("where", [(), ("choices", 0), ("choices", 0, "message")])
def test_an_unknown_field_of_a_reply_is_refused_by_name(where: tuple[str | int, ...]) -> None:
    body = json.loads(json.dumps(REPLY))
    inner = body
    for step in where:
        inner = inner[step]
    inner["new_thing"] = "x"
    with pytest.raises(ContentError, match="new_thing"):
        CHAT.read_reply(body, REQUEST, READING)
    CHAT.read_reply(body, REQUEST, Reading(load, {"new_thing"}))


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("logprobs", {"logprobs": True}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("prompt_logprobs", {"prompt_logprobs": 1}),
        ("return_token_ids", {"return_token_ids": True}),
        ("web_search", {"web_search_options": {}}),
        ("enable_search", {"enable_search": True}),
        ("audio", {"modalities": ["text", "audio"]}),
        ("audio", {"audio": {"voice": "ash", "format": "wav"}}),
        ("web_search_preview", {"tools": [{"type": "web_search_preview"}]}),
        ("plugins", {"plugins": [{"id": "web"}]}),
        ("chat_template", {"chat_template": "{{ x }}"}),
        ("data_sources", {"data_sources": [{"type": "azure_search"}]}),
        ("input_audio", {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A"}}]}]}),
        ("file", {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}),
        ("reasoning.encrypted", {"messages": [{"role": "assistant", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}]}),
        ("tool_choice", {"tool_choice": "something else"}),
        ("image_url", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "image_url": {"url": PIXEL}}]}]}),
        ("messages", {"messages": []}),
        ("list", {"messages": "x"}),
        ("type of", {"messages": [{"role": "user", "content": [{"type": {"a": 1}}]}]}),
        ("type of", {"messages": [{"role": "assistant", "tool_calls": [{"type": ["function"]}]}]}),
    ],
)  # fmt: skip
def test_what_brings_content_that_nobody_judges_is_refused(named: str, change: dict[str, Any]) -> None:
    with pytest.raises(ContentError, match=named):
        CHAT.read_request({**REQUEST, **change}, 0, READING)


@pytest.mark.parametrize(
    ("allow", "change"),
    [
        ("logprobs", {"logprobs": True, "top_logprobs": 3}),
        ("web_search", {"web_search_options": {}}),
        ("web_search_preview", {"tools": [{"type": "web_search_preview"}]}),
        ("input_audio", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio", "input_audio": {}}]}]}),
        ("audio", {"audio": {"voice": "ash"}, "modalities": ["audio"]}),
    ],
)  # fmt: skip
def test_an_app_may_let_it_pass_by_name(allow: str, change: dict[str, Any]) -> None:
    CHAT.read_request({**REQUEST, **change}, 0, Reading(load, {allow}))


def test_logprobs_of_a_reply_are_refused_unless_allowed() -> None:
    said: dict[str, Any] = {
        "content": [{"token": MARKER, "logprob": -1, "bytes": None, "top_logprobs": []}],
        "refusal": None,
    }
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}, "logprobs": said}
    reply = {**REPLY, "choices": [choice]}
    with pytest.raises(ContentError, match="logprobs"):
        CHAT.read_reply(reply, REQUEST, READING)
    streamed = chunk({"content": "x"})
    streamed["choices"][0]["logprobs"] = said
    with pytest.raises(ContentError, match="logprobs"):
        CHAT.reader(REQUEST, READING).read(frame(streamed))
    CHAT.read_reply(reply, REQUEST, Reading(load, {"logprobs"}))


@pytest.mark.parametrize(
    "body",
    [
        {**REPLY, "choices": [{"index": 0}, {"index": 0}]},
        {**REPLY, "choices": [{"index": 0, "message": {"role": "user", "content": "x"}}]},
        {**REPLY, "choices": [{"index": -1, "message": {"role": "assistant", "content": "x"}}]},
        {**REPLY, "choices": [{"index": 0, "message": None}]},
        {**REPLY, "choices": "x"},
        {**REPLY, "choices": [{"index": 0, "stop_reason": "not asked", "message": {"content": "x"}}]},
    ],
)
def test_a_reply_that_is_no_reply_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ContentError):
        CHAT.read_reply(body, REQUEST, READING)


@given(odd(REQUEST), st.sampled_from(["chat", "legacy"]))
def test_any_json_is_read_or_refused_as_a_request(body: Any, kind: str) -> None:
    endpoint = CHAT if kind == "chat" else Completions()
    for prompt in range(min(3, endpoint.prompts(body))):
        with contextlib.suppress(ContentError):
            endpoint.read_request(body, prompt, READING)
    endpoint.streams(body)
    json.dumps(endpoint.refuse(body, "No."))
    endpoint.reader(body, READING).refuse("No.")


@given(odd(REPLY), odd(REQUEST))
def test_any_json_is_read_or_refused_as_a_reply(body: Any, request: Any) -> None:
    for endpoint in (CHAT, Completions()):
        with contextlib.suppress(ContentError):
            keys = [c.key for c in endpoint.read_reply(body, request, READING)]
            out = endpoint.withhold(body, keys, "No.")
            assert [c["index"] for c in out["choices"]] == keys


@given(st.lists(st.sampled_from(CHUNKS).flatmap(odd), max_size=4), odd(REQUEST))
def test_any_json_is_read_or_refused_as_a_chunk(bodies: list[Any], request: Any) -> None:
    for endpoint in (CHAT, Completions()):
        reader = endpoint.reader(request, READING)
        for body in bodies:
            with contextlib.suppress(ContentError):
                list(reader.read(frame(body)))
            reader.released(frame(body))
        assert reader.refuse("No.").endswith(b"data: [DONE]\n\n")


# ---- what is read ----------------------------------------------------------------------------------------------------


def test_a_plain_request_is_its_messages() -> None:
    turn = CHAT.read_request({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, 0, READING)
    assert turn.messages == (Message("user", (TextPart("hi"),)),)


def test_definitions_come_first_from_the_developer() -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "It looks.", "parameters": {"a": "ü"}}}
    turn = CHAT.read_request({"messages": [{"role": "user", "content": "hi"}], "tools": [tool]}, 0, READING)
    text = 'look\nIt looks.\n{"parameters": {"a": "ü"}}'
    assert turn.messages == (Message("developer", (TextPart(text),)), Message("user", (TextPart("hi"),)))


def test_every_choice_is_a_candidate() -> None:
    reply = {"choices": [{"index": i, "message": {"role": "assistant", "content": str(i)}} for i in (2, 0, 1)]}
    assert [(c.key, c.prompt, c.messages) for c in CHAT.read_reply(reply, {}, READING)] == [
        (i, 0, (Message("assistant", (TextPart(str(i)),)),)) for i in (2, 0, 1)
    ]


def test_an_error_instead_of_choices_is_a_candidate() -> None:
    for body in ({"error": {"message": MARKER}}, {"object": "error", "message": MARKER}):
        (one,) = CHAT.read_reply(body, {}, READING)
        assert MARKER in "\n".join(texts(one.messages))
        kept = CHAT.withhold(body, [0], "No.")
        assert MARKER not in json.dumps(kept)
        assert ChatCompletion.model_validate(kept).choices[0].message.refusal == "No."


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.text(min_size=1, max_size=3)), max_size=12))
def test_calls_that_interleave_are_whole_when_their_choice_has_ended(deltas: list[tuple[int, int, str]]) -> None:
    reader = CHAT.reader({"n": 3}, READING)
    pieces: list[Piece] = []
    for choice, call, text in deltas:
        pieces += reader.read(frame(chunk({"tool_calls": [{"index": call, "function": {"arguments": text}}]}, choice)))
    assert not any(piece.done for piece in pieces)
    for choice in range(3):
        ended = {p.index for p in reader.read(frame(chunk({}, choice, "tool_calls"))) if p.done and p.choice == choice}
        assert ended == {call for at, call, _ in deltas if at == choice}
        for call in ended:
            got = "".join(p.text for p in pieces if (p.choice, p.index) == (choice, call))
            assert got == "".join(text for at, number, text in deltas if (at, number) == (choice, call))


@pytest.mark.parametrize(
    "text", [": keep-alive", "data: [DONE]", "event: ping", f"data: {json.dumps({**chunk({}), 'choices': []})}"]
)
def test_frames_without_content_have_none(text: str) -> None:
    assert [p for p in CHAT.reader({}, READING).read(parse_frame(f"{text}\n\n".encode())) if p.text] == []


@pytest.mark.parametrize(
    "data", ["{", "[]", "3", "[DONE] and more", '{"choices": [], "choices": []}', '{"choices": 3}']
)
def test_a_malformed_frame_is_refused(data: str) -> None:
    with pytest.raises(ContentError):
        CHAT.reader({}, READING).read(frame(data))


def test_the_text_of_an_error_frame_is_content() -> None:
    for one in (
        frame({"error": {"message": MARKER}}),
        frame({"object": "error", "message": MARKER}),
        Frame(b"", "error", json.dumps({"detail": MARKER})),
    ):
        pieces = CHAT.reader({}, READING).read(one)
        assert any(p.kind == "text" and MARKER in p.text for p in pieces)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(None, 1), (3, 3), (0, 1), ("x", 1), (10**9, 1)])
def test_a_refused_request_gets_a_reply_of_the_real_type(n: Any, expected: int) -> None:
    reply = ChatCompletion.model_validate(CHAT.refuse({"model": "m", "n": n}, "No."))
    assert [c.index for c in reply.choices] == list(range(expected))
    for choice in reply.choices:
        assert (choice.finish_reason, choice.message.content, choice.message.refusal) == ("content_filter", None, "No.")
        assert choice.message.tool_calls is None
    assert reply.model == "m"


def test_a_withheld_choice_leaves_nothing_of_what_it_said_and_the_rest_as_it_was() -> None:
    reply = json.loads(json.dumps(REPLY))
    del reply["citations"], reply["search_results"], reply["error"], reply["x_groq"]
    before = json.dumps(reply)
    out = CHAT.withhold(reply, [0], "No.")
    assert json.dumps(reply) == before
    assert out["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": None, "refusal": "No."},
        "finish_reason": "content_filter",
        "logprobs": None,
        "content_filter_results": reply["choices"][0]["content_filter_results"],
    }
    assert {**out, "choices": None} == {**reply, "choices": None}
    assert out["choices"][1] == reply["choices"][1]
    ChatCompletion.model_validate(CHAT.withhold(reply, [0, 1], "No."))


def test_what_stands_beside_every_answer_goes_with_a_withheld_one() -> None:
    out = CHAT.withhold({**REPLY, "allowed_thing": MARKER}, [1], "No.")
    assert not {"citations", "search_results", "error", "x_groq", "allowed_thing"} & set(out)


def chunks_of(stream: bytes) -> list[ChatCompletionChunk]:
    frames = list(FrameSplitter().feed(stream))
    assert frames[-1].data == "[DONE]"
    return [ChatCompletionChunk.model_validate_json(f.data or "") for f in frames[:-1]]


def test_a_stream_that_was_refused_at_once_is_whole() -> None:
    chunks = chunks_of(CHAT.reader({"model": "m", "n": 2}, READING).refuse("No."))
    assert len({c.id for c in chunks}) == 1
    for index in (0, 1):
        deltas = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert (deltas[0].delta.role, deltas[0].delta.refusal) == ("assistant", "No.")
        assert [d.finish_reason for d in deltas] == [None, "content_filter"]


def test_a_stream_that_was_stopped_ends_each_choice_that_had_not_ended() -> None:
    reader = CHAT.reader({"n": 3}, READING)
    out = [chunk({"role": "assistant", "content": "a"}, 0), chunk({"content": "b"}, 1), chunk({}, 1, "stop")]
    for one in out:
        reader.read(frame(one))
        reader.released(frame(one))
    reader.read(frame(chunk({}, 0, "stop", id="held back")))  # read, never released
    chunks = chunks_of(reader.refuse("No."))
    assert {(c.id, c.created, c.model) for c in chunks} == {("c", 7, "m")}
    ends = [
        (c.choices[0].index, c.choices[0].delta.role, c.choices[0].delta.refusal, c.choices[0].finish_reason)
        for c in chunks
    ]
    assert ends == [
        (0, None, "No.", None),
        (0, None, None, "content_filter"),
        (2, "assistant", "No.", None),
        (2, None, None, "content_filter"),
    ]


def test_a_stream_that_was_done_needs_no_end() -> None:
    reader = CHAT.reader({}, READING)
    for one in (frame(chunk({"content": "a"}, finish="stop")), frame("[DONE]")):
        reader.read(one)
        reader.released(one)
    assert reader.refuse("No.") == b""


def test_a_frame_that_could_not_be_read_may_be_released_all_the_same() -> None:
    reader = CHAT.reader({}, READING)
    bad = frame("{")
    with pytest.raises(ContentError):
        reader.read(bad)
    reader.released(bad)
    good = frame(chunk({"content": "a"}))
    reader.read(good)
    reader.released(good)
    assert {c.id for c in chunks_of(reader.refuse("No."))} == {"c"}


def test_the_client_itself_reads_a_refused_stream() -> None:
    first = frame(chunk({"role": "assistant", "content": "Once"}))
    reader = CHAT.reader({}, READING)
    reader.read(first)
    reader.released(first)
    body = first.raw + reader.refuse("No.")

    def answer(request: Any) -> Any:
        return http.Response(200, content=body, headers={"content-type": "text/event-stream"})

    http: Any = importlib.import_module("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")
    with (
        http.Client(transport=http.MockTransport(answer)) as transport,
        openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=transport) as client,
    ):
        completions = client.chat.completions
        chunks = list(completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True))
        said = [(c.choices[0].delta.content, c.choices[0].delta.refusal, c.choices[0].finish_reason) for c in chunks]
        assert said == [("Once", None, None), (None, "No.", None), (None, None, "content_filter")]
        # openai 1 kept the helper under `beta`.
        helper = completions if hasattr(completions, "stream") else client.beta.chat.completions
        with helper.stream(model="m", messages=[{"role": "user", "content": "hi"}]) as stream:
            # The client's own word for it, where it would parse the content.
            with pytest.raises(openai.ContentFilterFinishReasonError):
                stream.get_final_completion()
            message = stream.current_completion_snapshot.choices[0].message
    assert (message.content, message.refusal) == ("Once", "No.")


def test_the_parts_of_a_message_keep_their_kinds() -> None:
    (first, _) = CHAT.read_reply(REPLY, REQUEST, READING)
    kinds = [type(part) for part in first.messages[0].content]
    assert kinds.count(ReasoningPart) == 3
    assert kinds.count(RefusalPart) == 1
    assert kinds.count(ToolCallPart) == 2
