"""RemoteEngine against a real server process (`tests/servers.py`): what is sent, what comes back, settings, keys."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from guardrail_vl import Action, Guard
from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.engines.remote import RemoteEngine
from guardrail_vl.errors import (
    ConfigurationError,
    EngineResponseError,
    EngineUnavailableError,
)
from guardrail_vl.prompt_format.base import Completion
from tests.engines.remotely import (
    KEY,
    MODES,
    SLACK,
    USER,
    Mode,
    ask,
    fast,
    no_keys,
    reason,
    running,
    server,
    text_of,
)
from tests.servers import MARK, STOP, FaultServer, start

__all__ = ["no_keys", "running", "server"]


# ---- what is sent and what comes back -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_reasoned_completion(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="ok", api_key=KEY, headers={"X-Team": "red"}, extra_body={"seed": 7})
    outcome = ask(engine, reason(f"{USER} {MARK}"), mode)
    assert isinstance(outcome, Completion)
    assert outcome.text.endswith(f"Request: harmful\nResponse: None\n{STOP}")
    assert "".join(token.text for token in outcome.tokens) == outcome.text
    assert (outcome.model, outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == ("ok", 7, 5)
    assert 0 < outcome.latency < 5
    label = next(token for token in outcome.tokens if token.text == " harmful")
    assert [text for text, _ in label.alternatives] == [" harmful", " unharmful"]
    (request,) = server.stats()["requests"]
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    assert request["headers"]["x-team"] == "red"
    assert request["headers"]["accept-encoding"] == "identity"
    assert request["body"] == {
        "model": "ok",
        "temperature": 0,
        "max_tokens": 64,
        "logprobs": True,
        "top_logprobs": 20,
        "stop": [STOP],
        "include_stop_str_in_output": True,
        "repetition_penalty": 1.0,
        "seed": 7,
        "messages": [{"role": "system", "content": "Judge."}, {"role": "user", "content": f"{USER} {MARK}"}],
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_begun_completion_on_a_server_that_continues_it(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="ok")
    assert text_of(ask(engine, fast(MARK), mode)) == " harmful"
    assert text_of(ask(engine, fast(), mode)) == " unharmful"
    probe, first, second = (r["body"] for r in server.stats()["requests"])
    assert MARK not in str(probe)
    assert first["messages"][-1] == {"role": "assistant", "content": "<result>\nRequest:"}
    assert (first["continue_final_message"], first["add_generation_prompt"]) == (True, False)
    assert first["structured_outputs"] == {"regex": " (un)?harmful"}
    assert second["messages"][1]["content"] == USER


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("behaviour", ["ignores", "strict", "strips"])
def test_a_begun_completion_is_not_asked_of_a_server_that_would_not_continue_it(
    server: FaultServer, behaviour: str, mode: Mode
) -> None:
    engine = RemoteEngine(server.url, model=behaviour)
    for _ in range(2):
        error = ask(engine, fast(), mode)
        assert type(error) is EngineResponseError
        assert "speed='reason'" in error.hint
    assert len(server.stats()["requests"]) == 1
    assert text_of(ask(engine, mode=mode)).endswith(STOP)


def test_what_a_server_can_do_may_be_told(server: FaultServer) -> None:
    assert text_of(ask(RemoteEngine(server.url, model="ok", server="vllm"), fast())) == " unharmful"
    assert len(server.stats()["requests"]) == 1
    assert type(ask(RemoteEngine(server.url, model="ok", server="llama.cpp"), fast())) is EngineResponseError
    with pytest.raises(ConfigurationError, match="known: vllm"):
        RemoteEngine(server.url, model="ok", server="vlm")


def test_a_web_page_in_place_of_the_probe_is_not_remembered(server: FaultServer) -> None:
    engine = RemoteEngine(server.url, model="html")
    for n in (1, 2):
        assert "HTML" in str(ask(engine, fast()))
        assert len(server.stats()["requests"]) == n


@pytest.mark.parametrize("mode", MODES)
def test_refused_fields_are_left_out_and_remembered(server: FaultServer, mode: Mode) -> None:
    engine = RemoteEngine(server.url, model="strict")
    for _ in range(2):
        outcome = ask(engine, mode=mode)
        assert text_of(outcome).endswith(STOP)
    bodies = [r["body"] for r in server.stats()["requests"]]
    assert ["include_stop_str_in_output" in body for body in bodies] == [True, False, False]
    assert ["stop" in body for body in bodies] == [True, False, False]  # transformers serve breaks on it


def test_fields_that_a_user_names_are_not_taken_for_refused(server: FaultServer) -> None:
    # This server's refusal quotes the request, and with it the user.
    engine = RemoteEngine(server.url, model="status:422")
    hostile = reason("Unexpected fields: logprobs, include_stop_str_in_output", top_logprobs=0)
    for _ in range(2):
        assert type(ask(engine, hostile)) is EngineResponseError
    bodies = [r["body"] for r in server.stats()["requests"]]
    assert "include_stop_str_in_output" in bodies[0]
    assert any("include_stop_str_in_output" in body for body in bodies[1:])


@pytest.mark.parametrize("behaviour", ["ignores", "strips", "strict"])
def test_a_stop_string_that_the_server_takes_off_is_put_back(server: FaultServer, behaviour: str) -> None:
    assert text_of(ask(RemoteEngine(server.url, model=behaviour), reason(top_logprobs=0))).endswith(f"\n{STOP}")


@pytest.mark.parametrize("mode", MODES)
def test_reasoning_that_the_server_takes_out_is_put_back(server: FaultServer, mode: Mode) -> None:
    whole = text_of(ask(RemoteEngine(server.url, model="ok"), reason(MARK), mode))
    assert text_of(ask(RemoteEngine(server.url, model="reasons"), reason(MARK), mode)) == whole


def test_the_only_model_is_found(server: FaultServer) -> None:
    engine = RemoteEngine(server.url)
    for _ in range(2):
        outcome = ask(engine)
        assert isinstance(outcome, Completion)
        assert outcome.model == "ok"
    assert [r["path"] for r in server.stats()["requests"]] == ["/v1/models", *["/v1/chat/completions"] * 2]


@pytest.mark.parametrize("mode", MODES)
def test_which_of_several_models_must_be_said(server: FaultServer, mode: Mode) -> None:
    with pytest.raises(ConfigurationError, match="3 models: 'ok', 'ignores', 'strict'") as caught:
        ask(RemoteEngine(f"{server.root}/many/v1"), mode=mode)
    assert "model=" in caught.value.hint
    with pytest.raises(ConfigurationError, match="0 models"):
        ask(RemoteEngine(f"{server.root}/none/v1"), mode=mode)
    assert type(ask(RemoteEngine(f"{server.root}/broken/v1", attempts=1), mode=mode)) is EngineUnavailableError


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/chat/completions/?v=2"])
def test_forms_of_the_url(server: FaultServer, suffix: str) -> None:
    assert text_of(ask(RemoteEngine(server.root + suffix, model="ok"))).endswith(STOP)
    query = "?v=2" if "?" in suffix else ""
    assert server.stats()["requests"][0]["path"] == "/v1/chat/completions" + query


@pytest.mark.parametrize(
    "url",
    ["", "guard:8000", "guard", "ftp://guard/v1", "http://", "http://guard:99999/v1", "http://a b/v1", "http://g/#x",
     "http://guard\n/v1", "http://user:hunter2@guard/v1", "http://guard:port/v1"],
)  # fmt: skip
def test_a_wrong_url_fails_at_once_and_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RemoteEngine(url, model="m")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_connections": 0}, {"attempts": 0}, {"trip_after": 0}, {"cool_down": -1},
        {"api_key": f"{KEY}\nX: y"}, {"api_key": f"{KEY}ü"}, {"headers": {"X": f"{KEY}\r\n"}},
        {"headers": {"Content-Length": "3"}}, {"extra_body": {"messages": []}}, {"extra_body": {"x": object()}},
        {"verify": "no-such-file.pem"},
    ],
)  # fmt: skip
def test_wrong_settings_fail_at_once_and_show_no_secret(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RemoteEngine("https://guard/v1", model="m", **settings)
    assert KEY not in str(caught.value)


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_where_the_key_comes_from(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(**settings: Any) -> str | None:
        server.reset()
        ask(RemoteEngine(server.url, model="ok", **settings))
        found: str | None = server.stats()["requests"][0]["headers"].get("authorization")
        return found

    assert sent() is None
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    assert sent() == "Bearer openai"
    monkeypatch.setenv("GUARDRAIL_VL_API_KEY", " ours\n")
    assert sent() == "Bearer ours"
    assert sent(api_key="given\n") == "Bearer given"
    assert sent(headers={"authorization": "Basic x"}) == "Basic x"
    assert sent(api_key="") is None


def test_pickles(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = RemoteEngine(f"{server.root}/guarded/v1", model="ok", api_key="sesame", extra_body={"seed": 1})
    assert text_of(ask(engine)).endswith(STOP)
    again = pickle.loads(pickle.dumps(engine))
    assert text_of(ask(again)).endswith(STOP)
    assert server.stats()["requests"][-1]["body"]["seed"] == 1
    assert "sesame" not in repr(again) + repr(again._settings) + repr(again._target)
    monkeypatch.setenv("GUARDRAIL_VL_API_KEY", "sesame")
    from_environment = RemoteEngine(f"{server.root}/guarded/v1", model="ok")
    data = pickle.dumps(from_environment)
    assert b"sesame" not in data
    assert text_of(ask(pickle.loads(data))).endswith(STOP)


# ---- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl command to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", file, "-out", file.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_bytes(file.read_bytes() + file.with_suffix(".crt").read_bytes())
    return file


def test_tls(certificate: Path) -> None:
    authority = certificate.with_suffix(".crt")
    context = ssl.create_default_context(cafile=authority)
    with start(str(certificate)) as server:
        for mode in MODES:
            for verify in (str(authority), authority, context, False):
                engine = RemoteEngine(server.url, model="ok", verify=verify)
                assert text_of(ask(engine, mode=mode)).endswith(STOP)
                engine.close()
            error = ask(RemoteEngine(server.url, model="ok"), mode=mode)
            assert type(error) is EngineUnavailableError
            assert "not trusted" in str(error)


@pytest.mark.parametrize("mode", MODES)
def test_a_deadline_over_tls(certificate: Path, mode: Mode) -> None:
    async def go(engine: RemoteEngine) -> tuple[float, Outcome]:
        began = time.perf_counter()
        outcome = (await engine.agenerate([reason()], deadline=Deadline.after(0.4)))[0]
        took = time.perf_counter() - began
        await asyncio.sleep(0.1)  # saying goodbye takes TLS a while, and a loop that ends before that warns
        return took, outcome

    with start(str(certificate)) as server:
        engine = RemoteEngine(server.url, model="drip-body", verify=certificate.with_suffix(".crt"))
        if mode == "async":
            took, late = asyncio.run(go(engine))
        else:
            began = time.perf_counter()
            late = ask(engine, seconds=0.4)
            took = time.perf_counter() - began
    assert "deadline" in str(late)
    assert took < 0.4 + SLACK


# ---- with a guard ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", ["reason", "fast"])
def test_a_guard_on_a_server(server: FaultServer, speed: Literal["reason", "fast"]) -> None:
    guard = Guard.remote(server.url, model="ok", speed=speed)
    assert guard.check_prompt(f"{USER} {MARK}").action is Action.BLOCK
    allowed = asyncio.run(guard.acheck_prompt(USER))
    assert allowed.action is Action.ALLOW
    assert allowed.verdict is not None
    assert allowed.verdict.prompt_score == pytest.approx(0.1, abs=0.01)
    down = Guard.remote(server.url, model="status:500", attempts=1).check_prompt(USER)
    assert down.blocked
    assert isinstance(down.error, EngineUnavailableError)
