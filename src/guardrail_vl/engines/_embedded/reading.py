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
_ALIKE: Final = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0455\u0456\u0458\u04bb\u0501\u051b\u051d\u04cf"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0405\u0406\u0408\u04ba\u051a\u051c\u04c0\u0500"
    "\u03b1\u03b5\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u0261\u0251\u0131",
    "abekmhopctyxsijhdqwlABEKMHOPCTYXSIJHQWIDaeikvoptuxABEZHIKMNOPTYXgai",
)
"""Letters of other alphabets that look Latin: Cyrillic, Greek, phonetic."""
_WORD: Final = re.compile(r"[^\W\d_]+")


def fold(text: str) -> str:
    """The text with look-alike forms made plain.

    Full-width, mathematical, circled and other styled letters become plain ones (NFKC); the invisible tag characters
    that some models read as ASCII become ASCII. Invisible format characters (zero-width, bidirectional) go. Letters of
    other alphabets become the Latin ones that they look like, in words that mix alphabets, and in all words where
    no word needs the other alphabet.
    """
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKC", text.translate(_TAGS))
    return _latin("".join(c for c in plain if unicodedata.category(c) != "Cf"))


def _latin(text: str) -> str:
    if not any(ord(char) in _ALIKE for char in text):
        return text
    foreign = [word for word in _WORD.findall(text) if not _is_latin(word.translate(_ALIKE))]
    return _WORD.sub(lambda word: _unmixed(word[0], alone=not foreign), text)


def _unmixed(word: str, *, alone: bool) -> str:
    mixed = any(map(_is_latin, word))
    return word.translate(_ALIKE) if (alone or mixed) and _is_latin(word.translate(_ALIKE)) else word


def _is_latin(word: str) -> bool:
    return all(char.isascii() or unicodedata.name(char, "").startswith("LATIN") for char in word)


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
