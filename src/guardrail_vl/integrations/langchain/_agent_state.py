"""What a guarded agent's state holds of decisions, and what is read off its messages. Knows no guard."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Annotated, Any, Final, NotRequired

from langchain.agents.middleware import AgentState
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.types import Command

from guardrail_vl.integrations.langchain._calls import NOTE, note
from guardrail_vl.verdict import Decision

_TRAIL: Final = 500
_REMEMBERED: Final = 10_000


def _appended(before: list[dict[str, Any]] | None, new: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    known = list(before or ())
    ids = {one["id"] for one in known}
    return [*known, *(one for one in new or () if one["id"] not in ids)][-_TRAIL:]


class GuardState(AgentState):
    """The agent's state, with the decisions."""

    guardrail: NotRequired[Annotated[list[dict[str, Any]], _appended]]
    """Decisions as plain JSON, oldest first; the newest 500."""


class Approved:
    """Tool calls that were judged as they are, the newest. Thread-safe; what it has forgotten is judged again."""

    def __init__(self) -> None:
        self._calls: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def add(self, calls: Iterable[Mapping[str, Any]]) -> None:
        """Remember calls."""
        with self._lock:
            for call in calls:
                self._calls[_digest(call)] = None
            while len(self._calls) > _REMEMBERED:
                self._calls.popitem(last=False)

    def __contains__(self, call: Mapping[str, Any]) -> bool:
        return _digest(call) in self._calls


def _digest(call: Mapping[str, Any]) -> bytes:
    text = json.dumps([call["id"], call["name"], call["args"]], sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def messages_of(state: Any) -> Sequence[BaseMessage]:
    """The messages in a state, whatever it is: a mapping, a list, or an object."""
    if isinstance(state, list):
        return state
    found = state.get("messages") if isinstance(state, Mapping) else getattr(state, "messages", None)
    return found or ()


def note_of(message: BaseMessage) -> Mapping[str, Any]:
    """What a message carries of decisions."""
    found = message.response_metadata.get(NOTE)
    return found if isinstance(found, Mapping) else {}


def last_answer(messages: Sequence[BaseMessage]) -> AIMessage | None:
    """The newest message of the assistant."""
    return next((one for one in reversed(messages) if isinstance(one, AIMessage)), None)


def new_decisions(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The decisions on the newest answer and on what tools gave before it, oldest first."""
    out: list[list[dict[str, Any]]] = []
    answered = False
    for message in reversed(messages):
        if isinstance(message, HumanMessage) or (isinstance(message, AIMessage) and answered):
            break
        answered = answered or isinstance(message, AIMessage)
        out.append(list(note_of(message).get("decisions", ())))
    return [one for made in reversed(out) for one in made]


def explained(messages: Sequence[BaseMessage]) -> int:
    """Answers in a row, up to the newest, in which a tool call was blocked: as the results of the newest say."""
    count = 0
    for message in reversed(messages):
        if not isinstance(message, ToolMessage):
            break
        count = max(count, note_of(message).get("not_run") or 0)
    return count


def ended_by_tool(messages: Sequence[BaseMessage]) -> bool:
    """Whether one of the newest tool results ends the run."""
    for message in reversed(messages):
        if not isinstance(message, ToolMessage):
            return False
        if note_of(message).get("end"):
            return True
    return False


def noted_result(message: BaseMessage, decisions: Sequence[Decision], **marks: int) -> BaseMessage:
    """A tool's result with the decisions on it."""
    metadata = {**message.response_metadata, NOTE: {**note(decisions), **{k: v for k, v in marks.items() if v}}}
    return message.model_copy(update={"response_metadata": metadata})


def each_message(result: Any, change: Callable[[BaseMessage], BaseMessage]) -> Any:
    """What a tool call gave, with every tool message changed."""
    if isinstance(result, ToolMessage):
        return change(result)
    if isinstance(result, list):
        return [each_message(one, change) for one in result]
    if isinstance(result, Command) and isinstance(result.update, Mapping) and result.update.get("messages"):
        listed = result.update["messages"]
        changed = each_message(listed if isinstance(listed, list) else [listed], change)
        return replace(result, update={**result.update, "messages": changed})
    return result
