"""Text as the encoder sees it: folded look-alikes, and a test of whether the encoder can read it at all.

Knows nothing of models, scores or prompts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

UNREAD_LETTERS: Final = 12
"""More letters than this that the encoder can't read, and the text counts as not judged. A name, a formula or a
quoted word stays below."""
UNREAD_SHARE: Final = 0.35
"""Also when they are more than this share of all letters."""
FEW_WORDS: Final = 4
"""Sentences with fewer words than this are not looked at alone: they say too little."""
_BREAK: Final = re.compile(r"(?<=[.!?;])\s+|\n+")
_DENSE_WEIGHT: Final = 3
"""A Chinese, Japanese or Korean character says about as much as three letters."""
_DENSE: Final = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "YI SYLLABLE")
_TAGS: Final = {0xE0000 + code: code for code in range(0x20, 0x7F)}


def fold(text: str) -> str:
    """The text with look-alike forms made plain.

    Full-width, mathematical, circled and other styled letters become plain ones (NFKC); the invisible tag characters
    that some models read as ASCII become ASCII. Invisible format characters (zero-width, bidirectional) go.
    """
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", text.translate(_TAGS))
    return "".join(c for c in plain if unicodedata.category(c) != "Cf")


def split_sentences(text: str) -> list[str]:
    """The sentences and lines of a text, without the very short ones; none if it is only one."""
    found = [piece for piece in _BREAK.split(text) if piece]
    return [] if len(found) < 2 else [piece for piece in found if len(piece.split()) >= FEW_WORDS]


def is_unread(text: str, unknown: Iterable[tuple[int, int]]) -> bool:
    """Whether too much of a text is beyond an English encoder for its score to mean anything.

    Args:
        text: Folded text.
        unknown: The spans [start, end) of it that the tokenizer has no tokens for.

    Returns:
        True if it holds no letter or digit that can be read, or too many that can't: letters of another script, and
        words without a token.
    """
    if text.isascii():
        letters = sum(map(str.isalnum, text))
        lost = sum(text[start:end].isalnum() * (end - start) for start, end in unknown)
    else:
        dark = {i for start, end in unknown for i in range(start, end)}
        letters = lost = 0
        for i, char in enumerate(text):
            if not char.isalnum():
                continue
            weight, latin = _weigh(char)
            letters += weight
            if i in dark or not latin:
                lost += weight
    return letters == lost or lost > UNREAD_LETTERS or lost > UNREAD_SHARE * letters


def _weigh(char: str) -> tuple[int, bool]:
    if char.isascii():
        return 1, True
    name = unicodedata.name(char, "")
    if name.startswith(_DENSE):
        return _DENSE_WEIGHT, False
    # Digits and letter-like signs of any script are no language.
    return 1, name.startswith("LATIN") or not char.isalpha()
