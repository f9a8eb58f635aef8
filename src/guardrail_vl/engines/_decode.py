"""From token ids back to text, token by token: the same text and the same pieces in every engine that sees token ids.

The pieces always add up to the text, and the text ends with the first stop string in it. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from guardrail_vl.errors import MissingDependencyError
from guardrail_vl.prompt_format.base import Token

try:
    from tokenizers.decoders import DecodeStream
except ImportError as error:  # pragma: no cover - the test environment has it
    raise MissingDependencyError("tokenizers", extra="local", needed_for="This engine") from error


class Transcript:
    """The text of one answer as it grows.

    Args:
        tokenizer: A fast tokenizer of transformers.
        stops: Strings after which the text ends.
    """

    def __init__(self, tokenizer: Any, stops: tuple[str, ...]) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream: Any = DecodeStream(skip_special_tokens=False)
        self._stops = stops
        self.text = ""
        self.tokens: list[Token] = []
        """The tokens that were added with a log-probability."""

    def add(self, token: int, logprob: float | None = None, alternatives: Sequence[tuple[str, float]] = ()) -> bool:
        """Take in the next token.

        Returns:
            Whether the text ended with it. What it holds past the stop string is cut off.
        """
        # A character that is spread over several tokens comes with its last one; the others are empty pieces.
        piece = self._stream.step(self._backend, token) or ""
        keep = stopped(self.text, piece, self._stops)
        piece = piece[:keep]
        self.text += piece
        if logprob is not None:
            self.tokens.append(Token(piece, logprob, tuple(alternatives)))
        return keep is not None


@lru_cache(maxsize=200_000)
def piece(tokenizer: Any, token: int) -> str:
    """The text of one token by itself."""
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return text


def stopped(before: str, new: str, stops: tuple[str, ...]) -> int | None:
    """How many characters of `new` to keep so that the text ends with a stop string; None: there is none."""
    ends = []
    for stop in stops:
        start = max(0, len(before) - len(stop) + 1)
        at = (before[start:] + new).find(stop)
        if at >= 0:
            ends.append(start + at + len(stop) - len(before))
    return min(ends) if ends else None
