"""One check, written once: a generator that yields what it needs done and never does it.

A check climbs rungs: what the first leaves unsure is asked again at the next, and what the last one asked says counts.

`check_flow` asks for completions, for remembered verdicts, for pictures to be fetched, for hooks to be called. A
driver (`_drivers`) does these things by calling, by awaiting, or for many flows in step, and sends the result back in,
or throws the error in. So there is one place where a verdict, or the lack of one, becomes an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from guardrail_vl.cache import VerdictCache
from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.errors import ContentError, EngineError, GuardrailError, ParseError
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptFormat, Speed
from guardrail_vl.turn import INSTRUCTIONS, Exchange, Turn, is_blank
from guardrail_vl.verdict import Action, Decision, Judgement, Label, Stage, Usage, Verdict

SpeedChoice = Literal["reason", "fast", "auto"]

CONTEXT_MESSAGES: Final = 8
"""Earlier messages that the newest exchange is judged with; older ones are judged in their own exchanges only."""


# ---- effects: what a flow asks of its driver ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Generate:
    """Complete these prompts on a rung's engine by the deadline. Result: one outcome each."""

    prompts: tuple[Prompt, ...]
    deadline: Deadline
    """Of the whole check; the rung has its share of it."""
    rung: int
    """Index into the guard's rungs."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Look these keys up. Result: a verdict or None each."""

    cache: VerdictCache
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Remember:
    """Remember these. Result: None."""

    cache: VerdictCache
    items: tuple[tuple[bytes, Verdict], ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Fetch these pictures. Result: the bytes of each, or a ContentError each."""

    urls: tuple[str, ...]
    deadline: Deadline


@dataclass(frozen=True, slots=True)
class CallHook:
    """Call a hook. Result: the decision it wants instead, or None."""

    hook: Hook
    turn: Turn | None
    """None: the content was refused before it became a turn."""
    decision: Decision


Effect = Generate | Recall | Remember | Fetch | CallHook
Hook = Callable[[Turn | None, Decision], Any]
Flow = Generator[Effect, Any, Decision]


@dataclass(frozen=True, slots=True)
class Band:
    """From which to which score a verdict is unsure, both included."""

    prompt: tuple[float, float]
    response: tuple[float, float]

    def of(self, stage: Stage) -> tuple[float, float]:
        """That of a stage."""
        return self.prompt if stage is Stage.PROMPT else self.response

    def __str__(self) -> str:
        if self.prompt == self.response:
            return f"[{self.prompt[0]}, {self.prompt[1]}]"
        return "[" + "; ".join(f"{stage} {self.of(stage)[0]}, {self.of(stage)[1]}" for stage in Stage) + "]"


@dataclass(frozen=True, slots=True)
class Rung:
    """One asking of a check, and what is asked again after it."""

    engine: Engine
    format: PromptFormat
    speed: Speed
    band: Band | None = None
    """Scores that go on to the next rung. None: this is the last."""
    max_concurrency: int | None = None
    """Calls of the engine under way at a time. None: as many as come."""
    share: float = 1.0
    """Of the time that is left when it is asked: the most that it may take, so that a guard after it has some."""

    def __str__(self) -> str:
        return f"{self.engine.model} ({self.format.id}, {self.speed})" + (f" {self.band}" if self.band else "")


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything about a guard that a check depends on."""

    policy: Policy
    rungs: tuple[Rung, ...]
    """At least one. Every one but the last has a band."""
    cache: VerdictCache | None
    pre_prompt: tuple[Hook, ...]
    post_response: tuple[Hook, ...]
    key: bytes
    """What else than content a verdict depends on: policy and rungs."""


def rules_key(policy: Policy, rungs: Sequence[Rung]) -> bytes:
    """The part of a cache key that is the same for all content."""
    parts = [policy.hash]
    for rung in rungs:
        parts += [rung.engine.model, rung.format.id, rung.speed, *([str(rung.band)] if rung.band else [])]
    return hashlib.blake2b("\x1e".join(parts).encode(), digest_size=16).digest()


# ---- the plan: which exchanges are judged, and as what ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """One exchange to judge."""

    exchange: Exchange
    stage: Stage
    history: bool = False
    """Whether it is there besides what the check is about."""

    def key(self, rules: Rules) -> bytes:
        """The key under which its verdict is remembered."""
        return rules.key + self.exchange.digest() + (b"r" if self.stage is Stage.RESPONSE else b"p")


def plan(turn: Turn, stage: Stage, policy: Policy) -> tuple[Task, ...]:
    """Every part of the turn once, oldest first, and the newest exchange once more with what came before it.

    Raises:
        ContentError: Nothing is left to judge.
    """
    exchanges = turn.exchanges()
    newest = exchanges[-1]
    tasks = [
        Task(exchange, Stage.RESPONSE if exchange.response else Stage.PROMPT, history=True)
        for exchange in exchanges[:-1]
        if not _trusted(exchange, policy) and not is_blank((*exchange.request, *exchange.response))
    ]
    if stage is Stage.PROMPT and not is_blank(newest.response):
        # A request may end in words put into the assistant's mouth: nobody else would judge them.
        tasks.append(Task(newest, Stage.RESPONSE, history=True))
    if not is_blank((*newest.request, *newest.response)):  # a tool may have nothing to say
        tasks.append(Task(newest, stage))
        before = [m for m in turn.messages[: newest.first] if m.role not in INSTRUCTIONS and not is_blank([m])]
        if before:
            tasks.append(Task(replace(newest, context=tuple(before[-CONTEXT_MESSAGES:])), stage))
    if not tasks:
        raise ContentError("There is nothing to judge: only instructions that are trusted, and no text or image.")
    return tuple(tasks)


def _trusted(exchange: Exchange, policy: Policy) -> bool:
    return all(m.role in policy.trusted_roles for m in (*exchange.request, *exchange.response))


# ---- the flow -----------------------------------------------------------------------------------------------------


def check_flow(source: Callable[[], Turn | FetchPlan], stage: Stage | None, rules: Rules, deadline: Deadline) -> Flow:
    """One check, from whatever the caller has to a decision.

    Args:
        source: Makes the turn; it may raise ContentError, or ask for pictures to be fetched first.
        stage: What is judged; None: the response if the turn has one, else the prompt.
        rules: The guard's.
        deadline: For all of it.

    Raises:
        ConfigurationError: The caller's mistake; never turned into a decision.
    """
    turn = None
    try:
        made = source()
        turn = made.finish((yield Fetch(made.urls, deadline))) if isinstance(made, FetchPlan) else made
        stage = _stage(turn, stage)
        tasks = plan(turn, stage, rules.policy)
    except ContentError as error:
        stage = stage or Stage.PROMPT
        decision = _failed(error, stage, rules.policy)
    else:
        decision = _combine(tasks, (yield from _verdicts(tasks, rules, deadline)), stage, rules.policy)
    for hook in rules.pre_prompt if stage is Stage.PROMPT else rules.post_response:
        decision = (yield CallHook(hook, turn, decision)) or decision
    return decision


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """A turn that needs pictures fetched before it exists."""

    urls: tuple[str, ...]
    finish: Callable[[Sequence[bytes | ContentError]], Turn]


def _stage(turn: Turn, stage: Stage | None) -> Stage:
    if stage is None:
        return Stage.RESPONSE if turn.has_response else Stage.PROMPT
    if stage is Stage.RESPONSE and not turn.has_response:
        raise ContentError("There is no response to judge: the newest message is not the assistant's.")
    return stage


def _verdicts(
    tasks: Sequence[Task], rules: Rules, deadline: Deadline
) -> Generator[Effect, Any, list[tuple[Verdict | GuardrailError, bool]]]:
    """A verdict or an error for each task, and whether it was remembered."""
    if rules.cache is None:
        return [(outcome, False) for outcome in (yield from _judge(tasks, rules, deadline))]
    keys = tuple(task.key(rules) for task in tasks)
    known: list[Verdict | None] = yield Recall(rules.cache, keys)
    missing = [i for i, verdict in enumerate(known) if verdict is None]
    if missing:
        judged = yield from _judge([tasks[i] for i in missing], rules, deadline)
        new = tuple((keys[i], v) for i, v in zip(missing, judged, strict=True) if isinstance(v, Verdict))
        if new:
            yield Remember(rules.cache, new)
    else:
        judged = []
    fresh = iter(judged)
    return [(next(fresh), False) if verdict is None else (verdict, True) for verdict in known]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of one asking, and what it took."""

    outcome: Verdict | GuardrailError
    usage: Usage = Usage()
    latency: float = 0.0


def _judge(
    tasks: Sequence[Task], rules: Rules, deadline: Deadline
) -> Generator[Effect, Any, list[Verdict | GuardrailError]]:
    """Climb the rungs: each task as far as it must. What the last rung asked says of it is its outcome."""
    answers: list[list[_Answer]] = [[] for _ in tasks]
    climbs: list[int | None] = [0 for _ in tasks]
    for number in range(len(rules.rungs)):
        asked = [i for i, rung in enumerate(climbs) if rung == number]
        if not asked:
            continue
        found = yield from _ask([tasks[i] for i in asked], number, rules.rungs, deadline)
        for i, answer in zip(asked, found, strict=True):
            answers[i].append(answer)
            climbs[i] = _next_rung(answer.outcome, tasks[i].stage, number, rules.rungs)
    return [_counted(given) for given in answers]


def _next_rung(outcome: Verdict | GuardrailError, stage: Stage, number: int, rungs: Sequence[Rung]) -> int | None:
    """The rung that is asked after this outcome; None: it stands."""
    band = rungs[number].band
    if band is None:
        return None
    if isinstance(outcome, GuardrailError):
        later = range(number + 1, len(rungs))
        return next((i for i in later if _may_help(outcome, rungs[number], rungs[i])), None)
    score = outcome.score_of(stage)
    low, high = band.of(stage)
    if score is None or low <= score <= high:
        return number + 1
    # Harm that was found is not undone by what else there may be; a "nothing found" is worth no more than was judged.
    harmful = score > high and outcome.label(stage) is Label.HARMFUL
    return number + 1 if outcome.unjudged and not harmful else None


def _may_help(error: GuardrailError, failed: Rung, other: Rung) -> bool:
    if other.engine is not failed.engine:
        return True  # whatever failed here, says nothing of what the other would say
    if isinstance(error, ContentError):
        return other.format.id != failed.format.id
    # What could not be read fast may be read after reasoning; a server that is down stays down.
    return isinstance(error, ParseError) or (isinstance(error, EngineError) and not error.retryable)


def _counted(answers: Sequence[_Answer]) -> Verdict | GuardrailError:
    """The last outcome; a verdict with what all askings took."""
    outcome = answers[-1].outcome
    if isinstance(outcome, GuardrailError) or len(answers) == 1:
        return outcome
    usage = sum((answer.usage for answer in answers), Usage())
    return replace(outcome, usage=usage, latency=sum(answer.latency for answer in answers))


def _ask(
    tasks: Sequence[Task], number: int, rungs: Sequence[Rung], deadline: Deadline
) -> Generator[Effect, Any, list[_Answer]]:
    """Render, complete, parse: one answer for each task."""
    rung = rungs[number]
    rendered: list[tuple[Prompt, ...] | ContentError] = []
    for task in tasks:
        try:
            rendered.append(rung.format.render(task.exchange, task.stage, speed=rung.speed))
        except ContentError as error:
            rendered.append(error)
    prompts = tuple(p for group in rendered if not isinstance(group, ContentError) for p in group)
    outcomes: list[Outcome] = []
    if prompts:
        try:
            outcomes = list((yield Generate(prompts, deadline, number)))
        except EngineError as error:
            outcomes = [error] * len(prompts)
    pending = iter(outcomes)
    answers: list[_Answer] = []
    for task, group in zip(tasks, rendered, strict=True):
        if isinstance(group, ContentError):
            answers.append(_Answer(group))
        else:
            answers.append(_read(rung, [next(pending) for _ in group], task))
    return answers


def _read(rung: Rung, outcomes: Sequence[Outcome], task: Task) -> _Answer:
    failed = next((outcome for outcome in outcomes if not isinstance(outcome, Completion)), None)
    completions = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    if failed is None:
        try:
            verdict = rung.format.parse(completions, task.exchange, task.stage, speed=rung.speed)
        except ParseError as error:
            failed = error
        else:
            if verdict.label(task.stage) is not None or verdict.unjudged:
                return _Answer(verdict, verdict.usage, verdict.latency)
            failed = ParseError(f"The guard model gave no label for the {task.stage}.", text=completions[0].text)
    usage = sum((completion.usage for completion in completions), Usage())
    # What is asked together runs together.
    latency = max((completion.latency for completion in completions), default=0.0)
    return _Answer(failed, usage, latency)


# ---- from verdicts to a decision ----------------------------------------------------------------------------------


def _combine(
    tasks: Sequence[Task], found: Sequence[tuple[Verdict | GuardrailError, bool]], stage: Stage, policy: Policy
) -> Decision:
    judgements = [_judgement(task, *outcome, policy) for task, outcome in zip(tasks, found, strict=True)]
    # The strictest decides. Among equals an error comes first, since it must stay visible; then the newest.
    worst = max(enumerate(judgements), key=lambda pair: (pair[1].action.rank, pair[1].error is not None, pair[0]))[1]
    where = "" if worst.last == judgements[-1].last else f"In message {worst.first}: "
    return Decision(
        action=worst.action,
        stage=stage,
        reason=where + worst.reason,
        verdict=worst.verdict,
        error=worst.error,
        policy=policy.hash,
        judgements=tuple(judgements),
    )


def _judgement(task: Task, outcome: Verdict | GuardrailError, remembered: bool, policy: Policy) -> Judgement:
    action, reason = policy.decide(task.stage, outcome)
    verdict = outcome if isinstance(outcome, Verdict) else None
    if task.history and verdict is not None and task.stage is Stage.RESPONSE and action < policy.history:
        # Asked harmfully, answered harmlessly: see Policy.history.
        asked, why = policy.decide(Stage.PROMPT, verdict)
        if verdict.prompt is Label.HARMFUL and asked > Action.ALLOW:
            action, reason = policy.history, f"{why} The answer to it was not."
    return Judgement(
        first=task.exchange.first,
        last=task.exchange.last,
        action=action,
        reason=reason,
        verdict=verdict,
        error=None if isinstance(outcome, Verdict) else outcome,
        in_context=bool(task.exchange.context),
        remembered=remembered,
    )


def _failed(error: GuardrailError, stage: Stage, policy: Policy) -> Decision:
    action, reason = policy.decide(stage, error)
    return Decision(action=action, stage=stage, reason=reason, error=error, policy=policy.hash)
