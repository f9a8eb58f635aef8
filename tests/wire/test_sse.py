"""Event streams: any chunking of any bytes gives the same frames, byte for byte, read as the standard has it."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guardrail_vl.errors import ContentError
from guardrail_vl.wire import sse
from guardrail_vl.wire.sse import Frame, FrameSplitter, parse_frame

_LINE = st.one_of(
    st.sampled_from(
        ["data", "data:", "data: [DONE]", "data:  two", "event: x", "event:y", "id: 3", ": hush", "retry: 1"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=6).map(
        lambda t: "data: " + t
    ),
)
_STREAM = st.lists(st.tuples(_LINE | st.just(""), st.sampled_from(["\n", "\r\n", "\r"])), max_size=14).map(
    lambda lines: "".join(line + end for line, end in lines).encode()
)


def split(stream: bytes, cuts: list[int]) -> list[Frame]:
    at = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    splitter = FrameSplitter()
    fed = [frame for start, end in itertools.pairwise(at) for frame in splitter.feed(stream[start:end])]
    return [*fed, *splitter.flush()]


def dispatched(stream: bytes) -> list[tuple[str, str]]:
    """The events with data that the standard's algorithm gives, line by line; the last one even if it has no end."""
    out: list[tuple[str, str]] = []
    event = ""
    data: list[str] = []
    for line in [*re.split(r"\r\n|\n|\r", stream.decode()), ""]:
        if not line:
            if data:
                out.append((event, "\n".join(data)))
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
    return out


@given(_STREAM, st.lists(st.integers(0, 80), max_size=10))
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", list(range(25)))
@example(b"data: a\r\rdata: b\n\r\n", list(range(25)))
@example(b"data: a\r\n\n\r\ndata: b", list(range(25)))
def test_any_chunking_gives_the_same_frames(stream: bytes, cuts: list[int]) -> None:
    frames = split(stream, cuts)
    assert b"".join(frame.raw for frame in frames) == stream
    assert frames == split(stream, [])
    assert [(f.event, f.data) for f in frames if f.data is not None] == dispatched(stream)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_no_byte_is_lost_of_anything(stream: bytes, cuts: list[int]) -> None:
    try:
        frames = split(stream, cuts)
    except ContentError:
        with pytest.raises(UnicodeDecodeError):
            stream.decode()
        return
    assert b"".join(frame.raw for frame in frames) == stream


def test_a_frame_is_complete_as_soon_as_its_end_is_certain() -> None:
    splitter = FrameSplitter()
    assert [f.data for f in splitter.feed(b"data: a\n\nda")] == ["a"]
    assert [f.data for f in splitter.feed(b"ta: b\r\n\r")] == []
    assert [f.data for f in splitter.feed(b"\n")] == ["b"]


def test_a_frame_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_FRAME", 100)
    with pytest.raises(ContentError, match="100 bytes"):
        split(b"data: " + b"x" * 200, list(range(0, 200, 7)))


def test_bytes_that_are_no_text_are_refused_without_showing_them() -> None:
    with pytest.raises(ContentError, match="UTF-8") as caught:
        parse_frame(b"data: secret \xff\n\n")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(parse_frame(b"data: secret\n\n"))
