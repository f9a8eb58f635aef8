from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'train'")

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.prompt_format.guardreasoner_vl import INSTRUCTION, GuardReasonerVL
from guardrail_vl.training import verl
from guardrail_vl.training._exporting import reward_file
from guardrail_vl.training.clip import DynamicClip
from guardrail_vl.training.rewards import PAPER, RELEASE, reward
from guardrail_vl.training.verl import LargeRunConfig
from guardrail_vl.verdict import Label
from tests.training.exported import TEXTS, TURNS, completions, content, golds, module

SMALL = LargeRunConfig(batch=4, update=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return verl.export(TURNS, tmp_path_factory.mktemp("verl") / "run", model="some/model", config=SMALL)


def test_rows_reload_with_datasets(folder: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="needs the extra 'train'")
    rows = datasets.load_dataset(
        "parquet", data_files=str(folder / "train.parquet"), split="train", cache_dir=str(folder.parent / "cache")
    )
    assert rows.column_names == ["data_source", "prompt", "images", "ability", "reward_model", "extra_info"]
    assert [len(row["images"]) for row in rows] == [0, 1, 2, 1, 1]
    for turn, row in zip(TURNS, rows, strict=True):
        system, user = row["prompt"]
        assert system == {"role": "system", "content": INSTRUCTION}
        assert user["role"] == "user"
        assert user["content"].count("<image>") == len(row["images"])
        assert "<video>" not in user["content"]
        assert json.loads(row["reward_model"]["ground_truth"]) == {
            "request": turn.prompt_label,
            "response": turn.response_label,
        }
        assert row["extra_info"]["id"] == turn.id
    assert rows[1]["prompt"][1]["content"] == "Human user:\n<image>\n\nAI assistant:\nNone\n"


def test_texts_alone_have_the_same_schema(folder: Path, tmp_path: Path) -> None:
    verl.export(TEXTS, tmp_path / "texts", model="m", config=SMALL)
    assert pq.read_schema(tmp_path / "texts" / "train.parquet") == pq.read_schema(folder / "train.parquet")


def test_prompts_have_the_tokens_that_the_guard_is_served(folder: Path, tiny: Path) -> None:
    from transformers import AutoTokenizer

    from guardrail_vl.engines._chat import Chat

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    for turn, row in zip(TURNS, rows, strict=True):
        messages = [{"role": message["role"], "content": content(message["content"])} for message in row["prompt"]]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        (prompt,) = GuardReasonerVL().render(turn.exchange(), turn.stage, speed="reason")
        assert tokenizer.encode(text, add_special_tokens=False) == Chat(tokenizer, images=True).ids(prompt)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="needs the extra 'train'")
    from guardrail_vl.training import tiny

    return tiny.build(tmp_path_factory.mktemp("tiny") / "model")


def test_the_reward_file_gives_the_same_numbers(tmp_path: Path, tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny)
    (tmp_path / "reward.py").write_text(reward_file("verl", PAPER, verl._CALL), encoding="utf-8")
    ast.parse((tmp_path / "reward.py").read_text(encoding="utf-8"), feature_version=(3, 9))
    file = module(tmp_path / "reward.py")

    @given(completions, golds)
    def same(text: str, gold: tuple[Label | None, Label | None]) -> None:
        earned = reward(text, *gold, len(tokenizer.encode(text)) + 1, PAPER)
        truth = json.dumps({"request": gold[0], "response": gold[1]})
        scores = file.compute_score(
            data_source="guard", solution_str=text, ground_truth=truth, extra_info={}, tokenizer=str(tiny)
        )
        assert list(scores.values()) == [earned.value, earned.safety, earned.format, earned.l_norm]
        assert list(scores) == ["score", "safety", "format", "length"]

    same()


@given(completions, golds, st.sampled_from([None, {"index": 1}]))
def test_characters_need_no_tokenizer(
    text: str, gold: tuple[Label | None, Label | None], extra: dict[str, int] | None
) -> None:
    names: dict[str, Any] = {"__name__": "reward"}
    exec(compile(reward_file("verl", RELEASE, verl._CALL), "reward.py", "exec"), names)
    truth = json.dumps({"request": gold[0], "response": gold[1]})
    earned = reward(text, *gold, None, RELEASE)
    assert names["compute_score"]("guard", text, truth, extra)["score"] == earned.value


def test_the_config_is_the_papers_with_a_falling_clip(tmp_path: Path) -> None:
    folder = verl.export(
        TEXTS, tmp_path / "run", model="some/model", config=LargeRunConfig(batch=4, update=2, phases=5), held_out=TURNS
    )
    found = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("config-*.yaml"))]
    assert [config["trainer"]["total_training_steps"] for config in found] == [5, 10, 15, 20, 25]
    for part, config in enumerate(found):
        actor, rollout = config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]
        clip = sum(DynamicClip().at(step, 25) for step in range(5 * part + 1, 5 * part + 6)) / 5
        assert actor["clip_ratio_low"] == actor["clip_ratio_high"] == pytest.approx(clip)
        assert (rollout["n"], rollout["temperature"], actor["use_kl_loss"]) == (16, 1.2, False)
        assert actor["optim"] == {"lr": 1e-6, "weight_decay": 0.01}
        assert config["algorithm"] == {"adv_estimator": "grpo", "use_kl_in_reward": False}
        assert config["reward"]["custom_reward_function"]["reward_kwargs"] == {"tokenizer": "some/model"}
        # It is saved, and taken up by the next part.
        assert config["trainer"]["save_freq"] == config["trainer"]["total_training_steps"]
        assert config["trainer"]["resume_mode"] == "auto"
        named = [config["data"]["train_files"], config["data"]["val_files"]]
        named.append(config["reward"]["custom_reward_function"]["path"])
        assert all((folder / name).is_file() for name in named)
    run = subprocess.run(["sh", "-n", str(folder / "run.sh")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There are 5 turns, and one step takes 512"):
        verl.export(TURNS, tmp_path / "run", model="m")
    with pytest.raises(ConfigurationError, match="the prompt format"):
        verl.export(TURNS, tmp_path / "run", model="m", format="qwen3guard-gen/1", config=SMALL)
    assert list(tmp_path.iterdir()) == []
