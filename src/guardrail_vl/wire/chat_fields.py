"""The fields that chat completions and legacy completions share: which carry content, and which are refused.

Knows names and shapes; makes no turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from guardrail_vl.errors import ContentError
from guardrail_vl.verdict import new_id
from guardrail_vl.wire.base import Json
from guardrail_vl.wire.jsons import as_text, check_fields, index_of, is_empty, list_of, mapping_of, refuse, strings

# Neither the model nor a reader sees these: sampling, routing, caching, accounting. What the model does see of a
# request is read below. (Numbers and booleans carry no content, and need no place in any list.)
SAMPLING: Final = {
    "model", "stop", "user", "metadata", "store", "service_tier", "safety_identifier", "logit_bias", "stream_options",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "moderation", "verbosity", "cache_control",
    "stop_token_ids", "allowed_token_ids", "bad_words", "cache_salt", "request_id", "kv_transfer_params", "session_id",
    "provider", "models", "route", "transforms", "usage", "user_security_context", "keep_alive",
}  # fmt: skip
# Their text reaches the model as it is, or forces its words.
CONSTRAINTS: Final = (
    "response_format", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
    "structural_tag", "documents",
)  # fmt: skip
# These repeat the text token by token, with what else the model had in mind.
TOKENS: Final = ("logprobs", "top_logprobs", "prompt_logprobs", "return_token_ids")
# These have the provider put in front of the model what we never see.
_SEARCHES: Final = ("web_search_options", "enable_search")

REPLY_FIELDS: Final = {
    "id", "object", "created", "model", "usage", "service_tier", "system_fingerprint", "provider", "metadata",
    "moderation", "prompt_filter_results", "request_id", "kv_transfer_params", "timings", "time_info", "obfuscation",
}  # fmt: skip
# Shown beside every answer: judged with each.
_SHARED: Final = ("citations", "search_results", "related_questions", "error")
_X_GROQ: Final = {"id", "usage", "usage_breakdown", "error"}
FILTERS: Final = {"content_filter_results", "content_filter_result", "content_filter_offsets"}
_CHOICE: Final = FILTERS | {"finish_reason", "native_finish_reason", "stop_reason", "matched_stop", "error"}
MAX_CHOICES: Final = 128
NO_USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


# ---- the request -----------------------------------------------------------------------------------------------------


def check_request(request: Json, allow: Collection[str], known: Collection[str]) -> None:
    """Refuse what in a request isn't known, and what would bring content that nobody judges.

    Raises:
        ContentError: An unknown field, a search by the provider, or tokens asked for beside the text; named.
    """
    check_fields(request, {*SAMPLING, *known}, "the request", {*allow, *TOKENS, *_SEARCHES, "stream"})
    for name in TOKENS:
        if request.get(name) and name not in allow and not (name.endswith("logprobs") and "logprobs" in allow):
            refuse(f"The request's {name} asks for the text once more, token by token", name)
    for name in _SEARCHES:
        if request.get(name) not in (None, False) and not {name, "web_search"} & set(allow):
            refuse(f"The request's {name} puts what is found before the model", name)


def constraints(request: Json, allow: Collection[str]) -> Iterator[str]:
    """What the model is held to, or given to read, as text.

    Raises:
        ContentError: It can't be judged.
    """
    for name in CONSTRAINTS:
        value = request.get(name)
        if name not in allow and not is_empty(value) and value not in ({"type": "text"}, {"type": "json_object"}):
            yield as_text(value, name)


def asked_for(request: Json) -> int:
    """How many answers each prompt of a request asks for, at least 1."""
    n = request.get("n")
    return n if isinstance(n, int) and 1 <= n <= MAX_CHOICES else 1


# ---- the reply -------------------------------------------------------------------------------------------------------


def shared_texts(reply: Json, allow: Collection[str], where: str, known: Collection[str]) -> Iterator[str]:
    """The text that a reply, or a chunk, shows beside its choices.

    Raises:
        ContentError: An unknown field, named.
    """
    if reply.get("object") == "error":
        yield from strings(reply)
        return
    check_fields(reply, {*REPLY_FIELDS, *_SHARED, "x_groq", *known}, where, allow)
    for name in _SHARED:
        yield from strings(reply.get(name))
    if not is_empty(reply.get("x_groq")):
        groq = mapping_of(reply["x_groq"], "x_groq")
        check_fields(groq, _X_GROQ, "x_groq", allow)
        yield from strings(groq.get("error"))


def choices_of(reply: Json) -> Iterator[tuple[int, Json]]:
    """Each choice with its index.

    Raises:
        ContentError: They can't be told apart, or are no choices.
    """
    seen = set()
    for choice in list_of(reply.get("choices"), "choices"):
        index = index_of(mapping_of(choice, "choice").get("index"), "index of a choice")
        if index in seen:
            raise ContentError("Two choices have the same index.")
        seen.add(index)
        yield index, choice


def check_choice(choice: Json, request: Json, allow: Collection[str], known: Collection[str]) -> None:
    """Refuse what in a choice isn't known, and tokens beside the text.

    Raises:
        ContentError: An unknown field, named.
    """
    logprobs = choice.get("logprobs")
    bare = isinstance(logprobs, Mapping) and all(map(is_empty, logprobs.values()))
    check_fields(choice, {*_CHOICE, *known, *(("logprobs",) if bare else ())}, "a choice", allow)
    stops = request.get("stop")
    stops = stops if isinstance(stops, list) else [stops]
    for name in ("stop_reason", "matched_stop"):
        if isinstance(choice.get(name), str) and choice[name] not in stops and name not in allow:
            refuse(f"The {name} is none of the request's stops", name)


# ---- refusals --------------------------------------------------------------------------------------------------------


def head(prefix: str, kind: str, request: Json) -> dict[str, Any]:
    """How a reply, or a chunk, of our own begins."""
    model = request.get("model")
    return {
        "id": f"{prefix}-{new_id()}",
        "object": kind,
        "created": int(time.time()),
        "model": model if isinstance(model, str) else "",
    }


def withhold(reply: Json, keys: Collection[int], kind: str, refusal: Callable[[int], Json]) -> dict[str, Any]:
    """A reply with some choices made anew.

    Args:
        reply: As it came.
        keys: Indexes of the choices.
        kind: The reply's `object`.
        refusal: Makes a choice that refuses, of its index.
    """
    out = {name: value for name, value in reply.items() if name in REPLY_FIELDS or is_empty(value)}
    if out.get("object") == "error" or not reply.get("choices"):
        # There is no choice to put a refusal into: the reply was an error, or could not be read.
        return {**head("guardrail", kind, reply), "choices": [refusal(index) for index in sorted(keys)]}
    choices = []
    for index, choice in choices_of(reply):
        kept = {name: choice[name] for name in FILTERS if name in choice}
        choices.append({**refusal(index), **kept} if index in keys else choice)
    return {**out, "choices": choices}
