"""A guard and an LLM in one: an OpenAI-compatible server whose model name says how it behaves.

`guard-FORMAT-DELAY` answers a verdict in that prompt format after DELAY ms (`hang` never answers); `llm-DELAY` answers
twenty words. Bare ASGI, so that its own cost is small and the same for everyone.
"""

import asyncio
import json
import sys

import uvicorn

VERDICTS = {
    "safe": "safe",
    "yesno": "No",
    "guardreasoner": "<think># Task 1\n\n## Reasoning Step 1\nFine.\n</think>\n\n<result>\nRequest: unharmful\nResponse: unharmful\n</result>",
}
REPLY = "The sea is wide and calm tonight, and every wave that comes ashore leaves a shell behind for us."
requests = 0


async def app(scope, receive, send):
    global requests
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/requests":
        answer, requests = {"requests": requests}, 0
        return await reply(send, answer)
    requests += 1
    model = json.loads(body)["model"] if body else "llm-0"
    kind, *rest = model.split("-")
    if "hang" in rest:
        return await asyncio.sleep(60)
    if rest[-1] != "0":
        await asyncio.sleep(int(rest[-1]) / 1000)
    content = VERDICTS[rest[0]] if kind == "guard" else REPLY
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "finish_reason": "stop",
        "logprobs": None,
    }
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    await reply(
        send,
        {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage},
    )


async def reply(send, answer):
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    uvicorn.run(
        app, port=int(sys.argv[1]), log_level="error", access_log=False, loop="uvloop", http="httptools", backlog=1024
    )
