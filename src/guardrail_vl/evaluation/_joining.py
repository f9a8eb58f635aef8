"""Two samples made one, as the paper's safety-aware data concatenation does: their labels, texts and pictures.

Evaluation (`transforms.join`) and training (`training.concat`) both join with these. Knows no sample and no guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from guardrail_vl.media import PILImage, encode, fit, read_source, render_views
from guardrail_vl.verdict import Label

_MAX_PIXELS: Final = 20_000_000
"""Of two pictures side by side: half of what is read by default."""


def either(*golds: Label | None) -> Label | None:
    """The label of samples that are joined: harmful if any is; else unknown if any is; else unharmful."""
    if Label.HARMFUL in golds:
        return Label.HARMFUL
    return None if None in golds else Label.UNHARMFUL


def texts(*given: str | None) -> str | None:
    """The texts that are there, a blank line between them. None: there is none."""
    there = [text for text in given if text is not None]
    return "\n\n".join(there) if there else None


def pictures(
    first: Sequence[Path | bytes], second: Sequence[Path | bytes], *, max_side: int | None = None
) -> tuple[Path | bytes, ...]:
    """The first picture of each side by side, then the others; where one has none, those of the other as they are.

    Args:
        first: Pictures of the one.
        second: Pictures of the other.
        max_side: See `side_by_side`.

    Raises:
        ContentError: One of them can't be read.
    """
    if not first or not second:
        return (*first, *second)
    return (side_by_side(first[0], second[0], max_side=max_side), *first[1:], *second[1:])


def side_by_side(first: Path | bytes, second: Path | bytes, *, max_side: int | None = None) -> bytes:
    """Both in one PNG, aligned at the top, white where one is shorter. Of an animation, the first view.

    Args:
        first: The one on the left.
        second: The one on the right.
        max_side: The result is scaled down to this width and height at most, in pixels. None: only to 20 million
            pixels.

    Raises:
        ContentError: One of them can't be read.
    """
    views = [_first_view(source) for source in (first, second)]
    whole = Image.new("RGB", (sum(v.width for v in views), max(v.height for v in views)), "white")
    whole.paste(views[0], (0, 0))
    whole.paste(views[1], (views[0].width, 0))
    if max_side is not None:
        whole.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return encode(fit(whole, _MAX_PIXELS))[0]


def _first_view(source: Path | bytes) -> PILImage:
    return render_views(read_source(source))[0]
