"""Pictures in: what is refused, what is read, and that nothing a viewer may show goes unseen."""

from __future__ import annotations

import base64
import io
import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from guardrail_vl._views import Views
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.media import (
    DEFAULT_LIMITS,
    ImageFacts,
    ImageLimits,
    encode,
    fit,
    load_image,
    read_source,
    render_views,
)

SECRET = "hunter2"


def scene(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    image = Image.new("RGB", size, (200, 30, 30))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0] // 2 - 1, size[1] // 2 - 1), fill=(20, 180, 40))
    return image.convert(mode)


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def frames(count: int, size: tuple[int, int] = (20, 12)) -> list[Image.Image]:
    return [Image.new("RGB", size, (25 * i, 255 - 25 * i, 90)) for i in range(count)]


def animation(format: str, count: int = 3, **options: Any) -> bytes:
    first, *rest = frames(count)
    return saved(first, format, save_all=True, append_images=rest, duration=100, **options)


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(
    width: int, height: int, depth: int, colour: int, body: bytes, *before: bytes, after: tuple[bytes, ...] = ()
) -> bytes:
    """A PNG from its parts: `body` is the raw scan lines, each with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(body, 9)), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(orientation: int, order: str = "<") -> bytes:
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + magic + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def only(data: bytes) -> Image.Image:
    (view,) = render_views(data)
    assert view.mode == "RGB"
    return view


VALID: dict[str, bytes] = {
    "png": saved(scene(), "PNG"),
    "png-alpha": saved(scene("RGBA"), "PNG"),
    "png-palette": saved(scene().quantize(8), "PNG"),
    "png-bit": saved(scene("1"), "PNG"),
    "jpeg": saved(scene(), "JPEG", exif=exif(6)[0:]),
    "jpeg-progressive": saved(scene(), "JPEG", progressive=True),
    "jpeg-grey": saved(scene("L"), "JPEG"),
    "jpeg-cmyk": saved(scene("CMYK"), "JPEG"),
    "gif": saved(scene().quantize(8), "GIF"),
    "gif-animated": animation("GIF"),
    "apng": animation("PNG"),
    "webp": saved(scene(), "WEBP"),
    "webp-lossless": saved(scene("RGBA"), "WEBP", lossless=True),
    "webp-animated": animation("WEBP"),
    "bmp": saved(scene(), "BMP"),
    "bmp-palette": saved(scene().quantize(8), "BMP"),
    "mpo": saved(scene(), "MPO", save_all=True, append_images=[scene("L")]),
}
TYPES = {
    "png": "image/png", "apng": "image/png", "jpeg": "image/jpeg", "mpo": "image/jpeg", "gif": "image/gif",
    "webp": "image/webp", "bmp": "image/bmp",
}  # fmt: skip


# ---- what is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALID)
def test_every_format_is_read_by_its_content(name: str) -> None:
    facts = load_image(VALID[name])
    assert facts.media_type == TYPES[name.partition("-")[0]]
    assert facts.frames == {"gif-animated": 3, "apng": 3, "webp-animated": 3, "mpo": 2}.get(name, 1)
    views = render_views(VALID[name])
    assert {view.mode for view in views} == {"RGB"}
    assert len(views) == Views(VALID[name]).count >= facts.frames
    assert views[0].size == (facts.width, facts.height)


@pytest.mark.parametrize("name", ["png", "png-palette", "gif", "bmp", "bmp-palette", "webp-lossless"])
def test_lossless_formats_give_the_very_pixels(name: str) -> None:
    assert only(VALID[name]).tobytes() == scene().tobytes()


def test_a_renamed_file_is_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(VALID["jpeg"])
    assert load_image(read_source(path)).media_type == "image/jpeg"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int, order: str) -> None:
    # Where the green corner goes, as the EXIF standard has it.
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    size = (24, 16) if orientation < 5 else (16, 24)
    block = exif(orientation, order)
    for data in (
        saved(scene(), "JPEG", exif=block, quality=95),
        saved(scene(), "WEBP", exif=block, lossless=True),
        saved(scene(), "PNG", exif=block),
    ):
        facts = load_image(data)
        view = only(data)
        assert (facts.width, facts.height) == view.size == size
        x = 2 if corner[1] == "l" else size[0] - 3
        y = 2 if corner[0] == "t" else size[1] - 3
        red, green, _ = pixel(view, x, y)
        assert green > red


def test_a_damaged_exif_block_is_no_reason_to_refuse() -> None:
    for block in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", exif(9)):
        assert only(saved(scene(), "JPEG", exif=block)).size == (24, 16)


def test_16_bit_grey_is_scaled_and_also_cut_off_as_convert_does() -> None:
    wide = Image.new("I;16", (4, 1))
    for x, value in enumerate((0, 200, 0x8080, 0xFFFF)):
        wide.putpixel((x, 0), value)
    scaled, cut = render_views(saved(wide, "PNG"))
    assert [pixel(scaled, x)[0] for x in range(4)] == [0, 1, 128, 255]
    assert [pixel(cut, x)[0] for x in range(4)] == [0, 200, 255, 255]


def test_cmyk_and_ycck_keep_their_colours() -> None:
    # Adobe's inverted CMYK, as cameras and Photoshop write it.
    view = only(saved(scene("CMYK"), "JPEG", quality=95))
    assert all(abs(a - b) < 12 for a, b in zip(pixel(view, 20, 12), (200, 30, 30), strict=True))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_any_depth_with_a_transparent_value(depth: int) -> None:
    # One row of eight pixels, all 0 but the first, which has the highest value; that value is transparent.
    top = (1 << depth) - 1
    row = bytes([top << (8 - depth)]) + bytes(depth - 1)
    data = png(8, 1, depth, 0, b"\0" + row, chunk(b"tRNS", struct.pack(">H", top)))
    white, black = render_views(data)
    assert (pixel(white), pixel(white, 1)) == ((255,) * 3, (0,) * 3)
    assert black.getextrema() == ((0, 0),) * 3
    key = struct.pack(">H", 0)
    assert len(render_views(png(8, 1, depth, 0, b"\0" + row, chunk(b"tRNS", key)))) == 2


def test_rgb_with_a_transparent_colour() -> None:
    row = bytes([10, 20, 30, 200, 20, 30])
    views = render_views(png(2, 1, 8, 2, b"\0" + row, chunk(b"tRNS", struct.pack(">HHH", 10, 20, 30))))
    assert [pixel(view) for view in views] == [(255,) * 3, (0,) * 3, (10, 20, 30)]
    assert {pixel(view, 1) for view in views} == {(200, 20, 30)}


# ---- transparency and animation: nothing hides -----------------------------------------------------------------


def test_text_that_shows_over_one_background_only_is_seen() -> None:
    for colour in ("white", "black"):
        image = Image.new("RGBA", (60, 20), (0, 0, 0, 0))
        ImageDraw.Draw(image).text((2, 2), SECRET, fill=colour)
        views = render_views(saved(image, "PNG"))
        assert any(len(set(view.convert("L").tobytes())) > 1 for view in views)


def test_text_in_fully_transparent_pixels_is_seen() -> None:
    for format in ("PNG", "WEBP"):
        image = Image.new("RGBA", (60, 20), (255, 255, 255, 0))
        ImageDraw.Draw(image).text((2, 2), SECRET, fill=(0, 0, 0, 0))
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        white, black, plain = render_views(saved(image, format, **options))
        assert len(set(white.tobytes())) == len(set(black.tobytes())) == 1
        assert len(set(plain.tobytes())) > 1


def test_an_alpha_channel_without_transparency_adds_nothing() -> None:
    for name in ("png-alpha", "webp-lossless"):
        assert Views(VALID[name]).count == 1
    assert Views(saved(scene("LA"), "PNG")).count == 1


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_every_frame_is_seen(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    views = render_views(animation(format, 4, **options))
    assert [pixel(view) for view in views] == [pixel(frame) for frame in frames(4)]


def test_repeated_frames_are_seen_once() -> None:
    data = png(1, 1, 8, 0, b"\0\x80")
    again = data + b"trailing bytes that no viewer shows"
    assert render_views(again)[0].tobytes() == render_views(data)[0].tobytes()
    first, second = frames(2)
    gif = saved(first, "GIF", save_all=True, append_images=[second, first], duration=[10, 20, 30])
    assert load_image(gif).frames == 3
    assert Views(gif).count == 2


def test_an_apng_still_that_is_no_frame_is_seen_too() -> None:
    first, *rest = frames(3)
    data = saved(first, "PNG", save_all=True, append_images=rest, default_image=True, duration=50)
    assert load_image(data).frames == 3
    assert [pixel(view) for view in render_views(data)] == [pixel(frame) for frame in frames(3)]


def test_animation_frames_are_composed_as_browsers_do() -> None:
    base = Image.new("RGBA", (8, 8), (0, 0, 255, 255))
    patch = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    patch.paste((255, 255, 0, 255), (2, 2, 6, 6))
    # Blended over the first frame; then its place is cleared before the third.
    options: dict[str, Any] = {"save_all": True, "append_images": [patch, patch], "duration": 10}
    data = saved(base, "PNG", blend=[0, 1, 0], disposal=[0, 1, 0], **options)
    views = render_views(data)
    assert (pixel(views[0], 3, 3), pixel(views[0])) == ((0, 0, 255), (0, 0, 255))
    assert (pixel(views[1], 3, 3), pixel(views[1])) == ((255, 255, 0), (0, 0, 255))
    assert len(views) > 2  # the third frame is transparent around the patch


def gif(*blocks: bytes, size: tuple[int, int] = (2, 1), palette: bytes = bytes(3) + b"\xff" * 3) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80 if palette else 0, 0, 0) + palette
    return head + b"".join(blocks) + b";"


def gif_frame(x: int, y: int, width: int, height: int, body: bytes, *, after: int = 0, clear: int = -1) -> bytes:
    control = struct.pack("<BBHB", after << 2 | (clear >= 0), 0, 0, max(clear, 0))
    return b"!\xf9\x04" + control[:1] + control[2:] + b"\0," + struct.pack("<HHHHB", x, y, width, height, 0) + body


# LZW with 2-bit minimum codes: clear, the pixel, end.
BLACK, WHITE = (b"\x02\x02" + bytes([0b01_000_100 | v << 3, 0b1]) + b"\0" for v in (0, 1))


def test_what_a_gif_draws_on_nothing_is_seen() -> None:
    # The first frame covers one of two pixels. A black one on the bare half is seen over white.
    data = gif(gif_frame(0, 0, 1, 1, WHITE), gif_frame(1, 0, 1, 1, BLACK))
    assert load_image(data) == ImageFacts("image/gif", 2, 1, 2)
    rows = {tuple(pixel(view, x)[0] for x in (0, 1)) for view in render_views(data)}
    assert rows == {(255, 255), (255, 0)}


@pytest.mark.parametrize(("after", "rows"), [(0, set()), (1, set()), (2, {(255, 255)}), (3, {(255, 255)})])
def test_gif_disposal(after: int, rows: set[tuple[int, int]]) -> None:
    data = gif(gif_frame(0, 0, 1, 1, BLACK, after=after), gif_frame(1, 0, 1, 1, WHITE))
    # Black, then nothing: over white and over black. Then white beside what is left of it.
    seen = {tuple(pixel(view, x)[0] for x in (0, 1)) for view in render_views(data)}
    assert seen == {(0, 255), (0, 0)} | rows


def frame_control(number: int, width: int = 1, height: int = 1) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 1, 0, 0))


def chunk_of(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) & 1)


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int, bits: int, compression: int, body: bytes, offset: int = 54) -> bytes:
    head = b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, offset)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0) + body


ANIMATED = chunk(b"acTL", struct.pack(">II", 1, 0))
LOSSY = VALID["webp"][12:]
SECOND_SIZE = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01" + bytes(10)


def test_the_builders_of_damaged_files_can_build_whole_ones() -> None:
    assert load_image(webp(LOSSY)).width == 24
    assert load_image(png(1, 1, 8, 0, b"\0\0", ANIMATED, frame_control(0))).frames == 1
    assert pixel(only(bmp(2, -1, 24, 0, b"\1\2\3\4\5\6\0\0")), 1) == (6, 5, 4)


def test_an_os2_bmp() -> None:
    data = b"BM" + struct.pack("<IHHIIHHHH", 34, 0, 0, 26, 12, 2, 1, 1, 24) + b"\1\2\3\4\5\6\0\0"
    assert [pixel(only(data), x) for x in (0, 1)] == [(3, 2, 1), (6, 5, 4)]


def test_pictures_appended_to_a_jpeg_are_seen() -> None:
    hidden = Image.new("RGB", (30, 30), (1, 2, 250))
    for data in (
        saved(scene(), "MPO", save_all=True, append_images=[hidden]),
        VALID["jpeg-progressive"] + b"\0" * 7 + saved(hidden, "JPEG"),
    ):
        assert load_image(data).frames == 2
        assert pixel(render_views(data)[1])[2] > 240
    with pytest.raises(ContentError, match="more than 8 frames"):
        load_image(VALID["jpeg"] * 9)
    with pytest.raises(ContentError, match="cut off"):
        load_image(VALID["jpeg"] + VALID["jpeg"][:-40])


# ---- what is refused -------------------------------------------------------------------------------------------


def refused(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> str:
    with pytest.raises(ContentError) as caught:
        load_image(data, limits)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "an empty file"),
        (b"\x89", "1 byte of"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><text>hunter2</text></svg>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- hunter2 -->\n<SVG>", "SVG"),
        (b"<!doctype HTML><p>hunter2", "HTML"),
        (b"<?xml version='1.0'?><rss/>", "XML"),
        (b"%PDF-1.7 hunter2", "PDF"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x1cftypisom\0\0\0\0", "a video"),
        (b"\0\0\x01\0\x01\0\x10\x10", "ICO"),
        (b"PK\x03\x04hunter2", "ZIP"),
        (b"hunter2 is my password", "text"),
        (b"https://example.org/hunter2.png", "a URL"),
        (b"\x01\x02\x03\x04" * 8, "an unknown format"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, says: str) -> None:
    assert f"looks like {says}" in refused(data) or says in refused(data)


def test_formats_that_pillow_could_open_are_refused_all_the_same() -> None:
    assert "TIFF" in refused(saved(scene(), "TIFF"))
    assert "an icon" in refused(saved(scene(size=(16, 16)), "ICO"))
    assert "JPEG 2000" in refused(saved(scene(), "JPEG2000"))
    for format in ("PPM", "TGA", "PCX", "SGI", "EPS", "DDS"):
        refused(saved(scene(), format))


@pytest.mark.parametrize("name", VALID)
def test_every_truncation_is_refused(name: str) -> None:
    data = VALID[name]
    if name == "mpo":  # cut between its pictures, it is a whole JPEG
        data = VALID["jpeg"]
    for length in range(len(data)):
        refused(data[:length])


def test_a_50_megapixel_png_is_refused_from_its_header() -> None:
    data = png(10_000, 5_000, 8, 2, b"")  # no pixel data to decode: only the header can tell
    assert "10000 x 5000" in refused(data)


@pytest.mark.parametrize("format", ["JPEG", "GIF", "WEBP", "BMP"])
def test_size_is_refused_from_the_header_in_every_format(format: str) -> None:
    limits = ImageLimits(max_pixels=24 * 16 - 1)
    data = saved(scene(), format)
    assert "24 x 16" in refused(data, limits)
    assert load_image(data, ImageLimits(max_pixels=24 * 16)).width == 24


def test_pixels_of_all_frames_count_together() -> None:
    data = animation("GIF", 4)
    assert "in 4 frames" in refused(data, ImageLimits(max_pixels=4 * 20 * 12 - 1))
    assert load_image(data, ImageLimits(max_pixels=4 * 20 * 12)).frames == 4


def test_bytes_are_capped() -> None:
    limits = ImageLimits(max_bytes=len(VALID["png"]) - 1)
    assert "bytes" in refused(VALID["png"], limits)
    with pytest.raises(ContentError, match="bytes"):
        read_source(VALID["png"], limits)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_frames_are_capped(format: str) -> None:
    assert "more than 8 frames" in refused(animation(format, 9))
    assert load_image(animation(format, 8)).frames == 8


def test_limits_must_make_sense() -> None:
    for wrong in ({"max_bytes": 0}, {"max_pixels": -1}, {"max_frames": 0}, {"max_pixels": 100_000_000}):
        with pytest.raises(ConfigurationError):
            ImageLimits(**wrong)


def test_a_zip_bomb_in_png_costs_nothing() -> None:
    bomb = zlib.compress(bytes(64 * 1024 * 1024), 9)
    text = chunk(b"zTXt", b"Comment\0\0" + bomb)
    profile = chunk(b"iCCP", b"x\0\0" + bomb)
    international = chunk(b"iTXt", b"Comment\0\x01\0\0\0" + bomb)
    started = time.perf_counter()
    data = png(1, 1, 8, 0, b"\0\x80", text, profile, international, after=(text,) * 5)
    assert only(data).size == (1, 1)
    # A picture of 4 x 4 pixels whose data unpack to 64 MiB: what it shows is what fits.
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", bomb) + chunk(b"IEND", b"")
    assert load_image(data).width == 4
    assert time.perf_counter() - started < 2


def test_empty_pictures_are_refused() -> None:
    assert "no pixels" in refused(png(0, 5, 8, 0, b""))
    assert "no pixels" in refused(gif(gif_frame(0, 0, 0, 1, BLACK)))
    assert "no picture" in refused(gif())


@pytest.mark.parametrize(
    "data",
    [
        png(1, 1, 8, 0, b"\0\0", chunk(b"gAMA", struct.pack(">I", 2_300))),  # another picture where gamma is honoured
        png(1, 1, 16, 0, b"\0\0\0", chunk(b"tRNS", b"\0\0")),
        png(1, 1, 8, 0, b"\0\0", chunk(b"tRNS", b"\x01\0")),
        png(1, 1, 8, 3, b"\0\0"),  # no palette
        png(1, 1, 8, 3, b"\0\0", chunk(b"PLTE", bytes(3)), chunk(b"tRNS", bytes(2))),
        png(1, 1, 8, 4, b"\0\0\0", chunk(b"tRNS", b"\0\0")),
        png(1, 1, 8, 0, b"\0\0", chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0))),
        png(1, 1, 8, 0, b"\0\0", chunk(b"CgBI", b"")),
        png(1, 1, 8, 0, b"\0\0", after=(chunk(b"tEXt", b"x"), chunk(b"IDAT", b""))),
        png(1, 1, 8, 0, b"\0\0", chunk(b"acTL", struct.pack(">II", 1, 0))),  # declares a frame it lacks
        png(1, 1, 8, 0, b"\0\0", chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 1, 0, 0))),
        png(1, 1, 8, 0, b"\0\0", chunk(b"acTL", struct.pack(">II", 1, 0)), chunk(b"acTL", struct.pack(">II", 1, 0))),
        png(1, 1, 8, 3, b"\0\0", chunk(b"PLTE", bytes(3)), chunk(b"PLTE", bytes(3))),
        png(1, 1, 8, 0, b"\0\0", ANIMATED, frame_control(0, 2, 1)),  # outside the canvas
        png(2, 1, 8, 0, b"\0\0\0", ANIMATED, frame_control(0)),  # the first frame does not fill it
        png(1, 1, 8, 0, b"\0\0", ANIMATED, frame_control(1)),  # out of order
        png(1, 1, 8, 0, b"\0\0", ANIMATED, frame_control(0), frame_control(1)),
        png(1, 1, 8, 0, b"\0\0", ANIMATED, after=(frame_control(0),)),  # a frame without pixels
        png(1, 1, 8, 0, b"\0\0", ANIMATED, after=(chunk(b"fdAT", bytes(9)),)),
        png(1, 1, 8, 0, b"\0\0", after=(ANIMATED,)),
        webp(LOSSY, LOSSY),
        webp(LOSSY, chunk_of(b"ANMF", bytes(16))),
        webp(chunk_of(b"VP8X", bytes(10)), LOSSY),  # two sizes
        webp(chunk_of(b"VP8X", bytes([2, *bytes(9)]))),  # an animation without frames
        webp(chunk_of(b"VP8 ", bytes(20))),
        webp(chunk_of(b"VP8L", bytes(20))),
        webp(chunk_of(b"XXXX", b"")),
        b"\xff\xd8\xff\xd9",
        VALID["jpeg"].replace(b"\xff\xc0", SECOND_SIZE + b"\xff\xc0", 1),
        VALID["jpeg"][:-2] + b"\xff\xdc\x00\x04\x00\x10\xff\xd9",
        bmp(2, 1, 8, 1, b"\x02\x00\x00\x01"),  # run lengths
        bmp(2, 1, 24, 0, bytes(8), offset=20),
        gif(gif_frame(1, 0, 2, 1, BLACK)),  # outside the screen
        gif(gif_frame(0, 0, 1, 1, BLACK), palette=b""),
        gif(b"!\x01\x0c" + bytes(12) + b"\x02hi\0", gif_frame(0, 0, 1, 1, BLACK)),
        gif(b"\x77", gif_frame(0, 0, 1, 1, BLACK)),
        VALID["jpeg"][:2] + b"junk" + VALID["jpeg"][2:],
        VALID["bmp-palette"][:54] + b"\0\0\0\0\xff\xff\xff\0" + VALID["bmp-palette"][62:],  # Pillow: 1 bit a pixel
    ],
)
def test_what_decoders_read_differently_is_refused(data: bytes) -> None:
    refused(data)


def test_a_wrong_checksum_is_refused() -> None:
    data = bytearray(VALID["png"])
    data[data.index(b"IDAT") + 8] ^= 1
    assert "checksum" in refused(bytes(data))


def test_a_jpeg_that_asks_for_endless_passes_is_refused() -> None:
    data = VALID["jpeg-progressive"]
    at = data.rindex(b"\xff\xda")
    assert "passes" in refused(data[:at] + data[at:-2] * 101 + data[-2:])


# ---- hostile bytes ---------------------------------------------------------------------------------------------


def judged_or_refused(data: bytes) -> None:
    """The law: a picture that loads can be shown; one that can't raises `ContentError` and nothing else."""
    started = time.perf_counter()
    try:
        facts = load_image(data, ImageLimits(max_pixels=4_000_000))
    except ContentError:
        pass
    else:
        views = render_views(data)
        assert len(views) == Views(data).count >= 1
        assert facts.frames >= 1
    assert time.perf_counter() - started < 5


law = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
magics = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\xff\0\0\0WEBPVP8X",
    b"BM",
]


@law
@given(st.sampled_from(magics), st.binary(max_size=400))
@example(b"GIF89a", b"")
def test_arbitrary_bytes(magic: bytes, rest: bytes) -> None:
    judged_or_refused(magic + rest)


def resealed(data: bytes) -> bytes:
    """A PNG with its checksums made right, so that a mutation reaches the decoder."""
    out, pos = [data[:8]], 8
    while pos + 8 <= len(data):
        length = int.from_bytes(data[pos : pos + 4], "big")
        body = data[pos + 4 : pos + 8 + length]
        out.append(data[pos : pos + 4] + body + struct.pack(">I", zlib.crc32(body)))
        pos += 12 + length
    return b"".join(out)


@law
@given(st.sampled_from(sorted(VALID)), st.integers(0, 2**32), st.integers(1, 8))
def test_mutated_files(name: str, seed: int, count: int) -> None:
    chance = random.Random(seed)
    data = bytearray(VALID[name])
    for _ in range(count):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                del data[at : at + chance.randrange(1, 9)]
            case _:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
    judged_or_refused(bytes(data))
    if name.endswith("png") or name.startswith("png"):
        judged_or_refused(resealed(bytes(data)))


def hostile() -> dict[str, Callable[[], bytes]]:
    size = 3 * 1024 * 1024
    return {
        "jpeg of fill bytes": lambda: b"\xff\xd8" + b"\xff" * size,
        "jpeg of empty segments": lambda: b"\xff\xd8" + b"\xff\xfe\x00\x02" * (size // 4),
        "jpeg of stuffing": lambda: VALID["jpeg"][:-2] + b"\xff\x00" * (size // 2),
        "jpeg then starts": lambda: VALID["jpeg"] + b"\xff\xd8\xff\xe0\x00\x02\xff" * (size // 7),
        "png of empty chunks": lambda: png(1, 1, 8, 0, b"\0\0", chunk(b"IDAT", b"") * (size // 12)),
        "gif of empty extensions": lambda: gif(b"!\xfe\x00" * (size // 3)),
        "gif of small blocks": lambda: gif(b"!\xfe" + b"\x01x" * (size // 2) + b"\0"),
        "webp of empty chunks": lambda: b"RIFF" + struct.pack("<I", size) + b"WEBP" + b"JUNK\0\0\0\0" * (size // 8),
        "spaces": lambda: b" " * size,
        "comments": lambda: b"<!--" * (size // 4),
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_files_are_refused_fast(name: str) -> None:
    data = hostile()[name]()
    started = time.perf_counter()
    refused(data)
    assert time.perf_counter() - started < 5


def test_many_threads_at_once() -> None:
    expected = {name: [view.tobytes() for view in render_views(data)] for name, data in VALID.items()}
    work = list(VALID) * 6
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: [view.tobytes() for view in render_views(VALID[name])], work))
    assert found == [expected[name] for name in work]


# ---- sources ---------------------------------------------------------------------------------------------------


def test_bytes_and_paths(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(VALID["png"])
    assert read_source(VALID["png"]) is VALID["png"]
    assert read_source(path) == read_source(str(path)) == VALID["png"]


def test_paths_that_can_not_be_read(tmp_path: Path) -> None:
    named = tmp_path / SECRET
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    large = tmp_path / "large.png"
    large.write_bytes(VALID["png"])
    tight = ImageLimits(max_bytes=10)
    for source, limits, says in (
        (named, DEFAULT_LIMITS, "no such file"),
        (str(named), DEFAULT_LIMITS, "no such file"),
        (tmp_path, DEFAULT_LIMITS, "not a file"),
        (fifo, DEFAULT_LIMITS, "not a file"),
        ("a\0b", DEFAULT_LIMITS, "can't be read"),
        (large / "x", DEFAULT_LIMITS, "can't be read"),
        (large, tight, "more than 10 bytes"),
    ):
        with pytest.raises(ContentError, match=says) as caught:
            read_source(source, limits)
        assert SECRET not in str(caught.value)


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_data_urls() -> None:
    assert read_source(data_url(VALID["png"])) == VALID["png"]
    assert load_image(read_source(data_url(VALID["gif"], "image/svg+xml"))).media_type == "image/gif"
    assert read_source("DATA:;charset=x;BASE64," + base64.b64encode(b"ab").decode()) == b"ab"


@pytest.mark.parametrize(
    "url",
    [
        "data:", "data:,", "data:image/png;base64", "data:image/png,%89PNG", "data:image/svg+xml;utf8,<svg/>",
        "data:;base64,a", "data:;base64,aGk", "data:;base64,aGk=\n", "data:;base64,aG k=", "data:;base64,-_==",
        "data:;base64,aGk%3D", "data:;base64,aGk==", "data:;base64,aGkéé", "data:" + "x" * 2000 + ";base64,aGk=",
    ],
)  # fmt: skip
def test_data_urls_are_read_strictly(url: str) -> None:
    with pytest.raises(ContentError, match="base64"):
        read_source(url)


def test_data_urls_are_capped_before_they_are_decoded() -> None:
    with pytest.raises(ContentError, match="more than 10 bytes"):
        read_source("data:;base64," + "!" * 400, ImageLimits(max_bytes=10))


def test_remote_and_other_urls_are_refused() -> None:
    for url in (f"https://example.org/{SECRET}", f"HTTP://example.org/{SECRET}"):
        with pytest.raises(ContentError, match="not fetched by default") as caught:
            read_source(url)
        assert "fetch_images=True" in str(caught.value)
        assert SECRET not in str(caught.value)
    for url in (f"file:///etc/{SECRET}", f"ftp://example.org/{SECRET}", "blob:x", "javascript:x"):
        with pytest.raises(ContentError, match="Only data: URLs") as caught:
            read_source(url)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "I;16", "CMYK", "YCbCr"]
)
def test_pictures_in_memory(mode: str) -> None:
    if mode == "I;16":
        image = Image.new("I;16", (24, 16), 5000)
    elif mode in ("PA", "La", "RGBa"):
        image = scene({"PA": "LA", "La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    else:
        image = scene(mode)
    data = read_source(image)
    assert load_image(data) == ImageFacts("image/png", 24, 16, 1)
    if mode not in ("I;16", "PA"):
        assert (
            only(data).tobytes()
            == image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")).convert("RGB").tobytes()
        )


def test_a_picture_in_memory_keeps_its_transparency_and_loses_its_metadata() -> None:
    image = scene().quantize(8)
    image.info["transparency"] = 0
    image.info["comment"] = SECRET
    opened = Image.open(io.BytesIO(saved(scene(), "PNG", exif=exif(6))))
    assert Views(read_source(image)).count == 3
    assert SECRET.encode() not in read_source(image)
    assert only(read_source(opened)).size == (24, 16)  # as the caller's own pixels are
    assert image.info["comment"] == SECRET


def test_pictures_in_memory_that_can_not_be_judged() -> None:
    cut = Image.open(io.BytesIO(VALID["png"][:-30]))
    noise = Image.frombytes("RGB", (64, 64), random.Random(1).randbytes(64 * 64 * 3))
    for image, limits, says in (
        (Image.open(io.BytesIO(VALID["gif-animated"])), DEFAULT_LIMITS, "animated"),
        (Image.new("F", (2, 2)), DEFAULT_LIMITS, "mode F"),
        (Image.new("I", (2, 2)), DEFAULT_LIMITS, "mode I"),
        (Image.new("RGB", (0, 3)), DEFAULT_LIMITS, "no pixels"),
        (Image.new("RGB", (30, 30)), ImageLimits(max_pixels=899), "pixels"),
        (noise, ImageLimits(max_bytes=5000), "lossless"),
        (cut, DEFAULT_LIMITS, "damaged"),
    ):
        with pytest.raises(ContentError, match=says):
            read_source(image, limits)


def test_other_arguments_are_a_mistake_of_the_caller() -> None:
    wrongs: list[Any] = [7, None, ["a.png"], object()]
    for wrong in wrongs:
        with pytest.raises(ConfigurationError, match="Can't read a picture from"):
            read_source(wrong)


# ---- fit and encode --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 300), st.booleans(), st.integers(1, 5000))
def test_fit_never_exceeds_never_grows_and_keeps_the_shape(a: int, b: int, swap: bool, most: int) -> None:
    size = (b, a) if swap else (a, b)
    image = Image.new("L", size)
    small = fit(image, most)
    assert small.width * small.height <= max(most, 1)
    assert small.width <= size[0]
    assert small.height <= size[1]
    if size[0] * size[1] <= most:
        assert small is image
    elif min(small.size) > 8:
        assert abs(small.width / small.height / (size[0] / size[1]) - 1) < 0.25


def test_fit_averages_rather_than_picks() -> None:
    # Single black pixels on a grid: picking would give all black or all white.
    image = Image.new("L", (400, 400), 255)
    for x in range(0, 400, 4):
        for y in range(0, 400, 4):
            image.putpixel((x, y), 0)
    values = fit(image, 100 * 100).tobytes()
    assert 150 < min(values) <= max(values) < 250


def test_encode_is_lossless() -> None:
    data, media_type = encode(scene())
    assert media_type == load_image(data).media_type == "image/png"
    assert only(data).tobytes() == scene().tobytes()
