from __future__ import annotations

import sys
from pathlib import Path

import pytest

from guardrail_vl import Guard, Policy
from guardrail_vl.evaluation._conditions import cohort_of, revision_of, thresholds_of
from guardrail_vl.testing import ScriptedEngine, by_keyword


def make_guard(**settings: object) -> Guard:
    return Guard(engine=ScriptedEngine(by_keyword("bomb")), **settings)  # type: ignore[arg-type]


def test_thresholds_in_words() -> None:
    assert thresholds_of(make_guard()) == "model's own labels"
    policy = {
        "prompt": {"threshold": 0.7},
        "categories": {"PII": {"definition": "names", "threshold": 0.25}, "Violent": {"definition": "harm"}},
    }
    guard = make_guard(policy=Policy.of(policy), format="qwen3guard/1")
    assert thresholds_of(guard) == "model's own labels; actions by the policy's scores: prompt 0.7, PII 0.25"


def test_a_model_from_the_hub_is_told_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    assert pytest.importorskip("huggingface_hub").try_to_load_from_cache  # as whoever loads a checkpoint has done
    commit = "0123456789abcdef0123456789abcdef01234567"
    there = tmp_path / "models--some--guard"
    (there / "snapshots" / commit).mkdir(parents=True)
    (there / "snapshots" / commit / "config.json").write_text("{}")
    (there / "refs").mkdir()
    (there / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert revision_of("some/guard") == commit[:12]
    assert revision_of("some/other") == ""
    assert cohort_of(make_guard(), batch=1, workers=1, checkpoint="some/guard").model == "scripted@0123456789ab"
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    assert revision_of("some/guard") == ""


def test_a_revision_that_was_asked_for_is_enough(tmp_path: Path) -> None:
    guard = Guard(engine=ScriptedEngine(by_keyword("bomb"), model="some/guard@v2"))
    assert cohort_of(guard, batch=1, workers=1, checkpoint=tmp_path).model == "some/guard@v2"


def test_a_cascade_is_told_by_all_of_it(tmp_path: Path) -> None:
    first = Guard(engine=ScriptedEngine(by_keyword("bomb"), model="tiny"), speed="auto", band=(0.2, 0.8))
    then = Guard.remote("http://127.0.0.1:9/v1", model="large")
    cohort = cohort_of(Guard(first=first, then=then), batch=1, workers=1, checkpoint=tmp_path)
    assert cohort.model == f"tiny > large@{revision_of(tmp_path)}"
    assert (cohort.engine, cohort.format) == ("cascade", "guardreasoner-vl/1")
    assert cohort.speed == "fast [0.2, 0.8] > reason [0.1, 0.9] > reason"
    assert cohort.machine.startswith("a server whose machine is not known")
    back = Guard(first=then, then=first)
    assert cohort_of(back, batch=1, workers=1).machine.startswith("a server whose machine is not known")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja"])
def test_any_file_that_counts_changes_a_checkpoint(name: str, tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"same")
    before = revision_of(tmp_path)
    (tmp_path / name).write_bytes(b"one")
    one = revision_of(tmp_path)
    (tmp_path / name).write_bytes(b"two")
    assert len({before, one, revision_of(tmp_path)}) == 3
    (tmp_path / "README.md").write_bytes(b"words")
    (tmp_path / name).write_bytes(b"one")
    assert revision_of(tmp_path) == one
