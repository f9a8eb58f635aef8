"""Keeps back the progress bars of transformers while weights are loaded or saved: a library prints nothing unasked.

What whoever uses the library has set is left as it was; the bars of downloads are not touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from guardrail_vl.engines._inputs import hf


class _Hush:
    """The setting is the process's, and threads may load at once: the last one that is out restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore: Callable[[], object] = bool

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._restore = _hushed(hf.utils.logging)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._restore()


_hush = _Hush()


def without_bars() -> _Hush:
    """No bar of transformers within the `with` block."""
    return _hush


def _hushed(logging: Any) -> Callable[[], object]:
    """Switch the bars off; what switches them on again is returned."""
    if hasattr(logging, "set_tqdm_hook"):
        before = logging.set_tqdm_hook(lambda factory, args, kwargs: logging.EmptyTqdm(*args, **kwargs))
        return lambda: logging.set_tqdm_hook(before)
    # An older transformers: there the setting is that of downloads too.
    if not logging.is_progress_bar_enabled():
        return bool
    logging.disable_progress_bar()
    again: Callable[[], object] = logging.enable_progress_bar
    return again
