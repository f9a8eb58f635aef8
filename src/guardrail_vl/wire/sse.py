"""Server-sent events: bytes in, frames out, byte-faithful. Knows nothing of what the events mean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from guardrail_vl.errors import ContentError

MAX_FRAME: Final = 8_000_000
"""Bytes of one frame; a longer one is refused (`ContentError`)."""

# A blank line ends a frame. Line ends are LF, CRLF or CR, as the standard has it.
_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE: Final = re.compile(r"\r\n|\n|\r")
# What servers send so that a connection stays open, or is opened again: no content.
_KEEP_ALIVE: Final = re.compile(
    r"|:\s*(keep-?alive|OPENROUTER PROCESSING|ping( - [0-9T:.+ -]+)?)?\s*|(id|retry):\s*\d*"
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One event as it came."""

    raw: bytes = field(repr=False)
    """Its own bytes, blank line included. All frames' bytes, joined, are the stream's."""
    event: str = ""
    """The event's name; empty if it has none."""
    data: str | None = field(default=None, repr=False)
    """Its data lines, joined with newlines. None: a comment or keep-alive, without data."""
    aside: str = field(default="", repr=False)
    """Text of all its other lines (comments, ids, unknown fields), well-known keep-alives left out."""


class FrameSplitter:
    """Cuts a stream of bytes into frames, however it was chunked."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """The frames that this chunk completes.

        Raises:
            ContentError: A frame is longer than `MAX_FRAME`.
        """
        self._buffer += chunk
        while (match := _END.search(self._buffer, self._scanned)) is not None:
            # A CR at the very end may be half of a CRLF: wait for what follows.
            if match.end() == len(self._buffer) and self._buffer.endswith(b"\r"):
                break
            raw = bytes(self._buffer[: match.end()])
            del self._buffer[: match.end()]
            self._scanned = 0
            yield parse_frame(raw)
        self._scanned = max(0, len(self._buffer) - 4)
        if len(self._buffer) > MAX_FRAME:
            raise ContentError(f"A frame of the event stream is longer than {MAX_FRAME} bytes.")

    def flush(self) -> Iterator[Frame]:
        """What is left when the stream ends without a blank line."""
        raw = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        if raw:
            yield parse_frame(raw)


def parse_frame(raw: bytes) -> Frame:
    """A frame of its bytes.

    Raises:
        ContentError: The bytes are not UTF-8.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ContentError("A frame of the event stream is not valid UTF-8.") from None
    event = ""
    data: list[str] = []
    aside: list[str] = []
    for line in _LINE.split(text.removeprefix("\ufeff")):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif not _KEEP_ALIVE.fullmatch(line):
            aside.append(line)
    return Frame(raw, event, "\n".join(data) if data else None, "\n".join(aside))
