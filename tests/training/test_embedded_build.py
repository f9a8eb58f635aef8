"""What builds the embedded guard lies outside the package; its rules on data are tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "training" / "embedded"
SEED = ROOT / "training" / "data" / "seed"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__(name)


def sample(**changes: object) -> dict[str, object]:
    row: dict[str, object] = {
        "id": "aaaaaaaaaaaa.somewhere.00000",
        "source": "somewhere",
        "task_inputs": {"prompt": "Say hello.", "images": [], "response": None},
        "labels": {"prompt": "unharmful", "response": None, "refusal": None},
        "category": None,
        "license": "MIT",
    }
    return row | changes


def loaded(rows: list[dict[str, object]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    data = module("data", monkeypatch)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [row for row in data.load(folder) if row.source in {"somewhere", "mossbench"}]


@pytest.mark.parametrize(
    "changes",
    [
        {"license": "CC-BY-NC-4.0"},
        {"license": "MIT, CC-BY-NC-4.0"},
        {"license": "CC-BY-SA-4.0"},
        {"license": ""},
        {"license": "test use only"},
        {"source": "mossbench"},
    ],
)
def test_rows_that_may_not_train_are_refused(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("sklearn")
    (row,) = loaded([sample(**changes)], tmp_path, monkeypatch)
    assert row.split == "measured"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="may not train"):
        module("finetune", monkeypatch).finetune(tmp_path / "none.whl", [row], tmp_path)
    with pytest.raises(ValueError, match="may not calibrate"):
        module("calibrate", monkeypatch).write(tmp_path, [row], "0", tmp_path)


def test_a_row_under_several_licences_needs_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = loaded([sample(license="Apache-2.0, CC-BY-4.0")], tmp_path, monkeypatch)
    assert row.split in {"train", "dev", "test"}  # type: ignore[attr-defined]


def test_one_topic_of_the_seed_set_is_on_one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = module("data", monkeypatch).seed()
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row.group, set()).add(row.split)
    assert len(rows) > 8_000
    assert all(len(found) == 1 for found in sides.values())
    assert {side for found in sides.values() for side in found} == {"train", "dev", "test"}


def test_pictured_requests_name_what_the_picture_model_names(monkeypatch: pytest.MonkeyPatch) -> None:
    data = module("data", monkeypatch)
    from guardrail_vl.engines._embedded.encoder import HERE

    names = set((HERE / "objects.txt").read_text(encoding="utf-8").splitlines())
    lines = [line.split("|") for line in data._texts("pictured.txt")]
    assert {name for *_, shows in lines for name in shows.split(", ")} <= names
    # The same words with another picture are judged otherwise: else it would teach that pictures don't matter.
    labels: dict[str, set[bool]] = {}
    for hazard, request, _ in lines:
        labels.setdefault(request, set()).add(hazard != "none")
    assert sum(len(found) == 2 for found in labels.values()) >= 10


def test_the_seed_set_keeps_its_own_rules() -> None:
    done = subprocess.run([sys.executable, SEED / "check.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_products_in_8_bits_give_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    import numpy as np
    import onnxruntime

    eight_bits = module("eight_bits", monkeypatch)
    chance = np.random.default_rng(0)
    weight = chance.normal(size=(64, 32)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", 32])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(eight_bits.quantized(made).SerializeToString())
    x = np.maximum(chance.normal(size=(9, 64)), -0.15).astype(np.float32)
    x[3] *= 1000  # one row of another size takes nothing from the others
    (y,) = session.run(None, {"x": x})
    for row in range(len(x)):
        (alone,) = session.run(None, {"x": x[row : row + 1]})
        error = np.linalg.norm(alone - x[row : row + 1] @ weight) / np.linalg.norm(x[row : row + 1] @ weight)
        assert error < 0.02
        assert np.array_equal(alone[0], y[row])
