"""A server under test: the real one, on a real socket, in a thread; and the guard that it serves."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from guardrail_vl import Guard
from guardrail_vl.engines.base import Outcome
from guardrail_vl.errors import EngineUnavailableError
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.server import Settings, create_app
from guardrail_vl.testing import ScriptedEngine

BAD = "ZZBADZZ"
BROKEN = "ZZBROKENZZ"


def script(prompt: Prompt) -> Outcome:
    """Harmful is what holds BAD; BROKEN breaks the engine."""
    request, _, response = prompt.messages[-1].text.rpartition("AI assistant:\n")
    if BROKEN in request + response:
        return EngineUnavailableError("The engine is broken.")
    labels = ["harmful" if BAD in side else "unharmful" for side in (request, response)]
    text = f"<think>\nStep 1: looked for a word.\n</think>\n\n<result>\nRequest: {labels[0]}\nResponse: {labels[1]}\n</result>"
    return Completion(text, model="scripted")


def make_guard(**settings: Any) -> Guard:
    return Guard(engine=ScriptedEngine(script, model="scripted"), **settings)


@contextmanager
def serving(guard: Guard | Callable[[], Guard] | None = None, *, audit: Any = None, **settings: Any) -> Iterator[str]:
    """The server's URL."""
    settings.setdefault("canaries", False)
    app = create_app(guard or make_guard(), Settings(**settings), audit=audit)
    with running(app) as url:
        yield url


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Any app's URL."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
