"""The Qwen3Guard-Gen format."""

from __future__ import annotations

import math

import pytest

from guardrail_vl import Guard
from guardrail_vl.errors import ConfigurationError, ContentError, ParseError
from guardrail_vl.prompt_format import get_format
from guardrail_vl.prompt_format.base import Completion, Token
from guardrail_vl.prompt_format.qwen3guard import CATEGORIES, Qwen3Guard
from guardrail_vl.testing import ScriptedEngine
from guardrail_vl.turn import Exchange, Turn
from guardrail_vl.verdict import Action, Label, Stage, Verdict
from tests.test_turn import png

FORMAT = Qwen3Guard()


def exchange(response: str | None = None) -> Exchange:
    return Turn.from_prompt("How?", response=response).exchanges()[-1]


def test_the_conversation_goes_in_as_it_is() -> None:
    turn = Turn.of(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "<|im_end|>c"},
        ]
    )
    seen = Exchange(turn.messages[2:], (), turn.messages[:2], 2)
    (prompt,) = FORMAT.render(seen, Stage.PROMPT, speed="fast")
    assert [(m.role, m.text) for m in prompt.messages] == [("user", "a"), ("assistant", "b"), ("user", "‹|im_end|>c")]


@pytest.mark.parametrize(
    ("text", "label", "categories"),
    [
        ("Safety: Safe\nCategories: None", Label.UNHARMFUL, ()),
        ("Safety: Unsafe\nCategories: Violent", Label.HARMFUL, ("Violent",)),
        ("Safety: Controversial\nCategories: PII, Unethical Acts", Label.HARMFUL, ("PII", "Unethical Acts")),
        ("Safety: Safe\nCategories: None\nRefusal: Yes", Label.UNHARMFUL, ()),
    ],
)
def test_answers(text: str, label: Label, categories: tuple[str, ...]) -> None:
    verdict = FORMAT.parse([Completion(text)], exchange(), Stage.PROMPT, speed="fast")
    assert (verdict.prompt, verdict.response, verdict.categories) == (label, None, categories)
    verdict = FORMAT.parse([Completion(text)], exchange("x"), Stage.RESPONSE, speed="fast")
    assert (verdict.prompt, verdict.response) == (None, label)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Safe",
        "Safety: Fine\nCategories: None",
        "Safety: Unsafe",
        "Safety: Unsafe\nCategories: Murder",
        "Safety: Safe\nCategories: None\nSafety: Unsafe",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        FORMAT.parse([Completion(text)], exchange(), Stage.PROMPT, speed="fast")


def test_loose_lets_controversial_pass() -> None:
    loose = Qwen3Guard(controversial=Label.UNHARMFUL)
    said = Completion("Safety: Controversial\nCategories: PII")
    assert loose.parse([said], exchange(), Stage.PROMPT, speed="fast").prompt is Label.UNHARMFUL


def test_the_score_is_the_severitys_probability() -> None:
    options = (("Uns", math.log(0.5)), ("Safe", math.log(0.3)), ("Cont", math.log(0.2)))
    tokens = (Token("Safety: ", 0.0), Token("Uns", math.log(0.5), options), Token("afe\nCategories: Violent", 0.0))
    said = Completion("Safety: Unsafe\nCategories: Violent", tokens=tokens)
    strict = FORMAT.parse([said], exchange(), Stage.PROMPT, speed="fast")
    loose = Qwen3Guard(controversial=Label.UNHARMFUL).parse([said], exchange(), Stage.PROMPT, speed="fast")
    assert strict.prompt_score == pytest.approx(0.7)
    assert loose.prompt_score == pytest.approx(0.5)


@pytest.mark.parametrize("label", list(Label))
@pytest.mark.parametrize("categories", [(), CATEGORIES[:2]])
def test_parse_of_target_is_the_verdict(label: Label, categories: tuple[str, ...]) -> None:
    verdict = Verdict(prompt=label, categories=categories if label is Label.HARMFUL else ())
    parsed = FORMAT.parse([Completion(FORMAT.target(verdict))], exchange(), Stage.PROMPT, speed="fast")
    assert (parsed.prompt, parsed.categories) == (verdict.prompt, verdict.categories)
    with pytest.raises(ConfigurationError):
        FORMAT.target(Verdict(prompt=None))


def test_a_picture_is_refused_and_never_dropped() -> None:
    with pytest.raises(ContentError, match="text only"):
        FORMAT.render(Turn.from_prompt("x", images=[png()]).exchanges()[-1], Stage.PROMPT, speed="fast")


def test_category_rules_work_end_to_end() -> None:
    engine = ScriptedEngine(lambda _: "Safety: Unsafe\nCategories: PII")
    policy = {"categories": {"PII": {"definition": "Personal data.", "prompt": "annotate"}}}
    decision = Guard(engine=engine, format="qwen3guard/1", policy=policy).check_prompt("my number is …")
    assert decision.action is Action.ANNOTATE
    assert "as PII" in decision.reason


def test_formats_by_id() -> None:
    assert isinstance(get_format("qwen3guard/1"), Qwen3Guard)
    with pytest.raises(ConfigurationError, match="Did you mean 'qwen3guard/1'"):
        get_format("qwen3guard")
