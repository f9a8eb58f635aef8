"""A FastAPI endpoint that streams a guarded reply. A blocked prompt is a 400, a guard that fails is a 503.

Needs the extras `embedded` and `openai`, fastapi and uvicorn, and a key in OPENAI_API_KEY, or a server of your own in
OPENAI_BASE_URL. Then: curl -N -H 'Content-Type: application/json' -d '{"question": "Hello"}' localhost:8080/chat
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel

from guardrail_vl import BlockedError, Guard, GuardrailError
from guardrail_vl.errors import ContentError
from guardrail_vl.integrations.openai import guarded

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


class Question(BaseModel):
    """What the browser sends."""

    question: str


def make_app(guard: Guard) -> FastAPI:
    """The app, with one guard and one client for all requests."""
    client = guarded(AsyncOpenAI(), guard)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat", response_model=None)
    async def chat(asked: Question) -> StreamingResponse | JSONResponse:
        messages = [{"role": "user", "content": asked.question}]
        try:
            # The prompt is judged here, before the first byte of the reply, so it can still be a status.
            events = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        except (BlockedError, ContentError):
            return JSONResponse({"error": "I can't help with that."}, status_code=400)
        except GuardrailError:  # no verdict: nobody judged it, so nobody answers it
            return JSONResponse({"error": "Please try again later."}, status_code=503)
        return StreamingResponse(approved(events), media_type="text/plain; charset=utf-8")

    return app


async def approved(events: Any) -> AsyncIterator[str]:
    """The text as it is approved. The status is out by now: what is withheld is said in the text."""
    try:
        async with events:
            async for event in events:
                for choice in event.choices:
                    yield choice.delta.content or ""
    except BlockedError:
        yield "\n[The rest is withheld.]"
    except GuardrailError:
        yield "\n[The rest could not be checked. Please try again later.]"


def main() -> None:
    """Serve it on this machine."""
    import uvicorn

    uvicorn.run(make_app(Guard()), port=8080)


if __name__ == "__main__":
    main()
