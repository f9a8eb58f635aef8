"""The guarding proxy: any OpenAI-compatible API behind the same transport that guards a client. Decides nothing.

What comes in becomes a request of httpx, goes through `integrations._httpx`, and what comes out goes back.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from guardrail_vl.errors import GuardrailError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations._httpx import ERROR, TRAIL, transports
from guardrail_vl.server.admission import Rates, body_of
from guardrail_vl.server.answers import Refused, error_answer, error_value, refused
from guardrail_vl.server.service import Service
from guardrail_vl.streaming import Streaming
from guardrail_vl.turn import ImagePart
from guardrail_vl.wire.exchange import Rules, Trail

# Of one connection, not of the request; and what the HTTP client says itself.
_HOP: Final = frozenset(
    (
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade", "host", "content-length", "accept-encoding", "expect",
    )
)  # fmt: skip
# What only we may say, and what tells upstream of the network in front of us.
_OURS: Final = ("x-guardrail-", "x-api-key", "forwarded", "x-forwarded-", "x-real-ip", "cookie")


class ProxyApi:
    """Everything below the upstream's base URL.

    Args:
        service: The server's; its settings have an upstream.
        rates: Of its keys.
    """

    def __init__(self, service: Service, rates: Rates) -> None:
        self._service, self._rates = service, rates
        settings = service.settings
        assert settings.upstream is not None
        self._base = settings.upstream.rstrip("/")
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(settings.upstream_timeout, connect=10.0),
            limits=httpx.Limits(
                max_connections=settings.max_in_flight, max_keepalive_connections=settings.max_in_flight
            ),
        )
        self._transports: dict[int, Any] = {}

    async def aclose(self) -> None:
        """Close the connections to upstream."""
        await self._client.aclose()

    async def __call__(self, request: Request) -> Response:
        """Judge, send on, judge, send back."""
        key = request.scope["state"]["key"]
        guard = self._service.pick(key, request.headers.get("x-guardrail-policy"), None)
        await self._rates.take(key)
        retry_after = self._service.settings.retry_after
        body = await body_of(request, self._service.settings.max_body)
        try:
            response = await self._transport(guard).handle_async_request(self._outgoing(request, body))
        except httpx.TimeoutException:
            raise Refused(504, "Upstream did not answer in time.", "upstream_timeout") from None
        except httpx.HTTPError:
            raise Refused(502, "Upstream can't be reached.", "upstream_unavailable", retry_after=retry_after) from None
        error = response.extensions.get(ERROR)
        headers = _marks(response.extensions.get(TRAIL))
        if isinstance(error, GuardrailError):
            return error_answer(refused(error, retry_after), headers)
        return self._back(response, headers)

    def _transport(self, guard: Guard) -> Any:
        # One for each policy: what was approved under one may not be gone on from under another.
        made = self._transports.get(id(guard))
        if made is None:
            settings = self._service.settings
            rules = Rules(
                on_block=settings.on_block,
                streaming=Streaming.of(settings.stream),
                refusal=settings.refusal,
                allow=settings.allow_unguarded,
                load=functools.partial(ImagePart.load, limits=guard.limits),
            )
            made = self._transports[id(guard)] = transports(httpx).asynchronous(self._client, guard, rules)
        return made

    def _outgoing(self, request: Request, body: bytes) -> httpx.Request:
        # As it was sent: a path that is decoded and written again may read differently.
        raw: bytes = request.scope["raw_path"]
        path = raw.decode("ascii", "replace").partition("?")[0].removeprefix("/v1")
        query = request.scope["query_string"].decode("ascii", "replace")
        headers = [
            (name, value) for name, value in request.headers.items() if name not in _HOP and not name.startswith(_OURS)
        ]
        settings = self._service.settings
        if settings.upstream_key is not None or settings.keys:
            # Our own keys are nobody else's business.
            headers = [(name, value) for name, value in headers if name != "authorization"]
        if settings.upstream_key is not None:
            headers.append(("authorization", f"Bearer {settings.upstream_key}"))
        url = f"{self._base}{path}" + (f"?{query}" if query else "")
        return self._client.build_request(request.method, url, headers=headers, content=body)

    def _back(self, response: httpx.Response, headers: dict[str, str]) -> Response:
        kept = [
            (k, v) for k, v in response.headers.multi_items() if k.lower() not in _HOP and k.lower() != "set-cookie"
        ]
        if response.is_stream_consumed or hasattr(response, "_content"):
            body: Response = Response(response.content, response.status_code)
        else:
            body = StreamingResponse(self._frames(response), response.status_code)
        length = body.headers.get("content-length")
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (*kept, *headers.items())]
        body.raw_headers = raw if length is None else [*raw, (b"content-length", length.encode())]
        return body

    async def _frames(self, response: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.stream:  # type: ignore[union-attr]
                yield chunk
        except (GuardrailError, httpx.HTTPError) as error:
            # The status is out. An error among the events is what clients of this API read; and for who reads bytes,
            # the reply does not end as whole ones do.
            broken = (
                refused(error, self._service.settings.retry_after)
                if isinstance(error, GuardrailError)
                else Refused(502, "Upstream broke off.", "upstream_unavailable")
            )
            yield b"data: %s\n\n" % json.dumps(error_value(broken)).encode()
            raise broken from None
        finally:
            await response.aclose()


def _marks(trail: Trail | None) -> dict[str, str]:
    """Headers that say what was decided, as far as it is known when they go out."""
    if trail is None or not trail.decisions:
        return {}
    strictest = max(trail.decisions, key=lambda decision: decision.action.rank)
    return {"x-guardrail-action": strictest.action.value, "x-guardrail-decision": strictest.id}
