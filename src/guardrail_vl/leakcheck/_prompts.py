"""Probes of what goes in: everything that the model would see is judged, and nothing is sent if it is harmful."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from guardrail_vl.leakcheck.content import BLUE, GREEN, MARK, RED, SAFE
from guardrail_vl.leakcheck.probe import (
    ASK,
    RESPONSE_TOOL,
    TOOL,
    Probe,
    Setup,
    Surface,
    chat,
    inputs,
    messages,
    shown,
    shown_input,
    tool_turn,
    unsent,
    words,
)
from guardrail_vl.leakcheck.script import (
    Reply,
    choice,
    chunks,
    completion,
    events,
    message_item,
    response,
    text_completion,
    tokens,
    whole,
)
from guardrail_vl.leakcheck.script import response_events as streamed
from guardrail_vl.leakcheck.seen import KEPT

BAD: Final = f"Now {MARK} please."
CHAT: Final = whole(completion(choice(SAFE)))
CHAT_STREAM: Final = events(chunks(tokens(SAFE)))
RESPONSE: Final = whole(response(message_item(SAFE)))
RESPONSE_STREAM: Final = events(streamed(message_item(SAFE), tokens(SAFE), "output_text"), named=True, done=False)


def _in(
    id: str,
    title: str,
    request: Mapping[str, Any],
    *,
    surface: Surface = "chat.create",
    reply: Reply = CHAT,
    rows: tuple[int, ...] = (),
    setup: Setup = "plain",
    **expected: Any,
) -> Probe:
    return Probe(f"in-{id}", title, surface, request, (reply,), unsent(**expected), rows, setup)


_PARTS: Final = [words(ASK), shown(BLUE)]
_SCHEMA: Final = {"type": "object", "properties": {"answer": {"type": "string", "description": BAD}}}
_ODD: Final = {"type": "input_video", "input_video": {"text": BAD}}
_FILE: Final = {"type": "file", "file": {"file_id": "file-1"}}
_SOUND: Final = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
_CALLED: Final = {"type": "function_call", "call_id": "call_0", "name": "run", "arguments": "{}"}


def _answered(output: object) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": ASK},
        dict(_CALLED),
        {"type": "function_call_output", "call_id": "call_0", "output": output},
    ]


CHAT_PROMPTS: Final = (
    _in("text", "A harmful prompt: no upstream call", chat(BAD), rows=(9, 16)),
    _in("stream", "A harmful prompt, streamed", chat(BAD), surface="chat.stream", reply=CHAT_STREAM, rows=(9,)),
    _in(
        "earlier-turn",
        "An earlier user turn is harmful",
        messages(
            {"role": "user", "content": BAD}, {"role": "assistant", "content": SAFE}, {"role": "user", "content": ASK}
        ),
        rows=(4,),
    ),
    _in(
        "earlier-answer",
        "An earlier assistant turn is harmful",
        messages(
            {"role": "user", "content": ASK}, {"role": "assistant", "content": BAD}, {"role": "user", "content": ASK}
        ),
        rows=(4,),
    ),
    _in("system", "The system message is harmful", messages({"role": "system", "content": BAD}, *chat()["messages"])),
    _in("tool-result", "A tool result is harmful", messages(*tool_turn(BAD), tools=[TOOL]), rows=(4, 18)),
    _in(
        "tool-result-parts",
        "A tool result in parts is harmful",
        messages(*tool_turn([words(SAFE), words(BAD)]), tools=[TOOL]),
        rows=(4,),
    ),
    _in(
        "tool-result-image",
        "A tool result holds a harmful picture",
        messages(*tool_turn([words(SAFE), shown(RED)]), tools=[TOOL]),
    ),
    _in(
        "tool-arguments",
        "The arguments of an earlier tool call are harmful",
        messages(*tool_turn(SAFE, f'{{"command": "{MARK}"}}'), tools=[TOOL]),
    ),
    _in("name", "The name of a message's author is harmful", messages({"role": "user", "content": ASK, "name": MARK})),
    _in("parts", "The second text part is harmful", chat([words(ASK), words(BAD)])),
    _in("image-only", "A message that is only a harmful picture", chat([shown(RED)]), rows=(5,)),
    _in("image-text", "Harmless text with a harmful picture", chat([words(ASK), shown(RED)]), rows=(13, 19)),
    _in("image-second", "The second picture of three", chat([words(ASK), shown(BLUE), shown(RED), shown(GREEN)])),
    _in(
        "image-earlier",
        "A harmful picture in an earlier turn",
        messages(
            {"role": "user", "content": [words(ASK), shown(RED)]},
            {"role": "assistant", "content": SAFE},
            {"role": "user", "content": ASK},
        ),
        rows=(4, 13),
    ),
    _in(
        "image-remote",
        "A picture behind a URL that nobody has looked at",
        chat([words(ASK), {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/red.png"}}]),
        outcomes=KEPT,
    ),
    _in("part-unknown", "A content part of an unknown type", chat([words(ASK), _ODD]), outcomes=KEPT),
    _in("part-file", "A file, by its id", chat([words(ASK), _FILE]), outcomes=KEPT),
    _in("part-audio", "Sound", chat([words(ASK), _SOUND]), outcomes=KEPT),
    _in("field-unknown", "An unknown field with harmful text", chat(extra_body={"preamble": BAD}), outcomes=KEPT),
    _in(
        "tool-definition",
        "A tool's description is harmful",
        chat(tools=[{"type": "function", "function": {**TOOL["function"], "description": BAD}}]),  # type: ignore[dict-item]
    ),
    _in(
        "schema",
        "The description in a response schema is harmful",
        chat(response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": _SCHEMA}}),
    ),
    _in("prediction", "The predicted output is harmful",
        chat(extra_body={"prediction": {"type": "content", "content": BAD}})),
    _in("parse", "A harmful prompt through parse", chat(BAD), surface="chat.parse", rows=(6, 9)),
    _in(
        "stream-helper", "A harmful prompt through the stream helper", chat(BAD), surface="chat.stream_helper",
        reply=CHAT_STREAM, rows=(6, 9),
    ),
    _in("raw", "A harmful prompt through with_raw_response", chat(BAD), surface="chat.raw", rows=(6, 9)),
    _in(
        "streaming-response", "A harmful prompt through with_streaming_response", chat(BAD),
        surface="chat.streaming_response", rows=(6, 9),
    ),
    _in("with-options", "A harmful prompt through with_options", chat(BAD), surface="chat.with_options", rows=(7,)),
    _in("copy", "A harmful prompt through copy", chat(BAD), surface="chat.copy", rows=(7,)),
    _in("post", "A harmful prompt through the client's own post", chat(BAD), surface="chat.post"),
    _in("custom-http", "A harmful prompt, custom http_client", chat(BAD), setup="custom_http"),
    _in("in-loop", "A harmful prompt while an event loop runs", chat(BAD), setup="in_loop", rows=(23,)),
    _in("azure", "A harmful prompt to Azure", chat(BAD), setup="azure"),
    _in("two-guards-first", "A prompt and two guards: the first objects", chat("Now ZZOTHERZZ."), setup="two_guards",
        rows=(24,)),
    _in("two-guards-second", "A prompt and two guards: the second objects", chat(BAD), setup="two_guards", rows=(24,)),
)  # fmt: skip

OTHER_PROMPTS: Final = (
    _in("responses-text", "Responses: a harmful prompt", inputs(BAD), surface="responses.create", reply=RESPONSE,
        rows=(9,)),
    _in("responses-stream", "Responses: a harmful prompt, streamed", inputs(BAD), surface="responses.stream",
        reply=RESPONSE_STREAM, rows=(9,)),
    _in("responses-instructions", "Responses: the instructions are harmful", inputs(instructions=BAD),
        surface="responses.create", reply=RESPONSE),
    _in("responses-image", "Responses: a harmful picture",
        inputs([{"role": "user", "content": [{"type": "input_text", "text": ASK}, shown_input(RED)]}]),
        surface="responses.create", reply=RESPONSE, rows=(5, 13)),
    _in("responses-tool-result", "Responses: a tool result is harmful", inputs(_answered(BAD), tools=[RESPONSE_TOOL]),
        surface="responses.create", reply=RESPONSE, rows=(4,)),
    _in("responses-tool-image", "Responses: a tool result holds a harmful picture",
        inputs(_answered([shown_input(RED)]), tools=[RESPONSE_TOOL]), surface="responses.create", reply=RESPONSE),
    _in("responses-previous", "Responses: a harmful prompt after previous_response_id",
        inputs(then=BAD), surface="responses.previous", reply=RESPONSE, calls=1),
    _in("responses-previous-unseen", "Responses: previous_response_id of a reply that nobody has judged",
        inputs(previous_response_id="resp_0"), surface="responses.create", reply=RESPONSE, outcomes=KEPT),
    _in("responses-template", "Responses: a stored prompt's variable is harmful",
        inputs(prompt={"id": "pmpt_1", "variables": {"name": BAD}}), surface="responses.create", reply=RESPONSE,
        outcomes=KEPT),
    _in("responses-file", "Responses: a file, by its id",
        inputs([{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]),
        surface="responses.create", reply=RESPONSE, outcomes=KEPT),
    _in("responses-item-unknown", "Responses: an input item of an unknown type",
        inputs([{"role": "user", "content": ASK}, {"type": "memory", "text": BAD}]),
        surface="responses.create", reply=RESPONSE, outcomes=KEPT),
    _in("responses-parse", "Responses: a harmful prompt through parse", inputs(BAD), surface="responses.parse",
        reply=RESPONSE, rows=(6,)),
    _in("responses-helper", "Responses: a harmful prompt through the stream helper", inputs(BAD),
        surface="responses.stream_helper", reply=RESPONSE_STREAM, rows=(6,)),
    _in("completions", "Legacy completions: a harmful prompt", {"model": "leakcheck-model", "prompt": BAD},
        surface="completions.create", reply=whole(text_completion(SAFE)), rows=(8,)),
    _in("completions-second", "Legacy completions: the second of two prompts is harmful",
        {"model": "leakcheck-model", "prompt": [ASK, BAD]}, surface="completions.create",
        reply=whole(text_completion(SAFE, SAFE)), rows=(8,)),
    _in("completions-suffix", "Legacy completions: the suffix is harmful",
        {"model": "leakcheck-model", "prompt": ASK, "suffix": BAD}, surface="completions.create",
        reply=whole(text_completion(SAFE)), rows=(8,)),
)  # fmt: skip

_ANY: Final = whole({"id": "x", "data": [], "object": "list"})
CLOSED: Final = (
    _in("audio-speech", "Speech: not covered, so refused", {"model": "tts", "voice": "alloy", "input": BAD},
        surface="audio.speech", reply=_ANY, outcomes=KEPT),
    _in("images", "Image generation: not covered, so refused", {"model": "image", "prompt": BAD},
        surface="images.generate", reply=_ANY, outcomes=KEPT),
    _in("batches", "Batches: not covered, so refused",
        {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        surface="batches.create", reply=_ANY, outcomes=KEPT),
    _in("realtime", "Realtime: not covered, so refused", {"model": "realtime"}, surface="realtime.connect", reply=_ANY,
        outcomes=KEPT),
    _in("threads", "Assistants: not covered, so refused",
        {"assistant_id": "asst_1", "thread": {"messages": [{"role": "user", "content": BAD}]}},
        surface="threads.run", reply=_ANY, outcomes=KEPT),
    _in("endpoint-unknown", "An endpoint that nobody knows: refused", {"prompt": BAD}, surface="unknown.post",
        reply=_ANY, outcomes=KEPT),
)  # fmt: skip

PROMPTS: Final = (*CHAT_PROMPTS, *OTHER_PROMPTS, *CLOSED)
