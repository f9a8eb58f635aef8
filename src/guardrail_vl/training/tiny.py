"""A tiny Qwen2.5-VL with random weights, made here: real architecture, real files, no download. It knows nothing yet.

For tests and the smoke recipe, where training has to run in seconds on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from guardrail_vl._whole import whole_folder
from guardrail_vl.errors import MissingDependencyError
from guardrail_vl.prompt_format.guardreasoner_vl import INSTRUCTION
from guardrail_vl.training.synthetic import SIZE, corpus

try:
    import torch
    import transformers
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    from guardrail_vl.engines._bars import without_bars
except ImportError as error:
    raise MissingDependencyError(
        error.name or "transformers", extra="train", needed_for="guardrail_vl.training.tiny"
    ) from error

_hf: Any = transformers
"""Only partly typed."""

# The added tokens of Qwen2.5, in their order.
_SPECIAL: Final = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
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


def build(
    folder: str | Path,
    *,
    texts: Iterable[str] = (),
    hidden: int = 64,
    layers: int = 2,
    vocabulary: int = 900,
    window: int = 4096,
    seed: int = 0,
) -> Path:
    """Write the checkpoint.

    Args:
        folder: Where to; must be empty or not there.
        texts: What the tokenizer is trained on, beside the instruction and the synthetic task.
        hidden: Width of the text model; a multiple of 32.
        layers: Depth of the text model.
        vocabulary: Tokens of the text, at most.
        window: Tokens of a prompt and its completion, at most. Random weights write until it is full.
        seed: Of the weights.

    Returns:
        The folder.

    Raises:
        ConfigurationError: The folder is there and not empty, or can't be written.
    """
    tokenizer = _tokenizer([*_lines(), *texts], vocabulary)
    model = _model(tokenizer, hidden, layers, window, seed)
    with whole_folder(folder) as place, without_bars():
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        (place / "preprocessor_config.json").write_text(json.dumps(_PICTURES, indent=2), encoding="utf-8")
    return Path(folder)


_PICTURES: Final = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 28 * 28,
    "max_pixels": SIZE * SIZE,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def _lines() -> list[str]:
    frame = (
        "Human user:\n{0}\n\nAI assistant:\nNone\n<think>\n</think>\n\n<result>\nRequest: {1}\nResponse: {2}\n</result>"
    )
    labels = ("harmful", "unharmful", "None")
    framed = [frame.format("x", one, other) for one in labels for other in labels]
    return [*[INSTRUCTION] * 20, *framed * 4, *corpus()]


def _tokenizer(texts: list[str], vocabulary: int) -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        # Half of a surrogate pair is no text, and the tokenizer would raise.
        [text.encode(errors="replace").decode() for text in texts],
        trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=alphabet),
    )
    trained = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(merge) for merge in trained["merges"]]
    tokenizer = _hf.Qwen2Tokenizer(
        vocab=trained["vocab"],
        merges=merges,
        eos_token="<|im_end|>",  # noqa: S106 - a token of text
        pad_token="<|endoftext|>",  # noqa: S106
        additional_special_tokens=_SPECIAL,
        model_max_length=131072,
    )
    tokenizer.add_tokens([AddedToken("<|fim_pad|>", special=False, normalized=False)])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _model(tokenizer: Any, hidden: int, layers: int, window: int, seed: int) -> Any:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    heads = max(2, hidden // 32)
    config = _hf.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,  # of 32: the smallest that vLLM's CPU kernels take
            "num_key_value_heads": heads // 2,
            "max_position_embeddings": window,
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
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [0, 1],
            "window_size": 112,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model: Any = _hf.Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config = _hf.GenerationConfig(
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"]
    )
    return model
