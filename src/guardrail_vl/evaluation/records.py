"""What was said of each sample (`Record`), and under which conditions (`Cohort`). Values; they judge nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from guardrail_vl._value import Value
from guardrail_vl.verdict import Action, Label, Stage

CASCADE: Final = "cascade"
"""`Cohort.engine` of several guards in a row."""


@dataclass(frozen=True, slots=True)
class Cohort(Value):
    """Everything that a number depends on besides the sample. Two numbers are comparable where these are told."""

    model: str
    """As the engine names it, with its revision where it has one; for replays: whose completions they are."""
    engine: str
    """Class name of the engine; `replay` for saved completions, `cascade` for several engines, which `model` names."""
    format: str
    """Id of the prompt format."""
    speed: str
    """Of a cascade: the speed of each, and the scores that went on to the next."""
    policy: str
    """Hash of the policy."""
    thresholds: str
    """What turned scores into labels, in words: `model's own labels`, `policy`, `0.5`."""
    parser: str = "strict"
    """`strict`: the SDK's own; `official`: the paper's."""
    version: str = ""
    """Of guardrail-vl."""
    machine: str = ""
    """CPU or GPU, cores, Python: latencies are the machine's."""


@dataclass(frozen=True, slots=True)
class Record(Value):
    """One judged sample."""

    set: str
    """Name of its set."""
    id: str
    digest: str
    """Of the sample: see `Case.digest`."""
    stage: Stage
    gold: Label | None
    label: Label | None
    """What the guard said, by the strict parser. None: no label; see `error` and `unjudged`."""
    action: Action | None = None
    """What the policy made of it. None: there is no policy, as in a replay."""
    score: float | None = None
    """Probability in [0, 1] that it is harmful. None: the engine gives none."""
    text: str | None = field(default=None, repr=False)
    """The completion. None: it wasn't kept."""
    categories: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    error: str = ""
    """Class name of the error, where there is no verdict: `ParseError`, `ContentError`, …"""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency: float = 0.0
    """Seconds."""
    modality: str = "text"
    category: str = ""
    """The source's category of the sample."""
    group: str = ""
