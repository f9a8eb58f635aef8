"""The door: who may come in, how many at a time, how often, with how much. Plain ASGI, so that a check costs little."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.requests import Request

from guardrail_vl._address import is_loopback
from guardrail_vl.errors import ContentError
from guardrail_vl.server.answers import Refused, error_answer
from guardrail_vl.server.service import LOG, Service
from guardrail_vl.server.settings import ApiKey, digest
from guardrail_vl.wire import jsons

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Neither content nor names of apps: a balancer and a browser have no key.
OPEN: Final = frozenset(("/", "/healthz", "/readyz", "/openapi.json"))
OPEN_FOLDER: Final = "/playground/"


class Door:
    """Middleware.

    Args:
        app: What is behind it.
        service: The server's.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], service: Service) -> None:
        self._app = app
        self._service = service
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        metrics, status, key = self._service.metrics, 0, None
        path: str = scope["path"]

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                endpoint = _endpoint(scope)
                metrics.requests.labels(endpoint, key.name if key else "", str(status)).inc()
                metrics.seconds.labels(endpoint).observe(time.perf_counter() - begun)
            await send(message)

        free = path in OPEN or path.startswith(OPEN_FOLDER)
        self._under_way += not free
        metrics.in_flight.set(self._under_way)
        try:
            if not free:
                key = self._admit(Headers(scope=scope))
            scope.setdefault("state", {})["key"] = key
            with self._service.naming(key):
                await self._app(scope, receive, noting)
        except Refused as error:
            if not status:  # else it is too late for one: the connection ends, and the reply is seen not to be whole
                await error_answer(error)(scope, receive, noting)
        except Exception as error:
            # What a foreign error says may hold content; the traceback holds none of it, but its locals might.
            LOG.error("%s was raised at %s, which is a bug.", type(error).__name__, _endpoint(scope))
            if status:
                raise
            await error_answer(Refused(500, "The server failed, and this turn was not judged.", "bug"))(
                scope, receive, noting
            )
        finally:
            self._under_way -= not free
            metrics.in_flight.set(self._under_way)

    def _admit(self, headers: Headers) -> ApiKey | None:
        """Who asks; None where there are no keys."""
        service = self._service
        if self._under_way > service.settings.max_in_flight:
            raise Refused(
                503, "Too many requests are under way.", "overloaded", retry_after=service.settings.retry_after
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host", ""):
            raise Refused(403, "Pages of other sites may not ask this server.", "wrong_origin")
        if not service.keys:
            if not is_loopback(_host(headers.get("host", ""))):
                # A page of another site whose name was made to point here.
                raise Refused(403, "Without keys, this server answers to the name localhost only.", "wrong_host")
            return None
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        secret = secret.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        key = service.keys.get(digest(secret))
        if key is None:
            raise Refused(401, "No key, or one that is not known here.", "invalid_api_key")
        return key


def _endpoint(scope: Scope) -> str:
    """The route's own path: what a caller wrote there may be anything."""
    route = scope.get("route")
    return getattr(route, "path", "(none)")


def _host(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class Rates:
    """How often each key may ask: a moving window, kept in this process."""

    def __init__(self, service: Service) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        self._items = {key.name: parse(key.rate) for key in service.settings.keys if key.rate is not None}

    async def take(self, key: ApiKey | None, cost: int = 1) -> None:
        """Count these checks.

        Raises:
            Refused: They are too many.
        """
        item = None if key is None else self._items.get(key.name)
        if key is None or item is None or await self._limiter.hit(item, key.name, cost=cost):
            return
        stats = await self._limiter.get_window_stats(item, key.name)
        wait = max(0.0, stats.reset_time - time.time())
        raise Refused(429, f"This key may ask {key.rate}.", "rate_limited", retry_after=wait)


async def body_of(request: Request, limit: int) -> bytes:
    """The request's body.

    Raises:
        Refused: It is longer than the limit.
    """
    too_long = Refused(413, f"The body is longer than {limit} bytes.", "body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_long
    return bytes(body)


async def json_of(request: Request, limit: int) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises:
        Refused: It is longer than the limit, or no JSON object.
    """
    try:
        return jsons.loads(await body_of(request, limit))
    except ContentError as error:
        raise Refused(400, error.message, "invalid_json") from None
