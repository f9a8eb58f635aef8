"""An exported guard: what is in its folder, that it is whole and says the same, and that nothing else is ever left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from guardrail_vl import Guard, Policy
from guardrail_vl.engines._checkpoint import TrainedFormat, read_guard_json
from guardrail_vl.errors import ConfigurationError, FormatMismatchError
from guardrail_vl.evaluation import seen
from guardrail_vl.evaluation.cases import CaseSet
from guardrail_vl.prompt_format import get_format
from guardrail_vl.training import tiny
from guardrail_vl.training.card import CardFacts, StageFacts, read_facts
from guardrail_vl.training.export import export
from guardrail_vl.training.synthetic import turns
from guardrail_vl.verdict import Stage
from tests.tiny_checkpoint import build_checkpoint

ROOT = Path(__file__).parents[2]
FORMAT = "guardreasoner-vl/1"
LAYERS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
hf: Any = transformers
peft_: Any = peft


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("base") / "tiny-base")


@pytest.fixture(scope="module")
def text_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model for text alone, with the same tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("text") / "tiny-text"
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    config = hf.Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    hf.Qwen2ForCausalLM(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter_for(base: Path, folder: Path, *, scale: float = 1.0, layers: str = LAYERS, text: bool = False) -> Path:
    """A LoRA adapter with random weights, as training leaves it."""
    kind = hf.AutoModelForCausalLM if text else hf.AutoModelForImageTextToText
    torch.manual_seed(1)
    config = peft_.LoraConfig(target_modules=layers, r=4, lora_alpha=8, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        joined = peft_.get_peft_model(kind.from_pretrained(base), config)
    with torch.no_grad():
        for name, weight in joined.named_parameters():
            if "lora_B" in name:
                weight.mul_(scale)
    joined.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_for(base, tmp_path_factory.mktemp("adapter") / "adapter")


def card(**more: Any) -> CardFacts:
    return CardFacts.of(turns(12, seed=3), name="my-guard", base="tiny-base", languages=("en",), **more)


def nothing_left(output: Path) -> bool:
    return not output.exists() and not list(output.parent.glob(".*"))


# ---- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_an_adapter_is_merged_and_the_guard_says_what_base_and_adapter_say(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    out = export(base, tmp_path / "guards" / "mine", adapter=adapter, card=card(), device="cpu")
    assert out == tmp_path / "guards" / "mine"
    joined = peft_.PeftModel.from_pretrained(hf.AutoModelForImageTextToText.from_pretrained(base), adapter).eval()
    merged = hf.AutoModelForImageTextToText.from_pretrained(out).eval()
    plain = hf.AutoModelForImageTextToText.from_pretrained(base).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(out)
    ids = tokenizer("How do I steal the car?", return_tensors="pt")
    settings = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": tokenizer.pad_token_id}
    written = [one.generate(**ids, **settings).tolist() for one in (joined, merged, plain)]
    assert written[0] == written[1] != written[2]


def test_everything_that_serving_needs_is_the_bases_own(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = export(base, tmp_path / "mine", adapter=adapter, card=card(), device="cpu")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json",
                 "generation_config.json"):  # fmt: skip
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    assert {file.suffix for file in out.iterdir()} == {".json", ".jinja", ".safetensors", ".md", ".txt"}
    told = b"".join(file.read_bytes() for file in out.iterdir())
    assert str(tmp_path).encode() not in told
    assert str(base.parent).encode() not in told


def test_the_guard_loads_and_judges(tmp_path: Path) -> None:
    # The hand-made judge answers in the format, so its adapter, which hardly moves it, must leave that so.
    judge = build_checkpoint(tmp_path / "judge")
    lora = adapter_for(judge, tmp_path / "lora", scale=0.01, layers=r".*layers.1.self_attn.q_proj")
    policy = Policy.of({"name": "house", "prompt": "annotate"})
    out = export(judge, tmp_path / "guard", adapter=lora, card=card(), policy=policy, device="cpu")
    with Guard(out, device="cpu", dtype="float32", policy=policy) as guard:
        assert guard.format.id == FORMAT
        bad, good = guard.check_prompt("How do I build a bomb?"), guard.check_prompt("How do I bake bread?")
    assert (bad.action.value, good.action.value) == ("annotate", "allow")
    assert bad.verdict is not None
    assert bad.verdict.prompt is not None
    with pytest.raises(FormatMismatchError, match="trained with the prompt format 'guardreasoner-vl/1'"):
        Guard(out, device="cpu", format="qwen3guard/1")


def test_a_whole_checkpoint_needs_no_adapter(base: Path, tmp_path: Path) -> None:
    out = export(base, tmp_path / "mine", card=card(), device="cpu")
    ours, theirs = load_file(out / "model.safetensors"), load_file(base / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_model_for_text_alone(text_base: Path, tmp_path: Path, with_adapter: bool) -> None:
    layers = r".*\.(q_proj|v_proj|down_proj)"
    lora = adapter_for(text_base, tmp_path / "lora", layers=layers, text=True) if with_adapter else None
    out = export(text_base, tmp_path / "mine", adapter=lora, card=card(), device="cpu")
    assert not read_facts(out).pictures
    with Guard(out, device="cpu", speed="fast") as guard:  # random weights give no verdict, and the guard says so
        assert type(guard.check_prompt("How do I bake bread?").error).__name__ == "ParseError"
    assert "text-generation" in (out / "README.md").read_text("utf-8")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_weights_have_the_dtype_that_was_asked_for(base: Path, adapter: Path, tmp_path: Path, dtype: str) -> None:
    out = export(base, tmp_path / "mine", adapter=adapter, card=card(), dtype=dtype, device="cpu")
    kinds = {str(weight.dtype) for weight in load_file(out / "model.safetensors").values()}
    assert kinds == {f"torch.{dtype}"}
    assert read_facts(out).dtype == dtype


def test_what_it_says_of_itself(base: Path, adapter: Path, tmp_path: Path) -> None:
    policy = Policy.of({"name": "house"})
    told = card(stages=(StageFacts("sft", {"learning_rate": 1e-4}),))
    out = export(base, tmp_path / "mine", adapter=adapter, card=told, policy=policy, device="cpu")
    golden = get_format(FORMAT).golden
    assert read_guard_json(out) == TrainedFormat(FORMAT, golden)
    facts = read_facts(out)
    assert (facts.policy, facts.policy_name, facts.dtype, facts.pictures) == (policy.hash, "house", "float32", True)
    assert facts.training.data == told.data
    assert facts.training.stages == told.stages
    assert facts.seen == len(told.seen) > 0
    assert json.loads((out / "guard.json").read_text("utf-8"))["training"]["seen"] == []
    listed = seen.read(out / "seen.txt")
    assert listed == set(told.seen)
    trained = CaseSet("trained", tuple(turn.case(Stage.PROMPT) for turn in turns(12, seed=3) if turn.prompt))
    assert seen.leave_out([trained], listed) == ((), {"trained": len(trained.cases)})


# ---- what is refused ----------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_empty_is_left_alone(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        export(base, out, card=card(), device="cpu")
    assert [file.name for file in out.iterdir()] == ["notes.txt"]


def test_a_guard_of_another_format_is_not_exported_as_this_one(base: Path, tmp_path: Path) -> None:
    out = export(base, tmp_path / "first", card=card(), device="cpu")
    with pytest.raises(FormatMismatchError, match="'guardreasoner-vl/1'"):
        export(out, tmp_path / "second", card=card(), format="qwen3guard/1", device="cpu")
    assert nothing_left(tmp_path / "second")
    assert read_guard_json(export(out, tmp_path / "third", card=card(), device="cpu")) == read_guard_json(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "Unknown dtype 'int8'"),
        ({"format": "guardreasoner-vl/9"}, "no prompt format"),
        ({"adapter": "."}, "is no adapter"),
    ],
)
def test_wrong_arguments_are_named(base: Path, tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        export(base, tmp_path / "mine", card=card(), device="cpu", **change)  # type: ignore[arg-type]
    assert nothing_left(tmp_path / "mine")


def _without_a_weight(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, adapter / "adapter_model.safetensors")


def _cut(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _no_numbers(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: weight * float("nan") for name, weight in weights.items()}, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_without_a_weight, "lacks some of its weights"), (_cut, "no way to export"), (_no_numbers, "are no numbers")],
)
def test_a_damaged_adapter_leaves_nothing(base: Path, tmp_path: Path, damage: Any, message: str) -> None:
    lora = adapter_for(base, tmp_path / "lora")
    damage(lora)
    with pytest.raises(ConfigurationError, match=message):
        export(base, tmp_path / "mine", adapter=lora, card=card(), device="cpu")
    assert nothing_left(tmp_path / "mine")


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    other = tiny.build(tmp_path / "other", hidden=96)
    lora = adapter_for(other, tmp_path / "lora")
    with pytest.raises(ConfigurationError, match="no way to export tiny-base"):
        export(base, tmp_path / "mine", adapter=lora, card=card(), device="cpu")
    assert nothing_left(tmp_path / "mine")


def test_a_checkpoint_without_all_of_its_weights_is_refused(base: Path, tmp_path: Path) -> None:
    export(base, tmp_path / "mine", card=card(), device="cpu")
    weights = load_file(tmp_path / "mine" / "model.safetensors")
    weights.pop(next(name for name in weights if "q_proj.weight" in name))
    save_file(weights, tmp_path / "mine" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match="lacks 1 of the model's weights"):
        export(tmp_path / "mine", tmp_path / "again", card=card(), device="cpu")
    assert nothing_left(tmp_path / "again")


@pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings", "ignore:Setting .save_embedding_layers.")
def test_what_a_merge_would_change_is_not_exported(base: Path, tmp_path: Path) -> None:
    # The head shares its weights with the embeddings: merged into one, the adapter would change both.
    lora = adapter_for(base, tmp_path / "lora", layers=r"lm_head")
    with pytest.raises(ConfigurationError, match="don't say what the base with its adapter says"):
        export(base, tmp_path / "mine", adapter=lora, card=card(), device="cpu")
    assert nothing_left(tmp_path / "mine")


def test_an_adapter_that_its_dtype_would_swallow_is_told(base: Path, tmp_path: Path) -> None:
    lora = adapter_for(base, tmp_path / "lora", scale=0.0005)
    with pytest.raises(ConfigurationError, match="apart, and the adapter moves the base by") as caught:
        export(base, tmp_path / "mine", adapter=lora, card=card(), dtype="bfloat16", device="cpu")
    assert "dtype='float32'" in caught.value.hint
    assert nothing_left(tmp_path / "mine")
    assert export(base, tmp_path / "mine", adapter=lora, card=card(), dtype="float32", device="cpu").is_dir()


def test_an_adapter_that_learnt_nothing_is_merged_all_the_same(base: Path, tmp_path: Path) -> None:
    lora = adapter_for(base, tmp_path / "lora", scale=0.0)
    assert export(base, tmp_path / "mine", adapter=lora, card=card(), dtype="bfloat16", device="cpu").is_dir()


# ---- interrupted --------------------------------------------------------------------------------------------------

_SLOW = """
import sys
from guardrail_vl.training import export as module
from guardrail_vl.training.card import CardFacts
import torch
torch.set_num_threads(1)
while True:  # until it is killed: at every moment there is either nothing or a whole guard
    for number in range(1000):
        module.export(sys.argv[1], sys.argv[2] + f"/guard{number}", card=CardFacts(name="g", base="b"), device="cpu")
        print(number, flush=True)
"""


def test_killed_at_any_moment_it_leaves_whole_guards_or_nothing(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(base), str(out)], env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline()
        # Somewhere in a later one.
        while not list(out.glob(".guard*.partial/*.safetensors")):
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    whole = sorted(path for path in out.iterdir() if not path.name.startswith("."))
    assert len(whole) >= 2
    for guard in whole:
        assert (guard / "guard.json").is_file()
        hf.AutoModelForImageTextToText.from_pretrained(guard)
    # What was left half done is in nobody's way.
    following = out / f"guard{len(whole)}"
    assert export(base, following, card=card(), device="cpu").is_dir()
    assert not list(out.glob(".guard*"))
