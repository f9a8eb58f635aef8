"""Pictures of a prompt, looked at once each: their text, and what they show. A lock, and a short memory.

The prompt check and the response check of one turn show the same pictures; the memory spares the second look.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from guardrail_vl.engines.base import Deadline, late
from guardrail_vl.prompt_format.base import PromptImage

if TYPE_CHECKING:
    from guardrail_vl.engines._embedded.objects import Objects
    from guardrail_vl.engines._embedded.ocr import Ocr

REMEMBERED: Final = 64
"""Pictures of which it is kept in memory what was seen."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen in one view of a picture."""

    text: str
    """The text in it, a line each, from the top."""
    shows: tuple[str, ...]
    """Names of objects."""


def shown(labels: Sequence[str]) -> str:
    """What a picture shows, as the text model reads it; nothing for nothing."""
    return f"The picture shows: {', '.join(labels)}." if labels else ""


def together(text: str, seen: Sequence[Seen]) -> str:
    """A message's text and what was seen in its pictures, as one text."""
    shows = dict.fromkeys(name for one in seen for name in one.shows)
    said = dict.fromkeys((text, *(one.text for one in seen), shown(list(shows))))
    return "\n".join(part for part in said if part.strip())


class PictureReader:
    """Looks at pictures. Thread-safe; its models load with the first picture.

    Args:
        threads: Threads that one reading may use.
    """

    def __init__(self, *, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._models: tuple[Ocr, Objects] | None = None
        self._known: OrderedDict[bytes, Seen] = OrderedDict()

    def read(self, image: PromptImage, deadline: Deadline) -> Seen:
        """The text in one view of a picture, and what it shows.

        Raises:
            EngineUnavailableError: The deadline passed before it could begin. A reading under way is not cut short.
            ContentError: The picture can't be decoded.
            MissingDependencyError: The OCR package is not installed.
        """
        key = hashlib.blake2b(
            image.part.data, digest_size=16, person=f"{image.view}/{image.max_pixels}".encode()[:16]
        ).digest()
        if not self._lock.acquire(timeout=deadline.remaining()):
            raise late()
        try:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            deadline.check()
            ocr, objects = self._load()
            pixels = image.pixels()
            seen = Seen(ocr.read(pixels), objects.names(pixels))
            self._known[key] = seen
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return seen
        finally:
            self._lock.release()

    def _load(self) -> tuple[Ocr, Objects]:
        if self._models is None:
            # Only now: the import and the models cost a text-only guard nothing.
            from guardrail_vl.engines._embedded.objects import Objects
            from guardrail_vl.engines._embedded.ocr import Ocr

            self._models = Ocr(threads=self._threads), Objects(threads=self._threads)
        return self._models
