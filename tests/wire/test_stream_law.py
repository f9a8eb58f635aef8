"""The law of streams, from bytes to bytes: what went out is a prefix of what came, and of what was approved."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail_vl import Guard
from guardrail_vl.errors import ContentError
from guardrail_vl.parts import ImagePart
from guardrail_vl.streaming import HoldBack, Streaming
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.turn import Turn
from guardrail_vl.wire.base import Reading
from guardrail_vl.wire.exchange import Streamed
from guardrail_vl.wire.routes import route
from guardrail_vl.wire.sse import Frame, FrameSplitter, parse_frame

BAD = "BADWORD"
GUARD = Guard(engine=ScriptedEngine(by_keyword(BAD)), cache=False)
ASKED = Turn.of("hello").messages
ENDPOINT: Any = route("POST", "/v1/chat/completions")
NEWLINES = st.sampled_from(["\n", "\r\n"])


def frame(delta: dict[str, Any], choice: int = 0, finish: str | None = None) -> str:
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return "data: " + json.dumps({**body, "choices": [{"index": choice, "delta": delta, "finish_reason": finish}]})


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bool]:
    """The bytes of a stream of two choices, and whether something in it is harmful."""
    words = draw(
        st.lists(st.sampled_from(["a ", "one. ", "höch ", "🜁", "\n", "BAD", "WORD", BAD, "x" * 30]), max_size=30)
    )
    owners = [draw(st.integers(0, 1)) for _ in words]
    lines = [frame({"role": "assistant"}), ": keep-alive"]
    lines += [frame({"content": word}, choice) for word, choice in zip(words, owners, strict=True)]
    if draw(st.booleans()):
        call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": draw(st.sampled_from(["{}", BAD]))}}
        lines.insert(draw(st.integers(1, len(lines))), frame({"tool_calls": [call]}, 1))
    lines += [frame({}, 0, "stop"), frame({}, 1, "stop"), "data: [DONE]"]
    said = ["".join(w for w, o in zip(words, owners, strict=True) if o == choice) for choice in (0, 1)]
    newline = draw(NEWLINES)
    return "".join(line + newline * 2 for line in lines).encode(), BAD in "".join(lines) or any(BAD in s for s in said)


def chunks(data: st.DataObject, raw: bytes) -> list[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=30)))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


@settings(max_examples=400)
@given(
    streams(),
    st.integers(1, 60),
    st.integers(1, 4),
    st.sampled_from(["window", "full"]),
    st.data(),
    st.integers(0, 2**32),
)
def test_what_goes_out_is_a_prefix_of_what_was_approved(
    stream: tuple[bytes, bool], window: int, in_flight: int, mode: Any, data: st.DataObject, seed: int
) -> None:
    raw, harmful = stream
    hold: HoldBack[Frame] = HoldBack(ASKED, Streaming(mode=mode, window=window, in_flight=in_flight))
    answer = Streamed(hold, ENDPOINT.reader({"stream": True}, Reading(ImagePart.load)))
    chance = Random(seed)
    pace = chance.choice([0.1, 0.5, 1.0])
    splitter, out, clock, waiting = FrameSplitter(), b"", 0.0, {}

    def step() -> None:
        nonlocal out
        for check in hold.checks(clock):
            waiting[check.ticket] = check
        for ticket in sorted(waiting, key=lambda _: chance.random()):  # verdicts come late, and in any order
            if chance.random() < pace:
                hold.settle(ticket, GUARD.check(waiting.pop(ticket).turn, stage="response"))
        for one in hold.release():
            answer.reader.released(one)
            out += one.raw
        assert raw.startswith(out)

    for chunk in chunks(data, raw):
        for one in splitter.feed(chunk):
            hold.feed(one, _read(answer, one), clock)
            clock += 0.1
            step()
    for one in splitter.flush():
        hold.feed(one, _read(answer, one), clock)
    hold.end()
    while not hold.done:
        step()
    if harmful:
        assert hold.stopped is not None
        assert not _shown_harm(out)
        ending = answer.reader.refuse("No.")
        assert ending.endswith(b"data: [DONE]\n\n")
        for one in FrameSplitter().feed(ending):  # the end can be read as what it is
            assert all(BAD not in piece.text for piece in answer.reader.read(one))
    else:
        assert hold.stopped is None
        assert out == raw


def _read(answer: Streamed, one: Frame) -> Any:
    try:
        return answer.read(one)
    except ContentError as error:
        return error


def _shown_harm(out: bytes) -> bool:
    said = {0: "", 1: ""}
    for part in out.replace(b"\r\n", b"\n").split(b"\n\n"):
        event = parse_frame(part).data
        if event and event != "[DONE]":
            for choice in json.loads(event)["choices"]:
                delta = choice["delta"]
                said[choice["index"]] += (delta.get("content") or "") + json.dumps(delta.get("tool_calls") or "")
    return any(BAD in text for text in said.values())
