"""Which endpoint a request goes to: one that is judged, one without generated content, or one that is not covered.

Knows methods and paths only. A path that two servers could read differently is never one that passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from guardrail_vl.wire.base import Endpoint
from guardrail_vl.wire.chat import ChatCompletions
from guardrail_vl.wire.completions import Completions
from guardrail_vl.wire.responses import Responses, StoredResponse

UNUSUAL: Final = "unusual path"
"""The name of every path that is written so that it could be read in two ways."""


@dataclass(frozen=True, slots=True)
class Passed:
    """Nothing that a model wrote comes back, and no model answers: the request goes through as it is."""


@dataclass(frozen=True, slots=True)
class Unguarded:
    """Content may go through here, and we can't judge it."""

    name: str
    """What the app puts into `allow_unguarded`: without ids where we know the endpoint, else its path."""


_CHAT, _COMPLETIONS, _RESPONSES, _STORED = ChatCompletions(), Completions(), Responses(), StoredResponse()

# The first word of every resource that we know; what comes before it is the server's base path.
_ROOTS: Final = frozenset(
    {
        "agents",
        "assistants",
        "audio",
        "batches",
        "chat",
        "chatkit",
        "completions",
        "containers",
        "content_provenance_checks",
        "conversations",
        "decisions",
        "embeddings",
        "evals",
        "files",
        "fine_tuning",
        "images",
        "live",
        "models",
        "moderations",
        "realtime",
        "responses",
        "safety",
        "skills",
        "threads",
        "uploads",
        "vaults",
        "vector_stores",
        "videos",
        "webhook_endpoints",
        "webhook_event_types",
    }
)

# Method, then path; `*` stands for one id.
_PASSED_LINES: Final = """\
GET models
GET models/*
POST embeddings
POST moderations
GET files
POST files
GET files/*
POST uploads
POST uploads/*/parts
POST uploads/*/complete
POST uploads/*/cancel
GET vector_stores
POST vector_stores
GET vector_stores/*
POST vector_stores/*
GET vector_stores/*/files
POST vector_stores/*/files
GET vector_stores/*/files/*
POST vector_stores/*/files/*
POST vector_stores/*/file_batches
GET vector_stores/*/file_batches/*
POST vector_stores/*/file_batches/*/cancel
GET vector_stores/*/file_batches/*/files
GET fine_tuning/jobs
POST fine_tuning/jobs
GET fine_tuning/jobs/*
POST fine_tuning/jobs/*/cancel
POST fine_tuning/jobs/*/pause
POST fine_tuning/jobs/*/resume
GET fine_tuning/jobs/*/checkpoints
GET fine_tuning/jobs/*/events
GET fine_tuning/checkpoints/*/permissions
POST fine_tuning/checkpoints/*/permissions
DELETE fine_tuning/checkpoints/*/permissions/*
GET batches
GET batches/*
POST batches/*/cancel
POST responses/input_tokens
DELETE models/*
DELETE files/*
DELETE vector_stores/*
DELETE vector_stores/*/files/*
DELETE chat/completions/*
DELETE responses/*
DELETE conversations/*
DELETE conversations/*/items/*
DELETE assistants/*
DELETE threads/*
DELETE threads/*/messages/*
DELETE containers/*
DELETE containers/*/files/*
DELETE evals/*
DELETE evals/*/runs/*
DELETE skills/*
DELETE skills/*/versions/*
DELETE videos/*
"""
# An id is no word of the API: else `models/*` would cover `models/chat`, which may be a base path and more.
_ID: Final = rf"(?!(?:{'|'.join(sorted(_ROOTS))})(?:/|$))[^/]+"
_PASSED: Final = re.compile("|".join(line.replace("*", _ID) for line in _PASSED_LINES.strip().splitlines()))

# Names of what is not covered, by path; the first that matches. Anything else has the name of its first word.
_NAMES: Final = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"chat/completions(/.*)?", "chat/completions/stored"),
        (r"completions(/.*)?", "completions/stored"),
        (r"responses/compact", "responses/compact"),
        (r"responses/[^/]+/input_items", "responses/input_items"),
        (r"responses(/.*)?", "responses/other"),
        (r"audio/(speech|transcriptions|translations|voices|voice_consents)(/.*)?", r"audio/\1"),
        (r"images/(generations|edits|variations)", r"images/\1"),
        (r"(files|vector_stores|containers|skills|videos)/.*/content", r"\1/content"),
        (r"vector_stores/[^/]+/search", "vector_stores/search"),
        (r"fine_tuning/alpha/graders/.*", "fine_tuning/graders"),
        (r"audio(/.*)?", "audio/other"),
        (r"images(/.*)?", "images/other"),
    )
)

_VERSION: Final = re.compile(r"v\d\w*")
_PLAIN: Final = re.compile(r"[\w.~!$&'()*+,:=@ -]+", re.ASCII)


def route(method: str, path: str) -> Endpoint | Passed | Unguarded:
    """What a request is for.

    Args:
        method: HTTP method.
        path: Path of the URL, as it is sent; any base path may come first.
    """
    raw = path.partition("?")[0].strip("/").split("/")
    words = [unquote(word) for word in raw]
    # Servers differ in what they make of dots, doubled or encoded slashes, parameters and the like.
    if not all(_PLAIN.fullmatch(word) and word.strip(". ") for word in words) or not path.isascii():
        return Unguarded(UNUSUAL)
    method = method.upper()
    return _guarded(method, words) or _other("GET" if method == "HEAD" else method, words)


def _guarded(method: str, words: list[str]) -> Endpoint | None:
    # By how a path ends: whatever comes before, the body must read as this endpoint's, or it is refused.
    match method, words:
        case "POST", [*_, "chat", "completions"]:
            return _CHAT
        case "POST", [*_, "completions"]:
            return _COMPLETIONS
        case "POST", [*_, "responses"]:
            return _RESPONSES
        case ("GET", [*_, "responses", _]) | ("POST", [*_, "responses", _, "cancel"]):
            return _STORED
    return None


def _other(method: str, words: list[str]) -> Passed | Unguarded:
    path = "/".join(_below_base(words))
    if _PASSED.fullmatch(f"{method} {path}"):
        return Passed()
    for pattern, name in _NAMES:
        if found := pattern.fullmatch(path):
            return Unguarded(found.expand(name))
    root = path.partition("/")[0]
    return Unguarded(root if root in _ROOTS else path)


def _below_base(words: list[str]) -> list[str]:
    """The path from the first word that is a resource's; else from after the version, if there is one."""
    for at, word in enumerate(words):
        if words[at - 1 : at + 1] == ["openai", "deployments"] and len(words) > at + 2:
            return words[at + 2 :]  # a deployment may have any name
        if word in _ROOTS:
            return words[at:]
    versions = [at for at, word in enumerate(words) if _VERSION.fullmatch(word)]
    return words[versions[-1] + 1 :] if versions else words
