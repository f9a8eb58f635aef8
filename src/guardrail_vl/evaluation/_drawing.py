"""Pictures that evaluation makes: text on white. Knows no sample and no guard.

Files are written by `guardrail_vl.media`; Pillow is used here to draw, and opens nothing. The fonts are
those that come with matplotlib, so a text looks the same on every machine.
"""

from __future__ import annotations

import functools
import textwrap
import unicodedata
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from guardrail_vl.errors import MissingDependencyError
from guardrail_vl.media import encode

try:
    import matplotlib
    from matplotlib.ft2font import FT2Font
except ImportError as error:
    raise MissingDependencyError("matplotlib", extra="evaluation", needed_for="A typographic picture") from error

PAGE: Final = 760
"""Width and height of a page, in pixels."""
_MARGIN: Final = 40
_SIZES: Final = (48, 40, 32, 26, 20, 16)
"""Font sizes in pixels: the largest that fits."""
_FONTS: Final = ("DejaVuSansMono-Bold.ttf", "DejaVuSans-Bold.ttf")
_RIGHT_TO_LEFT: Final = ("R", "AL", "AN")


def page(text: str) -> bytes | None:
    """A PNG with this text, black on white, as large as fits.

    Returns:
        The file. None: it doesn't fit at a size that can be read, or the fonts can't write it (Chinese, emoji, scripts
        from right to left).
    """
    name = next((name for name in _FONTS if _can_write(name, text)), None)
    if name is None or not text.strip():
        return None
    for size in _SIZES:
        font = _font(name, size)
        lines = _lines(text, font)
        step = round(size * 1.3)
        if len(lines) * step <= PAGE - 2 * _MARGIN:
            image = Image.new("RGB", (PAGE, PAGE), "white")
            pen = ImageDraw.Draw(image)
            for number, line in enumerate(lines):
                pen.text((_MARGIN, _MARGIN + number * step), line, fill="black", font=font)
            return encode(image)[0]
    return None


def _can_write(name: str, text: str) -> bool:
    # Letters that join or combine need a shaping engine, which Pillow may be built without.
    return all(
        char.isspace()
        or (
            ord(char) in _characters(name)
            and unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT
            and not unicodedata.combining(char)
        )
        for char in text
    )


@functools.cache
def _characters(name: str) -> frozenset[int]:
    return frozenset(FT2Font(_path(name)).get_charmap())


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_path(name), size, layout_engine=ImageFont.Layout.BASIC)


def _path(name: str) -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


def _lines(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines that fit the page; its own line breaks stay."""
    columns = max(1, int((PAGE - 2 * _MARGIN) // font.getlength("m")))
    return [line for part in text.splitlines() for line in textwrap.wrap(part, columns) or [""]]
