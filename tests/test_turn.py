"""Turns: every accepted shape, every refusal, equality by content, and the cut into exchanges."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.turn import (
    MAX_MESSAGES,
    MAX_TEXT,
    ImagePart,
    Making,
    Message,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    Turn,
)  # fmt: skip


def png(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(colour: str = "red") -> str:
    return "data:image/png;base64," + base64.b64encode(png(colour)).decode()


# ---- shapes -----------------------------------------------------------------------------------------------------


def test_a_string_is_a_users_message() -> None:
    assert Turn.of("hi") == Turn((Message("user", (TextPart("hi"),)),))


def test_every_source_of_a_picture_gives_the_same_part(tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(png())
    parts = [ImagePart.load(source) for source in (path, str(path), png(), data_url())]
    assert all(part == ImagePart(png()) for part in parts)
    assert (parts[0].media_type, parts[0].width, parts[0].height, parts[0].frames) == ("image/png", 3, 2, 1)
    drawn = ImagePart.load(Image.new("RGB", (3, 2), "red"))
    assert drawn.views()[0].tobytes() == parts[0].views()[0].tobytes()


def test_a_callable_makes_the_turn_with_the_callers_loader() -> None:
    loaded: list[Any] = []

    def load(source: Any) -> ImagePart:
        loaded.append(source)
        return ImagePart(source)

    def turn(load: Any) -> Turn:
        return Turn.from_prompt("hi", images=[png()], load=load)

    assert Turn.of(turn, load=load) == Turn.of(turn) == Turn.from_prompt("hi", images=[png()])
    assert loaded == [png()]
    with pytest.raises(ConfigurationError, match="must make a Turn, not str"):
        Turn.of(lambda load: "hi")


def test_making_remembers_only_what_it_made_last() -> None:
    given: list[Any] = ["hi", "", Turn.of("ho")]
    making = Making(lambda load: given.pop(0))
    seen = [making.turn]
    assert making() == Turn.of("hi")
    seen.append(making.turn)
    with pytest.raises(ContentError):
        making()
    seen.append(making.turn)
    assert Turn.of(making) == Turn.of("ho")
    assert [*seen, making.turn] == [None, Turn.of("hi"), None, Turn.of("ho")]


def test_openai_messages() -> None:
    turn = Turn.of(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {
                "role": "user",
                "name": "ann",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image_url", "image_url": {"url": data_url(), "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "I must look.",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a lock"}]},
            {"role": "assistant", "content": "", "refusal": "No."},
        ]
    )
    assert turn.messages == (
        Message("system", (TextPart("Be kind."),)),
        Message("developer", (TextPart("Be brief."),)),
        Message("user", (TextPart("see"), ImagePart(png())), name="ann"),
        Message("assistant", (ReasoningPart("I must look."), ToolCallPart("look", '{"x": 1}', "c1"))),
        Message("tool", (ToolResultPart((TextPart("a lock"),), "c1"),)),
        Message("assistant", (TextPart(""), RefusalPart("No."))),
    )
    assert turn.has_response


def test_a_custom_tool_call_and_an_old_function_call_are_read() -> None:
    turn = Turn.of(
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "custom", "custom": {"name": "sh", "input": "ls"}}],
            },
            {"role": "assistant", "content": None, "function_call": {"name": "old", "arguments": "{}"}},
        ]
    )
    assert [m.content[0] for m in turn.messages] == [ToolCallPart("sh", "ls"), ToolCallPart("old", "{}")]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("wizard", {"role": "wizard", "content": "x"}),
        ("input_audio", {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA=="}}]}),
        ("file", {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}),
        ("video_url", {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}),
        ("unprintable", {"role": "user", "content": [{"type": "secret words of a user", "x": 1}]}),
        ("secret_field", {"role": "user", "content": "x", "secret_field": "y"}),
        ("extra", {"role": "user", "content": [{"type": "text", "text": "x", "extra": "hidden"}]}),
        ("file id", {"role": "user", "content": [{"type": "input_image", "file_id": "f1"}]}),
        ("data: URL", {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}),
        (
            "default",
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]},
        ),
        ("audio", {"role": "assistant", "content": None, "audio": {"id": "a1"}}),
        ("search", {"role": "assistant", "content": None, "tool_calls": [{"type": "search", "search": {}}]}),
        ("text and images", {"role": "tool", "content": [{"type": "refusal", "refusal": "x"}]}),
        ("must be text", {"role": "user", "content": [{"type": "text", "text": 3}]}),
        ("not int", {"role": "user", "content": 3}),
        ("mapping", "just a string"),
        ("surrogate", {"role": "user", "content": "\ud800"}),
        ("characters", {"role": "user", "content": "x" * (MAX_TEXT + 1)}),
    ],
)
def test_what_is_unknown_is_refused_by_name(named: str, message: Any) -> None:
    with pytest.raises(ContentError, match=named) as caught:
        Turn.from_messages([message])
    assert "secret words" not in str(caught.value)


@pytest.mark.parametrize(
    "empty", ["", "   \n\t", [], [{"role": "user", "content": ""}], [{"role": "assistant", "content": None}]]
)
def test_nothing_to_judge_is_refused(empty: Any) -> None:
    with pytest.raises(ContentError, match="nothing to judge"):
        Turn.of(empty)


def test_too_many_messages_are_refused() -> None:
    with pytest.raises(ContentError, match="messages"):
        Turn((Message("user", (TextPart("x"),)),) * (MAX_MESSAGES + 1))


@pytest.mark.parametrize("wrong", [3, None, b"bytes", object()])
def test_a_callers_mistake_is_a_configuration_error(wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        Turn.of(wrong)


def test_images_must_be_a_list() -> None:
    with pytest.raises(ConfigurationError, match="list"):
        Turn.from_prompt("x", images="door.jpg")


# ---- values -----------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_PARTS = st.one_of(
    st.builds(TextPart, _TEXT),
    st.builds(ReasoningPart, _TEXT),
    st.builds(RefusalPart, _TEXT),
    st.builds(ToolCallPart, _TEXT, _TEXT, _TEXT),
    st.builds(ToolResultPart, st.lists(st.builds(TextPart, _TEXT), max_size=2).map(tuple), _TEXT),
    st.sampled_from(["red", "blue"]).map(lambda c: ImagePart(png(c))),
)
_MESSAGES = st.builds(
    Message,
    st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
    st.lists(_PARTS, max_size=3).map(tuple),
    _TEXT,
)
_TURNS = st.lists(_MESSAGES, max_size=8).map(lambda ms: Turn((*ms, Message("user", (TextPart("end"),)))))


@given(_TURNS)
def test_json_round_trip(turn: Turn) -> None:
    assert Turn.from_json(turn.to_json()) == turn
    assert hash(Turn.from_json(turn.to_json())) == hash(turn)


def test_the_schema_describes_what_is_written() -> None:
    schema = Turn.json_schema()
    assert schema["properties"]["messages"]["items"] == {"$ref": "#/$defs/Message"}
    assert set(schema["$defs"]["Message"]["properties"]) == {"role", "content", "name"}
    assert set(schema["$defs"]["ImagePart"]["properties"]) == {"data", "type"}


def test_wrong_json_is_refused_without_showing_it() -> None:
    with pytest.raises(ContentError) as caught:
        Turn.from_json('{"messages": [{"role": "user", "content": [{"type": "secret"}]}]}')
    assert "messages.0.content.0" in str(caught.value)
    assert "secret" not in str(caught.value)


@given(_TURNS)
def test_no_repr_shows_content(turn: Turn) -> None:
    marked = Turn(
        (
            Message("user", (TextPart("SECRET-1"), ReasoningPart("SECRET-2"), ToolCallPart("n", "SECRET-3"))),
            *turn.messages,
        )
    )
    assert "SECRET" not in repr(marked)


# ---- exchanges --------------------------------------------------------------------------------------------------


@given(_TURNS)
def test_every_message_is_in_exactly_one_exchange(turn: Turn) -> None:
    exchanges = turn.exchanges()
    joined = [m for e in exchanges for m in (*e.request, *e.response)]
    assert joined == list(turn.messages)
    at = 0
    for exchange in exchanges:
        assert exchange.first == at
        at = exchange.last + 1
        assert all(m.role != "assistant" for m in exchange.request)
        assert all(m.role == "assistant" for m in exchange.response)


def test_how_a_conversation_is_cut() -> None:
    def m(role: Any) -> Message:
        return Message(role, (TextPart(role),))

    turn = Turn(tuple(m(r) for r in ("system", "user", "user", "assistant", "tool", "assistant", "user")))
    assert [(e.first, e.last, len(e.response)) for e in turn.exchanges()] == [
        (0, 0, 0),
        (1, 3, 1),
        (4, 5, 1),
        (6, 6, 0),
    ]


@given(_TURNS, _TURNS)
def test_digests_are_equal_exactly_when_content_is(one: Turn, other: Turn) -> None:
    a, b = one.exchanges()[0], other.exchanges()[0]
    # A tool call's or result's id is no content: it names, and nobody reads it.
    same = [a.request, a.response] == [b.request, b.response]
    if same:
        assert a.digest() == b.digest()
    elif "id=" not in repr((a, b)):
        assert a.digest() != b.digest()


def test_digests_see_where_a_message_ends() -> None:
    one = Turn.of([{"role": "user", "content": "ab"}, {"role": "user", "content": "c"}]).exchanges()[0]
    other = Turn.of([{"role": "user", "content": "a"}, {"role": "user", "content": "bc"}]).exchanges()[0]
    answered = Turn.of([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]).exchanges()[0]
    assert len({one.digest(), other.digest(), answered.digest()}) == 3
