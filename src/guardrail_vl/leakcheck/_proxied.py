"""Our proxy in front of the scripted upstream, in a thread: that of `guardrail-vl serve`. Knows no client."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from guardrail_vl.errors import EngineUnavailableError
from guardrail_vl.guard import Guard


def behind(guards: Sequence[Guard], stack: contextlib.ExitStack, base_url: str, refusal: str) -> str:
    """The base URL of a proxy for each guard, the first outermost, in front of this one. They end with the stack."""
    for guard in reversed(guards):
        base_url = stack.enter_context(_proxy(guard, base_url, refusal))
    return base_url


def closing(close: Callable[[], Any], stack: contextlib.ExitStack, *, asynchronous: bool) -> Callable[[], Any]:
    """A client's `close` that ends the stack too."""

    async def aclose() -> None:
        await close()
        stack.close()

    def plain() -> None:
        close()
        stack.close()

    return aclose if asynchronous else plain


@contextlib.contextmanager
def _proxy(guard: Guard, upstream: str, refusal: str) -> Iterator[str]:
    """A proxy in a thread of its own; gives its base URL."""
    import uvicorn

    from guardrail_vl.server import Settings, create_app

    settings = Settings(upstream=upstream, canaries=False, refusal=refusal)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(guard, settings), log_config=None, access_log=False, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 20
        while not server.started:
            if time.monotonic() > end or not thread.is_alive():
                raise EngineUnavailableError("The proxy did not start.")
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
