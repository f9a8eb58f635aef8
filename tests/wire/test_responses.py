"""The Responses API: nothing in a request or reply is passed by, and refusals are what the real client reads."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import (
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from guardrail_vl.turn import Turn, is_blank
from guardrail_vl.wire.base import Reading
from guardrail_vl.wire.responses import Responses, StoredResponse
from tests.wire.responses_bodies import (
    READING,
    Json,
    b64,
    data_url,
    function_tool,
    nodes,
    output,
    replaced,
    reply,
    request,
)

pytest.importorskip("openai.types.responses", reason="openai before 1.66 has no Responses API")
from openai.types.responses import Response

MARKER = "zqmarkerqz"
ENDPOINT = Responses()


def texts(parts: tuple[Part, ...]) -> Iterator[str]:
    for part in parts:
        match part:
            case ImagePart():
                continue
            case ToolCallPart():
                yield from (part.name, part.arguments)
            case ToolResultPart():
                yield from texts(part.content)
            case _:
                yield part.text


def judged(messages: tuple[Message, ...]) -> str:
    return "\n".join(text for message in messages for text in (message.name, *texts(message.content)))


def leaf_paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from leaf_paths(inner, (*path, name))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from leaf_paths(inner, (*path, position))


def planted(body: Json, path: tuple[str | int, ...]) -> Json:
    return replaced(body, path, MARKER)


def dotted(path: tuple[str | int, ...]) -> str:
    return ".".join("*" if isinstance(step, int) else step for step in path)


# ---- nothing is passed by ----------------------------------------------------------------------------------------

NOT_CONTENT_IN_REQUEST = {
    # which model, whose, how kept and billed
    "model", "metadata.team", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier",
    "truncation", "user", "include.*",
    # settings made of the API's own words
    "reasoning.effort", "reasoning.summary", "prompt_cache_options.mode", "prompt_cache_options.ttl",
    "moderation.model", "input.*.status", "input.*.phase", "input.*.content.*.detail", "input.*.output.*.detail",
    "input.*.content.*.prompt_cache_breakpoint.mode", "input.*.caller.type",
    # ids, and what only the provider can read
    "input.*.id", "input.*.call_id", "input.*.caller.caller_id", "input.*.content.*.annotations.*.file_id",
    "input.*.encrypted_content",
}  # fmt: skip

NOT_CONTENT_IN_REPLY = {
    "id", "object", "model", "status", "service_tier", "truncation", "user", "prompt_cache_key", "safety_identifier",
    "output.*.id", "output.*.call_id", "output.*.status", "output.*.phase", "output.*.encrypted_content",
    "output.*.content.*.annotations.*.file_id",
    "output.*.output_format", "output.*.quality", "output.*.size", "output.*.background", "output.*.action",
}  # fmt: skip


@pytest.mark.parametrize("path", list(leaf_paths(request())), ids=lambda path: ".".join(map(str, path)))
def test_every_string_of_a_request_is_judged_or_refused(path: tuple[str | int, ...]) -> None:
    try:
        turn = ENDPOINT.read_request(planted(request(), path), 0, READING)
    except ContentError:
        assert dotted(path) not in NOT_CONTENT_IN_REQUEST
        return
    assert (MARKER in judged(turn.messages)) is not (dotted(path) in NOT_CONTENT_IN_REQUEST)


@pytest.mark.parametrize("path", list(leaf_paths(reply())), ids=lambda path: ".".join(map(str, path)))
def test_every_string_of_a_reply_is_judged_or_refused(path: tuple[str | int, ...]) -> None:
    try:
        (candidate,) = ENDPOINT.read_reply(planted(reply(), path), request(), READING)
    except ContentError:
        assert dotted(path) not in NOT_CONTENT_IN_REPLY
        return
    assert (MARKER in judged(candidate.messages)) is not (dotted(path) in NOT_CONTENT_IN_REPLY)


@pytest.mark.parametrize(
    "where", ["", "input.1", "input.1.content.0", "input.2", "input.4", "input.5", "input.4.caller"]
)
def test_an_unknown_field_is_refused_by_name_unless_it_is_allowed(where: str) -> None:
    body = request()
    at: Any = body
    for step in filter(None, where.split(".")):
        at = at[int(step)] if step.isdigit() else at[step]
    at["novelty"] = "text"
    with pytest.raises(ContentError, match="novelty"):
        ENDPOINT.read_request(body, 0, READING)
    allowed = Reading(ImagePart.load, {"novelty"})
    assert ENDPOINT.read_request(body, 0, allowed) == ENDPOINT.read_request(request(), 0, READING)
    at["novelty"] = 7
    assert ENDPOINT.read_request(body, 0, READING) == ENDPOINT.read_request(request(), 0, READING)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(0, 1) | st.sampled_from(["", "x", "message", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from(list(nodes(request()))), ODD)
def test_an_odd_request_is_judged_or_a_content_error(path: tuple[str | int, ...], odd: object) -> None:
    with contextlib.suppress(ContentError):
        ENDPOINT.read_request(replaced(request(), path, odd), 0, READING)


@given(st.sampled_from(list(nodes(reply()))), ODD)
def test_an_odd_reply_is_judged_or_a_content_error(path: tuple[str | int, ...], odd: object) -> None:
    body = replaced(reply(), path, odd)
    with contextlib.suppress(ContentError):
        ENDPOINT.read_reply(body, request(), READING)
    assert ENDPOINT.withhold(body, {0}, "No.")["status"] == "incomplete"
    assert ENDPOINT.refuse(body, "No.")["status"] == "incomplete"


# ---- requests ----------------------------------------------------------------------------------------------------


def test_a_text_is_a_users_message_after_definitions_and_instructions() -> None:
    turn = ENDPOINT.read_request({"input": "hi", "instructions": "Be kind.", "tools": [function_tool()]}, 0, READING)
    assert [(m.role, m.text) for m in turn.messages[1:]] == [("system", "Be kind."), ("user", "hi")]
    assert turn.messages[0].role == "developer"
    assert '"Which city."' in turn.messages[0].text


def test_items_become_messages() -> None:
    messages = ENDPOINT.read_request(request(), 0, READING).messages[2:]
    assert [m.role for m in messages] == [
        "developer", "user", "assistant", "assistant", "assistant", "tool", "assistant", "tool",
    ]  # fmt: skip
    assert messages[1].images == (ImagePart.load(data_url()),)
    assert messages[2].content == (ReasoningPart("A summary."), ReasoningPart("A thought."))
    assert messages[3].content[-1] == RefusalPart("Not more.")
    assert messages[4].content == (ToolCallPart("outside.weather", '{"city": "Oslo"}', "call_0"),)
    assert messages[5].content == (ToolResultPart((TextPart("Rain."),), "call_0"),)
    assert messages[7].images == (ImagePart.load(data_url("blue")),)


def test_settings_without_words_of_their_own_make_no_message() -> None:
    plain = {"input": "hi", "text": {"format": {"type": "text"}, "verbosity": "low"}, "tool_choice": "auto"}
    assert ENDPOINT.read_request(plain, 0, READING) == Turn.of("hi")


@pytest.mark.parametrize("name", ["previous_response_id", "conversation", "prompt"])
def test_content_from_elsewhere_is_refused_unless_allowed(name: str) -> None:
    value: object = {"id": "x"} if name != "previous_response_id" else "x"
    with pytest.raises(ContentError, match=f"{name}.*allow_unguarded"):
        ENDPOINT.read_request({"input": "hi", name: value}, 0, READING)
    assert ENDPOINT.read_request({"input": "hi", name: value}, 0, Reading(ImagePart.load, {name})) == Turn.of("hi")


def test_the_variables_of_an_allowed_prompt_are_judged() -> None:
    variables = {"who": "someone", "photo": {"type": "input_image", "image_url": data_url(), "detail": "auto"}}
    body = {"prompt": {"id": "pmpt_1", "variables": variables}}
    turn = ENDPOINT.read_request(body, 0, Reading(ImagePart.load, {"prompt"}))
    assert turn.messages == (Message("user", (TextPart("someone"), ImagePart.load(data_url()))),)
    with pytest.raises(ContentError, match="input_file"):
        variables["photo"] = {"type": "input_file", "file_id": "file_1"}
        ENDPOINT.read_request(body, 0, Reading(ImagePart.load, {"prompt"}))


@pytest.mark.parametrize("item", [{"type": "item_reference", "id": "x"}, {"id": "x"}])
def test_an_item_reference_is_refused_unless_allowed(item: Json) -> None:
    items = [item, {"role": "user", "content": "hi"}]
    with pytest.raises(ContentError, match="item_reference"):
        ENDPOINT.read_request({"input": items}, 0, READING)
    assert ENDPOINT.read_request({"input": items}, 0, Reading(ImagePart.load, {"item_reference"})) == Turn.of("hi")


@pytest.mark.parametrize(
    "kind",
    [
        "web_search", "web_search_preview", "file_search", "code_interpreter", "computer", "computer_use_preview", "mcp",
        "image_generation", "local_shell", "shell", "apply_patch", "tool_search", "programmatic_tool_calling",
    ],
)  # fmt: skip
def test_a_hosted_tool_is_refused_unless_allowed(kind: str) -> None:
    body = {"input": "hi", "tools": [{"type": kind}]}
    with pytest.raises(ContentError, match=f"Hosted tool '{kind}'"):
        ENDPOINT.read_request(body, 0, READING)
    assert ENDPOINT.read_request(body, 0, Reading(ImagePart.load, {kind})) == Turn.of("hi")


@pytest.mark.parametrize("wants", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
def test_log_probabilities_are_refused_up_front(wants: Json) -> None:
    with pytest.raises(ContentError, match="logprobs"):
        ENDPOINT.read_request({"input": "hi", **wants}, 0, READING)
    ENDPOINT.read_request({"input": "hi", **wants}, 0, Reading(ImagePart.load, {"logprobs"}))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_file", "file_id": "f"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "input_image", "file_id": "f"},
        {"type": "input_image", "image_url": "/etc/hostname"},
        {"type": "input_image", "image_url": None},
        {"text": "no type"},
        "bare",
    ],
)
def test_a_part_that_cant_be_judged_is_refused(part: object) -> None:
    with pytest.raises(ContentError):
        ENDPOINT.read_request({"input": [{"role": "user", "content": [part]}]}, 0, READING)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"input": None}, {"input": []}, {"input": 7}, {"input": [7]}, {"input": {"role": "user"}},
        {"input": [{"role": "tool", "content": "x"}]}, {"input": [{"role": ["user"], "content": "x"}]},
        {"input": [{"type": {"a": 1}, "role": "user", "content": "x"}]}, {"input": "hi", "tools": ["x"]},
        {"input": "hi", "tools": [{"type": ["function"]}]}, {"input": "hi", "reasoning": "free text"},
        {"input": "hi", "instructions": ["x"]}, {"input": "hi", "prompt": "x"},
        {"input": [{"type": "function_call", "name": 3, "arguments": "{}"}]},
    ],
)  # fmt: skip
def test_a_malformed_request_is_a_content_error(body: Json) -> None:
    with pytest.raises(ContentError):
        ENDPOINT.read_request(body, 0, Reading(ImagePart.load, {"prompt"}))


# ---- replies -----------------------------------------------------------------------------------------------------


def test_a_reply_is_one_candidate_with_its_whole_output() -> None:
    (candidate,) = ENDPOINT.read_reply(reply(), request(), READING)
    (message,) = candidate.messages
    assert candidate.key == 0
    assert message.content == (
        ReasoningPart("They ask for two cities."),
        ReasoningPart("Two calls then."),
        TextPart("I will look it up. One moment."),
        TextPart("A page\nhttps://a.example/x"),
        TextPart("notes.txt"),
        RefusalPart("Not the third."),
        ToolCallPart("weather", '{"city": "Oslo"}', "call_2"),
        ToolCallPart("outside.weather", '{"city": "Rome"}', "call_3"),
        ToolCallPart("shout", "hello there", "call_4"),
        TextPart("A green flag."),
        ImagePart.load(data_url("green")),
    )


def test_what_a_server_fills_in_by_default_is_no_content() -> None:
    asked = {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": {"title": "T"}}]}
    filled = {**asked["tools"][0], "strict": True, "description": None}  # type: ignore[dict-item]
    body = {**reply(asked), "output": [], "tools": [filled]}
    (candidate,) = ENDPOINT.read_reply(body, asked, READING)
    assert candidate.messages == (Message("assistant", ()),)


def test_what_a_reply_repeats_of_an_unknown_request_is_judged() -> None:
    (candidate,) = StoredResponse().read_reply({**reply(), "output": []}, {}, READING)
    said = judged(candidate.messages)
    assert "Be brief." in said
    assert "Which city." in said
    items = [{"role": "user", "content": [{"type": "input_image", "image_url": data_url(), "detail": "auto"}]}]
    (candidate,) = StoredResponse().read_reply({**reply({}), "output": [], "instructions": items}, {}, READING)
    assert candidate.messages[0].images == (ImagePart.load(data_url()),)


def test_a_response_under_way_says_nothing_yet() -> None:
    (candidate,) = ENDPOINT.read_reply({**reply(), "status": "queued", "output": []}, request(), READING)
    assert is_blank(candidate.messages)


def test_an_error_is_content() -> None:
    body = {**reply(), "status": "failed", "output": [], "error": {"code": "server_error", "message": "So sorry."}}
    (candidate,) = ENDPOINT.read_reply(body, request(), READING)
    assert "So sorry." in judged(candidate.messages)


def test_why_a_response_is_incomplete_is_content_only_if_it_is_not_the_apis_own_word() -> None:
    body = {**reply(), "status": "incomplete", "output": [], "incomplete_details": {"reason": "max_output_tokens"}}
    assert is_blank(ENDPOINT.read_reply(body, request(), READING)[0].messages)
    body["incomplete_details"] = {"reason": "some words"}
    assert "some words" in judged(ENDPOINT.read_reply(body, request(), READING)[0].messages)


HOSTED_ITEMS: list[tuple[str, Json]] = [
    ("web_search_preview", {"type": "web_search_call", "id": "x", "action": {"type": "search", "query": "q"}}),
    ("file_search", {"type": "file_search_call", "id": "x", "queries": ["q"]}),
    ("code_interpreter", {"type": "code_interpreter_call", "id": "x", "code": "q"}),
    ("computer", {"type": "computer_call", "id": "x", "action": {"type": "type", "text": "q"}}),
    ("mcp", {"type": "mcp_call", "id": "x", "name": "n", "arguments": "q"}),
    ("mcp", {"type": "mcp_list_tools", "id": "x", "tools": [{"name": "q"}]}),
    ("shell", {"type": "shell_call_output", "id": "x", "output": [{"stdout": "q"}]}),
    ("programmatic_tool_calling", {"type": "program", "id": "x", "code": "q"}),
    ("compaction", {"type": "compaction", "id": "x", "encrypted_content": "q"}),
    ("additional_tools", {"type": "additional_tools", "id": "x", "role": "developer", "tools": []}),
    ("never_heard_of", {"type": "never_heard_of", "id": "x"}),
]


@pytest.mark.parametrize(("allow", "item"), HOSTED_ITEMS, ids=[item["type"] for _, item in HOSTED_ITEMS])
def test_a_hosted_tools_item_is_refused_unless_its_tool_is_allowed(allow: str, item: Json) -> None:
    body = {**reply(), "output": [item, *output()]}
    with pytest.raises(ContentError, match=str(item["type"])):
        ENDPOINT.read_reply(body, request(), READING)
    for name in (allow, item["type"]):
        allowed = Reading(ImagePart.load, {name})
        assert ENDPOINT.read_reply(body, request(), allowed) == ENDPOINT.read_reply(reply(), request(), READING)
    with pytest.raises(ContentError, match=str(item["type"])):
        ENDPOINT.read_request({"input": [item]}, 0, READING)


def test_a_generated_image_sent_back_is_read_only_if_its_tool_is_allowed() -> None:
    items = [{"role": "user", "content": "again"}, {"type": "image_generation_call", "id": "x", "result": b64()}]
    with pytest.raises(ContentError, match="image_generation"):
        ENDPOINT.read_request({"input": items}, 0, READING)
    turn = ENDPOINT.read_request({"input": items}, 0, Reading(ImagePart.load, {"image_generation"}))
    assert turn.messages[-1] == Message("assistant", (ImagePart.load(data_url()),))


@pytest.mark.parametrize(
    "item",
    [
        {"type": "message", "role": "user", "content": "x"},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "x", "logprobs": [{}, 1]}],
        },
        {"type": "image_generation_call", "result": "no base64 at all!"},
        {"type": "image_generation_call", "result": {"a": 1}},
        {"type": "image_generation_call", "result": "", "svg_usage": {"text": "x"}},
        {"type": "message", "role": "assistant", "content": {"type": "output_text"}},
    ],
)
def test_a_reply_that_cant_be_judged_is_refused(item: Json) -> None:
    with pytest.raises(ContentError):
        ENDPOINT.read_reply({**reply(), "output": [item]}, request(), READING)


def test_a_tools_output_and_a_failed_moderation_in_a_reply_are_judged() -> None:
    item = {"type": "function_call_output", "id": "x", "call_id": "c", "name": "tool_name", "output": "tool said"}
    moderation = {"input": {"type": "error", "code": "c", "message": "did not work"}, "output": {"type": "none"}}
    (candidate,) = ENDPOINT.read_reply({**reply(), "output": [item], "moderation": moderation}, request(), READING)
    assert judged(candidate.messages).split() == ["tool_name", "tool", "said", "error", "c", "did", "not", "work"]


# ---- refusals ----------------------------------------------------------------------------------------------------


def check_refusal(body: Json, text: str) -> Response:
    parsed = Response.model_validate(body)
    assert parsed.status == "incomplete"
    assert parsed.incomplete_details is not None
    assert parsed.incomplete_details.reason == "content_filter"
    assert [item.to_dict()["content"] for item in parsed.output] == [[{"type": "refusal", "refusal": text}]]
    assert re.fullmatch(r"msg_\w+", str(parsed.output[0].id))
    return parsed


def test_a_refusal_is_a_response_that_the_client_reads() -> None:
    parsed = check_refusal(ENDPOINT.refuse(request(), "No."), "No.")
    assert parsed.model == "gpt-x"
    assert parsed.id != ENDPOINT.refuse(request(), "No.")["id"]
    check_refusal(StoredResponse().refuse({}, "No."), "No.")


def test_withholding_leaves_nothing_of_what_was_said() -> None:
    body = reply()
    for path in leaf_paths(body):
        if dotted(path) not in NOT_CONTENT_IN_REPLY:
            body = planted(body, path)
    before = copy.deepcopy(body)
    out = ENDPOINT.withhold(body, {0}, "No.")
    parsed = check_refusal(out, "No.")
    assert MARKER not in str(out)
    assert (parsed.id, parsed.model, parsed.created_at) == ("resp_1", "gpt-x-2026", 1.0)
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == 2
    assert body == before
    assert ENDPOINT.withhold(body, (), "No.") == before


def test_what_is_refused_reads_as_a_refusal() -> None:
    (candidate,) = ENDPOINT.read_reply(ENDPOINT.refuse(request(), "No."), request(), READING)
    assert candidate.messages == (Message("assistant", (RefusalPart("No."),)),)


def test_a_stored_response_has_no_prompt() -> None:
    endpoint = StoredResponse()
    assert endpoint.prompts({}) == 0
    assert [endpoint.streams({"stream": value}) for value in ("true", True, "false", None)] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(ContentError):
        endpoint.read_request({}, 0, READING)


def test_the_fixtures_are_what_the_api_writes() -> None:
    Response.model_validate(reply())
