"""The model card: what it counts, what it says of what isn't known, and that the hub's own reader takes it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail_vl.engines._checkpoint import TrainedFormat, write_guard_json
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation import seen
from guardrail_vl.evaluation.cases import CaseSet
from guardrail_vl.training.card import (
    CARD,
    CardFacts,
    Figures,
    GuardFacts,
    StageFacts,
    add_metrics,
    counts,
    read_facts,
    render,
)
from guardrail_vl.training.synthetic import turns
from guardrail_vl.verdict import Label, Stage

MEASURED = Figures(
    stage=Stage.PROMPT, by="source", name="house", samples=200, harmful=80, f1=0.9123, f1_interval=(0.88, 0.94),
    precision=0.93, recall=0.895, fpr=0.05, fpr_interval=(0.02, 0.09), parse_failures=0.0, tokens=46.2,
)  # fmt: skip


def guard(**more: object) -> GuardFacts:
    facts = CardFacts.of(turns(60, seed=1), name="my-guard", base="Qwen/Qwen2.5-VL-3B-Instruct")
    told = {"format": "guardreasoner-vl/1", "golden": "0123456789abcdef", "dtype": "bfloat16", **more}
    return GuardFacts(training=told.pop("training", facts), **told)  # type: ignore[arg-type]


def test_turns_are_counted_by_source_modality_and_licence() -> None:
    given = (*turns(80, seed=2), *(replace(turn, source="other", licence="MIT") for turn in turns(20, seed=3)))
    found = counts(given)
    by_key = Counter((turn.source, turn.modality, turn.licence) for turn in given)
    assert {(one.source, one.modality, one.licence): one.turns for one in found} == by_key
    assert sum(one.harmful_requests + one.unharmful_requests for one in found) == len(given)
    harmful = sum(turn.response_label is Label.HARMFUL for turn in given)
    assert sum(one.harmful_responses for one in found) == harmful > 0


def test_the_same_content_counts_once_and_its_hash_is_listed() -> None:
    given = turns(40, seed=4)
    again = [replace(turn, id=f"again-{turn.id}") for turn in given]
    facts = CardFacts.of([*given, *again], name="g", base="b")
    assert sum(one.turns for one in facts.data) == len({turn.content_digest for turn in given})
    asked = CaseSet("asked", tuple(turn.case(Stage.PROMPT) for turn in given if turn.prompt))
    assert seen.leave_out([asked], frozenset(facts.seen)) == ((), {"asked": len(asked.cases)})


def test_facts_travel_as_json() -> None:
    told = guard(policy="0a1b2c", policy_name="house", training=replace(guard().training, metrics=(MEASURED,)))
    assert GuardFacts.from_json(told.to_json()) == told


def test_the_hubs_own_reader_takes_the_front_matter() -> None:
    hub = pytest.importorskip("huggingface_hub")
    facts = replace(
        guard().training,
        licence="Apache-2.0",
        languages=("en", "de"),
        metrics=(MEASURED, replace(MEASURED, by="stage")),
    )
    card = hub.ModelCard(render(guard(training=facts)))
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert card.data.language == ["en", "de"]
    assert (card.data.pipeline_tag, card.data.library_name) == ("image-text-to-text", "transformers")
    results = card.data.eval_results
    assert {(one.metric_type, one.metric_value) for one in results} == {
        ("f1", 0.9123), ("recall", 0.895), ("precision", 0.93),
    }  # fmt: skip
    assert {one.dataset_name for one in results} == {"house"}
    assert card.text.lstrip().startswith("# my-guard")


def test_what_the_hub_does_not_know_is_not_claimed() -> None:
    hub = pytest.importorskip("huggingface_hub")
    facts = replace(guard().training, base="my own base", licence="House licence 2")
    data = hub.ModelCard(render(guard(training=facts, pictures=False))).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "House licence 2")
    assert "base_model" not in data
    assert data["pipeline_tag"] == "text-generation"


def test_the_text_tells_everything_that_is_known() -> None:
    facts = replace(
        guard().training,
        description="Knows shapes and verbs.",
        base_licence="Apache-2.0",
        stages=(StageFacts("sft", {"learning_rate": 5e-5, "epochs": 3, "lora": None}, {"last loss": 0.125}),),
        metrics=(MEASURED,),
        not_tested=("Memes.",),
        attributions=("Synthetic data by its authors.",),
    )
    text = render(guard(training=facts, policy="0a1b2c3d4e5f", policy_name="house", seen=17))
    for words in (
        "Knows shapes and verbs.",
        "house (hash 0a1b2c3d4e5f)",
        "golden hash 0123456789abcdef",
        "### sft",
        r"| learning\_rate | 5e-05 |",
        "| lora | none |",
        "| last loss | 0.125 |",
        "| prompt | house | 200 | 80 | 91.2 (88.0–94.0) | 93.0 | 89.5 | 5.0 (2.0–9.0) | 0.0 | 46 |",
        "- Memes.",
        "- Judging a response: no figure above is of that.",
        "- The base, Qwen/Qwen2.5-VL-3B-Instruct: Apache-2.0.",
        "- Data, synthetic: Apache-2.0.",
        "- Synthetic data by its authors.",
        "`seen.txt` lists 17 requests",
    ):
        assert words in text
    assert f"{sum(one.turns for one in facts.data):,} labelled turns." in text


def test_what_is_not_known_is_said() -> None:
    text = render(GuardFacts("guardreasoner-vl/1", "0f", CardFacts("bare", "base")))
    for words in ("Nothing was measured when this card was written.", "Not told.", "These weights: not stated.",
                  "none was named", "No list of the requests", "it was not trained on them",
                  "it is not told which ones"):  # fmt: skip
        assert words in text


@settings(max_examples=40)
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_name_breaks_out_of_its_place(name: str, source: str) -> None:
    whole = render(guard())
    facts = replace(
        guard().training,
        name=name,
        data=tuple(replace(one, source=source) for one in guard().training.data),
        licence=name,
    )
    text = render(guard(training=facts))
    head = text.split("---\n", 2)[1] if "\n---\n" in text else ""
    assert yaml.safe_load(head)["library_name"] == "transformers"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == sum(line.startswith("|") for line in whole.splitlines())
    assert sum(line.startswith("## ") for line in text.splitlines()) == sum(
        line.startswith("## ") for line in whole.splitlines()
    )


# ---- an exported folder -------------------------------------------------------------------------------------------


def test_figures_of_a_gate_are_added_to_the_card_alone(tmp_path: Path) -> None:
    told = guard()
    write_guard_json(tmp_path, TrainedFormat(told.format, told.golden), json.loads(told.to_json()))
    (tmp_path / CARD).write_text(render(told), encoding="utf-8")
    before = (tmp_path / "guard.json").read_bytes()
    assert read_facts(tmp_path) == told
    add_metrics(tmp_path, [MEASURED])
    text = (tmp_path / CARD).read_text("utf-8")
    assert "91.2 (88.0–94.0)" in text
    assert "Nothing was measured" not in text
    assert (tmp_path / "guard.json").read_bytes() == before
    add_metrics(tmp_path, [MEASURED])  # as a run that goes on does
    assert (tmp_path / CARD).read_text("utf-8") == text


@pytest.mark.parametrize(
    ("text", "message"), [(None, "has no guard.json"), ('{"format": "a", "golden": "b"}', "export")]
)
def test_another_folder_is_no_exported_guard(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "guard.json").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        add_metrics(tmp_path, [MEASURED])
