"""One check, written once: a generator that yields what it needs done and never does it.

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
from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.errors import ContentError, EngineError, GuardrailError, ParseError
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptFormat, Speed
from guardrail_vl.turn import INSTRUCTIONS, Exchange, Turn, is_blank
from guardrail_vl.verdict import Action, Decision, Judgement, Label, Stage, Verdict

SpeedChoice = Literal["reason", "fast", "auto"]

CONTEXT_MESSAGES: Final = 8
"""Earlier messages that the newest exchange is judged with; older ones are judged in their own exchanges only."""


# ---- effects: what a flow asks of its driver ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Generate:
    """Complete these prompts by the deadline. Result: one outcome each."""

    prompts: tuple[Prompt, ...]
    deadline: Deadline


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
class Rules:
    """Everything about a guard that a check depends on."""

    policy: Policy
    format: PromptFormat
    speed: SpeedChoice
    band: tuple[float, float]
    """Scores between these are uncertain: `auto` then reasons."""
    cache: VerdictCache | None
    pre_prompt: tuple[Hook, ...]
    post_response: tuple[Hook, ...]
    key: bytes
    """What else than content a verdict depends on: policy, model, format, speed."""


def rules_key(policy: Policy, model: str, format_id: str, speed: str) -> bytes:
    """The part of a cache key that is the same for all content."""
    return hashlib.blake2b("\x1e".join((policy.hash, model, format_id, speed)).encode(), digest_size=16).digest()


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


def _judge(
    tasks: Sequence[Task], rules: Rules, deadline: Deadline
) -> Generator[Effect, Any, list[Verdict | GuardrailError]]:
    if rules.speed != "auto":
        return (yield from _ask(tasks, rules.speed, rules.format, deadline))
    first = yield from _ask(tasks, "fast", rules.format, deadline)
    unsure = [i for i, outcome in enumerate(first) if _is_unsure(outcome, tasks[i].stage, rules.band)]
    if unsure:
        second = yield from _ask([tasks[i] for i in unsure], "reason", rules.format, deadline)
        for i, outcome in zip(unsure, second, strict=True):
            first[i] = outcome
    return first


def _is_unsure(outcome: Verdict | GuardrailError, stage: Stage, band: tuple[float, float]) -> bool:
    if isinstance(outcome, GuardrailError):
        # What could not be read fast may be read after reasoning; a server that is down stays down.
        return isinstance(outcome, ParseError) or (isinstance(outcome, EngineError) and not outcome.retryable)
    score = outcome.score_of(stage)
    return score is None or band[0] <= score <= band[1]


def _ask(
    tasks: Sequence[Task], speed: Speed, prompt_format: PromptFormat, deadline: Deadline
) -> Generator[Effect, Any, list[Verdict | GuardrailError]]:
    """Render, complete, parse: one verdict or error for each task."""
    rendered: list[tuple[Prompt, ...] | ContentError] = []
    for task in tasks:
        try:
            rendered.append(prompt_format.render(task.exchange, task.stage, speed=speed))
        except ContentError as error:
            rendered.append(error)
    prompts = tuple(p for group in rendered if not isinstance(group, ContentError) for p in group)
    outcomes: list[Outcome] = []
    if prompts:
        try:
            outcomes = list((yield Generate(prompts, deadline)))
        except EngineError as error:
            outcomes = [error] * len(prompts)
    pending = iter(outcomes)
    results: list[Verdict | GuardrailError] = []
    for task, group in zip(tasks, rendered, strict=True):
        if isinstance(group, ContentError):
            results.append(group)
        else:
            results.append(_read(prompt_format, [next(pending) for _ in group], task, speed))
    return results


def _read(
    prompt_format: PromptFormat, outcomes: Sequence[Outcome], task: Task, speed: Speed
) -> Verdict | GuardrailError:
    completions: list[Completion] = []
    for outcome in outcomes:
        if not isinstance(outcome, Completion):
            return outcome
        completions.append(outcome)
    try:
        verdict = prompt_format.parse(completions, task.exchange, task.stage, speed=speed)
    except ParseError as error:
        return error
    if verdict.label(task.stage) is None and not verdict.unjudged:
        return ParseError(f"The guard model gave no label for the {task.stage}.", text=completions[0].text)
    return verdict


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
