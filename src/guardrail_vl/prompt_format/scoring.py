"""Probability of a label from the log-probabilities of the token that begins it. Knows no label words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from guardrail_vl.prompt_format.base import Token


def label_mass(token: Token, word: str) -> float:
    """Probability that this token begins `word`: the mass of the alternatives that are a beginning of it, or it."""
    seen = dict(token.alternatives) or {}
    seen.setdefault(token.text, token.logprob)
    return sum(math.exp(logprob) for text, logprob in seen.items() if _begins(text.strip().lower(), word.lower()))


def _begins(piece: str, word: str) -> bool:
    return bool(piece) and (word.startswith(piece) or piece.startswith(word))


def share(token: Token, positive: str, negatives: Sequence[str]) -> tuple[float, float]:
    """`positive`'s share of the mass on all the words, and that mass.

    Returns:
        (share in [0, 1], mass in [0, 1]); the share is 0 when the mass is.
    """
    wanted = label_mass(token, positive)
    mass = wanted + sum(label_mass(token, word) for word in negatives)
    # Rounded log-probabilities can add up to a little over 1.
    return (wanted / mass if mass > 0 else 0.0), min(mass, 1.0)


def token_at(tokens: Sequence[Token], position: int) -> Token | None:
    """The token that holds the character at `position` of the joined tokens; None past their end."""
    end = 0
    for token in tokens:
        end += len(token.text)
        if position < end:
            return token
    return None
