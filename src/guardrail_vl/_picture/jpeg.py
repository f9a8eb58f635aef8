"""JPEG, segment by segment, and the pictures that cameras append to one."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from typing import Final

from guardrail_vl._picture.base import (
    MAX_PIECES,
    Picture,
    Still,
    ambiguous,
    damaged,
    orientation_of,
    too_many_frames,
    too_many_pieces,
    truncated,
)
from guardrail_vl.errors import ContentError

# In the entropy-coded data, 0xFF is followed by 0 (stuffing), more 0xFF or a restart marker.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.S)
_FILL: Final = re.compile(rb"\xff+")
_JPEG_AGAIN: Final = re.compile(rb"\xff\xd8\xff[\xc0-\xc2\xc4\xdb\xdd\xe0-\xef\xfe]", re.S)
_MAX_SCANS: Final = 100
_SCAN_PIXELS: Final = 400_000_000
"""Most scans times pixels: a progressive file may ask for the whole picture to be gone over at every few bytes."""


def walk_jpeg(data: bytes, max_frames: float) -> Picture:
    """Walk a JPEG.

    Raises:
        ContentError: Cut off, damaged, ambiguous or too many frames.
    """
    still, end = _jpeg_still(data, 0)
    stills = [still]
    # Cameras append more pictures (multi-picture format, gain maps). Each is judged, wherever an index says it lies.
    for number, match in enumerate(_JPEG_AGAIN.finditer(data, end)):
        if number > MAX_PIECES:
            raise too_many_pieces("JPEG")
        at = match.start()
        after = at + 4 + int.from_bytes(data[at + 4 : at + 6], "big")
        if at < end or data[after : after + 1] != b"\xff":
            continue
        if len(stills) >= max_frames:
            raise too_many_frames(max_frames)
        another, end = _jpeg_still(data, at)
        stills.append(replace(another, alone=True))
    return Picture("JPEG", still.width, still.height, tuple(stills))


def _jpeg_still(data: bytes, start: int) -> tuple[Still, int]:
    """The JPEG that begins at `start`, and where it ends."""
    view = memoryview(data)
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    pos, size, scans, orientation = start + 2, (0, 0), 0, 1
    for _ in range(MAX_PIECES):
        if data[pos] != 0xFF:
            raise damaged("JPEG", "bytes that belong to nothing")
        pos = _FILL.match(data, pos).end() - 1  # type: ignore[union-attr]
        marker = data[pos + 1]
        if marker == 0xD9:
            if not scans:
                raise damaged("JPEG", "it holds no pixel data")
            kept.append(b"\xff\xd9")
            return Still(b"".join(kept), *size, orientation=orientation), pos + 2
        (length,) = struct.unpack_from(">H", data, pos + 2)
        end = pos + 2 + length
        if end > len(data) or length < 2:
            raise truncated()
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if size != (0, 0):
                raise ambiguous("JPEG", "its size is declared twice")
            height, width = struct.unpack_from(">HH", data, pos + 5)
            size = (width, height)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", pos + 4):
            orientation = orientation_of(data[pos + 4 : end])
        elif marker == 0xDC:
            raise ambiguous("JPEG", "its height is declared again after its pixels")
        elif marker == 0xDA:
            scans += 1
            if scans > _MAX_SCANS or scans * size[0] * size[1] > _SCAN_PIXELS:
                raise ContentError("The JPEG picture has too many passes over its pixels.", hint="Save it again.")
            found = _NEXT_MARKER.search(data, end)
            if found is None:
                raise truncated()
            end = found.start()
        jfif = marker == 0xE0 and data.startswith(b"JFIF\0", pos + 4)
        adobe = marker == 0xEE and data.startswith(b"Adobe", pos + 4)
        if jfif or adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(view[pos:end])
        pos = end
    raise too_many_pieces("JPEG")
