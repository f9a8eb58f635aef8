"""A conversation without what is blocked in it: written once, as a flow that asks for checks and never does them.

Knows messages and judgements. Does not know how a turn is judged, nor where a host keeps its history.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, Final, TypeVar

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.parts import MAX_ID, Message, Part, TextPart, ToolCallPart, ToolResultPart
from guardrail_vl.turn import Making, is_blank
from guardrail_vl.verdict import Action, Decision, Judgement

Entry = TypeVar("Entry", bound=Mapping[str, Any] | Message)
Replace = str | Callable[[Judgement], str] | None

_SAYING: Final = ("reasoning", "reasoning_content", "reasoning_details", "refusal", "annotations", "audio", "images")
"""Fields of a message, besides content and calls, that say something."""


def clean(messages: Sequence[Any], replace: Replace) -> Generator[Making, Decision, list[Any]]:
    """Asks for a decision on what is left until it is not blocked; ends in what is left.

    Args:
        messages: Mappings or `Message` values.
        replace: As for `Guard.sanitize`.

    Raises:
        GuardrailError: A check ended without a verdict, and the policy blocks that.
        ConfigurationError: Not a list of messages, or an empty sentence.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise ConfigurationError("sanitize takes a list of messages.")
    kept = list(messages)
    replaced: set[int] = set()  # ids of entries of ours: what is blocked even so goes
    while kept:
        asked = Making(functools.partial(_given, [_without_id(entry) for entry in kept]))
        decision = yield asked
        if not decision.blocked:
            break
        found = guilty(decision)
        if asked.turn is None or not found:
            raise ConfigurationError("A hook blocked what was never judged, so nothing can be left out.")
        gone: set[int] = set()
        for one in found:
            span = range(one.first, one.last + 1)
            if replace is None or any(id(kept[at]) in replaced for at in span):
                gone.update(span)
                continue
            sentence = _sentence(replace, one)
            for at in span:
                kept[at] = _replaced(kept[at], asked.turn.messages[at], sentence)
                replaced.add(id(kept[at]))
        if gone:
            kept = _dropped(kept, asked.turn.messages, gone, [one for one in decision.judgements if _suspect(one)])
    return kept


def _given(entries: list[Any], load: object) -> list[Any]:
    return entries


def guilty(decision: Decision) -> list[Judgement]:
    """The judgements of a blocked decision to act on now.

    Raises:
        GuardrailError: There is no verdict on something.
    """
    blocked = [one for one in decision.judgements if one.action is Action.BLOCK]
    for error in (decision.error, *(one.error for one in blocked)):
        if error is not None:
            raise error
    if any(not one.in_context for one in blocked):
        return [one for one in blocked if not one.in_context]
    # The newest is blocked only together with what came before it. If something there was found harmful, though its
    # answer was not (see `Policy.history`), that goes, and the newest is judged again.
    before = [one for one in decision.judgements if one.last < decision.judgements[-1].first and _suspect(one)]
    return before or blocked or list(decision.judgements[-1:])  # none is blocked: a hook did it


def _suspect(judgement: Judgement) -> bool:
    return judgement.action > Action.ALLOW and judgement.error is None


def _without_id(entry: Any) -> Any:
    """The entry without the id that a host gave it, which no model sees; anything but a short id is judged."""
    if isinstance(entry, Mapping) and isinstance(entry.get("id"), str | int) and len(str(entry["id"])) <= MAX_ID:
        return {name: value for name, value in entry.items() if name != "id"}
    return entry


# ---- dropping -----------------------------------------------------------------------------------------------------


def _dropped(kept: list[Any], messages: Sequence[Message], gone: set[int], suspects: Sequence[Judgement]) -> list[Any]:
    # What goes takes its tool calls and results along; and a harmful request does not stay without its answer.
    units = _tool_groups(messages) + [set(range(one.first, one.last + 1)) for one in suspects if not one.in_context]
    while torn := [unit for unit in units if not gone.isdisjoint(unit) and not unit <= gone]:
        gone = gone.union(*torn)
    left = [at for at in range(len(kept)) if at not in gone]
    while left and is_blank([messages[left[-1]]]):  # it says nothing, and nothing can be judged that ends so
        left.pop()
    return [kept[at] for at in left]


def _tool_groups(messages: Sequence[Message]) -> list[set[int]]:
    """Indexes of messages that must stay or go together: each that calls tools, with the results of its calls."""
    groups: dict[int, set[int]] = {}
    caller: dict[str, int] = {}  # who called last with this id
    for at, message in enumerate(messages):
        for part in message.content:
            if isinstance(part, ToolCallPart):
                caller[part.id] = at
                groups.setdefault(at, {at})
            elif isinstance(part, ToolResultPart) and part.id in caller:
                groups[caller[part.id]].add(at)
    return list(groups.values())


# ---- replacing ----------------------------------------------------------------------------------------------------


def _sentence(replace: str | Callable[[Judgement], str], judgement: Judgement) -> str:
    sentence = replace if isinstance(replace, str) else replace(judgement)
    if not isinstance(sentence, str) or not sentence.strip():
        raise ConfigurationError("replace= must give a sentence.")
    return sentence


def _replaced(entry: Any, message: Message, sentence: str) -> Any:
    """The entry saying this instead; its role, name and ids as they were."""
    calls = any(isinstance(part, ToolCallPart) for part in message.content)
    silent = all(isinstance(part, ToolCallPart) for part in message.content)
    if isinstance(entry, Message):
        results = tuple(_said_instead(part, sentence) for part in message.content if not _says(part))
        says = (TextPart(sentence),) if any(map(_says, message.content)) else ()
        return Message(message.role, (*says, *results), name=message.name)
    new = {name: (None if name in _SAYING else value) for name, value in entry.items()}
    if not (calls and silent):
        new["content"] = sentence
    if entry.get("tool_calls"):
        new["tool_calls"] = [_call(call) for call in entry["tool_calls"]]
    if entry.get("function_call"):
        new["function_call"] = {"name": entry["function_call"].get("name"), "arguments": "{}"}
    return new


def _says(part: Part) -> bool:
    return not isinstance(part, ToolCallPart | ToolResultPart)


def _said_instead(part: Part, sentence: str) -> Part:
    if isinstance(part, ToolCallPart):
        return ToolCallPart(part.name, "{}", part.id)
    return ToolResultPart((TextPart(sentence),), part.id) if isinstance(part, ToolResultPart) else TextPart(sentence)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    new = {name: call[name] for name in ("id", "type", "index") if name in call}
    kind, arguments = ("custom", "input") if call.get("type") == "custom" else ("function", "arguments")
    return {**new, kind: {"name": call[kind].get("name"), arguments: "{}"}}


# ---- drivers: nothing is decided below ----------------------------------------------------------------------------


def run(flow: Generator[Making, Decision, list[Any]], check: Callable[[Making], Decision]) -> list[Any]:
    """Drive a flow by calling."""
    try:
        asked = next(flow)
        while True:
            asked = flow.send(check(asked))
    except StopIteration as stop:
        left: list[Any] = stop.value
        return left


async def arun(
    flow: Generator[Making, Decision, list[Any]], check: Callable[[Making], Awaitable[Decision]]
) -> list[Any]:
    """Drive a flow by awaiting."""
    try:
        asked = next(flow)
        while True:
            asked = flow.send(await check(asked))
    except StopIteration as stop:
        left: list[Any] = stop.value
        return left
