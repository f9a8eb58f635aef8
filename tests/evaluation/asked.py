"""A real HTTP server that answers as a GuardReasoner-VL model would, and notes which sample each request was about.

A sample's prompt is `question NUMBER`; it is harmful where "bomb" stands.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from guardrail_vl import Guard
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.records import Record
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Label, Stage

MODEL = "noting-guard"
_NUMBER = re.compile(r"question (\d+)", re.IGNORECASE)


def questions(count: int, name: str = "questions") -> CaseSet:
    """Every third is about a bomb."""
    return CaseSet(
        name,
        tuple(
            Case(
                f"q{i}",
                Stage.PROMPT,
                Label.UNHARMFUL if i % 3 else Label.HARMFUL,
                f"question {i}" + ("" if i % 3 else " of a bomb"),
            )
            for i in range(count)
        ),
    )


def make_guard(script: Any = None, **settings: Any) -> Guard:
    """A guard that needs no server: harmful where "bomb" stands, unless another script is given."""
    return Guard(engine=ScriptedEngine(script or by_keyword("bomb")), **settings)


def ids(records: Sequence[Record]) -> list[str]:
    """The ids of these records, in order."""
    return [record.id for record in records]


class Server:
    """What it was asked, and how it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[int] = []
        """Numbers of the samples, in the order of their requests."""
        self.delay = 0.0
        self.status = 200

    def settle(self) -> None:
        """Wait until no more requests come in."""
        seen = -1
        while seen != len(self.asked):
            seen = len(self.asked)
            time.sleep(0.2 + self.delay)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        told: Server = self.server.told
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = request["messages"][-1]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        number = _NUMBER.search(text)
        assert number is not None
        told.asked.append(int(number[1]))
        time.sleep(told.delay)
        if told.status != 200:
            self._send({"error": {"message": "no"}}, told.status)
            return
        label = "harmful" if "bomb" in text else "unharmful"
        said = f"<think>Looked for a word.\n</think>\n\n<result>\nRequest: {label}\nResponse: unharmful\n</result>"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
        self._send({"id": "c", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})

    def _send(self, value: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # whoever asked was killed
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections end when their process is killed."""


@contextmanager
def serve() -> Iterator[Server]:
    """A running server."""
    told = Server()
    server = _Http(("127.0.0.1", 0), _Handler)
    server.told = told  # type: ignore[attr-defined]
    told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
