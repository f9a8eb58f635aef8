from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardrail_vl.engines._completions import Messages, body, data_url, fields, read
from guardrail_vl.engines._http import Reply
from guardrail_vl.engines._servers import (
    LLAMA_CPP,
    OPTIONAL,
    PROBE,
    TRANSFORMERS,
    UNKNOWN,
    VLLM,
    identify,
    refused_fields,
)
from guardrail_vl.errors import EngineResponseError
from guardrail_vl.prompt_format.base import Prompt, PromptImage, PromptMessage, PromptText
from guardrail_vl.turn import ImagePart

STOP = "</result>"


def reply(value: object, status: int = 200) -> Reply:
    return Reply(status, {}, json.dumps(value).encode())


def answer(text: str, finish: str = "stop", **choice: Any) -> Reply:
    return reply({"choices": [{"message": {"content": text}, "finish_reason": finish, **choice}]})


def prompt(**settings: Any) -> Prompt:
    return Prompt((PromptMessage("user", (PromptText("x"),)),), **settings)


# ---- out -----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_arrives_as_it_is(text: str, prefix: str) -> None:
    asked = Prompt((PromptMessage("system", (PromptText(text),)), PromptMessage("user", (PromptText(text),))))
    sent = json.loads(body({"model": text}, Messages(asked.messages).json(), prefix))
    expected = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    assert sent == {
        "model": text,
        "messages": expected + ([{"role": "assistant", "content": prefix}] if prefix else []),
    }


def test_each_server_gets_the_fields_that_it_knows() -> None:
    asked = prompt(prefix="p", pattern="a", stop=("s",), top_logprobs=5)
    extras = {"structured_outputs", "include_stop_str_in_output"}
    assert extras <= fields(asked, "m", VLLM, frozenset(), {}).keys()
    assert "stop" not in fields(asked, "m", TRANSFORMERS, frozenset(), {})
    for server, wanted in ((TRANSFORMERS, set()), (LLAMA_CPP, {"include_stop_str_in_output"}), (UNKNOWN, {"include_stop_str_in_output"})):  # fmt: skip
        assert fields(asked, "m", server, frozenset(), {}).keys() & extras == wanted
    assert fields(asked, "m", VLLM, frozenset({"logprobs", "top_logprobs"}), {}).keys().isdisjoint({"logprobs"})
    assert fields(asked, "m", VLLM, frozenset(), {"max_tokens": 3})["max_tokens"] == 3


def image_file(mode: str, size: tuple[int, int], format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, **options.pop("new", {})).save(out, format, **options)
    return out.getvalue()


def test_a_picture_that_everyone_shows_alike_is_sent_as_it_came() -> None:
    for format in ("JPEG", "PNG"):
        data = image_file("RGB", (40, 20), format)
        assert (
            data_url(PromptImage(ImagePart(data)))
            == f"data:image/{format.lower()};base64,{base64.b64encode(data).decode()}"
        )


@pytest.mark.parametrize("what", ["turned", "transparent", "large", "gif", "second view"])
def test_any_other_picture_is_sent_as_the_view_that_is_judged(what: str) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    data, view, most = {
        "turned": (image_file("RGB", (40, 20), "JPEG", exif=turned), 0, 10_000),
        "transparent": (image_file("RGBA", (40, 20), "PNG", new={"color": (9, 9, 9, 0)}), 0, 10_000),
        "large": (image_file("RGB", (40, 20), "JPEG"), 0, 200),
        "gif": (image_file("P", (40, 20), "GIF"), 0, 10_000),
        "second view": (image_file("RGBA", (40, 20), "PNG", new={"color": (9, 9, 9, 0)}), 1, 10_000),
    }[what]
    shown = PromptImage(ImagePart(data), view, most)
    head, _, encoded = data_url(shown).partition(",")
    assert head == "data:image/png;base64"
    seen = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert seen.mode == "RGB"
    assert (seen.size, seen.tobytes()) == (shown.pixels().size, shown.pixels().tobytes())
    if what == "turned":
        assert seen.size == (20, 40)


def test_pictures_go_between_the_texts_around_them() -> None:
    data = image_file("RGB", (4, 4), "PNG")
    parts = (PromptText("a"), PromptText("b"), PromptImage(ImagePart(data)), PromptText("c"))
    messages = Messages((PromptMessage("user", parts),))
    assert messages.heavy
    assert messages.json() is messages.json()
    (sent,) = json.loads(f"[{messages.json()}]")
    assert [part["type"] for part in sent["content"]] == ["text", "image_url", "text"]
    assert sent["content"][0]["text"] == "ab"


# ---- in ------------------------------------------------------------------------------------------------------------


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["choices", "message", "content", "finish_reason", "logprobs", "token", "logprob", "top_logprobs", "usage", "error"]), inner)))  # fmt: skip
def test_any_json_is_a_completion_or_a_named_error(value: object) -> None:
    try:
        found = read(reply(value), prompt(top_logprobs=5, stop=(STOP,)))
    except EngineResponseError:
        return
    assert isinstance(found.text, str)


@given(st.binary())
def test_any_bytes_are_a_named_error(data: bytes) -> None:
    with pytest.raises(EngineResponseError):
        read(Reply(200, {}, data), prompt())


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({}, "a</result>"),  # taken off in silence, or the model ended there
        ({"stop_reason": STOP}, "a</result>"),
        ({"stop_reason": None}, "a"),  # the server says that the model ended by itself
        ({"stop_reason": "other"}, "a"),
        ({"finish": "length"}, "a"),
    ],
)
def test_a_stop_string_is_put_back_only_where_it_was(choice: dict[str, Any], text: str) -> None:
    assert read(answer("a", **choice), prompt(stop=(STOP,))).text == text


def test_with_two_stop_strings_the_tokens_say_which() -> None:
    both = prompt(stop=("!", "?"), top_logprobs=1)
    tokens = [{"token": t, "logprob": -1.0} for t in ("a", "b", "?")]
    assert read(answer("ab", logprobs={"content": tokens}), both).text == "ab?"
    assert read(answer("ab", logprobs={"content": tokens[:2]}), both).text == "ab"
    assert read(answer("ab"), both).text == "ab"


def test_what_follows_a_stop_string_is_cut_off() -> None:
    found = read(answer("a</result> and more", "length"), prompt(stop=(STOP,)))
    assert (found.text, found.finish) == ("a</result>", "stop")


def test_tokens_are_cut_to_the_text_and_joined_from_bytes() -> None:
    ue = "ü".encode()
    raw = [b"a", ue[:1], ue[1:] + b"b", b"</res", b"ult>\n\n", b"<|im_end|>"]
    content = [{"token": r.decode("utf-8", "replace"), "logprob": -1.0, "bytes": list(r)} for r in raw]
    found = read(answer("aüb</result>", logprobs={"content": content}), prompt(stop=(STOP,), top_logprobs=1))
    assert [token.text for token in found.tokens] == ["a", "", "üb", "</res", "ult>"]


def test_tokens_that_are_another_text_are_left_as_they_are() -> None:
    content = [{"token": "x", "logprob": -0.5, "bytes": 10**12}]
    found = read(answer("a", logprobs={"content": content}), prompt(top_logprobs=1))
    assert [token.text for token in found.tokens] == ["x"]


def test_alternatives_come_likeliest_first_and_no_probability_is_above_one() -> None:
    top = [{"token": "b", "logprob": -2}, {"token": "a", "logprob": 1e-7}, {"token": "c", "logprob": -math.inf}]
    content = [{"token": "a", "logprob": 1e-7, "top_logprobs": top}]
    (token,) = read(answer("a", logprobs={"content": content}), prompt(top_logprobs=3)).tokens
    assert token.logprob == 0
    assert token.alternatives == (("a", 0.0), ("b", -2.0), ("c", -math.inf))


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_put_back_unless_some_is_still_there(field: str) -> None:
    def said(content: object, reasoning: object) -> Reply:
        return reply({"choices": [{"message": {"content": content, field: reasoning}, "finish_reason": "stop"}]})

    assert read(said("b", "a"), prompt()).text == "<think>a</think>b"
    assert read(said(None, "a"), prompt()).text == "<think>a</think>"
    assert read(said("<think>a</think>b", None), prompt()).text == "<think>a</think>b"
    for content, reasoning in (("<think>c</think>b", "a"), ("c</think>b", "a"), ("b", 7), (7, "a")):
        with pytest.raises(EngineResponseError, match="reasoning parser off"):
            read(said(content, reasoning), prompt())


# ---- servers -------------------------------------------------------------------------------------------------------


def test_servers_are_told_apart_by_what_they_do() -> None:
    assert identify(200, PROBE.pattern) is VLLM
    assert identify(200, f"zq{PROBE.pattern}") is UNKNOWN
    assert identify(422) is TRANSFORMERS
    assert identify(400) is UNKNOWN


SENT = {name: 1 for group in OPTIONAL for name in group}


@pytest.mark.parametrize(
    ("status", "said", "refused"),
    [
        (422, {"detail": "Unexpected fields in the request: {'structured_outputs'}"}, {"structured_outputs"}),
        (422, {"detail": "Unexpected fields: {'include_stop_str_in_output'}"}, {"include_stop_str_in_output", "stop"}),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "logprobs"]}]}, {"logprobs", "top_logprobs"}),
        (400, {"error": {"message": "no", "param": "logprobs", "code": "unknown_parameter"}}, {"logprobs", "top_logprobs"}),
        (400, {"message": "Unknown field include_stop_str_in_output"}, {"include_stop_str_in_output"}),
        (422, {"detail": [{"type": "string_type", "loc": ["body", "logprobs"], "input": "extra logprobs"}]}, set()),
        (422, {"detail": "unexpected " + "user text " * 100 + "logprobs"}, set()),
        (422, {"detail": "a user wrote logprobs"}, set()),
        (500, {"detail": "Unexpected fields: logprobs"}, set()),
        (422, None, set()),
        (422, {"detail": "unexpected my_logprobs_field"}, set()),
    ],
)  # fmt: skip
def test_which_fields_a_refusal_names(status: int, said: Any, refused: set[str]) -> None:
    assert refused_fields(reply(said, status), said, SENT) == refused
    assert refused_fields(reply(said, status), said, {}) == frozenset()
