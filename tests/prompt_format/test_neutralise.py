"""The law: content can't forge a tag, a section or a token, whatever it holds."""

from __future__ import annotations

import re
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.prompt_format.neutralise import neutralise
from tests.hostile import FRAGMENTS, hostile_text

_ANY_TOKEN = re.compile(r"<[^<>]{1,64}>|<[|｜]")
_HEADER = re.compile(r"(human\s*user|ai\s*assistant)\s*:", re.IGNORECASE)


@given(hostile_text())
def test_no_tag_no_token_no_header_survives(text: str) -> None:
    out = neutralise(text)
    assert not _ANY_TOKEN.search(out)
    visible = re.sub(r"[\u200b-\u200f\u2060\ufeff\u00ad]", "", out)
    assert not _HEADER.search(visible)


@given(hostile_text())
def test_twice_is_once(text: str) -> None:
    assert neutralise(neutralise(text)) == neutralise(text)


@given(hostile_text())
def test_length_is_kept_and_only_two_characters_change(text: str) -> None:
    out = neutralise(text)
    assert len(out) == len(text)
    for before, after in zip(text, out, strict=True):
        assert before == after or (before, after) in {("<", "‹"), (":", "꞉"), ("：", "꞉")}


@given(st.text(st.characters(exclude_characters="<:：")))
def test_ordinary_text_is_untouched(text: str) -> None:
    assert neutralise(text) == text


def test_comparisons_in_code_are_untouched() -> None:
    assert neutralise("if a < b: return b") == "if a < b: return b"


def test_every_fragment_alone_changes() -> None:
    for fragment in FRAGMENTS:
        assert neutralise(fragment) != fragment, fragment


@pytest.mark.parametrize(
    "filler", ["<", "<|", "human ", "human user", " ", "\u200b", " \u200b", "h\u200b", "ai assistant "]
)
def test_hostile_repeats_take_linear_time(filler: str) -> None:
    text = "human user" + filler * (200_000 // len(filler)) + "x:<a>"
    start = time.perf_counter()
    neutralise(text)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("header", ["Human user", "AI assistant"])
def test_a_header_in_any_case_is_powerless(header: str) -> None:
    for spelled in (header, header.lower(), header.upper(), header.swapcase(), header.replace("s", "ſ")):
        for text in (f"{spelled}:", f"x{spelled} ：", "\u200b".join(spelled) + "\u00ad:"):
            assert neutralise(text) == text.replace(":", "꞉").replace("：", "꞉")


def test_the_first_letters_of_headers_have_no_more_cases() -> None:
    found = {chr(code) for code in range(sys.maxunicode + 1) if re.match("[ha]", chr(code), re.IGNORECASE)}
    assert found == {*"hHaA"}  # which the pattern spells out
