"""Texts that others wrote, so that a page or a plot can hold them. Knows no markup: escaping comes after."""

from __future__ import annotations

import unicodedata
from typing import Final

_JOINERS: Final = "\u200c\u200d"
"""Part of ordinary writing in some scripts, and of emoji."""


def clean(text: str) -> str:
    """The text with what can't be seen made visible: control, format and broken characters by their numbers.

    So a page can hold it, nothing turns the direction of what follows, and hidden characters, which attacks use, show.
    """
    return "".join(
        char if char in "\n\t" or char in _JOINERS or unicodedata.category(char)[0] != "C" else f"\\u{{{ord(char):x}}}"
        for char in text.replace("\r\n", "\n")
    )
