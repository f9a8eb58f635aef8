"""One prompt's exchange with a server, written once: a generator that says what to do next, and does none of it.

Retries, `Retry-After`, the breaker, what the server can do, what it refuses: all of it is here, for the synchronous and
the asynchronous driver alike. A driver performs an effect and sends its result in, or throws its error in.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from random import uniform
from typing import Any, Final, Generic, TypeVar

from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_random_exponential

from guardrail_vl.engines import _completions as completions
from guardrail_vl.engines._breaker import Breaker, Ticket
from guardrail_vl.engines._events import FIELDS as STREAM
from guardrail_vl.engines._events import Events
from guardrail_vl.engines._http import Reply, Request, TransportError
from guardrail_vl.engines._servers import PROBE, VLLM, Server, identify, refused_fields
from guardrail_vl.engines.base import Deadline, late
from guardrail_vl.errors import (
    ConfigurationError,
    EngineError,
    EngineResponseError,
    EngineUnavailableError,
)
from guardrail_vl.prompt_format.base import Completion, Prompt

T = TypeVar("T")

FAIR: Final = 0.5
"""Seconds that a server must have had before its silence counts as an outage for other callers too."""

_RETRIED: Final = frozenset((408, 409, 429))
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")
# The longest wait before a retry doubles each time; the wait is drawn anew, so that clients spread out.
_WAIT: Final = wait_random_exponential(multiplier=0.1, max=2.0, min=0.02)


# ---- effects -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send this. Result: the reply, or a TransportError."""

    request: Request
    timeout: float
    """Seconds."""
    on_body: Callable[[bytes], None] | None = None
    """Called with the body of a reply of status 200 as it comes. Only by the driver that awaits."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait. Result: None."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until this is done, not longer than the timeout. Result: None."""

    future: Future[None]
    timeout: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Call this where it does not hold up others. Result: what it returns, or its error."""

    work: Callable[[], Any]


Effect = Send | Sleep | Await | Compute
Steps = Generator[Effect, Any, T]


# ---- what is found out once ----------------------------------------------------------------------------------------


class Once(Generic[T]):
    """A value that one caller finds out while the others wait for it. A failure is not remembered."""

    def __init__(self, known: T | None = None) -> None:
        self._lock = threading.Lock()
        self._value = known
        self._searching: Future[None] | None = None

    def get(self, find: Callable[[], Steps[T]], deadline: Deadline) -> Steps[T]:
        """The value. Whoever waits for a search that fails searches next.

        Raises:
            EngineError: It could not be found out before the deadline.
        """
        while True:
            if self._value is not None:
                return self._value
            with self._lock:
                searching = self._searching
                mine: Future[None] = Future()
                if searching is None:
                    self._searching = mine
            if searching is None:
                try:
                    self._value = yield from find()
                finally:
                    with self._lock:
                        self._searching = None
                    mine.set_result(None)
            else:
                yield Await(searching, deadline.remaining())
                deadline.check()


@dataclass
class Known:
    """What this process knows about the server. Shared by threads; each of its fields is replaced, never changed."""

    base: str
    """URL up to the paths of the API, without a slash at its end."""
    query: str
    """Query string for every request, with its `?`; empty: none."""
    where: str
    """The server, as errors may name it."""
    attempts: int
    extra: Mapping[str, Any] = field(repr=False)
    breaker: Breaker
    model: Once[str]
    server: Once[Server]
    refused: frozenset[str] = frozenset()
    """Fields that the server does not know, and was seen to answer without."""


# ---- one exchange --------------------------------------------------------------------------------------------------


def complete(
    known: Known,
    prompt: Prompt,
    messages: completions.Messages,
    deadline: Deadline,
    on_text: Callable[[str], None] | None = None,
) -> Steps[Completion]:
    """Complete one prompt.

    Args:
        known: Shared by all exchanges with this server.
        prompt: What to complete.
        messages: Its messages.
        deadline: For all of it.
        on_text: Called with each piece of the text as it comes, if the server sends it so. None: nobody wants it.

    Raises:
        EngineUnavailableError: No reply by the deadline, or none to be had.
        EngineResponseError: The server refused, or its reply holds no completion, or it can't do what the prompt asks.
        ConfigurationError: No model was named, and the server has several.
    """
    started = time.monotonic()
    model = yield from known.model.get(lambda: _only_model(known, deadline), deadline)
    server = None
    if prompt.prefix or prompt.pattern:
        server = yield from known.server.get(lambda: _probe(known, model, deadline), deadline)
    text = (yield Compute(messages.json)) if messages.heavy else messages.json()
    omitted = known.refused
    while True:
        if prompt.prefix and not (server and server.prefix and "continue_final_message" not in omitted):
            raise EngineResponseError(
                f"The guard server at {known.where} is not known to continue a text that was begun for it.",
                hint=completions.NO_PREFIX,
            )
        head = completions.fields(prompt, model, server, omitted, known.extra)
        # Nothing of a reply of status 200 is sent for again, so each piece comes once.
        events = None if on_text is None or "stream" in omitted else Events(on_text)
        if events is not None:
            head |= {name: value for name, value in STREAM.items() if name not in omitted | head.keys()}
        body = completions.body(head, text, prompt.prefix)
        reply = yield from _call(known, _post(known, body), deadline, None if events is None else events.feed)
        if reply.status == 200:
            break
        refused = refused_fields(reply, completions.parse_json(reply), head) - omitted
        if not refused - known.extra.keys():
            if events is None or reply.status not in (400, 422):
                raise _refusal(known, reply)
            refused = frozenset(STREAM)  # it may be this that it doesn't know, however it says so
        omitted |= refused
    known.refused |= omitted
    answer = completions.read(reply, prompt, None if events is None else events.whole(reply))
    return Completion(
        text=answer.text,
        finish=answer.finish,
        tokens=answer.tokens,
        model=model,
        usage=answer.usage,
        latency=time.monotonic() - started,
    )


def _post(known: Known, body: bytes) -> Request:
    return Request("POST", f"{known.base}/chat/completions{known.query}", body)


def _only_model(known: Known, deadline: Deadline) -> Steps[str]:
    reply = yield from _call(known, Request("GET", f"{known.base}/models{known.query}"), deadline)
    if reply.status != 200:
        raise _refusal(known, reply)
    parsed = completions.parse_json(reply)
    listed = parsed.get("data") if isinstance(parsed, dict) else None
    names = [m.get("id") for m in listed if isinstance(m, dict)] if isinstance(listed, list) else None
    if names is None or not all(isinstance(name, str) and name for name in names):
        raise completions.malformed(reply, "it should list the models", hint="Name the model: model=….")
    if len(names) != 1:
        shown = ", ".join(repr(str(name)[:100]) for name in names[:10]) or "none"
        raise ConfigurationError(
            f"The guard server at {known.where} serves {len(names)} models: {shown}.", hint="Name one: model=…."
        )
    return str(names[0])


def _probe(known: Known, model: str, deadline: Deadline) -> Steps[Server]:
    head = completions.fields(PROBE, model, VLLM, frozenset(), known.extra)
    body = completions.body(head, completions.Messages(PROBE.messages).json(), PROBE.prefix)
    reply = yield from _call(known, _post(known, body), deadline)
    if reply.status == 200:
        # A reply that is no completion says nothing of the server, and is not remembered: `read` refuses it.
        return identify(reply.status, completions.read(reply, PROBE).text)
    if reply.status in (400, 422):
        return identify(reply.status)
    raise _refusal(known, reply)


# ---- one request ---------------------------------------------------------------------------------------------------


def _call(
    known: Known, request: Request, deadline: Deadline, on_body: Callable[[bytes], None] | None = None
) -> Steps[Reply]:
    """Send a request, again if need be, until a reply that is not worth another try.

    Raises:
        EngineUnavailableError: There was none.
        EngineResponseError: A reply broke off, or is too large.
    """
    ticket = known.breaker.enter()
    attempt, again = 1, True
    last: EngineUnavailableError | None = None
    counts = False
    try:
        while True:
            given = deadline.remaining()
            if given <= 0:
                raise last or late()
            error: EngineError
            try:
                reply: Reply = yield Send(request, given, on_body)
            except TransportError as failure:
                if failure.kind == "dropped" and again:
                    # Most likely the server had closed a connection that was kept open: no outage, and no wait.
                    again = False
                    continue
                helps = failure.kind != "tls"
                if failure.kind == "timeout" and last:
                    # A retry was cut short: what went wrong before says more than that the time is up.
                    error = last
                else:
                    error = _no_reply(known, failure)
                    counts = failure.kind != "busy" and (given >= FAIR or deadline.remaining() > 0)
            else:
                if reply.status < 500 and reply.status not in _RETRIED:
                    ticket.success()
                    return reply
                error = _unavailable(known, reply)
                helps, counts = True, reply.status != 429
            if not isinstance(error, EngineUnavailableError):
                ticket.success()
                raise error
            pause = _pause(known, ticket, attempt, error, deadline) if helps else None
            if pause is None:
                if counts:
                    ticket.failure()
                raise error
            yield Sleep(pause)
            last = error
            attempt += 1
    finally:
        ticket.unknown()


def _pause(
    known: Known, ticket: Ticket, attempt: int, error: EngineUnavailableError, deadline: Deadline
) -> float | None:
    """Seconds before the next attempt; None: there is none."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    if ticket.probe or known.breaker.state() != "closed" or stop_after_attempt(known.attempts)(state):
        return None
    pause = float(_WAIT(state))
    if error.retry_after is not None:
        # Not all who were told the same time should come back at once.
        pause = error.retry_after + uniform(0.0, 0.1)
    return pause if pause < deadline.remaining() else None


def _no_reply(known: Known, failure: TransportError) -> EngineError:
    where = known.where
    match failure.kind:
        case "timeout":
            return late()
        case "busy":
            return EngineUnavailableError(
                f"All connections to the guard server at {where} are in use.", hint="Raise max_connections."
            )
        case "connect":
            return EngineUnavailableError(
                f"Can't connect to the guard server at {where} ({failure.detail}).",
                hint="Check that it runs there, and the URL.",
            )
        case "tls":
            return EngineUnavailableError(
                f"The certificate of the guard server at {where} is not trusted.",
                hint="Give its authority: verify='ca.pem'.",
            )
        case "dropped":
            return EngineUnavailableError(f"The guard server at {where} closed the connection without a reply.")
        case "too_large":
            return EngineResponseError(f"The reply of the guard server at {where} is too large.")
        case "broken":
            return EngineResponseError(f"The reply of the guard server at {where} broke off, or is no HTTP.")


def _unavailable(known: Known, reply: Reply) -> EngineUnavailableError:
    what = "is busy" if reply.status == 429 else "is not available"
    return EngineUnavailableError(
        f"The guard server at {known.where} {what} (status {reply.status}{_code(reply)}).",
        retry_after=_retry_after(reply.headers.get("retry-after", "")),
    )


def _retry_after(value: str) -> float | None:
    """Seconds from a `Retry-After` header: a number, or a date; None if it is neither."""
    value = value.strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return None if seconds != seconds else min(max(0.0, seconds), 1e9)


_HINTS: Final = {
    401: "Check the API key: api_key=… or GUARDRAIL_VL_API_KEY.",
    403: "Check the API key and what it may do.",
    404: "Check the URL (it usually ends in /v1) and the model's name.",
    400: "The prompt may be longer than the model's context.",
    413: "The content is larger than the server accepts.",
}


def _refusal(known: Known, reply: Reply) -> EngineResponseError:
    hint = _HINTS.get(reply.status, "")
    if 300 <= reply.status < 400:
        hint = "It points elsewhere, and redirects are not followed: give the URL it points to."
    return EngineResponseError(
        f"The guard server at {known.where} refused the request (status {reply.status}{_code(reply)}).",
        hint=hint,
        status=reply.status,
        request_id=completions.request_id(reply),
    )


def _code(reply: Reply) -> str:
    """The error's code in the body, if it is a plain word. Nothing else: an error may quote what was sent."""
    parsed = completions.parse_json(reply)
    error = parsed.get("error") if isinstance(parsed, dict) else None
    for name in ("code", "type"):
        value = error.get(name) if isinstance(error, dict) else None
        if isinstance(value, str) and _CODE.fullmatch(value):
            return f", {value}"
    return ""
