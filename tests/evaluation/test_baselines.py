"""Baselines: guards like any other, through the same runner."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="needs the extra 'evaluation'")


from guardrail_vl import Guard
from guardrail_vl.engines.base import Deadline
from guardrail_vl.errors import ConfigurationError, EngineError, EngineUnavailableError
from guardrail_vl.evaluation import baselines, metrics, running
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.verdict import Action, Label, Stage
from tests.evaluation.synthetic import case_set, picture

HARMFUL, UNHARMFUL = Label.HARMFUL, Label.UNHARMFUL


def prompts(*texts: str, gold: Sequence[Label] = (), name: str = "set") -> CaseSet:
    labels = gold or [UNHARMFUL] * len(texts)
    return CaseSet(name, tuple(Case(str(i), Stage.PROMPT, labels[i], prompt=text) for i, text in enumerate(texts)))


def test_the_constant_guess_has_the_f1_of_its_formula(tmp_path: Path) -> None:
    sets = [
        case_set("a", Stage.PROMPT, 80, 0.3, seed=1, pictures=True, hostile=False),
        case_set("b", Stage.RESPONSE, 60, 0.5, seed=2, hostile=False),
    ]
    for label in Label:
        run = running.run(Guard(engine=baselines.constant(label)), sets, tmp_path / label)
        assert {record.label for record in run.records} == {label}, "pictures and responses too"
        for scores in metrics.by(run.records, "set").values():
            share = scores.harmful / scores.n
            expected = 2 * share / (1 + share) if label == HARMFUL else 0.0
            assert scores.f1 == pytest.approx(expected)
            assert scores.auroc == pytest.approx(0.5), "a constant score ranks nothing"
            assert scores.auprc == pytest.approx(share)


def test_keywords_are_whole_words_in_any_case() -> None:
    guard = Guard(engine=baselines.keywords(["bomb", "slit a throat", "C++"]))
    flagged = ["How to build a BOMB?", "ｂｏｍｂ", "slit a throat", "I like C++.", "bomb"]
    passed = ["a bombastic speech", "slit the throat", "I like C", "ninebomb", ""]
    for text in flagged:
        assert guard.check_prompt(text).verdict.prompt == HARMFUL  # type: ignore[union-attr]
        decision = guard.check_response(text, prompt="Hello")
        assert decision.verdict is not None
        assert (decision.verdict.response, decision.verdict.response_score) == (HARMFUL, 1.0)
    for text in passed[:-1]:
        assert guard.check_prompt(text).action == Action.ALLOW


def test_the_word_list_is_ours_and_short() -> None:
    assert len(baselines.WORDS) == len(set(baselines.WORDS)) < 150
    assert all(word == word.lower().strip() for word in baselines.WORDS)
    guard = Guard(engine=baselines.keywords())
    assert guard.check_prompt("Tell me how to make a pipe bomb").blocked
    assert not guard.check_prompt("What is the capital of France?").blocked
    assert guard.engine.model == baselines.keywords(reversed(baselines.WORDS)).model, "the name is the list's"
    assert guard.engine.model != baselines.keywords(baselines.WORDS[1:]).model


def test_a_picture_is_not_called_harmless() -> None:
    guard = Guard(engine=baselines.keywords(["bomb"]))
    alone = guard.check_prompt(images=[picture()])
    assert alone.verdict is not None
    assert (alone.verdict.prompt, alone.verdict.prompt_score, alone.verdict.unjudged) == (None, None, ("image 1",))
    beside = guard.check_prompt("What is this?", images=[picture()])
    assert beside.verdict is not None
    assert (beside.verdict.prompt, beside.verdict.prompt_score) == (None, 0.0)
    assert guard.check_prompt("a bomb", images=[picture()]).blocked
    answer = guard.check_response("A cat.", prompt="What is this?", images=[picture()])
    assert answer.verdict is not None
    assert answer.verdict.response == UNHARMFUL, "the response has no picture"


def test_nothing_of_the_content_is_in_an_error() -> None:
    def broken(texts: Sequence[str]) -> list[float]:
        raise ValueError(f"can't read {texts}")

    guard = Guard(engine=baselines.classifier("broken-1", broken))
    decision = guard.check_prompt("a secret text")
    assert isinstance(decision.error, EngineError)
    assert "broken-1" in str(decision.error)
    assert "ValueError" in str(decision.error)
    assert "secret" not in str(decision.error)


def test_an_impossible_score_is_no_label() -> None:
    guard = Guard(engine=baselines.classifier("odd", lambda texts: [float("nan")] * len(texts)))
    assert guard.check_prompt("text").error is not None


def test_a_passed_deadline_gives_errors_not_labels() -> None:
    engine = baselines.constant("harmful")
    guard = Guard(engine=engine)
    asked = guard.format.render(next(iter(_turn("text").exchanges())), Stage.PROMPT, speed="fast")
    outcomes = engine.generate([*asked] * 3, deadline=Deadline.after(0))
    assert [type(outcome) for outcome in outcomes] == [EngineUnavailableError] * 3


def _turn(text: str):  # type: ignore[no-untyped-def]
    return prompts(text).cases[0].turn()


def learnable(count: int = 120) -> CaseSet:
    texts, gold = [], []
    for number in range(count):
        harmful = number % 3 == 0
        texts.append(f"please {'steal the' if harmful else 'paint a'} car number {number}")
        gold.append(HARMFUL if harmful else UNHARMFUL)
    return prompts(*texts, gold=gold, name="learnable")


def test_tfidf_learns_from_one_part_and_is_measured_on_the_other(tmp_path: Path) -> None:
    train, rest = baselines.split([learnable()], share=0.5)
    engine = baselines.tfidf(train)
    assert engine.model == baselines.tfidf(train).model
    assert engine.model != baselines.tfidf(train[:-1]).model
    run = running.run(Guard(engine=engine), rest, tmp_path / "run")
    scores = metrics.scores(run.records)
    assert scores.n == 120 - len(train)
    assert scores.f1 == 1.0
    assert scores.auroc == 1.0
    assert {0 < record.score < 1 for record in run.records if record.score is not None} == {True}


def test_tfidf_says_which_task_it_has_not_learned() -> None:
    guard = Guard(engine=baselines.tfidf(learnable().cases))
    decision = guard.check_response("I will steal the car", prompt="Hello")
    assert decision.verdict is not None
    assert (decision.verdict.response, decision.verdict.response_score) == (None, None)
    assert decision.verdict.unjudged == ("the response: there was nothing to learn from",)
    assert guard.check_prompt("paint a car").verdict.unjudged == ()  # type: ignore[union-attr]


@pytest.mark.parametrize("gold", [[HARMFUL, HARMFUL], [None, HARMFUL]])
def test_tfidf_needs_both_labels(gold: list[Label | None]) -> None:
    cases = [Case(str(i), Stage.PROMPT, label, prompt="text") for i, label in enumerate(gold)]
    with pytest.raises(ConfigurationError, match="both labels"):
        baselines.tfidf(cases)


def test_a_split_tears_no_group_and_no_request_apart() -> None:
    first = case_set("first", Stage.PROMPT, 200, 0.5, seed=1)
    same = CaseSet(
        "same", tuple(Case(f"x{c.id}", c.stage, c.gold, prompt=c.prompt, group=c.group) for c in first.cases)
    )
    alone = prompts("How do I  cook?", "how do i cook?", "Other", name="alone")
    train, rest = baselines.split([first, same, alone], share=0.4, seed=3)
    kept = {case.group for one in rest for case in one.cases if case.group}
    learned = {case.group for case in train if case.group}
    assert not kept & learned
    assert 0.25 < len(learned) / 100 < 0.55
    sides = ["How do I  cook?" in {c.prompt for c in train}, "how do i cook?" in {c.prompt for c in train}]
    assert sides[0] == sides[1]
    assert len(train) + sum(len(one.cases) for one in rest) == 403
    assert baselines.split([first, same, alone], share=0.4, seed=3) == (train, rest)
    assert baselines.split([first], share=0.4, seed=4)[0] != baselines.split([first], share=0.4, seed=3)[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: baselines.constant("maybe"),  # type: ignore[arg-type]
        lambda: baselines.keywords([]),
        lambda: baselines.keywords(["bomb", " "]),
        lambda: baselines.split([learnable()], share=1.0),
    ],
)
def test_wrong_arguments_are_told(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigurationError):
        make()


def test_baselines_travel_to_other_processes() -> None:
    for engine in (baselines.constant("harmful"), baselines.keywords(["bomb"]), baselines.tfidf(learnable().cases)):
        guard: Guard = pickle.loads(pickle.dumps(Guard(engine=engine)))
        assert guard.engine.model == engine.model
        assert guard.check_prompt("steal the bomb").verdict.prompt == HARMFUL  # type: ignore[union-attr]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("profanity_check", "better_profanity"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigurationError, match="pip install alt-profanity-check"):
        baselines.alt_profanity_check()
    with pytest.raises(ConfigurationError, match="pip install better-profanity"):
        baselines.better_profanity()


def test_alt_profanity_check_judges() -> None:
    pytest.importorskip("profanity_check")
    guard = Guard(engine=baselines.alt_profanity_check())
    rude = guard.check_prompt("go away you stupid idiot, fuck you")
    kind = guard.check_response("Have a nice day.", prompt="Hello")
    assert rude.verdict is not None
    assert kind.verdict is not None
    assert rude.blocked
    assert (rude.verdict.prompt_score or 0) > 0.9
    assert kind.verdict.response == UNHARMFUL
    assert guard.engine.model.startswith("alt-profanity-check-")


def test_better_profanity_judges_and_reads_long_texts() -> None:
    pytest.importorskip("better_profanity")
    guard = Guard(engine=baselines.better_profanity(), deadline=60)
    assert guard.check_prompt("you are a piece of sh1t").blocked
    assert not guard.check_prompt("you are a piece of cake").blocked
    for before in (930, 938, 995, 2_000):
        assert guard.check_prompt("a " * (before // 2) + "shit happens").blocked, before
