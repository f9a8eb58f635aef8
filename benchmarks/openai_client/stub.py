"""A guard and an LLM in one: a bare HTTP server on loopback whose model name says how it behaves.

`guard_DELAY_FORMAT` judges after DELAY ms; content is harmful where `MARK` is in it. `llm_DELAY_COUNT_RATE_BAD` answers
COUNT tokens after DELAY ms, streamed at RATE a second (0: at once), the one numbered BAD being `MARK` (-1: none).
Nothing but asyncio, so that it needs no installation and its own cost is small.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys

MARK = "ZZBADZZ"
SAFE_LABELS = {"safe": ("safe", "unsafe"), "yesno": ("No", "Yes")}
VERDICT = (
    "<think># Task 1\n\n## Reasoning Step 1\nFine.\n</think>\n\n<result>\nRequest: unharmful\nResponse: {}\n</result>"
)
asked = {"guard": 0, "llm": 0}


def token(i, bad=-1):
    return f"{MARK} " if i == bad else f"w{i}. " if i % 15 == 14 else f"w{i} "


def verdict(how, harmful):
    if how in SAFE_LABELS:
        return SAFE_LABELS[how][harmful]
    return VERDICT.format("harmful" if harmful else "unharmful")


def completion(model, text):
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}


def frame(model, delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def send(writer, answer):
    body = json.dumps(answer).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def stream(writer, model, count, rate, bad):
    def put(data):
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    clock = asyncio.get_running_loop().time
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    start = clock()
    put(frame(model, {"role": "assistant", "content": ""}))
    for i in range(count):
        if rate:
            await asyncio.sleep(start + (i + 1) / rate - clock())
        if writer.is_closing():  # the client has seen enough
            return
        put(frame(model, {"content": token(i, bad)}))
        await writer.drain()
    put(frame(model, {}, "stop") + b"data: [DONE]\n\n")
    writer.write(b"0\r\n\r\n")


async def answer(writer, path, body):
    global asked
    if path == "/asked":
        send(writer, asked)
        asked = dict.fromkeys(asked, 0)
        return
    request = json.loads(body)
    kind, delay, *rest = request["model"].split("_")
    asked[kind] += 1
    if int(delay):
        await asyncio.sleep(int(delay) / 1000)
    if kind == "guard":
        send(writer, completion(request["model"], verdict(rest[0], MARK.encode() in body)))
        return
    count, rate, bad = map(int, rest)
    if request.get("stream"):
        await stream(writer, request["model"], count, rate, bad)
    else:
        send(writer, completion(request["model"], "".join(token(i, bad) for i in range(count))))


async def connection(reader, writer):
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            lengths = (line.partition(":")[2] for line in head if line.lower().startswith("content-length:"))
            body = await reader.readexactly(int(next(lengths, "0")))
            await answer(writer, head[0].split()[1], body)
            await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main()))
