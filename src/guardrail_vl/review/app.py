"""The review page's web application: the list, a turn, a correction. Answers only its own page; see `_door`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import resources
from typing import Annotated, Any, Final, Literal

from guardrail_vl.audit import Archive, Correction, Query
from guardrail_vl.audit.records import FLAGGED
from guardrail_vl.errors import ConfigurationError, ContentError, GuardrailError, MissingDependencyError
from guardrail_vl.review._door import LOOPBACK, Application, Door
from guardrail_vl.review._shown import as_content, as_row
from guardrail_vl.verdict import Action, Label, Stage

try:
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi import Query as Asked
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, ConfigDict, Field
except ImportError as error:
    raise MissingDependencyError("fastapi", extra="server", needed_for="The review page") from error

_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/review.css": ("review.css", "text/css; charset=utf-8"),
    "/review.js": ("review.js", "text/javascript; charset=utf-8"),
}
_PAGE: Final = 30
"""Records of a page."""

ActionChoice = Literal["flagged", "all", "allow", "annotate", "block"]


class _Said(BaseModel):
    """What a reviewer sends."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    prompt: Label | None = None
    response: Label | None = None
    note: str = Field(default="", max_length=4_000)
    reviewer: str = Field(min_length=1, max_length=200)


def create_app(
    archive: Archive, *, token: str | None = None, reviewer: str = "", hosts: Iterable[str] = LOOPBACK
) -> Application:
    """The application, for any ASGI server.

    Args:
        archive: What is reviewed. It stays open.
        token: What reviewers must know. None: nothing; serve it to this machine alone then.
        reviewer: The name that the page suggests.
        hosts: Names that the server is reached by, without ports. Not looked at where there is a token.

    Raises:
        ConfigurationError: The token is empty.
        MissingDependencyError: FastAPI is not installed.
    """
    if token is not None and not token.strip():
        raise ConfigurationError("The token is empty.")
    # No descriptions of itself, and no slash added: the page is all there is.
    app = FastAPI(title="guardrail-vl review", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _add_files(app)
    _add_reading(app, archive, reviewer)
    _add_writing(app, archive)

    @app.exception_handler(RequestValidationError)
    def wrong(request: Request, error: RequestValidationError) -> Response:
        # FastAPI's own answer repeats what was sent.
        return JSONResponse({"error": "The request is not what it should be."}, status_code=422)

    @app.exception_handler(GuardrailError)
    def failed(request: Request, error: GuardrailError) -> Response:
        return JSONResponse({"error": str(error)}, status_code=503 if error.retryable else 400)

    return Door(app, token=token, hosts=None if token is not None else hosts)


def _add_files(app: FastAPI) -> None:
    folder = resources.files(__package__ or __name__)
    for path, (name, media_type) in _FILES.items():
        app.add_api_route(path, _file(folder.joinpath(name).read_bytes(), media_type), methods=["GET"])


def _file(data: bytes, media_type: str) -> Callable[[], Response]:
    def answer() -> Response:
        return Response(data, media_type=media_type)

    return answer


def _add_reading(app: FastAPI, archive: Archive, reviewer: str) -> None:
    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return {"apps": archive.apps(), "reviewer": reviewer}

    @app.get("/api/turns")
    def turns(
        action: ActionChoice = "flagged",
        stage: Stage | None = None,
        app: Annotated[str | None, Asked(max_length=1_000)] = None,
        reviewed: bool | None = None,
        after: Annotated[str | None, Asked(max_length=64)] = None,
    ) -> dict[str, Any]:
        query = Query(_actions(action), stage, app, reviewed, after, limit=_PAGE + 1)
        found = archive.find(query)
        shown = found[:_PAGE]
        said = archive.corrections([record.id for record in shown])
        return {
            "turns": [as_row(record, said.get(record.id)) for record in shown],
            "more": len(found) > _PAGE,
            "total": archive.count(query),
        }

    @app.get("/api/turns/{id}")
    def turn(id: str) -> dict[str, Any]:
        record = archive.get(id)
        if record is None:
            raise HTTPException(404)
        problem = None
        content = None
        try:
            content = archive.content(id)
        except ContentError as error:
            problem = error.message
        return {
            **as_row(record, archive.corrections([id]).get(id)),
            "content": content and as_content(record, content),
            "problem": problem,
        }


def _add_writing(app: FastAPI, archive: Archive) -> None:
    @app.post("/api/turns/{id}/label")
    def label(id: str, said: _Said) -> dict[str, Any]:
        record = archive.get(id)
        if record is None:
            raise HTTPException(404)
        if said.prompt is None and said.response is None:
            raise ConfigurationError("Neither the prompt nor the response has a label.")
        archive.correct(Correction(id, said.reviewer, datetime.now(UTC), said.prompt, said.response, said.note))
        return as_row(record, archive.corrections([id]).get(id))


def _actions(choice: ActionChoice) -> tuple[Action, ...]:
    match choice:
        case "flagged":
            return FLAGGED
        case "all":
            return tuple(Action)
        case _:
            return (Action(choice),)
