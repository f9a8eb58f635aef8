"""Probes of event streams: what is delivered was judged, however it was cut, on whatever channel it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from guardrail_vl.leakcheck._prompts import BAD
from guardrail_vl.leakcheck._replies import ARGUMENTS
from guardrail_vl.leakcheck.content import HALVES, MARK, RED, SAFE, WIDE, data_url
from guardrail_vl.leakcheck.probe import (
    ASK,
    CUSTOM_TOOL,
    RESPONSE_TOOL,
    STRICT_TOOL,
    TOOL,
    Probe,
    Setup,
    Surface,
    chat,
    inputs,
    kept_in,
    stopped,
    withheld,
)
from guardrail_vl.leakcheck.script import (
    MODEL,
    Reply,
    call_chunks,
    call_item,
    chunk,
    chunks,
    events,
    interleaved,
    message_item,
    reasoning_item,
    response_events,
    text_chunks,
    tokens,
)
from guardrail_vl.leakcheck.seen import Expect

LONG: Final = " ".join([SAFE] * 6)


def _stream(
    id: str,
    title: str,
    reply: Reply | Sequence[Mapping[str, Any] | bytes],
    *,
    surface: Surface = "chat.stream",
    request: Mapping[str, Any] | None = None,
    rows: tuple[int, ...] = (),
    setup: Setup = "plain",
    expect: Expect | None = None,
) -> Probe:
    responses = surface.startswith("responses")
    if request is None:
        request = inputs() if responses else chat()
    if not isinstance(reply, Reply):
        reply = events(reply, named=responses, done=not responses)
    return Probe(f"stream-{id}", title, surface, request, (reply,), expect or stopped(), rows, setup)


def letters(text: str, count: int = 1) -> list[str]:
    """The text, so many letters at a time."""
    return [text[at : at + count] for at in range(0, len(text), count)]


_FOURTH: Final = [*tokens(SAFE)[:3], f"{MARK} ", *tokens(SAFE)[3:]]
_WIDE_CHUNKS: Final = chunks(tokens(f"{SAFE} Then {WIDE} again. {SAFE}"))
_ERROR: Final = {"error": {"message": BAD, "type": "server_error", "code": "broken"}}

CHAT_STREAMS: Final = (
    _stream("fourth-chunk", "The fourth of many chunks is harmful", chunks(_FOURTH), rows=(1, 12, 18)),
    _stream("whole", "One chunk holds it all", chunks([f"{SAFE} {BAD}"]), rows=(1,)),
    _stream("late", "Harmful after several harmless sentences", chunks(tokens(f"{LONG} {BAD} {LONG}")), rows=(1, 12)),
    _stream("last-token", "The very last token is harmful", chunks([*tokens(LONG), f" {MARK}"]), rows=(21,)),
    _stream("no-full-stop", "A harmful tail without a full stop", chunks(tokens(f"{SAFE} and then {MARK} it goes on")),
            rows=(21,)),
    _stream("with-finish", "Harmful text in the chunk that finishes",
            [*chunks(tokens(SAFE), finish=None), chunk({"content": f" {MARK}"}, finish="stop")]),
    _stream("after-finish", "Harmful text after the finish", [*chunks(tokens(SAFE)), chunk({"content": MARK})],
            expect=withheld()),
    _stream("split-word", "The word comes letter by letter", chunks(letters(f"{SAFE} {BAD}")), rows=(20,)),
    _stream("split-sentence", "A harmful sentence split over chunks", chunks(letters(f"{BAD} {SAFE}", 5)), rows=(20,)),
    _stream("split-wide", "A word of wide letters, cut in the middle of letters", events(_WIDE_CHUNKS, cut=7)),
    _stream("split-bytes", "Frames cut at any byte", events(chunks(_FOURTH), cut=13)),
    _stream("two-windows", "Harmful only across two windows",
            chunks(tokens(f"{HALVES[0]} {LONG} {LONG} {HALVES[1]} {SAFE}"))),
    _stream("slow", "A slow stream, harmful at its end", events(chunks(letters(f"{SAFE} {BAD}", 9)), delay=0.06)),
    _stream("choice-second", "The second choice is harmful",
            interleaved(chunks(tokens(SAFE)), chunks(tokens(f"{SAFE} {BAD}"), index=1)), request=chat(n=2),
            rows=(2,),
         expect=withheld()),
    _stream("tool-arguments", "The arguments of a tool call are harmful", call_chunks(letters(ARGUMENTS, 6)),
            request=chat(tools=[TOOL]), rows=(3, 14, 18)),
    _stream("tool-second", "Two tool calls interleaved, the second harmful",
            [*interleaved(call_chunks(['{"command":', ' "ls"}'], finish=False),
                          call_chunks(letters(ARGUMENTS, 9), number=1, finish=False)),
             chunk({}, finish="tool_calls")], request=chat(tools=[TOOL]), rows=(3, 14)),
    _stream("tool-never-ends", "A tool call in a stream that ends without a finish",
            call_chunks(letters(ARGUMENTS, 6), finish=False), request=chat(tools=[TOOL]), rows=(3,),
            expect=kept_in()),
    _stream("function-call", "The arguments of an old-style function call are harmful",
            [chunk({"role": "assistant", "content": None, "function_call": {"name": "run", "arguments": ""}}),
             *(chunk({"function_call": {"arguments": piece}}) for piece in letters(ARGUMENTS, 8)),
             chunk({}, finish="function_call")], rows=(3,),
         expect=withheld()),
    _stream("reasoning", "The reasoning is harmful",
            [*chunks(tokens(BAD), key="reasoning_content", finish=None), *chunks(tokens(SAFE))],
         expect=withheld()),
    _stream("refusal-text", "The model's refusal is harmful", chunks(tokens(BAD), key="refusal"),
         expect=withheld()),
    _stream("image", "A picture comes back",
            [*chunks(tokens(SAFE), finish=None),
             chunk({"images": [{"type": "image_url", "image_url": {"url": data_url(RED)}}]}, finish="stop")],
            expect=withheld()),
    _stream("field-unknown", "An unknown field of a chunk is harmful",
            [*chunks(tokens(SAFE), finish=None), chunk({"thoughts": BAD}, finish="stop")], expect=withheld()),
    _stream("logprobs", "The log-probabilities tell what the text doesn't",
            [*chunks(tokens(SAFE), finish=None),
             {**chunk({}, finish="stop"), "choices": [{
                 "index": 0, "delta": {}, "finish_reason": "stop", "logprobs": {
                     "content": [{"token": MARK, "logprob": -0.1, "bytes": None, "top_logprobs": []}],
                     "refusal": None}}]}], request=chat(logprobs=True), expect=withheld()),
    _stream("helper", "A harmful stream through the stream helper", chunks(tokens(f"{SAFE} {BAD}")),
            surface="chat.stream_helper", rows=(6, 15)),
    _stream("helper-tool", "Harmful tool arguments through the stream helper", call_chunks(letters(ARGUMENTS, 6)),
            surface="chat.stream_helper", request=chat(tools=[STRICT_TOOL]), rows=(6, 15)),
    _stream("raw", "A harmful stream through with_raw_response", chunks(tokens(f"{SAFE} {BAD}")),
            surface="chat.raw_stream", rows=(6, 15)),
    _stream("streaming-response", "A harmful stream's raw bytes", chunks(tokens(f"{SAFE} {BAD}")),
            surface="chat.streaming_response", request=chat(stream=True), rows=(6, 15)),
    _stream("with-options", "A harmful stream through with_options", chunks(_FOURTH), surface="chat.with_options",
            request=chat(stream=True), rows=(7,)),
    _stream("two-guards", "A stream and two guards: the second objects", chunks(_FOURTH), setup="two_guards",
            rows=(24,)),
    _stream("custom-http", "A harmful stream, custom http_client", chunks(_FOURTH), setup="custom_http"),
    _stream("unasked", "A stream that nobody asked for", chunks(_FOURTH), surface="chat.create", expect=kept_in()),
)  # fmt: skip

_CALL: Final = call_item(ARGUMENTS)
_ODD: Final = {"type": "response.thought.delta", "output_index": 0, "delta": BAD, "sequence_number": 5}
_SPOKEN: Final = response_events(message_item(SAFE), tokens(SAFE), "output_text")
OTHER_STREAMS: Final = (
    _stream("responses-text", "Responses: a harmful stream",
            response_events(message_item(f"{LONG} {BAD}"), tokens(f"{LONG} {BAD}"), "output_text"),
            surface="responses.stream", rows=(1,)),
    _stream("responses-late", "Responses: harmful only in the events that repeat the text",
            response_events(message_item(f"{SAFE} {MARK}"), tokens(SAFE), "output_text"), surface="responses.stream",
            expect=withheld()),
    _stream("responses-tool", "Responses: the arguments of a tool call are harmful",
            response_events(_CALL, letters(ARGUMENTS, 6), "function_call_arguments"), surface="responses.stream",
            request=inputs(tools=[RESPONSE_TOOL]), rows=(3,)),
    _stream("responses-custom", "Responses: the input of a custom tool's call is harmful",
            response_events(call_item(BAD, custom=True), letters(BAD, 4), "custom_tool_call_input"),
            surface="responses.stream", request=inputs(tools=[CUSTOM_TOOL]), rows=(3,)),
    _stream("responses-reasoning", "Responses: the reasoning summary is harmful",
            response_events(reasoning_item(BAD), tokens(BAD), "reasoning_summary_text"), surface="responses.stream",
         expect=withheld()),
    _stream("responses-refusal", "Responses: the model's refusal is harmful",
            response_events(message_item(BAD, refusal=True), tokens(BAD), "refusal"), surface="responses.stream",
         expect=withheld()),
    _stream("responses-event-unknown", "Responses: an event of an unknown type is harmful",
            [*_SPOKEN[:5], _ODD, *_SPOKEN[5:]], surface="responses.stream", expect=withheld()),
    _stream("responses-bytes", "Responses: frames cut at any byte",
            events(response_events(message_item(f"{SAFE} {WIDE}"), letters(f"{SAFE} {WIDE}"), "output_text"),
                   named=True, done=False, cut=37), surface="responses.stream"),
    _stream("responses-helper", "Responses: a harmful stream through the stream helper",
            response_events(message_item(f"{SAFE} {BAD}"), tokens(f"{SAFE} {BAD}"), "output_text"),
            surface="responses.stream_helper", rows=(6, 15)),
    _stream("completions", "Legacy completions: a harmful stream", text_chunks(tokens(f"{SAFE} {BAD}")),
            surface="completions.stream", request={"model": MODEL, "prompt": ASK}, rows=(1, 8)),
)  # fmt: skip

FAULTS: Final = (
    _stream("error-event", "An error event amid the stream tells harmful text",
            [*chunks(tokens(SAFE), finish=None), _ERROR], expect=kept_in()),
    _stream("closed", "The socket is closed after harmful text",
            events(chunks(tokens(f"{SAFE} {BAD}"), finish=None), done=False, end="abort"), expect=kept_in()),
    _stream("malformed", "A frame that is no JSON holds harmful text",
            [*chunks(tokens(SAFE), finish=None), b"data: {" + BAD.encode() + b"\n\n"], expect=kept_in()),
    _stream("malformed-raw", "The raw bytes of a frame that is no JSON",
            [*chunks(tokens(SAFE), finish=None), b"data: {" + BAD.encode() + b"\n\n"],
            surface="chat.streaming_response", request=chat(stream=True), expect=kept_in()),
    _stream("huge", "A frame of 2 MB with harmful text", chunks([SAFE, "word " * 400_000 + MARK]), expect=kept_in()),
    _stream("no-done", "No [DONE], the last token is harmful", events(chunks([*tokens(SAFE), f" {MARK}"]), done=False)),
    _stream("no-finish", "No finish and no [DONE], the last token is harmful",
            events(chunks([*tokens(SAFE), f" {MARK}"], finish=None), done=False), expect=kept_in()),
    _stream("comments", "Comments between harmful chunks",
            [b": keep-alive\n\n", *chunks(_FOURTH)[:3], b": keep-alive\n\n", *chunks(_FOURTH)[3:]]),
    _stream("event-name", "An event's name tells harmful text",
            [*chunks(tokens(SAFE)), f"event: {MARK}\nid: {MARK}\ndata: [DONE]\n\n".encode()],
            surface="chat.streaming_response", request=chat(stream=True), expect=withheld()),
    _stream("comment-text", "A comment tells harmful text", [*chunks(tokens(SAFE)), f": {BAD}\n\n".encode()],
            surface="chat.streaming_response", request=chat(stream=True),
            expect=withheld()),
)  # fmt: skip

STREAMS: Final = (*CHAT_STREAMS, *OTHER_STREAMS, *FAULTS)
