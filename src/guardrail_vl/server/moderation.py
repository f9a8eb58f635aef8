"""`/v1/moderations` in OpenAI's shape, and LiteLLM's generic guardrail API: other people's words for a check."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from guardrail_vl.errors import ContentError
from guardrail_vl.guard import Guard
from guardrail_vl.parts import ImagePart, Message, Part, TextPart, blank_picture
from guardrail_vl.server.admission import Rates, json_of
from guardrail_vl.server.answers import Refused, answer, down, refused
from guardrail_vl.server.service import Service
from guardrail_vl.turn import ImageLoader, Turn
from guardrail_vl.verdict import Decision, Stage
from guardrail_vl.wire import jsons, moderations
from guardrail_vl.wire.base import Json, Reading


class _Api:
    """What both have."""

    def __init__(self, service: Service, rates: Rates) -> None:
        self._service, self._rates = service, rates

    def _checked(self, decision: Decision) -> Decision:
        """The decision, where it is one that a caller who knows no errors may see."""
        error = down(decision) or (decision.error if decision.blocked else None)
        if error is not None:
            raise refused(error, self._service.settings.retry_after)
        return decision


class ModerationsApi(_Api):
    """OpenAI's. A turn without a verdict is an HTTP error here: `flagged` has no third value."""

    async def __call__(self, request: Request) -> Response:
        """Judge each input."""
        asked = await json_of(request, self._service.settings.max_body)
        key = request.scope["state"]["key"]
        guard = self._service.pick(key, None, None)
        try:
            # Only to count them: pictures are looked at when each is judged.
            turns = moderations.read_request(asked, Reading(lambda _: blank_picture()))
        except ContentError as error:
            raise Refused(400, str(error), "invalid_request") from None
        if len(turns) > self._service.settings.max_batch:
            raise Refused(413, f"At most {self._service.settings.max_batch} inputs.", "batch_too_large")
        await self._rates.take(key, len(turns))
        contents = (functools.partial(_nth, asked, number) for number in range(len(turns)))
        decisions = await asyncio.gather(*(guard.acheck(content, stage=Stage.PROMPT) for content in contents))
        checked = [self._checked(decision) for decision in decisions]
        return answer(moderations.write_reply(turns, checked, model=guard.engine.model))


def _nth(asked: Json, number: int, load: ImageLoader | None = None) -> Turn:
    return moderations.read_request(asked, Reading(load or ImagePart.load))[number]


class LiteLLMApi(_Api):
    """LiteLLM's generic guardrail API: texts and pictures of a request, or of a response. Nothing is rewritten."""

    async def __call__(self, request: Request) -> Response:
        """Judge them together."""
        asked = await json_of(request, self._service.settings.max_body)
        key = request.scope["state"]["key"]
        own = asked.get("additional_provider_specific_params") or {}
        policy = own.get("policy") if isinstance(own, Mapping) else None
        guard = self._service.pick(key, policy if isinstance(policy, str) else None, None)
        await self._rates.take(key)
        stage = asked.get("input_type")
        if stage not in ("request", "response"):
            raise Refused(400, "input_type must be 'request' or 'response'.", "invalid_request")
        decision = self._checked(
            await self._judge(guard, asked, Stage.PROMPT if stage == "request" else Stage.RESPONSE)
        )
        if decision.blocked:
            return answer({"action": "BLOCKED", "blocked_reason": decision.reason})
        return answer({"action": "NONE"})

    async def _judge(self, guard: Guard, asked: Json, stage: Stage) -> Decision:
        return await guard.acheck(functools.partial(_litellm_turn, asked, stage), stage=stage)


def _litellm_turn(asked: Json, stage: Stage, load: ImageLoader | None = None) -> Turn:
    """The texts and pictures as one message.

    Raises:
        ContentError: It holds something that can't be judged.
    """
    make = load or ImagePart.load
    parts: list[Part] = [TextPart(text) for text in _texts(asked, "texts")]
    for url in _texts(asked, "images"):
        if not url.startswith(("data:", "http:", "https:")):
            raise ContentError("A picture must be a data: URL.")
        parts.append(make(url))
    # What a tool is to be called with, and what tools there are, a model reads as text.
    for name in ("tool_calls", "tools"):
        parts += [TextPart(text) for text in jsons.strings(asked.get(name) or ()) if text]
    if not parts:
        raise ContentError("There is nothing to judge: neither texts nor images.")
    return Turn((Message("user" if stage is Stage.PROMPT else "assistant", tuple(parts)),))


def _texts(asked: Json, name: str) -> list[str]:
    found = asked.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ContentError(f"The field {name} must be a list of texts.")
    return found
