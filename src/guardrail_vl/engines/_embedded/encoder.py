"""The sentence encoder: texts in, windows of tokens, one vector a window out. ONNX on the CPU.

Knows no heads and no prompts. A window's vector does not depend on what else is in its batch, beyond float rounding:
weights are 8-bit, and activations are quantised row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import tokenizers

from guardrail_vl.engines._embedded.disguises import decoded, revealed
from guardrail_vl.engines._embedded.reading import fold, is_unread, split_sentences
from guardrail_vl.engines.base import Deadline
from guardrail_vl.errors import ConfigurationError

Vector = np.ndarray[Any, np.dtype[np.float32]]
"""Shape (features,) or (windows, features)."""

WINDOW: Final = 256
"""Tokens of one window, its two marks included: the length that the encoder was made for."""
OVERLAP: Final = 64
"""Tokens that neighbouring windows share, so that a sentence at a border is whole in one of them."""
REQUEST_BESIDE: Final = 80
"""Tokens of the request that stand before a response, in each of its windows: of a longer one its two ends."""
SENTENCE: Final = 64
"""Tokens of the longest piece of a sentence that is looked at alone."""
_MULTIPLE: Final = 4
"""Windows are padded to a multiple of this. The runtime's kernels take rows in groups, and what is left over goes
through another one with other rounding; without padding a score would depend on its neighbours (measured: 0.003 in a
vector's numbers, against 1.5e-7 with it)."""
BATCH_TOKENS: Final = 1_024
"""Tokens of a batch, padding included. Bounds both the memory and the wait between looks at the deadline."""

HERE: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Reading:
    """One text, cut into windows."""

    windows: tuple[tuple[int, ...], ...]
    """Token ids of each window, in order: of the text folded and decoded, of the text as it came where folding changed
    it, and of what it may say besides (`disguises`)."""
    unread: bool
    """Whether the encoder can't read (all of) it: another script, no known word, or nothing at all."""


class Encoder:
    """MiniLM-L6 with 8-bit weights. Thread-safe.

    Args:
        folder: Holds `model.onnx` and `tokenizer.json`.
        threads: Batches that one call of `encode_all` runs beside each other.

    Raises:
        ConfigurationError: The files are missing, or this onnxruntime is too old for them (it takes 1.22).
    """

    def __init__(self, folder: Path = HERE, *, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        # One: a batch is too small to be shared out. Several batches run beside each other instead.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # neither package has a public kind for this
            raise ConfigurationError(
                f"onnxruntime {onnxruntime.__version__} can't load the embedded guard's model.",
                hint="Run: pip install --upgrade 'guardrail-vl[embedded]'",
            ) from error
        self._tokenizer.no_padding()
        # "[SEP]" in a text is four signs, not a mark.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._threads = threads
        vocabulary = self._tokenizer.get_vocab()
        self._unknown, self._first, self._last = (vocabulary[mark] for mark in ("[UNK]", "[CLS]", "[SEP]"))
        self.width: int = self._session.get_outputs()[0].shape[1]
        """Numbers in one vector."""

    def read(self, text: str) -> Reading:
        """Cut a text into windows. Whitespace gives none."""
        return self._read(text, (), WINDOW)

    def beside(self, request: str, response: str) -> Reading:
        """A response's windows, each after the request: the encoder reads the two together.

        The request is there in its plainest reading; an empty one is allowed.
        """
        plain = decoded(fold(request))
        before = self._tokens(revealed(plain) or plain)[0]
        if len(before) > REQUEST_BESIDE:
            before = before[: REQUEST_BESIDE // 2] + before[-REQUEST_BESIDE // 2 :]
        return self._read(response, (*before, self._last), WINDOW - len(before) - 1)

    def _read(self, text: str, before: tuple[int, ...], room: int) -> Reading:
        folded = fold(text)
        plain = decoded(folded)
        ids, unknown = self._tokens(plain)
        windows = dict.fromkeys(self._cut(ids, room, OVERLAP))
        for other in (text if text != folded else None, revealed(plain)):
            if other is not None:
                windows.update(dict.fromkeys(self._cut(self._tokens(other)[0], room, OVERLAP)))
        return Reading(tuple((window[0], *before, *window[1:]) for window in windows), is_unread(plain, unknown))

    def sentences(self, text: str) -> tuple[tuple[int, ...], ...]:
        """A text's sentences as windows of their own, in order, each once; none of a text that is only one.

        In a window full of other things, a sentence is averaged away.
        """
        found: dict[tuple[int, ...], None] = {}
        for sentence in split_sentences(decoded(fold(text))):
            found.update(dict.fromkeys(self._cut(self._tokens(sentence)[0], SENTENCE, 0)))
        return tuple(found)

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids without marks, and the spans of the text that have no token."""
        coded = self._tokenizer.encode(text, add_special_tokens=False)
        unknown = [span for token, span in zip(coded.ids, coded.offsets, strict=True) if token == self._unknown]
        return coded.ids, unknown

    def _cut(self, tokens: list[int], size: int, overlap: int) -> Iterator[tuple[int, ...]]:
        """Windows of at most `size` tokens, marks included; each shares `overlap` with the one before."""
        room = size - 2
        for start in range(0, max(len(tokens) - overlap, min(1, len(tokens))), room - overlap):
            yield (self._first, *tokens[start : start + room], self._last)

    def encode(self, windows: Sequence[tuple[int, ...]]) -> Vector:
        """The vectors of one batch of windows, each of length 1; shape (windows, features)."""
        longest = -(-max(map(len, windows)) // _MULTIPLE) * _MULTIPLE
        ids = np.zeros((len(windows), longest), np.int64)
        mask = np.zeros_like(ids)
        for i, window in enumerate(windows):
            ids[i, : len(window)] = window
            mask[i, : len(window)] = 1
        features: Vector = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return features

    def encode_all(self, windows: Sequence[tuple[int, ...]], deadline: Deadline) -> Iterator[tuple[list[int], Vector]]:
        """The vectors of any number of windows, batch by batch, as they are done: their places, and their vectors.

        Args:
            windows: Those that are wanted early first.
            deadline: Looked at before every batch; what comes after it is left out.
        """

        def one(batch: list[int]) -> Vector | None:
            return self.encode([windows[place] for place in batch]) if deadline.remaining() else None

        parts = list(batches(windows))
        if min(self._threads, len(parts)) < 2:
            found = map(one, parts)
            yield from ((part, vectors) for part, vectors in zip(parts, found, strict=True) if vectors is not None)
            return
        # Made for the call: threads that wait for the next one would not survive a fork.
        with ThreadPoolExecutor(min(self._threads, len(parts))) as pool:
            for part, vectors in zip(parts, pool.map(one, parts), strict=True):
                if vectors is not None:
                    yield part, vectors


def batches(windows: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Indices of windows in batches of like length, none above BATCH_TOKENS; early windows come first, roughly."""
    for start in range(0, len(windows), 64):
        block = sorted(range(start, min(start + 64, len(windows))), key=lambda i: len(windows[i]))
        batch: list[int] = []
        for index in block:
            if batch and (len(batch) + 1) * len(windows[index]) > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch
