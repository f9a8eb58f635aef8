"""What a guard is trained on: one exchange with the labels that people gave it (`LabeledTurn`). Reads no file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.cases import Case, Modality
from guardrail_vl.parts import ImageLoader
from guardrail_vl.turn import Exchange, Turn
from guardrail_vl.verdict import Label, Stage, Verdict


@dataclass(frozen=True, slots=True)
class LabeledTurn:
    """One exchange, its labels, and perhaps the reasoning that leads to them.

    Raises:
        ConfigurationError: Nothing to judge, no label at all, a label of a response that isn't there, or a weight that
            is not above 0.
    """

    id: str
    """Unique in its set."""
    prompt: str | None = field(default=None, repr=False)
    images: tuple[Path | bytes, ...] = field(default=(), repr=False)
    """Pictures of the request: files, or their bytes."""
    response: str | None = field(default=None, repr=False)
    prompt_label: Label | None = None
    """None: not known. It is then neither trained on nor rewarded."""
    response_label: Label | None = None
    """None: there is no response, or its label is not known."""
    reasoning: str | None = field(default=None, repr=False)
    """What stands between `<think>` and `</think>`. None: there is none yet."""
    category: str = ""
    source: str = ""
    """Where it comes from."""
    group: str = ""
    """Turns of one request share it: no split tears them apart. Empty: by the request's words."""
    licence: str = ""
    weight: float = 1.0
    """How often it counts in a loss, relative to the others."""

    def __post_init__(self) -> None:
        if self.prompt is None and self.response is None and not self.images:
            raise ConfigurationError(f"The turn {self.id!r} is empty.")
        if self.prompt_label is None and self.response_label is None:
            raise ConfigurationError(f"The turn {self.id!r} has no label.")
        if self.response_label is not None and self.response is None:
            raise ConfigurationError(f"The turn {self.id!r} has a label of the response, and no response.")
        if not self.weight > 0:
            raise ConfigurationError(f"The weight of the turn {self.id!r} is not above 0.")

    @property
    def modality(self) -> Modality:
        """By what the guard is shown."""
        if not self.images:
            return "text"
        return "image" if self.prompt is None and self.response is None else "text-image"

    @property
    def stage(self) -> Stage:
        """What a guard is asked to judge: the response if there is one, else the request."""
        return Stage.PROMPT if self.response is None else Stage.RESPONSE

    @property
    def whole(self) -> bool:
        """Whether every side that is there has its label, so that a target can be written."""
        return self.prompt_label is not None and (self.response is None or self.response_label is not None)

    @property
    def verdict(self) -> Verdict:
        """The gold verdict: `PromptFormat.target` makes the text to train on of it."""
        return Verdict(prompt=self.prompt_label, response=self.response_label, reasoning=self.reasoning)

    def label(self, stage: Stage) -> Label | None:
        """The label of a stage."""
        return self.prompt_label if stage is Stage.PROMPT else self.response_label

    def exchange(self, load: ImageLoader | None = None) -> Exchange:
        """The exchange as a guard is given it.

        Raises:
            ContentError: It can't be judged: a picture that can't be read, for example.
        """
        turn = Turn.from_prompt(self.prompt, images=self.images, response=self.response, load=load)
        return turn.exchanges()[-1]

    def case(self, stage: Stage) -> Case:
        """The same as a sample of an evaluation, judged at a stage.

        Raises:
            ConfigurationError: There is no response to judge.
        """
        return Case(
            id=self.id,
            stage=stage,
            gold=self.label(stage),
            prompt=self.prompt,
            response=self.response if stage is Stage.RESPONSE else None,
            images=self.images,
            category=self.category,
            group=self.group,
            licence=self.licence,
        )

    @property
    def content_digest(self) -> str:
        """16 hex digits of what is judged, without labels: equal for the same content, whatever its id.

        Raises:
            OSError: A picture's file can't be read.
        """
        state = hashlib.blake2b(digest_size=8)
        state.update(json.dumps([self.prompt, self.response]).encode())
        for image in self.images:
            data = image if isinstance(image, bytes) else image.read_bytes()
            state.update(hashlib.blake2b(data).digest())
        return state.hexdigest()
