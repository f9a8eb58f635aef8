"""Products of activations and weights in 8-bit integers, for an ONNX graph. Knows no model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

ZEROS = (64, 24)
"""What stands for 0 among the 128 steps of an activation: in general, and where hardly anything is negative. With all
256 steps, processors without dot products of 8-bit integers may overflow; so no sum of two products leaves 16 bits, and
every processor gives the same numbers."""
MICROSOFT = "com.microsoft"


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every product of activations and weights done in 8-bit integers.

    Each row of the activations is scaled by its own largest number, so that a text's vector does not depend on what
    else is in its batch; each column of the weights has a scale of its own.
    """
    graph = model.graph
    weights = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    used: set[str] = set()
    rows: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    new: dict[str, np.ndarray] = {"row_least": np.array(1e-8, np.float32)}
    for zero in ZEROS:
        new |= {f"zero_{zero}": np.array(zero, np.uint8), f"step_{zero}": np.array(1 / (127 - zero), np.float32)}
    for node in graph.node:
        node.doc_string = ""  # else it holds paths of the machine it was made on
        if node.op_type != "MatMul" or node.input[1] not in weights:
            nodes.append(node)
            continue
        x, weight = node.input
        wide, narrow = weights[weight].shape
        # What comes out of the activation function is hardly ever negative.
        zero = ZEROS[int(wide > narrow)]
        if x not in rows:
            rows[x] = f"row{len(rows)}"
            nodes += _rows(x, rows[x], zero)
        scale = np.maximum(np.abs(weights[weight]).max(0), 1e-8) / 127
        new[f"{weight}_8"] = np.round(weights[weight] / scale).astype(np.int8)
        new[f"{weight}_scale"] = scale.astype(np.float32)
        used.add(weight)
        row, out = rows[x], node.output[0]
        inputs = [f"{row}_8", f"{weight}_8", f"step_{zero}", f"{weight}_scale", f"zero_{zero}"]
        nodes += [
            helper.make_node("MatMulIntegerToFloat", inputs, [f"{out}_unit"], domain=MICROSOFT),
            helper.make_node("Mul", [f"{out}_unit", f"{row}_size"], [out]),
        ]
    kept = [item for item in graph.initializer if item.name not in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *(numpy_helper.from_array(value, name) for name, value in new.items())])
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    model.doc_string = ""
    return model


def _rows(x: str, name: str, zero: int) -> list[onnx.NodeProto]:
    """Each row of `x` divided by its largest number, in steps around `zero`."""
    return [
        helper.make_node("ReduceMax", [x], [f"{name}_most"], axes=[-1], keepdims=1),
        helper.make_node("ReduceMin", [x], [f"{name}_least"], axes=[-1], keepdims=1),
        helper.make_node("Neg", [f"{name}_least"], [f"{name}_negative"]),
        helper.make_node("Max", [f"{name}_most", f"{name}_negative", "row_least"], [f"{name}_size"]),
        helper.make_node("Div", [x, f"{name}_size"], [f"{name}_unit"]),
        helper.make_node("QuantizeLinear", [f"{name}_unit", f"step_{zero}", f"zero_{zero}"], [f"{name}_8"]),
    ]
