"""The Qwen3Guard-Gen contract (its public model card): the conversation goes in as it is, a severity comes out.

The model's own chat template holds the instruction, so `render` gives plain chat messages. Text only; no reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Final

from guardrail_vl.errors import ConfigurationError, ParseError
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptFormat, PromptMessage, PromptText, Speed
from guardrail_vl.prompt_format.content import plain_text, refuse_pictures, shortened
from guardrail_vl.prompt_format.neutralise import neutralise
from guardrail_vl.prompt_format.scoring import share, token_at
from guardrail_vl.turn import Exchange
from guardrail_vl.verdict import Label, Stage, Verdict

CATEGORIES: Final = (
    "Violent", "Non-violent Illegal Acts", "Sexual Content or Sexual Acts", "PII", "Suicide & Self-Harm",
    "Unethical Acts", "Politically Sensitive Topics", "Copyright Violation", "Jailbreak",
)  # fmt: skip
"""The categories that the model names."""
CONTEXT_MESSAGE: Final = 2_000
"""Characters shown of each earlier message."""

_ANSWER: Final = re.compile(
    r"\s*Safety: (?P<safety>Safe|Unsafe|Controversial)\s*\n\s*Categories: (?P<categories>[^\n]+)"
    r"(?:\n\s*Refusal: (?:Yes|No))?\s*"
)


class Qwen3Guard(PromptFormat):
    """The format of Qwen3Guard-Gen checkpoints.

    Args:
        controversial: What the model's middle severity counts as: its card calls `harmful` strict, `unharmful` loose.
    """

    id: ClassVar[str] = "qwen3guard/1"
    speeds: ClassVar[tuple[Speed, ...]] = ("fast",)
    categories: ClassVar[tuple[str, ...]] = CATEGORIES

    def __init__(self, controversial: Label = Label.HARMFUL) -> None:
        self.controversial = controversial

    def render(self, exchange: Exchange, stage: Stage, *, speed: Speed) -> tuple[Prompt, ...]:
        """One prompt: the conversation up to the message that is judged.

        Raises:
            ContentError: There is a picture: this model can't see.
        """
        everything = (*exchange.context, *exchange.request, *exchange.response)
        refuse_pictures(everything, "Qwen3Guard")
        messages = [self._message("user", plain_text(exchange.request) or "None")]
        if stage is Stage.RESPONSE:
            messages.append(self._message("assistant", plain_text(exchange.response)))
        for earlier in reversed(exchange.context):
            role = "assistant" if earlier.role == "assistant" else "user"
            messages.insert(0, self._message(role, shortened(plain_text([earlier]), CONTEXT_MESSAGE)))
        return (Prompt(tuple(messages), max_tokens=64, top_logprobs=20),)

    @staticmethod
    def _message(role: str, text: str) -> PromptMessage:
        return PromptMessage("assistant" if role == "assistant" else "user", (PromptText(neutralise(text)),))

    def parse(self, completions: Sequence[Completion], exchange: Exchange, stage: Stage, *, speed: Speed) -> Verdict:
        """The severity and categories of the message that `stage` names; nothing is said of the other.

        Raises:
            ParseError: No well-formed answer, or a category that the model does not have.
        """
        completion = completions[0]
        match = _ANSWER.fullmatch(completion.text)
        if match is None or completion.finish == "length":
            raise ParseError("The guard model's answer does not follow its format.", text=completion.text)
        safety = match["safety"]
        label = {"Safe": Label.UNHARMFUL, "Unsafe": Label.HARMFUL}.get(safety, self.controversial)
        named = tuple(c.strip() for c in match["categories"].split(","))
        if named == ("None",):
            named = ()
        if unknown := [c for c in named if c not in CATEGORIES]:
            raise ParseError(f"The guard model named {len(unknown)} unknown categories.", text=completion.text)
        score = self._score(completion, match.start("safety"))
        of_prompt = stage is Stage.PROMPT
        return Verdict(
            prompt=label if of_prompt else None,
            response=None if of_prompt else label,
            prompt_score=score if of_prompt else None,
            response_score=None if of_prompt else score,
            categories=named if label is Label.HARMFUL else (),
            model=completion.model,
            format=self.id,
            speed="fast",
            usage=completion.usage,
            latency=completion.latency,
        )

    def _score(self, completion: Completion, position: int) -> float | None:
        if "".join(t.text for t in completion.tokens) != completion.text:
            return None
        token = token_at(completion.tokens, position)
        if token is None:
            return None
        unsafe = share(token, "Unsafe", ("Safe", "Controversial"))[0]
        middle = share(token, "Controversial", ("Safe", "Unsafe"))[0]
        return min(1.0, unsafe + middle) if self.controversial is Label.HARMFUL else unsafe

    def target(self, verdict: Verdict) -> str:
        """What the model writes: the severity of the response if it has a label, else of the request.

        Raises:
            ConfigurationError: The verdict has no label.
        """
        label = verdict.response or verdict.prompt
        if label is None:
            raise ConfigurationError("A verdict without a label has no target.")
        severity = "Unsafe" if label is Label.HARMFUL else "Safe"
        return f"Safety: {severity}\nCategories: {', '.join(verdict.categories) or 'None'}"
