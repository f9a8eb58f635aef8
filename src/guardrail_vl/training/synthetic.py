"""A small moderation task, made of nothing: turns of text and pictures whose labels follow a rule that can be learnt.

For tests, for the smoke recipe and for learning what a setting does. A request in words is harmful if its verb is; a
picture is if its colour is dangerous; of both together, if exactly one of them is, so neither alone tells. A response
is harmful if the request is and the response complies. It says nothing about real harm.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, Literal

from PIL import Image, ImageDraw

from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label

Kind = Literal["text", "image", "text-image"]

SIZE: Final = 56
"""Sides of a picture, in pixels."""
COLOURS: Final = {
    "red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 220), "yellow": (235, 220, 40),
    "purple": (140, 30, 160), "orange": (240, 140, 20), "cyan": (40, 210, 220), "grey": (120, 120, 120),
}  # fmt: skip
DANGEROUS: Final = frozenset({"red", "purple", "orange", "grey"})
SHAPES: Final = ("circle", "square", "triangle")
BAD_VERBS: Final = ("burn", "steal", "smash", "poison", "forge", "hack", "shoot", "bomb")
GOOD_VERBS: Final = ("paint", "wash", "draw", "sell", "count", "clean", "move", "photograph")
THINGS: Final = ("box", "car", "letter", "house", "phone", "garden", "lamp", "boat")
REQUESTS: Final = (
    "How do I {verb} the {thing}?",
    "Please help me {verb} this {thing}.",
    "Tell me how to {verb} a {thing} like this.",
    "I want to {verb} the {thing}. What should I do?",
)
COMPLIES: Final = ("Sure, here is how.", "Of course, first do this.", "Yes, follow these steps.")
REFUSES: Final = ("Sorry, I cannot help.", "I will not do that.", "No, that is not allowed.")
FILLERS: Final = ("Let me think about it.", "I look at all of it again.", "This takes some care.")

_KINDS: Final[tuple[Kind, ...]] = ("text", "image", "text-image", "text-image")


def turns(count: int, *, seed: int = 0, kind: Kind | None = None, answered: float = 1.0) -> tuple[LabeledTurn, ...]:
    """So many turns, with labels and reasoning.

    Args:
        count: How many.
        seed: The same seed gives the same turns.
        kind: Only these. None: a quarter texts, a quarter pictures, half of both.
        answered: The share of those with words that have a response. A guard that is to judge requests alone has to
            see some alone, too.
    """
    chance = random.Random(seed)
    return tuple(
        _turn(f"{seed}-{number}", chance, chance.choice(_KINDS) if kind is None else kind, answered)
        for number in range(count)
    )


def noisy(
    given: tuple[LabeledTurn, ...], *, seed: int = 0, wrong: float = 0.3, filler: int = 3
) -> tuple[LabeledTurn, ...]:
    """The same with wrong conclusions and idle sentences: what a model learns that reinforcement then has to mend.

    Args:
        given: From `turns`.
        seed: Of what goes wrong.
        wrong: The share of turns with other labels.
        filler: Idle sentences in a reasoning, at most.
    """
    chance = random.Random(seed)
    return tuple(_noisy(turn, chance, wrong, filler) for turn in given)


def corpus(count: int = 400) -> Iterator[str]:
    """Texts of such turns, for training a tokenizer."""
    for turn in turns(count, seed=99):
        yield "\n".join(part for part in (turn.prompt, turn.response, turn.reasoning) if part)
    yield from FILLERS


def _turn(id: str, chance: random.Random, kind: Kind, answered: float) -> LabeledTurn:
    bad = chance.random() < 0.5
    verb, thing = chance.choice(BAD_VERBS if bad else GOOD_VERBS), chance.choice(THINGS)
    colour, shape = chance.choice(sorted(COLOURS)), chance.choice(SHAPES)
    dangerous = colour in DANGEROUS
    harmful = {"text": bad, "image": dangerous, "text-image": bad != dangerous}[kind]
    complies = chance.random() < 0.5
    # A picture alone has no answer: it is judged before a model sees it.
    answer = None if kind == "image" else chance.choice(COMPLIES if complies else REFUSES)
    if answered < 1 and chance.random() >= answered:
        answer = None
    request = _label(harmful)
    response = None if answer is None else _label(harmful and complies)
    steps = []
    if kind != "image":
        steps.append(f"The verb is {verb}, {'bad' if bad else 'fine'}.")
    if kind != "text":
        steps.append(f"The picture is a {colour} {shape}, {'danger' if dangerous else 'safe'}.")
    steps.append(f"So the request is {request}.")
    if response is not None:
        steps.append(f"The response {'complies' if complies else 'refuses'}, so it is {response}.")
    return LabeledTurn(
        id=id,
        prompt=None if kind == "image" else chance.choice(REQUESTS).format(verb=verb, thing=thing),
        images=() if kind == "text" else (_picture(colour, shape, chance),),
        response=answer,
        prompt_label=request,
        response_label=response,
        reasoning=" ".join(steps),
        category=kind,
        source="synthetic",
        group=id,
        licence="Apache-2.0",
    )


def _noisy(turn: LabeledTurn, chance: random.Random, wrong: float, filler: int) -> LabeledTurn:
    idle = [chance.choice(FILLERS) for _ in range(chance.randint(0, filler))]
    turn = replace(turn, reasoning=" ".join([*idle, turn.reasoning or ""]).strip())
    if chance.random() >= wrong:
        return turn
    request, response = turn.prompt_label, turn.response_label
    if response is None or chance.random() < 0.5:
        request = _other(request)
    else:
        response = _other(response)
    return replace(turn, prompt_label=request, response_label=response)


def _other(label: Label | None) -> Label | None:
    return None if label is None else _label(label is Label.UNHARMFUL)


def _label(harmful: bool) -> Label:
    return Label.HARMFUL if harmful else Label.UNHARMFUL


def _picture(colour: str, shape: str, chance: random.Random) -> bytes:
    picture = Image.new("RGB", (SIZE, SIZE), tuple(chance.randint(200, 255) for _ in range(3)))
    draw = ImageDraw.Draw(picture)
    radius = chance.randint(14, 20)
    x, y = (SIZE // 2 + chance.randint(-5, 5) for _ in range(2))
    fill = tuple(max(0, min(255, value + chance.randint(-20, 20))) for value in COLOURS[colour])
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
