"""Content on its way into a prompt loses the power to be structure. What it says stays readable.

Two changes, both to one character that a reader hardly notices:

- `<` becomes `‹` (U+2039) where it could open a tag or a token: before `|`, and wherever a `>` closes it within 64
  characters. No special token of any chat template, `<think>`, `<result>` or `<image>` survives that.
- The colon after `Human user` or `AI assistant`, however it is spaced, cased or interrupted by invisible characters,
  becomes `꞉` (U+A789), so that content can't start a section of the prompt.
"""

from __future__ import annotations

import re
from typing import Final

_TAG: Final = re.compile(r"<(?=[|｜]|[^>]{1,64}>)")
# Characters that print as nothing, and so could hide a header from a plain search: joiners, marks, soft hyphen.
_HIDDEN: Final = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    r"\U000e0000-\U000e0fff"
)
# One class for each gap, never two repeats side by side: matching stays linear on hostile input.
_LETTER_GAP: Final = f"[{_HIDDEN}]*"
_WORD_GAP: Final = rf"[\s_\-{_HIDDEN}]*"


def _spelled(word: str) -> str:
    return _LETTER_GAP.join(word)


# Its first letter stands before the part that ignores case: only so does `re` find quickly where a header may begin.
_HEADER: Final = re.compile(
    rf"([hHaA](?i:(?:(?<=h){_LETTER_GAP}{_spelled('uman')}{_WORD_GAP}{_spelled('user')}"
    rf"|(?<=a){_LETTER_GAP}i{_WORD_GAP}{_spelled('assistant')}){_WORD_GAP}))[:：]"
)


def _powerless(header: re.Match[str]) -> str:  # a template would be parsed again each time
    return f"{header[1]}꞉"


def neutralise(text: str) -> str:
    """The text with every tag opening and section header made powerless. Applying it twice changes nothing more."""
    # Each is skipped when its first character is absent: most content takes only the two searches.
    if "<" in text:
        text = _TAG.sub("‹", text)
    if ":" in text or "：" in text:
        text = _HEADER.sub(_powerless, text)
    return text
