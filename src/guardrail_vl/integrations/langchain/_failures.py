"""What an error says to whoever sees it: it may quote what a model wrote. Judges nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator


def told(error: BaseException) -> Iterator[str]:
    """What an error says, and those it came from: as a traceback would show it, with the output that it may hold."""
    seen: list[BaseException] = []
    more: list[BaseException | None] = [error]
    while more:
        one = more.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        more += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
        held = (getattr(one, name, None) for name in ("llm_output", "observation"))
        for text in (str(one), *getattr(one, "__notes__", ()), *one.args, *held, *_replied(one)):
            if isinstance(text, str) and text.strip():
                yield text


def _replied(error: BaseException) -> Iterator[str]:
    """The reply that an error of an HTTP client holds: apps show it."""
    body = getattr(error, "body", None)
    if body is not None:
        yield body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=str)
    with contextlib.suppress(Exception):  # a reply whose body was never read says nothing
        yield str(getattr(getattr(error, "response", None), "text", ""))
