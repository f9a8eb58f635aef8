"""A real HTTP server on loopback that plays an OpenAI-compatible LLM; each test says what it answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the server answers: a whole body, or frames with a pause before each."""

    body: bytes = b""
    status: int = 200
    media_type: str = "application/json"
    frames: Iterable[bytes] | None = None
    pause: float = 0.0
    wait: float = 0.0
    cut: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class Llm:
    """The server. `requests` are the bodies it got, `left` counts clients that went away before the end."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer], *, keep_alive: bool = True) -> None:
        self.answer = answer
        self.keep_alive = keep_alive
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.left = 0
        self.sent = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                body = json.loads(raw) if raw else {}
                outer.requests.append(body)
                outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                outer.paths.append(self.path)
                outer.reply(self, outer.answer(body))

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:  # a client that hangs up is what some tests are about
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def reply(self, to: BaseHTTPRequestHandler, answer: Answer) -> None:
        time.sleep(answer.wait)
        try:
            to.send_response(answer.status)
            for name, value in answer.headers.items():
                to.send_header(name, value)
            to.send_header("content-type", answer.media_type)
            if not self.keep_alive:
                to.send_header("connection", "close")
            if answer.frames is None:
                to.send_header("content-length", str(len(answer.body)))
                to.end_headers()
                to.wfile.write(answer.body)
                return
            to.send_header("transfer-encoding", "chunked")
            to.end_headers()
            for frame in answer.frames:
                time.sleep(answer.pause)
                to.wfile.write(b"%x\r\n" % len(frame) + frame + b"\r\n")
                to.wfile.flush()
                self.sent += 1
            if answer.cut:
                to.close_connection = True
                to.connection.close()
                return
            to.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.left += 1
            to.close_connection = True

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def completion(*texts: str | dict[str, Any]) -> Answer:
    """A whole chat completion with a choice for each text (or message)."""
    choices = [
        {
            "index": i,
            "finish_reason": "stop",
            "message": {"role": "assistant", **({"content": text} if isinstance(text, str) else text)},
        }
        for i, text in enumerate(texts)
    ]
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}
    return Answer(json.dumps(body).encode())


def chunk(delta: dict[str, Any], *, choice: int = 0, finish: str | None = None) -> bytes:
    """One frame of a chat stream."""
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": choice, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def stream(words: Iterable[str], *, pause: float = 0.002, cut: bool = False, done: bool = True) -> Answer:
    """A chat stream of these pieces of text."""
    frames = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in words)]
    if not cut:
        frames.append(chunk({}, finish="stop"))
        if done:
            frames.append(DONE)
    return Answer(media_type="text/event-stream", frames=frames, pause=pause, cut=cut)
