"""A guarded client for OpenAI's API, of the same class as the one it is made from.

The guard sits at the client's HTTP transport, so that every method goes through it: `create`, `parse`, `stream`, raw
and streaming responses, retries, copies. Works with openai 1, 2 and 3, by the HTTP library that the client uses.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any, Final, TypeVar

from guardrail_vl.blocking import REFUSAL, OnBlock
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard
from guardrail_vl.integrations._annotation import Annotation
from guardrail_vl.integrations._httpx import TRAIL, transports
from guardrail_vl.parts import ImagePart
from guardrail_vl.streaming import Mode, Streaming
from guardrail_vl.verdict import Decision
from guardrail_vl.wire.exchange import Rules, When

Client = TypeVar("Client")

_SOCKETS: Final = "guardrail-vl://web-sockets-are-not-covered-by-the-guard"


def guarded(
    client: Client,
    guard: Guard,
    *,
    on_block: OnBlock = "raise",
    when: When = "before",
    stream: Mode | Streaming = "window",
    refusal: str = REFUSAL,
    allow_unguarded: Collection[str] = (),
) -> Client:
    """A client of the same class whose every request and reply is judged.

    Args:
        client: An `OpenAI`, `AsyncOpenAI`, `AzureOpenAI` or `AsyncAzureOpenAI`. It stays as it was, unguarded, and
            shares its connections with the guarded one.
        guard: Judges.
        on_block: `raise` a `BlockedError`; `refuse` in the API's own shape; or `annotate`: nothing is stopped, see
            `decisions`. Where there is no verdict, the guard's error is raised under `raise` and `refuse`.
        when: Judge the prompt `before` the call (a blocked one costs nothing), or `beside` it: the slower of the two
            counts, nothing of the reply is released before the verdict, and the call is given up on a block.
        stream: How replies are judged while they are written: a `Streaming`, or its mode.
        refusal: What a refused reply says.
        allow_unguarded: Names of endpoints, fields, tools and parts that may pass unjudged.

    Raises:
        ConfigurationError: A wrong argument, or no client of the openai package.
    """
    lib, asynchronous = _library(client)
    if not isinstance(guard, Guard):
        raise ConfigurationError(f"guard must be a Guard, not {type(guard).__name__}.")
    rules = Rules(
        on_block=on_block,
        when=when,
        streaming=Streaming.of(stream),
        refusal=refusal,
        allow=allow_unguarded if isinstance(allow_unguarded, str) else frozenset(allow_unguarded),
        load=functools.partial(ImagePart.load, limits=guard.limits),
    )
    whole: Any = client
    below = whole._client
    kinds = transports(lib)
    transport = (kinds.asynchronous if asynchronous else kinds.sync)(below, guard, rules)
    http = (lib.AsyncClient if asynchronous else lib.Client)(
        transport=transport,
        base_url=below.base_url,
        headers=below.headers,
        params=below.params,
        cookies=below.cookies,
        timeout=below.timeout,
        follow_redirects=below.follow_redirects,
        max_redirects=below.max_redirects,
        trust_env=False,
    )
    options: dict[str, Any] = {"http_client": http}
    # Realtime and its kin go around the HTTP client; a copy of the client keeps this.
    if "realtime" not in rules.allow and "websocket_base_url" in inspect.signature(whole.copy).parameters:
        options["websocket_base_url"] = _SOCKETS
    made: Client = whole.with_options(**options)
    return made


def decisions(reply: object) -> tuple[Decision, ...]:
    """The decisions behind a reply of a guarded client: the prompt's first, then each answer's.

    Args:
        reply: What a method of the client returned: a completion, a response, a stream (as far as it has come), a raw
            or streaming response.

    Raises:
        ConfigurationError: It comes from no guarded client.
    """
    note = (getattr(reply, "model_extra", None) or {}).get("guardrail")
    if isinstance(note, Annotation):
        return note.decisions
    if isinstance(note, dict):
        return tuple(Decision.from_json(_as_json(one)) for one in note["decisions"])
    for name in ("response", "http_response", "_response", "_raw_stream"):
        below = getattr(reply, name, None)
        trail = getattr(below, "extensions", {}).get(TRAIL)
        if trail is not None:
            found: tuple[Decision, ...] = trail.decisions
            return found
        if name == "_raw_stream" and below is not None:
            return decisions(below)
    raise ConfigurationError("This is no reply of a guarded client: it carries no decisions.")


def _as_json(summary: dict[str, Any]) -> str:
    return json.dumps({**summary, "error": None})


def _library(client: Any) -> tuple[ModuleType, bool]:
    below = getattr(client, "_client", None)
    if below is None or not callable(getattr(client, "with_options", None)):
        raise ConfigurationError(
            f"guarded() takes a client of the openai package, not {type(client).__name__}.",
            hint="Such as guarded(OpenAI(), guard).",
        )
    for kind in type(below).__mro__:
        name = kind.__module__.partition(".")[0]
        if name in ("httpx", "httpx2"):
            lib = sys.modules[name]
            return lib, isinstance(below, lib.AsyncClient)
    raise ConfigurationError("The client's HTTP library is neither httpx nor httpx2.")
