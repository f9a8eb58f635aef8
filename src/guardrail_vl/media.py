"""Bytes in, verified pictures out: the only home of Pillow, and the attack surface.

PNG, JPEG, GIF, WebP and BMP are read, by their content and never by their name. Size, frame count and the end mark are
checked before anything is decoded (`_picture`); then every frame is decoded in full, so that what was accepted can
also be shown. Anything else is refused with `ContentError`.

What is judged is everything a viewer, or a model pipeline, may show of a file:

- every frame of an animation, composed as browsers do it; the still picture of an APNG that has one apart; every
  picture appended to a JPEG (multi-picture format, gain maps);
- upright, by its EXIF orientation;
- where something is transparent: over white, over black, and with transparency ignored. Two pixels that look the same
  over white and over black look the same over any background; and `convert("RGB")`, which many pipelines call, shows
  colours that are fully transparent. So text can't hide in transparency;
- 16-bit greys twice: scaled to 8 bits, as viewers show them, and cut off at 255, as `convert("RGB")` shows them.

Not judged, because no picture viewer shows it: metadata (EXIF, XMP, comments, thumbnails, colour profiles) and what
follows a file's end mark, apart from those appended pictures. Colours are read without their profile, as models do.
Knows nothing of turns, prompts or engines, and fetches nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

# WebP by name: otherwise Pillow loads all of its plugins when it meets the first one.
from PIL import Image, ImageChops, WebPImagePlugin

from guardrail_vl._picture import Picture, Still, open_picture
from guardrail_vl.errors import ConfigurationError, ContentError

PILImage = Image.Image
"""A picture in memory."""
ImageSource = str | os.PathLike[str] | bytes | PILImage
"""What a caller may have: a path, a file's bytes, a picture in memory or a `data:` URL."""

_PIXEL_CEILING: Final = 89_000_000  # Pillow warns of a decompression bomb above 89,478,485.


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest picture that is read. More is refused before it is decoded.

    Raises:
        ConfigurationError: A limit is not positive, or beyond what Pillow decodes without complaint.
    """

    max_bytes: int = 20 * 1024 * 1024
    """Bytes of the file."""
    max_pixels: int = 40_000_000
    """Width times height, of all frames together: it bounds the memory, at 4 bytes a pixel and view."""
    max_frames: int = 8
    """Frames. All are judged, so each costs a call of the guard model."""

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_pixels, self.max_frames) < 1 or self.max_pixels > _PIXEL_CEILING:
            raise ConfigurationError(f"Image limits must be positive, and max_pixels at most {_PIXEL_CEILING}.")


DEFAULT_LIMITS: Final = ImageLimits()


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of a picture that was verified."""

    media_type: str
    """IANA media type, read from the bytes: `image/png`, …"""
    width: int
    """Pixels, as shown: after the EXIF orientation."""
    height: int
    frames: int
    """1 for a still."""


def load_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageFacts:
    """Verify a picture: type, caps, end mark; then decode every frame of it.

    Raises:
        ContentError: It is no picture that can be judged in full. The message holds none of its content.
    """
    return verified(data, limits)[0]


def verified(data: bytes, limits: ImageLimits) -> tuple[ImageFacts, PILImage | None]:
    """The same; and what was decoded of a picture of a single frame, for `render_views`."""
    if len(data) > limits.max_bytes:
        raise _too_large(limits)
    picture = open_picture(data, max_pixels=limits.max_pixels, max_frames=limits.max_frames)
    decoded = None
    for _, image in _decoded(picture):
        decoded = image
    single = len(picture.stills) == 1 and picture.stills[0].frames == 1
    width, height = picture.width, picture.height
    if picture.stills[0].orientation >= 5:
        width, height = height, width
    return ImageFacts(picture.media_type, width, height, picture.frames), decoded if single else None


def render_views(data: bytes, decoded: PILImage | None = None) -> tuple[PILImage, ...]:
    """Every RGB picture that someone who opens this file may see, without exact repeats. See the top of this module.

    Args:
        data: Bytes that `load_image` accepted; the caps are not checked again.
        decoded: What `verified` gave of them. Nobody may have changed it.

    Raises:
        ContentError: It can't be decoded.
    """
    picture = open_picture(data, max_pixels=math.inf, max_frames=math.inf)
    with _door():
        views = [view for frame in _frames(picture, decoded) for view in _opaque(frame)]
        return tuple(views) if len(views) == 1 else tuple(_distinct(views))


def fit(image: PILImage, max_pixels: int) -> PILImage:
    """The picture, scaled down to at most `max_pixels` (width times height) if it is larger; never scaled up.

    The filter looks at every source pixel, so that nothing shows up, or goes missing, only at the smaller size.
    """
    width, height = image.size
    if width * height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (width * height))
    width = max(1, min(int(width * scale), max_pixels))
    height = max(1, min(int(height * scale), max_pixels // width))
    width = max(1, min(width, max_pixels // height))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encode(image: PILImage) -> tuple[bytes, str]:
    """The picture as a lossless PNG file, and its media type."""
    out = io.BytesIO()
    # The lowest effort: the file lives for one call.
    image.save(out, "PNG", compress_level=1)
    return out.getvalue(), "image/png"


# ---- sources ---------------------------------------------------------------------------------------------------

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]+):", re.I)  # Two letters at least: C:\ is a drive.


def read_source(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a picture's file. They are capped here, and verified by `load_image`.

    A picture in memory becomes a PNG of the same pixels. The type that a `data:` URL declares is not believed.

    Raises:
        ContentError: No such file, too large, a malformed or remote URL. The message names no path and no URL.
        ConfigurationError: The argument is none of these.
    """
    if isinstance(source, PILImage):
        return _from_memory(source, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) > limits.max_bytes:
            raise _too_large(limits)
        return bytes(source)
    if isinstance(source, str) and (scheme := _SCHEME.match(source)):
        return _from_url(source, scheme[1].lower(), limits)
    if isinstance(source, str | os.PathLike):
        return _from_path(source, limits)
    raise ConfigurationError(
        f"Can't read a picture from {type(source).__name__}.",
        hint="Pass a path, bytes, a PIL image or a data: URL.",
    )


def _too_large(limits: ImageLimits) -> ContentError:
    return ContentError(f"The picture has more than {limits.max_bytes} bytes.", hint="Scale it down.")


def _from_path(path: str | os.PathLike[str], limits: ImageLimits) -> bytes:
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ContentError("The picture's path is not a file.")
        if found.st_size > limits.max_bytes:
            raise _too_large(limits)
        with open(path, "rb") as file:
            data = file.read(limits.max_bytes + 1)
    except FileNotFoundError:
        raise ContentError("The picture can't be read: no such file.") from None
    except (OSError, ValueError) as error:
        raise ContentError(f"The picture can't be read: {type(error).__name__}.") from None
    if len(data) > limits.max_bytes:
        raise _too_large(limits)
    return data


def _from_url(url: str, scheme: str, limits: ImageLimits) -> bytes:
    if scheme in ("http", "https"):
        raise ContentError("Remote images are not fetched by default.", hint="Guard(fetch_images=True) allows it.")
    if scheme != "data":
        raise ContentError(
            "Only data: URLs can be read as pictures.", hint="Pass a pathlib.Path for a file name with a colon in it."
        )
    # The head is short; a long one is no media type.
    comma = url.find(",", 0, 1024)
    if comma < 0 or not url[:comma].lower().endswith(";base64"):
        raise ContentError("The data: URL is not base64.", hint="Write data:image/png;base64,…")
    if (len(url) - comma - 1) * 3 // 4 > limits.max_bytes + 2:
        raise _too_large(limits)
    try:
        return base64.b64decode(url[comma + 1 :].encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise ContentError("The data: URL is not valid base64.") from None


_AS_PNG: Final = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_AS_RGB: Final = {"RGBX", "CMYK", "YCbCr", "HSV"}


def _from_memory(image: PILImage, limits: ImageLimits) -> bytes:
    if image.width * image.height > limits.max_pixels:
        raise ContentError(f"The picture has more than {limits.max_pixels} pixels.", hint="Scale it down.")
    if not image.width * image.height:
        raise ContentError("The picture has no pixels.")
    with _door():
        frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ContentError(
            "An animated PIL image can't be judged.", hint="Pass the file's bytes, or image.copy() for one frame."
        )
    if image.mode in ("PA", "La", "RGBa"):
        wanted = "LA" if image.mode == "La" else "RGBA"
    elif image.mode in _AS_PNG | _AS_RGB:
        wanted = image.mode if image.mode in _AS_PNG else "RGB"
    else:
        raise ContentError(f"A PIL image of mode {image.mode} can't be judged.", hint="Convert it to RGB first.")
    with _door():
        data = encode(_bare(image, wanted))[0]
    if len(data) > limits.max_bytes:
        raise ContentError(
            f"As a lossless file, the picture has more than {limits.max_bytes} bytes.",
            hint="Pass the file it came from, or scale it down.",
        )
    return data


def _bare(image: PILImage, mode: str) -> PILImage:
    """The same pixels in `mode`, with nothing else than what says how they look."""
    transparency = image.info.get("transparency")
    bare = image.copy() if image.mode == mode else image.convert(mode)
    bare.info = {} if transparency is None or bare.mode != image.mode else {"transparency": transparency}
    return bare


# ---- decoding --------------------------------------------------------------------------------------------------


@contextmanager
def _door() -> Iterator[None]:
    """Whatever Pillow raises, on whatever bytes, leaves as a `ContentError`."""
    try:
        yield
    except ContentError:
        raise
    except MemoryError:
        raise ContentError("There is not enough memory to decode the picture.") from None
    except Exception:
        raise ContentError("The picture is damaged: it can't be decoded in full.") from None


def _decoded(picture: Picture) -> Iterator[tuple[Still, PILImage]]:
    """Decode the drawing steps one by one."""
    if picture.format == "WEBP" and not WebPImagePlugin.SUPPORTED:
        raise ContentError("This Pillow was built without WebP.")
    for still in picture.stills:
        with _door():
            image = Image.open(io.BytesIO(still.data), formats=(picture.format,))
            size = (still.width, still.height)
            if image.format != picture.format or image.size != size or getattr(image, "n_frames", 1) != still.frames:
                raise ContentError("The picture is damaged: its header and its content disagree.")
            for frame in range(still.frames):
                if frame:
                    image.seek(frame)
                image.load()
                # A decoder that goes on to the next frame draws it into the same picture.
                yield still, image.copy() if still.frames > 1 else image


def _frames(picture: Picture, decoded: PILImage | None) -> Iterator[PILImage]:
    """What a viewer shows, one after the other, upright: `RGB`, or `RGBA` where something is transparent."""
    canvas: PILImage | None = None
    size = (picture.width, picture.height)
    drawn = sum(not still.alone for still in picture.stills)
    drawing = _decoded(picture) if decoded is None else [(picture.stills[0], decoded)]
    for still, image in drawing:
        pixels, *others = _readings(image, still.key)
        if still.alone or still.frames > 1 or (drawn == 1 and pixels.size == size):
            for reading in (pixels, *others):
                yield _upright(reading, still.orientation)
            continue
        fresh = canvas is None
        canvas = canvas or Image.new("RGBA", size, (0, 0, 0, 0))
        before = canvas.copy() if still.after == "restore" else None
        piece, place = pixels.convert("RGBA"), (still.x, still.y)
        if still.over and not fresh:
            canvas.alpha_composite(piece, place)
        else:
            # Also keeps the colours that are fully transparent, which some pipelines show.
            canvas.paste(piece, place)
        for reading in (canvas.copy(), *others):
            yield _upright(reading, still.orientation)
        if still.after == "clear":
            canvas.paste((0, 0, 0, 0), (*place, still.x + still.width, still.y + still.height))
        canvas = before or canvas


def _readings(image: PILImage, key: tuple[int, ...] | None) -> Iterator[PILImage]:
    """One decoded file as `RGB` or `RGBA`; a second time where `convert("RGB")` shows something else."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = image.convert("I")
        yield wide.point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
        yield wide.convert("L").convert("RGB")
    elif key is not None:
        flat = image.convert("RGB")
        same = [
            band.point([255 * (v == k) for v in range(256)]) for band, k in zip(flat.split(), key * 3, strict=False)
        ]
        alpha = ImageChops.invert(ImageChops.darker(ImageChops.darker(same[0], same[1]), same[2]))
        flat.putalpha(alpha)
        yield flat
    elif image.mode == "RGB":
        yield image
    else:
        yield image.convert("RGBA" if image.has_transparency_data else "RGB")


_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: PILImage, orientation: int) -> PILImage:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _opaque(image: PILImage) -> Iterator[PILImage]:
    """The picture without transparency: as it is, or over white, over black and with transparency ignored."""
    if image.mode == "RGB":
        yield image
        return
    alpha = image.getchannel("A")
    plain = image.convert("RGB")
    if alpha.getextrema() != (255, 255):
        for background in ("white", "black"):
            over = Image.new("RGB", image.size, background)
            over.paste(plain, mask=alpha)
            yield over
    yield plain


def _distinct(images: Iterable[PILImage]) -> Iterator[PILImage]:
    seen: set[tuple[tuple[int, int], bytes]] = set()
    for image in images:
        name = (image.size, hashlib.blake2b(image.tobytes(), digest_size=16).digest())
        if name not in seen:
            seen.add(name)
            yield image


__all__ = [
    "DEFAULT_LIMITS", "ImageFacts", "ImageLimits", "ImageSource", "PILImage", "encode", "fit", "load_image",
    "read_source", "render_views", "verified",
]  # fmt: skip
