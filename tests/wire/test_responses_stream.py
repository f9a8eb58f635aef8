"""Event streams of the Responses API: every word is judged once, and what follows a block is read by the real client."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import re
from collections.abc import Sequence
from typing import Any, get_args

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.errors import ContentError
from guardrail_vl.parts import ImagePart, TextPart, ToolCallPart
from guardrail_vl.streaming import HoldBack, Piece, Streaming
from guardrail_vl.turn import Message, Turn
from guardrail_vl.wire.base import Reading, StreamReader
from guardrail_vl.wire.responses import Responses, StoredResponse
from guardrail_vl.wire.sse import Frame, FrameSplitter, parse_frame
from tests.wire.responses_bodies import READING, Json, b64, data_url, events, frame, nodes, replaced, reply, request
from tests.wire.test_responses import HOSTED_ITEMS, MARKER, ODD, dotted, judged, leaf_paths, planted

pytest.importorskip("openai.types.responses", reason="openai before 1.66 has no Responses API")
from openai.types.responses import Response, ResponseStreamEvent

# openai 3 sits on httpx2, the majors before it on httpx.
http: Any = importlib.import_module("httpx2" if int(openai.__version__.split(".")[0]) > 2 else "httpx")

ENDPOINT = Responses()
EVENTS = events()
ASKED = Turn.of("hi").messages


def reader(reading: Reading = READING) -> StreamReader:
    return ENDPOINT.reader(request(), reading)


def read(told: Sequence[Json], reading: Reading = READING) -> list[Piece]:
    reads = reader(reading)
    return [piece for event in told for piece in reads.read(frame(event))]


def turn_of(told: Sequence[Json]) -> Turn:
    """What is judged at the end of a stream."""
    hold: HoldBack[Frame] = HoldBack(ASKED, Streaming("full"))
    reads = reader()
    for event in told:
        hold.feed(frame(event), reads.read(frame(event)), 0.0)
    hold.end()
    (check,) = hold.checks(0.0)
    return check.turn()


def said(pieces: Sequence[Piece]) -> list[str]:
    """What all pieces say, joined by place."""
    out: dict[tuple[str, int], tuple[str, str]] = {}
    for piece in pieces:
        name, text = out.get((piece.kind, piece.index), ("", ""))
        out[piece.kind, piece.index] = (name + piece.name, text + piece.text)
    return [name + text for name, text in out.values()]


# ---- reading -----------------------------------------------------------------------------------------------------


def test_the_fixtures_are_what_the_api_writes() -> None:
    known = {
        get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(get_args(ResponseStreamEvent)[0])
    }
    for event in EVENTS:
        if event["type"] != "keepalive":
            known[event["type"]].model_validate(event)


def test_a_stream_is_judged_like_the_reply_that_it_ends_in() -> None:
    (candidate,) = ENDPOINT.read_reply(reply(), request(), READING)
    streamed = turn_of([event for event in EVENTS if "partial_image" not in event["type"]])
    assert streamed == Turn((*ASKED, *candidate.messages))


def test_nothing_is_said_twice() -> None:
    (candidate,) = ENDPOINT.read_reply(reply(), request(), READING)
    pieces = read(EVENTS)
    assert len("".join(said(pieces))) == len(judged(candidate.messages)) - judged(candidate.messages).count("\n") + 1
    assert [piece.image for piece in pieces if piece.image] == [
        ImagePart.load(data_url(c)) for c in ("yellow", "green")
    ]
    assert [piece.done for piece in pieces if piece.kind == "tool_call"].count(True) == 3
    assert read(EVENTS[-1:]) != []
    assert not [piece for event in EVENTS[:3] for piece in read([event])]


def test_a_call_is_held_until_its_arguments_are_whole() -> None:
    pieces = [piece for piece in read(EVENTS) if piece.kind == "tool_call" and piece.id == "call_2"]
    place = pieces[0].index
    call = [piece for piece in read(EVENTS) if piece.kind == "tool_call" and piece.index == place]
    assert [(piece.name, piece.text, piece.done) for piece in call] == [
        ("weather", "", False),
        ("", '{"city":', False),
        ("", ' "Oslo"}', False),
        ("", "", True),
    ]


def test_a_call_told_only_at_the_end_is_done_at_once() -> None:
    item = reply()["output"][2]
    (piece,) = read([{"type": "response.output_item.done", "output_index": 0, "item": item}])
    assert piece == Piece("tool_call", item["arguments"], index=piece.index, name="weather", id="call_2", done=True)


def test_what_is_said_otherwise_the_second_time_is_new() -> None:
    told = copy.deepcopy(EVENTS)
    told[-1]["response"]["output"][1]["content"][0]["text"] = "Something else."
    told[-1]["response"]["output"][2]["arguments"] = '{"city": "Bonn"}'
    told[-1]["response"]["output"][3]["name"] = "erase"
    *_, message = turn_of(told).messages
    assert TextPart("I will look it up. One moment.") in message.content
    assert TextPart("Something else.") in message.content
    assert ToolCallPart("weather", '{"city": "Oslo"}', "call_2") in message.content
    assert ToolCallPart("weather", '{"city": "Bonn"}', "call_2") in message.content
    assert ToolCallPart("outside.erase", '{"city": "Rome"}', "call_3") in message.content


def test_what_is_told_only_in_part_is_completed() -> None:
    told = [event for event in EVENTS if not event["type"].endswith(".delta") or event["delta"] == "Two cal"]
    (candidate,) = ENDPOINT.read_reply(reply(), request(), READING)
    assert set(candidate.messages[0].content) <= set(turn_of(told).messages[-1].content)


def test_arguments_after_the_end_of_a_call_are_another_call() -> None:
    done = next(event for event in EVENTS if event["type"] == "response.function_call_arguments.done")
    late = {"type": "response.function_call_arguments.delta", "delta": "more", "output_index": done["output_index"]}
    pieces = read([*EVENTS[: EVENTS.index(done) + 1], late])
    assert pieces[-1].text == "more"
    assert pieces[-1].index not in {piece.index for piece in pieces[:-1]}


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_whatever_is_told_in_whatever_order_is_judged(told: list[Json]) -> None:
    found = said(read(told))
    for event in told:
        for path in leaf_paths(event):
            value: Any = event
            for step in path:
                value = value[step]
            content = ("text", "refusal", "title", "revised_prompt", "arguments", "input", "delta")
            if value and path[-1] in content and (*path, "")[1] not in ("text", "tools"):
                assert any(value in text for text in found)


NOT_CONTENT = {
    "item_id", "obfuscation",
    "item.id", "item.call_id", "item.status", "item.phase", "item.encrypted_content",
    "item.output_format", "item.quality", "item.size", "item.background", "item.action",
    "item.content.*.annotations.*.file_id", "part.annotations.*.file_id", "annotation.file_id", "output_format",
    "response.id", "response.object", "response.model", "response.status", "response.service_tier",
    "response.truncation", "response.user", "response.prompt_cache_key", "response.safety_identifier",
    "response.output.*.id", "response.output.*.call_id", "response.output.*.status", "response.output.*.phase",
    "response.output.*.encrypted_content", "response.output.*.content.*.annotations.*.file_id",
    "response.output.*.output_format", "response.output.*.quality", "response.output.*.size",
    "response.output.*.background", "response.output.*.action",
}  # fmt: skip


@pytest.mark.parametrize("number", range(len(EVENTS)), ids=[f"{n}-{event['type']}" for n, event in enumerate(EVENTS)])
def test_every_string_of_an_event_is_judged_or_refused(number: int) -> None:
    for path in leaf_paths(EVENTS[number]):
        told = [*EVENTS[:number], planted(EVENTS[number], path), *EVENTS[number + 1 :]]
        try:
            found = MARKER in "\n".join(said(read(told)))
        except ContentError:
            assert dotted(path) not in NOT_CONTENT
        else:
            assert found is not (dotted(path) in NOT_CONTENT), path


@pytest.mark.parametrize("number", range(len(EVENTS)), ids=[f"{n}-{event['type']}" for n, event in enumerate(EVENTS)])
def test_an_unknown_field_of_an_event_is_refused_by_name(number: int) -> None:
    told = {**EVENTS[number], "novelty": "text"}
    with pytest.raises(ContentError, match="novelty"):
        read([*EVENTS[:number], told])
    assert read([told], Reading(ImagePart.load, {"novelty"})) == read([EVENTS[number]])


@pytest.mark.parametrize(
    "told",
    [
        {"type": "error", "code": "server_error", "message": "It broke.", "param": None, "sequence_number": 3},
        {"type": "error", "error": {"type": "server_error", "message": "It broke."}},
        {"type": "response.failed", "response": {**reply(), "output": [], "error": {"message": "It broke."}}},
    ],
)
def test_errors_are_content(told: Json) -> None:
    assert "It broke." in "".join(said(read([told])))
    bare = {name: value for name, value in told.items() if name != "type"}
    if "error" in bare:
        (piece,) = reader().read(parse_frame(f"data: {json.dumps(bare)}\n\n".encode()))
        assert "It broke." in piece.text


@pytest.mark.parametrize(
    ("kind", "allow"),
    [
        ("response.web_search_call.searching", "web_search"),
        ("response.mcp_call_arguments.delta", "mcp"),
        ("response.code_interpreter_call_code.delta", "code_interpreter"),
        ("response.shell_call_output_content.delta", "shell"),
        ("response.compaction.compacting", "compaction"),
        ("response.audio.delta", "response.audio.delta"),
        ("response.novelty.delta", "response.novelty.delta"),
        ("novelty", "novelty"),
    ],
)
def test_an_unknown_event_is_refused_by_name_unless_allowed(kind: str, allow: str) -> None:
    told = {"type": kind, "delta": "text", "output_index": 0, "item_id": "x", "sequence_number": 4}
    with pytest.raises(ContentError, match=re.escape(kind.removeprefix("response."))):
        read([told])
    with pytest.raises(ContentError):
        read([told], Reading(ImagePart.load, {"image_generation"}))
    assert read([told], Reading(ImagePart.load, {allow})) == []


@pytest.mark.parametrize(("allow", "item"), HOSTED_ITEMS, ids=[item["type"] for _, item in HOSTED_ITEMS])
def test_a_hosted_tools_item_is_refused_unless_allowed(allow: str, item: Json) -> None:
    told = {"type": "response.output_item.added", "output_index": 0, "item": item}
    with pytest.raises(ContentError):
        read([told])
    assert read([told], Reading(ImagePart.load, {allow})) == []


@pytest.mark.parametrize(
    "data",
    [
        "{", "[]", "7", "{}", '{"type": 3}', '{"type": "response.output_text.delta", "delta": 3}',
        '{"type": "response.output_text.delta", "delta": "x", "output_index": "0"}',
        '{"type": "response.output_text.delta", "delta": "x", "content_index": -1}',
        '{"type": "response.output_text.delta", "delta": "x", "delta": "y"}',
        '{"type": "response.output_text.delta", "delta": "x", "logprobs": [{"token": "y"}]}',
        '{"type": "response.output_item.done", "item": null}', '{"type": "response.created", "response": []}',
        '{"type": "response.output_item.done", "item": {"type": ["message"]}}',
        '{"type": "response.content_part.done", "part": {"type": "input_file"}}',
        '{"type": "response.output_text.annotation.added", "annotation": {"type": "novelty"}}',
        '{"type": "response.image_generation_call.partial_image", "partial_image_b64": "no base64!"}',
    ],
)  # fmt: skip
def test_a_frame_that_cant_be_read_is_a_content_error(data: str) -> None:
    with pytest.raises(ContentError):
        reader().read(parse_frame(f"data: {data}\n\n".encode()))


def test_frames_without_an_event_have_no_content() -> None:
    reads = reader()
    for raw in (b": keep-alive\n\n", b"data: [DONE]\n\n", b"event: ping\n\n"):
        told = parse_frame(raw)
        assert reads.read(told) == ()
        reads.released(told)


def test_an_image_is_judged_once_wherever_it_stands() -> None:
    partial = {"type": "response.image_generation_call.partial_image", "partial_image_b64": b64(), "output_index": 0}
    assert len(read([partial, {**partial, "output_index": 1}, {**partial, "partial_image_b64": b64("blue")}])) == 2


def test_a_stream_that_is_resumed_is_judged_by_its_end() -> None:
    reads = StoredResponse().reader({}, READING)
    pieces = [piece for event in EVENTS[-8:] for piece in reads.read(frame(event))]
    assert "I will look it up. One moment." in said(pieces)


# ---- the end after a block ---------------------------------------------------------------------------------------


def stopped_after(count: int, told: Sequence[Json] = EVENTS) -> bytes:
    """What a caller gets when all is read, and this many frames are released before a block."""
    reads = reader()
    frames = [frame(event) for event in told]
    for one in frames:
        reads.read(one)
    for one in frames[:count]:
        reads.released(one)
    return b"".join(one.raw for one in frames[:count]) + reads.refuse("No.")


def parsed(body: bytes) -> list[Json]:
    splitter = FrameSplitter()
    return [json.loads(one.data or "") for one in (*splitter.feed(body), *splitter.flush())]


def client(body: bytes) -> openai.OpenAI:
    def answer(_: Any) -> Any:
        return http.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    return openai.OpenAI(
        api_key="x", base_url="http://upstream/v1", http_client=http.Client(transport=http.MockTransport(answer))
    )


PREFIXES = list(range(len(EVENTS)))


@pytest.mark.parametrize("count", PREFIXES)
def test_the_clients_own_helper_reads_the_end_after_a_block(count: int) -> None:
    # A keep-alive is no event that the helper of every major knows.
    body = stopped_after(count).replace(frame(EVENTS[2]).raw, b"")
    with client(body).responses.stream(model="gpt-x", input="hi") as stream:
        seen = list(stream)
    assert [event.type for event in seen[-3:]] == [
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert seen[-1].type == "response.incomplete"
    check_end(seen[-1].response)


def check_end(last: Any) -> None:
    assert isinstance(last, Response)
    assert last.incomplete_details is not None
    assert (last.status, last.incomplete_details.reason) == ("incomplete", "content_filter")
    assert last.output[-1].to_dict()["content"] == [{"type": "refusal", "refusal": "No."}]


@pytest.mark.parametrize("count", PREFIXES)
def test_a_plain_stream_is_whole_and_numbered_after_a_block(count: int) -> None:
    body = stopped_after(count)
    seen = list(client(body).responses.create(model="gpt-x", input="hi", stream=True))
    check_end(seen[-1].response)  # type: ignore[union-attr]
    numbers = [event["sequence_number"] for event in parsed(body)]
    assert numbers == list(range(len(numbers)))
    assert len({event["response"]["id"] for event in parsed(body) if "response" in event}) == 1


@pytest.mark.parametrize("count", PREFIXES)
def test_the_response_at_the_end_holds_what_was_released_and_no_more(count: int) -> None:
    body = parsed(stopped_after(count))
    *output, refusal = body[-1]["response"]["output"]
    Response.model_validate(body[-1]["response"])
    out = read([*EVENTS[:count]])
    again = read(
        [{"type": "response.output_item.done", "output_index": at, "item": item} for at, item in enumerate(output)]
    )
    assert sorted(filter(None, said([p for p in again if not p.image]))) == sorted(
        said([p for p in out if not p.image])
    )
    assert refusal["content"] == [{"type": "refusal", "refusal": "No."}]
    # Every item that was begun has ended, and says at its end what the response says of it.
    begun = {event["output_index"] for event in body if event["type"] == "response.output_item.added"}
    ended = {event["output_index"]: event["item"] for event in body if event["type"] == "response.output_item.done"}
    assert begun == set(ended)
    assert [ended[at] for at in sorted(ended)] == [*output, refusal]


def test_the_events_after_a_block_are_what_the_api_writes() -> None:
    known = {
        get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(get_args(ResponseStreamEvent)[0])
    }
    for count in PREFIXES:
        for event in parsed(stopped_after(count)):
            if event["type"] != "keepalive":
                known[event["type"]].model_validate(event)


def test_nothing_unreleased_is_in_the_end() -> None:
    told = copy.deepcopy(EVENTS)
    for event in told[3:]:
        for path in leaf_paths(event):
            if path[-1] in ("text", "delta", "refusal", "arguments", "input", "title", "url", "revised_prompt"):
                event.update(planted(event, path))
    assert MARKER in str(told)
    assert MARKER not in stopped_after(3, told).decode()
    assert MARKER not in stopped_after(0, told).decode()


def test_a_refused_stream_keeps_the_id_and_model_of_upstream() -> None:
    whole = parsed(stopped_after(0))
    assert whole[0]["type"] == "response.created"
    assert (whole[-1]["response"]["id"], whole[-1]["response"]["model"]) == ("resp_1", "gpt-x-2026")
    unread = parsed(reader().refuse("No."))
    assert unread[-1]["response"]["model"] == "gpt-x"


def test_a_stream_that_has_ended_gets_no_second_end() -> None:
    reads = reader()
    for event in EVENTS:
        reads.read(frame(event))
        reads.released(frame(event))
    assert reads.refuse("No.") == b""


def test_a_frame_that_could_not_be_read_does_not_harm_the_end() -> None:
    reads = reader(Reading(ImagePart.load, {"web_search"}))
    told = [frame(event) for event in EVENTS[:3]]
    odd = [
        parse_frame(b"data: {\n\n"),
        frame({"type": "novelty", "output_index": [], "sequence_number": "x"}),
        frame(
            {"type": "response.output_item.added", "output_index": 0, "item": {"type": "web_search_call", "content": 3}}
        ),
        frame({"type": "response.output_text.delta", "output_index": 9, "content_index": 5, "delta": None}),
        frame({"type": "response.output_text.done", "output_index": 0, "text": None}),
        frame({"type": "response.output_text.annotation.added", "output_index": 0, "annotation": None}),
    ]
    for one in (*told, *odd):
        with contextlib.suppress(ContentError):
            reads.read(one)
    for one in (*told, *odd):
        reads.released(one)
    assert parsed(reads.refuse("No."))[-1]["type"] == "response.incomplete"


@given(st.data(), st.integers(0, len(EVENTS) - 2), ODD, st.integers(0, len(EVENTS)))
def test_an_odd_event_is_judged_or_a_content_error_and_the_stream_ends(
    data: st.DataObject, number: int, odd: object, count: int
) -> None:
    path = data.draw(st.sampled_from(list(nodes(EVENTS[number]))))
    told = [*EVENTS[:number], replaced(EVENTS[number], path, odd), *EVENTS[number + 1 : -1]]
    # By hand: `frame` would name the event as it was.
    frames = [parse_frame(f"data: {json.dumps(event)}\n\n".encode()) for event in told]
    reads = reader()
    for one in frames:
        with contextlib.suppress(ContentError):
            reads.read(one)
    for one in frames[:count]:
        reads.released(one)
    end = reads.refuse("No.")
    assert not end or parsed(end)[-1]["type"] == "response.incomplete"


def test_a_refused_stream_reads_as_a_refusal() -> None:
    hold: HoldBack[Frame] = HoldBack(ASKED, Streaming("full"))
    reads = reader()
    for event in parsed(stopped_after(0)):
        hold.feed(frame(event), reads.read(frame(event)), 0.0)
    hold.end()
    (check,) = hold.checks(0.0)
    assert judged(check.turn().messages[1:]) == "\nNo."
    assert check.turn().messages[-1] == Message(
        "assistant", ENDPOINT.read_reply(ENDPOINT.refuse({}, "No."), {}, READING)[0].messages[0].content
    )
