"""Checkpoints that the tests of training begin with, and how to look at what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")
pytest.importorskip("transformers", reason="needs the extra 'train'")
pytest.importorskip("accelerate", reason="needs the extra 'train'")

import torch
import transformers
from safetensors.torch import load_file

from guardrail_vl._whole import whole_folder
from guardrail_vl.training import tiny

hf: Any = transformers


def text_only(folder: Path, *, seed: int = 0) -> Path:
    """A tiny causal text model, with the tokenizer of `tiny`."""
    tokenizer = tiny._tokenizer(tiny._lines(), 900)
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    with whole_folder(folder) as place:
        hf.LlamaForCausalLM(config).save_pretrained(place)
        tokenizer.save_pretrained(place)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All of a checkpoint's tensors by name."""
    out: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= load_file(file)
    return out


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether the tensors are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
