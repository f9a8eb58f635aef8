"""The registry: its facts agree with the paper and with each other, and it finds what lies in a folder."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.averages import paper_weights
from guardrail_vl.evaluation.benchmarks import BENCHMARKS, MAX_DEPTH, Group, as_markdown, discover, locate, pick
from guardrail_vl.verdict import Stage

PAGE = Path(__file__).parents[2] / "docs" / "evaluation" / "benchmarks.md"
BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path, *, repeats: bool = True) -> dict[str, str]:
    return {b.name: path.relative_to(folder).as_posix() for b, path in discover(folder, repeats=repeats)}


def test_names_are_unique_and_snake_case() -> None:
    assert len(BY_NAME) == len(BENCHMARKS)
    assert all(set(name) <= set(string.ascii_lowercase + string.digits + "_") for name in BY_NAME)


def test_the_paper_has_eight_prompt_and_six_response_benchmarks_in_its_order() -> None:
    paper = pick(["paper"])
    assert [b.stage for b in paper] == [Stage.PROMPT] * 8 + [Stage.RESPONSE] * 6
    assert [b.modality for b in paper] == ["text"] * 6 + ["image", "text-image"] + ["text"] * 5 + ["text-image"]


@pytest.mark.parametrize("stage", list(Stage))
def test_weights_are_those_of_the_papers_averages(stage: Stage) -> None:
    weights = {b.paper_name: b.weight for b in pick(["paper"]) if b.stage is stage}
    assert weights == paper_weights(stage, sizes="release")
    assert list(weights) == list(paper_weights(stage))
    assert {b.paper_name: b.size for b in pick(["paper"]) if b.stage is stage} == paper_weights(stage, sizes="table")


def test_counts_add_up() -> None:
    for b in BENCHMARKS:
        assert (b.harmful is None) == (b.unharmful is None), b.name
        if b.harmful is not None and b.unharmful is not None:
            assert b.harmful + b.unharmful == b.size, b.name
    assert [b.name for b in BENCHMARKS if b.harmful is None] == [
        "wildguard_test_prompt", "spa_vl_prompt", "wildguard_test_response", "spa_vl_response",
    ]  # fmt: skip


def test_only_mossbench_prohibits_training_and_repeats_point_to_prompt_benchmarks() -> None:
    assert [b.name for b in BENCHMARKS if b.training_prohibited] == ["shared_mossbench", "shared_mossbench_contrast"]
    for b in BENCHMARKS:
        if b.repeats:
            assert b.stage is Stage.PROMPT
            assert BY_NAME[b.repeats].stage is Stage.PROMPT
            assert not BY_NAME[b.repeats].repeats


def test_pick_takes_names_patterns_and_groups_in_the_registrys_order() -> None:
    assert pick(["all"]) == BENCHMARKS
    assert [b.name for b in pick(["xstest", "toxic_chat", "toxic_chat"])] == ["toxic_chat", "xstest"]
    assert {b.group for b in pick(["shared"])} == {"shared"}
    assert [b.name for b in pick(["wildguard_*"])] == ["wildguard_test_prompt", "wildguard_test_response"]
    assert len(pick(["paper", "shared", "other"])) == len(BENCHMARKS)


def test_pick_refuses_what_fits_nothing() -> None:
    with pytest.raises(ConfigurationError, match=r"no benchmark 'toxicchat'.*toxic_chat"):
        pick(["paper", "toxicchat"])
    with pytest.raises(ConfigurationError, match="No benchmark is named"):
        pick([])


def test_discover_finds_the_releases_owners_and_shared_files(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "test/ToxicChat.json", "test/SPA_VL_Eval.json", "owners/samples-1680.jsonl.gz", "toxic_chat.jsonl.gz",
        "xstest_completions.jsonl.gz", "BeaverTails/round0/30k/test.jsonl.gz", "wildguard_test.parquet", "README.md",
        "Content Moderation Extracted Annotations 02.08.24_test_release_0418_v1.parquet", ".cache/XSTest.json",
        ".cache/gsm8k.jsonl",
    )  # fmt: skip
    assert found(tmp_path) == {
        "toxic_chat": "test/ToxicChat.json",
        "openai_moderation": "owners/samples-1680.jsonl.gz",
        "aegis_safety_test": "Content Moderation Extracted Annotations 02.08.24_test_release_0418_v1.parquet",
        "wildguard_test_prompt": "wildguard_test.parquet",
        "spa_vl_prompt": "test/SPA_VL_Eval.json",
        "beavertails": "BeaverTails/round0/30k/test.jsonl.gz",
        "wildguard_test_response": "wildguard_test.parquet",
        "spa_vl_response": "test/SPA_VL_Eval.json",
        "shared_toxic_chat": "toxic_chat.jsonl.gz",
        "shared_xstest_completions": "xstest_completions.jsonl.gz",
    }
    assert list(found(tmp_path)) == [b.name for b in BENCHMARKS if b.name in found(tmp_path)]


def test_the_releases_file_comes_before_the_owners_and_better_names_first(tmp_path: Path) -> None:
    touch(tmp_path, "samples-1680.jsonl.gz", "0_2_OpenAIModeration.json", "samples-1680.jsonl")
    assert found(tmp_path) == {"openai_moderation": "0_2_OpenAIModeration.json"}
    touch(tmp_path, "b/OpenAIModeration.json")
    assert found(tmp_path) == {"openai_moderation": "b/OpenAIModeration.json"}


def test_two_equally_good_files_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/BeaverTails.json", "b/BeaverTails.json", "gsm8k.jsonl")
    with pytest.raises(ConfigurationError, match=r"'beavertails' lies there twice: a/BeaverTails.json and b/BeaverT"):
        discover(tmp_path)
    assert locate(BY_NAME["shared_gsm8k"], tmp_path) == tmp_path / "gsm8k.jsonl"


def test_repeats_are_left_out_only_where_what_they_repeat_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "xstest_response.jsonl")
    both = ["shared_xstest_response_prompt", "shared_xstest_response_response"]
    assert list(found(tmp_path, repeats=False)) == both
    touch(tmp_path, "xstest_prompts.jsonl")
    assert list(found(tmp_path)) == ["shared_xstest_prompts", *both]
    assert list(found(tmp_path, repeats=False)) == ["shared_xstest_prompts", both[1]]


def test_discover_goes_so_deep_and_no_deeper(tmp_path: Path) -> None:
    touch(tmp_path, "/".join("abcdefgh"[:MAX_DEPTH]) + "/gsm8k.jsonl")
    touch(tmp_path, "/".join("abcdefgh"[: MAX_DEPTH + 1]) + "/catqa.jsonl")
    assert list(found(tmp_path)) == ["shared_gsm8k"]


def test_discover_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no folder 'nowhere'"):
        discover(tmp_path / "nowhere")


@pytest.mark.parametrize("group", ["paper", "other", "shared"])
def test_the_page_prints_the_registry(group: Group) -> None:
    shown = re.search(rf"<!-- begin {group} -->\n\n(.*?)\n<!-- end {group} -->", PAGE.read_text("utf-8"), re.DOTALL)
    assert shown is not None
    assert shown[1] == as_markdown(group), "print(guardrail_vl.evaluation.benchmarks.as_markdown(...)) gives the table"


def test_the_page_tells_every_file_name() -> None:
    page = PAGE.read_text("utf-8")
    for b in BENCHMARKS:
        for layout in b.layouts:
            if layout.kind != "shared":
                assert [name for name in layout.files if f"`{name}`" not in page] == [], b.name
