"""Safety-aware concatenation: two turns made one, harmful if either is, so that a guard can't look at one half only.

`X = {text_concat(T1, T2), image_merge(I1, I2)}`, and unharmful only if both are (arXiv 2505.11049, equations 4 and 5).
What the paper's released code does otherwise is a switch of `ConcatConfig`. Pure: the same turns and seed give the same
result. Knows no model and no prompt format.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, Literal

from PIL import Image
from pydantic import BaseModel, Field

from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.evaluation import _joining
from guardrail_vl.evaluation._joining import either
from guardrail_vl.media import encode
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label

_DRAWS: Final = 200
"""Pairs that are tried for each that is wanted, where there are too many to try them all."""
_ALL: Final = 100_000
"""Up to so many pairs are all tried, so that "there are none" is true."""


class ConcatConfig(BaseModel, frozen=True, extra="forbid"):
    """How turns are joined. The defaults are the paper's, but for `total`."""

    share: float = Field(default=0.2, ge=0, lt=1)
    """The share of the result that is joined."""
    total: int | None = Field(default=None, ge=1)
    """Turns of the result. None: all turns that are given stay, and joined ones are added until they are `share` of it.
    The paper's 12,000 of 12,000: 2,400 joined, 9,600 drawn from those given, and 2,400 left out (for validation)."""
    seed: int = 42
    """Another one joins other pairs."""
    balance: bool = False
    """Whether pairs are picked so that half of the joined turns are harmful. Without it they are mostly harmful, as one
    harmful half is enough (the paper's own remark). What counts is the label of the request, or of the response where
    that one is not known."""
    max_side: int = Field(default=1024, ge=28)
    """Pictures side by side are scaled down to this width and height, in pixels."""
    layout: Literal["ours", "release"] = "ours"
    """`ours`: request with request, response with response. `release`: two whole transcripts, one after the other."""
    gold: Literal["either", "first"] = "either"
    """`either`: harmful if one is. `first` (the release's fault): the labels of the first turn alone."""
    placeholder: bool = False
    """Whether every turn without a picture gets a white one of 1x1 pixels (release)."""


def concat(turns: Sequence[LabeledTurn], *, config: ConcatConfig | None = None) -> tuple[LabeledTurn, ...]:
    """The turns, and joined ones among them: first those that were given, in their order, then the joined ones.

    Split into training and test sets **before**: a joined turn repeats two others. Joined turns have no reasoning, so
    they are for reinforcement, not for R-SFT. Never joined: a turn with itself, the same two twice, two of one group or
    of one request, or two of which no label is known together.

    Args:
        turns: With ids that are unique.
        config: None: the defaults.

    Returns:
        The id of a joined turn is `first+second`, and so is its group.

    Raises:
        ConfigurationError: An id is there twice, there are too few turns for `total`, or too few pairs that can be
            joined as wanted.
        ContentError: A picture can't be read; the message names the two turns.
    """
    config = config or ConcatConfig()
    ids = {turn.id for turn in turns}
    if len(ids) < len(turns):
        raise ConfigurationError("Two of the turns to join have the same id.")
    chance = random.Random(config.seed)
    kept, wanted = _kept(turns, config, chance)
    joined = []
    for first, second in _pairs(kept, wanted, config, chance):
        made = _join(first, second, config)
        while made.id in ids:  # only where ids have a + of their own
            made = replace(made, id=f"{made.id}+")
        ids.add(made.id)
        joined.append(made)
    result = (*kept, *joined)
    return tuple(map(_with_placeholder, result)) if config.placeholder else result


def _kept(
    turns: Sequence[LabeledTurn], config: ConcatConfig, chance: random.Random
) -> tuple[tuple[LabeledTurn, ...], int]:
    """The turns that stay as they are, and how many are to be joined."""
    if config.total is None:
        return tuple(turns), round(len(turns) * config.share / (1 - config.share))
    wanted = round(config.total * config.share)
    count = config.total - wanted
    if count > len(turns):
        raise ConfigurationError(
            f"A result of {config.total} turns, {wanted} of them joined, takes {count} turns; there are {len(turns)}."
        )
    places = sorted(chance.sample(range(len(turns)), count))
    return tuple(turns[place] for place in places), wanted


# ---- which --------------------------------------------------------------------------------------------------------


def _pairs(
    turns: tuple[LabeledTurn, ...], wanted: int, config: ConcatConfig, chance: random.Random
) -> list[tuple[LabeledTurn, LabeledTurn]]:
    if not config.balance:
        return list(_draw(turns, wanted, chance, lambda one, two: any(_labels(one, two, config)), "can be joined"))
    # Two unharmful ones are rare among many harmful ones: they are drawn among themselves.
    safe = tuple(turn for turn in turns if _decides(turn) is Label.UNHARMFUL)

    def as_wanted(label: Label) -> Callable[[LabeledTurn, LabeledTurn], bool]:
        def fits(one: LabeledTurn, two: LabeledTurn) -> bool:
            request, response = _labels(one, two, config)
            return (request or response) is label

        return fits

    harmful = wanted // 2
    pairs = [
        *_draw(turns, harmful, chance, as_wanted(Label.HARMFUL), "are harmful together"),
        *_draw(safe, wanted - harmful, chance, as_wanted(Label.UNHARMFUL), "are unharmful together"),
    ]
    chance.shuffle(pairs)
    return pairs


def _draw(
    turns: Sequence[LabeledTurn],
    wanted: int,
    chance: random.Random,
    fits: Callable[[LabeledTurn, LabeledTurn], bool],
    what: str,
) -> Iterator[tuple[LabeledTurn, LabeledTurn]]:
    """So many different pairs that fit, each in a random order."""
    possible = math.comb(len(turns), 2)
    tried = min(possible, max(_ALL, _DRAWS * wanted)) if wanted else 0
    found = 0
    for number in chance.sample(range(possible), tried):
        if found == wanted:
            return
        one, two = (turns[place] for place in _pair(number))
        if _group(one) == _group(two):
            continue
        if chance.random() < 0.5:
            one, two = two, one
        if fits(one, two):
            found += 1
            yield one, two
    if found < wanted:
        raise ConfigurationError(
            f"{wanted} pairs are wanted that {what}, and {found} were found among {len(turns)} turns.",
            hint="Give more turns, or ask for a smaller share.",
        )


def _pair(number: int) -> tuple[int, int]:
    """The pair of places with this number, counted from 0: (0, 1), (0, 2), (1, 2), (0, 3), …"""
    higher = (1 + math.isqrt(1 + 8 * number)) // 2
    return number - math.comb(higher, 2), higher


def _group(turn: LabeledTurn) -> object:
    return turn.group or (turn.prompt, turn.images, None if turn.prompt or turn.images else turn.response)


def _decides(turn: LabeledTurn) -> Label | None:
    return turn.prompt_label or turn.response_label


# ---- joined -------------------------------------------------------------------------------------------------------


def _labels(first: LabeledTurn, second: LabeledTurn, config: ConcatConfig) -> tuple[Label | None, Label | None]:
    """Of request and response. A side that is not there says nothing; one whose label is not known makes it unknown."""
    if config.gold == "first":
        return first.prompt_label, first.response_label
    pair = (first, second)
    asked = [t.prompt_label for t in pair if t.prompt is not None or t.images or t.prompt_label is not None]
    answered = [t.response_label for t in pair if t.response is not None]
    return (either(*asked) if asked else None), (either(*answered) if answered else None)


def _join(first: LabeledTurn, second: LabeledTurn, config: ConcatConfig) -> LabeledTurn:
    request, response = _labels(first, second, config)
    prompt, answer = _texts(first, second, config)
    id = f"{first.id}+{second.id}"
    try:
        images = _joining.pictures(first.images, second.images, max_side=config.max_side)
    except ContentError as error:
        raise ContentError(f"The pictures of {id!r} can't be joined: {error.message}", hint=error.hint) from error
    return LabeledTurn(
        id=id,
        prompt=prompt,
        images=images,
        response=answer,
        prompt_label=request,
        response_label=response,
        reasoning=None,
        category=_both(first.category, second.category),
        source=_both(first.source, second.source),
        group=f"{first.group or first.id}+{second.group or second.id}",
        licence=_both(first.licence, second.licence),
        weight=(first.weight + second.weight) / 2,
    )


def _texts(first: LabeledTurn, second: LabeledTurn, config: ConcatConfig) -> tuple[str | None, str | None]:
    if config.layout == "ours":
        return _joining.texts(first.prompt, second.prompt), _joining.texts(first.response, second.response)
    # The prompt format shows all headers but its own as content: see docs/training/concat.md.
    request, other = ((turn.prompt or "").strip() for turn in (first, second))
    answer, answered = ((turn.response or "None").strip() for turn in (first, second))
    if first.response is None and second.response is None:
        begin = f"{request}\n" if request else "" if first.images else "None\n"
        return f"{begin}\nAI assistant:\n{answer} Human user:\n{other}", None
    return first.prompt, f"{answer} Human user:\n{other}\n\nAI assistant:\n{answered}"


def _both(first: str, second: str) -> str:
    return first if first == second else " + ".join(filter(None, (first, second)))


def _with_placeholder(turn: LabeledTurn) -> LabeledTurn:
    return turn if turn.images else replace(turn, images=(_white(),))


def _white() -> bytes:
    return encode(Image.new("RGB", (1, 1), "white"))[0]


__all__ = ["ConcatConfig", "concat"]
