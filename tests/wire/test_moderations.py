"""Moderations: every input is judged, and nothing that a guard said is lost in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types import ModerationCreateResponse
from openai.types.moderation import Categories

from guardrail_vl.errors import ContentError, EngineUnavailableError
from guardrail_vl.parts import ImagePart, TextPart
from guardrail_vl.prompt_format.qwen3guard import CATEGORIES as QWEN
from guardrail_vl.turn import Turn
from guardrail_vl.verdict import Action, Decision, Label, Stage, Verdict
from guardrail_vl.wire.moderations import CATEGORIES, HARMFUL, read_request, write_reply
from tests.wire.leaves import MARKER, PIXEL, READING, texts, vanishing

PICTURE = {"type": "image_url", "image_url": {"url": PIXEL}}


def decision(
    *categories: str, harmful: bool = True, score: float | None = 0.9, action: Action | None = None
) -> Decision:
    label = Label.HARMFUL if harmful else Label.UNHARMFUL
    verdict = Verdict(label, prompt_score=score, categories=categories)
    return Decision(action or (Action.BLOCK if harmful else Action.ALLOW), Stage.PROMPT, "why", verdict, policy="p1")


def one(given: Decision, *, content: Any = "x") -> dict[str, Any]:
    (turn,) = read_request({"input": content}, READING)
    reply = write_reply([turn], [given], model="m")
    ModerationCreateResponse.model_validate(reply)
    result: dict[str, Any] = reply["results"][0]
    return result


def test_each_input_is_a_turn() -> None:
    assert read_request({"input": "a"}, READING) == (Turn.of("a"),)
    assert read_request({"input": ["a", "b"], "model": "m"}, READING) == (Turn.of("a"), Turn.of("b"))
    (turn,) = read_request({"input": [{"type": "text", "text": "a"}, PICTURE, PICTURE]}, READING)
    assert [type(part) for part in turn.messages[0].content] == [TextPart, ImagePart, ImagePart]


def test_no_content_of_a_request_vanishes() -> None:
    for content in (["a", "b"], [{"type": "text", "text": "a"}, PICTURE]):

        def judge(body: Any) -> list[str]:
            return [text for turn in read_request(body, READING) for text in texts(turn.messages)]

        assert vanishing({"input": content, "model": "m"}, judge) == {"model"}


@pytest.mark.parametrize(
    "body",
    [
        {}, {"input": None}, {"input": []}, {"input": ""}, {"input": 3}, {"input": ["a", ""]}, {"input": [1, 2]},
        {"input": ["a", {"type": "text", "text": "b"}]}, {"input": [["a"]]}, {"input": "a", "new_thing": "x"},
        {"input": [{"type": "file", "file": {}}]}, {"input": {"type": "text", "text": "a"}},
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ContentError):
        read_request(body, READING)


def test_the_reply_has_every_category_and_nothing_is_flagged_when_all_is_well() -> None:
    result = one(decision(harmful=False, score=0.02))
    assert result["flagged"] is False
    assert set(result["categories"]) == {*CATEGORIES, HARMFUL}
    assert not any(result["categories"].values())
    assert result["category_scores"].pop(HARMFUL) == 0.02
    assert set(result["category_scores"].values()) == {0.0}


def test_the_categories_are_the_real_types() -> None:
    known = {field.alias or name for name, field in Categories.model_fields.items()}
    # The first openai packages knew fewer.
    assert known == set(CATEGORIES) or (known < set(CATEGORIES) and openai.__version__.startswith("1."))


@pytest.mark.parametrize("name", [*QWEN, "Weapons of my own", MARKER, "harassment/threatening", "Self Harm"])
def test_no_category_of_ours_is_lost(name: str) -> None:
    result = one(decision(name))
    said = {key for key, value in result["categories"].items() if value}
    assert HARMFUL in said
    assert len(said) == 2
    assert all(result["category_scores"][key] == 0.9 for key in said)
    assert set(result["categories"]) == set(result["category_scores"]) == set(result["category_applied_input_types"])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("Violent", "violence"), ("Suicide & Self-Harm", "self-harm"), ("Self Harm", "self-harm"), ("PII", "PII"),
     ("Non-violent Illegal Acts", "illicit"), ("HATE", "hate"), ("sexual/minors", "sexual/minors")],
)  # fmt: skip
def test_a_category_that_says_the_same_has_their_name(ours: str, theirs: str) -> None:
    assert one(decision(ours))["categories"][theirs] is True


def test_a_label_without_score_or_category_is_still_said() -> None:
    result = one(decision(score=None))
    assert (result["flagged"], result["categories"][HARMFUL], result["category_scores"][HARMFUL]) == (True, True, 1.0)


def test_flagged_is_what_the_policy_made_of_it() -> None:
    lenient = one(decision("PII", action=Action.ALLOW))
    assert (lenient["flagged"], lenient["categories"]["PII"]) == (False, True)
    assert one(decision(harmful=False, action=Action.ANNOTATE))["flagged"] is True


@pytest.mark.parametrize(("action", "flagged"), [(Action.BLOCK, True), (Action.ANNOTATE, False)])
def test_a_failure_is_told_apart(action: Action, flagged: bool) -> None:
    failed = Decision(action, Stage.PROMPT, "No verdict", error=EngineUnavailableError("down"), policy="p1")
    result = one(failed)
    assert result["flagged"] is flagged
    assert result["guardrail"] == {
        "id": failed.id,
        "action": action.value,
        "reason": "No verdict",
        "failed": True,
        "policy": "p1",
    }


def test_the_kinds_of_input_are_named_where_their_shape_has_them() -> None:
    both = one(decision("Violent"), content=[{"type": "text", "text": "a"}, PICTURE])["category_applied_input_types"]
    assert (both["violence"], both["hate"], both[HARMFUL]) == (["text", "image"], ["text"], ["text", "image"])
    alone = one(decision("Violent"), content=[PICTURE])["category_applied_input_types"]
    assert (alone["violence"], alone["hate"]) == (["image"], [])


def test_a_decision_for_each_turn() -> None:
    turns = read_request({"input": ["a", "b"]}, READING)
    reply = write_reply(turns, [decision("PII"), decision(harmful=False)], model="m")
    assert [result["flagged"] for result in reply["results"]] == [True, False]
    with pytest.raises(ValueError, match="shorter"):
        write_reply(turns, [decision()], model="m")
