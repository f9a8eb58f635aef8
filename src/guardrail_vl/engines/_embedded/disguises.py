"""What a disguised text says: encodings, digits for letters and letters apart taken off. Knows no model.

What decodes to words takes the place of what was encoded. What is only likely is judged beside the text as it came,
never instead of it, so that a wrong guess hides nothing.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import urllib.parse
from typing import Final

LEET_SHARE: Final = 0.2
"""Words with digits among their letters, of all words, from which a text counts as written so. Names of products and
chemical formulas stay below."""
MOST_READ: Final = 20_000
"""Characters of a text that are looked at for disguises; nobody writes more of them by hand."""

_LEET: Final = str.maketrans("01345789@$!|", "oieastbgasil")
_LEET_WORD: Final = re.compile(
    r"(?<![\w@$|%\\])(?=[a-zA-Z@$!|]*\d|[a-zA-Z]+[@$|][a-zA-Z])(?=[\d@$!|]*[a-zA-Z])[a-zA-Z\d][a-zA-Z\d@$!|]+"
)
_USUAL: Final = re.compile(r"\d+(?:st|nd|rd|th|kg|mg|ml|cm|mm|km|am|pm|px|gb|mb|[a-z])|[a-z]\d{1,3}", re.I)
_NUMBER: Final = re.compile(r"(?<![^\W_])[\d@$]{1,4}(?![^\W_])")
_SPACED: Final = re.compile(r"(?<!\S)(?:[^\W_][\s.\-_*]{1,3}){5,}[^\W_](?!\S)")
_GAP: Final = re.compile(r"\s{2,}|\n")
_BASE64: Final = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{16,}={0,2}(?![\w+/=-])")
_HEX: Final = re.compile(r"(?<!\w)(?:0x)?((?:[0-9a-fA-F]{2}[\s:]?){8,})(?!\w)")
_PERCENT: Final = re.compile(r"(?:%[0-9a-fA-F]{2}[^\s%]{0,40}){6,}")
_ROT13_WORDS: Final = frozenset(
    ("gur", "naq", "sbe", "ubj", "jung", "jvgu", "lbhe", "lbh", "zl", "jevgr", "gung", "guvf", "znxr", "sebz", "vf")
)
"""Common English words, moved by 13."""


def revealed(text: str) -> str | None:
    """What the text may say besides what it says as it stands; of most texts, nothing.

    Args:
        text: Folded text.
    """
    text = text[:MOST_READ]
    found = (_rot13(text), _together(text), _letters(text))
    return next((said for said in found if said and said.strip() and said != text), None)


def _together(text: str) -> str | None:
    """Letters that stand apart, put together: a wider gap is a gap between words."""
    if not _SPACED.search(text):
        return None
    return _SPACED.sub(lambda run: " ".join(map(_word, _GAP.split(run[0]))), text)


def _word(spaced: str) -> str:
    return re.sub(r"[\s.\-_*]", "", spaced)


def _letters(text: str) -> str | None:
    """Digits and signs that stand for letters, read as those."""
    words = [word for word in _LEET_WORD.findall(text) if not _USUAL.fullmatch(word)]
    if len(words) < 2 or len(words) < LEET_SHARE * len(text.split()):
        return None
    plain = _LEET_WORD.sub(lambda word: word[0].translate(_LEET), text)
    return _NUMBER.sub(lambda number: number[0].translate(_LEET), plain)


def decoded(text: str) -> str:
    """The text with its parts in base64, hexadecimal and percent-encoding decoded, where words come out; once."""
    if len(text) > MOST_READ:
        return decoded(text[:MOST_READ]) + text[MOST_READ:]
    plain = _BASE64.sub(lambda part: _said(_from_base64(part[0])) or part[0], text)
    plain = _HEX.sub(lambda part: _said(_from_hex(part[1])) or part[0], plain)
    return _PERCENT.sub(lambda part: _said(urllib.parse.unquote_to_bytes(part[0])) or part[0], plain)


def _from_base64(part: str) -> bytes:
    part = part.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), validate=True)
    except binascii.Error:
        return b""


def _from_hex(part: str) -> bytes:
    return bytes.fromhex(re.sub(r"[\s:]", "", part))


def _said(data: bytes) -> str:
    """The bytes as a text; empty if they are none."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    if not text.isprintable() and not text.replace("\n", "").replace("\t", "").isprintable():
        return ""
    wordy = sum(char.isalpha() or char.isspace() for char in text)
    return text if wordy >= 0.7 * len(text) else ""


def _rot13(text: str) -> str | None:
    known = _ROT13_WORDS.intersection(re.findall(r"[a-z]+", text.lower()))
    return codecs.encode(text, "rot13") if len(known) >= 2 else None
