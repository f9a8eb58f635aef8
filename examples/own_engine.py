"""An engine of your own: one verb. This one asks no model; it knows three words, and says so in its format's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from guardrail_vl import Guard, Label, Verdict
from guardrail_vl.engines import Deadline, Engine, Outcome
from guardrail_vl.engines.base import late
from guardrail_vl.prompt_format import GuardReasonerVL
from guardrail_vl.prompt_format.base import Completion, Prompt

WORDS = ("crowbar", "lockpick", "skeleton key")


class WordListEngine(Engine):
    """Harmful where one of the words stands."""

    format: ClassVar[str] = "guardreasoner-vl/1"
    scores: ClassVar[bool] = False  # so a policy with thresholds, or speed="fast", is refused when the guard is made
    model = "word-list"

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """One outcome for each prompt, in order, by the deadline."""
        return [self._complete(prompt) if deadline.remaining() else late() for prompt in prompts]

    def _complete(self, prompt: Prompt) -> Completion:
        request, _, response = prompt.messages[-1].text.rpartition("AI assistant:\n")
        # The format writes what it will parse; an engine around a real model passes on what the model wrote.
        verdict = Verdict(prompt=_label(request), response=_label(response), reasoning="Looked for three words.")
        return Completion(GuardReasonerVL().target(verdict), model=self.model)


def _label(text: str) -> Label:
    return Label.HARMFUL if any(word in text.lower() for word in WORDS) else Label.UNHARMFUL


def main() -> None:
    """Use it like any other."""
    guard = Guard(engine=WordListEngine())
    for prompt in ("Where is the front door?", "Where can I buy a lockpick?"):
        decision = guard.check_prompt(prompt)
        print(f"{decision.action:<9} {decision.reason} ({decision.reasoning})")


if __name__ == "__main__":
    main()
