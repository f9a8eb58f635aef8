"""One run, or several side by side, as a page of its own, as Markdown and as JSON.

The page fetches nothing and needs nothing beside it. What comes from samples, models and sources is escaped, and the
page's own policy lets no other script run. The Markdown and the JSON hold no content. The same runs give the same
bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.evaluation import _text, metrics, plots
from guardrail_vl.evaluation._browse import Shown, worst
from guardrail_vl.evaluation._folder import Run
from guardrail_vl.evaluation._view import Block, View, scored, view
from guardrail_vl.evaluation._visible import clean
from guardrail_vl.evaluation.cases import CaseSet
from guardrail_vl.evaluation.metrics import Latency, Missing, Scores, Tokens
from guardrail_vl.evaluation.reliability import reliability
from guardrail_vl.verdict import Stage

try:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape
except ImportError as error:
    raise MissingDependencyError("jinja2", extra="evaluation", needed_for="The report of an evaluation") from error

NAME: Final = "report"
"""Of the files: `report.html`, `report.md`, `report.json`."""
ERRORS: Final = 10
"""False alarms and misses of each run in each set that are listed, unless the caller says otherwise."""


def write(
    runs: Sequence[Run],
    folder: str | Path,
    *,
    cases: Iterable[CaseSet] | None = None,
    title: str | None = None,
    errors: int = ERRORS,
    resamples: int = 1_000,
    seed: int = 0,
) -> Path:
    """Write `report.html`, `report.md` and `report.json`.

    Args:
        runs: What is reported; with several, each is compared with the first.
        folder: Where to; made if it is not there.
        cases: The samples, so that errors can be read: **the page then holds their content**, and what models wrote.
            None: only ids.
        title: Of the report. None: it names the guard.
        errors: False alarms and misses of each run in each set that are listed at the most; 0: none.
        resamples: Of the bootstrap intervals.
        seed: Of the resamples.

    Returns:
        The path of the HTML.

    Raises:
        ConfigurationError: No runs, a run without a record, or the folder can't be written.
    """
    if errors < 0:
        raise ConfigurationError(f"errors must not be negative, not {errors!r}.")
    seen = view(runs, title=title, resamples=resamples, seed=seed)
    given = None if cases is None else tuple(cases)
    shown, total = worst([run.records for run in seen.runs], given, errors=errors)
    page = _page(seen, shown, total, errors=errors, with_content=given is not None)
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for suffix, text in (("md", _text.markdown(seen)), ("json", _text.as_json(seen)), ("html", page)):
            # A name or a text may hold half a surrogate pair, which no file can.
            (place / f"{NAME}.{suffix}").write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise ConfigurationError(f"The report can't be written: {error.strerror or type(error).__name__}.") from error
    return place / f"{NAME}.html"


# ---- the page -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cost:
    run: int
    samples: int
    tokens: Tokens
    latency: Latency
    longest: float | None


def _page(seen: View, shown: Sequence[Shown], total: int, *, errors: int, with_content: bool) -> str:
    script = _resource("report.js").strip()
    # What the browser hashes is all between the tags.
    digest = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    rows = [row for task in seen.tasks for block in task.sets for row in block.rows]
    return _environment().from_string(_resource("report.html.j2")).render(
        view=seen,
        style=_resource("report.css"),
        script=script,
        script_hash=f"sha256-{digest}",
        with_content=with_content,
        has_official=any(row.official for row in rows),
        has_tokens=any(row.strict.tokens.prompt_mean is not None for row in rows),
        has_paper=any(one.paper for task in seen.tasks for one in task.averages),
        curves=[(task.stage, found) for task in seen.tasks if (found := _curves(seen, task.stage))],
        costs=[_cost(number, run) for number, run in enumerate(seen.runs)],
        cost_plots=_cost_plots(seen),
        shown=shown,
        errors_total=total,
        errors_each=errors,
    )  # fmt: skip


def _curves(seen: View, stage: Stage) -> list[plots.Plot]:
    series = [scored(run, name, stage) for name, run in zip(seen.names, seen.runs, strict=True)]
    told = {
        one.name: reliability(run.records, stage=stage)
        for one, run in zip(series, seen.runs, strict=True)
        if one.both and one.graded
    }
    found = [plots.roc(series), plots.precision_recall(series), plots.reliability(told)]
    found += [plots.score_histogram(one, title=f"Scores: {one.name}") for one in series if one.graded]
    return [plot for plot in found if plot]


def _cost(number: int, run: Run) -> _Cost:
    whole = metrics.scores(run.records, resamples=0)
    longest = max(record.latency for record in run.records)
    return _Cost(number, len(run.records), whole.tokens, whole.latency, longest or None)


def _cost_plots(seen: View) -> list[plots.Plot]:
    named = list(zip(seen.names, seen.runs, strict=True))
    seconds = {name: [record.latency for record in run.records] for name, run in named}
    tokens = {name: [record.completion_tokens for record in run.records] for name, run in named}
    found = (
        plots.histogram(seconds, unit="seconds", title="Seconds per sample"),
        plots.histogram(tokens, unit="tokens", title="Tokens written per sample"),
    )
    return [plot for plot in found if plot]


def _resource(name: str) -> str:
    return (files("guardrail_vl.evaluation") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "percent": _text.percent,
        "points": _text.points,
        "seconds": _text.seconds,
        "count": lambda value: f"{value:,}",
        "mean": lambda value: "–" if value is None else f"{value:,.0f}",
        "score": lambda value: "–" if value is None else f"{value:.3f}",
        "visible": clean,
        "named": _named,
        "ours": Markup,
        "bar": _bar,
        "reasons": _reasons,
        "f1s": _has_f1,
        "kind": _kind,
    }
    return made


def _named(text: str) -> Markup:
    """A name, which may break after its joints."""
    return Markup(re.sub(r"([_\-/.@:])", r"\1<wbr>", str(escape(clean(text)))))  # noqa: S704 - escaped first


def _has_f1(block: Block) -> bool:
    return any(row.strict.f1 is not None for row in block.rows)


def _bar(one: Scores) -> str:
    """The four cells as one bar; the numbers stand beside it, so it is hidden from readers of the page."""
    parts, start = [], 0.0
    cells = (("hit", one.true_positives), ("miss", one.false_negatives))
    for name, count in (*cells, ("alarm", one.false_positives), ("pass", one.true_negatives)):
        width = 100 * count / one.n if one.n else 0.0
        parts.append(f'<rect class="{name}" x="{start:.2f}" y="0" width="{width:.2f}" height="10"/>')
        start += width
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f"{''.join(parts)}</svg>"
    )


def _reasons(missing: Missing) -> str:
    told = (
        (missing.parse_failures, "not readable"),
        (missing.content_errors, "content refused"),
        (missing.unjudged, "not all judged"),
        (missing.other_errors, "engine failed"),
    )
    return ", ".join(f"{count:,} {why}" for count, why in told if count) or "–"


def _kind(one: Shown) -> str:
    return " / ".join(dict.fromkeys(said.wrong for said in one.said if said.wrong))


__all__: Any = ["ERRORS", "NAME", "write"]
