"""Pictures of how a stage went, from its `metrics.jsonl`: loss, reward, length, clip range, clipped share.

PNG files for a person to look at. Knows no stage: a figure is drawn where its numbers are.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from guardrail_vl._whole import write_whole
from guardrail_vl.errors import ConfigurationError, MissingDependencyError

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingDependencyError("matplotlib", extra="train", needed_for="guardrail_vl.training.plots") from error

Points = Sequence[tuple[float, float]]
"""(step, value), in order."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture: which numbers, under which words."""

    name: str
    """Of its file."""
    label: str
    """Of the vertical axis, with the unit."""
    keys: tuple[str, ...]
    """The numbers in `metrics.jsonl` to draw, a line each."""


CHARTS: Final = (
    Chart("loss", "loss", ("loss", "eval_loss")),
    Chart("reward", "mean reward of a rollout", ("reward",)),
    Chart("accuracy", "share of completions", ("accuracy", "format", "truncated")),
    Chart("length", "mean length in tokens", ("tokens",)),
    Chart("clip", "clip range epsilon", ("clip_eps",)),
    Chart("clipped", "share of tokens clipped", ("clipped",)),
)

_COLOURS: Final = ("#2477c9", "#c8483f", "#1f8a54", "#8f63d2")
_SMOOTH: Final = 40
"""From this many points on, a moving mean is drawn over them."""


def draw(metrics: str | Path, folder: str | Path, *, stage: str) -> tuple[Path, ...]:
    """Draw what there is.

    Args:
        metrics: A stage's `metrics.jsonl`. A torn last line is left out.
        folder: Where to; made if it is not there.
        stage: The files are called `<stage>-<chart>.png`.

    Returns:
        The files, one for each chart that has at least two points.

    Raises:
        ConfigurationError: The file can't be read, or a picture can't be written.
    """
    series = read(metrics)
    made = []
    for chart in CHARTS:
        lines = {key: series[key] for key in chart.keys if len(series.get(key, ())) > 1}
        if lines:
            file = Path(folder) / f"{stage}-{chart.name}.png"
            write_whole(file, _picture(f"{stage}: {chart.label}", chart.label, lines))
            made.append(file)
    return tuple(made)


def read(metrics: str | Path) -> dict[str, list[tuple[float, float]]]:
    """The finite numbers of a `metrics.jsonl` by name, each with its step.

    Raises:
        ConfigurationError: The file can't be read.
    """
    try:
        lines = Path(metrics).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigurationError(f"Can't read {Path(metrics).name}: {error.strerror}.") from error
    series: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key, value in (row := _row(line)).items():
            if key not in ("step", "total") and _finite(value) and _finite(row.get("step")):
                series.setdefault(key, []).append((float(row["step"]), float(value)))
    return series


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}  # the line that a killed process was writing
    return row if isinstance(row, dict) else {}


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def smoothed(points: Points, width: int) -> list[tuple[float, float]]:
    """The mean of each point and those before it, `width` at the most."""
    out, total = [], 0.0
    for number, (step, value) in enumerate(points):
        total += value
        if number >= width:
            total -= points[number - width][1]
        out.append((step, total / min(number + 1, width)))
    return out


def _picture(title: str, label: str, lines: Mapping[str, Points]) -> bytes:
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for colour, (key, points) in zip(_COLOURS, lines.items(), strict=False):
        many = len(points) >= _SMOOTH
        # A single number needs no name: the axis has it.
        name = key if len(lines) > 1 else "_"
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1, alpha=0.3 if many else 1,
                  label="_" if many else name)  # fmt: skip
        if many:
            axes.plot(*zip(*smoothed(points, len(points) // 20), strict=True), color=colour, linewidth=1.5, label=name)
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.grid(visible=True, linewidth=0.4, alpha=0.5)
    if len(lines) > 1:
        axes.legend(frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
