"""What goes back: JSON, and errors in OpenAI's shape. Says what follows from an error; holds no content."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from guardrail_vl.errors import (
    BlockedError,
    ConfigurationError,
    ContentError,
    EngineError,
    EngineUnavailableError,
    GuardrailError,
)
from guardrail_vl.verdict import Decision


class Refused(Exception):
    """A request that ends with an HTTP error.

    Args:
        status: HTTP status.
        message: For the caller; holds no content.
        code: For programs.
        retry_after: Seconds after which it may be tried again. None: nothing is said of it.
    """

    def __init__(self, status: int, message: str, code: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after


_TYPES: Final = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
                 404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON reply."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return Response(body, status, headers, "application/json")


def error_answer(error: Refused, headers: Mapping[str, str] | None = None, **more: object) -> Response:
    """An error, in the shape that OpenAI's clients read.

    Args:
        error: What happened.
        headers: More headers.
        more: More fields beside `error`.
    """
    return answer({**error_value(error), **more}, error.status, {**error_headers(error), **(headers or {})})


def error_value(error: Refused) -> dict[str, Any]:
    """The JSON of an error."""
    kind = _TYPES.get(error.status, "server_error")
    return {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}


def error_headers(error: Refused) -> dict[str, str]:
    """The headers of an error."""
    headers = {}
    if error.retry_after is not None:
        # Whole seconds: the only form that every client reads.
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def refused(error: GuardrailError, retry_after: float) -> Refused:
    """What a caller is told of an error of ours.

    Args:
        error: Of a guard, or about a request.
        retry_after: Seconds, where the error says none.
    """
    match error:
        case BlockedError():
            return Refused(400, "The guard's policy blocks this turn.", "content_filter")
        case ContentError():
            return Refused(400, str(error), "content_not_judgeable")
        case EngineUnavailableError():
            return Refused(503, error.message, "guard_unavailable", retry_after=error.retry_after or retry_after)
        case EngineError():
            return Refused(503, error.message, "guard_failed", retry_after=retry_after)
        case ConfigurationError():
            return Refused(403, str(error), "not_covered")
        case _:  # the model's answer followed no format: another turn may well be judged
            return Refused(502, error.message, "no_verdict")


def down(decision: Decision) -> EngineError | None:
    """The error of an engine that failed, where that blocks: the caller may come again. None: there is a decision."""
    return decision.error if decision.blocked and isinstance(decision.error, EngineError) else None
