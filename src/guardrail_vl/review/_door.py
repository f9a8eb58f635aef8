"""What every request passes: is it for this host, from this page, by somebody who knows the token? Knows no record."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")
MARK: Final = "x-guardrail-review"
"""A header that only our own page sends: another site would have to ask first, and is never answered."""
BODY_BYTES: Final = 65_536

_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)


class Door:
    """Lets requests through to an application, or refuses them; adds headers to every answer.

    Args:
        inner: The application.
        token: What requests to `/api/` must bear. None: nothing.
        hosts: Names that the server is reached by. None: any; only with a token, which another site doesn't know.
    """

    def __init__(self, inner: Application, *, token: str | None, hosts: Iterable[str] | None) -> None:
        self._inner = inner
        self._token = None if token is None else token.encode()
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._inner(scope, receive, send)
            return  # a web socket is closed by the server when nobody answers

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        refused = self._refusal(scope)
        if refused is None:
            await self._inner(scope, receive, sent)
            return
        status, why = refused
        body = json.dumps({"error": why}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await sent({"type": "http.response.start", "status": status, "headers": headers})
        await sent({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason. None: it may pass."""
        given: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        host = given.get("host", [])
        if len(host) != 1 or (self._hosts is not None and _name(host[0]) not in self._hosts):
            return 421, "This server is not reached by that name."
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "There is no such method."
        if not scope["path"].startswith("/api/"):
            return None if scope["method"] != "POST" else (405, "There is no such method.")
        if MARK not in given:
            return 403, "This is only for the review page."
        origin = given.get("origin", [])
        if any(one not in (f"http://{host[0]}", f"https://{host[0]}") for one in origin):
            return 403, "Another site asked."
        if any(one not in ("same-origin", "none") for one in given.get("sec-fetch-site", [])):
            return 403, "Another site asked."
        if self._token is not None and not self._knows(given.get("authorization", [])):
            return 401, "The token is missing or wrong."
        return _body_refusal(given) if scope["method"] == "POST" else None

    def _knows(self, headers: list[str]) -> bool:
        assert self._token is not None
        scheme, _, value = (headers[0] if len(headers) == 1 else "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(value.strip().encode(), self._token)


def _body_refusal(given: dict[str, list[str]]) -> tuple[int, str] | None:
    kind = given.get("content-type", [""])[0].partition(";")[0].strip().lower()
    if kind != "application/json":
        return 415, "Send JSON."
    length = given.get("content-length", [""])[0]
    if not length.isdecimal():
        return 411, "Say how long it is."
    return None if int(length) <= BODY_BYTES else (413, "It is too long.")


def _name(host: str) -> str:
    """A host without its port."""
    host = host.lower()
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


__all__ = ["BODY_BYTES", "LOOPBACK", "MARK", "Application", "Door"]
