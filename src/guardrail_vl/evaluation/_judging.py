"""Samples through a guard, a batch at a time, each to its record. Writes nothing, and knows no run.

The guard's own flow judges: one exchange, no cache, no hooks. A verdict does not hold what the model wrote, so the
guard is asked in a format that is its own and listens to what it parses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from guardrail_vl.errors import GuardrailError
from guardrail_vl.evaluation.cases import Case
from guardrail_vl.evaluation.records import Record
from guardrail_vl.guard import Guard
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptFormat, Speed
from guardrail_vl.turn import Exchange, Making, Message
from guardrail_vl.verdict import Decision, Stage, Verdict

BETWEEN_TEXTS: Final = "\x1e"
"""Stands between the completions of one sample, where its format asks several prompts."""

Judged = tuple[Record, GuardrailError | None]
"""A sample's record, and why there is no verdict."""


@dataclass(frozen=True, slots=True)
class Job:
    """A sample to judge."""

    set: str
    """Name of its set."""
    case: Case
    digest: str
    """See `Case.digest`; computed once."""


class Judge:
    """Judges batches. Safe to share between threads.

    Args:
        guard: Whose engines, formats, speeds and policy are used.
        keep_text: Whether records hold what the model wrote.
    """

    def __init__(self, guard: Guard, *, keep_text: bool) -> None:
        self._heard: dict[int, list[tuple[Completion, ...]]] = {}
        self._keep_text = keep_text
        self._guard = _listening(guard, self._heard).replace(cache=False, pre_prompt=(), post_response=())

    def __call__(self, jobs: Sequence[Job]) -> list[Judged]:
        """Judge these together; they are of one stage. The batch has the guard's deadline once for each of them.

        Raises:
            ConfigurationError: The guard can't judge anything this way.
        """
        turns = [Making(job.case.turn) for job in jobs]
        decisions = self._guard.check_many(
            turns, stage=jobs[0].case.stage, batch=len(jobs), deadline=self._guard.deadline * len(jobs)
        )
        out = []
        # Listed first: the turns must live until what was heard of them is fetched.
        for job, turn, decision in zip(jobs, turns, list(decisions), strict=True):
            key = None if turn.turn is None else id(turn.turn.messages[-1])
            heard = [] if key is None else self._heard.pop(key, [])
            out.append((self._record(job, decision, heard), decision.error))
        return out

    def _record(self, job: Job, decision: Decision, heard: Sequence[Sequence[Completion]]) -> Record:
        everything = [completion for one in heard for completion in one]
        return record_of(
            job,
            decision.verdict or decision.error,
            text=text_of(heard[-1]) if heard and self._keep_text else None,
            action=decision.action,
            prompt_tokens=sum(c.usage.prompt_tokens for c in everything),
            completion_tokens=sum(c.usage.completion_tokens for c in everything),
            # What is asked together runs together; a second asking waits for the first.
            latency=sum(max(c.latency for c in one) for one in heard if one),
        )


def record_of(job: Job, outcome: Verdict | GuardrailError | None, **measured: object) -> Record:
    """The record of a sample's verdict, or of the lack of one."""
    case = job.case
    verdict = outcome if isinstance(outcome, Verdict) else None
    return Record(
        set=job.set,
        id=case.id,
        digest=job.digest,
        stage=case.stage,
        gold=case.gold,
        label=None if verdict is None else verdict.label(case.stage),
        score=None if verdict is None else verdict.score_of(case.stage),
        categories=() if verdict is None else verdict.categories,
        unjudged=() if verdict is None else verdict.unjudged,
        error="" if verdict is not None else type(outcome).__name__,
        modality=case.modality,
        category=case.category,
        group=case.group,
        **measured,  # type: ignore[arg-type]
    )


def text_of(completions: Sequence[Completion]) -> str | None:
    """What the model wrote, or None for one that gives scores and writes nothing."""
    if any(completion.scores and not completion.text for completion in completions):
        return None
    return writable(BETWEEN_TEXTS.join(completion.text for completion in completions))


def writable(text: str) -> str:
    """The text with what no file can hold, halves of a character, as question marks."""
    return text.encode(errors="replace").decode()


def _listening(guard: Guard, heard: dict[int, list[tuple[Completion, ...]]]) -> Guard:
    if guard.first is None or guard.then is None:
        return guard.replace(format=_Listening(guard.format, heard))
    return guard.replace(first=_listening(guard.first, heard), then=_listening(guard.then, heard))


class _Listening(PromptFormat):
    """A format like another one, that remembers the completions it is given to parse."""

    def __init__(self, inner: PromptFormat, heard: dict[int, list[tuple[Completion, ...]]]) -> None:
        vars(self).update(id=inner.id, speeds=inner.speeds, categories=inner.categories)
        self._inner = inner
        self._heard = heard

    def render(self, exchange: Exchange, stage: Stage, *, speed: Speed) -> tuple[Prompt, ...]:
        return self._inner.render(exchange, stage, speed=speed)

    def parse(self, completions: Sequence[Completion], exchange: Exchange, stage: Stage, *, speed: Speed) -> Verdict:
        # By the message itself, not by what it says: two samples may be alike.
        self._heard.setdefault(id(_newest(exchange)), []).append(tuple(completions))
        return self._inner.parse(completions, exchange, stage, speed=speed)

    def target(self, verdict: Verdict) -> str:
        return self._inner.target(verdict)


def _newest(exchange: Exchange) -> Message:
    return (exchange.response or exchange.request)[-1]
