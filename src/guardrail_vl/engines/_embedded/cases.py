"""From a prompt to windows of tokens: which texts a request and a response are judged as, and what can't be judged.

Used by the engine and by the training of its heads, so that they see the same. Knows no heads and no scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from guardrail_vl.engines._embedded.encoder import Encoder, Vector
from guardrail_vl.engines._embedded.pictures import PictureReader, Seen, together
from guardrail_vl.engines.base import Deadline
from guardrail_vl.errors import ConfigurationError, GuardrailError
from guardrail_vl.prompt_format.base import Prompt, PromptImage, PromptMessage

MAX_TOKENS: Final = 160_000
"""Tokens read of one side of a prompt, every reading of it counted (a text, its windows' overlaps, its sentences: more
than 200,000 characters of English); what follows is reported as not judged."""
CONTEXT_TAIL: Final = 600
"""Characters of what came before, and of the request, that are judged as one text."""
_UNSEEN: Final = "what it shows beyond its text and main object (a vision model sees it: guardrail-vl[local])"
_UNREADABLE: Final = "text in a script, or of a kind, that this model can't read"


@dataclass(slots=True)
class Case:
    """One prompt on its way: which windows its scores are made of."""

    request: list[int] = field(default_factory=list)
    """Rows of the request's windows, of every text it is judged as."""
    sentences: list[int] = field(default_factory=list)
    """Rows of the request's sentences, each alone."""
    response: list[int] = field(default_factory=list)
    """Rows of the response's windows, each read after the request."""
    context: list[int] = field(default_factory=list)
    """Rows of the end of what came before, alone."""
    in_context: list[int] = field(default_factory=list)
    """Rows of that end and the request, as one text."""
    unjudged: list[str] = field(default_factory=list)
    """What can't be judged of it, in words that hold no content."""

    @property
    def rows(self) -> set[int]:
        """Every row that must be encoded before there is a score."""
        return {*self.request, *self.sentences, *self.response, *self.context, *self.in_context}


class WindowTable:
    """The windows of one call, each once, whoever needs it."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._rows: dict[tuple[int, ...], int] = {}
        self.windows: list[tuple[int, ...]] = []
        """Token ids of each row."""

    def read(self, text: str) -> tuple[list[int], bool]:
        """The rows of a text's windows, and whether it can't be read."""
        reading = self._encoder.read(text)
        return self._rows_of(reading.windows), reading.unread

    def beside(self, request: str, response: str) -> tuple[list[int], bool]:
        """The rows of a response's windows, each after the request, and whether the response can't be read."""
        reading = self._encoder.beside(request, response)
        return self._rows_of(reading.windows), reading.unread

    def sentences(self, text: str) -> list[int]:
        """The rows of a text's sentences."""
        return self._rows_of(self._encoder.sentences(text))

    def tokens(self, rows: Iterable[int]) -> int:
        """How many tokens these rows hold, marks included."""
        return sum(len(self.windows[row]) for row in rows)

    def _rows_of(self, windows: Iterable[tuple[int, ...]]) -> list[int]:
        rows = []
        for window in windows:
            row = self._rows.setdefault(window, len(self.windows))
            if row == len(self.windows):
                self.windows.append(window)
            rows.append(row)
        return rows

    def encode(self, needed: Iterable[int], deadline: Deadline) -> tuple[Vector, list[bool]]:
        """The vectors, shape (windows, features), and which of them were made before the deadline.

        Args:
            needed: The rows wanted; the others stay zeros.
            deadline: Looked at before every batch.
        """
        order = sorted(set(needed))
        windows = self.windows
        done = [False] * len(windows)
        features = np.zeros((len(windows), self._encoder.width), np.float32)
        for places, vectors in self._encoder.encode_all([windows[row] for row in order], deadline):
            rows = [order[place] for place in places]
            features[rows] = vectors
            for row in rows:
                done[row] = True
        return features, done


def prepare(prompt: Prompt, pictures: PictureReader, table: WindowTable, deadline: Deadline) -> Case | GuardrailError:
    """Read one prompt's pictures and cut its texts into windows; an error stays its own."""
    case = Case()
    try:
        deadline.check()
        before = request = ""
        for message in prompt.messages:
            if message.role == "system":
                before = message.text[-CONTEXT_TAIL:]
                continue
            seen = _look(message, pictures, table, deadline, case)
            texts = [message.text, *(one.text for one in seen)]
            whole = together(message.text, seen)
            if message.role == "assistant":
                case.response = _add(texts, whole, partial(table.beside, request), table, case, "the response")[0]
                continue
            request = whole
            alone = dict.fromkeys(row for text in texts for row in table.sentences(text))
            case.request, case.sentences = _add(texts, whole, table.read, table, case, "the request", alone)
            if before and whole:
                case.context = table.read(before)[0]
                case.in_context = table.read(f"{before}\n{whole[:CONTEXT_TAIL]}")[0]
    except ConfigurationError:
        raise
    except GuardrailError as error:
        return error
    return case


def _look(
    message: PromptMessage, pictures: PictureReader, table: WindowTable, deadline: Deadline, case: Case
) -> list[Seen]:
    """What is seen in every view of every picture, without repeats; what is not judged is noted."""
    name = "response image" if message.role == "assistant" else "image"
    found: dict[Seen, None] = {}
    number = 0
    for part in message.content:
        if not isinstance(part, PromptImage):
            continue
        # The views of one picture come in a row, from the first.
        if part.view == 0:
            number += 1
            case.unjudged.append(f"{name} {number}: {_UNSEEN}")
        seen = pictures.read(part, deadline)
        found[seen] = None
        if any(map(str.isalnum, seen.text)) and table.read(seen.text)[1]:
            case.unjudged.append(f"{name} {number}: {_UNREADABLE}")
    return list(found)


def _add(
    texts: Sequence[str],
    whole: str,
    read: Callable[[str], tuple[list[int], bool]],
    table: WindowTable,
    case: Case,
    side: str,
    alone: Iterable[int] = (),
) -> tuple[list[int], list[int]]:
    """The rows of one side: of its text, of each picture's text, and of all of it together; and of those alone."""
    rows: dict[int, None] = {}
    for text in dict.fromkeys([*texts, whole]):
        found, unread = read(text)
        rows.update(dict.fromkeys(found))
        if text and text == texts[0] and unread:
            case.unjudged.append(f"{side}: {_UNREADABLE}")
    room = MAX_TOKENS
    kept: list[list[int]] = []
    for group in (rows, alone):
        kept.append([])
        for row in group:
            room -= len(table.windows[row])
            if room < 0:
                break
            kept[-1].append(row)
    if room < 0:
        case.unjudged.append(f"{side}: what follows its first {MAX_TOKENS} tokens")
    return kept[0], kept[1]
