"""Prompt to the JSON of a chat-completions request; its reply to a completion. Knows no HTTP client and no label words.

What comes back is checked for its structure, all of it: whether the text follows the format is the format's to say.
"""

from __future__ import annotations

import base64
import codecs
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from guardrail_vl._picture import open_picture
from guardrail_vl.engines._http import Reply
from guardrail_vl.engines._servers import Server
from guardrail_vl.errors import EngineResponseError
from guardrail_vl.media import encode
from guardrail_vl.prompt_format.base import Prompt, PromptImage, PromptMessage, PromptText, Token
from guardrail_vl.verdict import Usage

_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

Finish = Literal["stop", "length"]

# What servers look for when they take reasoning out of a text. It is their convention, not a prompt format's.
REASONING: Final = ("<think>", "</think>")
"""Around the reasoning, in the text of a model whose server takes it out."""
NO_PREFIX: Final = "Use speed='reason', or a server that continues a final assistant message (vLLM does)."


# ---- out -----------------------------------------------------------------------------------------------------------


class Messages:
    """A prompt's messages as JSON, made once however many prompts share them. Safe for threads."""

    def __init__(self, messages: tuple[PromptMessage, ...]) -> None:
        self._messages = messages
        self._lock = threading.Lock()
        self._json: str | None = None
        self.heavy = any(isinstance(part, PromptImage) for m in messages for part in m.content)
        """Whether making it takes long enough to keep it off an event loop: there are pictures."""

    def json(self) -> str:
        """The messages, between commas, without brackets."""
        if self._json is None:
            with self._lock:
                if self._json is None:
                    self._json = ",".join(_json({"role": m.role, "content": _content(m)}) for m in self._messages)
        return self._json


def _content(message: PromptMessage) -> str | list[dict[str, Any]]:
    # Plain text as a string: every chat template takes it, and some take nothing else.
    if all(isinstance(part, PromptText) for part in message.content):
        return message.text
    parts: list[dict[str, Any]] = []
    for part in message.content:
        if isinstance(part, PromptImage):
            parts.append({"type": "image_url", "image_url": {"url": data_url(part)}})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += part.text
        else:
            parts.append({"type": "text", "text": part.text})
    return parts


def data_url(image: PromptImage) -> str:
    """The picture as a `data:` URL: its own bytes where every reader shows them as this view, else a new PNG file."""
    if _shown_alike(image):
        return image.part.data_url
    data, media_type = encode(image.pixels())
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _shown_alike(image: PromptImage) -> bool:
    part = image.part
    if part.media_type not in ("image/jpeg", "image/png") or part.frames > 1:
        return False
    if part.width * part.height > image.max_pixels:
        return False
    picture = open_picture(part.data, max_pixels=math.inf, max_frames=math.inf)
    # Servers don't turn a picture by its EXIF orientation, and what they show of transparency varies.
    return all(still.orientation == 1 for still in picture.stills) and part.view_count == 1


def fields(
    prompt: Prompt, model: str, server: Server | None, omitted: frozenset[str], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything of the request's body but the messages.

    Args:
        prompt: What to complete.
        model: The model's name on the server.
        server: What it is known to be; None: not known, and not asked.
        omitted: Fields that it refused.
        extra: The caller's own fields, which win.
    """
    out: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": prompt.max_tokens}
    if prompt.prefix:
        out |= {"continue_final_message": True, "add_generation_prompt": False}
    if prompt.top_logprobs:
        out |= {"logprobs": True, "top_logprobs": prompt.top_logprobs}
    if prompt.stop and (server is None or server.stop):
        out["stop"] = list(prompt.stop)
        if server is None or server.extras:
            out["include_stop_str_in_output"] = True
    if server is None or server.extras:
        # vLLM applies what the checkpoint's generation_config.json asks for, which would move the labels' scores.
        out["repetition_penalty"] = 1.0
    if prompt.pattern and server is not None and server.pattern:
        out["structured_outputs"] = {"regex": prompt.pattern}
    return {name: value for name, value in out.items() if name not in omitted} | dict(extra)


def body(head: Mapping[str, Any], messages: str, prefix: str) -> bytes:
    """The request's body.

    Args:
        head: All other fields; not empty.
        messages: `Messages.json()`.
        prefix: Text of a final assistant message that is to be continued; empty: none.
    """
    last = "," + _json({"role": "assistant", "content": prefix}) if prefix else ""
    return f'{_json(head)[:-1]},"messages":[{messages}{last}]}}'.encode()


# ---- in ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reply says."""

    text: str
    finish: Finish
    tokens: tuple[Token, ...]
    usage: Usage


def parse_json(reply: Reply) -> Any:
    """The body as JSON; None if it is none."""
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        return None


def request_id(reply: Reply) -> str | None:
    """The server's id for the request, if it gave one that is one."""
    for name in ("x-request-id", "request-id"):
        value = reply.headers.get(name, "")
        if 0 < len(value) <= 100 and value.isascii() and value.replace("-", "").replace("_", "").isalnum():
            return value
    return None


def malformed(reply: Reply, why: str, *, hint: str = "") -> EngineResponseError:
    """The error for a reply that holds no completion. `why` is in our own words."""
    return EngineResponseError(
        f"The guard server's reply is no chat completion: {why}.",
        hint=hint,
        status=reply.status,
        request_id=request_id(reply),
    )


def read(reply: Reply, prompt: Prompt, gathered: Any = None) -> Answer:
    """The completion in a reply of status 200.

    Args:
        reply: The reply.
        prompt: What it answers.
        gathered: Its JSON, put together from its events. None: its body is the JSON.

    Raises:
        EngineResponseError: It has not the structure of a chat completion.
    """
    parsed = parse_json(reply) if gathered is None else gathered
    if not isinstance(parsed, dict):
        what = "it is HTML" if reply.body.lstrip()[:1] == b"<" else "it is no JSON object"
        raise malformed(reply, what, hint="Check that the URL leads to the server's API (it usually ends in /v1).")
    choice = _choice(parsed, reply)
    text = _text(choice, reply)
    finish = choice.get("finish_reason")
    if finish != "stop" and finish != "length":
        raise malformed(reply, "it did not end by itself or at the token limit")
    tokens = _tokens(choice.get("logprobs"), reply) if prompt.top_logprobs else ()
    if prompt.stop:
        text, finish = _ended(text, finish, prompt.stop, choice, tokens)
    return Answer(text, finish, _fitted(tokens, text, choice), _usage(parsed.get("usage")))


def _choice(parsed: dict[str, Any], reply: Reply) -> dict[str, Any]:
    choices = parsed.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        why = "it reports an error" if parsed.get("error") else "it has no choices"
        raise malformed(reply, why)
    choice: dict[str, Any] = choices[0]
    return choice


def _text(choice: dict[str, Any], reply: Reply) -> str:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise malformed(reply, "its choice has no message")
    text = message.get("content")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning:
        text = _joined(reasoning, text, reply)
    if not isinstance(text, str):
        raise malformed(reply, "its message has no text")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise malformed(reply, "its text is not valid Unicode")
    return text


def _joined(reasoning: Any, text: Any, reply: Reply) -> str:
    """The text as the model wrote it, where the server took the reasoning out (transformers serve always does)."""
    text = "" if text is None else text
    if not isinstance(reasoning, str) or not isinstance(text, str) or any(tag in text for tag in REASONING):
        raise malformed(
            reply,
            "the server took a part of the reasoning out of the text",
            hint="Turn its reasoning parser off (vLLM: no --reasoning-parser; llama.cpp: --reasoning-format none).",
        )
    # A reasoning that holds such a tag itself is left as it is: the format refuses it.
    return f"{REASONING[0]}{reasoning}{REASONING[1]}{text}"


def _ended(
    text: str, finish: Finish, stops: Sequence[str], choice: Mapping[str, Any], tokens: Sequence[Token]
) -> tuple[str, Finish]:
    """The text up to the end of the first stop string, which is put back where the server took it off.

    A server that takes it off and doesn't say so can't be told from a model that ended just before it. It counts as
    taken off then, if there is only one; so a format's last tag is no proof that the model wrote it, and everything
    that counts must stand before it.
    """
    ends = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    if ends:
        return text[: min(ends)], "stop"
    if finish != "stop":
        return text, finish
    if "stop_reason" in choice:  # vLLM says which one it was, or that it was none
        reason = choice["stop_reason"]
        return (text + reason if reason in stops else text), finish
    written = "".join(token.text for token in tokens)
    if written.startswith(text):
        for stop in stops:
            if written.startswith(stop, len(text)):
                return text + stop, finish
    return (text + stops[0] if len(stops) == 1 else text), finish


def _tokens(logprobs: Any, reply: Reply) -> tuple[Token, ...]:
    if logprobs is None or (isinstance(logprobs, dict) and logprobs.get("content") is None):
        return ()
    try:
        return tuple(
            Token(
                _string(item["token"]),
                _number(item["logprob"]),
                tuple(
                    sorted(
                        ((_string(a["token"]), _number(a["logprob"])) for a in item.get("top_logprobs") or ()),
                        key=lambda pair: -pair[1],
                    )
                ),
            )
            for item in logprobs["content"]
        )
    except (TypeError, KeyError, OverflowError, AttributeError):
        raise malformed(reply, "its log-probabilities are not as they should be") from None


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        raise TypeError
    return min(float(value), 0.0)


def _fitted(tokens: tuple[Token, ...], text: str, choice: Mapping[str, Any]) -> tuple[Token, ...]:
    """The tokens that make up the text, so that places in it can be found in them; as they are if they don't."""
    if not tokens or not text:
        return tokens
    fitted = _cut(tokens, text)
    if fitted is None:
        fitted = _cut(_from_bytes(tokens, choice), text)
    return tokens if fitted is None else fitted


def _cut(tokens: Sequence[Token], text: str) -> tuple[Token, ...] | None:
    out: list[Token] = []
    at = 0
    for token in tokens:
        piece = token.text
        if at + len(piece) > len(text):
            piece = piece[: len(text) - at]
            token = replace(token, text=piece)
        if not text.startswith(piece, at):
            return None
        out.append(token)
        at += len(piece)
        if at == len(text):
            return tuple(out)
    return None


def _from_bytes(tokens: Sequence[Token], choice: Mapping[str, Any]) -> tuple[Token, ...]:
    """The tokens with their text from their bytes: a character that several share belongs to the last of them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    out: list[Token] = []
    for token, item in zip(tokens, choice["logprobs"]["content"], strict=True):
        raw = item.get("bytes")
        if not isinstance(raw, list) or not all(isinstance(byte, int) and 0 <= byte < 256 for byte in raw):
            return tuple(tokens)
        out.append(replace(token, text=decoder.decode(bytes(raw))))
    return tuple(out)


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return Usage(*(n if isinstance(n, int) and not isinstance(n, bool) and n >= 0 else 0 for n in counts))
