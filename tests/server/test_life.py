"""How the server comes up, knows that it is broken, and goes: the real process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from guardrail_vl import Guard
from guardrail_vl.engines.base import Engine
from guardrail_vl.errors import ConfigurationError, EngineUnavailableError
from guardrail_vl.prompt_format.base import Completion
from guardrail_vl.server import ApiKey, Settings, create_app, read_keys, run
from guardrail_vl.testing import ScriptedEngine
from tests.server.serving import BAD, make_guard, running, script, serving


def wait_for(ask: Any, what: Any, seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while True:
        got = ask()
        if got == what or time.monotonic() > end:
            return got
        time.sleep(0.05)


def test_it_is_not_ready_while_the_guard_is_made_and_answers_503() -> None:
    go = threading.Event()

    def make() -> Guard:
        go.wait(30)
        return make_guard()

    with serving(make) as url, httpx.Client(base_url=url) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        reply = client.post("/v1/guard", json={"prompt": "x"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_ready")
        assert "retry-after" in reply.headers
        go.set()
        assert wait_for(lambda: client.get("/readyz").status_code, 200) == 200
        assert client.post("/v1/guard", json={"prompt": "x"}).status_code == 200


def test_a_guard_that_errs_on_a_canary_is_not_heard() -> None:
    says = ["unharmful"]

    def fixed(prompt: Any) -> Completion:
        bomb = "bomb" in prompt.messages[-1].text or prompt.images
        label = "harmful" if bomb and says[0] == "harmful" else "unharmful"
        return Completion(f"<think>x</think>\n<result>\nRequest: {label}\nResponse: unharmful\n</result>", model="m")

    guard = Guard(engine=ScriptedEngine(fixed, model="m"))
    with serving(guard, canaries=True, canary_interval=0.1) as url, httpx.Client(base_url=url) as client:
        assert wait_for(lambda: "was judged unharmful" in client.get("/readyz").text, True)
        assert client.post("/v1/guard", json={"prompt": "x"}).status_code == 503
        says[0] = "harmful"
        assert wait_for(lambda: client.get("/readyz").status_code, 200) == 200
        assert client.post("/v1/guard", json={"prompt": "x"}).status_code == 200
        says[0] = "unharmful"
        assert wait_for(lambda: client.get("/readyz").status_code, 503) == 503
        assert "guardrail_ready 0.0" in client.get("/metrics").text


def test_an_engine_that_dies_and_comes_back_needs_no_restart() -> None:
    dead = threading.Event()

    def mortal(prompt: Any) -> Any:
        if dead.is_set():
            return EngineUnavailableError("It is dead.", retry_after=7.2)
        return script(prompt)

    guard = Guard(engine=ScriptedEngine(mortal, model="m"), cache=False)
    with serving(guard) as url, httpx.Client(base_url=url) as client:
        assert client.post("/v1/guard", json={"prompt": "x"}).status_code == 200
        dead.set()
        reply = client.post("/v1/guard", json={"prompt": "x"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "8")
        dead.clear()
        assert client.post("/v1/guard", json={"prompt": "x"}).status_code == 200


def test_more_than_it_may_hold_is_a_503() -> None:
    go = threading.Event()

    def slow(prompt: Any) -> Any:
        go.wait(30)
        return script(prompt)

    class InThreads(ScriptedEngine):
        agenerate = Engine.agenerate

    guard = Guard(engine=InThreads(slow, model="m"))
    with serving(guard, max_in_flight=2) as url:
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda i=i: codes.append(httpx.post(f"{url}/v1/guard", json={"prompt": str(i)}, timeout=60).status_code))
            for i in range(6)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        assert wait_for(lambda: codes.count(503), 4) == 4
        assert httpx.get(f"{url}/healthz").status_code == 200
        go.set()
        for thread in threads:
            thread.join()
    assert sorted(codes) == [200, 200, 503, 503, 503, 503]


def test_requests_under_way_are_counted_when_metrics_are_read() -> None:
    with serving() as url:
        for _ in range(2):  # the asking itself, each time
            assert "guardrail_in_flight 1.0" in httpx.get(f"{url}/metrics").text


def test_what_judges_is_reached_alike_with_and_without_fastapis_tracing() -> None:
    app = create_app(make_guard(), Settings(canaries=False))

    async def traced(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "fastapi.telemetry": None}, receive, send)

    with running(app) as plain, running(traced) as other:
        for path in ("/v1/guard", "/v1/moderations", "/beta/litellm_basic_guardrail_api"):
            for asked in ({"input": "hello"}, {"prompt": "hello"}, {"input_type": "request", "texts": ["hello"]}):
                replies = [httpx.post(url + path, json=asked) for url in (plain, other)]
                assert len({reply.status_code for reply in replies}) == 1
                assert len({tuple(sorted({*reply.headers} - {"date"})) for reply in replies}) == 1
            for url in (plain, other):
                reply = httpx.get(url + path)
                assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
        text = httpx.get(f"{plain}/metrics").text
    assert 'guardrail_requests_total{app="",endpoint="/v1/guard",status="200"} 2.0' in text


def test_an_app_of_ones_own_may_have_more_routes() -> None:
    app = create_app(make_guard(), Settings(canaries=False))

    @app.get("/mine")
    async def mine(number: int) -> dict[str, int]:
        return {"number": number}

    with running(app) as url:
        assert httpx.get(f"{url}/mine", params={"number": "7"}).json() == {"number": 7}


# ---- the command -----------------------------------------------------------------------------------------------------


@contextmanager
def command(*args: str, environment: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`guardrail-vl serve` on a free port, and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "guardrail_vl", "serve", "--port", "0", *args],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        url = ""
        for line in process.stderr:
            if found := re.search(r"Listening on (\S+)", line):
                url = found[1]
                break
        yield process, url
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_sigterm_drains() -> None:
    pytest.importorskip("onnxruntime")
    with command("--drain", "1.5") as (process, url), httpx.Client(base_url=url) as client:
        assert wait_for(lambda: client.get("/readyz").status_code, 200) == 200
        process.send_signal(signal.SIGTERM)
        assert wait_for(lambda: client.get("/readyz").status_code, 503) == 503
        assert client.post("/v1/guard", json={"prompt": "How do I bake bread?"}).status_code == 200
        assert process.wait(20) in (0, -signal.SIGTERM)


def test_the_embedded_guard_passes_the_canaries_over_tls(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True,
    )  # fmt: skip
    with command("--tls-cert", str(certificate), "--tls-key", str(key)) as (_, url):
        assert url.startswith("https://")
        with httpx.Client(base_url=url, verify=False) as client:
            assert wait_for(lambda: client.get("/readyz").status_code, 200) == 200
            page = client.get("/")
            assert page.headers["content-type"].startswith("text/html")
            assert "script-src 'self'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--host", "0.0.0.0"], "loopback"),
        (["--upstream", "nonsense"], "upstream"),
        (["--upstream", "https://me:secret@api.example/v1"], "user name"),
        (["--tls-cert", "nowhere.pem"], "both"),
        (["--keys", "nowhere.yaml"], "keys file"),
        (["--on-block", "shrug"], "on_block"),
        (["--stream", "shrug"], "mode"),
        (["--model", "/no/such/folder"], "could not be made"),
        (["--tensor-parallel", "2"], "need a --model"),
        (["--data-parallel", "2", "--url", "http://127.0.0.1:9/v1"], "need a --model"),
        (["--model", "m", "--adapter", "house"], "NAME=FOLDER"),
        (["--model", "m", "--adapter", "house=/no/such/folder"], "holds no LoRA adapter"),
    ],
)
def test_what_is_wrong_is_said_before_it_serves(args: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "guardrail_vl", "serve", "--port", "0", *args],
        check=False, capture_output=True, text=True, timeout=60, env={**os.environ, "GUARDRAIL_VL_DEBUG": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


COLLECTOR = """
import gc, os, signal, threading
from guardrail_vl.server import Settings, create_app, run
from tests.server.serving import make_guard

def look():
    print(gc.get_threshold()[0], gc.get_freeze_count() > 10_000, flush=True)
    os.kill(os.getpid(), signal.SIGINT)

before = gc.get_threshold()
threading.Timer(2, look).start()
try:
    run(create_app(make_guard(), Settings(canaries=False)), port=0)
except KeyboardInterrupt:
    pass
print(gc.get_threshold() == before, gc.get_freeze_count())
"""


def test_garbage_is_looked_for_seldom_and_only_while_it_serves() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTOR], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["50000 True", "True 0"]


def test_a_port_that_is_taken_is_named() -> None:
    with serving() as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match=str(port)):
            run(create_app(make_guard(), Settings(canaries=False)), port=port)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "- name: a", "- {name: a, key: short}", "- {name: a, key: 5}", "- {name: a b, key: sixteen-characters-x}",
     "- {name: a, sha256: xyz}", "- {name: a, key: sixteen-characters-x, rate: often}",
     "- {name: a, key: sixteen-characters-x, more: x}"],
)  # fmt: skip
def test_keys_are_read_strictly(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_keys(path)
    assert "sixteen-characters-x" not in str(caught.value)


def test_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("- {name: a, key: sixteen-characters-x, rate: 5/second}\n")
    assert read_keys(path) == (ApiKey.of("a", "sixteen-characters-x", rate="5/second"),)
    assert "sixteen" not in repr(read_keys(path))
    with pytest.raises(ConfigurationError):
        Settings(keys=(ApiKey.of("a", "sixteen-characters-x", policy="gone"),))


def test_every_decision_is_recorded_under_its_keys_name_and_without_content(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    from guardrail_vl.audit import AuditLog

    path = tmp_path / "audit.jsonl"
    key = ApiKey.of("shop", "sixteen-characters-x")
    with serving(keys=(key,), audit=AuditLog(path)) as url:
        for prompt in ("a private question", BAD):
            asked = {"prompt": prompt}
            assert (
                httpx.post(f"{url}/v1/guard", json=asked, headers={"x-api-key": "sixteen-characters-x"}).status_code
                == 200
            )
    text = path.read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["app"], row["action"]) for row in rows] == [("shop", "allow"), ("shop", "block")]
    assert "private" not in text
