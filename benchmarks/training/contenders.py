"""One contender in this process: ours or TRL's stock trainer, SFT or GRPO, on a random model and made-up turns.

Ours is `sft` and `rl` as a user calls them. Two things are put in the place of others, for both sides alike: weights are
made on the device instead of read from a file, and nothing is saved at the end. Knows no results file.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from PIL import Image

from guardrail_vl.engines import transformers as serving
from guardrail_vl.training import _tuning, rl, sft, synthetic, tiny
from guardrail_vl.training._encoding import Encoder
from guardrail_vl.training._processor import load_processor
from guardrail_vl.training._trainer import Output, activation_arguments, without_known_warnings
from guardrail_vl.training.clip import FixedClip
from guardrail_vl.training.turns import LabeledTurn

HF: Any = transformers
TRL: Any = trl

TEXT_3B = {
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128_000, "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
}  # fmt: skip
"""Of the config.json of Qwen/Qwen2.5-VL-3B-Instruct, as the next."""
VISION_3B = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
    "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "tokens_per_second": 2,
}  # fmt: skip
PARAMETERS_3B = 3_754_622_976
"""Of the published weights: 7,509,245,952 bytes in bfloat16."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured. The same for both sides."""

    kind: str
    """`sft` or `grpo`."""
    size: str
    """`3b` or `tiny`."""
    steps: int
    """Steps of SFT, or rollouts of GRPO; the first is not timed."""
    side: int
    """Of a picture, in pixels."""
    prompt_words: int
    target_words: int
    batch: int
    """SFT: turns in a forward pass."""
    accumulation: int
    """SFT: forward passes in a step."""
    prompts: int
    """GRPO: in a rollout. Half of them make an update."""
    group: int
    new_tokens: int
    """GRPO: of each completion, neither more nor less."""
    micro_batch: int
    """GRPO: completions in a forward pass."""
    workers: int
    """SFT: processes that prepare batches."""
    checkpointing: bool
    """SFT: whether activations are computed twice. GRPO on a GPU always does, which is the default of both sides."""
    attention: str
    seed: int = 0


class Clock:
    """Notes when each step was logged."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.generating = 0.0

    def __call__(self, *_: object) -> None:
        wait()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def figures(self, every: int) -> dict[str, Any]:
        """Seconds of each step but the first.

        Args:
            every: Logged updates in a step.
        """
        wall, cpu = self.wall[every - 1 :: every], self.cpu[every - 1 :: every]
        return {
            "seconds": [after - before for before, after in itertools.pairwise(wall)],
            "cpu_seconds": statistics.median(b - a for a, b in itertools.pairwise(cpu)),
            "generating_seconds": self.generating / len(wall),  # the first step's is in it
        }


class Ticker(HF.TrainerCallback):  # type: ignore[misc]
    """Gives a stock trainer's steps to the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """A step is done."""
        if "train_runtime" not in logs:
            self.clock()


class StockJudge(rl.Judge):
    """The same reward for completions that come as messages."""

    def __call__(self, *, completions: Any, **rest: Any) -> list[float]:
        """A reward for each completion."""
        return super().__call__(completions=[messages[0]["content"] for messages in completions], **rest)


def wait() -> None:
    """Until the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def checkpoint(folder: Path, work: Work) -> Path:
    """A checkpoint without weights: the tiny one's tokenizer and, for `3b`, the real one's sizes."""
    tiny.build(folder)
    (folder / "model.safetensors").unlink()
    pictures = json.loads((folder / "preprocessor_config.json").read_text())
    pictures |= {"min_pixels": 56 * 56, "max_pixels": work.side**2}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    if work.size == "3b":
        config = json.loads((folder / "config.json").read_text())
        config["text_config"] |= TEXT_3B
        config["text_config"].pop("layer_types", None)
        config["vision_config"] |= VISION_3B
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def made_turns(count: int, work: Work) -> tuple[LabeledTurn, ...]:
    """Turns with a picture, of lengths that vary by two fifths around what is wanted."""
    chance = random.Random(work.seed)

    def words(number: int) -> str:
        out: list[str] = []
        wanted = round(number * chance.uniform(0.6, 1.4))
        while len(out) < wanted:
            out += chance.choice(synthetic.FILLERS).split()
        return " ".join(out[:wanted])

    def picture(data: bytes) -> bytes:
        out = io.BytesIO()
        Image.open(io.BytesIO(data)).resize((work.side, work.side)).save(out, "PNG")
        return out.getvalue()

    return tuple(
        dataclasses.replace(
            turn,
            prompt=f"{words(work.prompt_words)} {turn.prompt}",
            reasoning=f"{words(work.target_words)} {turn.reasoning}",
            images=tuple(picture(image) for image in turn.images if isinstance(image, bytes)),
        )
        for turn in synthetic.turns(count, seed=work.seed, kind="text-image")
    )


def network_maker(work: Work, clock: Clock) -> Any:
    """What makes weights in the place of `load_network`: on the device, in float32, as that loads them."""

    def make(model: str | Path, encoder: Encoder, config: sft.SFTConfig) -> Any:
        HF.set_seed(config.seed)
        with torch.device(serving.best_device()):
            network = encoder.auto_class.from_config(
                encoder.config, dtype=torch.float32, attn_implementation=work.attention
            )
        if work.size == "3b" and sum(p.numel() for p in network.parameters()) != PARAMETERS_3B:
            raise AssertionError("This is not the real configuration.")
        network.generation_config = HF.GenerationConfig.from_pretrained(model)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(sft.trains(name, config))
        generate = network.generate

        def timed(*args: Any, **given: Any) -> Any:
            wait()
            begun = time.perf_counter()
            out = generate(*args, **given)
            wait()
            clock.generating += time.perf_counter() - begun
            return out

        network.generate = timed
        return network

    return make


def messages(encoder: Encoder, turn: LabeledTurn) -> tuple[list[dict[str, Any]], list[Any]]:
    """The prompt as TRL takes it: the same words and pictures that ours is given."""
    prompt = encoder.prompt(turn)
    told = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text} if hasattr(part, "text") else {"type": "image", "text": None}
                for part in message.content
            ],
        }
        for message in prompt.messages
    ]
    return told, [image.pixels() for image in prompt.images]


def stock_processor(encoder: Encoder, folder: Path) -> Any:
    """A processor whose pictures are prepared by what TRL itself would take: torchvision, where that is installed."""
    processor = load_processor(encoder)
    processor.image_processor = HF.AutoImageProcessor.from_pretrained(folder)
    return processor


def measure_sft(who: str, work: Work, folder: Path, output: Path, clock: Clock) -> dict[str, Any]:
    """Steps of fine-tuning."""
    turns = made_turns(work.steps * work.batch * work.accumulation, work)
    config = sft.SFTConfig(
        batch_size=work.batch,
        accumulation=work.accumulation,
        max_steps=work.steps,
        activation_checkpointing=work.checkpointing,
        workers=work.workers,
        max_length=16_384,
        save_steps=0,
    )
    encoder = Encoder(folder)
    tokens = sum(len(encoder.encode(turn, target=encoder.target(turn)).ids) for turn in turns)
    if who == "ours":
        # A set of real size is not kept in memory either: pictures are prepared in each step, as the stock trainer does.
        _tuning.CACHED_BYTES = 0  # type: ignore[misc]
        sft.sft(folder, turns, output, config=config, progress=clock)
        seen = tokens
    else:
        seen = _stock_sft(turns, encoder, folder, output, config, clock)
    if abs(seen / tokens - 1) > 0.01:  # the stock trainer's targets have a line's end more
        raise AssertionError(f"Trained on {seen} tokens, and not on {tokens}.")
    return {**clock.figures(1), "tokens_per_step": tokens / work.steps}


COPIED = (
    "output_dir", "save_strategy", "report_to", "disable_tqdm", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "max_grad_norm", "seed",
    "data_seed", "bf16", "use_cpu", "logging_steps", "dataloader_num_workers", "dataloader_pin_memory",
)  # fmt: skip
"""Settings of ours that the stock trainer is given too; all others are its own defaults."""


def _stock_sft(turns: Any, encoder: Encoder, folder: Path, output: Path, config: sft.SFTConfig, clock: Clock) -> int:
    ours = sft._arguments(Output(output, "sft", {}), config, evaluates=False)
    arguments = TRL.SFTConfig(
        **{name: getattr(ours, name) for name in COPIED},
        **activation_arguments(TRL.SFTConfig, config.activation_checkpointing),
        max_length=None,
    )
    rows = []
    for turn in turns:
        prompt, pictures = messages(encoder, turn)
        answer = [{"role": "assistant", "content": [{"type": "text", "text": encoder.target(turn)}]}]
        rows.append({"prompt": prompt, "completion": answer, "images": pictures})
    with without_known_warnings():
        trainer = TRL.SFTTrainer(
            model=sft.load_network(folder, encoder, config),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=stock_processor(encoder, folder),
            callbacks=[Ticker(clock)],
        )
        trainer.train()
    return int(next(logs["num_tokens"] for logs in reversed(trainer.state.log_history) if "num_tokens" in logs))


def measure_grpo(who: str, work: Work, folder: Path, output: Path, clock: Clock) -> dict[str, Any]:
    """Rollouts, each with its two updates."""
    turns = made_turns(work.steps * work.prompts, work)
    completions = work.prompts * work.group
    config = rl.RLConfig(
        group=work.group,
        max_tokens=work.new_tokens,
        prompts_per_rollout=work.prompts,
        prompts_per_update=work.prompts // 2,
        micro_batch=work.micro_batch,
        generate_batch=completions,
        clip=FixedClip(),
        patience=1_000_000,  # random weights never write a verdict, so all rewards are alike
        checkpoint_every=1_000_000,
    )
    encoder = Encoder(folder)
    tokens = work.group * sum(len(encoder.encode(turn, target=None).ids) + work.new_tokens for turn in turns)
    _force_lengths(encoder, work.new_tokens)
    if who == "ours":
        _forget_pictures()
        length = rl.rl(folder, turns, output, config=config, progress=clock).last_tokens
    else:
        length = _stock_grpo(turns, encoder, folder, output, config, clock)
    if length != work.new_tokens:
        raise AssertionError(f"Completions of {length} tokens, and not of {work.new_tokens}.")
    return {**clock.figures(config.updates_per_rollout), "tokens_per_step": tokens / work.steps}


def _force_lengths(encoder: Encoder, tokens: int) -> None:
    """Have every completion end at the same length, and hold no picture's placeholder, whoever generates it."""
    given = rl._arguments
    held = [encoder.config.image_token_id, encoder.config.video_token_id]

    def arguments(*args: Any) -> Any:
        out = given(*args)
        out.generation_kwargs = {"min_new_tokens": tokens, "suppress_tokens": held}
        return out

    rl._arguments = arguments


def _forget_pictures() -> None:
    """Have ours prepare each rollout's pictures in its time: those of a real set are not in memory before."""
    given = rl._trainer

    def trainer(model: Any, rows: Any, *rest: Any) -> Any:
        rows._kept.clear()
        rows._bytes = 0
        return given(model, rows, *rest)

    rl._trainer = trainer


def _stock_grpo(turns: Any, encoder: Encoder, folder: Path, output: Path, config: rl.RLConfig, clock: Clock) -> float:
    plan = rl._plan(len(turns), config)
    rows = []
    for number in plan.order:
        prompt, pictures = messages(encoder, turns[number])
        rows.append({"prompt": prompt, "images": pictures, rl.ROW: number})
    with without_known_warnings():
        trainer = TRL.GRPOTrainer(
            model=rl.load_network(folder, encoder, config.opened),
            args=rl._arguments(Output(output, "rl", {}), config, plan),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=stock_processor(encoder, folder),
            reward_funcs=StockJudge(turns, config),
            callbacks=[Ticker(clock)],
        )
        trainer.train()
    name = "completions/mean_length"
    return float(next(logs[name] for logs in reversed(trainer.state.log_history) if name in logs))


def attention_here() -> str:
    """Flash-attention where it is installed, else PyTorch's own."""
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"


def measure(who: str, work: Work, place: Path) -> dict[str, Any]:
    """Seconds, tokens and memory of one contender.

    Args:
        who: `ours` or `stock`.
        work: What to do.
        place: An empty folder.
    """
    if work.attention == "auto":
        work = dataclasses.replace(work, attention=attention_here())
    clock = Clock()
    made = network_maker(work, clock)
    for module in (sft, rl):
        module.load_network = made
        module.save = lambda *_: None  # type: ignore[attr-defined]
    run = measure_sft if work.kind == "sft" else measure_grpo
    figures = run(who, work, checkpoint(place / "model", work), place / "out", clock)
    cuda = torch.cuda.is_available()
    figures["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} thread(s)"
    figures["machine"] = (
        f"{device}, torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}, "
        f"{work.attention}, computed in {str(serving.best_dtype(serving.best_device())).removeprefix('torch.')}"
    )
    return figures
