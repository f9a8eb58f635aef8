from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardrail_vl.errors import ConfigurationError

pytest.importorskip("matplotlib")

from guardrail_vl.training.plots import draw, read, smoothed


def metrics(folder: Path, *rows: object) -> Path:
    file = folder / "metrics.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def test_each_chart_with_numbers_is_a_png_file(tmp_path: Path) -> None:
    rows = [{"step": n, "total": 3, "loss": 3.0 - n, "reward": -n, "tokens": 40 + n, "clip_eps": 0.2 / n, "clipped": 0.1}
            for n in (1, 2, 3)]  # fmt: skip
    made = draw(metrics(tmp_path, *rows), tmp_path / "plots", stage="rl")
    assert {file.name for file in made} == {
        f"rl-{name}.png" for name in ("loss", "reward", "length", "clip", "clipped")
    }
    for file in made:
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.size == (840, 480)


def test_one_point_is_no_curve(tmp_path: Path) -> None:
    assert draw(metrics(tmp_path, {"step": 1, "loss": 1.0}), tmp_path / "plots", stage="sft") == ()
    assert not (tmp_path / "plots").exists()


def test_what_is_no_number_and_a_torn_line_are_left_out(tmp_path: Path) -> None:
    file = metrics(
        tmp_path, {"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0, "name": "x"}, []
    )
    with file.open("a", encoding="utf-8") as lines:
        lines.write('{"step": 4, "lo')
    assert read(file) == {"loss": [(1.0, 2.0), (3.0, 1.0)]}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Can't read metrics\.jsonl"):
        read(tmp_path / "metrics.jsonl")


@given(st.lists(st.tuples(st.integers(0, 999), st.floats(-1e3, 1e3)), min_size=1, max_size=30), st.integers(1, 40))
def test_a_smoothed_value_is_the_mean_of_the_last_ones(points: list[tuple[float, float]], width: int) -> None:
    out = smoothed(points, width)
    assert [step for step, _ in out] == [step for step, _ in points]
    for place, (_, value) in enumerate(out):
        window = [one for _, one in points[max(0, place - width + 1) : place + 1]]
        assert value == pytest.approx(sum(window) / len(window), abs=1e-6)
