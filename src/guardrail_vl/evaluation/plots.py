"""Plots of an evaluation as SVG that lies inside a page: no font, no script, nothing fetched.

Lines and text take the page's colour (`currentColor`), so that they read on light and on dark. Curves differ in dash as
well as in colour. Every plot has its words (`Plot.alt`). Knows no run and no report: it is given numbers.
"""

from __future__ import annotations

import hashlib
import html
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from guardrail_vl.errors import MissingDependencyError
from guardrail_vl.evaluation._visible import clean
from guardrail_vl.evaluation.reliability import Reliability

try:
    import matplotlib as mpl
    import numpy as np
    from matplotlib import font_manager
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve
except ImportError as error:
    raise MissingDependencyError(
        error.name or "matplotlib", extra="evaluation", needed_for="The plots of an evaluation"
    ) from error

COLOURS: Final = ("#2477c9", "#c8483f", "#1f8a54", "#8f63d2", "#a3720b", "#64748b")
"""Each has a contrast of at least 3:1 on white and on the report's dark background."""
_DASHES: Final = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
_INK: Final = "#010203"
"""Stands for the page's own text colour while a plot is drawn."""
_POINTS: Final = 300
"""Points drawn of one curve at the most."""
_NAME: Final = 44
"""Characters of a name in a legend at the most."""

Numbers = Sequence[float]


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture and what it says."""

    title: str
    svg: str = field(repr=False)
    """An `<svg>` element with a role and a label."""
    alt: str
    """What it shows, in a sentence or two."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one guard.

    Raises:
        ValueError: Not one score for each label.
    """

    name: str
    gold: Sequence[bool] = field(repr=False)
    """Whether each sample is harmful."""
    score: Numbers = field(repr=False)
    """Its score in [0, 1]."""

    def __post_init__(self) -> None:
        if len(self.gold) != len(self.score):
            raise ValueError("There must be one score for each label.")

    @property
    def graded(self) -> bool:
        """Whether it says more than yes and no: only then can a score be read as a probability."""
        return len(set(self.score)) > 2

    @property
    def both(self) -> bool:
        """Whether there are samples of both labels: without them there is no curve."""
        return len(set(map(bool, self.gold))) == 2


def roc(series: Sequence[Scored], *, title: str = "ROC") -> Plot | None:
    """Recall over false-positive rate, one line a guard. None: nobody has scores for both labels."""
    drawn = [one for one in series if one.both]
    if not drawn:
        return None
    words = []
    with _figure() as (figure, axes):
        axes.plot((0, 1), (0, 1), color=_INK, linewidth=0.6, linestyle=":")
        for one, style in zip(drawn, _styles(), strict=False):
            false, true, _ = roc_curve(one.gold, one.score)
            words.append(f"{one.name}: area {auc(false, true):.3f}")
            axes.plot(*_thin(false, true), label=_legend(one.name, f"area {auc(false, true):.3f}"), **style)
        _unit(axes, "false-positive rate", "recall")
        return _done(figure, title, f"Recall over false-positive rate. {'; '.join(words)}.")


def precision_recall(series: Sequence[Scored], *, title: str = "Precision and recall") -> Plot | None:
    """Precision over recall, one line a guard; the dotted line is the share of harmful samples. None: as in `roc`."""
    drawn = [one for one in series if one.both]
    if not drawn:
        return None
    words = []
    with _figure() as (figure, axes):
        share = float(np.mean(np.asarray(drawn[0].gold, dtype=bool)))
        axes.axhline(share, color=_INK, linewidth=0.6, linestyle=":")
        for one, style in zip(drawn, _styles(), strict=False):
            precision, recall, _ = precision_recall_curve(one.gold, one.score)
            mean = average_precision_score(one.gold, one.score)
            words.append(f"{one.name}: average precision {mean:.3f}")
            axes.step(*_thin(recall, precision), where="post", label=_legend(one.name, f"AP {mean:.3f}"), **style)
        _unit(axes, "recall", "precision")
        return _done(figure, title, f"Precision over recall. {'; '.join(words)}.")


def reliability(series: Mapping[str, Reliability], *, title: str = "Reliability") -> Plot | None:
    """The share that is harmful over the mean score of each bin; on the diagonal a score is a probability.

    A point's area grows with the samples of its bin.

    Args:
        series: By name of guard.
        title: What is drawn.

    Returns:
        None: there is nothing to draw.
    """
    if not series:
        return None
    words = []
    with _figure() as (figure, axes):
        axes.plot((0, 1), (0, 1), color=_INK, linewidth=0.6, linestyle=":")
        for (name, one), style in zip(series.items(), _styles(), strict=False):
            full = [(bin.score, bin.harmful, bin.count) for bin in one.bins if bin.count]
            score, share, count = (np.asarray(column, dtype=float) for column in zip(*full, strict=True))
            words.append(f"{name}: expected calibration error {one.ece:.3f}, Brier score {one.brier:.3f}")
            axes.plot(score, share, label=_legend(name, f"ECE {one.ece:.3f}"), **style)
            axes.scatter(score, share, s=8 + 90 * count / count.sum(), color=style["color"], alpha=0.7)
        _unit(axes, "score", "share that is harmful")
        return _done(figure, title, f"Share of harmful samples over the score. {'; '.join(words)}.")


def score_histogram(one: Scored, *, title: str = "Scores") -> Plot | None:
    """How the scores of harmful and of unharmful samples lie. None: there are no scores."""
    if not one.score:
        return None
    gold, score = np.asarray(one.gold, dtype=bool), np.asarray(one.score, dtype=float)
    edges = np.linspace(0, 1, 21).tolist()
    with _figure() as (figure, axes):
        for label, kept, style in zip(("unharmful", "harmful"), (~gold, gold), _styles(), strict=False):
            name = f"{label} ({int(kept.sum())})"
            axes.hist(score[kept], edges, histtype="step", label=name, **style)
        axes.set_xlim(0, 1)
        axes.set_xlabel("score", parse_math=False)
        axes.set_ylabel("samples", parse_math=False)
        high = float(np.mean(score[gold] >= 0.5)) if gold.any() else 0.0
        low = float(np.mean(score[~gold] >= 0.5)) if (~gold).any() else 0.0
        alt = f"From 0.5 on lie {high:.0%} of the harmful and {low:.0%} of the unharmful samples."
        return _done(figure, title, alt)


def histogram(values: Mapping[str, Numbers], *, unit: str, title: str) -> Plot | None:
    """How a cost is spread: seconds, tokens. The axis is logarithmic where the values span more than a factor of 50.

    Args:
        values: By name of guard; values of 0 are left out, as not measured.
        unit: Of the values, for the axis.
        title: What is drawn.

    Returns:
        None: there is no value above 0.
    """
    known = {name: np.asarray([v for v in row if v > 0], dtype=float) for name, row in values.items()}
    known = {name: row for name, row in known.items() if len(row)}
    if not known:
        return None
    low, high = min(float(row.min()) for row in known.values()), max(float(row.max()) for row in known.values())
    wide = high > 50 * low
    low, high = (low, high) if high > low else (low * 0.9, high * 1.1)
    edges = (np.geomspace(low, high, 31) if wide else np.linspace(low, high, 31)).tolist()
    words = []
    with _figure() as (figure, axes):
        for (name, row), style in zip(known.items(), _styles(), strict=False):
            axes.hist(
                row, edges, histtype="step", weights=np.full(len(row), 100 / len(row)), label=_legend(name), **style
            )
            words.append(f"{name}: median {np.median(row):.3g}, 95 % under {np.percentile(row, 95):.3g} {unit}")
        if wide:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel(unit, parse_math=False)
        axes.set_ylabel("% of samples", parse_math=False)
        return _done(figure, title, f"{'; '.join(words)}.")


def _styles() -> Iterator[dict[str, Any]]:
    for number in itertools.count():
        # The dash moves on with the colour, and once more when the colours begin again.
        dash = _DASHES[(number + number // len(COLOURS)) % len(_DASHES)]
        yield {"color": COLOURS[number % len(COLOURS)], "linestyle": dash, "linewidth": 1.6}


@contextmanager
def _figure() -> Iterator[tuple[Figure, Axes]]:
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "guardrail-vl", "font.family": "DejaVu Sans", "font.size": 9,
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.use_mathtext": False,
        "axes.formatter.min_exponent": 6,
    }  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.4, 3.7), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        yield figure, axes


def _unit(axes: Axes, across: str, up: str) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_box_aspect(0.72)
    axes.set_xlabel(across, parse_math=False)
    axes.set_ylabel(up, parse_math=False)


def _thin(across: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_POINTS` of the points, spread evenly along the curve, with its ends."""
    if len(across) <= _POINTS:
        return across, up
    way = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(across), np.diff(up)))])
    picked = np.unique(np.searchsorted(way, np.linspace(0, way[-1], _POINTS)).clip(0, len(way) - 1))
    return across[picked], up[picked]


def _legend(name: str, figure: str = "") -> str:
    drawable = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    shown = "".join(char if ord(char) in drawable and char.isprintable() else "?" for char in name)
    shown = shown if len(shown) <= _NAME else f"{shown[: _NAME - 1]}…"
    # A name that begins with an underscore would be left out of the legend.
    shown = f"\u200a{shown}" if shown.startswith("_") else shown
    return f"{shown}: {figure}" if figure else shown


def _done(figure: Figure, title: str, alt: str) -> Plot:
    # The legend takes room of its own, however many guards there are.
    figure.set_figheight(3.3 + 0.18 * len(figure.axes[0].get_legend_handles_labels()[1]))
    legend = figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=1, handlelength=3)
    for text in legend.get_texts():
        text.set_parse_math(False)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    title, alt = clean(title), clean(alt)
    return Plot(title, _inline(out.getvalue(), title, alt), alt)


def _inline(svg: str, title: str, alt: str) -> str:
    """The drawing as an element of a page: without what only a file of its own needs, with ids that are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.S)
    head, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    own = "p" + hashlib.blake2b(f"{title}{alt}{body}".encode(), digest_size=5).hexdigest()
    body = re.sub(r'\bid="([^"]*)"', rf'id="{own}-\1"', body)
    body = re.sub(r"url\(#", f"url(#{own}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{own}-', body)
    body = body.replace(_INK, "currentColor").replace("'DejaVu Sans'", "'DejaVu Sans', system-ui, sans-serif")
    label = html.escape(f"{title}. {alt}")
    # Its own style element would be one of the whole page.
    style = "stroke-linejoin: round; stroke-linecap: butt"
    return f'<svg {view.group() if view else ""} role="img" style="{style}" aria-label="{label}">{body}'.strip()
