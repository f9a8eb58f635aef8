"""The stub of ../openai_client, which is a guard and an LLM, with a moderation endpoint and an LLM that calls a tool.

A model name that ends in `_tool` calls the tool `look_up` first, and answers when it has the result. `/v1/moderations`
behaves as the guard does: the same model names, the same delay, the same mark.
"""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "openai_client"))
import stub as plain

CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
others = plain.answer


def moderation(model, harmful):
    result = {
        "flagged": harmful,
        "categories": {name: harmful and name == "violence" for name in CATEGORIES},
        "category_scores": dict.fromkeys(CATEGORIES, 0.5 if harmful else 1e-6),
        "category_applied_input_types": {name: ["text"] for name in CATEGORIES},
    }
    return {"id": "m", "model": model, "results": [result]}


def calling(model):
    function = {"name": "look_up", "arguments": '{"name": "the sea"}'}
    reply = plain.completion(model, None)
    reply["choices"][0]["message"]["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    reply["choices"][0]["finish_reason"] = "tool_calls"
    return reply


async def answer(writer, path, body):
    request = json.loads(body) if body else {}
    model = request.get("model", "")
    kind, _, delay = model.partition("_")
    moderates = path.endswith("/moderations")
    if not moderates and not model.endswith("_tool"):
        await others(writer, path, body)
        return
    if not moderates and request["messages"][-1]["role"] == "tool":
        await others(writer, path, json.dumps({**request, "model": model.removesuffix("_tool")}).encode())
        return
    plain.asked[kind] += 1
    if wait := int(delay.partition("_")[0]):
        await asyncio.sleep(wait / 1000)
    plain.send(writer, moderation(model, plain.MARK.encode() in body) if moderates else calling(model))


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    plain.answer = answer
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(plain.main()))
