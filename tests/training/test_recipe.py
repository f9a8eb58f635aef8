from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.errors import ConfigurationError

for package in ("torch", "transformers", "trl", "peft"):
    pytest.importorskip(package)

from guardrail_vl.training.recipe import STAGES, Recipe, _flat
from guardrail_vl.training.rewards import ECO

ROOT = Path(__file__).parents[2] / "training"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAPER = [ROOT / "recipes" / f"{name}.yaml" for name in ("paper-3b", "paper-7b", "eco-3b")]
SYNTHETIC = {"synthetic": {"train": 8, "held_out": 4}}


def raw(**changes: Any) -> dict[str, Any]:
    whole = {"name": "x", "base": {"tiny": {}}, "data": SYNTHETIC, "sft": {}, "export": {}, "gate": {}, **changes}
    return {key: value for key, value in whole.items() if value != "absent"}


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Recipe.of(raw(**changes))
    return str(caught.value)


# ---- those that ship ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_parses(file: Path) -> None:
    recipe = Recipe.load(file)
    assert recipe.stages[0] == "data"
    # The base of these answers nothing that a gate could read.
    assert recipe.stages[-2:] == ("export", "gate") or file.stem in ("real-smollm2", "reason-smollm2")
    again = yaml.safe_load(yaml.safe_dump(recipe.with_whole_paths()))
    paths = {"base", "data", "policy"}
    assert Recipe.of(again).model_dump(exclude=paths) == recipe.model_dump(exclude=paths)


def test_the_recipes_that_are_there() -> None:
    assert {file.stem for file in RECIPES} >= {"smoke", "paper-3b", "paper-7b", "eco-3b", "house-policy-lora"}


@pytest.mark.parametrize("name", ["smoke", "house-policy-lora"])
def test_these_find_what_they_name(name: str) -> None:
    Recipe.load(ROOT / "recipes" / f"{name}.yaml").check()


def test_data_that_a_user_has_to_bring_is_named() -> None:
    with pytest.raises(
        ConfigurationError, match=r"data/GuardReasoner-VLTrainText\.json, data/GuardReasoner-VLTrainImage"
    ):
        Recipe.load(PAPER[0]).check()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        # R-SFT: section 3 of the paper's reconstruction (A.5.2 and the released script).
        ("sft.learning_rate", 5e-5),
        ("sft.warm_up", 0),
        ("sft.epochs", 3),
        ("sft.max_grad_norm", 1.0),
        ("sft.max_length", 2048),
        ("sft.train_vision", False),
        ("sft.train_projector", False),
        ("sft.lora", None),
        ("sft.seed", 42),
        ("sft.fast_share", 0.0),
        # Mining: 4.1.
        ("mine.samples", 4),
        ("mine.temperature", 1.0),
        ("mine.top_p", 0.95),
        ("mine.rule", "all_wrong"),
        ("mine.limit", 12_000),
        ("mine.keep_pictures", False),
        ("mine.labels", "strict"),
        # Concatenation: 4.2.
        ("concat.share", 0.2),
        ("concat.total", 12_000),
        ("concat.seed", 42),
        ("concat.gold", "either"),
        ("concat.placeholder", False),
        # RL: 4.3 to 4.5.
        ("rl.group", 16),
        ("rl.temperature", 1.2),
        ("rl.top_p", 1.0),
        ("rl.prompts_per_rollout", 512),
        ("rl.prompts_per_update", 256),
        ("rl.learning_rate", 1e-6),
        ("rl.weight_decay", 1e-2),
        ("rl.betas", (0.9, 0.999)),
        ("rl.warm_up", 0),
        ("rl.max_grad_norm", 1.0),
        ("rl.clip.kind", "dynamic"),
        ("rl.clip.epsilon", 0.2),
        ("rl.kl", 0.0),
        ("rl.passes", 1),
        ("rl.max_tokens", 3072),
        ("rl.reward.unit", "tokens"),
        ("rl.reward.limit", 3072),
        ("rl.reward.needs_think", True),
        ("rl.reward.clamp", True),
        ("rl.layout", "served"),
    ],
)
@pytest.mark.parametrize("file", PAPER, ids=lambda file: file.stem)
def test_the_numbers_are_the_papers(file: Path, path: str, value: object) -> None:
    found: Any = Recipe.load(file)
    for step in path.split("."):
        found = getattr(found, step)
    assert found == value


def test_sizes_that_follow_are_the_papers() -> None:
    recipe = Recipe.load(PAPER[0])
    assert recipe.sft is not None
    assert recipe.rl is not None
    assert recipe.sft.batch_size * recipe.sft.accumulation * 4 == 192  # on 4 GPUs
    assert 12_000 // recipe.rl.prompts_per_rollout == 23  # steps
    assert recipe.rl.updates_per_rollout == 2


def test_what_tells_the_paper_recipes_apart() -> None:
    three, seven, eco = (_flat(Recipe.load(file).model_dump(exclude={"description"})) for file in PAPER)
    assert {key for key in three if three[key] != seven[key]} == {"name", "base.name"}
    assert {key for key in three if three[key] != eco[key]} == {"name", "rl.reward.beta"}
    assert eco["rl.reward.beta"] == ECO.beta == 1 / 6
    assert (three["base.name"], seven["base.name"]) == ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.mark.parametrize("file", sorted((ROOT / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_takes_its_configs(file: Path) -> None:
    arguments: Any = importlib.import_module("accelerate.commands.config.config_args")
    config = arguments.load_config_from_file(str(file))
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert config.num_processes == given["num_processes"]
    assert str(config.distributed_type).rpartition(".")[2] == given["distributed_type"]


# ---- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stf": {}}, "unknown key 'stf', did you mean 'sft'?"),
        ({"sft": {"learnig_rate": 1}}, "unknown key 'sft.learnig_rate', did you mean 'learning_rate'?"),
        ({"rl": {"reward": {"zzz": 1}}}, "unknown key 'rl.reward.zzz' (allowed: beta, unit, limit, floor"),
        ({"data": {"train": [{"file": "a", "zzz": 1}]}}, "unknown key 'data.train[0].zzz' (allowed: file, layout)"),
        ({"base": {"tiny": {"hiden": 64}}}, "unknown key 'base.tiny.hiden', did you mean 'hidden'?"),
        ({"sft": {"learning_rate": -1}}, "sft.learning_rate: Input should be greater than 0"),
        ({"mine": {"rule": "wrong"}}, "mine.rule: Input should be 'all_wrong', 'some_wrong' or 'mixed'"),
        ({"sft": 3}, "'sft' must hold keys and values"),
        ({"sft": None}, "sft is empty: write {} for its defaults, or leave it out"),
        ({"name": "absent"}, "'name' is missing"),
        ({"base": {}}, "base: give a folder, a hub id, or tiny: {}"),
        ({"data": {}}, "data: give files in train, or synthetic"),
        ({"data": {**SYNTHETIC, "share": 0.1}}, "data: synthetic has its own held_out"),
        ({"data": {"train": ["a"], "held_out": ["b"], "share": 0.1}}, "give files in held_out, or a share"),
        ({"sft": "absent"}, "export and gate need sft or rl before them"),
        ({"export": "absent"}, "gate needs export"),
        ({"data": {"synthetic": {"train": 8}}}, "gate needs held-out turns"),
        ({"concat": {}}, "concat is for rl"),
        ({"sft": "absent", "rl": {}}, "rl on a tiny base needs sft"),
        ({"rl": {"prompts_per_update": 500}}, "In the recipe: rl: prompts_per_rollout is not a multiple"),
        ({"format": "guardreasoner-vl/9"}, "There is no prompt format 'guardreasoner-vl/9'"),
        ({"synthesize": {}}, "'synthesize.teacher' is missing"),
        ({"synthesize": {"teacher": {"url": "http://t", "model": "m", "api_key": "k"}}}, "a recipe holds no key"),
    ],
)
def test_what_is_wrong_is_told_by_the_path_of_its_key(changes: dict[str, Any], told: str) -> None:
    assert told in refused(**changes)


def test_no_message_repeats_a_value() -> None:
    assert "SECRET" not in refused(sft={"learning_rate": "SECRET"}, name=["SECRET"], policy={"SECRET": 1})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sft: {}\nsft: {}\n", "is no YAML in line 2: the key 'sft' is there twice"),
        ("a: [", "is no YAML in line 1"),
        ("- a\n", "must hold keys and values"),
        ("1: a\n", "must hold keys and values"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        Recipe.load(tmp_path / "r.yaml")
    assert told in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Can't read the recipe 'r\.yaml': No such file"):
        Recipe.load(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="is no YAML in UTF-8"):
        Recipe.load(tmp_path / "r.yaml")


# ---- what it says -------------------------------------------------------------------------------------------------


@given(st.sets(st.sampled_from(("synthesize", "mine", "concat", "rl"))))
def test_a_stage_without_its_section_is_left_out(chosen: set[str]) -> None:
    sections = {
        "synthesize": {"teacher": {"url": "http://t", "model": "m"}}, "mine": {}, "concat": {}, "rl": {},
    }  # fmt: skip
    if "rl" not in chosen:
        chosen = chosen - {"concat"}
    recipe = Recipe.of(raw(**{name: sections[name] for name in chosen}))
    wanted = {"data", "sft", "export", "gate", *chosen}
    assert recipe.stages == tuple(stage for stage in STAGES if stage in wanted)
    # Written out and read again, it is the same run.
    assert Recipe.of(recipe.with_whole_paths()).conditions() == recipe.conditions()


def test_conditions_follow_what_is_in_the_files(tmp_path: Path) -> None:
    (tmp_path / "turns.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "policy.yaml").write_text("name: a\n", encoding="utf-8")
    (tmp_path / "other.yaml").write_text("name: a\n", encoding="utf-8")

    def conditions(**changes: Any) -> dict[str, Any]:
        data = {"train": ["turns.jsonl"], "share": 0.5}
        return Recipe.of(raw(data=data, **{"policy": "policy.yaml", **changes}), folder=tmp_path).conditions()

    before = conditions()
    assert conditions(policy="other.yaml", description="said otherwise") == before
    (tmp_path / "turns.jsonl").write_text("{ }\n", encoding="utf-8")
    after = conditions()
    assert {key for key in after if after[key] != before[key]} == {"data.train[0].file"}
    assert {key for key, value in conditions(sft={"epochs": 1}).items() if value != after[key]} == {"sft.epochs"}


def test_a_base_is_a_folder_where_there_is_one(tmp_path: Path) -> None:
    recipe = Recipe.of(raw(base="org/model"), folder=tmp_path)

    def base() -> tuple[str | Path, object]:
        return recipe.base_model, recipe.conditions()["base.name"]

    assert base() == ("org/model", "org/model")
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    place, before = base()
    assert place == folder
    (folder / "config.json").write_text("{ }", encoding="utf-8")
    assert base() != (folder, before)


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    recipe = Recipe.of(raw(base="./model", data={"train": ["a.jsonl", "b.jsonl"], "share": 0.5}), folder=tmp_path)
    with pytest.raises(ConfigurationError, match=r"a\.jsonl, b\.jsonl, \./model"):
        recipe.check()


def test_how_a_stage_runs_decides_nothing_of_what_comes_out() -> None:
    one, other = (
        Recipe.of(raw(sft={"workers": workers}, mine={"tensor_parallel": gpus}, rl={}))
        for workers, gpus in ((0, 1), (3, 2))
    )
    assert one != other
    assert one.conditions() == other.conditions()
