"""The teacher that writes reasoning (`Teacher`), and patience with it (`Asking`). Knows no label and no format.

Requests go through the remote engine: its retries, its `Retry-After`, its care with keys and certificates. Here is only
what a long run needs besides: to wait for a teacher that is down, and to tell a turn it won't answer from a dead one.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from guardrail_vl.engines.base import Deadline
from guardrail_vl.engines.remote import RemoteEngine
from guardrail_vl.errors import (
    ConfigurationError,
    ContentError,
    EngineError,
    EngineResponseError,
    EngineUnavailableError,
    GuardrailError,
)
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptMessage, PromptText

GOES_ON: Final = "What is done is kept: the same call goes on from there."

_KEY_VARIABLES: Final = ("GUARDRAIL_VL_TEACHER_API_KEY", "OPENAI_API_KEY")
_LONGEST_PAUSE: Final = 30.0
_GRACE: Final = 10.0
_NEVER: Final = 1 << 30
_SIGN_OF_LIFE: Final = Prompt(
    (PromptMessage("system", (PromptText("Answer in one word."),)), PromptMessage("user", (PromptText("Ready?"),))),
    max_tokens=16,
)
# These are about the account, the address or the model: no turn will fare better.
_HOPELESS: Final = frozenset((401, 402, 404, 405, 410, *range(300, 400)))
_HINTS: Final = {
    401: f"Check the key: Teacher(api_key=…) or {_KEY_VARIABLES[0]}.",
    403: "Check the key, and what it may do.",
    404: "Check the URL (it usually ends in /v1) and the model's name.",
}


class Teacher(BaseModel):
    """A server with an OpenAI-compatible chat API, and how to treat it. Only `model` and `extra_body` belong to what a
    result depends on: the rest may change while a run goes on.

    Raises:
        ValidationError: pydantic's, for a value that can't be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(repr=False)
    """The API's base URL, such as `http://teacher:8000/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    api_key: str | None = Field(default=None, repr=False, exclude=True)
    """Sent as a bearer token, and never written anywhere. None: from GUARDRAIL_VL_TEACHER_API_KEY, else OPENAI_API_KEY,
    else none."""
    headers: Mapping[str, str] = Field(default_factory=dict, repr=False, exclude=True)
    """Sent with every request. An Authorization among them is used instead of a key."""
    extra_body: Mapping[str, Any] = Field(default_factory=dict)
    """More fields of every request, which win over ours."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds for one answer, the engine's retries and their waits included."""
    concurrency: int = Field(default=8, ge=1)
    """Turns under way at a time."""
    patience: float = Field(default=300.0, ge=0)
    """Seconds for which a teacher that answered before may be down or busy until the run stops; and for which a single
    turn may fail while others are answered, until it is dropped."""
    stop_after: int = Field(default=20, ge=1)
    """Turns in a row without a usable answer after which the run stops."""

    def engine(self) -> RemoteEngine:
        """The engine that asks it.

        Raises:
            ConfigurationError: The URL, the key, a header or a field can't be used.
        """
        key = self.api_key
        if key is None and not any(name.lower() == "authorization" for name in self.headers):
            key = next((value for name in _KEY_VARIABLES if (value := os.environ.get(name, "").strip())), None)
        return RemoteEngine(
            self.url,
            model=self.model,
            api_key=key or "",  # not None: the guard's own key is never sent to a teacher
            headers=self.headers,
            max_connections=self.concurrency,
            extra_body=self.extra_body,
            trip_after=_NEVER,  # nobody waits for a single answer here, so patience does what a breaker does elsewhere
        )


class Unanswered(Exception):
    """The teacher answers others, and not this.

    Args:
        cause: What it did instead.
        final: Whether asking again, with other words, can't help.
    """

    def __init__(self, cause: GuardrailError, *, final: bool) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.final = final


class Asking:
    """Asks for as long as there is hope. For one event loop.

    Args:
        teacher: Who is asked. Its engine is opened here; close it with `aclose`.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._engine = teacher.engine()
        self._answered: float | None = None
        """When it last answered anything, in `time.monotonic()` seconds."""
        self._waiting = asyncio.Lock()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._engine.aclose()

    async def ask(self, prompt: Prompt) -> Completion:
        """The teacher's answer.

        Raises:
            Unanswered: It fails at this, and answers something else.
            ContentError: This can't be sent at all.
            EngineError: It is down for longer than its patience, or refuses whatever it is asked.
            ConfigurationError: It can't be asked this way.
        """
        failing: float | None = None
        pause = 1.0
        while True:
            begun = time.monotonic()
            error = outcome = await self._once(prompt)
            if isinstance(outcome, Completion):
                return outcome
            if isinstance(outcome, ContentError | ConfigurationError):
                raise outcome
            if not isinstance(error, EngineUnavailableError):
                raise self._refused(outcome)
            failing = failing or time.monotonic()
            await self._see_that_it_lives(error, begun)
            left = failing + self._teacher.patience - time.monotonic()
            if left <= 0:
                raise Unanswered(error, final=True)
            await asyncio.sleep(min(left, pause) + random.uniform(0.0, 0.2))  # not all at once
            pause = min(_LONGEST_PAUSE, 2 * pause)

    async def _once(self, prompt: Prompt) -> Completion | GuardrailError:
        deadline = Deadline.after(self._teacher.timeout)
        outcome = (await self._engine.agenerate([prompt], deadline=deadline))[0]
        if isinstance(outcome, Completion):
            self._answered = time.monotonic()
            return outcome
        return outcome if isinstance(outcome, ContentError | ConfigurationError) else _of_teacher(outcome)

    async def _see_that_it_lives(self, error: EngineUnavailableError, since: float) -> None:
        """Return when it answers anything: what was asked is at fault then, or the outage is over.

        Raises:
            EngineUnavailableError: It doesn't, for longer than its patience.
        """
        async with self._waiting:  # one waits for all
            begun, pause = time.monotonic(), 1.0
            while self._answered is None or self._answered < since:
                # One that never answered is a wrong URL more often than a pause, unless it says when to come back.
                known = self._answered is not None or error.retry_after is not None
                patience = self._teacher.patience if known else min(_GRACE, self._teacher.patience)
                wait = pause if error.retry_after is None else error.retry_after
                if time.monotonic() + wait - begun > patience:
                    raise _gone(error)
                await asyncio.sleep(wait)
                outcome = await self._once(_SIGN_OF_LIFE)
                if not isinstance(outcome, EngineUnavailableError):
                    return
                error, pause = outcome, min(_LONGEST_PAUSE, 2 * pause)

    def _refused(self, error: GuardrailError) -> Exception:
        status = error.status if isinstance(error, EngineResponseError) else None
        # 403 is what some give for a key, and some for content that their own filter holds back.
        if status in _HOPELESS or (status == 403 and self._answered is None):
            error.hint = " ".join(part for part in (error.hint, GOES_ON) if part)
            return error
        # With 200 it wrote something that is no answer; any other status is a refusal of what it was sent.
        return Unanswered(error, final=status not in (None, 200))


def _gone(error: EngineUnavailableError) -> EngineUnavailableError:
    asks = "" if error.retry_after is None else f" It asks to wait {error.retry_after:.0f} seconds."
    return EngineUnavailableError(
        f"The teacher gave no answer: {error.message}{asks}",
        hint=" ".join(part for part in (error.hint, GOES_ON) if part),
        retry_after=error.retry_after,
    )


def _of_teacher(error: GuardrailError) -> GuardrailError:
    """The engine's error, which speaks of a guard, in a teacher's words."""
    message = error.message
    for words in ("guard server", "guard model"):
        message = message.replace(words, "teacher")
    if isinstance(error, EngineUnavailableError):
        hint = "Raise the teacher's timeout, or lower its concurrency." if "deadline" in error.hint else error.hint
        return EngineUnavailableError(message, hint=hint, retry_after=error.retry_after)
    if isinstance(error, EngineResponseError):
        hint = _HINTS.get(error.status or 0, error.hint if error.status != 400 else "")
        return EngineResponseError(message, hint=hint, status=error.status, request_id=error.request_id)
    return EngineError(message, hint=error.hint)
