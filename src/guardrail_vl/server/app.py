"""The app: which endpoint is where, what it is called in the API's description, and what starts and ends with it."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from guardrail_vl.errors import MissingDependencyError

try:
    from fastapi import FastAPI
    from fastapi.routing import APIRoute
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise MissingDependencyError("fastapi", extra="server", needed_for="The server") from error

from guardrail_vl import __version__
from guardrail_vl.guard import Guard
from guardrail_vl.server.admission import Door, Rates
from guardrail_vl.server.answers import Refused, answer, error_answer
from guardrail_vl.server.moderation import LiteLLMApi, ModerationsApi
from guardrail_vl.server.native import GuardApi, GuardRequest
from guardrail_vl.server.proxy import ProxyApi
from guardrail_vl.server.service import Service
from guardrail_vl.server.settings import Settings

if TYPE_CHECKING:
    from guardrail_vl.audit import AuditLog

_PAGE: Final = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_PAGE_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def create_app(
    guard: Guard | Callable[[], Guard], settings: Settings | None = None, *, audit: AuditLog | None = None
) -> FastAPI:
    """The server as an ASGI app.

    Args:
        guard: The guard, or what makes it: called in a thread once the server is up, and not ready until then.
        settings: None: the defaults.
        audit: Where every decision is recorded, with the name of the key that asked. It is closed at the end.
    """
    settings = settings or Settings()
    service = Service(guard, settings, audit)
    rates = Rates(service)
    proxy = None if settings.upstream is None else ProxyApi(service, rates)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()
            if proxy is not None:
                await proxy.aclose()

    app = FastAPI(
        title="guardrail-vl", version=__version__, lifespan=lifespan,
        # Their pages load scripts from elsewhere; the description itself is at /openapi.json.
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.service = service
    _judging(app, service, rates)
    judging = {route.path: route for route in app.routes if isinstance(route, Plain)}
    app.add_middleware(Door, service=service, judging=judging)
    _telling(app, service)
    _showing(app)
    if proxy is not None:
        # After ours, so that what is ours stays ours.
        app.router.add_api_route(
            "/v1/{path:path}", _endpoint(proxy), methods=["GET", "POST", "DELETE", "HEAD"], include_in_schema=False,
            route_class_override=Plain,
        )  # fmt: skip
    return app


def _judging(app: FastAPI, service: Service, rates: Rates) -> None:
    guard_schema = {**GuardRequest.model_json_schema(ref_template="#/components/schemas/{model}")}
    add = functools.partial(app.router.add_api_route, methods=["POST"], route_class_override=Plain)
    add(
        "/v1/guard", _endpoint(GuardApi(service, rates)), summary="Judge a turn, or a batch",
        responses=_responses("The decision, or `decisions`.", 400, 401, 403, 413, 429, 503),
        openapi_extra=_body(_inlined(guard_schema)),
    )  # fmt: skip
    add(
        "/v1/moderations", _endpoint(ModerationsApi(service, rates)), summary="OpenAI's moderations",
        responses=_responses("A result for each input.", 400, 401, 413, 429, 502, 503),
        openapi_extra=_body(_MODERATION),
    )  # fmt: skip
    add(
        "/beta/litellm_basic_guardrail_api", _endpoint(LiteLLMApi(service, rates)),
        summary="LiteLLM's generic guardrail API",
        responses=_responses("An action.", 400, 401, 413, 429, 502, 503), openapi_extra=_body(_LITELLM),
    )  # fmt: skip


def _telling(app: FastAPI, service: Service) -> None:
    async def healthz(request: Request) -> Response:
        return answer({"status": "ok"})

    async def readyz(request: Request) -> Response:
        if service.wrong:
            error = Refused(503, f"Not ready: {'; '.join(service.wrong)}.", "not_ready",
                            retry_after=service.settings.retry_after)  # fmt: skip
            return error_answer(error, ready=False)
        return answer({"ready": True})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def policies(request: Request) -> Response:
        key = request.scope["state"]["key"]
        mine = {n: p for n, p in service.policies.items() if key is None or key.policy in (None, n)}
        rows = [{"name": name, "hash": p.hash, "description": p.description} for name, p in mine.items()]
        model = service.guard.engine.model
        return answer({"policies": rows, "speeds": service.speeds, "model": model})

    for path, endpoint, summary in (
        ("/healthz", healthz, "Whether the process answers"),
        ("/readyz", readyz, "Whether the guard can be trusted now"),
        ("/metrics", metrics, "Prometheus' metrics"),
        ("/v1/policies", policies, "What a request may name"),
    ):
        app.add_api_route(path, endpoint, methods=["GET"], summary=summary, responses=_responses("It.", 401, 503))


def _showing(app: FastAPI) -> None:
    folder = files("guardrail_vl.server") / "page"

    def shown(name: str, media_type: str) -> Callable[[Request], Any]:
        body = (folder / (name or "index.html")).read_bytes()

        async def page(request: Request) -> Response:
            return Response(body, headers=_PAGE_HEADERS, media_type=f"{media_type}; charset=utf-8")

        return page

    for name, media_type in _PAGE.items():
        app.add_api_route(f"/playground/{name}" if name else "/", shown(name, media_type), methods=["GET"],
                          include_in_schema=False)  # fmt: skip


class Plain(APIRoute):
    """A route that FastAPI describes, and does nothing else for: its endpoint reads the request, and makes the reply.

    Args:
        path: As for `APIRoute`.
        endpoint: Given the request; nothing else is solved for it.
        described: More for `APIRoute`: what the API's description says.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **described: Any) -> None:
        super().__init__(path, endpoint, **described)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = app


def _endpoint(api: Any) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        made: Response = await api(request)
        return made

    return endpoint


# ---- the API's description ------------------------------------------------------------------------------------------

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "code": {"type": "string"}},
        }
    },
}
_MODERATION: Final = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "string"}},
                {"type": "array", "minItems": 1, "items": {"type": "object"}},
            ]
        },
        "model": {"type": "string"},
    },
}
_LITELLM: Final = {
    "type": "object",
    "required": ["input_type"],
    "properties": {
        "input_type": {"enum": ["request", "response"]},
        "texts": {"type": "array", "items": {"type": "string"}},
        "images": {"type": "array", "items": {"type": "string"}},
    },
}


def _body(schema: Any) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without `$defs`, which an API's description has no place for."""
    defined = schema.pop("$defs", {})

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return walk(defined[value["$ref"].rpartition("/")[2]])
            return {key: walk(one) for key, one in value.items()}
        return [walk(one) for one in value] if isinstance(value, list) else value

    made: dict[str, Any] = walk(schema)
    return made


def _responses(what: str, *errors: int) -> dict[int | str, dict[str, Any]]:
    said = {400: "Not a request, or a turn that can't be judged.", 401: "No key, or an unknown one.",
            403: "Not allowed.", 413: "Too large.", 429: "Too often.", 502: "No verdict.",
            503: "The guard is not there now."}  # fmt: skip
    content = {"application/json": {"schema": _ERROR}}
    return {
        200: {"description": what},
        **{status: {"description": said[status], "content": content} for status in errors},
    }
