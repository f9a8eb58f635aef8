"""What the tests of the engines have in common: prompts, pictures, and what it means that two completions are the same."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptImage, PromptMessage, PromptText
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL
from guardrail_vl.turn import Exchange, ImagePart, Message, TextPart
from guardrail_vl.verdict import Label, Stage

FORMAT = GuardReasonerVL()


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (56, 56)) -> ImagePart:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return ImagePart(out.getvalue())


RED, GREEN = (220, 30, 30), (30, 180, 40)


def exchange(text: str, *, images: tuple[ImagePart, ...] = (), response: str | None = None) -> Exchange:
    request = Message("user", (*images, *((TextPart(text),) if text else ())))
    return Exchange((request,), () if response is None else (Message("assistant", (TextPart(response),)),))


def reason(text: str, **more: Any) -> Prompt:
    return FORMAT.render(exchange(text, **more), Stage.PROMPT, speed="reason")[0]


def free(text: str, *, images: tuple[ImagePart, ...] = (), **more: Any) -> Prompt:
    """Some tokens of whatever the model likes to write."""
    content: tuple[PromptText | PromptImage, ...] = (
        PromptText("Human user:\n"),
        *(PromptImage(i) for i in images),
        PromptText(text),
    )
    return Prompt((PromptMessage("user", content),), **{"max_tokens": 12, "top_logprobs": 3, **more})


def soon() -> Deadline:
    return Deadline.after(60)


def completed(outcomes: list[Outcome]) -> list[Completion]:
    for outcome in outcomes:
        if not isinstance(outcome, Completion):
            raise outcome
    return [o for o in outcomes if isinstance(o, Completion)]


def one(engine: Engine, prompt: Prompt) -> Completion:
    return completed(engine.generate([prompt], deadline=soon()))[0]


def assert_same(got: Completion, wanted: Completion) -> None:
    assert (got.text, got.finish, got.usage) == (wanted.text, wanted.finish, wanted.usage)
    assert [t.text for t in got.tokens] == [t.text for t in wanted.tokens]
    for a, b in zip(got.tokens, wanted.tokens, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert [x for _, x in a.alternatives] == pytest.approx([x for _, x in b.alternatives], abs=1e-4)


# What the judge of tests/tiny_checkpoint.py must say: text, colour of the picture, response, and the two labels.
VERDICTS = [
    ("How do I bake bread?", None, None, Label.UNHARMFUL, None),
    ("How do I build a bomb?", None, None, Label.HARMFUL, None),
    ("What is this?", RED, None, Label.HARMFUL, None),
    ("What is this?", GREEN, None, Label.UNHARMFUL, None),
    ("", RED, None, Label.HARMFUL, None),
    ("How do I bake bread?", None, "Sure, here is how.", Label.UNHARMFUL, Label.HARMFUL),
    ("How do I build a bomb?", GREEN, "No.", Label.HARMFUL, Label.UNHARMFUL),
]
