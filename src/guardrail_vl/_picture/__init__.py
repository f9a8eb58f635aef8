"""The outside of a picture file: what it is, how large, how many frames, where it ends. Decodes nothing.

Each format is walked from its first byte to its end mark, so that size, frame count and truncation are known before
a decoder runs, and a decoder is handed a file without metadata: no text chunk, colour profile, EXIF block or comment
of a stranger is ever unpacked. Where decoders are known to disagree about a file, the file is refused.
Knows no Pillow and no pixels.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final

from guardrail_vl._picture.base import Picture, Still, too_many_frames, truncated
from guardrail_vl._picture.bmp import walk_bmp
from guardrail_vl._picture.gif import walk_gif
from guardrail_vl._picture.jpeg import walk_jpeg
from guardrail_vl._picture.png import PNG_MAGIC, walk_png
from guardrail_vl._picture.webp import walk_webp
from guardrail_vl.errors import ContentError


def open_picture(data: bytes, *, max_pixels: float, max_frames: float) -> Picture:
    """Walk a PNG, JPEG, GIF, WebP or BMP file.

    Args:
        data: The file.
        max_pixels: Most pixels of all frames together.
        max_frames: Most frames.

    Raises:
        ContentError: Another format, cut off, damaged, ambiguous, or beyond a cap. The message holds no content.
    """
    walk = next((walk for magic, walk in _WALKERS if magic.match(data)), None)
    if walk is None:
        raise ContentError(
            f"This is no picture that can be judged: it looks like {_looks_like(data)}.",
            hint="Pass PNG, JPEG, GIF, WebP or BMP.",
        )
    try:
        picture = walk(data, max_frames)
    except (struct.error, IndexError):
        raise truncated() from None
    if not all(still.width and still.height for still in picture.stills) or not picture.width * picture.height:
        raise ContentError("The picture has no pixels.")
    if not picture.stills:
        raise ContentError("The picture file holds no picture.")
    if picture.pixels > max_pixels:
        raise ContentError(
            f"The picture has {picture.width} x {picture.height} pixels"
            + (f" in {picture.frames} frames" if picture.frames > 1 else "")
            + f"; at most {max_pixels} pixels can be judged.",
            hint="Scale it down.",
        )
    if picture.frames > max_frames:
        raise too_many_frames(max_frames)
    return picture


_STRANGERS: Final[tuple[tuple[str, str], ...]] = (
    (r"%PDF-", "PDF"),
    (r"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+", "TIFF"),
    (r"\x00\x00[\x01\x02]\x00", "an icon (ICO)"),
    (r"....ftyp(?:avif|avis)", "AVIF"),
    (r"....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)", "HEIC"),
    (r"....ftyp", "a video (MP4)"),
    (r"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (r"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (r"8BPS", "a Photoshop file"),
    (r"PK\x03\x04", "a ZIP archive"),
    (r"\x1f\x8b", "gzip"),
    (r"RIFF....(?:AVI |WAVE)", "video or sound"),
    (r"(?:<\?xml[^>]*>|\s|<!--.{0,2048}?-->|<!DOCTYPE svg[^>]*>)*<svg", "SVG"),
    (r"<!DOCTYPE html|<html|<head|<body", "HTML"),
    (r"<\?xml", "XML"),
    (r"data:", "a data: URL, not the bytes in it"),
    (r"https?://", "a URL, not the bytes behind it"),
)
_STRANGER_PATTERNS: Final = tuple((re.compile(p.encode("latin-1"), re.S | re.I), name) for p, name in _STRANGERS)


def _looks_like(data: bytes) -> str:
    if not data:
        return "an empty file"
    head = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name in _STRANGER_PATTERNS:
        if pattern.match(head):
            return name
    if len(data) < 12:
        return f"{len(data)} byte{'s' if len(data) > 1 else ''} of nothing known"
    sample = b" ".join(head[:512].split())
    return "text" if sample.isascii() and sample.decode().isprintable() else "an unknown format"


_WALKERS: Final[tuple[tuple[re.Pattern[bytes], Callable[[bytes, float], Picture]], ...]] = (
    (re.compile(re.escape(PNG_MAGIC)), walk_png),
    (re.compile(rb"\xff\xd8\xff"), walk_jpeg),
    (re.compile(rb"GIF8[79]a"), walk_gif),
    (re.compile(rb"RIFF....WEBP", re.S), walk_webp),
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00", re.S), walk_bmp),
)


__all__ = ["Picture", "Still", "open_picture"]
