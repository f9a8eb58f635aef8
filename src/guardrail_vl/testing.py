"""A real engine without a model, for tests: ours and yours. Scripted, thread-safe, honours deadlines."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from guardrail_vl.engines.base import Deadline, Engine, Outcome, late
from guardrail_vl.errors import GuardrailError
from guardrail_vl.prompt_format.base import Completion, Prompt, Token
from guardrail_vl.verdict import Label

Script = Callable[[Prompt], str | Completion | GuardrailError]


class ScriptedEngine(Engine):
    """Answers each prompt with what `script` says for it.

    Args:
        script: Given the prompt: the completion (or its text), or the error.
        delay: Seconds that each call takes.
        model: The name it gives itself.
    """

    format: ClassVar[str] = "guardreasoner-vl/1"

    def __init__(self, script: Script, *, delay: float = 0.0, model: str = "scripted") -> None:
        self.script = script
        self.delay = delay
        self.model = model
        self._lock = threading.Lock()
        self.calls = 0
        """How often the engine was called."""
        self.prompts: list[Prompt] = []
        """Every prompt it was given, in order."""

    def __reduce__(self) -> tuple[object, ...]:
        return (_scripted, (self.script, self.delay, self.model))

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.generate`."""
        self._note(prompts)
        if self.delay:
            time.sleep(min(self.delay, deadline.remaining()))
        return self._answer(prompts, deadline)

    async def agenerate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.agenerate`."""
        self._note(prompts)
        if self.delay:
            await asyncio.sleep(min(self.delay, deadline.remaining()))
        return self._answer(prompts, deadline)

    async def astream(self, prompt: Prompt, *, deadline: Deadline, on_text: Callable[[str], None]) -> Outcome:
        """See `Engine.astream`. The text is told word by word, spread over the delay."""
        self._note([prompt])
        (outcome,) = self._answer([prompt], deadline)
        if isinstance(outcome, Completion):
            words = re.findall(r"\s*\S+|\s+$", outcome.text)
            for word in words:
                await asyncio.sleep(min(self.delay / len(words), deadline.remaining()))
                on_text(word)
        return outcome if deadline.remaining() else late()

    def _note(self, prompts: Sequence[Prompt]) -> None:
        with self._lock:
            self.calls += 1
            self.prompts.extend(prompts)

    def _answer(self, prompts: Sequence[Prompt], deadline: Deadline) -> list[Outcome]:
        if not deadline.remaining():
            return [late() for _ in prompts]
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: Prompt) -> Outcome:
        answer = self.script(prompt)
        return Completion(answer, model=self.model) if isinstance(answer, str) else answer


def _scripted(script: Script, delay: float, model: str) -> ScriptedEngine:
    return ScriptedEngine(script, delay=delay, model=model)


def by_keyword(*words: str) -> Script:
    """A script in the GuardReasoner-VL format: harmful where any of these words stands in the judged section.

    Answers both with reasoning and, where a prefix is given, with a label token and its probabilities.
    """

    def script(prompt: Prompt) -> Completion:
        request, _, response = prompt.messages[-1].text.rpartition("AI assistant:\n")
        labels = [Label.HARMFUL if any(w in side for w in words) else Label.UNHARMFUL for side in (request, response)]
        if prompt.prefix:
            return label_token(labels["Response:" in prompt.prefix])
        text = "<think># Task 1\n\n## Reasoning Step 1\nLooked for words.\n</think>\n\n<result>\n"
        return Completion(f"{text}Request: {labels[0]}\nResponse: {labels[1]}\n</result>", model="scripted")

    return script


def label_token(label: Label, probability: float = 0.98) -> Completion:
    """A completion of one label token, with its probability."""
    import math

    other = next(one for one in Label if one is not label)
    pieces = {Label.HARMFUL: " harmful", Label.UNHARMFUL: " un"}
    token = Token(
        pieces[label],
        math.log(probability),
        ((pieces[label], math.log(probability)), (pieces[other], math.log(1 - probability))),
    )
    return Completion(pieces[label], finish="length", tokens=(token,), model="scripted")
