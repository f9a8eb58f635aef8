from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse, IncompleteRead
from typing import Any

import pytest

from guardrail_vl.leakcheck.content import BREAK, HALVES, MARK, RED, SAFE, data_url
from guardrail_vl.leakcheck.process import Upstream
from guardrail_vl.leakcheck.script import Frame, Reply, choice, chunks, completion, events, tokens, whole
from guardrail_vl.leakcheck.upstream import judge

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


def post(base: str, body: object, path: str = "/chat/completions", **headers: str) -> HTTPResponse:
    request = urllib.request.Request(base + path, json.dumps(body).encode(), headers)
    answer = OPENER.open(request, timeout=10)
    assert isinstance(answer, HTTPResponse)
    return answer


def test_it_answers_what_the_scenario_says_and_notes_what_it_was_asked(upstream: Upstream) -> None:
    base = upstream.script("a", [whole(completion(choice(SAFE)), x_note="yes")])
    with post(base, {"hello": "ä"}) as reply:
        assert reply.headers["x-note"] == "yes"
        assert json.load(reply)["choices"][0]["message"]["content"] == SAFE
    with post(base, {}, **{"x-own-client": "1"}):
        pass
    record = upstream.record("a")
    assert (record.calls, record.judged, record.own_client, record.disconnected) == (2, 0, True, False)
    assert [json.loads(body) for body in record.bodies] == [{"hello": "ä"}, {}]


def test_replies_come_in_order_and_only_where_they_fit(upstream: Upstream) -> None:
    script = [whole(1, when="red"), whole(2, when="blue"), whole(3, when="blue")]
    base = upstream.script("b", script)
    got = []
    for word in ("blue", "red", "blue", "red", "blue"):
        with post(base, word) as reply:
            got.append(json.load(reply))
    assert got == [2, 1, 3, 1, 3]
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        post(base, "green")
    caught.value.close()


def test_the_bytes_of_a_stream_arrive_as_they_were_written(upstream: Upstream) -> None:
    reply = events(chunks(tokens(SAFE)), cut=5)
    with post(upstream.script("c", [reply]), {}) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        assert got.read() == b"".join(frame.data for frame in reply.frames)


def test_delays_are_kept(upstream: Upstream) -> None:
    base = upstream.script("d", [Reply((Frame(b"1", 0.1), Frame(b"2", 0.1)))])
    start = time.monotonic()
    with post(base, {}) as got:
        assert got.read() == b"12"
    assert time.monotonic() - start >= 0.2


def test_an_aborted_reply_breaks_off(upstream: Upstream) -> None:
    base = upstream.script("e", [Reply((Frame(b"begun"),), end="abort")])
    with post(base, {}) as got, pytest.raises((IncompleteRead, ConnectionResetError)):
        got.read()


def test_a_frame_of_two_megabytes_passes(upstream: Upstream) -> None:
    base = upstream.script("f", [Reply((Frame(b"x" * 2_000_000),))])
    with post(base, {}) as got:
        assert len(got.read()) == 2_000_000


def test_an_error_is_an_error(upstream: Upstream) -> None:
    base = upstream.script("g", [whole({"error": {}}, status=500, retry_after_ms="1")])
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(base, {})
    assert caught.value.code == 500
    assert caught.value.headers["retry-after-ms"] == "1"
    caught.value.close()


def test_a_client_that_goes_away_is_noticed(upstream: Upstream) -> None:
    base = upstream.script("h", [Reply((Frame(b"x", 0.0), *[Frame(b"y", 0.02)] * 200))])
    host, _, port = base.split("/")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        wire.sendall(b"POST /s/h/v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert wire.recv(10)
    assert upstream.record("h", until=lambda record: record.disconnected, seconds=5).disconnected


def test_a_judge_is_no_call_of_the_upstream(upstream: Upstream) -> None:
    base = upstream.script("i", [])
    body = {"model": "leakcheck-judge-yesno", "messages": [{"role": "user", "content": MARK}]}
    with post(base, body) as got:
        assert json.load(got)["choices"][0]["message"]["content"] == "Yes"
    with post(base, {"model": "x", "input": SAFE}, "/moderations") as got:
        assert json.load(got)["results"][0]["flagged"] is False
    record = upstream.record("i")
    assert (record.calls, record.judged) == (0, 2)


def test_it_ends_with_its_context_and_takes_no_other_port() -> None:
    with Upstream() as one, Upstream() as other:
        pid = one.pid
        assert pid is not None
        assert one.base_url("x") != other.base_url("x")
    assert one.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def said(request: dict[str, Any], model: str) -> str:
    reply = json.loads(judge(request, model, moderation=False).frames[0].data)
    text: str = reply["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    ("content", "bad"),
    [
        (SAFE, False),
        (MARK, True),
        (" ".join(HALVES), True),
        (HALVES[0], False),
        ([{"type": "image_url", "image_url": {"url": data_url(RED)}}], True),
    ],
)
def test_a_judge_flags_exactly_what_is_harmful(content: object, bad: bool) -> None:
    request = {"messages": [{"role": "user", "content": content}]}
    assert said(request, "judge") == ("unsafe" if bad else "safe")
    assert said(request, "judge-yesno") == ("Yes" if bad else "No")
    assert json.loads(said(request, "judge-flagged"))["flagged"] is bad


def test_a_judge_of_two_knows_its_own_word_only() -> None:
    assert said({"messages": [MARK]}, "judge-first") == "safe"
    assert said({"messages": [MARK]}, "judge-second") == "unsafe"


def test_a_judge_breaks_where_it_should() -> None:
    assert judge({"messages": [BREAK]}, "judge", moderation=False).status == 500
