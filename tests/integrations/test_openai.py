"""The guarded client, on the real openai package and a real server. The leak probes are in tests/leakcheck."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from guardrail_vl import Action, BlockedError, Guard
from guardrail_vl.errors import ConfigurationError, ContentError, EngineUnavailableError, GuardrailError
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.streaming import Streaming
from guardrail_vl.testing import ScriptedEngine, by_keyword
from tests.integrations.llm import DONE, Answer, Llm, chunk, completion, stream
from tests.wire import responses_bodies

openai = pytest.importorskip("openai")
from openai import AsyncOpenAI, AzureOpenAI, OpenAI

from guardrail_vl.integrations.openai import decisions, guarded

BAD = "BADWORD"
Say = Callable[[dict[str, Any]], Answer]


@pytest.fixture
def llm() -> Iterator[Llm]:
    server = Llm(lambda body: stream(["It ", "is ", "open."]) if body.get("stream") else completion("It is open."))
    yield server
    server.close()


def make_guard(delay: float = 0.0, **settings: Any) -> Guard:
    return Guard(engine=ScriptedEngine(by_keyword(BAD), delay=delay), **settings)


def plain(llm: Llm, **settings: Any) -> Any:
    return OpenAI(base_url=llm.url, api_key="k", max_retries=0, **settings)


def ask(client: Any, text: str = "Where is the door?", **settings: Any) -> Any:
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **settings)


def words(events: Any) -> list[str]:
    return [c.delta.content or c.delta.refusal for e in events for c in e.choices if c.delta.content or c.delta.refusal]


def test_the_class_is_kept_and_the_original_stays_as_it_was(llm: Llm) -> None:
    client = plain(llm)
    safe = guarded(client, make_guard())
    assert type(safe) is OpenAI
    assert type(safe.with_options(timeout=3)) is OpenAI
    assert ask(client, BAD).choices[0].message.content == "It is open."
    for one in (safe, safe.with_options(timeout=3), safe.copy()):
        with pytest.raises(BlockedError):
            ask(one, BAD)
    assert len(llm.requests) == 1
    safe.close()


def test_azure_keeps_its_class_and_its_paths(llm: Llm) -> None:
    client = AzureOpenAI(
        azure_endpoint=llm.url.removesuffix("/v1"), api_key="k", api_version="2024-10-21", azure_deployment="d"
    )
    safe = guarded(client, make_guard())
    assert type(safe) is AzureOpenAI
    assert ask(safe).choices[0].message.content == "It is open."
    assert "/openai/deployments/d/chat/completions" in llm.paths[0]
    with pytest.raises(BlockedError):
        ask(safe, BAD)
    safe.close()


def test_the_connections_live_as_long_as_the_guarded_client(llm: Llm) -> None:
    safe = guarded(plain(llm), make_guard())  # nobody else holds the client below
    gc.collect()
    assert ask(safe).choices[0].message.content == "It is open."
    safe.close()


def test_a_client_of_one_s_own_goes_on_working(llm: Llm) -> None:
    seen: list[str] = []
    http: Any = openai.DefaultHttpxClient(
        headers={"X-Team": "doors"}, event_hooks={"request": [lambda r: seen.append(str(r.url))]}
    )
    safe = guarded(plain(llm, http_client=http), make_guard())
    assert ask(safe).choices[0].message.content == "It is open."
    assert llm.headers[0]["x-team"] == "doors"
    assert len(seen) == 1
    safe.close()


def test_a_refusal_has_the_shape_of_the_api(llm: Llm) -> None:
    safe = guarded(plain(llm), make_guard(), on_block="refuse", refusal="Not here.")
    reply = ask(safe, BAD)
    assert isinstance(reply, openai.types.chat.ChatCompletion)
    assert (reply.choices[0].message.content, reply.choices[0].message.refusal) == (None, "Not here.")
    assert reply.choices[0].finish_reason == "content_filter"
    assert [d.action for d in decisions(reply)] == [Action.BLOCK]
    assert llm.requests == []
    assert words(ask(safe, BAD, stream=True)) == ["Not here."]
    safe.close()


def test_only_the_choice_that_was_blocked_is_withheld(llm: Llm) -> None:
    llm.answer = lambda _: completion("fine", BAD, "fine too")
    safe = guarded(plain(llm), make_guard(), on_block="refuse")
    reply = ask(safe, n=3)
    assert [c.message.content for c in reply.choices] == ["fine", None, "fine too"]
    assert BAD not in reply.model_dump_json()
    safe.close()


def test_decisions_stand_behind_every_kind_of_reply(llm: Llm) -> None:
    safe = guarded(plain(llm), make_guard(), on_block="annotate")
    llm.answer = lambda body: stream([BAD]) if body.get("stream") else completion(BAD)
    reply = ask(safe)
    assert reply.choices[0].message.content == BAD
    assert [(d.stage, d.action) for d in decisions(reply)] == [("prompt", "allow"), ("response", "block")]
    assert reply.model_dump()["guardrail"]["action"] == "block"
    assert BAD not in str(reply.model_dump()["guardrail"])
    raw = safe.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert [d.action for d in decisions(raw)] == ["allow", "block"]
    events = ask(safe, stream=True)
    assert [d.action for d in decisions(events)] == ["allow"]
    assert words(events) == [BAD]
    assert [d.action for d in decisions(events)] == ["allow", "block"]
    with pytest.raises(ConfigurationError):
        decisions(object())
    safe.close()


@pytest.mark.parametrize("mode", ["window", "full"])
def test_a_stream_goes_out_as_it_came(llm: Llm, mode: Any) -> None:
    frames = [chunk({"role": "assistant"}), b": keep-alive\n\n", *(chunk({"content": f"w{i} "}) for i in range(99))]
    frames += [chunk({}, finish="stop"), DONE]
    llm.answer = lambda _: Answer(media_type="text/event-stream", frames=frames)
    safe = guarded(plain(llm), make_guard(0.005), stream=mode)
    with safe.chat.completions.with_streaming_response.create(
        model="m", messages=[{"role": "user", "content": "x"}], stream=True
    ) as raw:
        assert b"".join(raw.iter_bytes()) == b"".join(frames)
    safe.close()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("mode", ["window", "full"])
@pytest.mark.parametrize("on_block", ["raise", "refuse"])
def test_a_stream_is_cut_before_what_is_blocked(llm: Llm, asynchronous: bool, mode: Any, on_block: Any) -> None:
    said = [f"word{i} " for i in range(40)] + [BAD] + [" more"] * 200
    llm.answer = lambda _: stream(said, pause=0.005)
    got: list[str] = []
    raised: list[BaseException] = []
    settings: Any = {"on_block": on_block, "stream": mode, "refusal": "No."}

    async def go() -> None:
        client = AsyncOpenAI(base_url=llm.url, api_key="k")
        safe = guarded(client, make_guard(), **settings)
        try:
            async for event in await ask(safe, stream=True):
                got.extend(words([event]))
        except BlockedError as error:
            raised.append(error)
        await safe.close()

    if asynchronous:
        asyncio.run(go())
    else:
        safe = guarded(plain(llm), make_guard(), **settings)
        try:
            for event in ask(safe, stream=True):
                got.extend(words([event]))
        except BlockedError as error:
            raised.append(error)
        safe.close()
    assert bool(raised) == (on_block == "raise")
    if on_block == "refuse":
        assert got.pop() == "No."
    assert got == said[: len(got)]
    assert len(got) <= 40
    assert (len(got) > 0) == (mode == "window")
    if mode == "window":
        deadline = time.monotonic() + 5
        while not llm.left and time.monotonic() < deadline:
            time.sleep(0.01)
        assert llm.left == 1  # upstream was hung up on


def test_leaving_a_stream_hangs_up_on_upstream(llm: Llm) -> None:
    llm.answer = lambda _: stream(["word. "] * 5000, pause=0.002)
    safe = guarded(plain(llm), make_guard())
    events = ask(safe, stream=True)
    for _, _event in zip(range(3), events, strict=False):
        pass
    events.close()
    deadline = time.monotonic() + 5
    while not llm.left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert llm.left == 1
    safe.close()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_guard_that_fails_is_an_error_and_no_block(llm: Llm, streaming: bool) -> None:
    def script(prompt: Prompt) -> Completion | GuardrailError:
        if "AI assistant:\n" in prompt.messages[-1].text and "open" in prompt.messages[-1].text:
            return EngineUnavailableError("The engine is gone.")
        return by_keyword(BAD)(prompt)  # type: ignore[return-value]

    guard = Guard(engine=ScriptedEngine(script))
    for on_block in ("raise", "refuse"):
        safe = guarded(plain(llm), guard, on_block=on_block)
        got: list[str] = []
        with pytest.raises(EngineUnavailableError, match="gone"):
            reply = ask(safe, stream=streaming)
            got += words(reply) if streaming else [reply.choices[0].message.content]
        assert "open." not in "".join(got)
        safe.close()


def test_a_broken_guard_is_not_asked_again_by_retries(llm: Llm) -> None:
    engine = ScriptedEngine(lambda _: EngineUnavailableError("The engine is gone."))
    safe = guarded(OpenAI(base_url=llm.url, api_key="k", max_retries=5), Guard(engine=engine))
    with pytest.raises(EngineUnavailableError):
        ask(safe)
    assert engine.calls == 1
    safe.close()


def test_upstream_s_errors_stay_upstream_s(llm: Llm) -> None:
    llm.answer = lambda _: Answer(b'{"error": {"message": "Slow down", "code": "rate"}}', status=429)
    safe = guarded(plain(llm), make_guard())
    with pytest.raises(openai.RateLimitError, match="Slow down"):
        ask(safe)
    llm.answer = lambda _: Answer(b'{"error": {"failed_generation": "BADWORD"}}', status=400)
    with pytest.raises(BlockedError):
        ask(safe)
    safe.close()


@pytest.mark.parametrize(("answer", "error"), [
    (Answer(b"not json"), ContentError),
    (Answer(b'{"choices": [], "surprise": "text"}'), ContentError),
    (Answer(media_type="text/event-stream", frames=[b"data: {nope\n\n"]), ContentError),
    (Answer(media_type="text/event-stream", frames=[chunk({"content": "x" * 2_000_000})]), ContentError),
])  # fmt: skip
def test_what_can_t_be_read_is_an_error(llm: Llm, answer: Answer, error: type[Exception]) -> None:
    llm.answer = lambda _: answer
    safe = guarded(plain(llm), make_guard())
    with pytest.raises(error):
        list(ask(safe, stream=answer.frames is not None))
    safe.close()


def test_a_socket_closed_mid_stream_is_upstream_s_error_after_what_was_judged(llm: Llm) -> None:
    llm.answer = lambda _: stream(["It ", "is "], cut=True)
    safe = guarded(plain(llm), make_guard())
    got: list[str] = []
    with pytest.raises(Exception) as caught:
        for event in ask(safe, stream=True):
            got += words([event])
    assert not isinstance(caught.value, GuardrailError)
    assert "".join(got) == "It is "
    safe.close()


def test_a_stream_without_its_end_is_delivered(llm: Llm) -> None:
    llm.answer = lambda _: stream(["It ", "is."], done=False)
    safe = guarded(plain(llm), make_guard())
    assert "".join(words(ask(safe, stream=True))) == "It is."
    safe.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_beside_takes_the_longer_of_the_two(llm: Llm, asynchronous: bool) -> None:
    llm.answer = lambda _: Answer(**{**vars(completion("It is open.")), "wait": 0.3})
    guard = make_guard(0.25, cache=False)

    async def go(safe: Any, text: str) -> Any:
        reply = await ask(safe, text)
        await safe.close()
        return reply

    took = {}
    for when in ("before", "beside"):
        client: Any = AsyncOpenAI(base_url=llm.url, api_key="k") if asynchronous else plain(llm)
        safe = guarded(client, guard.replace(policy={"response": "allow"}), when=when)
        began = time.perf_counter()
        reply = asyncio.run(go(safe, "hello")) if asynchronous else ask(safe, "hello")
        took[when] = time.perf_counter() - began
        assert reply.choices[0].message.content == "It is open."
    assert took["before"] > took["beside"] + 0.15


@pytest.mark.parametrize("asynchronous", [False, True])
def test_beside_gives_up_the_call_on_a_block(llm: Llm, asynchronous: bool) -> None:
    llm.answer = lambda _: stream(["word "] * 2000, pause=0.005)
    guard = make_guard(0.1)

    async def go() -> None:
        safe = guarded(AsyncOpenAI(base_url=llm.url, api_key="k"), guard, when="beside")
        with pytest.raises(BlockedError):
            await ask(safe, BAD, stream=True)
        await safe.close()

    if asynchronous:
        asyncio.run(go())
    else:
        safe = guarded(plain(llm), guard, when="beside")
        with pytest.raises(BlockedError):
            ask(safe, BAD, stream=True)
        safe.close()
    deadline = time.monotonic() + 5
    while not llm.left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert llm.left == 1
    assert llm.sent < 1000


def test_two_guards_on_one_client(llm: Llm) -> None:
    other = Guard(engine=ScriptedEngine(by_keyword("OTHER")))
    safe = guarded(guarded(plain(llm), make_guard()), other)
    assert [d.stage for d in decisions(ask(safe))] == ["prompt", "response", "prompt", "response"]
    for text in (BAD, "OTHER"):
        with pytest.raises(BlockedError):
            ask(safe, text)
    llm.answer = lambda _: stream(["fine ", BAD])
    got: list[str] = []
    with pytest.raises(BlockedError):
        for event in ask(safe, stream=True):
            got += words([event])
    assert BAD not in "".join(got)
    safe.close()


def test_what_is_not_covered_is_refused_by_name(llm: Llm) -> None:
    safe = guarded(plain(llm), make_guard())
    with pytest.raises(ConfigurationError, match="audio/speech"):
        safe.audio.speech.create(model="m", voice="alloy", input="x")
    with pytest.raises(ConfigurationError, match="images/generations"):
        safe.images.generate(prompt="x")
    with pytest.raises(ContentError, match="surprise"):
        ask(safe, extra_body={"surprise": "text"})
    assert llm.requests == []
    told = guarded(plain(llm), make_guard(), allow_unguarded={"surprise"})
    assert ask(told, extra_body={"surprise": "text"}).choices[0].message.content == "It is open."
    safe.close()


def test_models_and_embeddings_pass(llm: Llm) -> None:
    llm.answer = lambda _: Answer(b'{"object": "list", "data": []}')
    safe = guarded(plain(llm), make_guard())
    assert list(safe.models.list()) == []
    safe.close()


def test_a_picture_that_can_t_be_fetched_is_not_sent(llm: Llm) -> None:
    safe = guarded(plain(llm), make_guard(fetch_images=True))
    with pytest.raises(ContentError):  # a loopback address is never fetched
        safe.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": llm.url + "/x.png"}}]}],
        )
    assert llm.requests == []
    safe.close()


@pytest.mark.parametrize("wrong", [
    {"on_block": "ignore"}, {"when": "after"}, {"stream": "some"}, {"stream": "observe"}, {"allow_unguarded": "x"},
])  # fmt: skip
def test_wrong_settings_are_refused_at_once(llm: Llm, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        guarded(plain(llm), make_guard(), **wrong)


def test_only_clients_of_the_package_are_taken() -> None:
    with pytest.raises(ConfigurationError, match="openai"):
        guarded(object(), make_guard())


def test_observe_shows_all_and_tells(llm: Llm) -> None:
    llm.answer = lambda _: stream(["one ", BAD, " two"])
    safe = guarded(plain(llm), make_guard(), on_block="annotate", stream=Streaming(mode="observe"))
    events = ask(safe, stream=True)
    assert "".join(words(events)) == f"one {BAD} two"
    assert decisions(events)[-1].blocked
    safe.close()


def test_a_streamed_response_can_be_gone_on_from_by_its_id(llm: Llm) -> None:
    if not hasattr(OpenAI, "responses"):
        pytest.skip("this openai has no Responses API")
    frames = [responses_bodies.frame(event).raw for event in responses_bodies.events()]
    llm.answer = lambda body: Answer(media_type="text/event-stream", frames=frames)
    safe = guarded(plain(llm), make_guard(), allow_unguarded={"image_generation", "web_search"})
    (last,) = [e for e in safe.responses.create(model="m", input="Go.", stream=True) if e.type == "response.completed"]
    for known, reply_id in ((True, last.response.id), (False, "resp_other")):
        with contextlib.nullcontext() if known else pytest.raises(ContentError, match="previous_response_id"):
            safe.responses.create(model="m", input="Go on.", previous_response_id=reply_id, stream=True).close()
    safe.close()
