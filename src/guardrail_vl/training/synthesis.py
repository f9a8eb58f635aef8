"""Reasoning for labelled turns, written by a teacher and checked here: `synthesize`.

The gold labels are given to the teacher, as in the paper (arXiv 2505.11049, section 2.1); what it writes is kept only
if it comes to them, in the shape that the guard is trained in. It doesn't know whether a reasoning is true.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from guardrail_vl._value import Value
from guardrail_vl._whole import write_whole
from guardrail_vl.errors import ConfigurationError, ContentError, EngineError, GuardrailError
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format import PromptFormat, get_format
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptMessage, PromptText
from guardrail_vl.training import _reasoning, dataset
from guardrail_vl.training._answers import Journal, Outcome
from guardrail_vl.training._output import Output, Step, digest_of_turns
from guardrail_vl.training._reasoning import TOLD, Reason, Unusable
from guardrail_vl.training._teacher import GOES_ON, Asking, Teacher, Unanswered
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.turn import Exchange
from guardrail_vl.verdict import Label, Verdict

STAGE: Final = "synthesize"
TURNS: Final = "turns.jsonl"
REJECTED: Final = "rejected.jsonl"

_NOT_THE_TEACHERS: Final = frozenset(("no_label", "unfit"))
"""Reasons that say nothing of the teacher."""


class SynthesisConfig(BaseModel):
    """What is asked, and what is accepted. The paper's: steps 1 to 10, temperature 0, one attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    attempts: int = Field(default=3, ge=1)
    """Times that a turn is asked for, at most; from the second on the teacher is told what was wrong."""
    max_steps: int = Field(default=10, ge=1)
    """Steps of each task, at most."""
    max_characters: int = Field(default=6000, ge=1)
    """Of a reasoning. It has to fit into what a guard may write (2,048 tokens); the paper's mean is 820 or so."""
    max_tokens: int = Field(default=4096, ge=1)
    """Of one answer of the teacher, with what it thinks for itself."""
    decide_responses: bool = False
    """Let the teacher decide a response's unknown label too, as it always does with a request's. False: a turn with
    such a response is dropped."""
    rewrite: bool = False
    """Ask also for turns that have a reasoning. False: they stay as they are, and aren't checked."""


@dataclass(frozen=True, slots=True)
class SynthesisResult(Value):
    """What came of it."""

    total: int
    """Turns given."""
    written: int
    """Turns whose reasoning the teacher wrote."""
    kept: int
    """Turns that had one."""
    rejected: Mapping[str, int]
    """Turns that were dropped, by the reason: see `Reason`."""
    decided_prompts: int
    """Requests whose label the teacher decided."""
    decided_responses: int
    """Responses likewise."""
    answers: int
    """What the teacher wrote in all, used or not."""
    prompt_tokens: int
    """Of these, as the teacher counts them."""
    completion_tokens: int
    teacher: str
    """Its model."""
    turns: Annotated[tuple[LabeledTurn, ...], Field(exclude=True)] = field(default=(), repr=False)
    """All turns with a reasoning, in the order given. Not in the JSON: they are in `turns.jsonl`."""


def synthesize(
    turns: Sequence[LabeledTurn],
    output: str | Path,
    *,
    teacher: Teacher,
    config: SynthesisConfig | None = None,
    policy: Policy | None = None,
    format: str = "guardreasoner-vl/1",
    progress: Callable[[Step], object] | None = None,
) -> SynthesisResult:
    """Have a teacher write the reasoning of each turn.

    Each answer is kept in `checkpoints/` as it comes; a run that stopped, however it stopped, goes on when it is called
    again with the same turns, config, policy, format and model, and asks only for what is missing. At its end the
    folder has `turns.jsonl`, `rejected.jsonl` (ids and reasons), `metrics.jsonl` and `result.json`.

    Args:
        turns: With their gold labels. A request's unknown label (None) is decided by the teacher.
        output: The folder.
        teacher: Who writes. Turns are sent there as they are, pictures too.
        config: What is asked and accepted. None: the defaults.
        policy: Its description and categories are what the teacher judges by. None, or one without: its own idea.
        format: Id of the prompt format that shows the turn, and whose target the reasoning becomes part of.
        progress: Called after each turn.

    Raises:
        ConfigurationError: A wrong argument; or the folder holds another run (says what differs), is in use, or can't
            be written.
        EngineError: The teacher gave no usable answer `Teacher.stop_after` times in a row, or none at all; or it is
            down (`EngineUnavailableError`), or refuses (`EngineResponseError`).
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(
            asynthesize(turns, output, teacher=teacher, config=config, policy=policy, format=format, progress=progress)
        )
    raise ConfigurationError("synthesize can't run within an event loop.", hint="Use: await asynthesize(…).")


async def asynthesize(
    turns: Sequence[LabeledTurn],
    output: str | Path,
    *,
    teacher: Teacher,
    config: SynthesisConfig | None = None,
    policy: Policy | None = None,
    format: str = "guardreasoner-vl/1",
    progress: Callable[[Step], object] | None = None,
) -> SynthesisResult:
    """The same, by awaiting. Reading and writing files holds the event loop up."""
    if not turns:
        raise ConfigurationError("There are no turns to write reasoning for.")
    if twice := [id for id, count in Counter(turn.id for turn in turns).items() if count > 1]:
        raise ConfigurationError(f"{len(twice)} ids are there more than once, such as {twice[0]!r}.")
    words = _Words(_format(format), policy, config or SynthesisConfig())
    place = Output(output, STAGE, _inputs(turns, teacher, words))
    done = place.begin(SynthesisResult)
    if done is not None:
        return replace(done, turns=dataset.read(place.folder / TURNS))
    tell = progress or (lambda step: None)

    def told(step: Step) -> None:
        if step.step == step.total or step.step % max(1, step.total // 100) == 0:
            place.log(step)
        tell(step)

    with Journal(place.checkpoints) as journal:
        run = _Run(turns, words, journal, teacher, told)
        place.rewind(run.step.step)
        tell(run.step)
        await run.work()
        result = run.result()
        rejected = [{"id": one.id, "reason": one.rejected} for one in journal.outcomes.values() if one.rejected]
        dataset.write(place.folder / TURNS, result.turns)
        write_whole(place.folder / REJECTED, "".join(f"{json.dumps(row)}\n" for row in rejected))
        place.finish(result)
    return result


def _format(id: str) -> PromptFormat:
    format = get_format(id)
    probe = LabeledTurn("probe", prompt="p", prompt_label=Label.HARMFUL)
    verdict = Verdict(prompt=Label.HARMFUL, reasoning="r")
    if "reason" not in format.speeds or not _reasoning.reads_back(verdict, probe, probe.exchange(), format):
        raise ConfigurationError(f"The prompt format {id!r} has no place for reasoning.")
    return format


def _inputs(turns: Sequence[LabeledTurn], teacher: Teacher, words: _Words) -> dict[str, object]:
    asked = hashlib.blake2b(digest_size=8)
    for turn in turns:
        asked.update(words.instruction(turn).encode("utf-8", "surrogatepass") + b"\x1e")
    return {
        "config": words.config.model_dump(mode="json"),
        "turns": digest_of_turns(turns),
        "teacher": {"model": teacher.model, "extra_body": dict(teacher.extra_body)},
        "format": words.format.id,
        "policy": None if words.policy is None else words.policy.hash,
        "instructions": asked.hexdigest(),
    }


@dataclass(frozen=True, slots=True)
class _Words:
    """What is said, and how it is read."""

    format: PromptFormat
    policy: Policy | None
    config: SynthesisConfig

    def instruction(self, turn: LabeledTurn) -> str:
        return _reasoning.instruction(turn, self.policy, max_steps=self.config.max_steps)

    def shown(self, turn: LabeledTurn) -> tuple[Exchange, tuple[PromptMessage, ...]]:
        """The turn as the guard will be shown it, without the guard's instruction."""
        exchange = turn.exchange()
        (prompt,) = self.format.render(exchange, turn.stage, speed="reason")
        return exchange, tuple(message for message in prompt.messages if message.role != "system")

    def prompt(self, instruction: str, shown: Sequence[PromptMessage]) -> Prompt:
        system = PromptMessage("system", (PromptText(instruction),))
        return Prompt((system, *shown), max_tokens=self.config.max_tokens)

    def read(self, completion: Completion, turn: LabeledTurn, exchange: Exchange) -> LabeledTurn:
        return _reasoning.read(
            completion,
            turn,
            exchange,
            self.format,
            max_steps=self.config.max_steps,
            max_characters=self.config.max_characters,
        )


# ---- the run -------------------------------------------------------------------------------------------------------


class _Run:
    """All turns through the teacher, several at a time."""

    def __init__(
        self,
        turns: Sequence[LabeledTurn],
        words: _Words,
        journal: Journal,
        teacher: Teacher,
        tell: Callable[[Step], object],
    ) -> None:
        self._turns = turns
        self._words = words
        self._journal = journal
        self._teacher = teacher
        self._tell = tell
        asked = [turn for turn in turns if turn.reasoning is None or words.config.rewrite]
        missing = [turn for turn in asked if turn.id not in journal.outcomes]
        self._kept = len(turns) - len(asked)
        self._workers = min(teacher.concurrency, len(missing))
        self._missing = iter(missing)
        # Rejections since the last usable answer. They count once there is another one, or at the end: if the teacher
        # only writes nonsense from here on, these turns are asked for again.
        self._held: list[Outcome] = []
        self._cause: GuardrailError | None = None
        self._counts: Counter[str] = Counter()
        self._count(journal.outcomes.values())

    @property
    def step(self) -> Step:
        """How far it is."""
        counts = {name: float(self._counts[name]) for name in ("written", "rejected", "answers")}
        return Step(STAGE, self._kept + self._counts["written"] + self._counts["rejected"], len(self._turns), counts)

    async def work(self) -> None:
        """Do what is missing.

        Raises:
            EngineError: The teacher is of no use.
            ConfigurationError: The disk is full, for example.
        """
        asking = Asking(self._teacher)
        tasks = [asyncio.create_task(self._work(asking)) for _ in range(self._workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asking.aclose()
        if self._held and not self._counts["written"]:
            raise self._useless("The teacher gave no usable answer at all")
        self._journal.append(self._held)

    def result(self) -> SynthesisResult:
        """What came of all turns.

        Raises:
            ConfigurationError: Nothing.
        """
        outcomes = self._journal.outcomes
        made = [(turn, outcomes.get(turn.id)) for turn in self._turns]
        rejected = Counter(one.rejected for one in outcomes.values() if one.rejected)
        turns = tuple(_made(turn, one) for turn, one in made if one is None or not one.rejected)
        if not turns:
            raise ConfigurationError(f"Not one turn can be used: {_listed(rejected)}.")
        used = [(turn, one) for turn, one in made if one is not None and not one.rejected]
        return SynthesisResult(
            total=len(self._turns),
            written=len(used),
            kept=self._kept,
            rejected=dict(rejected),
            decided_prompts=sum(turn.prompt_label is None and one.prompt is not None for turn, one in used),
            decided_responses=sum(turn.response_label is None and one.response is not None for turn, one in used),
            answers=sum(one.answers for one in outcomes.values()),
            prompt_tokens=sum(one.prompt_tokens for one in outcomes.values()),
            completion_tokens=sum(one.completion_tokens for one in outcomes.values()),
            teacher=self._teacher.model,
            turns=turns,
        )

    async def _work(self, asking: Asking) -> None:
        for turn in self._missing:
            self._take(await self._outcome(turn, asking))

    def _take(self, outcome: Outcome) -> None:
        if not outcome.rejected:
            self._journal.append([*self._held, outcome])
            self._held = []
        elif outcome.rejected in _NOT_THE_TEACHERS:
            self._journal.append([outcome])
        else:
            self._held.append(outcome)
        self._count([outcome])
        self._tell(self.step)
        if len(self._held) >= self._teacher.stop_after:
            raise self._useless(f"The teacher gave no usable answer to {len(self._held)} turns in a row")

    def _count(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._counts["rejected" if outcome.rejected else "written"] += 1
            self._counts["answers"] += outcome.answers

    def _useless(self, what: str) -> EngineError:
        cause = "" if self._cause is None else f" The last error: {self._cause.message}"
        reasons = _listed(Counter(outcome.rejected for outcome in self._held))
        return EngineError(f"{what} ({reasons}).{cause}", hint=f"See that it is the right model. {GOES_ON}")

    async def _outcome(self, turn: LabeledTurn, asking: Asking) -> Outcome:
        """Ask until there is something to keep, or no attempt left."""
        if turn.response is not None and turn.response_label is None and not self._words.config.decide_responses:
            return Outcome(turn.id, rejected="no_label")
        answers: list[Completion] = []
        try:
            made = await self._asked(turn, asking, answers)
            outcome = Outcome(turn.id, made.reasoning, made.prompt_label, made.response_label)
        except Unusable as error:
            outcome = Outcome(turn.id, rejected=error.reason)
        return replace(
            outcome,
            answers=len(answers),
            prompt_tokens=sum(answer.usage.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.usage.completion_tokens for answer in answers),
        )

    async def _asked(self, turn: LabeledTurn, asking: Asking, answers: list[Completion]) -> LabeledTurn:
        """The turn with its reasoning; every answer is added to `answers`.

        Raises:
            Unusable: The last attempt's reason.
        """
        words = self._words
        try:
            exchange, shown = await asyncio.to_thread(words.shown, turn)
        except ContentError:
            raise Unusable("unfit") from None
        if turn.prompt_label is not None and not exchange.request:
            raise Unusable("unfit")
        instruction = words.instruction(turn)
        reason: Reason | None = None
        for _ in range(words.config.attempts):
            told = instruction if reason is None else _reasoning.again(instruction, reason)
            try:
                answers.append(await asking.ask(words.prompt(told, shown)))
                return words.read(answers[-1], turn, exchange)
            except ContentError:
                raise Unusable("unfit") from None
            except Unanswered as error:
                self._cause = error.cause
                if error.final:
                    raise Unusable("failed" if error.cause.retryable else "refused") from None
                reason = "empty"
            except Unusable as error:
                reason = error.reason
        raise Unusable(reason or "empty")


def _made(turn: LabeledTurn, outcome: Outcome | None) -> LabeledTurn:
    if outcome is None:  # it had its reasoning
        return turn
    return replace(turn, reasoning=outcome.reasoning, prompt_label=outcome.prompt, response_label=outcome.response)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


__all__ = ["TOLD", "Reason", "Step", "SynthesisConfig", "SynthesisResult", "Teacher", "asynthesize", "synthesize"]
