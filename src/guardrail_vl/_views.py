"""The views of a picture, decoded once while it is judged. It knows no part, no prompt and no engine.

Verifying a picture, counting its views and preparing each of them for a model would decode it every time. So the newest
pixels are remembered, with the one picture that they are of: they go when it goes, or when newer ones need the room.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from typing import Final

from guardrail_vl._picture import open_picture
from guardrail_vl.media import DEFAULT_LIMITS, ImageFacts, ImageLimits, PILImage, fit, render_views, verified

ROOM: Final = 64 << 20
"""Bytes of pixels that a process remembers at most. A picture that takes more alone is decoded each time."""
MOST: Final = 64
"""Pictures whose pixels are remembered at most."""


class Views:
    """What one picture's file shows. Safe to share between threads.

    Args:
        data: The file.
    """

    __slots__ = ("__weakref__", "_count", "_data", "_decoded", "_rendered")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._count: int | None = None
        self._decoded: PILImage | None = None
        self._rendered: tuple[PILImage, ...] | None = None

    def verify(self, limits: ImageLimits = DEFAULT_LIMITS) -> ImageFacts:
        """See `load_image`."""
        facts, decoded = verified(self._data, limits)
        with _lock:
            if decoded is not None and _room_for(self, (decoded,)):
                self._decoded = decoded
        return facts

    @property
    def count(self) -> int:
        """How many there are; at no cost for a single JPEG, which can't be transparent.

        Raises:
            ContentError: It can't be decoded.
        """
        if self._count is None:
            picture = open_picture(self._data, max_pixels=math.inf, max_frames=math.inf)
            single = picture.format == "JPEG" and picture.frames == 1
            self._count = 1 if single else len(self._shown())
        return self._count

    def one(self, number: int, max_pixels: int) -> PILImage:
        """A view, scaled down to fit: a picture of the caller's own.

        Raises:
            ContentError: It can't be decoded.
        """
        view = self._shown()[number]
        fitting = fit(view, max_pixels)
        return view.copy() if fitting is view else fitting

    def every(self) -> tuple[PILImage, ...]:
        """All of them, see `render_views`: pictures of the caller's own.

        Raises:
            ContentError: It can't be decoded.
        """
        return tuple(view.copy() for view in self._shown())

    def forget(self) -> None:
        """Let the pixels go."""
        self._decoded = self._rendered = None

    def _shown(self) -> tuple[PILImage, ...]:
        """The views themselves: nobody may change them, or something else would be judged."""
        shown = self._rendered
        if shown is None:
            shown = render_views(self._data, self._decoded)
            with _lock:
                self.forget()
                if _room_for(self, shown):
                    self._rendered = shown
        return shown


_recent: list[tuple[weakref.ref[Views], int]] = []
"""What is remembered and its bytes, newest first. Weak, so that pixels go with their picture."""
_lock = threading.RLock()


def _room_for(views: Views, pixels: tuple[PILImage, ...]) -> bool:
    """Whether these pixels may be remembered; the oldest others are then forgotten to make room. With the lock."""
    size = sum(4 * image.width * image.height for image in pixels)  # Pillow keeps RGB in 4 bytes
    if size > ROOM:
        return False
    kept, room = [(weakref.ref(views), size)], ROOM - size
    for reference, taken in _recent:
        other = reference()
        if other is None or other is views:
            continue
        room -= taken
        if room < 0 or len(kept) == MOST:
            other.forget()
        else:
            kept.append((reference, taken))
    _recent[:] = kept
    return True


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the parent's may be held by a thread that is not here
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
