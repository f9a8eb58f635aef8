"""The scripted upstream: an HTTP server on loopback that speaks OpenAI's wire and answers what a scenario says.

Run as `python -m guardrail_vl.leakcheck.upstream`; it prints its port, and ends when its standard input does. It counts
calls, keeps request bodies and notices clients that go away. It also plays the judge model for clients that ask one.
It knows no guard; what is harmful it asks of `content`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from guardrail_vl.leakcheck.content import BREAK, MARK, OTHER, WIDE, WORDS, harmful, harmful_data_url
from guardrail_vl.leakcheck.script import JUDGE, MODEL, OWN_HEADER, Reply, choice, completion, dumps, read_reply, whole

MAX_BODY: Final = 64 * 2**20
"""Bytes of a request."""


@dataclass(slots=True)
class Scenario:
    """One scenario's script, and what was seen."""

    replies: list[Reply]
    calls: int = 0
    judged: int = 0
    bodies: list[str] = field(default_factory=list)
    own_client: bool = False
    disconnected: bool = False
    _used: dict[tuple[int, ...], int] = field(default_factory=dict)

    def next(self, request: str) -> Reply:
        """The reply to a request: those whose `when` fits come in order, the last one again and again."""
        fitting = tuple(i for i, reply in enumerate(self.replies) if reply.when in request)
        if not fitting:
            return whole({"error": {"message": "no reply is scripted for this request"}}, status=404)
        number = self._used.get(fitting, 0)
        self._used[fitting] = number + 1
        return self.replies[fitting[min(number, len(fitting) - 1)]]

    def record(self) -> dict[str, Any]:
        """What was seen, as JSON values."""
        names = ("calls", "judged", "bodies", "own_client", "disconnected")
        return {name: getattr(self, name) for name in names}


SCENARIOS: Final = web.AppKey("scenarios", dict[str, Scenario])


async def control(request: web.Request) -> web.StreamResponse:
    """Set a scenario (POST), or say what was seen of it (GET)."""
    name = request.match_info["name"]
    scenarios = request.app[SCENARIOS]
    if request.method == "POST":
        scenarios[name] = Scenario([read_reply(value) for value in await request.json()])
        return web.json_response({})
    return web.json_response(scenarios[name].record())


async def serve(request: web.Request) -> web.StreamResponse:
    """Answer as the upstream, or as a judge."""
    scenario = request.app[SCENARIOS][request.match_info["name"]]
    body = await request.text()
    try:
        value = json.loads(body) if body else {}
    except ValueError:
        value = {}
    model = str(value.get("model") or "") if isinstance(value, dict) else ""
    tail = request.match_info["tail"]
    if JUDGE in model or tail.endswith("/moderations"):
        scenario.judged += 1
        return await _send(request, judge(value, model, moderation=tail.endswith("/moderations")))
    # Reading what is stored costs nothing and sends nothing; opening a web socket is the start of sending.
    scenario.calls += request.method == "POST" or "upgrade" in request.headers
    scenario.bodies.append(body)
    scenario.own_client |= OWN_HEADER in request.headers
    try:
        return await _send(request, scenario.next(f"{request.method} {request.path}\n{body}"))
    except ConnectionResetError:
        scenario.disconnected = True
        return web.Response()  # nobody is there to get it
    except asyncio.CancelledError:
        scenario.disconnected = True
        raise


async def _send(request: web.Request, reply: Reply) -> web.StreamResponse:
    out = web.StreamResponse(status=reply.status, headers=dict(reply.headers))
    out.headers["Content-Type"] = reply.content_type
    await out.prepare(request)
    for frame in reply.frames:
        # Time to be sent by itself; without it, the kernel joins what was written apart.
        await asyncio.sleep(frame.delay)
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError
        await out.write(frame.data)
    if reply.end == "abort":
        await asyncio.sleep(0.05)  # what was written goes out before the socket does
        if request.transport is not None:
            request.transport.abort()
        return out
    await out.write_eof()
    return out


# ---- the judge ----------------------------------------------------------------------------------------------------


_KNOWN: Final = {"-first": (OTHER,), "-second": (MARK, WIDE)}


def judge(request: Any, model: str, *, moderation: bool) -> Reply:
    """What a judge model answers: flagged exactly where what it is shown is harmful; 500 where it breaks.

    The model's name says how it is asked to answer: `…-yesno` (yes: block), `…-flagged` (JSON with `flagged` and
    `confidence`), else `safe` or `unsafe`; and which words it knows, where an app has two (`…-first`, `…-second`).
    """
    texts = list(_strings(request))
    if any(BREAK in text for text in texts):
        broken = {"error": {"message": "the judge is broken", "type": "server_error"}}
        return whole(broken, status=500, x_should_retry="false")
    pictures = [text for text in texts if text.startswith("data:image/")]
    words = [text for text in texts if not text.startswith("data:image/")]
    known = next((w for name, w in _KNOWN.items() if model.endswith(name)), WORDS)
    bad = harmful("\n".join(words), known) or any(harmful_data_url(url) for url in pictures)
    if moderation:
        return whole(_moderation(request, bad))
    if "yesno" in model:
        said = "Yes" if bad else "No"
    elif "flagged" in model:
        said = json.dumps({"flagged": bad, "confidence": 0.99 if bad else 0.01, "reason": "words"})
    else:
        said = "unsafe" if bad else "safe"
    return whole(completion(choice(said)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


_CATEGORIES: Final = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


def _moderation(request: Any, bad: bool) -> dict[str, Any]:
    given = request.get("input")
    flags = {name: bad and name == "violence" for name in _CATEGORIES}
    result = {
        "flagged": bad,
        "categories": flags,
        "category_scores": {name: 0.99 if flag else 0.01 for name, flag in flags.items()},
        "category_applied_input_types": {name: ["text"] for name in flags},
    }
    count = len(given) if isinstance(given, list) and given and isinstance(given[0], str) else 1
    return {"id": "modr-1", "model": MODEL, "results": [result] * count}


# ---- the process --------------------------------------------------------------------------------------------------


def make_app() -> web.Application:
    """The server, without a socket."""
    app = web.Application(client_max_size=MAX_BODY)
    app[SCENARIOS] = {}
    app.router.add_route("*", "/control/{name}", control)
    app.router.add_route("*", "/s/{name}/{tail:.*}", serve)
    return app


async def _main() -> None:
    runner = web.AppRunner(make_app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1)
    await site.start()
    sys.stdout.buffer.write(dumps({"port": runner.addresses[0][1]}) + b"\n")
    sys.stdout.flush()
    try:
        # Who started us holds the other end: when they are gone, so are we.
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_main())
