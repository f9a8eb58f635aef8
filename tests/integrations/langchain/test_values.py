"""Whatever goes into a runnable or comes out of it, as what is judged."""

from __future__ import annotations

import datetime
import enum
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("langchain_openai")
from langchain_core.agents import AgentAction
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableGenerator, RunnableParallel, RunnablePassthrough
from langchain_core.runnables.utils import AddableDict
from pydantic import BaseModel

from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.integrations.langchain._values import ValueReader, read_value, value_messages
from guardrail_vl.parts import ImagePart, Message, TextPart, ToolResultPart
from guardrail_vl.turn import Turn
from tests.integrations.langchain.samples import ANTHROPIC, STANDARD, judged
from tests.wire.leaves import MARKER, PIXEL, READING, marked, paths, texts

PICTURE = ImagePart.load(PIXEL)


class Answer(BaseModel):
    said: str
    more: list[str] = []


@dataclass
class Record:
    said: str
    at: Any = None


class Colour(enum.StrEnum):
    RED = "red"


def read(value: Any, role: Any = "user") -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in value_messages(value, role, READING)]


NOTHING: list[Any] = [
    None, True, 3, 1.5, Colour.RED, datetime.datetime(2026, 1, 1), datetime.timedelta(1), uuid.UUID(int=1), Decimal(1),
    "", [], {}, (), set(), {3: None}, [[], {}],
]  # fmt: skip


@pytest.mark.parametrize("value", NOTHING, ids=repr)
def test_what_says_nothing_makes_no_message(value: Any) -> None:
    assert value_messages(value, "user", READING) == ()
    assert ValueReader(READING).read(value) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("hi", [("user", "hi")]),
        (["a", ["b"], ("c",)], [("user", "a\nb\nc")]),
        ({"question": "a", "context": ["b", {"deep": "c"}], "n": 3}, [("user", "a\nb\nc")]),
        (Answer(said="a", more=["b"]), [("user", "a\nb")]),
        (Record("a", Record("b")), [("user", "a\nb")]),
        (Document(page_content="a", metadata={"source": "b", "page": 3}, id="no content"), [("user", "a\nb")]),
        (AgentAction(tool="look", tool_input={"at": "it"}, log="l"), [("user", "look\nit\nl\nAgentAction")]),
        (HumanMessage("a"), [("user", "a")]),
        ({"role": "user", "content": "a"}, [("user", "a")]),
        ({"role": "plumber", "content": "a"}, [("user", "plumber\na")]),
        ([("system", "a"), ("human", "b")], [("system", "a"), ("user", "b")]),
        ([("user", "a"), AIMessage("b"), "c"], [("user", "a"), ("assistant", "b"), ("user", "c")]),
        (("user", "a"), [("user", "user\na")]),
        ({"messages": [{"role": "system", "content": "a"}, ("user", "b")]}, [("system", "a"), ("user", "b")]),
        (
            {"before": "a", "history": [AIMessage("b")], "after": "c"},
            [("user", "a"), ("assistant", "b"), ("user", "c")],
        ),
        (ChatPromptTemplate([("system", "a"), ("user", "{b}")]).invoke({"b": "b"}), [("system", "a"), ("user", "b")]),
        (Message("tool", (TextPart("a"),)), [("tool", "a")]),
        (Turn.of("a"), [("user", "a")]),
        ({"the question": "a"}, [("user", "a")]),
    ],
    ids=repr,
)
def test_values_are_read_as_messages(value: Any, said: list[tuple[str, str]]) -> None:
    assert read(value) == said


def test_pictures_stand_where_they_stood() -> None:
    found = list(
        read_value(
            {"a": "text", "b": [PICTURE.data, Image.new("RGB", (2, 2)), PICTURE, bytearray(PICTURE.data)]}, READING
        )
    )
    assert [type(part) for part in found] == [TextPart, ImagePart, ImagePart, ImagePart, ImagePart]
    assert found[1] == found[3] == found[4] == PICTURE
    with pytest.raises(ContentError):
        list(read_value(b"no picture", READING))


def test_keys_are_the_developers_but_the_assistants_are_its_own() -> None:
    value = {"what to steal": "a", "how_to": ["b"], 3: "c"}
    assert read(value) == [("user", "a\nb\nc")]
    assert read(value, "assistant") == [("assistant", "what to steal\na\nhow_to\nb\nc")]
    assert read(Answer(said="a"), "assistant") == [("assistant", "a")]
    assert streamed([{"what to steal": ""}, {"what to steal": "x", "when": None}]) == ["what to steal", "x", "when"]


def test_an_answer_is_read_with_its_metadata() -> None:
    answer = AIMessage("a", response_metadata={"novelty": "b", "logprobs": None})
    assert read([answer], "assistant") == [("assistant", "a\nb")]
    assert read([answer, HumanMessage("c")]) == [("assistant", "a"), ("user", "c")]


@pytest.mark.parametrize("value", [object(), iter("abc"), {"deep": [object()]}, Record("a", range(3)), len])
def test_what_can_not_be_read_is_named(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="can't be read") as told:
        value_messages(value, "user", READING)
    assert "response=" in str(told.value.hint)
    with pytest.raises(ContentError, match="can't be read"):
        ValueReader(READING).read(value)


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ContentError, match="deep"):
        value_messages(deep, "user", READING)
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with pytest.raises(ContentError, match="deep"):
        ValueReader(READING).read(endless)


def test_a_message_of_no_known_form_is_refused_without_its_words() -> None:
    with pytest.raises(ContentError) as told:
        value_messages([{"role": "tool", "content": "BADWORD"}], "user", READING)
    assert "BADWORD" not in str(told.value)


VALUE: dict[str, Any] = {
    "question": "a",
    "history": [
        {"role": "user", "content": "b", "name": "n"},
        {"role": "assistant", "content": [{"type": "text", "text": "c"}]},
    ],
    "documents": [{"page_content": "d", "metadata": {"source": "e"}}],
    "deep": [[{"x": ["f"]}]],
}


def test_no_text_of_a_value_vanishes() -> None:
    for path in paths(VALUE):
        body = marked(VALUE, path)
        for role in ("user", "assistant"):
            try:
                found = "\n".join(texts(value_messages(body, role, READING)))
            except ContentError:
                continue
            assert MARKER in found, path
            assert MARKER in "\n".join(piece.text for piece in ValueReader(READING).read(body)), path


# ---- streams ---------------------------------------------------------------------------------------------------------


def streamed(items: Any) -> list[str]:
    """The texts that the items of a stream make, part by part."""
    reader = ValueReader(READING)
    found: dict[Any, str] = {}
    for item in items:
        for piece in reader.read(item):
            key = piece.kind, piece.index
            found[key] = found.get(key, "") + piece.text + piece.name + ("(image)" if piece.image else "")
    return [text for text in found.values() if text]


def test_text_and_chunks_are_joined() -> None:
    assert streamed(["He", "llo"]) == ["Hello"]
    assert streamed([AIMessageChunk(content="He"), AIMessageChunk(content="llo")]) == ["Hello"]
    assert streamed([ChatGenerationChunk(message=AIMessageChunk(content=one)) for one in ("He", "llo")]) == ["Hello"]
    assert streamed([AddableDict(a="He"), AddableDict(b="Or"), AddableDict(a="llo")]) == ["Hello", "Or"]
    both = [
        AddableDict(a=AIMessageChunk(content="He")),
        AddableDict(b=AIMessageChunk(content="Or")),
        AddableDict(a=AIMessageChunk(content="llo")),
    ]
    assert streamed(both) == ["Hello", "Or"]
    assert streamed([AddableDict({"what to steal": "x"}), AddableDict({"what to steal": "y"})]) == [
        "what to steal",
        "xy",
    ]


def test_calls_of_several_keys_stay_apart() -> None:
    def call(args: str) -> AIMessageChunk:
        raw: Any = {"name": None, "args": args, "id": None, "index": 0, "type": "tool_call_chunk"}
        return AIMessageChunk(content="", tool_call_chunks=[raw])

    items = [AddableDict(a=call("1")), AddableDict(b=call("2")), AddableDict(a=call("3"))]
    assert streamed(items) == ["13", "2"]


def test_values_that_grow_are_read_once_and_others_each() -> None:
    assert streamed([{"a": "He"}, {"a": "Hello"}, {"a": "Hello", "b": ["x"]}]) == ["a", "Hello", "b", "x"]
    assert streamed([{"a": "one"}, {"a": "two"}]) == ["a", "one", "two"]
    assert streamed([Answer(said="He"), Answer(said="Hello")]) == ["Hello"]
    assert streamed([["a"], ["b"]]) == ["a", "b"]


def test_whole_messages_in_a_stream_are_read_whole() -> None:
    for message in (ANTHROPIC, STANDARD):
        found = "\n".join(streamed([message]))
        assert all(text in found for text in judged(message) if "image" not in text)
    result = Message("tool", (ToolResultPart((TextPart("a"), PICTURE)),), "name")
    assert streamed([result, SystemMessage("b"), [PICTURE]]) == ["a", "(image)(image)", "name", "b"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON | st.dictionaries(st.sampled_from("abc"), JSON), max_size=5))
def test_every_text_of_every_item_is_read(items: list[Any]) -> None:
    found = "\n".join(streamed(items))

    def check(value: Any) -> None:
        if isinstance(value, str):
            assert value in found
        for inner in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    check(items)


def test_what_real_runnables_stream_is_read() -> None:
    def words(_: Any) -> Any:
        for word in ('{"said": "', "He", 'llo", ', '"more": ["BAD', 'WORD"]}'):
            yield AIMessageChunk(content=word)

    model: Any = RunnableGenerator(words)
    assert streamed((model | StrOutputParser()).stream("x")) == ['{"said": "Hello", "more": ["BADWORD"]}']
    assert streamed((model | JsonOutputParser()).stream("x")) == ["said", "Hello", "more", "BADWORD"]
    both = RunnableParallel(a=model, b=model | StrOutputParser())
    assert streamed(both.stream("x")) == ['{"said": "Hello", "more": ["BADWORD"]}'] * 2
    assigned = RunnablePassthrough.assign(answer=model | StrOutputParser())
    assert sorted(streamed(assigned.stream({"question": "q"}))) == ["q", '{"said": "Hello", "more": ["BADWORD"]}']
