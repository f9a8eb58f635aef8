"""What a guard is evaluated on: labelled samples (`Case`), and sets of them. Frozen; knows no guard and no metric."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.parts import ImageLoader
from guardrail_vl.turn import Turn
from guardrail_vl.verdict import Label, Stage

Modality = Literal["text", "image", "text-image"]


@dataclass(frozen=True, slots=True)
class Case:
    """One sample, with the label that people gave it.

    Raises:
        ConfigurationError: A response is to be judged and there is none, or there is nothing at all.
    """

    id: str
    """Unique in its set."""
    stage: Stage
    """What is judged."""
    gold: Label | None
    """None: the source gives no label; it is then judged, and left out of every score."""
    prompt: str | None = field(default=None, repr=False)
    response: str | None = field(default=None, repr=False)
    images: tuple[Path | bytes, ...] = field(default=(), repr=False)
    """Pictures of the prompt: files, or their bytes."""
    category: str = ""
    group: str = ""
    """Samples of one request share it: no split and no bootstrap tears them apart. Empty: the sample stands alone."""
    licence: str = ""

    def __post_init__(self) -> None:
        if self.stage is Stage.RESPONSE and self.response is None:
            raise ConfigurationError(f"The sample {self.id!r} is to be judged by its response, and has none.")
        if self.prompt is None and self.response is None and not self.images:
            raise ConfigurationError(f"The sample {self.id!r} is empty.")

    @property
    def modality(self) -> Modality:
        """By what the guard is shown."""
        if not self.images:
            return "text"
        return "image" if self.prompt is None and self.response is None else "text-image"

    def turn(self, load: ImageLoader | None = None) -> Turn:
        """The turn that is judged: up to the prompt, or with the response.

        Raises:
            ContentError: It can't be judged.
        """
        shown = self.response if self.stage is Stage.RESPONSE else None
        return Turn.from_prompt(self.prompt, images=self.images, response=shown, load=load)

    @property
    def digest(self) -> str:
        """16 hex digits of all that is judged, and of the label: what a stored result belongs to."""
        state = hashlib.blake2b(digest_size=8)
        head = [str(self.stage), self.prompt, self.response, None if self.gold is None else str(self.gold)]
        state.update(json.dumps(head, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        for image in self.images:
            data = image if isinstance(image, bytes) else image.read_bytes()
            state.update(hashlib.blake2b(data).digest())
        return state.hexdigest()


@dataclass(frozen=True, slots=True)
class CaseSet:
    """A set of samples that share a source and a stage.

    Raises:
        ConfigurationError: No samples, or two with one id.
    """

    name: str
    cases: tuple[Case, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.cases:
            raise ConfigurationError(f"The set {self.name!r} is empty.")
        if len({case.id for case in self.cases}) != len(self.cases):
            raise ConfigurationError(f"The set {self.name!r} has two samples with one id.")

    @property
    def hash(self) -> str:
        """16 hex digits of the samples and their order: its version."""
        state = hashlib.blake2b(digest_size=8)
        for case in self.cases:
            state.update(f"{case.id} {case.digest}\n".encode("utf-8", "surrogatepass"))
        return state.hexdigest()
