"""A real HTTP server around a real engine: chat completions in, as vLLM takes them, the engine's answer out.

So that an engine can be compared with itself across the wire. Scores of an engine that classifies go out as the JSON
that its format reads.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from guardrail_vl.engines.base import Deadline, Engine
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptImage, PromptMessage, PromptText
from guardrail_vl.turn import ImagePart


@contextmanager
def serve(engine: Engine) -> Iterator[str]:
    """The base URL of a server around this engine."""

    class Handler(_Handler):
        judge = engine

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    judge: Engine

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "served", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (outcome,) = self.judge.generate([_prompt(request)], deadline=Deadline.after(60))
        if not isinstance(outcome, Completion):
            self._send({"error": {"message": type(outcome).__name__}}, 500)
            return
        text = outcome.text or json.dumps({"scores": dict(outcome.scores), "unjudged": list(outcome.unjudged)})
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": outcome.finish,
            "stop_reason": None,
        }
        if request.get("logprobs"):
            choice["logprobs"] = {
                "content": [
                    {
                        "token": token.text,
                        "logprob": token.logprob,
                        "top_logprobs": [{"token": t, "logprob": p} for t, p in token.alternatives],
                    }
                    for token in outcome.tokens
                ]
            }
        self._send({"object": "chat.completion", "choices": [choice], "usage": {}})

    def _send(self, value: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _prompt(request: dict[str, Any]) -> Prompt:
    messages = [PromptMessage(m["role"], _content(m["content"])) for m in request["messages"]]
    prefix = messages.pop().text if request.get("continue_final_message") else ""
    return Prompt(
        tuple(messages),
        prefix=prefix,
        max_tokens=request["max_tokens"],
        stop=tuple(request.get("stop", ())),
        top_logprobs=request.get("top_logprobs", 0),
    )


def _content(content: Any) -> tuple[PromptText | PromptImage, ...]:
    if isinstance(content, str):
        return (PromptText(content),)
    return tuple(
        PromptText(part["text"])
        if part["type"] == "text"
        else PromptImage(ImagePart(base64.b64decode(part["image_url"]["url"].partition(",")[2])), max_pixels=1 << 30)
        for part in content
    )
