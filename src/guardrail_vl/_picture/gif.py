"""GIF, block by block; each frame becomes a GIF of its own."""

from __future__ import annotations

import struct

from guardrail_vl._picture.base import (
    MAX_PIECES,
    After,
    Picture,
    Still,
    ambiguous,
    damaged,
    too_many_frames,
    too_many_pieces,
)


def _skip_blocks(data: bytes, pos: int) -> int:
    while size := data[pos]:
        pos += size + 1
    return pos + 1


def walk_gif(data: bytes, max_frames: float) -> Picture:
    """Walk a GIF.

    Raises:
        ContentError: Cut off, damaged, ambiguous or too many frames.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    pos = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    palette = data[13:pos]
    stills: list[Still] = []
    control: bytes | None = None
    for _ in range(MAX_PIECES):
        if (kind := data[pos]) == 0x3B:
            return Picture("GIF", width, height, tuple(stills))
        if kind == 0x21:
            label = data[pos + 1]
            if label == 0x01:
                raise ambiguous("GIF", "it holds text that few viewers draw")
            if label == 0xF9:
                if data[pos + 2] != 4 or data[pos + 7] != 0:
                    raise damaged("GIF", "a control block has the wrong length")
                control = data[pos + 3 : pos + 7]
            pos = _skip_blocks(data, pos + 2)
        elif kind == 0x2C:
            if len(stills) >= max_frames:
                raise too_many_frames(max_frames)
            still, pos = _gif_frame(data, pos, control, palette)
            if still.x + still.width > width or still.y + still.height > height:
                raise ambiguous("GIF", "a frame lies outside the picture")
            stills.append(still)
            control = None
        else:
            raise damaged("GIF", "bytes that belong to nothing")
    raise too_many_pieces("GIF")


def _gif_frame(data: bytes, pos: int, control: bytes | None, palette: bytes) -> tuple[Still, int]:
    x, y, width, height, flags = struct.unpack_from("<HHHHB", data, pos + 1)
    body = pos + 10
    start = body + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    if flags & 0x80:
        palette = data[body:start]
    if not palette:
        raise ambiguous("GIF", "it has no palette")
    end = _skip_blocks(data, start + 1)
    bits = (len(palette) // 3).bit_length() - 2
    out = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x80 | bits, 0, 0), palette]
    after: After = "keep"
    if control is not None:
        way = control[0] >> 2 & 7
        after = "clear" if way == 2 else "restore" if way == 3 else "keep"
        if control[0] & 1:
            out.append(b"\x21\xf9\x04\x01\x00\x00" + control[3:4] + b"\x00")
    out += [b"\x2c", struct.pack("<HHHHB", 0, 0, width, height, flags & 0x40), data[start:end], b"\x3b"]
    return Still(b"".join(out), width, height, x, y, True, after), end
