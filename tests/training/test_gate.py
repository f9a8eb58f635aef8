"""The gate: a better guard passes, an equal one, a worse one and one with more false alarms don't, and it says why."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sklearn")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from pydantic import ValidationError

from guardrail_vl import Guard, Policy
from guardrail_vl.errors import ConfigurationError, EngineUnavailableError
from guardrail_vl.evaluation import metrics
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.running import Run, run
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine
from guardrail_vl.training._gating import _more
from guardrail_vl.training.gate import GateConfig, GateResult, gate, sets_of
from guardrail_vl.training.synthetic import turns
from guardrail_vl.verdict import Label, Stage, Usage

QUICK = GateConfig(resamples=300)


def samples(count: int, *, stage: Stage = Stage.PROMPT, name: str = "ours", bad_until: float = 0.5) -> CaseSet:
    """The first are harmful. The number of a sample stands in its request."""
    return CaseSet(
        name,
        tuple(
            Case(
                f"{name}.{i}",
                stage,
                Label.HARMFUL if i < bad_until * count else Label.UNHARMFUL,
                prompt=f"{name} {i:04d}: tell me about it",
                response="Here it is." if stage is Stage.RESPONSE else None,
            )
            for i in range(count)
        ),
    )


def guard(
    sets: Iterable[CaseSet],
    wrong: Iterable[str] = (),
    *,
    model: str = "scripted",
    tokens: int = 40,
    unread: Iterable[str] = (),
) -> Guard:
    """A guard that knows every label, but for the samples with these ids; and writes nonsense for others."""
    wrong, unread = set(wrong), set(unread)
    known = {case.prompt: case for one in sets for case in one.cases}

    def script(prompt: Prompt) -> Completion:
        case = known[re.search(r"\w+ \d{4}: tell me about it", prompt.messages[-1].text)[0]]  # type: ignore[index]
        assert case.gold is not None
        label = (
            case.gold if case.id not in wrong else Label.HARMFUL if case.gold is Label.UNHARMFUL else Label.UNHARMFUL
        )
        said = f"<think>Looked.\n</think>\n\n<result>\nRequest: {label}\nResponse: {label}\n</result>"
        return Completion("no idea" if case.id in unread else said, model=model, usage=Usage(10, tokens))

    return Guard(engine=ScriptedEngine(script, model=model))


def some(one: CaseSet, share: float, *, seed: int = 0, only: Label | None = None) -> list[str]:
    """Ids of a share of the samples."""
    ids = [case.id for case in one.cases if only in (None, case.gold)]
    return random.Random(seed).sample(ids, round(share * len(ids)))


def reasons(result: GateResult) -> str:
    return "\n".join(result.reasons)


# ---- who passes ---------------------------------------------------------------------------------------------------


def test_a_better_guard_passes(tmp_path: Path) -> None:
    one = samples(300)
    old, new = guard([one], some(one, 0.2), model="old"), guard([one], some(one, 0.05, seed=1), model="new")
    result = gate(old, new, [one], tmp_path / "gate", config=GateConfig(margin=0.05, resamples=300))
    assert result.passed, reasons(result)
    assert result.reasons == ()
    assert (result.old, result.new) == ("old", "new")
    # The figures are those of metrics, of the records that lie there.
    whole = result.slices[0]
    for said, name in ((whole.old, "old"), (whole.new, "new")):
        scores = metrics.scores(Run.load(tmp_path / "gate" / name).records, resamples=300)
        assert (said.f1, said.fpr, said.samples, said.harmful) == (scores.f1, scores.fpr, 300, 150)
        assert scores.f1_interval is not None
        assert said.f1_interval == (scores.f1_interval.low, scores.f1_interval.high)
    assert whole.f1.value == pytest.approx((whole.new.f1 or 0) - (whole.old.f1 or 0))
    assert [(figures.by, figures.name) for figures in result.figures] == [
        ("stage", "prompt"), ("source", "ours"), ("modality", "text"),
    ]  # fmt: skip
    assert GateResult.from_json((tmp_path / "gate" / "gate.json").read_bytes()) == result
    assert {"report.html", "report.md", "report.json"} <= {file.name for file in (tmp_path / "gate").iterdir()}


def test_an_equal_guard_does_not(tmp_path: Path) -> None:
    one = samples(200)
    wrong = some(one, 0.1)
    result = gate(guard([one], wrong), guard([one], wrong), [one], tmp_path, config=QUICK)
    assert not result.passed
    assert result.reasons == (
        "prompt: F1 stayed the same (95% interval +0.0 to +0.0), and has to rise by more than 0.0 points for sure.",
    )


def test_a_worse_guard_does_not(tmp_path: Path) -> None:
    one = samples(200)
    result = gate(guard([one], some(one, 0.05)), guard([one], some(one, 0.25)), [one], tmp_path, config=QUICK)
    assert not result.passed
    assert re.match(r"prompt: F1 fell by \d+\.\d points \(95% interval −", result.reasons[0])
    assert any(reason.startswith("prompt, the source ours: F1 fell by") for reason in result.reasons)


def test_a_better_f1_does_not_pay_for_more_false_alarms(tmp_path: Path) -> None:
    one = samples(400)
    old = guard([one], some(one, 0.4, only=Label.HARMFUL))
    new = guard([one], some(one, 0.08, only=Label.UNHARMFUL))
    result = gate(old, new, [one], tmp_path / "strict", config=QUICK)
    assert result.slices[0].f1.low is not None
    assert result.slices[0].f1.low > 0.1
    assert len(result.reasons) == 1
    assert result.reasons[0].startswith("prompt: false alarms rose by 8.0 points, from 0.0% to 8.0% of the harmless")
    allowed = QUICK.model_copy(update={"max_fpr_increase": 0.08})
    assert gate(old, new, [one], tmp_path / "lax", config=allowed).passed


def test_a_gain_within_the_margin_is_not_enough(tmp_path: Path) -> None:
    one = samples(300)
    old, new = guard([one], some(one, 0.2)), guard([one], some(one, 0.1, seed=1))
    assert gate(old, new, [one], tmp_path / "a", config=QUICK).passed
    result = gate(old, new, [one], tmp_path / "b", config=QUICK.model_copy(update={"margin": 0.5}))
    assert "has to rise by more than 50.0 points for sure" in reasons(result)


def test_every_stage_must_be_better_unless_one_is_named(tmp_path: Path) -> None:
    asked, answered = samples(200), samples(200, stage=Stage.RESPONSE, name="answers")
    sets = [asked, answered]
    same = some(answered, 0.2)
    old, new = guard(sets, [*some(asked, 0.3), *same]), guard(sets, same)
    both = gate(old, new, sets, tmp_path, config=QUICK)
    assert [reason.partition(":")[0] for reason in both.reasons] == ["response"]
    named = QUICK.model_copy(update={"stages": (Stage.PROMPT,)})
    assert gate(old, new, sets, tmp_path, config=named).passed
    # But the other one must not become worse.
    worse = guard(sets, some(answered, 0.6), model="worse")
    result = gate(old, worse, sets, tmp_path / "worse", config=named)
    assert any(reason.startswith("response, all: F1 fell by") for reason in result.reasons)
    # Its false alarms and its answers' form are not looked at.
    alarmed = guard(sets, some(answered, 0.4, only=Label.UNHARMFUL), unread=some(answered, 0.05), model="alarmed")
    limits = {"max_slice_loss": None, "max_fpr_increase": 0.0, "max_parse_failure_increase": 0.0}
    loose = gate(old, alarmed, sets, tmp_path / "alarmed", config=named.model_copy(update=limits))
    assert loose.passed, reasons(loose)
    strict = gate(old, alarmed, sets, tmp_path / "alarmed", config=QUICK.model_copy(update=limits))
    assert any(reason.startswith("response: false alarms rose") for reason in strict.reasons)
    absent = gate(old, new, [asked], tmp_path / "absent", config=QUICK.model_copy(update={"stages": (Stage.RESPONSE,)}))
    assert "response: there is no labelled sample of it." in absent.reasons


def test_a_source_must_not_pay_for_the_others(tmp_path: Path) -> None:
    large, small = samples(400, name="large"), samples(100, name="small")
    sets = [large, small]
    old, new = guard(sets, some(large, 0.3)), guard(sets, some(small, 0.5))
    result = gate(old, new, sets, tmp_path, config=QUICK.model_copy(update={"max_fpr_increase": None}))
    assert [reason.partition(": ")[0] for reason in result.reasons] == ["prompt, the source small"]
    free = QUICK.model_copy(update={"max_fpr_increase": None, "max_slice_loss": None})
    assert gate(old, new, sets, tmp_path, config=free).passed


def test_answers_must_stay_short_and_readable(tmp_path: Path) -> None:
    one = samples(200)
    old = guard([one], some(one, 0.4), model="old")
    new = guard([one], model="new", tokens=75, unread=some(one, 0.04))
    config = QUICK.model_copy(update={"max_length_increase": 30.0})
    result = gate(old, new, [one], tmp_path, config=config)
    assert result.reasons == (
        "prompt: answers that can't be read went from 0.0% to 4.0% of all; allowed are 1.0 points more.",
        "prompt: answers went from 40 to 75 tokens on average; allowed are 30 more.",
    )
    told = json.loads((tmp_path / "gate.json").read_text("utf-8"))["slices"][0]
    assert (told["old"]["no_verdict"], told["new"]["no_verdict"]) == (0, 8)
    lax = config.model_copy(update={"max_length_increase": 35.0, "max_parse_failure_increase": 0.04})
    assert gate(old, new, [one], tmp_path, config=lax).passed
    assert result.slices[0].new.tokens == 75
    assert result.slices[0].new.parse_failures == pytest.approx(0.04)


# ---- too few samples ----------------------------------------------------------------------------------------------


def test_too_few_samples_never_pass_and_it_says_how_many_are_needed(tmp_path: Path) -> None:
    one = samples(40, bad_until=0.75)
    result = gate(guard([one], some(one, 0.5)), guard([one]), [one], tmp_path, config=QUICK)
    assert result.slices[0].f1.low is not None
    assert result.slices[0].f1.low > 0, "however good it looks"
    assert result.reasons == (
        "prompt: 30 harmful and 10 harmless samples are too few to tell; 20 more harmful ones and 40 more harmless "
        "ones are needed.",
    )


def test_all_harmful_samples_tell_nothing_of_false_alarms(tmp_path: Path) -> None:
    one = samples(100, bad_until=1)
    result = gate(guard([one], some(one, 0.5)), guard([one]), [one], tmp_path, config=QUICK)
    assert result.reasons == (
        "prompt: 100 harmful and 0 harmless samples are too few to tell; 50 more harmless ones are needed.",
    )


def test_a_gain_that_is_not_sure_says_how_many_more_samples_would_show_it(tmp_path: Path) -> None:
    def pair(one: CaseSet, name: str) -> GateResult:
        # Of every 40 the old one has 6 wrong and the new one 4 others: the gain is the same however many there are.
        wrong = [[case.id for i, case in enumerate(one.cases) if i % 40 in places]
                 for places in ((0, 7, 14, 21, 28, 35), (3, 13, 23, 33))]  # fmt: skip
        old, new = guard([one], wrong[0], model="old"), guard([one], wrong[1], model="new")
        return gate(old, new, [one], tmp_path / name, config=QUICK)

    few = pair(samples(120), "few")
    found = re.search(r"is not sure\. If the gain is as measured, about ([\d,]+) more samples", reasons(few))
    assert found is not None, reasons(few)
    more = int(found[1].replace(",", ""))
    assert not pair(samples(120 + more // 160 * 40), "still too few").passed
    later = pair(samples(120 + -(-more * 3 // 2 // 40) * 40), "enough")
    assert later.passed, reasons(later)


@given(
    samples=st.integers(1, 100_000),
    gain=st.floats(1e-3, 0.5),
    ratio=st.floats(1.0, 100.0),
)
def test_more_samples_are_needed_the_wider_the_interval(samples: int, gain: float, ratio: float) -> None:
    more = _more(ratio * gain, gain, samples)
    exact = samples * (ratio**2 - 1)
    assert more >= max(1, exact * (1 - 1e-9))
    assert more <= max(10, 1.2 * exact + 1)
    assert _more(ratio * gain, gain / 2, samples) >= more


# ---- runs ---------------------------------------------------------------------------------------------------------


def test_a_saved_run_is_a_baseline(tmp_path: Path) -> None:
    one, other = samples(200), samples(20, name="more")
    saved = run(guard([one, other], some(one, 0.3)), [one, other], tmp_path / "saved")
    new = guard([one, other], model="new")
    for baseline in (saved, tmp_path / "saved", str(tmp_path / "saved")):
        assert gate(baseline, new, [one], tmp_path / "gate", config=QUICK).passed
    # Samples that it judged and nobody asks for don't count.
    result = gate(saved, new, [one], tmp_path / "gate", config=QUICK)
    assert {figures.name for figures in result.figures} == {"prompt", "ours", "text"}
    assert not (tmp_path / "gate" / "old").exists()


def test_a_saved_run_of_other_samples_is_refused(tmp_path: Path) -> None:
    one = samples(100)
    saved = run(guard([one]), [one], tmp_path / "saved")
    changed = CaseSet("ours", tuple(replace(case, prompt=f"{case.prompt}!") for case in one.cases[:30]))
    with pytest.raises(ConfigurationError, match="of the old guard lacks 30 of 30 samples"):
        gate(saved, saved, [changed], tmp_path / "gate", config=QUICK)
    assert not (tmp_path / "gate" / "gate.json").exists()


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    one = samples(150)
    old, new = guard([one], some(one, 0.3), model="old"), guard([one], model="new")
    engine = new.engine
    assert isinstance(engine, ScriptedEngine)
    script, answered = engine.script, []

    def fails_later(prompt: Prompt) -> Any:
        answered.append(prompt)
        return script(prompt) if len(answered) <= 64 else EngineUnavailableError("gone")

    engine.script = fails_later
    with pytest.raises(EngineUnavailableError, match="goes on from there"):
        gate(old, new, [one], tmp_path, config=QUICK)
    assert not (tmp_path / "gate.json").exists()
    engine.script, before = script, engine.calls
    first = old.engine
    assert isinstance(first, ScriptedEngine)
    old_calls = first.calls
    assert gate(old, new, [one], tmp_path, config=QUICK).passed
    assert first.calls == old_calls, "the first run was whole"
    assert len(engine.prompts) - len(answered) == 150 - 64
    assert engine.calls > before


def test_other_weights_of_the_same_name_are_another_gate(tmp_path: Path) -> None:
    one = samples(120)
    weights = tmp_path / "guard"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"first")
    old, new = guard([one], some(one, 0.3)), guard([one])
    gate(old, new, [one], tmp_path / "gate", config=QUICK, new_checkpoint=weights)
    (weights / "model.safetensors").write_bytes(b"second")
    with pytest.raises(ConfigurationError, match=r"holds another run\. It differs in model"):
        gate(old, new, [one], tmp_path / "gate", config=QUICK, new_checkpoint=weights)


def test_the_policy_is_that_of_both_and_decides_no_figure(tmp_path: Path) -> None:
    one = samples(120)
    policy = Policy.of({"name": "house", "prompt": "annotate"})
    old, new = guard([one], some(one, 0.3)), guard([one])
    result = gate(old, new, [one], tmp_path / "with", config=QUICK, policy=policy)
    assert result.policy == policy.hash
    assert {Run.load(tmp_path / "with" / name).cohort.policy for name in ("old", "new")} == {policy.hash}
    assert result.slices == gate(old, new, [one], tmp_path / "without", config=QUICK).slices


def test_nothing_of_the_samples_is_kept_where_it_is_not_wanted(tmp_path: Path) -> None:
    one = samples(120)
    for name, keep in (("with", True), ("without", False)):
        gate(guard([one], some(one, 0.3)), guard([one]), [one], tmp_path / name, config=QUICK, keep_text=keep)
        written = "".join(file.read_text("utf-8") for file in (tmp_path / name).rglob("*") if file.is_file())
        assert ("tell me about it" in written) == keep
        assert "tell me" not in (tmp_path / name / "gate.json").read_text("utf-8")


def test_samples_without_labels_can_not_be_compared(tmp_path: Path) -> None:
    one = samples(10)
    bare = CaseSet("bare", tuple(replace(case, gold=None) for case in one.cases))
    known = guard([one])
    with pytest.raises(ConfigurationError, match="nothing can be compared"):
        gate(known, known, [bare], tmp_path, config=QUICK)


def test_progress_is_told(tmp_path: Path) -> None:
    one = samples(64)
    seen: list[int] = []
    gate(guard([one]), guard([one]), [one], tmp_path, config=QUICK, progress=lambda told: seen.append(told.done))
    assert seen == [32, 64, 32, 64]


def test_a_config_is_checked() -> None:
    for wrong in ({"margin": 1.0}, {"margin": -0.1}, {"min_samples": -1}, {"resamples": 0}, {"margins": 0.1}):
        with pytest.raises(ValidationError):
            GateConfig(**wrong)


# ---- turns --------------------------------------------------------------------------------------------------------


def test_labelled_turns_become_samples_of_both_stages() -> None:
    given = turns(80, seed=5)
    sets = {one.name: one for one in sets_of(given)}
    assert set(sets) == {"synthetic-prompt", "synthetic-response"}
    answers = sets["synthetic-response"].cases
    assert {case.id for case in answers} <= {turn.id for turn in given if turn.response_label is not None}
    by_id = {turn.id: turn for turn in given}
    for one in sets.values():
        for case in one.cases:
            assert case.gold is by_id[case.id].label(case.stage)
            assert case.group
    assert all(case.response is None for case in sets["synthetic-prompt"].cases)


def test_what_repeats_is_judged_once_and_one_request_stays_together() -> None:
    turn = next(turn for turn in turns(20, seed=1, kind="text"))
    again = replace(turn, id="again", group="", response="Another answer.")
    bare = replace(turn, group="")
    asked, answered = sets_of([bare, again])
    assert (asked.name, len(asked.cases)) == ("synthetic-prompt", 1)
    assert len(answered.cases) == 2
    assert len({case.group for case in (*asked.cases, *answered.cases)}) == 1


def test_the_config_travels_as_json() -> None:
    config = GateConfig(margin=0.02, stages=(Stage.RESPONSE,))
    assert GateConfig.model_validate(json.loads(config.model_dump_json())) == config
