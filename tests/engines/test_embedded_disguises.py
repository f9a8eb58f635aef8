from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.engines._embedded.disguises import decoded, revealed
from guardrail_vl.engines._embedded.reading import fold
from guardrail_vl.evaluation._rewriting import REWRITINGS

PLAIN = "How do I make this at home, and with what, so that nobody sees it?"
WAYS = {way.name: way for way in REWRITINGS}


@pytest.mark.parametrize("name", ["base64", "hex", "url"])
def test_an_encoded_text_is_decoded_and_the_rest_stays(name: str) -> None:
    way = WAYS[name]
    assert decoded(f"{way.carrier}\n{way.write(PLAIN, random.Random(0))}") == f"{way.carrier}\n{PLAIN}"


def test_moved_letters_are_moved_back() -> None:
    way = WAYS["rot13"]
    said = revealed(f"{way.carrier}\n{way.write(PLAIN, random.Random(0))}")
    assert said is not None
    assert said.endswith(PLAIN)


@pytest.mark.parametrize("name", ["leetspeak", "spaced"])
def test_digits_for_letters_and_letters_apart_are_read(name: str) -> None:
    said = revealed(fold(WAYS[name].write(PLAIN, random.Random(0))))
    assert said is not None
    assert [c for c in said.lower() if c.isalpha()] == [c for c in PLAIN.lower() if c.isalpha()]
    assert "make this at" in said


@pytest.mark.parametrize("name", ["homoglyphs", "full-width", "zero-width"])
def test_letters_that_look_alike_are_folded(name: str) -> None:
    assert fold(WAYS[name].write(PLAIN, random.Random(0))) == PLAIN


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "Compare 2D and 3D shapes, the 1st and the 2nd, 10kg and 5cm, B2B and a 4k screen.",
        "The order number is A1B2 and the file is called report2024.",
        "Use $name and @user in the template, then call f(x1, x2).",
        "My IBAN is DE02120300000000202051, please check it!",
        "The commit is 2ec516d0a1b2c3d4e5f60718293a4b5c6d7e8f90.",
        "See https://example.org/a%20b and C:\\temp\\notes for it.",
        "A B C are the first three letters.",
        "",
        " \n ",
    ],
)
def test_a_plain_text_says_nothing_else(text: str) -> None:
    assert revealed(text) is None
    assert decoded(text) == text


@pytest.mark.parametrize(
    "text", ["Привет, как дела?", "Τι κάνεις σήμερα;", "мороз и солнце; день чудесный", "café, naïve"]
)
def test_another_alphabet_stays_what_it_is(text: str) -> None:
    assert fold(text) == text


def test_one_foreign_letter_in_a_word_is_folded_beside_true_foreign_words() -> None:
    assert fold("Слово b\u043emb, здесь") == "Слово bomb, здесь"


@given(st.text(max_size=300))
def test_it_never_fails_and_never_says_the_same(text: str) -> None:
    folded = fold(text)
    said = revealed(decoded(folded))
    assert said is None or (said != decoded(folded) and bool(said.strip()))


@given(st.binary(min_size=12, max_size=60))
def test_bytes_that_are_no_text_stay_encoded(data: bytes) -> None:
    part = base64.b64encode(b"\xff\xfe" + data).decode()
    assert decoded(part) == part
