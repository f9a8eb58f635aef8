"""The outside of a picture file: what it is, how large, how many frames, where it ends. Decodes nothing.

Each format is walked from its first byte to its end mark, so that size, frame count and truncation are known before
a decoder runs, and a decoder is handed a file without metadata: no text chunk, colour profile, EXIF block or comment
of a stranger is ever unpacked. Where decoders are known to disagree about a file, the file is refused.
Knows no Pillow and no pixels.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from guardrail_vl.errors import ContentError

Format = Literal["PNG", "JPEG", "GIF", "WEBP", "BMP"]
After = Literal["keep", "clear", "restore"]

_MAX_PIECES: Final = 50_000
"""Most chunks, segments or blocks in one file: each costs a step here, whatever its size."""


@dataclass(frozen=True, slots=True)
class Still:
    """One drawing step: a whole file of its own, without metadata, that a decoder turns into pixels."""

    data: bytes = field(repr=False)
    width: int
    height: int
    x: int = 0
    """Where it goes on the canvas, pixels from the left."""
    y: int = 0
    over: bool = False
    """Blended over what is there; otherwise it replaces it."""
    after: After = "keep"
    """What becomes of its place once it was shown."""
    alone: bool = False
    """A picture by itself, with no part in the animation."""
    orientation: int = 1
    """EXIF orientation, 1 to 8."""
    key: tuple[int, ...] | None = None
    """The 8-bit grey or RGB value that stands for full transparency; None: no such value."""
    frames: int = 1
    """More than 1 only for an animated WebP, which its decoder composes."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file that was walked to its end."""

    format: Format
    width: int
    """Pixels of the canvas as stored, before any orientation."""
    height: int
    stills: tuple[Still, ...]

    @property
    def media_type(self) -> str:
        """IANA media type."""
        return f"image/{self.format.lower()}"

    @property
    def frames(self) -> int:
        """How many pictures a viewer may show."""
        return sum(still.frames for still in self.stills)

    @property
    def pixels(self) -> int:
        """Pixels of all frames together, each frame at the full size of its canvas."""
        canvas = self.width * self.height
        return sum(s.width * s.height if s.alone else canvas * s.frames for s in self.stills)


def open_picture(data: bytes, *, max_pixels: float, max_frames: float) -> Picture:
    """Walk a PNG, JPEG, GIF, WebP or BMP file.

    Args:
        data: The file.
        max_pixels: Most pixels of all frames together.
        max_frames: Most frames.

    Raises:
        ContentError: Another format, cut off, damaged, ambiguous, or beyond a cap. The message holds no content.
    """
    for magic, walk in _WALKERS:
        if magic.match(data):
            break
    else:
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
        raise _too_many_frames(max_frames)
    return picture


def truncated() -> ContentError:
    """The error for a file that ends too early."""
    return ContentError("The picture is cut off: its end is missing.")


def _damaged(format: str, what: str) -> ContentError:
    return ContentError(f"The {format} picture is damaged: {what}.")


def _ambiguous(format: str, what: str) -> ContentError:
    return ContentError(
        f"The {format} picture can be read in more than one way: {what}.", hint="Save it again with a picture editor."
    )


def _too_many_pieces(format: str) -> ContentError:
    return ContentError(f"The {format} picture is in more than {_MAX_PIECES} pieces.", hint="Save it again.")


def _too_many_frames(most: float) -> ContentError:
    return ContentError(
        f"The picture has more than {most} frames; no frame may go unjudged.", hint="Send fewer frames, or a still."
    )


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
    return "text" if head[:512].isascii() and b"\x00" not in head[:512] else "an unknown format"


# ---- orientation -----------------------------------------------------------------------------------------------


def _orientation(tiff: bytes) -> int:
    """The orientation in an EXIF block (which is a TIFF file); 1 where there is none or it makes no sense."""
    tiff = tiff.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(tiff[:4]))
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for index in range(min(count, 512)):
            tag, kind, number, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * index)
            if tag == 0x0112:
                return value if kind == 3 and number == 1 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


# ---- PNG -------------------------------------------------------------------------------------------------------

_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_APNG_AFTER: Final[tuple[After, ...]] = ("keep", "clear", "restore")
_PNG_KNOWN: Final = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"gAMA"}


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start of the payload, length) up to and including IEND; only chunks that are used are checked."""
    pos = 8
    for _ in range(_MAX_PIECES):
        length, kind = struct.unpack_from(">I4s", data, pos)
        start, end = pos + 8, pos + 8 + length
        (crc,) = struct.unpack_from(">I", data, end)
        if kind in _PNG_KNOWN:
            if zlib.crc32(memoryview(data)[start - 4 : end]) != crc:
                raise _damaged("PNG", "a checksum is wrong")
            yield kind, start, length
        elif not kind.isalpha() or not kind[0] & 0x20:
            raise _damaged("PNG", "it needs an extension that is not known")
        if kind == b"IEND":
            return
        pos = end + 4
    raise _too_many_pieces("PNG")


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

    def walk(self) -> Picture:
        previous = b""
        for kind, start, length in _png_chunks(self.data):
            payload = self.data[start : start + length]
            if (kind == b"IHDR") != (previous == b""):
                raise _damaged("PNG", "its header is not where it belongs")
            if kind == b"IDAT" and self.idat and previous != b"IDAT":
                raise _ambiguous("PNG", "its pixel data come in two places")
            getattr(self, f"_{kind.decode()}")(payload)
            previous = kind
        if not self.idat:
            raise _damaged("PNG", "it holds no pixel data")
        if self.colour == 3 and not self.palette:
            raise _damaged("PNG", "its palette is missing")
        return Picture("PNG", self.width, self.height, tuple(self._stills()))

    def _IHDR(self, payload: bytes) -> None:
        self.width, self.height, self.depth, self.colour = struct.unpack_from(">IIBB", payload)
        self.header = payload

    def _PLTE(self, payload: bytes) -> None:
        if self.palette or self.idat:
            raise _ambiguous("PNG", "its palette is not where it belongs")
        self.palette = payload

    def _tRNS(self, payload: bytes) -> None:
        if self.idat or self.alphas or self.key or self.colour in (4, 6):
            raise _ambiguous("PNG", "its transparency is declared twice or in the wrong place")
        if self.colour == 3:
            if 3 * len(payload) > len(self.palette):
                raise _damaged("PNG", "it has more transparencies than colours")
            self.alphas = payload
            return
        values = struct.unpack(">H" if self.colour == 0 else ">HHH", payload)
        # Decoders reduce 16 bits to 8 before or after they compare, and mask or reject what is out of range.
        if self.depth == 16 or max(values) >= 1 << self.depth:
            raise _ambiguous("PNG", "its transparent colour is not an 8-bit colour")
        self.key = tuple(value * 255 // ((1 << self.depth) - 1) for value in values)

    def _gAMA(self, payload: bytes) -> None:
        # A far-off gamma shows one picture where it is honoured, and another to the many who ignore it.
        if not 30_000 <= struct.unpack(">I", payload)[0] <= 120_000:
            raise _ambiguous("PNG", "its gamma is far from usual")

    def _eXIf(self, payload: bytes) -> None:
        self.orientation = _orientation(payload)

    def _IDAT(self, payload: bytes) -> None:
        self.default_is_frame = self.default_is_frame or (bool(self.controls) and not self.idat)
        self.idat.append(payload)

    def _IEND(self, payload: bytes) -> None:
        pass

    def _acTL(self, payload: bytes) -> None:
        if self.declared >= 0 or self.idat:
            raise _ambiguous("PNG", "its animation is declared twice or too late")
        (self.declared, _) = struct.unpack(">II", payload)
        if self.declared > self.max_frames:
            raise _too_many_frames(self.max_frames)

    def _number(self, payload: bytes) -> None:
        (number,) = struct.unpack_from(">I", payload)
        if number != self.sequence:
            raise _ambiguous("PNG", "its animation frames are out of order")
        self.sequence += 1

    def _fcTL(self, payload: bytes) -> None:
        self._number(payload)
        width, height, x, y, _, _, after, blend = struct.unpack(">IIIIHHBB", payload[4:])
        if x + width > self.width or y + height > self.height or after > 2 or blend > 1:
            raise _damaged("PNG", "an animation frame lies outside the picture")
        if len(self.controls) >= self.max_frames:
            raise _too_many_frames(self.max_frames)
        if self.controls and not self.idat:
            raise _ambiguous("PNG", "two frames are declared before its pixels")
        self.controls.append((width, height, x, y, after, blend))
        self.bodies.append([])

    def _fdAT(self, payload: bytes) -> None:
        self._number(payload)
        if not self.bodies or not self.idat or (self.default_is_frame and len(self.bodies) == 1):
            raise _damaged("PNG", "animation data come before their frame")
        self.bodies[-1].append(payload[4:])

    def _file(self, width: int, height: int, body: list[bytes]) -> bytes:
        header = struct.pack(">II", width, height) + self.header[8:]
        parts = [_PNG_MAGIC, _png_chunk(b"IHDR", header)]
        if self.colour == 3:
            parts.append(_png_chunk(b"PLTE", self.palette))
            parts += [_png_chunk(b"tRNS", self.alphas)] if self.alphas else []
        return b"".join([*parts, *(_png_chunk(b"IDAT", part) for part in body), _png_chunk(b"IEND", b"")])

    def _stills(self) -> Iterator[Still]:
        if self.declared < 0 and self.controls:
            raise _ambiguous("PNG", "it holds an animation that it does not declare")
        if not self.default_is_frame:
            # Shown where APNG is not understood; without an animation, it is the picture.
            file = self._file(self.width, self.height, self.idat)
            alone, turn = self.declared >= 0, self.orientation
            yield Still(file, self.width, self.height, alone=alone, orientation=turn, key=self.key)
        if self.declared < 0:
            return
        if self.declared != len(self.controls):
            raise _ambiguous("PNG", "it declares another number of frames than it holds")
        for index, (width, height, x, y, after, blend) in enumerate(self.controls):
            body = self.bodies[index]
            if index == 0 and self.default_is_frame:
                body = self.idat
                if (width, height) != (self.width, self.height):
                    raise _damaged("PNG", "its first frame does not fill the picture")
            if not body:
                raise _damaged("PNG", "an animation frame holds no pixel data")
            file = self._file(width, height, body)
            how = _APNG_AFTER[after]
            yield Still(file, width, height, x, y, blend == 1, how, orientation=self.orientation, key=self.key)


# ---- JPEG ------------------------------------------------------------------------------------------------------

# In the entropy-coded data, 0xFF is followed by 0 (stuffing), more 0xFF or a restart marker.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.S)
_JPEG_AGAIN: Final = re.compile(rb"\xff\xd8\xff[\xc0-\xc2\xc4\xdb\xdd\xe0-\xef\xfe]", re.S)
_MAX_SCANS: Final = 100
_SCAN_PIXELS: Final = 400_000_000
"""Most scans times pixels: a progressive file may ask for the whole picture to be gone over at every few bytes."""


def _walk_jpeg(data: bytes, max_frames: float) -> Picture:
    still, end = _jpeg_still(data, 0)
    stills = [still]
    # Cameras append more pictures (multi-picture format, gain maps). Each is judged, wherever an index says it lies.
    for number, match in enumerate(_JPEG_AGAIN.finditer(data, end)):
        if number > _MAX_PIECES:
            raise _too_many_pieces("JPEG")
        at = match.start()
        after = at + 4 + int.from_bytes(data[at + 4 : at + 6], "big")
        if at < end or data[after : after + 1] != b"\xff":
            continue
        if len(stills) >= max_frames:
            raise _too_many_frames(max_frames)
        another, end = _jpeg_still(data, at)
        stills.append(replace(another, alone=True))
    return Picture("JPEG", still.width, still.height, tuple(stills))


def _jpeg_still(data: bytes, start: int) -> tuple[Still, int]:
    """The JPEG that begins at `start`, and where it ends."""
    view = memoryview(data)
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    pos, size, scans, orientation = start + 2, (0, 0), 0, 1
    for _ in range(_MAX_PIECES):
        if data[pos] != 0xFF:
            raise _damaged("JPEG", "bytes that belong to nothing")
        while data[pos + 1] == 0xFF:
            pos += 1
        marker = data[pos + 1]
        if marker == 0xD9:
            if not scans:
                raise _damaged("JPEG", "it holds no pixel data")
            kept.append(b"\xff\xd9")
            return Still(b"".join(kept), *size, orientation=orientation), pos + 2
        (length,) = struct.unpack_from(">H", data, pos + 2)
        end = pos + 2 + length
        if end > len(data) or length < 2:
            raise truncated()
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if size != (0, 0):
                raise _ambiguous("JPEG", "its size is declared twice")
            height, width = struct.unpack_from(">HH", data, pos + 5)
            size = (width, height)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", pos + 4):
            orientation = _orientation(data[pos + 4 : end])
        elif marker == 0xDC:
            raise _ambiguous("JPEG", "its height is declared again after its pixels")
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
    raise _too_many_pieces("JPEG")


# ---- GIF -------------------------------------------------------------------------------------------------------


def _skip_blocks(data: bytes, pos: int) -> int:
    while size := data[pos]:
        pos += size + 1
    return pos + 1


def _walk_gif(data: bytes, max_frames: float) -> Picture:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    pos = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    palette = data[13:pos]
    stills: list[Still] = []
    control: bytes | None = None
    for _ in range(_MAX_PIECES):
        if (kind := data[pos]) == 0x3B:
            return Picture("GIF", width, height, tuple(stills))
        if kind == 0x21:
            label = data[pos + 1]
            if label == 0x01:
                raise _ambiguous("GIF", "it holds text that few viewers draw")
            if label == 0xF9:
                if data[pos + 2] != 4 or data[pos + 7] != 0:
                    raise _damaged("GIF", "a control block has the wrong length")
                control = data[pos + 3 : pos + 7]
            pos = _skip_blocks(data, pos + 2)
        elif kind == 0x2C:
            if len(stills) >= max_frames:
                raise _too_many_frames(max_frames)
            still, pos = _gif_frame(data, pos, control, palette)
            if still.x + still.width > width or still.y + still.height > height:
                raise _ambiguous("GIF", "a frame lies outside the picture")
            stills.append(still)
            control = None
        else:
            raise _damaged("GIF", "bytes that belong to nothing")
    raise _too_many_pieces("GIF")


def _gif_frame(data: bytes, pos: int, control: bytes | None, palette: bytes) -> tuple[Still, int]:
    x, y, width, height, flags = struct.unpack_from("<HHHHB", data, pos + 1)
    body = pos + 10
    start = body + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    if flags & 0x80:
        palette = data[body:start]
    if not palette:
        raise _ambiguous("GIF", "it has no palette")
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


# ---- WebP ------------------------------------------------------------------------------------------------------


def _walk_webp(data: bytes, max_frames: float) -> Picture:
    (size,) = struct.unpack_from("<I", data, 4)
    stop = 8 + size
    if stop > len(data):
        raise truncated()
    pos, width, height, frames, images, orientation = 12, 0, 0, 0, 0, 1
    animated = False
    kept: list[bytes] = []
    for _ in range(_MAX_PIECES):
        if pos >= stop:
            break
        kind, length = struct.unpack_from("<4sI", data, pos)
        end = pos + 8 + length + (length & 1)
        if end > stop:
            raise truncated()
        body = data[pos:end]
        if kind == b"VP8X":
            if pos != 12 or length != 10:
                raise _damaged("WebP", "its header is not where it belongs")
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
                raise _ambiguous("WebP", "its size is declared twice")
        elif kind == b"ANMF":
            frames += 1
            if frames > max_frames:
                raise _too_many_frames(max_frames)
        elif kind == b"EXIF":
            orientation = _orientation(body[8:])
        if kind in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(body)
        pos = end
    else:
        raise _too_many_pieces("WebP")
    if (frames > 0, images) != ((True, 0) if animated else (False, 1)):
        raise _ambiguous("WebP", "it holds both or neither of a still and an animation")
    inner_file = b"WEBP" + b"".join(kept)
    file = b"RIFF" + struct.pack("<I", len(inner_file)) + inner_file
    still = Still(file, width, height, orientation=orientation, frames=max(1, frames))
    return Picture("WEBP", width, height, (still,))


def _vp8_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8 ":
        if body[3:6] != b"\x9d\x01\x2a":
            raise _damaged("WebP", "its pixel data have no header")
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    (sign, bits) = struct.unpack_from("<BI", body)
    if sign != 0x2F:
        raise _damaged("WebP", "its pixel data have no header")
    return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)


# ---- BMP -------------------------------------------------------------------------------------------------------


def _walk_bmp(data: bytes, max_frames: float) -> Picture:
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
    if indexed and (
        colours > 1 << bits
        or colours < 2
        or (colours == 2 and bits > 1)
        or (bits == 4 and _is_ramp(data, table, entry))
    ):
        raise _ambiguous("BMP", "its palette does not fit its depth")
    if offset < table + entry * colours:
        raise _ambiguous("BMP", "its pixels overlap its palette")
    if offset + (width * bits + 31) // 32 * 4 * height > len(data):
        raise truncated()
    return Picture("BMP", width, height, (Still(data, width, height),))


def _is_ramp(data: bytes, table: int, entry: int) -> bool:
    return data[table + entry : table + entry + 3] == b"\x01\x01\x01"


_WALKERS: Final[tuple[tuple[re.Pattern[bytes], Callable[[bytes, float], Picture]], ...]] = (
    (re.compile(re.escape(_PNG_MAGIC)), lambda data, most: _Png(data, most).walk()),
    (re.compile(rb"\xff\xd8\xff"), _walk_jpeg),
    (re.compile(rb"GIF8[79]a"), _walk_gif),
    (re.compile(rb"RIFF....WEBP", re.S), _walk_webp),
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00", re.S), _walk_bmp),
)
