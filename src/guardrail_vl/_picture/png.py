"""PNG and APNG, chunk by chunk."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

from guardrail_vl._picture.base import (
    MAX_PIECES,
    After,
    Picture,
    Still,
    ambiguous,
    damaged,
    orientation_of,
    too_many_frames,
    too_many_pieces,
)

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_APNG_AFTER: Final[tuple[After, ...]] = ("keep", "clear", "restore")
_PNG_KNOWN: Final = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"gAMA"}


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start of the payload, length) up to and including IEND; only chunks that are used are checked."""
    pos = 8
    for _ in range(MAX_PIECES):
        length, kind = struct.unpack_from(">I4s", data, pos)
        start, end = pos + 8, pos + 8 + length
        (crc,) = struct.unpack_from(">I", data, end)
        if kind in _PNG_KNOWN:
            if zlib.crc32(memoryview(data)[start - 4 : end]) != crc:
                raise damaged("PNG", "a checksum is wrong")
        elif not kind.isalpha() or not kind[0] & 0x20:
            raise damaged("PNG", "it needs an extension that is not known")
        yield kind, start, length
        if kind == b"IEND":
            return
        pos = end + 4
    raise too_many_pieces("PNG")


def _png_chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


class _Png:
    """The walk through one PNG: collects the still picture and, where there is one, the animation (APNG)."""

    def __init__(self, data: bytes, max_frames: float) -> None:
        self.data = data
        self.max_frames = max_frames
        self.header = b""
        self.width = self.height = self.depth = self.colour = 0
        self.palette = self.alphas = b""
        self.key: tuple[int, ...] | None = None
        self.orientation = 1
        self.idat: list[bytes] = []
        self.declared = -1
        self.controls: list[tuple[int, ...]] = []
        self.bodies: list[list[bytes]] = []
        self.sequence = 0
        self.default_is_frame = False
        self.take: dict[bytes, Callable[[bytes], None]] = {
            b"IHDR": self.header_chunk, b"PLTE": self.palette_chunk, b"tRNS": self.transparency, b"gAMA": self.gamma,
            b"eXIf": self.exif, b"IDAT": self.pixels, b"IEND": lambda _: None, b"acTL": self.animation,
            b"fcTL": self.frame, b"fdAT": self.frame_pixels,
        }  # fmt: skip

    def walk(self) -> Picture:
        previous = b""
        for kind, start, length in _png_chunks(self.data):
            if (kind == b"IHDR") != (previous == b""):
                raise damaged("PNG", "its header is not where it belongs")
            if kind == b"IDAT" and self.idat and previous != b"IDAT":
                raise ambiguous("PNG", "its pixel data come in two places")
            if kind in self.take:
                self.take[kind](self.data[start : start + length])
            previous = kind
        if not self.idat:
            raise damaged("PNG", "it holds no pixel data")
        if self.colour == 3 and not self.palette:
            raise damaged("PNG", "its palette is missing")
        return Picture("PNG", self.width, self.height, tuple(self._stills()))

    def header_chunk(self, payload: bytes) -> None:
        self.width, self.height, self.depth, self.colour = struct.unpack_from(">IIBB", payload)
        self.header = payload

    def palette_chunk(self, payload: bytes) -> None:
        if self.palette or self.idat:
            raise ambiguous("PNG", "its palette is not where it belongs")
        self.palette = payload

    def transparency(self, payload: bytes) -> None:
        if self.idat or self.alphas or self.key or self.colour in (4, 6):
            raise ambiguous("PNG", "its transparency is declared twice or in the wrong place")
        if self.colour == 3:
            if 3 * len(payload) > len(self.palette):
                raise damaged("PNG", "it has more transparencies than colours")
            self.alphas = payload
            return
        values = struct.unpack(">H" if self.colour == 0 else ">HHH", payload)
        # Decoders reduce 16 bits to 8 before or after they compare, and mask or reject what is out of range.
        if self.depth == 16 or max(values) >= 1 << self.depth:
            raise ambiguous("PNG", "its transparent colour is not an 8-bit colour")
        self.key = tuple(value * 255 // ((1 << self.depth) - 1) for value in values)

    def gamma(self, payload: bytes) -> None:
        # A far-off gamma shows one picture where it is honoured, and another to the many who ignore it.
        if not 30_000 <= struct.unpack(">I", payload)[0] <= 120_000:
            raise ambiguous("PNG", "its gamma is far from usual")

    def exif(self, payload: bytes) -> None:
        self.orientation = orientation_of(payload)

    def pixels(self, payload: bytes) -> None:
        self.default_is_frame = self.default_is_frame or (bool(self.controls) and not self.idat)
        self.idat.append(payload)

    def animation(self, payload: bytes) -> None:
        if self.declared >= 0 or self.idat:
            raise ambiguous("PNG", "its animation is declared twice or too late")
        (self.declared, _) = struct.unpack(">II", payload)
        if self.declared > self.max_frames:
            raise too_many_frames(self.max_frames)

    def _number(self, payload: bytes) -> None:
        (number,) = struct.unpack_from(">I", payload)
        if number != self.sequence:
            raise ambiguous("PNG", "its animation frames are out of order")
        self.sequence += 1

    def frame(self, payload: bytes) -> None:
        self._number(payload)
        width, height, x, y, _, _, after, blend = struct.unpack(">IIIIHHBB", payload[4:])
        if x + width > self.width or y + height > self.height or after > 2 or blend > 1:
            raise damaged("PNG", "an animation frame lies outside the picture")
        if len(self.controls) >= self.max_frames:
            raise too_many_frames(self.max_frames)
        if self.controls and not self.idat:
            raise ambiguous("PNG", "two frames are declared before its pixels")
        self.controls.append((width, height, x, y, after, blend))
        self.bodies.append([])

    def frame_pixels(self, payload: bytes) -> None:
        self._number(payload)
        if not self.bodies or not self.idat or (self.default_is_frame and len(self.bodies) == 1):
            raise damaged("PNG", "animation data come before their frame")
        self.bodies[-1].append(payload[4:])

    def _file(self, width: int, height: int, body: list[bytes]) -> bytes:
        header = struct.pack(">II", width, height) + self.header[8:]
        parts = [PNG_MAGIC, _png_chunk(b"IHDR", header)]
        if self.colour == 3:
            parts.append(_png_chunk(b"PLTE", self.palette))
            parts += [_png_chunk(b"tRNS", self.alphas)] if self.alphas else []
        return b"".join([*parts, *(_png_chunk(b"IDAT", part) for part in body), _png_chunk(b"IEND", b"")])

    def _stills(self) -> Iterator[Still]:
        if self.declared < 0 and self.controls:
            raise ambiguous("PNG", "it holds an animation that it does not declare")
        if not self.default_is_frame:
            # Shown where APNG is not understood; without an animation, it is the picture.
            file = self._file(self.width, self.height, self.idat)
            alone, turn = self.declared >= 0, self.orientation
            yield Still(file, self.width, self.height, alone=alone, orientation=turn, key=self.key)
        if self.declared < 0:
            return
        if self.declared != len(self.controls):
            raise ambiguous("PNG", "it declares another number of frames than it holds")
        for index, (width, height, x, y, after, blend) in enumerate(self.controls):
            body = self.bodies[index]
            if index == 0 and self.default_is_frame:
                body = self.idat
                if (width, height) != (self.width, self.height):
                    raise damaged("PNG", "its first frame does not fill the picture")
            if not body:
                raise damaged("PNG", "an animation frame holds no pixel data")
            file = self._file(width, height, body)
            how = _APNG_AFTER[after]
            yield Still(file, width, height, x, y, blend == 1, how, orientation=self.orientation, key=self.key)


def walk_png(data: bytes, max_frames: float) -> Picture:
    """Walk a PNG.

    Raises:
        ContentError: Cut off, damaged, ambiguous or too many frames.
    """
    return _Png(data, max_frames).walk()
