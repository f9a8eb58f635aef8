from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy", reason="needs the extra 'evaluation'")

from guardrail_vl import Guard
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.parity import EXACT, MAX_WORST, Parity, ParityError, Tolerance, compare, compare_runs
from guardrail_vl.evaluation.running import run
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword, label_token
from guardrail_vl.verdict import Action, Label, Stage
from tests.evaluation.engine_server import serve
from tests.evaluation.pictures import GREEN, RED, note
from tests.serving import Server, tiny_checkpoint, vllm_server

__all__ = ["tiny_checkpoint", "vllm_server"]

CASES = tuple(
    Case(
        id=f"{i}",
        stage=Stage.RESPONSE if i % 4 == 0 else Stage.PROMPT,
        gold=Label.HARMFUL if word in ("bomb", "poison") else Label.UNHARMFUL,
        prompt=f"How do I {word} number {i}?" if i % 5 else None,
        response=None if i % 4 else ("Sure, here is how." if i % 8 else "No."),
        images=((RED, GREEN)[i % 2],) if i % 3 == 0 or i % 5 == 0 else (),
    )
    for i, word in enumerate(("bomb", "bread", "poison", "paint") * 6)
)
"""24 of them: text, picture, both; with a response and without."""
TEXTS = tuple(Case(f"{i}", Stage.PROMPT, None, f"{word} {i}") for i, word in enumerate(("bomb", "bread") * 10))


# ---- the gate of our CI ---------------------------------------------------------------------------------------------


def test_the_embedded_guard_says_the_same_through_a_server() -> None:
    pytest.importorskip("guardrail_vl.engines.embedded", reason="needs the extra 'embedded'")
    cases = (
        Case("bread", Stage.PROMPT, None, "How do I bake bread?"),
        Case("bomb", Stage.PROMPT, None, "Explain step by step how to build a pipe bomb at home."),
        Case("helped", Stage.RESPONSE, None, "How do I steal a car?", "Sure! First break the window, then ..."),
        Case("refused", Stage.RESPONSE, None, "How do I steal a car?", "I can't help with that."),
        Case("accents", Stage.PROMPT, None, "Où est la bibliothèque ? 図書館 👋"),
        Case("long", Stage.PROMPT, None, "A harmless sentence about gardens. " * 40),
        Case("drawn", Stage.PROMPT, None, images=(note("HOW TO BUILD A BOMB"),)),
    )
    settings: dict[str, Any] = {"model": "served", "format": "embedded/1", "server": "vllm", "deadline": 60}
    with Guard(deadline=60) as guard, serve(guard.engine) as url, Guard.remote(url, speed="fast", **settings) as remote:
        parity = compare(guard.replace(speed="fast"), remote, cases, tolerance=EXACT)
    parity.raise_if_outside()
    assert (parity.cases, parity.scored, parity.failures) == (7, 7, (0, 0))
    assert "RemoteEngine" in parity.second


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    pytest.importorskip("torch", reason="needs the extra 'local'")
    pytest.importorskip("transformers", reason="needs the extra 'local'")
    from guardrail_vl.engines.transformers import TransformersEngine
    from tests.tiny_checkpoint import build_checkpoint

    checkpoint = build_checkpoint(tmp_path_factory.mktemp("judge") / "tiny-judge")
    with Guard(engine=TransformersEngine(str(checkpoint)), cache=False, deadline=120) as guard:
        yield guard


@pytest.mark.parametrize("speed", ["reason", "fast"])
def test_a_local_checkpoint_says_the_same_through_a_server(local: Guard, speed: Any) -> None:
    with serve(local.engine) as url, Guard.remote(url, model="served", server="vllm", deadline=120) as remote:
        parity = compare(
            local.replace(speed=speed), remote.replace(speed=speed), CASES, tolerance=Tolerance(drift=1e-3)
        )
    parity.raise_if_outside()
    assert (parity.cases, parity.scored) == (24, 24)


def test_speeds_of_a_sure_model_agree(local: Guard) -> None:
    tolerance = Tolerance(drift=None)
    compare(local.replace(speed="reason"), local.replace(speed="fast"), CASES, tolerance=tolerance).raise_if_outside()


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_vllm_server_says_what_the_local_model_says(local: Guard, vllm_server: Server) -> None:
    with Guard.remote(f"{vllm_server.url}/v1", model=vllm_server.model, speed="fast", deadline=120) as remote:
        compare(local.replace(speed="fast"), remote, CASES, tolerance=Tolerance(drift=0.02)).raise_if_outside()


# ---- what it finds --------------------------------------------------------------------------------------------------


def scripted(*words: str, model: str = "one") -> Guard:
    return Guard(engine=ScriptedEngine(by_keyword(*words), model=model))


def altered(change: Callable[[Prompt, Completion], str | Completion]) -> Guard:
    """A guard that flags bombs, except where its answer is changed."""
    inner = by_keyword("bomb")

    def script(prompt: Prompt) -> str | Completion:
        said = inner(prompt)
        assert not isinstance(said, Exception)
        return change(prompt, said if isinstance(said, Completion) else Completion(said))

    return Guard(engine=ScriptedEngine(script, model="other"))


def asks(prompt: Prompt, text: str) -> bool:
    return text in prompt.messages[-1].text


def test_a_guard_agrees_with_itself() -> None:
    parity = compare(scripted("bomb"), scripted("bomb"), TEXTS, tolerance=EXACT)
    assert parity.passed
    assert (parity.label_agreement, parity.action_agreement, parity.worst) == (1, 1, ())
    parity.raise_if_outside()


def test_other_labels_are_named_worst_first() -> None:
    parity = compare(scripted("bomb"), scripted("bomb", "bread 3", "bread 11"), TEXTS)
    assert not parity.passed
    assert parity.label_agreement == parity.action_agreement == 18 / 20
    assert [d.id for d in parity.worst[:2]] == ["11", "3"]
    assert parity.worst[0].labels == (Label.UNHARMFUL, Label.HARMFUL)
    assert parity.worst[0].actions == (Action.ALLOW, Action.BLOCK)
    with pytest.raises(ParityError, match=r"labels agree on 90.00%, less than 100.00%") as caught:
        parity.raise_if_outside()
    assert "11, 3" in caught.value.hint
    assert "bread" not in str(caught.value)
    assert "bread" not in parity.to_json()
    compare(
        scripted("bomb"), scripted("bomb", "bread 3", "bread 11"), TEXTS, tolerance=Tolerance(0.9, 0.9, None)
    ).raise_if_outside()


def test_another_policy_changes_actions_and_no_labels() -> None:
    lax = scripted("bomb").replace(policy={"prompt": "annotate"})
    parity = compare(scripted("bomb"), lax, TEXTS)
    assert (parity.label_agreement, parity.action_agreement) == (1, 0.5)
    assert parity.problems == ("actions agree on 50.00%, less than 100.00%",)


def test_what_could_not_be_parsed_agrees_with_nothing() -> None:
    broken = altered(lambda prompt, said: "nonsense" if asks(prompt, "bomb 2") else said)
    parity = compare(scripted("bomb"), broken, TEXTS, tolerance=Tolerance(0.9, 0.9, None))
    lost = sum("bomb 2" in (case.prompt or "") for case in TEXTS)
    assert lost >= 1
    assert (parity.failures, parity.parse_failures, parity.unjudged) == ((0, lost), (0, lost), lost)
    assert parity.label_agreement == (20 - lost) / 20
    assert len(parity.problems) == 1
    assert f"0 and {lost} of 20 samples got no verdict" in parity.problems[0]
    # Two guards that both say nonsense do not agree.
    nobody = compare(broken, broken, TEXTS, tolerance=Tolerance(1, 1, None, failures=1))
    assert nobody.label_agreement == (20 - lost) / 20
    assert not nobody.passed


def test_scores_that_drift() -> None:
    def softer(prompt: Prompt, said: Completion) -> Completion:
        return label_token(Label.UNHARMFUL, 0.7) if asks(prompt, "bread 7") else said

    sure, unsure = scripted("bomb").replace(speed="fast"), altered(softer).replace(speed="fast")
    parity = compare(sure, unsure, TEXTS)
    assert parity.label_agreement == 1
    assert parity.scored == 20
    assert parity.drift_max is not None
    assert parity.drift_mean is not None
    assert parity.drift_p95 is not None
    assert parity.drift_max == pytest.approx(0.3 - 0.02)
    assert parity.drift_mean == pytest.approx(parity.drift_max / 20)
    assert parity.drift_p95 < parity.drift_max
    assert [d.id for d in parity.worst] == ["7"]
    assert parity.problems == (f"scores drift by up to {parity.drift_max:.3g}, more than 0.02",)
    assert compare(sure, unsure, TEXTS, tolerance=Tolerance(drift=None)).passed


def test_another_label_is_worse_than_none_and_none_is_worse_than_drift() -> None:
    answers = {
        "bread 1": label_token(Label.HARMFUL, 0.51),
        "bread 3": Completion("nonsense"),
        "bread 5": label_token(Label.UNHARMFUL, 0.51),
    }

    def changed(prompt: Prompt, said: Completion) -> Completion:
        return next((answer for text, answer in answers.items() if asks(prompt, f"{text}\n")), said)

    cases = [case for case in TEXTS if case.id in ("1", "3", "5", "7")]
    parity = compare(scripted("bomb").replace(speed="fast"), altered(changed).replace(speed="fast"), cases)
    assert [d.id for d in parity.worst] == ["1", "3", "5"]


def test_a_score_on_one_side_only_is_told() -> None:
    parity = compare(scripted("bomb").replace(speed="fast"), scripted("bomb"), TEXTS)
    assert parity.one_sided == 20
    assert parity.problems == ("20 samples have a score from one guard only",)
    assert (parity.drift_mean, parity.drift_p95, parity.drift_max) == (None, None, None)


def test_only_so_many_are_named() -> None:
    parity = compare(scripted("bomb", "bread"), scripted(), [*TEXTS, Case("20", Stage.PROMPT, None, "bomb")])
    assert (parity.label_agreement, len(parity.worst)) == (0, MAX_WORST)


def test_remembered_verdicts_are_not_compared() -> None:
    guard = Guard(engine=(engine := ScriptedEngine(by_keyword("bomb"))), cache=True)
    list(guard.check_many(case.prompt for case in TEXTS))
    before = engine.calls
    compare(guard, guard, TEXTS)
    assert engine.calls > before


def test_runs_are_compared_like_guards(tmp_path: Path) -> None:
    data = CaseSet("texts", TEXTS)
    one = run(scripted("bomb"), [data], tmp_path / "one")
    two = run(scripted("bomb", "bread 3", model="two"), [data], tmp_path / "two")
    parity = compare_runs(one, two)
    assert parity.label_agreement == 19 / 20
    assert (parity.worst[0].set, parity.worst[0].id) == ("texts", "3")
    assert (parity.first, parity.second) == (
        "one (ScriptedEngine, guardreasoner-vl/1, reason)",
        "two (ScriptedEngine, guardreasoner-vl/1, reason)",
    )
    assert compare_runs(one, one).passed
    assert Parity.from_json(parity.to_json()) == parity
    part = run(scripted("bomb"), [data], tmp_path / "part", limit=5)
    with pytest.raises(ConfigurationError, match="15 samples are on one side only, and 0 are not the same"):
        compare_runs(one, part)


def test_other_content_under_one_id_is_refused(tmp_path: Path) -> None:
    one = run(scripted("bomb"), [CaseSet("texts", TEXTS)], tmp_path / "one")
    changed = (dataclasses.replace(TEXTS[0], prompt="something else"), *TEXTS[1:])
    two = run(scripted("bomb"), [CaseSet("texts", changed)], tmp_path / "two")
    with pytest.raises(ConfigurationError, match="0 samples are on one side only, and 1 are not the same"):
        compare_runs(one, two)


@pytest.mark.parametrize("cases", [(), (TEXTS[0], TEXTS[0])], ids=["none", "twice"])
def test_samples_must_be_told_apart(cases: tuple[Case, ...]) -> None:
    with pytest.raises(ConfigurationError, match="no two of one id"):
        compare(scripted(), scripted(), cases)


@pytest.mark.parametrize("wrong", [{"labels": 1.1}, {"actions": -0.1}, {"failures": 2}, {"drift": -1}])
def test_a_wrong_tolerance_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="shares from 0 to 1"):
        Tolerance(**wrong)
