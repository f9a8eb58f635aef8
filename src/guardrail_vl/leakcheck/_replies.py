"""Probes of whole replies: every choice, field and kind of content is judged before it reaches the caller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from guardrail_vl.leakcheck._prompts import BAD, CHAT
from guardrail_vl.leakcheck.content import LEAKS, MARK, RED, RED_BASE64, SAFE, data_url
from guardrail_vl.leakcheck.probe import (
    ASK,
    CUSTOM_TOOL,
    RESPONSE_TOOL,
    TOOL,
    Probe,
    Setup,
    Surface,
    chat,
    inputs,
    kept_in,
    messages,
    passes,
    stopped,
    tool_turn,
    withheld,
)
from guardrail_vl.leakcheck.script import (
    MODEL,
    Reply,
    call_item,
    choice,
    completion,
    message_item,
    reasoning_item,
    response,
    text_completion,
    tool_call,
    whole,
)
from guardrail_vl.leakcheck.seen import Expect

ARGUMENTS: Final = json.dumps({"command": f"echo {MARK}"})
BAD_CHAT: Final = whole(completion(choice(BAD)))
BAD_RESPONSE: Final = whole(response(message_item(BAD)))


def _out(
    id: str,
    title: str,
    reply: Reply | Mapping[str, Any],
    *,
    surface: Surface = "chat.create",
    request: Mapping[str, Any] | None = None,
    rows: tuple[int, ...] = (),
    setup: Setup = "plain",
    expect: Expect | None = None,
) -> Probe:
    if request is None:
        request = inputs() if surface.startswith("responses") else chat()
    replies = (reply if isinstance(reply, Reply) else whole(reply),)
    return Probe(f"out-{id}", title, surface, request, replies, expect or stopped(), rows, setup)


_IMAGES: Final = [{"type": "image_url", "image_url": {"url": data_url(RED)}}]
_CITED: Final = [
    {"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 3, "title": BAD, "url": "https://a.test"}}
]
_LOGPROB: Final = {"token": MARK, "logprob": -0.1, "bytes": None, "top_logprobs": []}
_CITATION: Final = {"type": "url_citation", "start_index": 0, "end_index": 3, "title": BAD, "url": "https://a.test"}
_IMAGE_CALL: Final = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": RED_BASE64}
_STORED: Final = {"completion_id": "chatcmpl-1"}

CHAT_REPLIES: Final = (
    _out("text", "A harmful reply", BAD_CHAT, rows=(16,)),
    _out("choice-second", "The second of two choices is harmful", completion(choice(SAFE), choice(BAD, index=1)),
         request=chat(n=2), rows=(2,),
         expect=withheld()),
    _out("choice-unasked", "A second choice that nobody asked for", completion(choice(SAFE), choice(BAD, index=1)),
         rows=(2,),
         expect=withheld()),
    _out("tool-arguments", "The arguments of a tool call are harmful",
         completion(choice(None, finish="tool_calls", tool_calls=[tool_call(ARGUMENTS)])),
         request=chat(tools=[TOOL]), rows=(3, 14, 18)),
    _out("tool-second", "The arguments of the second of two calls are harmful",
         completion(choice(SAFE, finish="tool_calls",
                           tool_calls=[tool_call('{"command": "ls"}'), tool_call(ARGUMENTS, number=1)])),
         request=chat(tools=[TOOL]), rows=(3, 14)),
    _out("tool-name", "The name of a called tool is harmful",
         completion(choice(None, finish="tool_calls", tool_calls=[tool_call("{}", name=MARK)])),
         request=chat(tools=[TOOL]), rows=(3,)),
    _out("tool-custom", "The input of a custom tool's call is harmful",
         completion(choice(None, finish="tool_calls", tool_calls=[
             {"id": "call_0", "type": "custom", "custom": {"name": "run", "input": BAD}}])),
         request=chat(tools=[{"type": "custom", "custom": {"name": "run"}}]), rows=(3,)),
    _out("function-call", "The arguments of an old-style function call are harmful",
         completion(choice(None, finish="function_call", function_call={"name": "run", "arguments": ARGUMENTS})),
         rows=(3,),
         expect=withheld()),
    _out("reasoning", "The reasoning is harmful", completion(choice(SAFE, reasoning_content=BAD)),
         expect=withheld()),
    _out("refusal-text", "The model's refusal is harmful", completion(choice(None) | {
        "message": {"role": "assistant", "content": None, "refusal": BAD}}),
         expect=withheld()),
    _out("image", "A picture comes back", completion(choice(SAFE, images=_IMAGES)), expect=withheld()),
    _out("citation", "The title of a citation is harmful", completion(choice(SAFE, annotations=_CITED)),
         expect=withheld()),
    _out("logprobs", "The log-probabilities tell what the text doesn't",
         completion(choice(SAFE) | {"logprobs": {"content": [_LOGPROB], "refusal": None}}),
         request=chat(logprobs=True), expect=withheld()),
    _out("audio", "A transcript of sound is harmful",
         completion(choice(None, audio={"id": "a", "data": "", "expires_at": 1, "transcript": BAD})),
         expect=withheld()),
    _out("field-unknown", "An unknown field of the message is harmful", completion(choice(SAFE, thoughts=BAD)),
         expect=withheld()),
    _out("field-unknown-top", "An unknown field of the reply is harmful", completion(choice(SAFE)) | {"notes": BAD},
         expect=withheld()),
    _out("error-body", "An error's text is harmful",
         whole({"error": {"message": BAD, "type": "invalid_request_error", "code": None}}, status=400),
         expect=kept_in()),
    _out("error-page", "An error that is no JSON is harmful",
         Reply(whole(BAD).frames, status=400, content_type="text/html"), expect=kept_in()),
    _out("not-json", "A reply that is no JSON", Reply(whole(BAD).frames, content_type="text/plain"), expect=kept_in()),
    _out("cut-short", "The socket is closed amid a harmful reply", Reply(BAD_CHAT.frames, end="abort"),
         expect=kept_in()),
    _out("after-tool", "A harmful reply after a harmless tool result", BAD_CHAT,
         request=messages(*tool_turn(SAFE), tools=[TOOL])),
    _out("parse", "Structured output is harmful", completion(choice(json.dumps({"answer": BAD}))),
         surface="chat.parse", rows=(6,)),
    _out("raw", "A harmful reply through with_raw_response", BAD_CHAT, surface="chat.raw", rows=(6,)),
    _out("streaming-response", "A harmful reply through with_streaming_response", BAD_CHAT,
         surface="chat.streaming_response", rows=(6,)),
    _out("with-options", "A harmful reply through with_options", BAD_CHAT, surface="chat.with_options", rows=(7,)),
    _out("copy", "A harmful reply through copy", BAD_CHAT, surface="chat.copy", rows=(7,)),
    _out("post", "A harmful reply through the client's own post", BAD_CHAT, surface="chat.post"),
    _out("custom-http", "A harmful reply, custom http_client", BAD_CHAT, setup="custom_http"),
    _out("in-loop", "A harmful reply while an event loop runs", BAD_CHAT, setup="in_loop", rows=(23,)),
    _out("azure", "A harmful reply of Azure", BAD_CHAT, setup="azure"),
    _out("two-guards-first", "A reply and two guards: the first objects", completion(choice("Well, ZZOTHERZZ.")),
         setup="two_guards", rows=(24,)),
    _out("two-guards-second", "A reply and two guards: the second objects", BAD_CHAT, setup="two_guards", rows=(24,)),
    _out("retrieve", "A stored completion is harmful", BAD_CHAT, surface="chat.retrieve", request=_STORED,
         expect=kept_in()),
)  # fmt: skip

HISTORY: Final = Probe(
    "out-history", "What was blocked is not in the history", "chat.history",
    {**chat(), "then": "Go on."}, (BAD_CHAT, CHAT), passes(calls=2, unsent=LEAKS), (11, 17),
)  # fmt: skip

PREVIOUS: Final = Probe(
    "out-responses-previous", "Responses: a harmful reply after previous_response_id", "responses.previous",
    inputs(then="Go on."), (whole(response(message_item(SAFE))), whole(response(message_item(BAD), id="resp_2"))),
    stopped(calls=2),
)  # fmt: skip

_CALL: Final = call_item(ARGUMENTS)
OTHER_REPLIES: Final = (
    _out("responses-text", "Responses: a harmful reply", BAD_RESPONSE, surface="responses.create"),
    _out("responses-second", "Responses: the second of two messages is harmful",
         response(message_item(SAFE), {**message_item(BAD), "id": "msg_2"}), surface="responses.create", rows=(2,),
         expect=withheld()),
    _out("responses-tool", "Responses: the arguments of a tool call are harmful", response(_CALL),
         surface="responses.create", request=inputs(tools=[RESPONSE_TOOL]), rows=(3,)),
    _out("responses-custom", "Responses: the input of a custom tool's call is harmful",
         response(call_item(BAD, custom=True)), surface="responses.create", request=inputs(tools=[CUSTOM_TOOL]),
         rows=(3,)),
    _out("responses-reasoning", "Responses: the reasoning summary is harmful",
         response(reasoning_item(BAD), message_item(SAFE)), surface="responses.create",
         expect=withheld()),
    _out("responses-refusal", "Responses: the model's refusal is harmful",
         response(message_item(BAD, refusal=True)), surface="responses.create",
         expect=withheld()),
    _out("responses-citation", "Responses: the title of a citation is harmful",
         response(message_item(SAFE, annotations=[_CITATION])), surface="responses.create", expect=withheld()),
    _out("responses-image", "Responses: a picture comes back", response(_IMAGE_CALL, message_item(SAFE)),
         surface="responses.create", expect=withheld()),
    _out("responses-item-unknown", "Responses: an output item of an unknown type is harmful",
         response({"type": "thought_stream", "id": "t_1", "text": BAD}, message_item(SAFE)),
         surface="responses.create", expect=withheld()),
    _out("responses-parse", "Responses: structured output is harmful",
         response(message_item(json.dumps({"answer": BAD}))), surface="responses.parse", rows=(6,)),
    _out("responses-raw", "Responses: a harmful reply through with_raw_response", BAD_RESPONSE,
         surface="responses.raw", rows=(6,)),
    _out("responses-retrieve", "Responses: a stored reply is harmful", BAD_RESPONSE, surface="responses.retrieve",
         request={"response_id": "resp_1"}, expect=kept_in(), rows=(6,)),
    _out("completions", "Legacy completions: a harmful reply", text_completion(BAD), surface="completions.create",
         request={"model": MODEL, "prompt": ASK}, rows=(8,)),
    _out("completions-second", "Legacy completions: the second choice is harmful", text_completion(SAFE, BAD),
         surface="completions.create", request={"model": MODEL, "prompt": ASK, "n": 2}, rows=(2, 8),
         expect=withheld()),
)  # fmt: skip

REPLIES: Final = (*CHAT_REPLIES, HISTORY, PREVIOUS, *OTHER_REPLIES)
