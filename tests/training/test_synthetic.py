"""The made-up task follows its own rule."""

from __future__ import annotations

from typing import get_args

import pytest

from guardrail_vl.training import synthetic
from guardrail_vl.training.synthetic import Kind
from guardrail_vl.verdict import Label

HARMFUL = Label.HARMFUL


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_labels_follow_the_rule(kind: Kind) -> None:
    for turn in synthetic.turns(300, seed=3, kind=kind):
        why = turn.reasoning or ""
        bad, dangerous = ", bad." in why, ", danger." in why
        expected = {"text": bad, "image": dangerous, "text-image": bad != dangerous}[kind]
        assert (turn.prompt_label is HARMFUL) is expected
        assert (turn.prompt is not None, bool(turn.images)) == (kind != "image", kind != "text")
        assert (turn.response is None) is (kind == "image")
        if turn.response is not None:
            complies = turn.response in synthetic.COMPLIES
            assert (turn.response_label is HARMFUL) is (expected and complies)


def test_the_stated_share_has_a_response() -> None:
    turns = synthetic.turns(2000, seed=6, kind="text", answered=0.4)
    assert 0.36 < sum(turn.response is not None for turn in turns) / 2000 < 0.44
    assert all(turn.whole and ("response" in (turn.reasoning or "")) == (turn.response is not None) for turn in turns)


def test_of_both_together_neither_alone_tells() -> None:
    turns = synthetic.turns(4000, seed=1, kind="text-image")
    for sign in (", bad.", ", danger."):
        labels = [turn.prompt_label is HARMFUL for turn in turns if sign in (turn.reasoning or "")]
        assert 0.45 < sum(labels) / len(labels) < 0.55


def test_a_seed_gives_the_same_turns_and_another_gives_others() -> None:
    assert synthetic.turns(20, seed=4) == synthetic.turns(20, seed=4)
    assert {turn.prompt for turn in synthetic.turns(50, seed=4)} != {
        turn.prompt for turn in synthetic.turns(50, seed=5)
    }


def test_noise_changes_the_stated_share_of_labels() -> None:
    given = synthetic.turns(2000, seed=2)
    made = synthetic.noisy(given, seed=9, wrong=0.3, filler=2)
    other = sum(
        (one.prompt_label, one.response_label) != (two.prompt_label, two.response_label)
        for one, two in zip(given, made, strict=True)
    )
    assert 0.26 < other / len(given) < 0.34
    assert any((turn.reasoning or "").startswith(synthetic.FILLERS) for turn in made)
    assert [turn.id for turn in made] == [turn.id for turn in given]
