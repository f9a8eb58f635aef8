"""The door: who may come in, how many at a time, how often, with how much. Plain ASGI, so that a check costs little."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from guardrail_vl._address import is_loopback
from guardrail_vl.errors import ContentError
from guardrail_vl.server.answers import Refused, error_answer
from guardrail_vl.server.service import LOG, Service
from guardrail_vl.server.settings import ApiKey, digest
from guardrail_vl.wire import jsons

# Neither content nor names of apps: a balancer and a browser have no key.
OPEN: Final = frozenset(("/", "/healthz", "/readyz", "/openapi.json"))
OPEN_FOLDER: Final = "/playground/"


class Door:
    """Middleware.

    Args:
        app: What is behind it.
        service: The server's.
        judging: Routes by their paths, where a POST goes without asking every route in turn whether it is its own.
    """

    def __init__(self, app: ASGIApp, service: Service, judging: Mapping[str, Route]) -> None:
        self._app = app
        self._service = service
        self._judging = judging
        self._under_way = 0
        service.metrics.in_flight.set_function(lambda: self._under_way)

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
                metrics.replied(endpoint, key.name if key else "", status, time.perf_counter() - begun)
            await send(message)

        free = path in OPEN or path.startswith(OPEN_FOLDER)
        self._under_way += not free
        try:
            if not free:
                key = self._admit(Headers(scope=scope))
            scope.setdefault("state", {})["key"] = key
            with self._service.naming(key):
                await self._behind(scope)(scope, receive, noting)
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

    def _behind(self, scope: Scope) -> ASGIApp:
        route = self._judging.get(scope["path"])
        # Where FastAPI traces requests, it tells the tracer which route it chose.
        if route is None or scope["method"] != "POST" or "fastapi.telemetry" in scope:
            return self._app
        scope["route"] = route
        return route.app

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
            if not _is_ours(headers.get("host", "")):
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


@functools.lru_cache(maxsize=64)
def _is_ours(header: str) -> bool:
    """Whether a Host header names this machine as only itself can."""
    try:
        return is_loopback(urlsplit(f"//{header}").hostname or "")
    except ValueError:
        return False


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
    declared = request.headers.get("content-length", "")
    body = bytearray()
    if not (declared.isdecimal() and int(declared) > limit):
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise Refused(413, f"The body is longer than {limit} bytes.", "body_too_large")


async def json_of(request: Request, limit: int) -> dict[str, Any]:
    """The request's body as a JSON object.

    Raises:
        Refused: It is longer than the limit, or no JSON object.
    """
    try:
        return jsons.loads(await body_of(request, limit))
    except ContentError as error:
        raise Refused(400, error.message, "invalid_json") from None
