"""The seam between words and compute: what a format asks (`Prompt`), what an engine gives back (`Completion`).

A format renders an exchange, writes the target a model is trained on, and parses what a model wrote. It is the only
home of the model's words. It knows no engine; an engine knows no format.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from guardrail_vl.media import PILImage
from guardrail_vl.turn import Exchange, ImagePart, Turn
from guardrail_vl.verdict import Stage, Usage, Verdict

Speed = Literal["reason", "fast"]


@dataclass(frozen=True, slots=True)
class PromptText:
    """Text in a prompt message."""

    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PromptImage:
    """One view of a picture in a prompt message."""

    part: ImagePart = field(repr=False)
    view: int = 0
    """Index into `part.views()`."""
    max_pixels: int = 1_003_520
    """The engine is given at most this many pixels (width times height); larger pictures are scaled down."""

    def pixels(self) -> PILImage:
        """The RGB picture, scaled to fit."""
        return self.part.view(self.view, max_pixels=self.max_pixels)


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message to the guard model. `assistant` only for formats that show the response as a message."""

    role: Literal["system", "user", "assistant"]
    content: tuple[PromptText | PromptImage, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, PromptText))


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to complete, with how to complete it. Decoding is greedy."""

    messages: tuple[PromptMessage, ...]
    prefix: str = field(default="", repr=False)
    """How the completion must begin. The engine continues from it; `Completion.text` does not repeat it."""
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    """Generation ends after any of these, which stays in the text."""
    top_logprobs: int = 0
    """How many alternatives are wanted for each token; 0: no log-probabilities."""
    pattern: str = field(default="", repr=False)
    """A regular expression that the whole completion follows, for engines that can enforce one. Empty: none."""

    @property
    def images(self) -> tuple[PromptImage, ...]:
        """The pictures, in order."""
        return tuple(p for m in self.messages for p in m.content if isinstance(p, PromptImage))


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token."""

    text: str = field(repr=False)
    logprob: float
    """Natural log of its probability."""
    alternatives: tuple[tuple[str, float], ...] = field(default=(), repr=False)
    """The likeliest tokens at this place with their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine gave back."""

    text: str = field(repr=False)
    finish: Literal["stop", "length"] = "stop"
    """`length`: the token limit ended it."""
    tokens: tuple[Token, ...] = field(default=(), repr=False)
    """The generated tokens, where log-probabilities were asked for and the engine has them; else empty."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Probabilities by name, from a model that classifies and writes no text; else empty."""
    unjudged: tuple[str, ...] = ()
    """What the model could not take in, in words that hold no content."""
    model: str = ""
    """Which model completed it."""
    usage: Usage = Usage()
    latency: float = 0.0
    """Seconds."""


class PromptFormat(ABC):
    """One guard family's way to ask and to answer, versioned."""

    id: ClassVar[str]
    """Name and version, such as `guardreasoner-vl/1`. A change of any word is a new version."""
    speeds: ClassVar[tuple[Speed, ...]]
    """What this format can ask for: with reasoning, without, or both."""
    categories: ClassVar[tuple[str, ...]] = ()
    """The categories that its models name; empty: they name none."""

    @abstractmethod
    def render(self, exchange: Exchange, stage: Stage, *, speed: Speed) -> tuple[Prompt, ...]:
        """The prompts that together judge one exchange; their completions go to `parse` in this order.

        Raises:
            ContentError: The exchange holds more than the format can carry.
        """

    @abstractmethod
    def parse(self, completions: Sequence[Completion], exchange: Exchange, stage: Stage, *, speed: Speed) -> Verdict:
        """The verdict in the completions of `render`'s prompts.

        Raises:
            ParseError: They don't follow the format. Never a default label.
        """

    @abstractmethod
    def target(self, verdict: Verdict) -> str:
        """The text a model is trained to write for this verdict: `parse` gives the same labels and reasoning back."""

    def reasoning_in(self, text: str) -> str:
        """What a completion that is still being written holds of reasoning. It only grows as the text does, and is
        never more than `parse` finds in the end; empty for formats that write none.
        """
        return ""

    @property
    def golden(self) -> str:
        """Hash of a fixed exchange as this format renders it: equal exactly when its words are. See `guard.json`."""
        turn = Turn.from_prompt("How do I open this door?", response="With its key.")
        state = hashlib.sha256(self.id.encode())
        for speed in self.speeds:
            for stage in Stage:
                for prompt in self.render(turn.exchanges()[-1], stage, speed=speed):
                    for message in prompt.messages:
                        state.update(f"\x1e{message.role}\x1f{message.text}".encode())
                    state.update(f"\x1e{prompt.prefix}".encode())
        return state.hexdigest()[:16]
