"""Pictures of a prompt, read once each: a lock around the OCR, and a short memory of what was read.

The prompt check and the response check of one turn show the same pictures; the memory spares the second reading.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from guardrail_vl.engines.base import Deadline, late
from guardrail_vl.prompt_format.base import PromptImage

if TYPE_CHECKING:
    from guardrail_vl.engines._embedded.ocr import Ocr

REMEMBERED: Final = 64
"""Pictures whose text is kept in memory."""


class PictureReader:
    """Reads pictures' text. Thread-safe; the OCR models load with the first picture.

    Args:
        threads: Threads that one reading may use.
    """

    def __init__(self, *, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._ocr: Ocr | None = None
        self._known: OrderedDict[bytes, str] = OrderedDict()

    def read(self, image: PromptImage, deadline: Deadline) -> str:
        """The text in one view of a picture.

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
            text = self._load().read(image.pixels())
            self._known[key] = text
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return text
        finally:
            self._lock.release()

    def _load(self) -> Ocr:
        if self._ocr is None:
            # Only now: the import and the models cost a text-only guard nothing.
            from guardrail_vl.engines._embedded.ocr import Ocr

            self._ocr = Ocr(threads=self._threads)
        return self._ocr
