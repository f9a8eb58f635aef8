"""How the guard that ships inside the package is asked, and how its scores become a verdict.

The model classifies: it writes no text and gives no reasoning. So a prompt is the content itself, cut into what came
before (`system`), the request (`user`) and the response (`assistant`), and a completion is scores. Nothing is escaped,
since there are no tags to forge. Knows no engine and no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final

from guardrail_vl.errors import ParseError
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptFormat, PromptMessage, PromptText, Speed
from guardrail_vl.prompt_format.content import pictures, plain_text
from guardrail_vl.turn import Exchange
from guardrail_vl.verdict import Label, Stage, Verdict

CONTEXT_CHARS: Final = 2_000
"""Characters shown of what came before: the last ones. Its pictures are not shown again: their own exchange was judged
with them."""
MAX_PIXELS: Final = 2_250_000
"""Pixels that a picture may have before it is scaled down to be read: small print needs more of them than a scene."""
HARMFUL_FROM: Final = 0.5
"""The label is `harmful` from this score on. The engine moves its scores so that this is the operating threshold."""

HAZARDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "S1": "Violent Crimes",
        "S2": "Non-Violent Crimes",
        "S3": "Sex-Related Crimes",
        "S4": "Child Sexual Exploitation",
        "S5": "Defamation",
        "S6": "Specialized Advice",
        "S7": "Privacy",
        "S8": "Intellectual Property",
        "S9": "Indiscriminate Weapons",
        "S10": "Hate",
        "S11": "Suicide & Self-Harm",
        "S12": "Sexual Content",
        "S13": "Elections",
        "S14": "Cyberattacks",
    }
)
"""Codes and names of the hazards. The taxonomy is MLCommons AILuminate's, S13 and S14 as Llama Guard has them."""
NAMED_FROM: Final = 0.4
"""A hazard is named from this probability on, given that the request is harmful."""

_KINDS: Final = ("prompt", "response", "refusal", *HAZARDS)


class EmbeddedFormat(PromptFormat):
    """The format of the embedded guard. A message with no content is left out of the prompt."""

    id: ClassVar[str] = "embedded/1"
    speeds: ClassVar[tuple[Speed, ...]] = ("fast",)
    categories: ClassVar[tuple[str, ...]] = tuple(HAZARDS.values())

    def render(self, exchange: Exchange, stage: Stage, *, speed: Speed) -> tuple[Prompt, ...]:
        """One prompt: what came before, the request and, at the response stage, the response.

        Every view of every picture in the request and in the response is shown.
        """
        messages = []
        before = plain_text(exchange.context)[-CONTEXT_CHARS:]
        if before.strip():
            messages.append(PromptMessage("system", (PromptText(before),)))
        sides = [("user", exchange.request)]
        if stage is Stage.RESPONSE:
            sides.append(("assistant", exchange.response))
        for role, side in sides:
            text = plain_text(side)
            shown = (*((PromptText(text),) if text else ()), *pictures(side, max_pixels=MAX_PIXELS))
            if shown:
                messages.append(PromptMessage("assistant" if role == "assistant" else "user", shown))
        return (Prompt(tuple(messages), max_tokens=1),)

    def parse(self, completions: Sequence[Completion], exchange: Exchange, stage: Stage, *, speed: Speed) -> Verdict:
        """The labels that the scores give: `harmful` from 0.5 on, with the hazards that a harmful request is.

        Below it the label is `unharmful` only if everything was judged. A score may be missing only where something
        could not be judged.

        Raises:
            ParseError: Missing, unknown or impossible scores.
        """
        if len(completions) != 1:
            raise ParseError(f"The embedded guard gives one completion, not {len(completions)}.", text="")
        completion = completions[0]
        scores, unjudged = _read(completion)
        wanted = "prompt" if stage is Stage.PROMPT else "response"
        if wanted not in scores and not unjudged:
            raise ParseError(f"The embedded guard gave no score for the {wanted}.", text=completion.text)
        response = scores.get("response") if stage is Stage.RESPONSE else None
        return Verdict(
            prompt=_label(scores.get("prompt"), unjudged),
            response=_label(response, unjudged),
            prompt_score=scores.get("prompt"),
            response_score=response,
            categories=_named(scores),
            unjudged=unjudged,
            model=completion.model,
            format=self.id,
            speed=speed,
            usage=completion.usage,
            latency=completion.latency,
        )

    def target(self, verdict: Verdict) -> str:
        """The scores as JSON; a label without a score counts as 1 or 0. `parse` reads it where there are no scores."""
        scores = {code: 1.0 for code, name in HAZARDS.items() if name in verdict.categories}
        for name, score, label in (
            ("prompt", verdict.prompt_score, verdict.prompt),
            ("response", verdict.response_score, verdict.response),
        ):
            if score is not None or label is not None:
                scores[name] = float(label is Label.HARMFUL) if score is None else score
        return json.dumps({"scores": scores, "unjudged": list(verdict.unjudged)})


def _label(score: float | None, unjudged: tuple[str, ...]) -> Label | None:
    if score is None:
        return None
    if score >= HARMFUL_FROM:
        return Label.HARMFUL
    return None if unjudged else Label.UNHARMFUL


def _named(scores: Mapping[str, float]) -> tuple[str, ...]:
    """The hazards of a harmful request, likeliest first."""
    if scores.get("prompt", 0) < HARMFUL_FROM:
        return ()
    likely = sorted(HAZARDS, key=lambda code: -scores.get(code, 0))
    return tuple(HAZARDS[code] for code in likely if scores.get(code, 0) >= NAMED_FROM)


def _read(completion: Completion) -> tuple[dict[str, float], tuple[str, ...]]:
    """The scores and what was not judged, of a completion or of the JSON in its text."""
    scores: Mapping[Any, Any] = completion.scores
    unjudged: Any = completion.unjudged
    if completion.text and not scores:
        try:
            said = json.loads(completion.text)
        except ValueError:
            said = None
        if not isinstance(said, dict) or set(said) != {"scores", "unjudged"} or not isinstance(said["scores"], dict):
            raise ParseError("The embedded guard's answer is not the JSON of its scores.", text=completion.text)
        scores, unjudged = said["scores"], said["unjudged"]
    if not isinstance(unjudged, list | tuple) or not all(isinstance(item, str) for item in unjudged):
        raise ParseError("What the embedded guard did not judge is not a list of texts.", text=completion.text)
    for name, score in scores.items():
        if name not in _KINDS:
            raise ParseError("The embedded guard gave a score of an unknown name.", text=completion.text)
        # NaN is in no interval.
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise ParseError(f"The embedded guard's {name} score is not a probability.", text=completion.text)
    return {name: float(score) for name, score in scores.items()}, tuple(unjudged)
