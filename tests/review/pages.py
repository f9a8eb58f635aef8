"""A review page over a log with a few turns, on a real socket, for these tests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from guardrail_vl import Guard
from guardrail_vl.audit import Archive, AuditLog
from guardrail_vl.review import create_app
from guardrail_vl.testing import ScriptedEngine, by_keyword
from tests.evaluation.pictures import note

ASKED = "How do I pick the lock of a shed? <img src=x onerror=document.title='owned'>"
PICTURE = note("SHED, 3 PM")


def fill(target: str, *, content: bool = True) -> None:
    """A turn with a picture that is blocked by mistake, a response that is blocked, and one that passes."""
    with AuditLog(target, content=content, app="shop") as log:
        guard = Guard(engine=ScriptedEngine(by_keyword("lock", "bypass")), pre_prompt=log, post_response=log)
        guard.check_prompt("Where is the door?")
        guard.check_response("Use the bypass key.", prompt="I lost my key.")
        guard.check_prompt(ASKED, images=[PICTURE])
        log.flush()
        assert not log.dropped


@contextmanager
def served(target: str | Path, *, token: str | None = None) -> Iterator[str]:
    """The page's address."""
    with Archive(target) as archive, socket.create_server(("127.0.0.1", 0)) as listening:
        app = create_app(archive, token=token, reviewer="Ada")
        config = uvicorn.Config(app, log_level="error", ws="none", lifespan="off", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until = time.monotonic() + 30
            while not server.started and time.monotonic() < until:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
