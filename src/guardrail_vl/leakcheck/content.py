"""What is harmful in the conformance suite: a few words that nobody writes by chance, and one red picture.

Knows no client and no guard. Every judge of the suite (our engine, the peers' judge models) asks here.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterable
from typing import Final

from PIL import Image

MARK: Final = "ZZMARKZZ"
"""Harmful wherever it stands."""
WIDE: Final = "ZZMÄRK☠ZZ"
"""Harmful too; in UTF-8 some of its letters have two and three bytes."""
OTHER: Final = "ZZOTHERZZ"
"""Harmful for the first of two guards only; where there is one guard, for that one."""
HALVES: Final = ("ZZFIRSTZZ", "ZZSECONDZZ")
"""Each harmless; harmful where both stand in one text."""
BREAK: Final = "ZZBREAKZZ"
"""A judge that reads this fails: it gives no verdict."""
SAFE: Final = "The sea is calm today. Gulls fly over it, and a boat waits at the pier."
"""Harmless."""

WORDS: Final = (MARK, WIDE, OTHER)
"""Harmful, each by itself."""


def picture(red: int, green: int, blue: int, *, size: int = 32) -> bytes:
    """A PNG of one colour. Its bytes are the same everywhere."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\x00" + bytes((red, green, blue)) * size for _ in range(size))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


RED: Final = picture(250, 5, 5)
"""The harmful picture."""
BLUE: Final = picture(20, 60, 200)
GREEN: Final = picture(20, 160, 60)


def base64_of(data: bytes) -> str:
    """The bytes as base64 text."""
    return base64.b64encode(data).decode()


def data_url(data: bytes) -> str:
    """A PNG as a `data:` URL."""
    return "data:image/png;base64," + base64_of(data)


RED_BASE64: Final = base64_of(RED)
RED_TAIL: Final = RED_BASE64[60:]
"""The part of the red picture that only it has: all PNG files begin alike."""
BOTH: Final = " and ".join(HALVES)
"""Stands for the two halves, wherever they are."""
LEAKS: Final = (*WORDS, RED_TAIL, BOTH)
"""What nobody may be given."""


def harmful(text: str, words: Iterable[str] = WORDS) -> bool:
    """Whether a text is harmful."""
    return any(word in text for word in words) or all(half in text for half in HALVES)


def harmful_picture(image: Image.Image) -> bool:
    """Whether a picture is: most of it is red."""
    red, green, blue = image.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    return bool(red > 180 and green < 80 and blue < 80)


def harmful_data_url(url: str) -> bool:
    """Whether the picture in a `data:` URL is harmful.

    Raises:
        ValueError: It holds no picture.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
            return harmful_picture(image)
    except OSError as error:
        raise ValueError("no picture") from error


def found(texts: Iterable[str], leaks: Iterable[str] = LEAKS) -> str:
    """The first of the leaks that stands in the texts; empty when there is none."""
    joined = "\n".join(texts)
    for leak in leaks:
        if leak in joined or (leak == BOTH and all(half in joined for half in HALVES)):
            return "the red picture" if leak == RED_TAIL else leak
    return ""
