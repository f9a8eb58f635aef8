"""WebP, chunk by chunk."""

from __future__ import annotations

import struct

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


def walk_webp(data: bytes, max_frames: float) -> Picture:
    """Walk a WebP.

    Raises:
        ContentError: Cut off, damaged, ambiguous or too many frames.
    """
    (size,) = struct.unpack_from("<I", data, 4)
    stop = 8 + size
    if stop > len(data):
        raise truncated()
    pos, width, height, frames, images, orientation = 12, 0, 0, 0, 0, 1
    animated = False
    kept: list[bytes] = []
    for _ in range(MAX_PIECES):
        if pos >= stop:
            break
        kind, length = struct.unpack_from("<4sI", data, pos)
        end = pos + 8 + length + (length & 1)
        if end > stop:
            raise truncated()
        body = data[pos:end]
        if kind == b"VP8X":
            if pos != 12 or length != 10:
                raise damaged("WebP", "its header is not where it belongs")
            animated = bool(body[8] & 0x02)
            width = 1 + int.from_bytes(body[12:15], "little")
            height = 1 + int.from_bytes(body[15:18], "little")
            # Colour profile, EXIF and XMP are dropped, so their flags are too.
            body = body[:8] + bytes([body[8] & 0x12]) + body[9:]
        elif kind in (b"VP8 ", b"VP8L"):
            images += 1
            inner = _vp8_size(kind, body[8:])
            if (width, height) == (0, 0):
                width, height = inner
            elif inner != (width, height) and not animated:
                raise ambiguous("WebP", "its size is declared twice")
        elif kind == b"ANMF":
            frames += 1
            if frames > max_frames:
                raise too_many_frames(max_frames)
        elif kind == b"EXIF":
            orientation = orientation_of(body[8:])
        if kind in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(body)
        pos = end
    else:
        raise too_many_pieces("WebP")
    if (frames > 0, images) != ((True, 0) if animated else (False, 1)):
        raise ambiguous("WebP", "it holds both or neither of a still and an animation")
    inner_file = b"WEBP" + b"".join(kept)
    file = b"RIFF" + struct.pack("<I", len(inner_file)) + inner_file
    still = Still(file, width, height, orientation=orientation, frames=max(1, frames))
    return Picture("WEBP", width, height, (still,))


def _vp8_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8 ":
        if body[3:6] != b"\x9d\x01\x2a":
            raise damaged("WebP", "its pixel data have no header")
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    (sign, bits) = struct.unpack_from("<BI", body)
    if sign != 0x2F:
        raise damaged("WebP", "its pixel data have no header")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
