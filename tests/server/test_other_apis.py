"""OpenAI's moderations and the proxy through the official client; LiteLLM's guardrail API."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

pytest.importorskip("openai")
import openai
from openai import OpenAI

from guardrail_vl.server import ApiKey
from tests.server.serving import BAD, BROKEN, running, serving
from tests.server.test_native import SECRET, png


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as url:
        yield url


def test_the_official_client_takes_our_moderations(url: str) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        one = client.moderations.create(model="omni-moderation-latest", input="hello")
        assert [result.flagged for result in one.results] == [False]
        several = client.moderations.create(input=["hello", BAD])
        assert [result.flagged for result in several.results] == [False, True]
        assert (several.results[1].categories.model_extra or {})["harmful"] is True
        parts: Any = [{"type": "text", "text": BAD}, {"type": "image_url", "image_url": {"url": png()}}]
        both = client.moderations.create(input=parts)
        assert [result.flagged for result in both.results] == [True]
        assert both.model == "scripted"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ([], openai.BadRequestError),
        ([{"type": "text", "text": "x"}, "x"], openai.BadRequestError),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}], openai.BadRequestError),
        (BROKEN, openai.InternalServerError),
        ([BROKEN, "x"], openai.InternalServerError),
    ],
)
def test_what_has_no_verdict_is_an_error_for_a_client_that_knows_no_third_value(
    url: str, given: Any, kind: type
) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client, pytest.raises(kind):
        client.moderations.create(input=given)


def test_litellm(url: str) -> None:
    def ask(**more: object) -> httpx.Response:
        return httpx.post(f"{url}/beta/litellm_basic_guardrail_api", json={"input_type": "request", **more})

    assert ask(texts=["hello"], images=[png()], litellm_call_id="1").json() == {"action": "NONE"}
    assert ask(texts=["hello", BAD]).json()["action"] == "BLOCKED"
    assert ask(texts=[BAD], input_type="response").json()["action"] == "BLOCKED"
    assert ask(texts=["x"], tool_calls=[{"function": {"arguments": BAD}}]).json()["action"] == "BLOCKED"
    assert ask(texts=[BROKEN]).status_code == 503
    assert ask(texts=[]).status_code == 400
    assert ask(texts=["x"], images=["/etc/passwd"]).status_code == 400
    assert ask(texts=["x"], input_type="neither").status_code == 400


# ---- the proxy -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """A small API of its own: it repeats what was asked, as a reply or a stream, and says what came to it."""
    app = FastAPI()
    app.state.seen = []

    @app.post("/api/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> JSONResponse | StreamingResponse:
        asked = await request.json()
        app.state.seen.append((dict(request.headers), asked))
        said = asked["messages"][-1]["content"].removeprefix("say ").replace("bad", BAD)
        base = {"id": "chatcmpl-1", "created": 1, "model": "m"}
        if not asked.get("stream"):
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            return JSONResponse(
                {**base, "object": "chat.completion", "choices": [choice]}, headers={"x-request-id": "r1"}
            )

        async def events() -> Any:
            for word in said.split(" "):
                choice = {"index": 0, "delta": {"content": word + " "}, "finish_reason": None}
                yield f"data: {json.dumps({**base, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
            choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
            yield f"data: {json.dumps({**base, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/api/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "us"}]}

    @app.get("/seen")
    async def seen() -> list[Any]:
        out: list[Any] = app.state.seen
        app.state.seen = []
        return out

    with running(app) as url:
        yield url


def ask(client: OpenAI, text: str, **more: Any) -> Any:
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **more)


def test_the_official_client_goes_through_the_proxy(upstream: str) -> None:
    with (
        serving(upstream=f"{upstream}/api/v1", upstream_key="sk-upstream") as url,
        OpenAI(base_url=f"{url}/v1", api_key="sk-callers", max_retries=0) as client,
    ):
        assert ask(client, "say hello").choices[0].message.content == "hello"
        ((headers, _),) = httpx.get(f"{upstream}/seen").json()
        assert headers["authorization"] == "Bearer sk-upstream"
        raw = client.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "say x"}]
        )
        assert raw.headers["x-request-id"] == "r1"
        assert raw.headers["x-guardrail-action"] == "allow"
        with ask(client, "say one two three", stream=True) as stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "one two three "
        assert [model.id for model in client.models.list()] == ["m"]
        assert client.moderations.create(input=BAD).results[0].flagged  # ours, not upstream's


def test_a_block_costs_nothing_and_says_so_in_the_apis_own_shape(upstream: str) -> None:
    with (
        serving(upstream=f"{upstream}/api/v1", refusal="No.") as url,
        OpenAI(base_url=f"{url}/v1", api_key="sk", max_retries=0) as client,
    ):
        httpx.get(f"{upstream}/seen")
        refused = ask(client, BAD)
        assert refused.choices[0].message.refusal == "No."
        assert httpx.get(f"{upstream}/seen").json() == []
        assert ask(client, "say bad").choices[0].message.refusal == "No."
        said = ""
        with ask(client, "say fine. very bad", stream=True) as stream:
            for chunk in stream:
                said += chunk.choices[0].delta.content or ""
        assert BAD not in said
        with pytest.raises(openai.InternalServerError):
            ask(client, BROKEN)
        with pytest.raises(openai.PermissionDeniedError, match="audio/speech"):
            client.audio.speech.create(model="m", voice="v", input="x")


def test_a_block_may_be_an_http_error(upstream: str) -> None:
    with (
        serving(upstream=f"{upstream}/api/v1", on_block="raise") as url,
        OpenAI(base_url=f"{url}/v1", api_key="sk", max_retries=0) as client,
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, BAD)
        assert caught.value.code == "content_filter"
        with pytest.raises(openai.APIError), ask(client, "say fine. very bad", stream=True) as stream:
            for _ in stream:
                pass


def test_our_keys_stay_here(upstream: str) -> None:
    with (
        serving(upstream=f"{upstream}/api/v1", keys=(ApiKey.of("shop", SECRET),)) as url,
        OpenAI(base_url=f"{url}/v1", api_key=SECRET, max_retries=0) as client,
    ):
        httpx.get(f"{upstream}/seen")
        ask(client, "say hello")
        ((headers, _),) = httpx.get(f"{upstream}/seen").json()
        assert "authorization" not in headers
        assert SECRET not in str(headers)


def test_an_upstream_that_is_gone_is_a_502(url: str) -> None:
    with (
        serving(upstream="http://127.0.0.1:9/v1") as url,
        OpenAI(base_url=f"{url}/v1", api_key="sk", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, "hello")
        assert caught.value.status_code == 502


def test_many_callers_at_once_get_their_own_replies(upstream: str) -> None:
    wrong: list[str] = []
    with serving(upstream=f"{upstream}/api/v1") as url:

        def work(number: int) -> None:
            with OpenAI(base_url=f"{url}/v1", api_key="sk", max_retries=0) as client:
                for turn in range(5):
                    text = f"{number} and {turn}"
                    if ask(client, f"say {text}").choices[0].message.content != text:
                        wrong.append(text)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["proxy", "proxy-async"])
def test_leakcheck_of_the_proxy_is_green(name: str) -> None:
    from guardrail_vl import leakcheck

    report = leakcheck.run(leakcheck.load(name))
    assert report.green, report.table()
