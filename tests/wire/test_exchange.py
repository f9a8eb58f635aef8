"""The exchange, driven by hand: what it asks for, in which order, and what it gives back."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from PIL import Image

from guardrail_vl import BlockedError, Guard, ImagePart, Turn
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Decision
from guardrail_vl.wire.exchange import (
    Head,
    Judge,
    Open,
    ReadBody,
    Rules,
    Seen,
    Streamed,
    Trail,
    Untouched,
    Whole,
    exchange,
    finish,
    stops,
)
from guardrail_vl.wire.pictures import pin, remote_pictures
from guardrail_vl.wire.sse import parse_frame

GUARD = Guard(engine=ScriptedEngine(by_keyword("BADWORD")))
REPLY = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}


def picture() -> ImagePart:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "blue").save(file, "PNG")
    return ImagePart(file.getvalue())


def judge(effect: Any) -> list[Decision]:
    assert isinstance(effect, Judge)
    return list(GUARD.check_many(effect.contents, stage=effect.stage))


def request(text: str = "hello", **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **more}).encode()


def reply(text: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json.dumps({**REPLY, "choices": [choice]}).encode()


def start(body: bytes, rules: Rules | None = None, seen: Seen | None = None, path: str = "/v1/chat/completions") -> Any:
    return exchange("POST", path, body, rules or Rules(), Trail(), seen or Seen())


def ended(steps: Any, value: Any) -> Any:
    with pytest.raises(StopIteration) as stop:
        steps.send(value)
    return stop.value.value


def test_judges_then_sends_then_judges() -> None:
    steps = start(request())
    decisions = judge(next(steps))
    assert steps.send(decisions) == Open()
    assert steps.send(Head(200, "application/json")) == ReadBody()
    answer = ended(steps, judge(steps.send(reply("fine"))))
    assert answer == Whole(reply("fine"), from_upstream=True)  # byte for byte


def test_a_blocked_prompt_asks_for_nothing_more() -> None:
    steps = start(request("BADWORD"))
    with pytest.raises(BlockedError):
        steps.send(judge(next(steps)))


def test_beside_asks_for_both_at_once() -> None:
    steps = start(request(), Rules(when="beside"))
    effect = next(steps)
    assert isinstance(effect, Open)
    assert effect.beside is not None
    assert steps.send((judge(effect.beside), Head(200, "application/json"))) == ReadBody()
    assert not stops(judge(effect.beside), Rules())


def test_fetched_pictures_are_sent_as_the_bytes_that_were_judged() -> None:
    part = picture()
    content = [{"type": "image_url", "image_url": {"url": "https://a.example/p.png"}}]
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]}).encode()
    steps = start(body, Rules(when="beside"))  # nothing can be sent before it was fetched
    effect = next(steps)
    assert isinstance(effect, Judge)
    turn = effect.contents[0](load=lambda _: part)
    assert turn.messages[0].images == (part,)
    sent = steps.send(list(GUARD.check_many([turn])))
    assert isinstance(sent, Open)
    assert sent.body is not None
    assert json.loads(sent.body)["messages"][0]["content"][0]["image_url"]["url"] == part.data_url


def test_pinning_touches_pictures_only() -> None:
    body = {"text": "http://a", "image_url": "http://a", "x": [{"image_url": {"url": "http://a", "detail": "low"}}]}
    assert pin(body, {"http://a": "data:,"}) == {
        "text": "http://a", "image_url": "data:,", "x": [{"image_url": {"url": "data:,", "detail": "low"}}],
    }  # fmt: skip


def test_a_reply_that_can_t_be_read_is_a_failure() -> None:
    for body in (b"<html>", b'{"choices": 1}', b'{"id": "a", "id": "b"}'):
        steps = start(request(), Rules(on_block="refuse"))
        steps.send(judge(next(steps)))
        steps.send(Head(200, "application/json"))
        with pytest.raises(ContentError):
            steps.send(judge(steps.send(body)))


def test_errors_of_upstream_are_judged_too() -> None:
    for status, text, blocked in ((400, "try again", False), (500, "BADWORD", True)):
        steps = start(request(), Rules(on_block="refuse", refusal="No."))
        steps.send(judge(next(steps)))
        steps.send(Head(status, "application/json"))
        body = json.dumps({"error": {"message": text}}).encode()
        answer = ended(steps, judge(steps.send(body)))
        assert answer.status == status
        assert (b"No." in answer.body) == blocked
        assert blocked or answer.body == body


def test_a_redirect_carries_no_body() -> None:
    steps = start(request())
    steps.send(judge(next(steps)))
    steps.send(Head(307, "text/html"))
    assert ended(steps, b"BADWORD").body == b""


def test_only_replies_seen_here_are_continued_by_id() -> None:
    seen = Seen()
    body = json.dumps({"model": "m", "input": "hello", "previous_response_id": "resp_1"}).encode()
    effect: Any = next(start(body, seen=seen, path="/v1/responses"))
    with pytest.raises(ContentError, match="previous_response_id"):
        effect.contents[0]()
    seen.add("resp_1")
    effect = next(start(body, seen=seen, path="/v1/responses"))
    assert isinstance(effect.contents[0](), Turn)


def test_a_stream_that_was_stopped_ends_as_the_rules_say() -> None:
    for rules in (Rules(on_block="refuse", refusal="No."), Rules()):
        steps = start(request(stream=True), rules)
        steps.send(judge(next(steps)))
        answer = ended(steps, Head(200, "text/event-stream"))
        assert isinstance(answer, Streamed)
        assert finish(answer, rules) == b""
        answer.hold.stopped = GUARD.check("BADWORD")
        if rules.on_block == "refuse":
            assert b"No." in finish(answer, rules)
        else:
            with pytest.raises(BlockedError):
                finish(answer, rules)


def test_what_is_not_covered_is_named() -> None:
    with pytest.raises(ConfigurationError, match="audio/speech"):
        next(start(b"{}", path="/v1/audio/speech"))
    steps = start(b"{}", Rules(allow={"audio/speech"}), path="/v1/audio/speech")
    assert next(steps) == Open()
    assert ended(steps, Head(200, "audio/mpeg")) == Untouched()


def test_many_replies_are_remembered_and_old_ones_forgotten() -> None:
    seen = Seen()
    for number in range(10_001):
        seen.add(f"r{number}")
    seen.add(None)
    assert "r0" not in seen
    assert "r10000" in seen
    assert None not in seen


@pytest.mark.parametrize(
    "raw",
    [
        b": BADWORD\ndata: [DONE]\n\n",
        b": keep-alive BADWORD\n\n",
        b"id: BADWORD\ndata: [DONE]\n\n",
        b"event: BADWORD\ndata: [DONE]\n\n",
        b"BADWORD\n\n",
        b"other: BADWORD\n\n",
    ],
)
def test_what_stands_beside_a_stream_s_data_is_judged_too(raw: bytes) -> None:
    steps = start(request(stream=True))
    steps.send(judge(next(steps)))
    answer = ended(steps, Head(200, "text/event-stream"))
    assert "BADWORD" in "".join(piece.text for piece in answer.read(parse_frame(raw)))
    for quiet in (
        b": keep-alive\n\n",
        b":\n\n",
        b"id: 7\nretry: 10\ndata: [DONE]\n\n",
        b": ping - 2026-11-21 08:00:00\n\n",
    ):
        assert list(answer.read(parse_frame(quiet))) == []


def test_remote_pictures_are_found_wherever_they_stand() -> None:
    assert remote_pictures({"input": [{"content": [{"type": "input_image", "image_url": "HTTP://a"}]}]})
    assert not remote_pictures({"text": "http://a", "image_url": {"url": "data:,"}})
