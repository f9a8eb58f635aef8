"""Plots: what they say is right, and they are safe to lie inside a page."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("matplotlib", reason="needs the extra 'evaluation'")
pytest.importorskip("sklearn", reason="needs the extra 'evaluation'")

import matplotlib as mpl

from guardrail_vl.evaluation import plots
from guardrail_vl.evaluation.plots import Plot, Scored
from guardrail_vl.evaluation.records import Record
from guardrail_vl.evaluation.reliability import reliability
from guardrail_vl.verdict import Label, Stage

HOSTILE = (
    "</svg><script>alert(1)</script>",
    '$\\frac{1}{0}$ & "quotes" \'',
    "_hidden",
    "名前 \x00 \u202e \ud800",
    "n" * 300,
)


def scored(name: str = "guard", count: int = 400, skill: float = 0.3, seed: int = 1) -> Scored:
    chance = random.Random(seed)
    gold = [chance.random() < 0.4 for _ in range(count)]
    return Scored(name, gold, [min(1.0, max(0.0, chance.random() * 0.7 + skill * label)) for label in gold])


def every(name: str) -> list[Plot]:
    one = scored(name)
    records = [
        Record("s", str(i), "", Stage.PROMPT, Label.HARMFUL if gold else Label.UNHARMFUL, None, score=score)
        for i, (gold, score) in enumerate(zip(one.gold, one.score, strict=True))
    ]
    found = [
        plots.roc([one]),
        plots.precision_recall([one]),
        plots.reliability({name: reliability(records, stage=Stage.PROMPT)}),
        plots.score_histogram(one, title=name),
        plots.histogram({name: [0.01, 0.2, 3.0, 4.0]}, unit="seconds", title=name),
    ]
    assert all(found)
    return [plot for plot in found if plot]


def test_the_areas_are_those_of_a_hand_worked_case() -> None:
    # Of the 2 x 2 pairs three are in order: area 0.75. Precision at the two hits: 1/1 and 2/3.
    one = Scored("guard", [False, True, False, True], [0.1, 0.4, 0.6, 0.9])
    roc, curve = plots.roc([one]), plots.precision_recall([one])
    assert roc is not None
    assert curve is not None
    assert "guard: area 0.750" in roc.alt
    assert "guard: average precision 0.833" in curve.alt


def test_a_histogram_tells_the_middle_and_leaves_out_what_was_not_measured() -> None:
    plot = plots.histogram({"a": [0, 0, 1, 2, 3], "b": [0, 0]}, unit="seconds", title="Time")
    assert plot is not None
    assert plot.alt == "a: median 2, 95 % under 2.9 seconds."


def test_nothing_is_drawn_without_data() -> None:
    one_label = Scored("guard", [True, True], [0.1, 0.9])
    assert plots.roc([]) is None
    assert plots.roc([one_label]) is None
    assert plots.precision_recall([one_label]) is None
    assert plots.reliability({}) is None
    assert plots.score_histogram(Scored("guard", [], [])) is None
    assert plots.histogram({"a": [0.0]}, unit="s", title="t") is None


def test_scores_and_labels_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match="one score for each"):
        Scored("guard", [True], [0.1, 0.2])


@pytest.mark.parametrize("name", HOSTILE)
def test_names_can_do_nothing(name: str) -> None:
    for plot in every(name):
        root = ElementTree.fromstring(plot.svg)
        tags = {element.tag.split("}")[-1] for element in root.iter()}
        assert tags <= {"svg", "defs", "g", "path", "use", "clipPath", "rect", "text", "tspan"}, tags
        assert not [key for element in root.iter() for key in element.attrib if key.lower().startswith("on")]
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"] == f"{plot.title}. {plot.alt}"


def test_a_plot_fetches_nothing_and_brings_no_font() -> None:
    for plot in every("guard"):
        assert not re.search(r'(?:href|src)="(?!#)', plot.svg)
        assert "url(" not in plot.svg.replace("url(#", "")
        assert "@font-face" not in plot.svg
        assert "<?xml" not in plot.svg
        assert "DOCTYPE" not in plot.svg


def test_plots_of_one_page_share_no_id() -> None:
    ids = [found for plot in [*every("guard"), *every("other")] for found in re.findall(r'\bid="([^"]*)"', plot.svg)]
    assert len(ids) == len(set(ids)) > 20
    for plot in every("guard"):
        own = set(re.findall(r'\bid="([^"]*)"', plot.svg))
        assert set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', plot.svg))
        assert {a or b for a, b in re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', plot.svg)} <= own


def test_the_same_numbers_make_the_same_bytes() -> None:
    assert [plot.svg for plot in every("guard")] == [plot.svg for plot in every("guard")]


def test_drawing_leaves_the_settings_alone() -> None:
    before = dict(mpl.rcParams)
    every("guard")
    assert dict(mpl.rcParams) == before


def test_a_large_curve_is_thinned_and_stays_where_it_was() -> None:
    small, large = plots.roc([scored(count=300)]), plots.roc([scored(count=60_000)])
    assert small is not None
    assert large is not None
    assert len(large.svg) < 25_000
    assert len(small.svg) < 25_000


@pytest.mark.parametrize("ground", ["#ffffff", "#14171b"])
def test_lines_can_be_seen_on_light_and_dark(ground: str) -> None:
    for colour in plots.COLOURS:
        assert contrast(colour, ground) >= 3, colour


def contrast(first: str, second: str) -> float:
    """As WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_many_guards_differ_in_colour_or_dash() -> None:
    styles = [style for _, style in zip(range(30), plots._styles(), strict=False)]
    assert len({(style["color"], str(style["linestyle"])) for style in styles}) == 30
