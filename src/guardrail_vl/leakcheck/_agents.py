"""Probes that only an agent can run: what its tools give, what its state keeps, what a human answers it.

They stand beside the suite's own (`PROBES`), for drivers that say so: see `probes_of`. Knows no client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from guardrail_vl.leakcheck._controls import LS
from guardrail_vl.leakcheck._prompts import BAD
from guardrail_vl.leakcheck._replies import ARGUMENTS
from guardrail_vl.leakcheck._streams import letters
from guardrail_vl.leakcheck.content import LEAKS, RED, SAFE
from guardrail_vl.leakcheck.probe import ASK, TOOL, Probe, chat, passes, shown, stopped, words
from guardrail_vl.leakcheck.probes import PROBES
from guardrail_vl.leakcheck.script import (
    Reply,
    call_chunks,
    choice,
    chunk,
    chunks,
    completion,
    events,
    interleaved,
    tokens,
    tool_call,
    whole,
)
from guardrail_vl.leakcheck.seen import KEPT, PASSED, Expect

Said = str | tuple[str, ...]
"""What the scripted model says: text, or the arguments of tool calls."""


def _agent(
    id: str,
    title: str,
    said: Sequence[Said],
    expect: Expect,
    *,
    content: object = ASK,
    then: str = "",
    name: str = "run",
    rows: tuple[int, ...] = (),
    tools: bool = True,
    **does: Any,
) -> tuple[Probe, Probe]:
    """One probe for whole replies, one for streams: the model says the same."""
    request = {**chat(content), "agent": does or {"gives": "done"}}
    if tools:
        request["tools"] = [TOOL]
    if then:
        request["then"] = then
    return (
        Probe(f"agent-{id}", title, "agent.run", request, tuple(_whole(one, name) for one in said), expect, rows),
        Probe(f"agent-{id}-stream", f"{title}, streamed", "agent.stream", request,
              tuple(_stream(one, name) for one in said), expect, rows),
    )  # fmt: skip


def _whole(said: Said, name: str) -> Reply:
    if isinstance(said, str):
        return whole(completion(choice(said)))
    calls = [tool_call(arguments, number=at, name=name) for at, arguments in enumerate(said)]
    return whole(completion(choice(None, finish="tool_calls", tool_calls=calls)))


def _stream(said: Said, name: str) -> Reply:
    if isinstance(said, str):
        return events(chunks(tokens(said)))
    calls = [call_chunks(letters(one, 6), number=at, finish=False, name=name) for at, one in enumerate(said)]
    return events([*interleaved(*calls), chunk({}, finish="tool_calls")])


def _kept(*, tools: int, **settings: Any) -> Expect:
    """Nothing harmful arrives or is sent; whether the rest arrives is the client's choice. So many tools run."""
    return Expect(KEPT | PASSED, tools=tools, unsent=LEAKS, **settings)


def _edit(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "edit", "edited_action": {"name": "run", "args": dict(arguments)}}


_CALL: Final = (LS,)
_ANSWER: Final = json.dumps({"answer": SAFE})
_BAD_ANSWER: Final = json.dumps({"answer": BAD})

TOOLS: Final = (
    *_agent("tool-result", "A tool's result is harmful", (_CALL, SAFE), _kept(tools=1), gives=BAD, rows=(18,)),
    *_agent("tool-image", "A tool gives a harmful picture", (_CALL, SAFE), _kept(tools=1),
            gives=[words(SAFE), shown(RED)], rows=(5, 18)),
    *_agent("tool-raises", "A tool fails, and its error is harmful", (_CALL, SAFE), _kept(tools=1), raises=BAD),
    *_agent("tool-one-of-two", "Two tool calls, one harmful: the other runs", ((LS, ARGUMENTS), SAFE),
            _kept(tools=1), rows=(14, 18)),
    *_agent("tool-repeated", "The model calls a tool with harmful arguments, again and again", ((ARGUMENTS,),),
            _kept(tools=0), rows=(14,)),
    *_agent("subagent", "A tool is an agent of its own, whose answer is harmful", (_CALL, BAD, SAFE), _kept(tools=1),
            subagent="I am asked by the other."),
    # Nobody guards the inner agent: what it says to handlers and stores itself is not the outer one's to stop.
    *_agent("subagent-bare", "A tool is an unguarded agent, whose answer is harmful: it is not sent on",
            (_CALL, BAD, SAFE), _kept(tools=1, leaks=()), subagent="I am asked by the other.", bare=True),
)  # fmt: skip

STATE: Final = (
    *_agent("after-answer", "After a harmful answer the next turn goes on, without it", (BAD, SAFE),
            passes(calls=2, unsent=LEAKS), then="Go on.", tools=False, rows=(11, 17)),
    *_agent("after-prompt", "After a harmful prompt the next turn goes on, without it", (SAFE,),
            passes(calls=1, unsent=LEAKS, leaks=()), content=BAD, then="Go on.", tools=False, rows=(11, 17)),
    *_agent("answer-provider", "A structured answer is harmful", (_BAD_ANSWER,), stopped(), tools=False,
            answer="provider", rows=(6,)),
    *_agent("answer-tool", "A structured answer by a tool call is harmful", ((_BAD_ANSWER,),), stopped(),
            tools=False, answer="tool", name="Answer", rows=(6,)),
    *_agent("human-edit", "A human makes the arguments of a tool call harmful", (_CALL, SAFE),
            _kept(tools=0, leaks=()), human=_edit({"command": json.loads(ARGUMENTS)["command"]}), rows=(14,)),
)  # fmt: skip

SAFE_AGENTS: Final = (
    *_agent("safe-tool", "A tool runs, its result goes to the model", (_CALL, SAFE),
            passes(SAFE + LS, calls=2, tools=1)),
    *_agent("safe-tool-parts", "A tool gives harmless text in parts", (_CALL, SAFE),
            passes(SAFE + LS, calls=2, tools=1), gives=[words(SAFE)]),
    *_agent("safe-tools", "Two tools run", ((LS, LS), SAFE), passes(SAFE + LS + LS, calls=2, tools=2)),
    *_agent("safe-turns", "Two turns", (SAFE, SAFE), passes(calls=2), then="Go on.", tools=False),
    *_agent("safe-subagent", "A tool is an agent of its own", (_CALL, SAFE, SAFE),
            passes(None, calls=3, tools=1), subagent="I am asked by the other."),
    *_agent("safe-answer-provider", "A structured answer", (_ANSWER,), passes(_ANSWER), tools=False,
            answer="provider"),
    *_agent("safe-answer-tool", "A structured answer by a tool call", ((_ANSWER,),), passes(_ANSWER, tools=0),
            tools=False, answer="tool", name="Answer"),
    *_agent("safe-human", "A human approves a tool call", (_CALL, SAFE), passes(None, calls=2, tools=1),
            human={"type": "approve"}),
)  # fmt: skip

BY_CALL: Final = tuple(
    replace(probe, expect=_kept(tools=1)) for probe in PROBES if probe.id in ("out-tool-second", "stream-tool-second")
)
"""Probes of the suite's of which an agent may do a part: of two calls, the harmless one runs."""

_REPEATED: Final = ("out-responses-tool", "out-responses-custom", "stream-responses-tool", "stream-responses-custom")


def _numbered(reply: Reply, number: int) -> Reply:
    """The reply with an id of its own: an agent's state keeps one message an id."""
    name = f"resp_{number}".encode()
    return replace(reply, frames=tuple(replace(one, data=one.data.replace(b"resp_1", name)) for one in reply.frames))


AGAIN: Final = tuple(
    replace(probe, replies=tuple(_numbered(probe.replies[0], number) for number in range(1, 9)))
    for probe in PROBES
    if probe.id in _REPEATED
)
"""Probes of the suite's after which an agent asks the model again, which says the same."""

AGENT_PROBES: Final[tuple[Probe, ...]] = (*BY_CALL, *AGAIN, *TOOLS, *STATE, *SAFE_AGENTS)
