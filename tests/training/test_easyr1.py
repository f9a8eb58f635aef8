from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'train'")

from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.media import render_views
from guardrail_vl.prompt_format.guardreasoner_vl import INSTRUCTION, MAX_PIXELS, GuardReasonerVL
from guardrail_vl.training import easyr1
from guardrail_vl.training._exporting import reward_file
from guardrail_vl.training.clip import DynamicClip, FixedClip
from guardrail_vl.training.easyr1 import LargeRunConfig
from guardrail_vl.training.rewards import ECO, PAPER, RewardConfig, reward
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label
from tests.training.exported import REWARD_CONFIGS, TEXTS, TURNS, H, completions, content, golds, module

SMALL = LargeRunConfig(batch=4, update=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return easyr1.export(TURNS, tmp_path_factory.mktemp("easyr1") / "run", model="some/model", config=SMALL)


# ---- the data -----------------------------------------------------------------------------------------------------


def test_rows_reload_with_datasets(folder: Path) -> None:
    datasets: Any = pytest.importorskip("datasets", reason="needs the extra 'train'")
    rows = datasets.load_dataset(
        "parquet", data_files=str(folder / "train.parquet"), split="train", cache_dir=str(folder.parent / "cache")
    )
    assert rows.column_names == ["problem", "answer", "images"]
    assert [len(row["images"]) for row in rows] == [0, 1, 2, 1, 1]
    for row in rows:
        assert row["problem"].count("<image>") == len(row["images"])
        for image in row["images"]:
            render_views(image["bytes"])
    assert rows[0]["problem"] == "Human user:\nHow?\n\nAI assistant:\nSo.\n"
    assert rows[2]["problem"] == "Human user:\n<image>\n<image>\nWhat is it?\n\nAI assistant:\nNone\n"
    assert json.loads(rows[0]["answer"]) == {"request": "harmful", "response": "unharmful"}
    assert json.loads(rows[3]["answer"]) == {"request": None, "response": "harmful"}


def test_texts_alone_have_the_same_schema(folder: Path, tmp_path: Path) -> None:
    easyr1.export(TEXTS, tmp_path / "texts", model="m", config=SMALL)
    assert pq.read_schema(tmp_path / "texts" / "train.parquet") == pq.read_schema(folder / "train.parquet")
    rows = pq.read_table(tmp_path / "texts" / "train.parquet").to_pylist()
    assert len(rows) == 100
    assert all(row["images"] == [] for row in rows)


def test_pictures_are_those_that_the_guard_is_served(folder: Path) -> None:
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    for turn, row in zip(TURNS, rows, strict=True):
        (prompt,) = GuardReasonerVL().render(turn.exchange(), turn.stage, speed="reason")
        shown = [render_views(image["bytes"])[0].tobytes() for image in row["images"]]
        assert shown == [image.pixels().tobytes() for image in prompt.images]
    (large,) = render_views(rows[4]["images"][0]["bytes"])
    assert large.width * large.height <= MAX_PIXELS


def test_prompts_have_the_tokens_that_the_guard_is_served(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra 'train'")
    from transformers import AutoTokenizer

    from guardrail_vl.engines._chat import Chat
    from guardrail_vl.training import tiny

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny.build(tmp_path / "tiny"))
    template = (folder / "chat_template.jinja").read_text()
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    for turn, row in zip(TURNS, rows, strict=True):
        messages = [{"role": "user", "content": content(row["problem"])}]
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        (prompt,) = GuardReasonerVL().render(turn.exchange(), turn.stage, speed="reason")
        served = Chat(tokenizer, images=True).ids(prompt)
        assert tokenizer.encode(text, add_special_tokens=False) == served
        # A conversation that brings its instruction gets no second one: the checkpoint is saved with this template.
        messages.insert(0, {"role": "system", "content": INSTRUCTION})
        again = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        assert again == text


def test_the_releases_layout_is_one_user_message(tmp_path: Path) -> None:
    easyr1.export(TURNS, tmp_path / "run", model="m", config=SMALL, layout="release")
    problem = pq.read_table(tmp_path / "run" / "train.parquet").to_pylist()[0]["problem"]
    assert problem.startswith("You are a classifier")
    assert "\nTask 1, determine" in problem
    assert "\nTask 2, determine" in problem
    assert problem.endswith(
        "</think>. Put the result into <result> </result>. Human user:\nHow?\n\nAI assistant:\nSo.\n"
    )
    assert not (tmp_path / "run" / "chat_template.jinja").exists()
    settings = yaml.safe_load((tmp_path / "run" / "config-01.yaml").read_text())
    assert settings["data"]["override_chat_template"] is None


def test_validation_is_what_was_held_out(tmp_path: Path) -> None:
    easyr1.export(TEXTS, tmp_path / "with", model="m", config=SMALL, held_out=TURNS)
    assert pq.read_table(tmp_path / "with" / "val.parquet").num_rows == 5
    easyr1.export(TEXTS, tmp_path / "without", model="m", config=SMALL)
    assert pq.read_table(tmp_path / "without" / "val.parquet").num_rows == 16


# ---- the reward ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", REWARD_CONFIGS)
def test_the_reward_file_gives_the_same_numbers(tmp_path: Path, config: RewardConfig) -> None:
    (tmp_path / "reward.py").write_text(reward_file("EasyR1", config, easyr1._CALL), encoding="utf-8")
    file = module(tmp_path / "reward.py")
    assert (file.REWARD_NAME, file.REWARD_TYPE) == ("guard", "batch")

    @given(st.lists(st.tuples(completions, golds, st.integers(0, 5000)), max_size=3))
    def same(given: list[tuple[str, tuple[Label | None, Label | None], int]]) -> None:
        inputs = [
            {
                "response": text,
                "response_length": tokens,
                "ground_truth": json.dumps({"request": request, "response": response}),
            }
            for text, (request, response), tokens in given
        ]
        scores = file.compute_score(inputs)
        expected = [reward(text, *gold, tokens, config) for text, gold, tokens in given]
        assert [score["overall"] for score in scores] == [earned.value for earned in expected]
        assert [score["safety"] for score in scores] == [earned.safety for earned in expected]
        assert [score["format"] for score in scores] == [earned.format for earned in expected]
        assert [score["length"] for score in scores] == [earned.l_norm for earned in expected]

    same()


def test_the_reward_file_needs_neither_this_package_nor_a_new_python(folder: Path) -> None:
    source = (folder / "reward.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 9))
    assert "import guardrail_vl" not in source
    assert "from guardrail_vl" not in source
    code = (
        "import json, sys, reward\n"
        "gold = json.dumps({'request': 'harmful', 'response': None})\n"
        "text = '<think>So.</think><result>Request: unharmful\\nResponse: None</result>'\n"
        "print(reward.compute_score([{'response': text, 'response_length': 1536, 'ground_truth': gold}])[0]['overall'])\n"
        "assert not {'guardrail_vl', 'pydantic', 'PIL'} & set(sys.modules)"
    )
    # Isolated (-S): not even what is installed beside it.
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        check=False,
        text=True,
    )
    assert run.stdout.strip() == "-4.0", run.stderr


# ---- the configs --------------------------------------------------------------------------------------------------


def configs(folder: Path) -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("config-*.yaml"))]


def test_the_papers_numbers(tmp_path: Path) -> None:
    assert LargeRunConfig().phases == 4
    turns = TEXTS * 6
    folder = easyr1.export(turns, tmp_path / "run", model="some/model", rewards=ECO)
    (config,) = configs(folder)  # 600 turns are one step
    assert config["data"]["rollout_batch_size"] == 512
    assert (config["data"]["max_prompt_length"], config["data"]["max_response_length"]) == (3072, 3072)
    assert config["algorithm"]["disable_kl"] is True
    actor, rollout = config["worker"]["actor"], config["worker"]["rollout"]
    assert (rollout["n"], rollout["temperature"], rollout["top_p"]) == (16, 1.2, 1.0)
    assert actor["global_batch_size"] == 256
    assert actor["optim"] == {"lr": 1e-6, "weight_decay": 0.01, "lr_warmup_ratio": 0.0}
    assert actor["model"]["model_path"] == "some/model"
    assert actor["model"]["freeze_vision_tower"] is False
    assert config["trainer"]["max_steps"] == 1
    assert "beta=0.16666666666666666" in (folder / "reward.py").read_text()


def test_the_clip_falls_from_phase_to_phase(tmp_path: Path) -> None:
    clip = DynamicClip()
    folder = easyr1.export(TEXTS, tmp_path / "run", model="m", config=LargeRunConfig(batch=4, update=2))
    found = configs(folder)
    assert [config["trainer"]["max_steps"] for config in found] == [6, 12, 18, 25]
    values = [config["worker"]["actor"]["clip_ratio_low"] for config in found]
    assert values == [config["worker"]["actor"]["clip_ratio_high"] for config in found]
    assert values[1] == pytest.approx(sum(clip.at(step, 25) for step in range(7, 13)) / 6)
    assert values == sorted(values, reverse=True)
    # The same place for checkpoints, and the newest is taken up: so each phase goes on from the one before.
    assert {config["trainer"]["save_checkpoint_path"] for config in found} == {"./checkpoints"}
    assert all(config["trainer"]["find_last_checkpoint"] for config in found)


def test_as_many_phases_as_steps_follow_the_paper(tmp_path: Path) -> None:
    config = LargeRunConfig(batch=20, update=10, phases=99)
    folder = easyr1.export(TEXTS, tmp_path / "run", model="m", config=config)
    values = [one["worker"]["actor"]["clip_ratio_low"] for one in configs(folder)]
    assert values == pytest.approx([DynamicClip().at(step, 5) for step in range(1, 6)])


def test_a_fixed_clip_is_one_phase(tmp_path: Path) -> None:
    config = LargeRunConfig(batch=4, update=4, epochs=3, clip=FixedClip(epsilon=0.3))
    (only,) = configs(easyr1.export(TEXTS, tmp_path / "run", model="m", config=config))
    assert only["worker"]["actor"]["clip_ratio_high"] == pytest.approx(0.3)
    assert only["trainer"]["max_steps"] == 75


def test_every_file_that_a_config_names_is_there(folder: Path) -> None:
    for config in configs(folder):
        data = config["data"]
        named = [data["train_files"], data["val_files"], data["override_chat_template"]]
        named.append(config["worker"]["reward"]["reward_function"].split(":")[0])
        assert all((folder / name).is_file() for name in named)
    # Only the framework itself is missing here.
    run = subprocess.run(["sh", "-n", str(folder / "run.sh")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


# ---- refused ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "run"
    for turns, settings, message in (
        (TURNS, {}, "There are 5 turns, and one step takes 512"),
        (TEXTS, {"config": LargeRunConfig(batch=50, update=20)}, "updates of 20"),
        (TURNS, {"config": SMALL, "format": "qwen3guard-gen/1"}, "the prompt format 'guardreasoner-vl/1'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            easyr1.export(turns, place, model="m", **settings)
    with pytest.raises(ContentError, match="The turn 'bad' can't be exported"):
        easyr1.export(
            (*TURNS, LabeledTurn("bad", None, (b"no picture",), None, H)), place, model="m", config=SMALL, rewards=PAPER
        )
    assert list(tmp_path.iterdir()) == []
    place.mkdir()
    (place / "mine").write_text("kept")
    with pytest.raises(ConfigurationError, match="not empty"):
        easyr1.export(TURNS, place, model="m", config=SMALL)
    assert (place / "mine").read_text() == "kept"
