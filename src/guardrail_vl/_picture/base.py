"""What every walker shares: the values it gives, the errors it raises, and the orientation in an EXIF block."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, Literal

from guardrail_vl.errors import ContentError

Format = Literal["PNG", "JPEG", "GIF", "WEBP", "BMP"]
After = Literal["keep", "clear", "restore"]

MAX_PIECES: Final = 50_000
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


def truncated() -> ContentError:
    """The error for a file that ends too early."""
    return ContentError("The picture is cut off: its end is missing.")


def damaged(format: str, what: str) -> ContentError:
    return ContentError(f"The {format} picture is damaged: {what}.")


def ambiguous(format: str, what: str) -> ContentError:
    return ContentError(
        f"The {format} picture can be read in more than one way: {what}.", hint="Save it again with a picture editor."
    )


def too_many_pieces(format: str) -> ContentError:
    return ContentError(f"The {format} picture is in more than {MAX_PIECES} pieces.", hint="Save it again.")


def too_many_frames(most: float) -> ContentError:
    return ContentError(
        f"The picture has more than {most} frames; no frame may go unjudged.", hint="Send fewer frames, or a still."
    )


def orientation_of(tiff: bytes) -> int:
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
