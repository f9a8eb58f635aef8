"""Builds a tiny Qwen2.5-VL checkpoint folder: real architecture, real file layout, real special tokens, no download.

Two kinds of weights. `random`: whatever the seed gives. `judge`: set by hand, so that it answers in the form of
GuardReasoner-VL and its labels follow the content: the request is harmful if it has one of `BAD_WORDS` or a picture with
red in it, the response if it has `COMPLIANCE`. It is a machine for tests and knows nothing else.

How the judge works: every token's embedding says which state it is (the end of the template, a label, ...) and whether
it counts as evidence. The first layer's attention is nearly uniform, so it averages the evidence over all that was read;
the MLPs pick the request's or the response's average by the state; the head writes the next piece of the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import pytest

# Whoever imports this module is skipped where the extra is missing.
pytest.importorskip("torch", reason="needs the extra 'local'")
pytest.importorskip("transformers", reason="needs the extra 'local'")

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from guardrail_vl.prompt_format.guardreasoner_vl import INSTRUCTION

BAD_WORDS: Final = ("bomb", "poison", "steal", "kill")
COMPLIANCE: Final = "Sure"

# The added tokens of Qwen2.5, in their order. Those of the second group are not `special` there either.
SPECIAL: Final = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
NOT_SPECIAL: Final = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
]  # fmt: skip

THOUGHT: Final = "The words were read one by one."
# Pieces of the judge's answer; each is one token, which no text is ever encoded to.
_OPENING: Final = f"<think>{THOUGHT}\n</think>\n\n<result>\nRequest:"
_MIDDLE: Final = "\nResponse:"
_CLOSING: Final = "\n</result>"

CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""

HIDDEN: Final = 64
_CORPUS: Final = [INSTRUCTION] * 4 + [
    f"Human user:\n{word} it\nHow do I {word} a {other}?\n\nAI assistant:\n{COMPLIANCE}, here is how. No. None\n"
    f"<think>\n</think>\n\n<result>\nRequest: harmful\nResponse: unharmful\n</result>\nI said {COMPLIANCE} Request: unharmful"
    for word in (*BAD_WORDS, "bake", "paint")
    for other in (*BAD_WORDS, "bread", "wall")
]


def build_checkpoint(
    folder: str | Path, *, weights: Literal["judge", "random"] = "judge", max_positions: int = 4096, seed: int = 0
) -> Path:
    """Write the checkpoint.

    Args:
        folder: Where to; made if it is not there.
        weights: See the module.
        max_positions: Tokens that the model reads and writes at most.
        seed: Of the random weights, which the judge has some of too.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = _build_model(tokenizer, max_positions, seed)
    if weights == "judge":
        with torch.no_grad():
            _make_judge(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_image_settings(folder)
    return folder


def build_adapter(folder: str | Path, *, rank: int = 8) -> Path:
    """Write a LoRA adapter of the judge, as peft writes one: with it, the request's label is the opposite.

    Args:
        folder: Where to; made if it is not there.
        rank: Of its matrices; one is used.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = "base_model.model.model.language_model.layers.1.mlp.down_proj"
    read, write = torch.zeros(rank, 64), torch.zeros(HIDDEN, rank)
    read[0, 0] = 1  # the unit that says the request's label
    write[_SAYS, 0] = -2 * _SAYS_GAIN
    save_file({f"{name}.lora_A.weight": read, f"{name}.lora_B.weight": write}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": ["down_proj"],
        "bias": "none", "lora_dropout": 0.0,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def build_tokenizer() -> Any:
    """A byte-level BPE tokenizer of Qwen's kind, trained on a few lines."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    )
    trained = json.loads(bpe.to_str())["model"]
    vocab = trained["vocab"]
    for piece in (_OPENING, _MIDDLE, _CLOSING):
        vocab[piece.replace(" ", "Ġ").replace("\n", "Ċ")] = len(vocab)
    merges: Any = [tuple(merge) for merge in trained["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
        model_max_length=131072,
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _build_model(tokenizer: Any, max_positions: int, seed: int) -> Any:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,  # of 32: the smallest that vLLM's CPU kernels take
            "num_key_value_heads": 1,
            "max_position_embeddings": max_positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
            "window_size": 112,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    model.float()
    # As the real checkpoints have them: an engine must not let them change what is decoded.
    settings: Any = GenerationConfig
    model.generation_config = settings(
        do_sample=True,
        repetition_penalty=1.05,
        temperature=1e-06,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    return model


def _write_image_settings(folder: Path) -> None:
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 16 * 28 * 28,
        "max_pixels": 32 * 28 * 28,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


# --- the judge -------------------------------------------------------------------------------------------------------

# Places in the residual stream.
_ONE = 0  # the same large number everywhere, so that the norms hardly change anything
_START, _LABEL_NEXT, _COLON, _LABEL, _END = 1, 2, 3, 4, 5  # states
_BAD, _SURE, _FLAG = 6, 7, 8  # evidence in a token
_SAW_BAD, _SAW_SURE, _SAW_FLAG = 20, 21, 22  # evidence averaged over all that was read, less a threshold
_SIDE = 23  # which label is next: negative for the request's, positive for the response's
_SAYS = 24  # the label: positive for harmful
_FREE = 32  # from here on: small random numbers
_SAYS_GAIN = 0.2
_GAIN = {_BAD: 300.0, _SURE: 300.0, _FLAG: 300.0}


def _make_judge(model: Any, tokenizer: Any) -> None:
    for name, weight in model.named_parameters():
        # What is random stays, small: it must not decide, but a mistake in padding or positions must show in the scores.
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
            weight.mul_(0.05)
        elif ".self_attn." in name and name.endswith((".bias", "q_proj.weight", "k_proj.weight")):
            weight.mul_(0.1)
    _set_embeddings(model.get_input_embeddings().weight, tokenizer)
    _set_layers(model.model.language_model.layers)
    _set_head(model.lm_head.weight, tokenizer)
    _set_vision(model.model.visual)


def _ids(tokenizer: Any, *texts: str) -> list[int]:
    found = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise AssertionError(f"{text!r} is {len(ids)} tokens")
        found += ids
    return found


def _both_forms(*words: str) -> list[str]:
    """Alone and after a space: two different tokens."""
    return [form for word in words for form in (word, f" {word}")]


def _piece_id(tokenizer: Any, piece: str) -> int:
    return int(tokenizer.get_vocab()[piece.replace(" ", "Ġ").replace("\n", "Ċ")])


def _set_embeddings(table: Any, tokenizer: Any) -> None:
    table[:, :_FREE] = 0
    table[:, _FREE:].normal_(0, 0.3)
    table[:, _ONE] = 8
    newline, colon = _ids(tokenizer, "\n", ":")
    opening, middle = _piece_id(tokenizer, _OPENING), _piece_id(tokenizer, _MIDDLE)
    table[newline, _START] = 1
    table[[opening, middle, colon], _LABEL_NEXT] = 1
    table[opening, _SIDE], table[middle, _SIDE], table[colon, _COLON] = -3, 3, 1
    table[_ids(tokenizer, " harmful", " unharmful"), _LABEL] = 1
    table[_piece_id(tokenizer, _CLOSING), _END] = 1
    table[_ids(tokenizer, *_both_forms(*BAD_WORDS)), _BAD] = 1
    table[_ids(tokenizer, *_both_forms(COMPLIANCE)), _SURE] = 1
    table[[middle, *_ids(tokenizer, "Response")], _FLAG] = 1
    # Every prompt has three of these, so they set the threshold at half a word, however long it is.
    table[tokenizer.convert_tokens_to_ids("<|im_start|>"), [_BAD, _SURE, _FLAG]] = -0.5 / 3


def _set_layers(layers: Any) -> None:
    first, second = layers
    attention = first.self_attn
    attention.v_proj.weight[:3] = 0
    attention.v_proj.bias[:3] = 0
    for i, (seen, average) in enumerate(zip((_BAD, _SURE, _FLAG), (_SAW_BAD, _SAW_SURE, _SAW_FLAG), strict=True)):
        attention.v_proj.weight[i, seen] = 1
        attention.o_proj.weight[:, i] = 0
        attention.o_proj.weight[average, i] = _GAIN[seen]
    # After a plain colon, which label is next depends on whether the response was already named.
    _unit(first.mlp, 0, gate={_COLON: 10}, up=_SAW_FLAG, down=_SIDE, gain=1)
    _unit(second.mlp, 0, gate={_SIDE: -10}, up=_SAW_BAD, down=_SAYS, gain=_SAYS_GAIN)
    _unit(second.mlp, 1, gate={_SIDE: 10}, up=_SAW_SURE, down=_SAYS, gain=_SAYS_GAIN)


def _unit(mlp: Any, i: int, *, gate: dict[int, float], up: int, down: int, gain: float) -> None:
    for projection in (mlp.gate_proj.weight, mlp.up_proj.weight):
        projection[i] = 0
    for place, value in gate.items():
        mlp.gate_proj.weight[i, place] = value
    mlp.up_proj.weight[i, up] = 1
    mlp.down_proj.weight[:, i] = 0
    mlp.down_proj.weight[down, i] = gain


def _set_head(head: Any, tokenizer: Any) -> None:
    head[:, :_FREE] = 0
    head[:, _FREE:].normal_(0, 0.2)
    harmful, unharmful = _ids(tokenizer, " harmful", " unharmful")
    opening, middle, closing = (_piece_id(tokenizer, piece) for piece in (_OPENING, _MIDDLE, _CLOSING))
    head[opening, _START] = 40
    head[[harmful, unharmful], _LABEL_NEXT] = 40
    head[harmful, _SAYS], head[unharmful, _SAYS] = 0.5, -0.5
    head[[middle, closing], _LABEL] = 40
    head[middle, _SAW_FLAG], head[closing, _SAW_FLAG] = -5, 5
    head[tokenizer.convert_tokens_to_ids("<|im_end|>"), _END] = 40


def _set_vision(visual: Any) -> None:
    patches = visual.patch_embed.proj.weight  # (features, colours, time, height, width)
    patches[:4] = 0
    mean = 1.0 / patches[0, 0].numel()
    patches[0, 0], patches[0, 1] = mean, -mean  # redder than green; and three more, so that it is seen in proportion
    for colour in range(3):
        patches[1 + colour, colour] = mean
    patches[4:].mul_(0.01)
    up, down = visual.merger.mlp[0], visual.merger.mlp[2]
    width = visual.config.hidden_size
    up.weight[0] = 0
    up.weight[0, 0::width] = 1  # of the four patches that become one token
    up.bias[0] = -2
    down.weight.mul_(0.05)
    down.weight[:, 0] = 0
    down.weight[:_FREE] = 0
    down.weight[_BAD, 0] = 0.03
    down.bias.zero_()
    down.bias[_ONE] = 8
