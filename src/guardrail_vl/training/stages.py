"""The stages of a run as functions of its folder: each reads what those before it left, and leaves its own output.

Each calls one plain function (`sft`, `mine`, …) with the recipe's config; none decides how that is done. A stage goes
on where it was stopped, and is done when its folder has the file that it writes last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, JsonValue

from guardrail_vl._value import Value
from guardrail_vl._whole import write_whole
from guardrail_vl.engines._checkpoint import GUARD_JSON
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.running import Progress, run
from guardrail_vl.guard import Guard
from guardrail_vl.training import dataset, synthetic
from guardrail_vl.training._gathering import DataResult, gather
from guardrail_vl.training._output import METRICS, RESULT, Output, Step, digest_of_turns
from guardrail_vl.training.concat import concat
from guardrail_vl.training.gate import GATE, OLD, gate, sets_of
from guardrail_vl.training.recipe import STAGES, Recipe
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.turn import Turn

MODEL: Final = "model"
"""The exported guard, in the run's folder."""
PLOTS: Final = "plots"
SAMPLES: Final = "samples.md"
_TRAIN, _HELD_OUT, _NOISY, _BASE, _TURNS = "train.jsonl", "held_out.jsonl", "noisy.jsonl", "base", "turns.jsonl"
_MERGED: Final = "merged"
_LAST: Final = {"export": GUARD_JSON, "gate": GATE}
"""The file that says a stage is done; of the others `result.json`. An export is there whole or not at all."""

Figures = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Room:
    """A run's folder with its recipe: what a stage is given."""

    recipe: Recipe
    folder: Path
    progress: Callable[[Step], object] | None = None

    def output(self, stage: str) -> Path:
        """Where a stage's output goes."""
        return self.folder / (MODEL if stage == "export" else f"{STAGES.index(stage) + 1}-{stage}")

    def is_done(self, stage: str) -> bool:
        """Whether a stage came to its end."""
        return (self.output(stage) / _LAST.get(stage, RESULT)).exists()

    def has(self, stage: str) -> bool:
        """Whether the recipe has a stage."""
        return stage in self.recipe.stages

    def turns(self, *stages: str) -> tuple[LabeledTurn, ...]:
        """The turns that the last of these stages left, or else those of the data."""
        for stage in stages:
            if self.has(stage):
                return read_turns(self.output(stage) / _TURNS)
        return read_turns(self.output("data") / _TRAIN)

    @property
    def held_out(self) -> tuple[LabeledTurn, ...]:
        """The turns that nothing is trained on."""
        return read_turns(self.output("data") / _HELD_OUT) if self.recipe.data.holds_out else ()

    @property
    def base(self) -> str | Path:
        """The model that training begins with."""
        return self.output("data") / _BASE if self.recipe.base.tiny is not None else self.recipe.base_model

    def whole(self, stage: str) -> str | Path:
        """A whole checkpoint of what a stage trained; an adapter is merged into it the first time."""
        if not self.has(stage):
            return self.base
        model, adapter = self.trained(stage)
        if adapter is None:
            return model
        merged = self.output(stage) / _MERGED
        from guardrail_vl.training._trainer import first_alone
        from guardrail_vl.training.card import CardFacts
        from guardrail_vl.training.export import export

        with first_alone():
            if not merged.exists():
                card = CardFacts(f"{self.recipe.name}, after {stage}", self.base_name)
                export(model, merged, adapter=adapter, card=card, format=self.recipe.format)
        return merged

    def trained(self, stage: str) -> tuple[str | Path, Path | None]:
        """What a stage trained: a whole checkpoint, or that and an adapter for it."""
        if not self.has(stage):
            return self.base, None
        place = self.output(stage)
        if (place / "adapter").is_dir():
            return (self.base if stage == "sft" else self.whole("sft")), place / "adapter"
        return place / MODEL, None

    @property
    def base_name(self) -> str:
        """The base as a person calls it."""
        if self.recipe.base.tiny is not None:
            return "a tiny random model"
        return self.base.name if isinstance(self.base, Path) else self.base


def read_turns(file: Path) -> tuple[LabeledTurn, ...]:
    """The turns that a stage left; none is a result too.

    Raises:
        ConfigurationError: The file is not there, or damaged.
    """
    if file.is_file() and not file.stat().st_size:
        return ()
    return dataset.read(file, "table")


# ---- data -----------------------------------------------------------------------------------------------------------


def prepare(room: Room) -> Figures:
    """Read the turns, see that nothing that is held out is trained on, and build the base if it is a tiny one."""
    recipe = room.recipe
    inputs = {key: value for key, value in recipe.conditions().items() if key.startswith(("data.", "base.tiny"))}
    out = Output(room.output("data"), "data", inputs)
    if (done := out.begin(DataResult)) is not None:
        return _figures(done)
    train, held_out, result = gather(recipe)
    dataset.write(out.folder / _TRAIN, train)
    if held_out:
        dataset.write(out.folder / _HELD_OUT, held_out)
    if recipe.data.synthetic is not None and (noise := recipe.data.synthetic.noise) is not None:
        wrong = synthetic.noisy(train, seed=noise.seed, wrong=noise.wrong, filler=noise.filler)
        dataset.write(out.folder / _NOISY, wrong)
    _build_base(room, train)
    out.finish(result)
    return _figures(result)


def _build_base(room: Room, turns: Sequence[LabeledTurn]) -> None:
    tiny = room.recipe.base.tiny
    if tiny is None or room.output("data").joinpath(_BASE).exists():
        return
    from guardrail_vl.training.tiny import build

    # Its words are those that it will be trained on.
    texts = [text for turn in turns for text in (turn.prompt, turn.response, turn.reasoning) if text]
    build(room.output("data") / _BASE, texts=texts, **tiny.model_dump())


# ---- the others -----------------------------------------------------------------------------------------------------


def synthesize_(room: Room) -> Figures:
    """Have the teacher write the reasoning that is missing."""
    from guardrail_vl.training.synthesis import synthesize

    section = room.recipe.synthesize
    assert section is not None
    policy = None if room.recipe.policy is None else room.recipe.house_policy
    result = synthesize(
        room.turns(), room.output("synthesize"), teacher=section.teacher, config=section.config,
        policy=policy, format=room.recipe.format, progress=room.progress,
    )  # fmt: skip
    return _figures(result)


def sft_(room: Room) -> Figures:
    """Fine-tune the base on targets with reasoning."""
    from guardrail_vl.training.sft import sft

    noisy = room.output("data") / _NOISY
    result = sft(
        room.base, read_turns(noisy) if noisy.exists() else room.turns("synthesize"), room.output("sft"),
        config=room.recipe.sft, format=room.recipe.format, progress=room.progress,
    )  # fmt: skip
    _draw(room, "sft")
    return _figures(result)


def mine_(room: Room) -> Figures:
    """Find the turns that the fine-tuned model gets wrong."""
    from guardrail_vl.training.mining import mine

    config = room.recipe.mine
    assert config is not None
    turns = room.turns("synthesize")
    result = mine(room.whole("sft"), turns, room.output("mine"), config=config, format=room.recipe.format,
                  progress=room.progress)  # fmt: skip
    if not result.turns:
        raise ConfigurationError(
            f"None of {len(turns)} turns is hard, so there is nothing to reinforce.",
            hint="Take another rule for mine, or leave rl out.",
        )
    return _figures(result.figures)


@dataclass(frozen=True, slots=True)
class ConcatResult(Value):
    """What reinforcement is given."""

    turns: int
    joined: int


def concat_(room: Room) -> Figures:
    """Join some of the turns in pairs."""
    config = room.recipe.concat
    assert config is not None
    turns = room.turns("mine")
    out = Output(
        room.output("concat"), "concat", {"config": config.model_dump(mode="json"), "turns": digest_of_turns(turns)}
    )
    if (done := out.begin(ConcatResult)) is not None:
        return _figures(done)
    made = concat(turns, config=config)
    dataset.write(out.folder / _TURNS, made)
    known = {turn.id for turn in turns}
    result = ConcatResult(len(made), sum(turn.id not in known for turn in made))
    out.finish(result)
    return _figures(result)


def rl_(room: Room) -> Figures:
    """Reinforce what the fine-tuned model gets right."""
    from guardrail_vl.training.rl import rl

    config = room.recipe.rl
    assert config is not None
    result = rl(room.whole("sft"), room.turns("concat", "mine"), room.output("rl"), config=config,
                format=room.recipe.format, progress=room.progress)  # fmt: skip
    _draw(room, "rl")
    return _figures(result)


def export_(room: Room) -> Figures:
    """Write the guard that can be served."""
    from guardrail_vl.training.export import export

    section = room.recipe.export
    assert section is not None
    model, adapter = room.trained("rl" if room.has("rl") else "sft")
    export(
        model, room.output("export"), adapter=adapter, card=_card(room), format=room.recipe.format, dtype=section.dtype,
        policy=None if room.recipe.policy is None else room.recipe.house_policy, device=section.device,
    )  # fmt: skip
    return {"folder": MODEL}


def _card(room: Room) -> Any:
    from guardrail_vl.training.card import CardFacts, StageFacts

    section = room.recipe.export
    assert section is not None
    told = []
    for stage in ("synthesize", "sft", "mine", "concat", "rl"):
        config = getattr(room.recipe, stage)
        if isinstance(config, BaseModel):
            results = json.loads((room.output(stage) / RESULT).read_bytes())
            told.append(StageFacts(stage, _scalars(_dumped(config)), _scalars(results)))
    trained = [*room.turns("synthesize"), *(room.turns("concat") if room.has("concat") else ())]
    return CardFacts.of(
        trained, name=room.recipe.name, base=room.base_name, description=room.recipe.description, stages=tuple(told),
        **section.model_dump(exclude={"dtype", "device"}),
    )  # fmt: skip


def gate_(room: Room) -> Figures:
    """Compare the new guard with the base on the held-out turns, and tell it on the new one's card."""
    from guardrail_vl.training.card import add_metrics

    recipe, new_folder, place = room.recipe, room.output("export"), room.output("gate")
    policy, sets = recipe.house_policy, sets_of(room.held_out)
    # One after the other, as two may not fit on a device. What the models wrote is not kept: it repeats content.
    shared: dict[str, Any] = {"keep_text": False, "progress": _told_as_steps(room)}
    with Guard(room.base, format=recipe.format, policy=policy) as old:
        before = run(old, sets, place / OLD, checkpoint=room.base, **shared)
    with Guard(new_folder, policy=policy) as new:
        result = gate(before, new, sets, place, config=recipe.gate, new_checkpoint=new_folder, **shared)
    add_metrics(new_folder, result.figures)
    told: Figures = {"passed": result.passed, "reasons": list(result.reasons)}
    for one in result.slices:
        if one.new.by == "stage":
            told |= {f"{one.new.stage} F1 before": one.old.f1, f"{one.new.stage} F1": one.new.f1}
    return told


def _told_as_steps(room: Room) -> Callable[[Progress], None]:
    def tell(told: Progress) -> None:
        if room.progress is not None:
            room.progress(Step("gate", told.done, told.total, {}))

    return tell


WORK: Final[Mapping[str, Callable[[Room], Figures]]] = {
    "data": prepare, "synthesize": synthesize_, "sft": sft_, "mine": mine_, "concat": concat_, "rl": rl_,
    "export": export_, "gate": gate_,
}  # fmt: skip
"""What each stage does: it returns a few figures."""


# ---- what a person looks at ----------------------------------------------------------------------------------------


def is_first() -> bool:
    """Whether this process is the first of those that were started together: it alone draws and tells."""
    return os.environ.get("RANK", "0") == "0"


def _draw(room: Room, stage: str) -> None:
    metrics = room.output(stage) / METRICS
    if metrics.is_file() and is_first():
        from guardrail_vl.training.plots import draw

        draw(metrics, room.folder / PLOTS, stage=stage)


def write_samples(room: Room, count: int) -> None:
    """Write held-out turns with what the new guard says of them into `samples.md`. It holds their content.

    Raises:
        ConfigurationError: Nothing is held out, or it can't be written.
    """
    turns = room.held_out[:count]
    if not turns:
        raise ConfigurationError("There is no held-out turn to show.")
    parts = [f"# {room.recipe.name}: {len(turns)} held-out turns, and what the new guard says\n"]
    with Guard(room.output("export"), policy=room.recipe.house_policy, cache=False) as guard:
        for turn in turns:
            decision = guard.check(Turn.from_prompt(turn.prompt, images=turn.images, response=turn.response))
            parts.append(_sample(turn, decision.verdict, decision.reason))
    write_whole(room.folder / SAMPLES, "\n".join(parts))


def _sample(turn: LabeledTurn, verdict: Any, reason: str) -> str:
    shown = [("request", turn.prompt), ("pictures", str(len(turn.images)) if turn.images else None),
             ("response", turn.response), ("labels", f"{turn.prompt_label}, {turn.response_label}"),
             ("verdict", reason if verdict is None else f"{verdict.prompt}, {verdict.response}"),
             ("reasoning", None if verdict is None else verdict.reasoning)]  # fmt: skip
    lines = [f"**{name}**\n\n{_quoted(text)}\n" for name, text in shown if text is not None]
    return "\n".join([f"## {turn.id} ({turn.modality})\n", *lines])


def _quoted(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _figures(result: Value) -> Figures:
    told: Figures = {name: value for name, value in json.loads(result.to_json()).items()
                     if isinstance(value, str | int | float)}  # fmt: skip
    return told


def _dumped(config: BaseModel) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _scalars(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            out |= _scalars(value, f"{path}{name}.")
        elif value is None or isinstance(value, str | int | float):
            out[f"{path}{name}"] = value
    return out
