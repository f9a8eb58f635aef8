"""What each kind of OpenAI-compatible server can do beyond the common API, and how it is found out.

Measured on vLLM 0.32, transformers serve 5.19 and 5.23 and llama.cpp's Python server 0.3.36. transformers serve answers
500 to stop strings for models that see (5.19), so it is not sent any. Two of the three answer 200 to
fields they ignore, so a brand name is not asked for: a server is given one tiny request that only a server which
honours all of these fields can answer as expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from guardrail_vl.engines._http import Reply
from guardrail_vl.prompt_format.base import Prompt, PromptMessage, PromptText


@dataclass(frozen=True, slots=True)
class Server:
    """One kind of server."""

    name: str
    prefix: bool
    """Whether it continues a final assistant message (`continue_final_message`)."""
    pattern: bool
    """Whether it enforces a regular expression (`structured_outputs`)."""
    extras: bool
    """Whether it accepts fields that are not in OpenAI's API: it refuses them otherwise (422)."""
    stop: bool = True
    """Whether stop strings work. Where they don't, generation goes on past them, and the text is cut here."""


VLLM: Final = Server("vllm", prefix=True, pattern=True, extras=True)
TRANSFORMERS: Final = Server("transformers", prefix=False, pattern=False, extras=False, stop=False)
LLAMA_CPP: Final = Server("llama.cpp", prefix=False, pattern=False, extras=True)
UNKNOWN: Final = Server("unknown", prefix=False, pattern=False, extras=True)
SERVERS: Final = {server.name: server for server in (VLLM, TRANSFORMERS, LLAMA_CPP, UNKNOWN)}

# Fields that a server may not know. Those of a group mean nothing without each other.
OPTIONAL: Final[tuple[tuple[str, ...], ...]] = (
    ("continue_final_message", "add_generation_prompt"),
    ("structured_outputs",),
    ("include_stop_str_in_output",),
    ("repetition_penalty",),
    ("logprobs", "top_logprobs"),
    ("stream_options",),
    ("stream",),
)

PROBE: Final = Prompt((PromptMessage("user", (PromptText("Say zq."),)),), prefix="zq", pattern="zqzqzq", max_tokens=16)
"""The request that tells servers apart. Its pattern allows one text only, which no model writes by itself."""

_REFUSAL: Final = re.compile(
    r"unexpected|unrecognized|unknown|unsupported|not supported|not permitted|extra", re.IGNORECASE
)
_LONGEST_REFUSAL: Final = 600


def identify(status: int, text: str = "") -> Server:
    """The kind of server that answered the probe so.

    Args:
        status: 200; or 400 or 422, by which it refuses one of the fields, named or not.
        text: The text of the completion.
    """
    if status == 200 and text == PROBE.pattern:
        return VLLM
    return TRANSFORMERS if status == 422 else UNKNOWN


def refused_fields(reply: Reply, body: Any, sent: Mapping[str, Any]) -> frozenset[str]:
    """The optional fields that a 400 or 422 names as unknown to the server, with their groups; empty: none.

    Args:
        reply: The refusal.
        body: Its body as JSON; None: it is none.
        sent: The fields of the request.
    """
    if reply.status not in (400, 422) or not isinstance(body, dict):
        return frozenset()
    named = " ".join(_complaints(body))
    refused = frozenset(
        name
        for group in OPTIONAL
        if any(name in sent and re.search(rf"\b{name}\b", named) for name in group)
        for name in group
    )
    # Only transformers serve says it with a 422, and its stop strings don't work.
    if reply.status == 422 and "include_stop_str_in_output" in refused:
        refused |= {"stop"}
    return refused


def _complaints(body: Mapping[str, Any]) -> list[str]:
    """The places of an error body where servers name fields. Not its echo of what was sent, which a user wrote."""
    detail, error = body.get("detail"), body.get("error")
    found: list[Any] = []
    if isinstance(detail, list):
        for item in detail:
            where = item.get("loc") if isinstance(item, dict) and item.get("type") == "extra_forbidden" else None
            if isinstance(where, list) and where:
                found.append(where[-1])
    texts = [detail, body.get("message")]
    if isinstance(error, dict):
        texts.append(error.get("message"))
        if re.search(_REFUSAL, str(error.get("code"))):
            found.append(error.get("param"))
    else:
        texts.append(error)
    found += [t for t in texts if isinstance(t, str) and len(t) <= _LONGEST_REFUSAL and _REFUSAL.search(t)]
    return [text for text in found if isinstance(text, str)]
