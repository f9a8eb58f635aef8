"""A trained guard's model card: Markdown under YAML front matter, written of its facts.

It repeats what it is told. It measures nothing, loads nothing, and needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import yaml

from guardrail_vl._whole import write_whole
from guardrail_vl.training._facts import (
    SEEN,
    CardFacts,
    DataCount,
    Figures,
    GuardFacts,
    Setting,
    StageFacts,
    counts,
    read_facts,
)
from guardrail_vl.verdict import Stage

__all__ = [
    "CARD", "SEEN", "CardFacts", "DataCount", "Figures", "GuardFacts", "StageFacts", "add_metrics", "counts",
    "read_facts", "render",
]  # fmt: skip

CARD: Final = "README.md"
_LICENCES: Final = {
    name.lower(): name.lower()
    for name in ("Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC0-1.0",
                 "BSD-3-Clause", "GPL-3.0", "ODC-BY", "OpenRAIL", "Llama3", "Gemma")
}  # fmt: skip
"""Licences that the hub knows by these identifiers; any other one is `other` there."""
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MODALITIES: Final = {"text": "text alone", "image": "pictures alone", "text-image": "text with pictures"}


def render(guard: GuardFacts) -> str:
    """The model card: Markdown under YAML front matter, as the hub reads it."""
    facts = guard.training
    parts = [
        _front(facts, guard.pictures),
        f"# {_line(facts.name)}",
        _intro(guard),
        _use(guard),
        _trained_on(facts),
        _how(facts.stages),
        _measured(facts.metrics),
        _untested(facts, pictures=guard.pictures),
        _licences(facts),
        _left_out(guard.seen),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def add_metrics(folder: str | Path, metrics: Iterable[Figures]) -> None:
    """Write the card of an exported guard again, with these figures after its own: what a gate measured, say.

    Only the card changes: for an evaluation that goes on, the checkpoint is still the same.

    Raises:
        ConfigurationError: The folder is no exported guard, or can't be written.
    """
    guard = read_facts(folder)
    facts = replace(guard.training, metrics=(*guard.training.metrics, *metrics))
    write_whole(Path(folder) / CARD, render(replace(guard, training=facts)))


# ---- the front matter ---------------------------------------------------------------------------------------------


def _front(facts: CardFacts, pictures: bool) -> str:
    licence = _LICENCES.get(facts.licence.lower())
    told: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text" if pictures else "text-generation",
        "license": licence or "other",
    }
    if licence is None:
        told["license_name"] = facts.licence or "not stated"
    # The hub looks for what is named here, so a local name would be an error there.
    if _HUB_ID.fullmatch(facts.base):
        told |= {"base_model": facts.base, "base_model_relation": "finetune"}
    if facts.languages:
        told["language"] = list(facts.languages)
    told["tags"] = ["guardrail", "moderation", "safety", "guardrail-vl"]
    if results := _results(facts.metrics):
        told["model-index"] = [{"name": facts.name, "results": results}]
    return f"---\n{yaml.safe_dump(told, sort_keys=False, allow_unicode=True)}---"


def _results(metrics: Sequence[Figures]) -> list[dict[str, Any]]:
    found = []
    for one in metrics:
        values = (("f1", "F1", one.f1), ("recall", "Recall", one.recall), ("precision", "Precision", one.precision))
        known = [
            {"type": kind, "name": name, "value": round(value, 4)} for kind, name, value in values if value is not None
        ]
        if known and one.by == "source":
            found.append(
                {
                    "task": {"type": "text-classification", "name": f"Harm of the {one.stage}"},
                    "dataset": {"type": one.name, "name": one.name},
                    "metrics": known,
                }
            )
    return found


# ---- the text -----------------------------------------------------------------------------------------------------


def _intro(guard: GuardFacts) -> str:
    shown = "text and pictures" if guard.pictures else "text"
    lines = [
        f"A guard model: it reads a request, with its response if there is one ({shown}), and says whether each is "
        "harmful.",
        _line(guard.training.description),
        _table(
            ("", ""),
            [
                ("base", _cell(guard.training.base)),
                ("prompt format", f"{_cell(guard.format)} (golden hash {_cell(guard.golden)})"),
                ("weights", _cell(guard.dtype)),
                ("policy", _cell(f"{guard.policy_name} (hash {guard.policy})") if guard.policy else "none was named"),
            ],
        ),
    ]
    return "\n\n".join(line for line in lines if line)


def _use(guard: GuardFacts) -> str:
    policy = ', policy="POLICY.yaml"' if guard.policy else ""
    lines = ["## Use", "", "```python", "from guardrail_vl import Guard", ""]
    lines += [f'guard = Guard("THIS FOLDER"{policy})', 'print(guard.check("How do I paint a wall?"))', "```"]
    if guard.policy:
        lines += ["", "The policy is not in this folder. `Policy.hash` tells whether yours is the one named above."]
    return "\n".join(lines)


def _trained_on(facts: CardFacts) -> str:
    if not facts.data:
        return "## Trained on\n\nNot told."
    heads = ("source", "content", "licence", "turns", "requests, harmful / not", "responses, harmful / not")
    rows = [
        (
            _cell(one.source or "not told"),
            _cell(_MODALITIES.get(one.modality, one.modality)),
            _cell(one.licence or "not told"),
            f"{one.turns:,}",
            f"{one.harmful_requests:,} / {one.unharmful_requests:,}",
            f"{one.harmful_responses:,} / {one.unharmful_responses:,}",
        )
        for one in facts.data
    ]
    total = sum(one.turns for one in facts.data)
    return f"## Trained on\n\n{total:,} labelled turns.\n\n{_table(heads, rows)}"


def _how(stages: Sequence[StageFacts]) -> str:
    parts = []
    for stage in stages:
        parts.append(f"### {_line(stage.name)}")
        rows = [
            (_cell(name), _cell(_value(value))) for name, value in (*stage.settings.items(), *stage.results.items())
        ]
        if rows:
            parts.append(_table(("setting or result", "value"), rows))
    return "\n\n".join(["## How", *parts]) if parts else ""


def _measured(metrics: Sequence[Figures]) -> str:
    if not metrics:
        return "## Measured\n\nNothing was measured when this card was written."
    heads = (
        "task",
        "on",
        "samples",
        "harmful",
        "F1",
        "precision",
        "recall",
        "false alarms",
        "parse failures",
        "tokens",
    )
    rows = [
        (
            str(one.stage),
            "all" if one.by == "stage" else _cell(_MODALITIES.get(one.name, one.name)),
            f"{one.samples:,}",
            f"{one.harmful:,}",
            _percent(one.f1, one.f1_interval),
            _percent(one.precision),
            _percent(one.recall),
            _percent(one.fpr, one.fpr_interval),
            _percent(one.parse_failures),
            "–" if one.tokens is None else f"{one.tokens:,.0f}",
        )
        for one in metrics
    ]
    lead = "In percent, with 95% bootstrap intervals. An answer that can't be read counts as not flagged."
    return f"## Measured\n\n{lead}\n\n{_table(heads, rows)}"


def _untested(facts: CardFacts, *, pictures: bool) -> str:
    told = list(facts.not_tested)
    tasks = {one.stage for one in facts.metrics}
    told += [f"Judging a {stage}: no figure above is of that." for stage in Stage if stage not in tasks]
    kinds = {one.name for one in facts.metrics if one.by == "modality"}
    shown = _MODALITIES if pictures else ("text",)
    told += [f"{_MODALITIES[kind].capitalize()}: no figure above is of that." for kind in shown if kind not in kinds]
    trained = {one.modality for one in facts.data}
    told += [f"{_MODALITIES[kind].capitalize()}: it was not trained on them." for kind in shown if kind not in trained]
    if not facts.languages:
        told.append("Languages: it is not told which ones it was trained on.")
    else:
        told.append(f"Languages other than {', '.join(map(_line, facts.languages))}.")
    return "## What it was not tested on\n\n" + "\n".join(f"- {_line(one)}" for one in told)


def _licences(facts: CardFacts) -> str:
    lines = [
        f"- These weights: {_line(facts.licence) or 'not stated'}.",
        f"- The base, {_line(facts.base)}: {_line(facts.base_licence) or 'not stated'}.",
    ]
    by_source = dict.fromkeys((one.source, one.licence) for one in facts.data)
    lines += [
        f"- Data, {_line(source) or 'source not told'}: {_line(licence) or 'not stated'}."
        for source, licence in by_source
    ]
    lines += [f"- {_line(one)}" for one in facts.attributions]
    return "## Licences and attributions\n\n" + "\n".join(lines)


def _left_out(count: int) -> str:
    head = "## Evaluating it\n\n"
    if not count:
        return f"{head}No list of the requests that it was trained on comes with it."
    return (
        f"{head}`{SEEN}` lists {count:,} requests that it was trained on, by hash. They say nothing of how good it is: "
        f"`guardrail-vl eval run THIS FOLDER --seen {SEEN}` leaves them out. Pictures without words can't be listed so."
    )


# ---- cells --------------------------------------------------------------------------------------------------------


def _percent(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return "–"
    between = "" if interval is None else f" ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"
    return f"{100 * value:.1f}{between}"


def _value(value: Setting) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _line(text: str) -> str:
    """A given text on one line, as words: what would be Markdown or HTML is shown."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    return _line(text) or "–"
