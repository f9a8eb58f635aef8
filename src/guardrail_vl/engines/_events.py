"""A chat completion that comes as an event stream: put together as it comes, into what a whole reply would have held.

So `_completions.read` checks it as strictly as any other. Knows no HTTP client and no label words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from guardrail_vl.engines._completions import REASONING, malformed
from guardrail_vl.engines._http import Reply

FIELDS: Final[Mapping[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}
"""What asks for a stream."""


class Events:
    """Takes in the body of a reply.

    Args:
        on_text: Called with each piece of the completion's text as it comes.
    """

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._seen = False
        self._wrong = ""
        self._texts: dict[str, list[str]] = {}
        self._logprobs: list[Any] | None = None
        self._choice: dict[str, Any] | None = None
        self._usage: Any = None
        self._error: Any = None

    def feed(self, chunk: bytes) -> None:
        """Take in the next bytes. Never raises: what is wrong with them is said in the end."""
        self._rest += chunk
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            self._line(bytes(line).rstrip(b"\r"))

    def whole(self, reply: Reply) -> Any:
        """The reply's JSON as it would be without a stream; None: the body is no event stream.

        Args:
            reply: The one whose body was fed.

        Raises:
            EngineResponseError: Its events are no chat completion.
        """
        self._line(bytes(self._rest).rstrip(b"\r"))
        self._line(b"")
        if not self._seen:
            return None
        if self._wrong:
            raise malformed(reply, self._wrong)
        if self._error or self._choice is None:
            return {"error": self._error, "choices": []}
        message: dict[str, Any] = {name: "".join(pieces) for name, pieces in self._texts.items()}
        choice = {**self._choice, "message": message}
        if self._logprobs is not None:
            choice["logprobs"] = {"content": self._logprobs}
        return {"choices": [choice], "usage": self._usage}

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
        elif not line and self._data:
            data, self._data = b"\n".join(self._data), []
            self._seen = True
            if data != b"[DONE]" and not self._wrong:
                self._wrong = self._event(data)

    def _event(self, data: bytes) -> str:
        """Take in one event. What is wrong with it, in our own words; empty: nothing."""
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            return "its event stream holds what is no JSON"
        choices = event.get("choices") if isinstance(event, dict) else None
        if not isinstance(event, dict) or not isinstance(choices, list | None):
            return "its events are not as they should be"
        self._error = self._error or event.get("error")
        self._usage = event.get("usage") or self._usage
        for choice in choices or ():
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                return "its events hold another choice than the first"
            if wrong := self._delta(choice):
                return wrong
        return ""

    def _delta(self, choice: dict[str, Any]) -> str:
        delta, logprobs = choice.get("delta"), choice.get("logprobs")
        if not isinstance(delta, dict | None):
            return "its event has no delta"
        if self._choice is None:
            self._choice = {}
        for name in ("reasoning_content", "reasoning", "content"):
            piece = delta.get(name) if delta else None
            if not isinstance(piece, str | None):
                return "its delta has no text"
            if piece and self._choice.get("finish_reason") is not None:
                return "its event stream goes on after its end"
            if piece is not None:
                self._take(name, piece)
        if logprobs is not None:
            scored = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
            if not isinstance(scored, list | None):
                return "its log-probabilities are not as they should be"
            if scored is not None:
                self._logprobs = self._logprobs or []
                self._logprobs += scored
        for name in ("finish_reason", "stop_reason"):
            if name in choice and self._choice.get(name) is None:
                self._choice[name] = choice[name]
        return ""

    def _take(self, name: str, piece: str) -> None:
        """Take in a piece of the text. Reasoning that the server took out is told as the model wrote it."""
        pieces = self._texts.setdefault(name, [])
        if not piece:
            if not pieces:
                pieces.append("")
            return
        apart = [key for key in self._texts if key != "content" and any(self._texts[key])]
        if name != "content" and not any(pieces):
            self._on_text(REASONING[0])
        elif name == "content" and apart and not any(pieces):
            self._on_text(REASONING[1])
        pieces.append(piece)
        self._on_text(piece)
