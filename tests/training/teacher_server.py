"""An OpenAI-compatible teacher on a real socket, in a thread of the test, that does what the test says. Knows nothing of
our code: it finds the gold labels in the words it is sent, as a model would.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

READY = "Ready?"
"""What it is asked to see whether it is there."""
GOLD = re.compile(r"Answers:\nRequest: (\w+)\nResponse: (\w+)\n")


@dataclass(frozen=True)
class Asked:
    """One request."""

    body: dict[str, Any]
    headers: dict[str, str]
    number: int
    """How often this user message was sent before, from 0."""
    place: int
    """How many requests came before, from 0."""

    @property
    def system(self) -> str:
        return str(self.body["messages"][0]["content"])

    @property
    def user(self) -> str:
        """The text of the user's message."""
        content = self.body["messages"][1]["content"]
        if isinstance(content, str):
            return content
        return "".join(part.get("text", "<image>") for part in content)

    @property
    def pictures(self) -> list[str]:
        content = self.body["messages"][1]["content"]
        return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]

    @property
    def gold(self) -> tuple[str, str]:
        found = GOLD.search(self.system)
        assert found is not None
        return found[1], found[2]


@dataclass(frozen=True)
class Said:
    """What it answers."""

    text: str | None = ""
    status: int = 200
    finish: str = "stop"
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds."""
    error: str = ""
    message: dict[str, Any] = field(default_factory=dict)
    """More of the message."""


def reasoning(request: str, response: str, steps: int = 2) -> str:
    """What a good teacher writes before its answers."""
    parts = []
    for number, label, what in ((1, request, "request"), (2, response, "response")):
        lines = [f"## Reasoning Step {step}\nI look at part {step} of the {what}." for step in range(1, steps)]
        last = "There is none." if label == "None" else f"So the {what} is {label}."
        parts.append("\n\n".join([f"# Task {number}", *lines, f"## Reasoning Step {steps}\n{last}"]))
    return "\n\n".join(parts)


def answer(request: str, response: str, steps: int = 2) -> str:
    """All of what a good teacher writes."""
    return f"{reasoning(request, response, steps)}\n\n---\n\nAnswers: \nRequest: {request}\nResponse: {response}\n"


def good(asked: Asked) -> Said:
    """A teacher that does as it is told, and thinks that what it must decide is unharmful."""
    if asked.user == READY:
        return Said("Yes")
    request, response = asked.gold
    if request == "None" and "For Request," in asked.system:
        request = "unharmful"
    if response == "None" and "For Response," in asked.system:
        response = "unharmful"
    return Said(answer(request, response))


class TeacherServer:
    """Serves while the block runs.

    Args:
        behaviour: What it says to each request.
        delay: Seconds before each answer.
        port: 0: any free one.
    """

    def __init__(self, behaviour: Callable[[Asked], Said] = good, *, delay: float = 0.0, port: int = 0) -> None:
        self.behaviour = behaviour
        self.delay = delay
        self.asked: list[Asked] = []
        self.most = 0
        """Requests under way at a time, at most."""
        self._now = 0
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def counts(self) -> Counter[str]:
        """How often each user message came."""
        return Counter(asked.user for asked in self.asked)

    def note(self, body: dict[str, Any], headers: dict[str, str]) -> Asked:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            key = json.dumps(body["messages"][1])
            asked = Asked(body, headers, self._users[key], len(self.asked))
            self._users[key] += 1
            self.asked.append(asked)
            return asked

    def done(self) -> None:
        with self._lock:
            self._now -= 1

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                asked = outer.note(body, {name.lower(): value for name, value in self.headers.items()})
                try:
                    said = outer.behaviour(asked)
                    time.sleep(outer.delay + said.delay)
                    self._say(said)
                except OSError:
                    self.close_connection = True  # whoever asked is gone
                finally:
                    outer.done()

            def _say(self, said: Said) -> None:
                message = {"role": "assistant", "content": said.text, **said.message}
                value: dict[str, Any] = {
                    "object": "chat.completion",
                    "choices": [{"index": 0, "message": message, "finish_reason": said.finish}],
                    "usage": {"prompt_tokens": 11, "completion_tokens": 7},
                }
                if said.status != 200:
                    value = {"error": {"message": said.error, "code": "some_code"}}
                data = json.dumps(value).encode()
                self.send_response(said.status)
                for name, text in {"content-type": "application/json", **said.headers}.items():
                    self.send_header(name, text)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
