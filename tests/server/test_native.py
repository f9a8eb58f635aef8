"""`/v1/guard`, over a real socket: decisions as the library gives them, errors that hold no content."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from guardrail_vl import Decision, Policy
from guardrail_vl.server import ApiKey
from tests.server.serving import BAD, BROKEN, make_guard, serving

SECRET = "a key of sixteen characters and more"


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    strict = Policy(name="annotating", prompt="annotate")  # type: ignore[arg-type]
    with serving(policies={"annotating": strict}) as url, httpx.Client(base_url=url) as client:
        yield client


def png() -> str:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def test_a_decision_is_the_librarys(client: httpx.Client) -> None:
    every: tuple[dict[str, Any], ...] = ({"prompt": "hello"}, {"prompt": BAD}, {"prompt": "x", "response": BAD}, {"response": "only this"},
                  {"prompt": "look", "images": [png()]}, {"messages": [{"role": "user", "content": BAD}]})  # fmt: skip
    for asked in every:
        reply = client.post("/v1/guard", json=asked)
        assert reply.status_code == 200, reply.text
        got = Decision.from_json(reply.content)
        content = asked.get("messages") or None
        guard = make_guard()
        if content is not None:
            want = guard.check(content)
        elif "response" in asked:
            want = guard.check_response(asked["response"], prompt=asked.get("prompt"))
        else:
            want = guard.check_prompt(asked["prompt"], images=asked.get("images", ()))
        assert (got.action, got.stage, got.reason, got.policy) == (want.action, want.stage, want.reason, want.policy)
        assert got.verdict is not None
        assert got.verdict.reasoning == want.reasoning


def test_a_batch_keeps_its_order(client: httpx.Client) -> None:
    prompts = [BAD if i % 3 == 0 else f"number {i}" for i in range(40)]
    reply = client.post("/v1/guard", json={"inputs": [{"prompt": prompt} for prompt in prompts]})
    actions = [one["action"] for one in reply.json()["decisions"]]
    assert actions == ["block" if BAD in prompt else "allow" for prompt in prompts]


def test_one_broken_input_of_a_batch_spoils_no_other(client: httpx.Client) -> None:
    reply = client.post("/v1/guard", json={"inputs": [{"prompt": BROKEN}, {"prompt": "fine"}, {"messages": []}]})
    assert reply.status_code == 200
    broken, fine, empty = reply.json()["decisions"]
    assert (broken["action"], broken["error"]["type"]) == ("block", "EngineUnavailableError")
    assert (fine["action"], fine["error"]) == ("allow", None)
    assert (empty["action"], empty["error"]["type"]) == ("block", "ContentError")


def test_an_engine_that_is_down_is_a_503_and_never_a_pass(client: httpx.Client) -> None:
    for asked in ({"prompt": BROKEN}, {"inputs": [{"prompt": BROKEN}]}):
        reply = client.post("/v1/guard", json=asked)
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["code"] == "guard_unavailable"
        assert reply.json()["decision"]["action"] == "block"


def test_fail_open_says_so() -> None:
    with serving(make_guard(fail="open")) as url:
        reply = httpx.post(f"{url}/v1/guard", json={"prompt": BROKEN})
    assert (reply.status_code, reply.json()["action"], reply.json()["error"]["type"]) == (
        200, "annotate", "EngineUnavailableError",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'{"prompt": "a", "prompt": "b"}', "invalid_json"),
        (b'{"prompt": 5}', "invalid_request"),
        (b'{"prompt": "x", "private words": 1}', "invalid_request"),
        (b'{"prompt": "x", "messages": []}', "invalid_request"),
        (b'{"prompt": "x", "images": ["/etc/passwd"]}', "invalid_request"),
        (b'{"prompt": "x", "policy": "none of ours"}', "unknown_policy"),
        (b'{"prompt": "x", "speed": "warp"}', "invalid_request"),
        (b'{"prompt": "x", "inputs": []}', "invalid_request"),
        (b'{"inputs": []}', "batch_too_large"),
    ],
)
def test_what_is_no_request_is_refused_and_not_repeated(client: httpx.Client, asked: bytes, code: str) -> None:
    reply = client.post("/v1/guard", content=asked)
    assert reply.status_code in (400, 413)
    assert reply.json()["error"]["code"] == code
    assert "private" not in reply.text
    assert "passwd" not in reply.text


def test_what_cannot_be_judged_is_a_decision(client: httpx.Client) -> None:
    for url in ("data:image/png;base64,AA==", "https://elsewhere.example/a.png"):
        reply = client.post("/v1/guard", json={"prompt": "x", "images": [url]})
        assert reply.status_code == 200
        assert reply.json()["action"] == "block"
        assert reply.json()["error"]["type"] == "ContentError"


def test_a_request_may_name_a_policy(client: httpx.Client) -> None:
    reply = client.post("/v1/guard", json={"prompt": BAD, "policy": "annotating"})
    assert reply.json()["action"] == "annotate"
    listed = client.get("/v1/policies").json()
    assert {one["name"]: one["hash"] for one in listed["policies"]}["annotating"] == reply.json()["policy"]
    assert set(listed["speeds"]) >= {"reason"}


def test_keys_have_a_policy_and_a_rate() -> None:
    strict = Policy(name="annotating", prompt="annotate")  # type: ignore[arg-type]
    keys = (ApiKey.of("shop", SECRET, policy="annotating", rate="3/minute"), ApiKey.of("other", SECRET + "2"))
    with serving(keys=keys, policies={"annotating": strict}) as url, httpx.Client(base_url=url) as client:
        for headers in (
            [],
            [(b"authorization", b"Bearer wrong")],
            [(b"authorization", SECRET.encode())],
            [(b"x-api-key", b"\xc3")],
        ):
            reply = client.post("/v1/guard", json={"prompt": "x"}, headers=headers)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        mine = {"authorization": f"Bearer {SECRET}"}
        assert client.post("/v1/guard", json={"prompt": BAD}, headers=mine).json()["action"] == "annotate"
        other = client.post("/v1/guard", json={"prompt": BAD, "policy": "default"}, headers=mine)
        assert other.json()["error"]["code"] == "policy_not_allowed"
        assert client.post("/v1/guard", json={"inputs": [{"prompt": "x"}] * 2}, headers=mine).status_code == 200
        late = client.post("/v1/guard", json={"prompt": "x"}, headers=mine)
        assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limited")
        assert 1 <= int(late.headers["retry-after"]) <= 60
        theirs = {"x-api-key": SECRET + "2"}
        assert client.post("/v1/guard", json={"prompt": BAD}, headers=theirs).json()["action"] == "block"
        assert client.get("/metrics").status_code == 401
        text = client.get("/metrics", headers=theirs).text
        assert 'guardrail_requests_total{app="shop",endpoint="/v1/guard",status="429"} 1.0' in text
        assert 'guardrail_decisions_total{action="annotate",stage="prompt"} 1.0' in text
        assert SECRET not in text
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_a_body_that_is_too_long_is_refused_however_it_comes() -> None:
    with serving(max_body=1000) as url:
        long = json.dumps({"prompt": "x" * 2000}).encode()
        assert httpx.post(f"{url}/v1/guard", content=long).status_code == 413
        assert httpx.post(f"{url}/v1/guard", content=iter([long[:10], long[10:]])).status_code == 413


def test_pages_of_other_sites_may_not_ask(client: httpx.Client) -> None:
    asked = {"prompt": "x"}
    assert client.post("/v1/guard", json=asked, headers={"origin": "https://evil.example"}).status_code == 403
    assert client.post("/v1/guard", json=asked, headers={"host": "evil.example"}).status_code == 403
    assert client.post("/v1/guard", json=asked, headers={"origin": str(client.base_url)}).status_code == 200


def test_reasoning_comes_as_events(client: httpx.Client) -> None:
    with client.stream("POST", "/v1/guard", json={"prompt": BAD, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        frames = [frame for frame in reply.read().decode().split("\n\n") if frame]
    names = [frame.partition("\n")[0] for frame in frames]
    assert set(names[:-1]) == {"event: reasoning"}
    assert names[-1] == "event: decision"
    written = "".join(json.loads(frame.partition("data: ")[2])["text"] for frame in frames[:-1])
    decision = Decision.from_json(frames[-1].partition("data: ")[2])
    assert decision.blocked
    assert written.strip() == (decision.reasoning or "").strip() != ""


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(["prompt", "response", "images", "messages", "inputs"]),
                       st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
                                    | st.text(max_size=8),
                                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                                    max_leaves=8), max_size=4))  # fmt: skip
def test_no_json_makes_a_500(client: httpx.Client, asked: dict[str, object]) -> None:
    reply = client.post("/v1/guard", json=asked)
    assert reply.status_code in (200, 400, 413), reply.text
