"""Pictures for these tests, made here."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (56, 56)) -> bytes:
    """A PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def note(text: str) -> bytes:
    """A PNG with black text on white."""
    image = Image.new("RGB", (640, 120), "white")
    ImageDraw.Draw(image).text((20, 40), text, fill="black", font=ImageFont.load_default(36))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


RED, GREEN = plain((220, 30, 30)), plain((30, 180, 40))
