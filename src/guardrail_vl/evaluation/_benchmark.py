"""What is known of a benchmark (`Benchmark`), and of the files it comes in (`Layout`). Values; they read nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from guardrail_vl.evaluation.cases import Modality
from guardrail_vl.verdict import Stage

Group = Literal["paper", "shared", "other"]
Kind = Literal[
    "shared",
    "guardreasoner",
    "toxic_chat",
    "openai_moderation",
    "aegis",
    "simple_safety_tests",
    "harmbench_behaviors",
    "harmbench_votes",
    "wildguard",
    "xstest_prompts",
    "xstest_response",
    "beavertails",
    "safe_rlhf",
]
"""How a file is laid out: one reader for each."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A file that a benchmark comes in."""

    kind: Kind
    files: tuple[str, ...]
    """Names that such a file goes by, best first: globs on the end of its path, as `PurePath.match` reads them."""

    def rank(self, path: PurePath) -> int | None:
        """Which of the names the path goes by, 0 for the best. None: it goes by none."""
        return next((rank for rank, name in enumerate(self.files) if path.match(name)), None)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One labelled set and one task. What isn't known is None, never guessed."""

    name: str
    """Stable, in snake case."""
    title: str
    stage: Stage
    """What is judged."""
    modality: Modality
    layouts: tuple[Layout, ...]
    """What can be read; the first one found is taken."""
    licence: str
    """As the owner states it."""
    url: str | None
    """Where a user gets the data."""
    group: Group = "paper"
    """`paper`: one of GuardReasoner-VL's 14. `shared`: a source in this project's data folder. `other`: any other."""
    size: int | None = None
    """Samples: as the paper counts them; else the labelled ones."""
    harmful: int | None = None
    unharmful: int | None = None
    weight: int | None = None
    """Samples that the paper's averages of its own guards give it. None: it isn't in them."""
    paper_name: str = ""
    """What the paper's release calls it."""
    repeats: str = ""
    """The benchmark whose requests these rows repeat. Empty: they stand for themselves."""
    training_prohibited: bool = False
    """Whether the owner prohibits training on it."""
    notes: str = ""
