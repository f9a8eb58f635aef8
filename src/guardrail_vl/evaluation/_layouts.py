"""The owners' own files, and those of this project's data folder: a reader for each layout.

Which fields a layout has was read from real files, or from documentation where no file could be had:
docs/evaluation/benchmarks.md says which. Ids are the rows' own where they have one, else the rows' numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation import _guardreasoner
from guardrail_vl.evaluation._benchmark import Benchmark, Kind
from guardrail_vl.evaluation._rows import Row, picture, read_document, read_rows
from guardrail_vl.evaluation._samples import Sample, label, label_of
from guardrail_vl.verdict import Label

Reader = Callable[[Benchmark, Path], Iterator[Sample]]

_MODERATION: Final = ("S", "H", "V", "HR", "SH", "S3", "H2", "V2")
_VOTES: Final = ("human_0", "human_1", "human_2")


def _shared(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for row in read_rows(path):
        inputs, labels = row.get("task_inputs"), row.get("labels")
        if not isinstance(inputs, Mapping) or not isinstance(labels, Mapping):
            raise row.wrong("the fields 'task_inputs' and 'labels' have to be objects.")
        inner = Row(row.file, row.number, inputs)
        names = inputs.get("images")
        if not isinstance(names, list):
            raise row.wrong("the field 'images' is no list.")
        yield Sample(
            row=row,
            id=row.text("id"),
            gold=label_of(row, labels.get(str(benchmark.stage)), f"labels.{benchmark.stage}"),
            prompt=inner.maybe("prompt"),
            response=inner.maybe("response"),
            images=tuple(picture(row, name, path.parent) for name in names),
            category=str(row.get("category") or ""),
            group=row.text("id").partition(".")[0],
            licence=row.text("license"),
        )


def _toxic_chat(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for row in read_rows(path):
        # The other rows' labels are a model's.
        if row.flag("human_annotation"):
            yield Sample(
                row=row,
                id=row.text("conv_id"),
                gold=_harmful(row.flag("toxicity")),
                prompt=row.text("user_input"),
                category="jailbreaking" if row.flag("jailbreaking") else "",
            )


def _openai_moderation(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for place, row in enumerate(read_rows(path)):
        flagged = [name for name in _MODERATION if name in row.values and row.flag(name)]
        if not any(name in row.values for name in _MODERATION):
            raise row.wrong("there is no category.")
        yield Sample(
            row=row,
            id=f"{place:05}",
            gold=_harmful(bool(flagged)),
            prompt=row.text("prompt"),
            category=",".join(flagged),
        )


def _aegis(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for place, row in enumerate(read_rows(path)):
        if row.text("text_type") != "user_message":
            continue
        votes = [row.text(name) for name in (f"labels_{n}" for n in range(5)) if row.values.get(name)]
        if not votes:
            raise row.wrong("no annotator gave a label.")
        unsafe = [vote for vote in votes if vote.strip().lower() != "safe"]
        yield Sample(
            row=row,
            id=f"{place:05}",
            gold=_harmful(2 * len(unsafe) >= len(votes)),
            prompt=row.text("text"),
        )


def _simple_safety_tests(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for row in read_rows(path):
        yield Sample(
            row=row,
            id=row.text("id"),
            gold=Label.HARMFUL,
            prompt=row.text("prompt" if "prompt" in row.values else "prompts_final"),
            category=row.text("harm_area"),
        )


def _harmbench_behaviors(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for row in read_rows(path):
        kind = row.text("FunctionalCategory")
        if kind in ("standard", "copyright"):  # the paper leaves the contextual ones out
            yield Sample(
                row=row,
                id=row.text("BehaviorID"),
                gold=Label.HARMFUL,
                prompt=row.text("Behavior"),
                category=f"{kind}/{row.text('SemanticCategory')}",
            )


def _harmbench_votes(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    document = read_document(path)
    if not isinstance(document, Mapping):
        raise ConfigurationError(f"{path.name} is no JSON object of behaviours.")
    entries = [(str(name), item) for name, items in document.items() for item in _list(path, items)]
    for place, (behaviour, item) in enumerate(entries):
        row = Row(path.name, place + 1, item)
        yield Sample(
            row=row,
            id=f"{place:05}",
            gold=_harmful(sum(row.flag(name) for name in _VOTES) >= 2),
            prompt=row.text("test_case"),
            response=row.answer("generation"),
            category=row.text("method"),
            group=behaviour,
        )


def _list(path: Path, items: Any) -> list[Mapping[str, Any]]:
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise ConfigurationError(f"{path.name}: a behaviour has no list of objects.")
    return items


def _wildguard(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for place, row in enumerate(read_rows(path)):
        yield Sample(
            row=row,
            id=f"{place:05}",
            gold=label(row, f"{benchmark.stage}_harm_label"),
            prompt=row.text("prompt"),
            response=row.maybe("response"),
            category=str(row.values.get("subcategory") or ""),
        )


def _xstest_prompts(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for row in read_rows(path):
        kind = row.text("type")
        yield Sample(
            row=row,
            id=row.text("id"),
            # Earlier versions have no column of labels; all and only the contrasts are unsafe.
            gold=label(row, "label") if "label" in row.values else _harmful(kind.startswith("contrast_")),
            prompt=row.text("prompt"),
            category=kind,
        )


def _xstest_response(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for place, row in enumerate(read_rows(path)):
        yield Sample(
            row=row,
            id=f"{place:05}",
            gold=label(row, "label"),
            prompt=row.text("prompt"),
            response=row.answer("response"),
            category=str(row.values.get("prompt_type") or ""),
        )


def _beavertails(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for place, row in enumerate(read_rows(path)):
        categories = row.values.get("category")
        named = [str(name) for name, yes in categories.items() if yes] if isinstance(categories, Mapping) else []
        yield Sample(
            row=row,
            id=f"{place:05}",
            gold=_harmful(not row.flag("is_safe")),
            prompt=row.text("prompt"),
            response=row.answer("response"),
            category=",".join(named),
        )


def _safe_rlhf(benchmark: Benchmark, path: Path) -> Iterator[Sample]:
    for place, row in enumerate(read_rows(path)):
        safe = [row.flag(f"is_response_{number}_safe") for number in (0, 1)]
        if safe[0] != safe[1]:  # as the paper's sample was drawn: as many harmful ones as unharmful ones
            for number in (0, 1):
                yield Sample(
                    row=row,
                    id=f"{place:05}.{number}",
                    gold=_harmful(not safe[number]),
                    prompt=row.text("prompt"),
                    response=row.answer(f"response_{number}"),
                )


def _harmful(yes: bool) -> Label:
    return Label.HARMFUL if yes else Label.UNHARMFUL


READERS: Final[Mapping[Kind, Reader]] = {
    "shared": _shared,
    "guardreasoner": _guardreasoner.read,
    "toxic_chat": _toxic_chat,
    "openai_moderation": _openai_moderation,
    "aegis": _aegis,
    "simple_safety_tests": _simple_safety_tests,
    "harmbench_behaviors": _harmbench_behaviors,
    "harmbench_votes": _harmbench_votes,
    "wildguard": _wildguard,
    "xstest_prompts": _xstest_prompts,
    "xstest_response": _xstest_response,
    "beavertails": _beavertails,
    "safe_rlhf": _safe_rlhf,
}
