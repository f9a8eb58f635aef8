from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.leakcheck import script
from guardrail_vl.leakcheck.content import SAFE, WIDE
from guardrail_vl.leakcheck.script import Frame, Reply, chunks, events, read_reply, tokens, write_reply

FRAMES = st.builds(Frame, st.binary(max_size=20), st.floats(0, 1))


@given(
    st.builds(
        Reply,
        st.lists(FRAMES, max_size=4).map(tuple),
        st.integers(200, 599),
        headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
        end=st.sampled_from(["normal", "abort"]),
        when=st.text(max_size=5),
    )
)
def test_a_reply_survives_the_way_to_the_upstream(reply: Reply) -> None:
    assert read_reply(json.loads(json.dumps(write_reply(reply)))) == reply


@given(st.text(max_size=60))
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text


@given(st.integers(1, 40))
def test_a_stream_cut_anywhere_has_the_same_bytes(cut: int) -> None:
    whole = b"".join(frame.data for frame in events(chunks([SAFE, WIDE])).frames)
    pieces = [frame.data for frame in events(chunks([SAFE, WIDE]), cut=cut).frames]
    assert b"".join(pieces) == whole
    assert max(map(len, pieces)) <= cut


def test_events_of_the_responses_api_carry_their_names_and_numbers() -> None:
    item = script.message_item(SAFE)
    written = events(script.response_events(item, tokens(SAFE), "output_text"), named=True, done=False)
    numbers = []
    for frame in written.frames:
        name, data, *_ = frame.data.decode().split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        numbers.append(value["sequence_number"])
    assert numbers == list(range(len(numbers)))
    assert json.loads(written.frames[-1].data.split(b"data: ")[1])["response"]["output"] == [item]
