"""The paper's published F1 values, through our averaging, give its published averages.

`data/paper_prompt.csv` and `data/paper_response.csv` are its tables 1 and 2. Values and averages are rounded to 0.01,
so an average of the right weights may be 0.01 off and no more.

The paper used two sizes of WildGuardTest, and neither fits all rows: its own four guards fit with 1,725 samples, the
other guards with the sizes of its table of benchmarks (1,756 prompts, 1,768 responses). Which is whose is decided by
the name, here, once; a test below shows that the sizes can't be swapped.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.averages import Sizes, macro, paper_average, paper_weights, weighted

DATA = Path(__file__).parent / "data"
TOLERANCE = 0.01
TASKS = ("prompt", "response")

Row = dict[str, float]


def read(task: str) -> tuple[dict[str, Row], list[str]]:
    """The complete rows by name, and the names of the others."""
    lines = (DATA / f"paper_{task}.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    complete = {
        row["model"]: {name: float(cell) for name, cell in row.items() if name != "model"}
        for row in rows
        if all(row.values())
    }
    return complete, [row["model"] for row in rows if row["model"] not in complete]


TABLES = {task: read(task)[0] for task in TASKS}
EVERY = [(task, model) for task in TASKS for model in TABLES[task]]


def own(model: str) -> bool:
    return model.startswith("GuardReasoner-VL")


def sizes_of(model: str) -> Sizes:
    return "release" if own(model) else "table"


def computed(task: str, model: str, sizes: Sizes) -> dict[str, float]:
    """Our averages of a published row."""
    values = {name: value for name, value in TABLES[task][model].items() if name not in ("Text", "All")}
    return {
        "Text": paper_average(values, task, text_only=True, sizes=sizes),
        "All": paper_average(values, task, sizes=sizes),
    }


def off(task: str, model: str, sizes: Sizes) -> float:
    """How far the worse of the two averages is from the published one."""
    return max(abs(value - TABLES[task][model][name]) for name, value in computed(task, model, sizes).items())


@pytest.mark.parametrize(("task", "model"), EVERY)
def test_paper_averages(task: str, model: str) -> None:
    for name, value in computed(task, model, sizes_of(model)).items():
        assert abs(value - TABLES[task][model][name]) <= TOLERANCE, f"{model}, {name}: {value:.4f}"


def test_paper_averages_cover_the_tables() -> None:
    assert [len(TABLES[task]) for task in TASKS] == [20, 24]
    for task in TASKS:
        assert read(task)[1] == ["Aegis Guard 2.0 8B"]
        assert sum(map(own, TABLES[task])) == 4
        columns = set(next(iter(TABLES[task].values()))) - {"Text", "All"}
        assert columns == set(paper_weights(task))


# Rows of other guards that 1,725 happens to fit too: their WildGuardTest value is near their average.
FITS_BOTH = {("prompt", "ShieldGemma 2B")}


def test_paper_averages_of_other_guards_miss_with_the_release_sizes() -> None:
    others = [(task, model) for task, model in EVERY if not own(model)]
    missed = {(task, model): off(task, model, "release") for task, model in others}
    assert {row for row, by in missed.items() if by <= TOLERANCE} == FITS_BOTH
    assert max(missed, key=missed.__getitem__) == ("response", "Qwen2.5-VL-Instruct 3B")
    assert max(missed.values()) == pytest.approx(0.156, abs=0.001)


def test_paper_averages_of_its_own_guards_miss_with_the_table_sizes() -> None:
    missed = {(task, model) for task, model in EVERY if own(model) and off(task, model, "table") > TOLERANCE}
    # In the response task the WildGuardTest value of the 7B guards is near their average: both sizes fit them.
    assert missed == {("prompt", model) for model in TABLES["prompt"] if own(model)} | {
        ("response", "GuardReasoner-VL-Eco 3B"),
        ("response", "GuardReasoner-VL 3B"),
    }


def test_paper_averages_give_the_headline() -> None:
    """+19.27: the mean over both tasks of GuardReasoner-VL 7B less that of Qwen2.5-VL-Instruct 7B."""

    def mean_of(model: str, sizes: Sizes) -> float:
        return macro(computed(task, model, sizes)["All"] for task in TASKS)

    ours, base = "GuardReasoner-VL 7B", "Qwen2.5-VL-Instruct 7B"
    published = [macro(TABLES[task][model]["All"] for task in TASKS) for model in (ours, base)]
    assert published[0] - published[1] == pytest.approx(19.27, abs=1e-9)
    assert mean_of(ours, "release") - mean_of(base, "table") == pytest.approx(19.27, abs=TOLERANCE)
    # With one size for both it would be 0.02 less.
    assert mean_of(ours, "release") - mean_of(base, "release") == pytest.approx(19.25, abs=0.005)


TOKENS = {"3B": (213.32, 187.30), "7B": (208.33, 180.08)}
# Of table 3: F1 of GuardReasoner-VL and of Eco, the change, and the change of the tokens in percent.
TABLE_3 = {"3B": (77.65, 77.27, -0.48, -12.20), "7B": (78.33, 77.22, -1.42, -13.56)}


@pytest.mark.parametrize("size", TABLE_3)
def test_paper_averages_give_its_table_of_tokens(size: str) -> None:
    full, eco, f1_change, token_change = TABLE_3[size]
    means = [
        macro(computed(task, f"GuardReasoner-VL{kind} {size}", "release")["All"] for task in TASKS)
        for kind in ("", "-Eco")
    ]
    assert means == pytest.approx([full, eco], abs=TOLERANCE)
    # -0.489% for 3B, which the paper cuts off rather than rounds.
    assert 100 * (means[1] / means[0] - 1) == pytest.approx(f1_change, abs=0.015)
    tokens = TOKENS[size]
    assert 100 * (tokens[1] / tokens[0] - 1) == pytest.approx(token_change, abs=0.005)


# ---- the averages themselves --------------------------------------------------------------------------------------


def test_weights_are_the_paper_s_sizes() -> None:
    assert sum(paper_weights("prompt", sizes="table").values()) == 13_564
    assert sum(paper_weights("response", sizes="table").values()) == 11_119
    assert sum(paper_weights("prompt").values()) == 13_564 - 1756 + 1725
    assert sum(paper_weights("response", text_only=True).values()) == 11_119 - 1768 + 1725 - 3282
    weights = paper_weights("prompt")
    weights["ToxicChat"] = 0
    assert paper_weights("prompt")["ToxicChat"] == 2853


def test_text_only_needs_no_pictures() -> None:
    values = dict.fromkeys(paper_weights("prompt", text_only=True), 50.0) | {"WildGuardTest": 60.0}
    # 1725 of 6956 samples are 10 higher.
    assert paper_average(values, "prompt", text_only=True) == pytest.approx(50 + 10 * 1725 / 6956)
    assert paper_average({**values, "SPA-VL-Eval": 0.0}, "prompt", text_only=True) == pytest.approx(
        50 + 10 * 1725 / 6956
    )
    with pytest.raises(ConfigurationError, match="needs HarmImageTest, SPA-VL-Eval"):
        paper_average(values, "prompt")


def test_what_is_not_in_the_table_is_refused() -> None:
    values = dict.fromkeys(paper_weights("response"), 1.0)
    with pytest.raises(ConfigurationError, match="does not count ToxicChat"):
        paper_average({**values, "ToxicChat": 1.0}, "response")
    with pytest.raises(ConfigurationError, match="'answer'"):
        paper_average(values, "answer")
    with pytest.raises(ConfigurationError, match="'mine'"):
        paper_average(values, "response", sizes="mine")  # type: ignore[arg-type]


def test_weighted_and_macro() -> None:
    assert weighted([(1.0, 1), (0.0, 3)]) == 0.25
    assert macro([1.0, 0.0]) == 0.5
    for rows in ([], [(1.0, 0)], [(1.0, 2), (1.0, -1)]):
        with pytest.raises(ConfigurationError, match="samples"):
            weighted(rows)
    with pytest.raises(ConfigurationError, match="samples"):
        macro([])


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5)), min_size=1))
def test_weighted_is_the_plain_average_over_samples(rows: list[tuple[float, int]]) -> None:
    assert weighted(rows) == pytest.approx(macro(value for value, samples in rows for _ in range(samples)))
