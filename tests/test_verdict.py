"""Verdicts and decisions: equality, JSON, what they show and hide."""

from __future__ import annotations

import json
import pickle

import pytest

from guardrail_vl import BlockedError, Decision
from guardrail_vl.errors import EngineResponseError, EngineUnavailableError, MissingDependencyError, ParseError
from guardrail_vl.verdict import Action, Judgement, Label, Stage, Verdict

SAID = Verdict(prompt=Label.HARMFUL, response=Label.UNHARMFUL, prompt_score=0.9, response_score=0.1, reasoning="SECRET")


def test_scores_and_labels_by_stage() -> None:
    assert (SAID.label(Stage.PROMPT), SAID.score_of(Stage.PROMPT)) == (Label.HARMFUL, 0.9)
    assert (SAID.label(Stage.RESPONSE), SAID.score_of(Stage.RESPONSE)) == (Label.UNHARMFUL, 0.1)
    assert SAID.label("prompt") is Label.HARMFUL  # type: ignore[arg-type]
    assert SAID.score == 0.1
    assert Verdict(prompt=Label.HARMFUL, prompt_score=0.9).score == 0.9


def test_equal_by_content() -> None:
    def made() -> Decision:
        return Decision(Action.BLOCK, Stage.PROMPT, "r", SAID)

    assert made() == made()
    assert made().id != made().id


def test_json_round_trip_and_schema() -> None:
    judgement = Judgement(0, 1, Action.BLOCK, "r", SAID)
    decision = Decision(Action.BLOCK, Stage.PROMPT, "r", SAID, policy="p", judgements=(judgement,))
    assert Decision.from_json(decision.to_json()) == decision
    assert Verdict.from_json(SAID.to_json()) == SAID
    assert Decision.json_schema()["properties"]["action"]


def test_an_error_goes_out_as_json() -> None:
    decision = Decision(Action.BLOCK, Stage.PROMPT, "r", error=EngineUnavailableError("down", hint="Wait."))
    assert json.loads(decision.to_json())["error"] == {
        "type": "EngineUnavailableError", "message": "down", "hint": "Wait.", "retryable": True,
    }  # fmt: skip


def test_reprs_hide_reasoning() -> None:
    assert "SECRET" not in repr(Decision(Action.BLOCK, Stage.PROMPT, "r", SAID))


def test_raise_if_blocked_carries_the_decision_and_the_cause() -> None:
    cause = EngineUnavailableError("down")
    blocked = Decision(Action.BLOCK, Stage.PROMPT, "No verdict: down", error=cause)
    with pytest.raises(BlockedError, match="Blocked: No verdict: down") as caught:
        blocked.raise_if_blocked()
    assert caught.value.decision is blocked
    assert caught.value.__cause__ is cause
    Decision(Action.ANNOTATE, Stage.PROMPT, "r", SAID).raise_if_blocked()


def test_errors_are_picklable_and_say_what_to_do() -> None:
    missing = MissingDependencyError("onnxruntime", extra="embedded", needed_for="The embedded guard")
    assert isinstance(missing, ImportError)
    assert "pip install 'guardrail-vl[embedded]'" in str(missing)
    for error in (
        missing,
        EngineResponseError("bad", status=400, request_id="r1"),
        ParseError("x", text="t"),
        BlockedError(Decision(Action.BLOCK, Stage.PROMPT, "r", SAID)),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert copy.__dict__ == error.__dict__
