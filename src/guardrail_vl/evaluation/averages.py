"""Averages over benchmarks: weighted by samples, plain, and as GuardReasoner-VL published them. Knows no record.

The paper weighs each benchmark's F1 by its samples (arXiv 2505.11049). It counted WildGuardTest in two ways: see
`Sizes`. With the one that is theirs, all rows of its tables give the published averages to 0.01.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation._paper import PAPER
from guardrail_vl.verdict import Stage

Sizes = Literal["release", "table"]
"""How many samples WildGuardTest counts. `release`: 1,725 in both tasks, all rows of the file, as the released code
scores it; so the paper's own four guards were averaged. `table`: 1,756 prompts and 1,768 responses, as the paper's list
of benchmarks says; so every other guard was."""


def weighted(rows: Iterable[tuple[float, int]]) -> float:
    """The average weighted by samples: `Σ nᵢ·vᵢ / Σ nᵢ`.

    Args:
        rows: (value, samples) of each set.

    Raises:
        ConfigurationError: No samples, or a negative number of them.
    """
    kept = list(rows)
    total = sum(samples for _, samples in kept)
    if total <= 0 or any(samples < 0 for _, samples in kept):
        raise ConfigurationError("An average needs sets with samples.")
    return sum(value * samples for value, samples in kept) / total


def macro(values: Iterable[float]) -> float:
    """The plain average: each set counts the same.

    Raises:
        ConfigurationError: No values.
    """
    return weighted((value, 1) for value in values)


def paper_weights(task: Stage | str, *, text_only: bool = False, sizes: Sizes = "release") -> dict[str, int]:
    """Benchmark, as the release calls it (`Benchmark.paper_name`) → samples: the weights in the paper's averages.

    Args:
        task: `prompt` or `response`.
        text_only: Leave out the benchmarks with pictures: the paper's "Average (Text)".
        sizes: See `Sizes`.

    Raises:
        ConfigurationError: An unknown task or size.
    """
    if task not in tuple(Stage) or sizes not in ("release", "table"):
        raise ConfigurationError(f"The paper has no averages of {str(task)!r} by {sizes!r}.")
    return {
        benchmark.paper_name: (benchmark.weight if sizes == "release" else benchmark.size) or 0
        for benchmark in PAPER
        if benchmark.stage == task and (benchmark.modality == "text" or not text_only)
    }


def paper_average(
    values: Mapping[str, float], task: Stage | str, *, text_only: bool = False, sizes: Sizes = "release"
) -> float:
    """The paper's average over its benchmarks: `Σ nᵢ·vᵢ / Σ nᵢ`, in the unit of the values.

    Args:
        values: Benchmark, as the release calls it → value. All of the task's; with `text_only`, those with pictures may
            be there and don't count.
        task: `prompt` or `response`.
        text_only: "Average (Text)" instead of "Average (All)".
        sizes: See `Sizes`. To compare with a guard other than the paper's own four, take `table`.

    Raises:
        ConfigurationError: A benchmark is missing, or isn't one of the task's.
    """
    weights = paper_weights(task, text_only=text_only, sizes=sizes)
    if missing := sorted(weights.keys() - values.keys()):
        raise ConfigurationError(f"The paper's average needs {', '.join(missing)} as well.")
    if unknown := sorted(values.keys() - paper_weights(task)):
        raise ConfigurationError(f"The paper's average of the {task} task does not count {', '.join(unknown)}.")
    return weighted((values[name], samples) for name, samples in weights.items())
