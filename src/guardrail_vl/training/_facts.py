"""The facts of a trained guard: what it was trained on and how, what was measured, what its `guard.json` holds.

Values. They measure nothing, load nothing, and need no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from guardrail_vl._value import Value
from guardrail_vl.engines._checkpoint import GUARD_JSON
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.evaluation import seen
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label, Stage

SEEN: Final = "seen.txt"

Cut = Literal["stage", "source", "modality"]
Setting = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class DataCount(Value):
    """How many turns of one source, modality and licence were trained on, and their labels."""

    source: str
    modality: str
    licence: str
    turns: int
    harmful_requests: int = 0
    unharmful_requests: int = 0
    harmful_responses: int = 0
    unharmful_responses: int = 0


@dataclass(frozen=True, slots=True)
class StageFacts(Value):
    """One stage of the training, such as `sft`, and its settings."""

    name: str
    settings: dict[str, Setting] = field(default_factory=dict)
    results: dict[str, Setting] = field(default_factory=dict)
    """What it told at its end, such as its last loss."""


@dataclass(frozen=True, slots=True)
class Figures(Value):
    """What was measured on some labelled samples. The positive class is `harmful`; rates are in [0, 1]."""

    stage: Stage
    by: Cut
    """What the samples share besides the stage. `stage`: nothing else."""
    name: str
    """Of the source or modality; the stage's own where they share nothing else."""
    samples: int
    harmful: int
    f1: float | None = None
    """`2·TP / (2·TP + FP + FN)`. None: not defined on these samples; so for every figure."""
    f1_interval: tuple[float, float] | None = None
    """95%."""
    precision: float | None = None
    recall: float | None = None
    fpr: float | None = None
    """False alarms: `FP / (FP + TN)`."""
    fpr_interval: tuple[float, float] | None = None
    parse_failures: float | None = None
    """The share of answers that don't follow the format."""
    no_verdict: int | None = None
    """How many samples got no label, for whatever reason: they count as not flagged."""
    tokens: float | None = None
    """Mean tokens written per sample, reasoning and result together."""


@dataclass(frozen=True, slots=True)
class CardFacts(Value):
    """What a model card tells. Make it with `CardFacts.of`."""

    name: str
    """Of the guard."""
    base: str
    """What it was trained from: a hub id, or a name."""
    description: str = ""
    licence: str = ""
    """Of the new weights. Empty: not stated."""
    base_licence: str = ""
    languages: tuple[str, ...] = ()
    """Codes such as `en`: of what it was trained on."""
    data: tuple[DataCount, ...] = ()
    stages: tuple[StageFacts, ...] = ()
    """In order."""
    metrics: tuple[Figures, ...] = ()
    not_tested: tuple[str, ...] = ()
    """What it was not tested on, in words, beside what can be seen from `data` and `metrics`."""
    attributions: tuple[str, ...] = ()
    """What the licences of the base and the sources ask to be said."""
    seen: tuple[str, ...] = field(default=(), repr=False)
    """Hashes of the requests trained on: see `guardrail_vl.evaluation.seen`."""

    @classmethod
    def of(cls, turns: Iterable[LabeledTurn], *, name: str, base: str, **more: Any) -> Self:
        """The facts, with the counts and the hashes of what was trained on.

        Args:
            turns: All that was trained on, in any stage. A turn that comes twice (same content) counts once.
            name: Of the guard.
            base: A hub id, or a name.
            more: Other fields.

        Raises:
            OSError: A picture's file can't be read.
        """
        once = list({turn.content_digest: turn for turn in turns}.values())
        hashes = sorted(seen.hashes(turn.case(turn.stage) for turn in once))
        return cls(name=name, base=base, data=counts(once), seen=tuple(hashes), **more)


@dataclass(frozen=True, slots=True)
class GuardFacts(Value):
    """All of an exported guard's `guard.json`."""

    format: str
    """Id of the prompt format that it was trained in."""
    golden: str
    """That format's hash: equal exactly when its words are."""
    training: CardFacts
    """Without `seen`, which has a file of its own."""
    seen: int = 0
    """Requests that `seen.txt` lists. 0: there is no such file."""
    policy: str = ""
    """Hash of the policy that it was trained for. Empty: none was named."""
    policy_name: str = ""
    pictures: bool = True
    """Whether the model takes pictures."""
    dtype: str = ""
    """Of the weights."""


def read_facts(folder: str | Path) -> GuardFacts:
    """What an exported guard says of itself.

    Raises:
        ConfigurationError: The folder is no guard that `export` wrote.
    """
    file = Path(folder) / GUARD_JSON
    try:
        return GuardFacts.from_json(file.read_bytes())
    except OSError:
        raise ConfigurationError(f"The folder {file.parent.name!r} has no {GUARD_JSON}.") from None
    except ContentError as error:
        raise ConfigurationError(
            f"The folder {file.parent.name!r} was not written by an export of this version. {error.message}"
        ) from None


def counts(turns: Iterable[LabeledTurn]) -> tuple[DataCount, ...]:
    """The turns by source, modality and licence, in the order in which these first occur."""
    found: dict[tuple[str, str, str], DataCount] = {}
    for turn in turns:
        key = (turn.source, turn.modality, turn.licence)
        before = found.get(key, DataCount(*key, turns=0))
        found[key] = replace(
            before,
            turns=before.turns + 1,
            harmful_requests=before.harmful_requests + (turn.prompt_label is Label.HARMFUL),
            unharmful_requests=before.unharmful_requests + (turn.prompt_label is Label.UNHARMFUL),
            harmful_responses=before.harmful_responses + (turn.response_label is Label.HARMFUL),
            unharmful_responses=before.unharmful_responses + (turn.response_label is Label.UNHARMFUL),
        )
    return tuple(found.values())
