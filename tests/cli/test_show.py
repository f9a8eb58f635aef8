from __future__ import annotations

import json
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl import Guard
from guardrail_vl.cli.show import error_value, print_json, printable, show_decision
from guardrail_vl.errors import EngineUnavailableError
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptMessage, PromptText
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Action, Decision, Stage, Verdict

GUARD = Guard(engine=ScriptedEngine(by_keyword("bomb")))


def shown(decision: Decision, capsys: pytest.CaptureFixture[str]) -> str:
    show_decision(decision)
    return capsys.readouterr().out


def test_a_block_says_what_why_and_who(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(GUARD.check_prompt("a bomb"), capsys).splitlines()
    assert lines[0] == "BLOCK"
    assert "judged      the prompt" in lines
    assert "reason      The request was judged harmful." in lines
    assert any(line.startswith("model       scripted (guardreasoner-vl/1, reason") for line in lines)
    assert "Looked for words." in lines


def test_an_allowed_response(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(GUARD.check_response("fine", prompt="hello"), capsys)
    assert out.startswith("ALLOW\njudged      the response\n")
    assert "labels      prompt unharmful, response unharmful\n" in out


def test_the_failing_message_of_a_conversation_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    turn = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "a bomb is made so"},
        {"role": "user", "content": "thanks"},
    ]
    judge = by_keyword("bomb")

    def script(prompt: Prompt) -> Completion:
        text = prompt.messages[-1].text
        harmless = (PromptMessage("user", (PromptText("hi AI assistant:\n"),)),)
        answer = judge(replace(prompt, messages=harmless) if "Earlier" in text else prompt)
        assert isinstance(answer, Completion)
        return answer

    out = shown(Guard(engine=ScriptedEngine(script)).check(turn), capsys)
    assert out.startswith("BLOCK\n")
    assert "decided by messages 0 to 1 (counted from 0)" in out


def test_an_annotation_has_a_visible_mark_and_says_what_was_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    decision = Decision(
        Action.ANNOTATE, Stage.PROMPT, "Not all was judged.", Verdict(None, unjudged=("the picture",), model="m")
    )
    out = shown(decision, capsys)
    assert out.startswith("ANNOTATE (!)\n")
    assert "not judged  the picture\n" in out


def test_an_error_is_not_shown_as_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(prompt: object) -> EngineUnavailableError:
        return EngineUnavailableError("It is down.", hint="Start it.")

    out = shown(Guard(engine=ScriptedEngine(broken)).check_prompt("x"), capsys)
    assert out.startswith("BLOCK · no verdict\n")
    assert "error       EngineUnavailableError\nnext step   Start it.\n" in out


def test_a_terminal_gets_a_panel_with_colour_unless_it_wants_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = GUARD.check_prompt("a bomb")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = shown(decision, capsys)
    assert "BLOCK" in coloured
    assert "\x1b[31m" in coloured  # red
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(decision, capsys)
    assert "BLOCK" in plain
    assert "\x1b[31m" not in plain


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_model_wrote_cannot_drive_the_terminal(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    evil = "\x1b]0;owned\x07\x9b31m\u202e\r[bold]x[/bold]"
    decision = GUARD.check_prompt("a bomb")
    assert decision.verdict is not None
    out = shown(replace(decision, verdict=replace(decision.verdict, reasoning=evil, model=evil)), capsys)
    assert not {"\x07", "\x9b", "\u202e", "\r"} & set(out)
    assert "\x1b]" not in out
    assert "[bold]x[/bold]" in out.replace("\n", "")


@given(st.text())
def test_printable_text_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    out = printable(text)
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") for c in out)
    assert printable(out) == out


def test_json_is_the_decision_itself_in_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    decision = replace(GUARD.check_prompt("a bomb"), reason="naïve \x9b")
    print_json(decision)
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out) == json.loads(decision.to_json())


def test_an_error_alone_looks_like_one_in_a_decision() -> None:
    error = EngineUnavailableError("It is down.", hint="Start it.")
    decision = Decision(Action.BLOCK, Stage.PROMPT, "r", error=error)
    assert error_value(error) == json.loads(decision.to_json())["error"]
