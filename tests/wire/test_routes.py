"""Routes: what is judged, what passes, what is refused; and no way of writing a path makes a generating one pass."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardrail_vl.wire.base import Endpoint
from guardrail_vl.wire.chat import ChatCompletions
from guardrail_vl.wire.completions import Completions
from guardrail_vl.wire.responses import Responses, StoredResponse
from guardrail_vl.wire.routes import UNUSUAL, Passed, Unguarded, route

BASES = ["", "/v1", "/openai/v1", "/api/v1", "/openai", "/openai/deployments/gpt-4.1", "/openai/deployments/models"]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("end", ["", "/", "//", "?api-version=1"])
@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/chat/completions", ChatCompletions),
        ("post", "/chat/completions", ChatCompletions),
        ("POST", "/completions", Completions),
        ("POST", "/responses", Responses),
        ("GET", "/responses/resp_1", StoredResponse),
        ("POST", "/responses/resp_1/cancel", StoredResponse),
    ],
)
def test_what_is_judged(base: str, end: str, method: str, path: str, kind: type[Endpoint]) -> None:
    assert type(route(method, base + path + end)) is kind


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "call",
    [
        "GET /models", "GET /models/gpt-4.1", "HEAD /models", "POST /embeddings", "POST /moderations", "GET /files",
        "POST /files", "GET /files/f1", "DELETE /files/f1", "POST /uploads", "POST /uploads/u1/parts",
        "POST /vector_stores", "GET /vector_stores/v1/files", "DELETE /vector_stores/v1", "GET /batches/b1",
        "POST /fine_tuning/jobs", "POST /fine_tuning/jobs/j1/cancel", "DELETE /chat/completions/c1",
        "DELETE /responses/r1", "DELETE /threads/t1", "POST /responses/input_tokens",
    ],
)  # fmt: skip
def test_what_passes(base: str, call: str) -> None:
    method, path = call.split()
    assert route(method, base + path) == Passed()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("POST /audio/speech", "audio/speech"),
        ("POST /audio/transcriptions", "audio/transcriptions"),
        ("POST /images/generations", "images/generations"),
        ("POST /images/edits", "images/edits"),
        ("POST /batches", "batches"),
        ("GET /files/f1/content", "files/content"),
        ("GET /vector_stores/v1/files/f1/content", "vector_stores/content"),
        ("POST /vector_stores/v1/search", "vector_stores/search"),
        ("GET /containers/c1/files/f1/content", "containers/content"),
        ("POST /threads", "threads"),
        ("POST /threads/t1/runs", "threads"),
        ("GET /threads/t1/messages", "threads"),
        ("POST /assistants", "assistants"),
        ("POST /conversations", "conversations"),
        ("GET /conversations/c1/items", "conversations"),
        ("GET /realtime", "realtime"),
        ("POST /realtime/client_secrets", "realtime"),
        ("POST /videos", "videos"),
        ("GET /chat/completions", "chat/completions/stored"),
        ("GET /chat/completions/c1", "chat/completions/stored"),
        ("GET /chat/completions/c1/messages", "chat/completions/stored"),
        ("GET /responses/r1/input_items", "responses/input_items"),
        ("POST /responses/compact", "responses/compact"),
        ("GET /responses", "responses/other"),
        ("POST /fine_tuning/alpha/graders/run", "fine_tuning/graders"),
        ("POST /models/gemini:generateContent", "models"),
        ("PUT /models", "models"),
        ("POST /evals/e1/runs", "evals"),
    ],
)
def test_what_is_not_covered_has_a_name(base: str, call: str, name: str) -> None:
    method, path = call.split()
    assert route(method, base + path) == Unguarded(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [("/v1/rerank", "rerank"), ("/v1/messages", "messages"), ("/tokenize", "tokenize"), ("/api/v2/x/y", "x/y")],
)
def test_an_unknown_path_is_its_own_name(path: str, name: str) -> None:
    assert route("POST", path) == Unguarded(name)


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "/v1/models/../chat/completions", "/v1/models/./x", "/v1//models", "/v1/models/..",
        "/v1/models/%2e%2e/chat/completions", "/v1/models/..%2Fchat%2Fcompletions", "/v1/models/a%2Fb",
        "/v1/models/%252e%252e/x", "/v1\\models", "/v1/models;x=1", "/v1/models%00", "/v1/models%0d%0aX",
        "/v1/mod\u00e9ls", "/v1/models/%ff", "/v1/models/\u2025/chat", "/v1/models/...", "/v1/models/. .", "/v1/models#x",
    ],
)  # fmt: skip
def test_a_path_that_could_be_read_in_two_ways_never_passes(path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert route(method, path) == Unguarded(UNUSUAL)


def test_an_encoded_plain_letter_is_the_letter() -> None:
    assert isinstance(route("POST", "/v1/ch%61t/completions"), ChatCompletions)
    assert isinstance(route("POST", "/openai/deployments/my%20gpt/chat/completions"), ChatCompletions)


_GENERATING = ["chat/completions", "completions", "responses", "audio/speech", "images/generations", "threads/runs"]
_NOISE = st.lists(
    st.sampled_from(
        ["v1", "models", "files", "f1", "embeddings", "openai", "deployments", "", ".", "..", "%2e%2e", "x"]
    ),
    max_size=5,
)


@example(["openai", "deployments"], "threads/runs", ["models"], "GET")
@given(_NOISE, st.sampled_from(_GENERATING), _NOISE, st.sampled_from(["GET", "POST", "PUT", "PATCH"]))
def test_nothing_with_a_generating_endpoint_inside_passes(
    before: list[str], inside: str, after: list[str], method: str
) -> None:
    path = "/" + "/".join([*before, inside, *after])
    assert not isinstance(route(method, path), Passed), f"{method} {path} passes"
