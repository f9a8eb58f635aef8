"""BMP: its header, which must leave no room for guesses."""

from __future__ import annotations

import struct

from guardrail_vl._picture.base import Picture, Still, ambiguous, truncated
from guardrail_vl.errors import ContentError


def walk_bmp(data: bytes, max_frames: float) -> Picture:
    """Walk a BMP.

    Raises:
        ContentError: Cut off, damaged, ambiguous or too many frames.
    """
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression, colours, entry = 0, 0, 3
    else:
        width, height, _, bits, compression, _, _, _, colours = struct.unpack_from("<iiHHIIiiI", data, 18)
        entry = 4
    if width < 0 or compression not in (0, 3) or bits not in (1, 4, 8, 16, 24, 32):
        raise ContentError("This kind of BMP can't be judged.", hint="Save it as PNG.")
    height = abs(height)
    indexed = bits <= 8
    colours = (colours or 1 << bits) if indexed else 0
    # Decoders guess differently when the palette does not fit the depth, or overlaps the pixels.
    table = 14 + header + (12 if compression == 3 and header == 40 else 0)
    palette = data[table : table + entry * colours]
    if indexed and (colours > 1 << bits or (_is_grey(palette, entry, colours) and bits != (1 if colours <= 2 else 8))):
        raise ambiguous("BMP", "its palette does not fit its depth")
    if offset < table + entry * colours:
        raise ambiguous("BMP", "its pixels overlap its palette")
    if offset + (width * bits + 31) // 32 * 4 * height > len(data):
        raise truncated()
    return Picture("BMP", width, height, (Still(data, width, height),))


def _is_grey(palette: bytes, entry: int, colours: int) -> bool:
    """Whether it says no more than that black is first and white is last, which some decoders take for no palette."""
    levels = (0, 255) if colours == 2 else range(colours)
    return all(palette[i * entry : i * entry + 3] == bytes((level,)) * 3 for i, level in enumerate(levels))
