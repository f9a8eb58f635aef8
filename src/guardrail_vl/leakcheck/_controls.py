"""Probes of everything around: a guard that fails, users beside each other, retries, clients that walk away; and
harmless controls for every surface, without which a client that refuses everything would look sealed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from guardrail_vl.leakcheck._prompts import BAD, CHAT, CHAT_STREAM, RESPONSE, RESPONSE_STREAM
from guardrail_vl.leakcheck._replies import BAD_CHAT
from guardrail_vl.leakcheck._streams import LONG, letters
from guardrail_vl.leakcheck.content import BLUE, BOTH, BREAK, GREEN, HALVES, LEAKS, MARK, SAFE
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
    messages,
    passes,
    shown,
    shown_input,
    stopped,
    tool_turn,
    words,
)
from guardrail_vl.leakcheck.script import (
    MODEL,
    Reply,
    call_chunks,
    call_item,
    choice,
    chunk,
    chunks,
    completion,
    events,
    message_item,
    reasoning_item,
    response,
    response_events,
    text_chunks,
    text_completion,
    tokens,
    tool_call,
    whole,
)
from guardrail_vl.leakcheck.seen import FAILED, PASSED, Expect

BROKEN: Final = f"Well, {BREAK} and so on."
BUSY: Final = whole({"error": {"message": "busy", "type": "server_error"}}, status=500, retry_after_ms="1")


def _fails(id: str, title: str, surface: Surface, request: Mapping[str, Any], reply: Reply, **expected: Any) -> Probe:
    return Probe(f"guard-{id}", title, surface, request, (reply,), Expect(FAILED, **expected), (10,))


GUARD_FAILS: Final = (
    _fails("prompt", "The guard fails on the prompt: an error, nothing is sent", "chat.create", chat(BROKEN), CHAT,
           calls=0, leaks=()),
    _fails("reply", "The guard fails on the reply: an error, not a block", "chat.create", chat(),
           whole(completion(choice(BROKEN)))),
    _fails("stream", "The guard fails amid a stream: an error, not a block", "chat.stream", chat(),
           events(chunks(tokens(f"{LONG} {BROKEN}")))),
    _fails("responses", "Responses: the guard fails on the reply", "responses.create", inputs(),
           whole(response(message_item(BROKEN)))),
    _fails("responses-stream", "Responses: the guard fails amid a stream", "responses.stream", inputs(),
           events(response_events(message_item(BROKEN), tokens(BROKEN), "output_text"), named=True, done=False)),
)  # fmt: skip

_SAYS: Final = {name: chunks(tokens(text)) for name, text in (
    ("first", f"{HALVES[0]} says the first user. {SAFE}"), ("second", f"{HALVES[1]} says the second user. {SAFE}"),
    ("good", SAFE), ("bad", f"{SAFE} {BAD}"),
)}  # fmt: skip


def _users(**said: str) -> dict[str, Any]:
    """A request of several users; the name of each stands in their message, so that the upstream tells them apart."""
    return {"model": MODEL, "users": {name: f"I am the user {name}. {text}" for name, text in said.items()}}


def _to(*names: str) -> tuple[Reply, ...]:
    return tuple(events(_SAYS[name], when=f"the user {name}", delay=0.004) for name in names)


USERS: Final = (
    Probe("users-interleave", "Two users' streams read in turn: the bad one is stopped, the other complete",
          "chat.interleave", _users(good=ASK, bad=ASK), _to("good", "bad"), stopped(text=SAFE, calls=2), (22,)),
    Probe("users-together", "Users at once, in threads or tasks: the bad one is stopped, the other complete",
          "chat.together", _users(good=ASK, bad=ASK), _to("good", "bad"), stopped(text=SAFE, calls=2), (22,)),
    Probe("users-unmixed", "Two halves, one to each user: nobody's text is judged as another's",
          "chat.interleave", _users(first=ASK, second=ASK), _to("first", "second"),
          passes(f"{HALVES[0]} says the first user. {SAFE}", calls=2, leaks=tuple(x for x in LEAKS if x != BOTH)),
          (22,)),
)  # fmt: skip

AROUND: Final = (
    Probe("retry-good", "A retry after 500: the good reply arrives", "chat.create", chat(), (BUSY, CHAT),
          passes(calls=2)),
    Probe("retry-bad", "A retry after 500: the harmful reply is stopped", "chat.create", chat(), (BUSY, BAD_CHAT),
          stopped(calls=2)),
    Probe("retry-stream", "A retry after 500: the harmful stream is stopped", "chat.stream", chat(),
          (BUSY, events(chunks(tokens(f"{SAFE} {BAD}")))), stopped(calls=2)),
    Probe("cancel", "The caller walks away from a stream: so do we", "chat.cancel", chat(),
          (events(chunks([*tokens(" ".join([LONG] * 8)), MARK]), delay=0.01),),
          Expect(PASSED, disconnected=True, calls=1)),
    Probe("closed-early", "The socket is closed amid harmless text: an error, no silent end", "chat.stream", chat(),
          (events(chunks(tokens(SAFE)[:9], finish=None), done=False, end="abort"),), Expect(FAILED, calls=1)),
    Probe("log", "Neither blocks nor failures are told to the log", "chat.create",
          chat([words(BAD), shown(BLUE)]), (CHAT,), Expect(frozenset(("blocked", "refused")), leaks=(MARK,), calls=0),
          (19,)),
    Probe("types", "The client and its reply are of the library's own classes", "chat.types", chat(), (CHAT,),
          passes("same types"), (8,)),
)  # fmt: skip


def _good(
    id: str,
    title: str,
    surface: Surface,
    reply: Reply | Mapping[str, Any],
    request: Mapping[str, Any] | None = None,
    text: str = SAFE,
    *,
    setup: Setup = "plain",
    **expected: Any,
) -> Probe:
    if request is None:
        request = inputs() if surface.startswith("responses") else chat()
    replies = (reply if isinstance(reply, Reply) else whole(reply),)
    return Probe(f"safe-{id}", title, surface, request, replies, passes(text, **expected), (), setup)


LS: Final = '{"command": "ls"}'
EMOJI: Final = "Grüße 👩‍👩‍👧 an alle, und ein schönes Wochenende ☀️!"
_ANSWER: Final = json.dumps({"answer": SAFE})
_SEEN: Final = [{"role": "user", "content": [{"type": "input_text", "text": ASK}, shown_input(BLUE)]}]

SAFE_CHAT: Final = (
    _good("chat", "A reply", "chat.create", CHAT),
    _good("chat-n", "Two choices", "chat.create", completion(choice(SAFE), choice(SAFE, index=1)), chat(n=2), SAFE * 2),
    _good("chat-image", "Text and pictures", "chat.create", CHAT, chat([words(ASK), shown(BLUE), shown(GREEN)])),
    _good("chat-tools", "A tool call", "chat.create",
          completion(choice(None, finish="tool_calls", tool_calls=[tool_call(LS)])), chat(tools=[TOOL]), LS, tools=1),
    _good("chat-tool-result", "A tool result", "chat.create", CHAT, messages(*tool_turn(SAFE), tools=[TOOL])),
    _good("chat-turns", "An earlier exchange", "chat.create", CHAT,
          messages({"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK},
                   {"role": "assistant", "content": SAFE}, {"role": "user", "content": "And the wind?"})),
    _good("chat-reasoning", "Reasoning beside the text", "chat.create",
          completion(choice(SAFE, reasoning_content="I think of the sea."))),
    _good("chat-settings", "The usual settings", "chat.create", CHAT,
          chat(temperature=0.2, top_p=0.9, seed=1, stop=["\n\n"], user="u-1",
               presence_penalty=0.1,
               extra_body={"max_completion_tokens": 50, "metadata": {"app": "test"}})),
    _good("chat-parse", "Structured output", "chat.parse", completion(choice(_ANSWER)), text=_ANSWER),
    _good("chat-raw", "with_raw_response", "chat.raw", CHAT),
    _good("chat-streaming-response", "with_streaming_response", "chat.streaming_response", CHAT),
    _good("chat-with-options", "with_options", "chat.with_options", CHAT),
    _good("chat-copy", "copy", "chat.copy", CHAT),
    _good("chat-post", "The client's own post", "chat.post", CHAT),
    _good("chat-custom-http", "A custom http_client, which is used", "chat.create", CHAT, setup="custom_http",
          own_client=True),
    _good("chat-two-guards", "Two guards", "chat.create", CHAT, setup="two_guards"),
    _good("chat-in-loop", "While an event loop runs", "chat.create", CHAT, setup="in_loop"),
    _good("chat-azure", "Azure", "chat.create", CHAT, setup="azure"),
)  # fmt: skip

SAFE_STREAMS: Final = (
    _good("stream", "A stream", "chat.stream", CHAT_STREAM),
    _good("stream-long", "A long stream", "chat.stream", events(chunks(tokens(" ".join([LONG] * 5)))),
          text=" ".join([LONG] * 5)),
    _good("stream-halves", "One half only", "chat.stream", events(chunks(tokens(f"{HALVES[1]} {LONG}"))),
          text=f"{HALVES[1]} {LONG}"),
    _good("stream-wide", "Wide letters, cut at any byte", "chat.stream", events(chunks(letters(EMOJI)), cut=11),
          text=EMOJI),
    _good("stream-n", "Two choices", "chat.stream",
          events([*chunks(tokens(SAFE)), *chunks(tokens(SAFE), index=1)]), chat(n=2), SAFE * 2),
    _good("stream-tools", "A tool call", "chat.stream", events(call_chunks(letters(LS, 3))), chat(tools=[TOOL]), LS,
          tools=1),
    _good("stream-usage", "A stream with usage", "chat.stream",
          events([*chunks(tokens(SAFE)), {**chunk({}), "choices": [], "usage": {
              "prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}}]),
          chat(stream_options={"include_usage": True})),
    _good("stream-comments", "Comments between the chunks", "chat.stream",
          events([b": hello\n\n", *chunks(tokens(SAFE))])),
    _good("stream-helper", "The stream helper", "chat.stream_helper", CHAT_STREAM),
    _good("stream-raw", "with_raw_response", "chat.raw_stream", CHAT_STREAM),
    _good("stream-streaming-response", "The raw bytes", "chat.streaming_response", CHAT_STREAM, chat(stream=True)),
)  # fmt: skip

SAFE_OTHERS: Final = (
    _good("responses", "Responses: a reply", "responses.create", RESPONSE),
    _good("responses-image", "Responses: text and a picture", "responses.create", RESPONSE, inputs(_SEEN)),
    _good("responses-tools", "Responses: a tool call", "responses.create", response(call_item(LS)),
          inputs(tools=[RESPONSE_TOOL]), LS, tools=1),
    _good("responses-custom", "Responses: a custom tool's call", "responses.create",
          response(call_item("ls -l", custom=True)), inputs(tools=[CUSTOM_TOOL]), "ls -l", tools=1),
    _good("responses-reasoning", "Responses: reasoning and a reply", "responses.create",
          response(reasoning_item("I think of the sea."), message_item(SAFE))),
    Probe("safe-responses-previous", "Responses: after previous_response_id", "responses.previous",
          inputs(then="Go on."), (RESPONSE, whole(response(message_item(SAFE), id="resp_2"))), passes(calls=2)),
    _good("responses-parse", "Responses: structured output", "responses.parse", response(message_item(_ANSWER)),
          text=_ANSWER),
    _good("responses-raw", "Responses: with_raw_response", "responses.raw", RESPONSE),
    _good("responses-stream", "Responses: a stream", "responses.stream", RESPONSE_STREAM),
    _good("responses-stream-tools", "Responses: a streamed tool call", "responses.stream",
          events(response_events(call_item(LS), letters(LS, 3), "function_call_arguments"), named=True, done=False),
          inputs(tools=[RESPONSE_TOOL]), LS, tools=1),
    _good("responses-helper", "Responses: the stream helper", "responses.stream_helper", RESPONSE_STREAM),
    _good("completions", "Legacy completions", "completions.create", text_completion(SAFE),
          {"model": MODEL, "prompt": ASK}),
    _good("completions-stream", "Legacy completions: a stream", "completions.stream",
          events(text_chunks(tokens(SAFE))), {"model": MODEL, "prompt": ASK}),
)  # fmt: skip

CONTROLS: Final = (*GUARD_FAILS, *USERS, *AROUND, *SAFE_CHAT, *SAFE_STREAMS, *SAFE_OTHERS)
