"""`/v1/guard`: turns in, decisions out; one or a batch, or the reasoning as it is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from guardrail_vl.errors import GuardrailError
from guardrail_vl.guard import Guard
from guardrail_vl.server.admission import Rates, json_of
from guardrail_vl.server.answers import Refused, answer, down, error_answer, error_value, refused
from guardrail_vl.server.service import Service
from guardrail_vl.turn import ImageLoader, ImagePart, Turn
from guardrail_vl.verdict import Decision


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, strict=True)


def _pictures(what: str) -> Any:
    # A default that is a list would be copied, deeply, for each request.
    return Field(default_factory=list, description=what, json_schema_extra={"default": []})


class TurnIn(_Shape):
    """One turn: a prompt, perhaps with a response, or messages."""

    prompt: str | None = None
    response: str | None = None
    images: list[str] = _pictures("The prompt's pictures, as data: URLs.")
    response_images: list[str] = _pictures("The response's pictures, as data: URLs.")
    messages: Annotated[list[dict[str, Any]] | None, Field(description="OpenAI-style, instead of all the above.")] = (
        None
    )
    stage: Annotated[
        Literal["prompt", "response"] | None, Field(description="What is judged; null: the response if there is one.")
    ] = None


class GuardRequest(TurnIn):
    """What `/v1/guard` takes: one turn, or `inputs`."""

    inputs: Annotated[list[TurnIn] | None, Field(description="A batch, instead of one turn.")] = None
    policy: Annotated[str | None, Field(description="A policy's name; null: the key's, else the default.")] = None
    speed: Annotated[Literal["fast", "reason", "auto"] | None, Field(description="null: the guard's own.")] = None
    stream: Annotated[bool, Field(description="The reasoning as events, then the decision. Not for a batch.")] = False


def content_of(given: TurnIn) -> Any:
    """What `Guard.check` takes."""
    plain = (given.prompt, given.response, given.images or None, given.response_images or None)
    if given.messages is not None:
        if any(one is not None for one in plain):
            raise Refused(400, "Give messages, or a prompt and a response, not both.", "invalid_request")
        return given.messages
    for url in (*given.images, *given.response_images):
        if not url.startswith(("data:", "http:", "https:")):  # a path would be one of this machine's
            raise Refused(400, "A picture must be a data: URL.", "invalid_request")

    def make(load: ImageLoader | None = None) -> Turn:
        return Turn.from_prompt(
            given.prompt,
            images=given.images,
            response=given.response,
            response_images=given.response_images,
            load=load or ImagePart.load,
        )

    return make


def read(value: dict[str, Any]) -> GuardRequest:
    """The request.

    Raises:
        Refused: It is not one. The message names fields, and none of their content.
    """
    try:
        return GuardRequest.model_validate(value)
    except ValidationError as error:
        # The name of a field that we don't know is the caller's own text.
        known = {*GuardRequest.model_fields, "inputs"}
        where = sorted(
            {str(e["loc"][0]) if e["loc"] and e["loc"][0] in known else "unknown fields" for e in error.errors()}
        )
        raise Refused(400, f"Wrong or unknown: {', '.join(where) or 'the request'}.", "invalid_request") from None


class GuardApi:
    """The endpoint.

    Args:
        service: The server's.
        rates: Of its keys.
    """

    def __init__(self, service: Service, rates: Rates) -> None:
        self._service, self._rates = service, rates

    async def __call__(self, request: Request) -> Response:
        """Judge."""
        settings = self._service.settings
        asked = read(await json_of(request, settings.max_body))
        key = request.scope["state"]["key"]
        guard = self._service.pick(key, asked.policy, asked.speed)
        if asked.inputs is None:
            await self._rates.take(key)
            content = content_of(asked)
            if asked.stream:
                return StreamingResponse(
                    self._events(guard, content, asked.stage), media_type="text/event-stream",
                    headers={"cache-control": "no-store", "x-accel-buffering": "no"},
                )  # fmt: skip
            return self._one(await guard.acheck(content, stage=asked.stage))
        if asked.stream or asked.model_fields_set & set(TurnIn.model_fields):
            raise Refused(400, "A batch has inputs, policy and speed only.", "invalid_request")
        if not 0 < len(asked.inputs) <= settings.max_batch:
            raise Refused(413, f"A batch has 1 to {settings.max_batch} inputs.", "batch_too_large")
        await self._rates.take(key, len(asked.inputs))
        pairs = [(content_of(one), one.stage) for one in asked.inputs]
        decisions = await asyncio.gather(*(guard.acheck(content, stage=stage) for content, stage in pairs))
        errors = [down(decision) for decision in decisions]
        if all(errors):
            return self._failed(decisions[0])
        return answer({"decisions": [json.loads(d.to_json()) for d in decisions]})

    def _one(self, decision: Decision) -> Response:
        if down(decision) is not None:
            return self._failed(decision)
        return Response(decision.to_json(), media_type="application/json")

    def _failed(self, decision: Decision) -> Response:
        assert decision.error is not None
        error = refused(decision.error, self._service.settings.retry_after)
        return error_answer(error, decision=json.loads(decision.to_json()))

    async def _events(self, guard: Guard, content: Any, stage: str | None) -> AsyncIterator[bytes]:
        try:
            async for piece in guard.awatch(content, stage=stage):
                if isinstance(piece, Decision):
                    yield b"event: decision\ndata: %s\n\n" % piece.to_json().encode()
                else:
                    yield b"event: reasoning\ndata: %s\n\n" % json.dumps({"text": piece}).encode()
        except GuardrailError as error:
            value = error_value(refused(error, self._service.settings.retry_after))
            yield b"event: error\ndata: %s\n\n" % json.dumps(value).encode()
