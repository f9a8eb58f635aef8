from __future__ import annotations

import pytest
from PIL import Image

from guardrail_vl.leakcheck.content import (
    BLUE,
    BOTH,
    GREEN,
    HALVES,
    LEAKS,
    MARK,
    OTHER,
    RED,
    RED_BASE64,
    SAFE,
    WIDE,
    data_url,
    found,
    harmful,
    harmful_data_url,
)
from guardrail_vl.parts import ImagePart


def test_only_the_marked_words_and_the_two_halves_together_are_harmful() -> None:
    assert not harmful(SAFE)
    assert all(harmful(f"{SAFE} {word} {SAFE}") for word in (MARK, WIDE, OTHER))
    assert not any(harmful(half) for half in HALVES)
    assert harmful(SAFE.join(HALVES))
    assert not harmful(MARK, words=(OTHER,))


def test_only_the_red_picture_is_harmful() -> None:
    assert harmful_data_url(data_url(RED))
    assert not harmful_data_url(data_url(BLUE))
    assert not harmful_data_url(data_url(GREEN))
    assert ImagePart(RED).media_type == "image/png"
    with pytest.raises(ValueError, match="no picture"):
        harmful_data_url("data:image/png;base64,AAAA")


def test_the_pictures_are_what_they_say_they_are() -> None:
    for data, colour in ((RED, (250, 5, 5)), (BLUE, (20, 60, 200)), (GREEN, (20, 160, 60))):
        (view,) = ImagePart(data).views()
        assert isinstance(view, Image.Image)
        assert view.getcolors() == [(32 * 32, colour)]


def test_what_leaked_is_named() -> None:
    assert found([SAFE, data_url(BLUE)]) == ""
    assert found([SAFE, f"x{MARK}"]) == MARK
    assert found([data_url(RED)]) == found([RED_BASE64]) == "the red picture"
    assert found([HALVES[1], HALVES[0]]) == BOTH
    assert found([HALVES[1]]) == ""
    assert found(list(HALVES), [leak for leak in LEAKS if leak != BOTH]) == ""
