"""A scriptable OpenAI-compatible server, in a process of its own, that misbehaves on request. Knows nothing of our code.

Start one with `start()`, or by hand: `python tests/servers.py 8000`. What a request gets is carried by its model name,
`behaviour:argument`; see `BEHAVIOURS`. `GET /_stats` tells what was received since `POST /_reset`.

`/v1` lists one model; `/many/v1` three, `/none/v1` none, `/broken/v1` answers 500; `/guarded/v1` wants the key `sesame`.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

MARK = "ZZBADZZ"
"""What makes a request harmful."""
STOP = "</result>"

BEHAVIOURS = """
ok             like vLLM: knows every field
ignores        like llama.cpp's server: 200, but extra fields change nothing; no log-probabilities
strict         like transformers serve: 422 for fields that it does not know; no log-probabilities
strips         takes the stop string off and does not say so
reasons        takes the reasoning out of the text
slow:S         ok, after S seconds
hang           no reply
hang-body      headers and half of the body, then nothing
drip           a byte every 50 ms, headers too
drip-body      the body a byte every 50 ms
status:N       an error page with status N that quotes the request
busy[:S]       429, with Retry-After: S
busy-date:S    429, with Retry-After as a date in S seconds
redirect       307
html           200 with a web page
cut            200, and the connection ends within the body
reset          the connection is reset
empty          a completion without text
loop           a completion that ran into the token limit
no-choices, no-message, no-content, no-finish, not-json, not-object, nested, surrogate, error-200
               200 with JSON that is no completion
types:FIELD    200 with a number in place of FIELD: choices, message, content, finish_reason, logprobs, token, logprob
huge[:chunked] a body of 9 MiB
gzip           a compressed body that nobody asked for
fail:N         N times 503, then ok
paced:S        ok; asked for an event stream, S seconds between its events (the others: none)
whole          ok, but never an event stream
unstreamed     400 for an event stream, in words that name nothing
cut-events, error-event, no-end, two-choices, not-events
               an event stream that ends half-way: with the connection, with an error, without an end, with another
               choice, with what is no JSON
close          ok, but every connection ends, unannounced, when its second request arrives
"""


# ---- the server ----------------------------------------------------------------------------------------------------

stats: dict[str, Any] = {}


def reset() -> None:
    stats.clear()
    stats.update(requests=[], connections=0, now=0, most=0, failed={}, left=0)


class Hang(Exception):
    """Say nothing more."""


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    served: int = 0

    async def send(self, status: int, body: bytes, *headers: str, cut: int = 0, pause: float = 0.0) -> None:
        head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{h}\r\n" for h in (*headers, "x-request-id: req-77"))
        if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
            head += f"content-length: {len(body)}\r\n"
        data = head.encode() + b"\r\n" + body
        data = data[: len(data) - cut] if cut else data
        if not pause:
            self.writer.write(data)
            await self.writer.drain()
            return
        for byte in data:
            self.writer.write(bytes([byte]))
            await self.writer.drain()
            await asyncio.sleep(pause)

    async def chunk(self, text: str) -> None:
        data = text.encode()
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.writer.drain()

    async def json(self, value: object, status: int = 200, *headers: str) -> None:
        await self.send(status, json.dumps(value).encode(), "content-type: application/json", *headers)

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = Connection(reader, writer)
    try:
        first = True
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            method, path, _ = lines[0].split(" ")
            headers = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if path in ("/_stats", "/_reset"):
                if path == "/_reset":
                    reset()
                await connection.json(stats)
                continue
            stats["connections"] += first
            first = False
            stats["now"] += 1
            stats["most"] = max(stats["most"], stats["now"])
            try:
                await respond(connection, method, path, headers, body)
            finally:
                stats["now"] -= 1
            connection.served += 1
    except Hang:
        await reader.read()  # until the client gives up
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def respond(c: Connection, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
    request = json.loads(body) if body else {}
    stats["requests"].append({"path": path, "headers": headers, "body": request, "at": time.time()})
    if path.startswith("/guarded/") and headers.get("authorization") != "Bearer sesame":
        return await c.json({"error": {"message": "no", "code": "invalid_api_key"}}, 401)
    if path.split("?")[0].endswith("/models"):
        return await models(c, path)
    if not path.split("?")[0].endswith("/v1/chat/completions"):
        return await c.json({"detail": "Not Found"}, 404)
    behaviour, _, argument = str(request.get("model")).partition(":")
    if c.served and behaviour == "close":
        return c.writer.transport.abort()
    fault = FAULTS.get(behaviour)
    if fault is not None and not await fault(c, argument, request):
        return None
    if behaviour == "strict" and (unknown := set(request) - STRICT):
        return await c.json({"detail": f"Unexpected fields in the request: {unknown}"}, 422)
    if request.get("stream") and behaviour == "unstreamed":
        return await c.json({"error": {"message": "we do that otherwise"}}, 400)
    if request.get("stream") and behaviour != "whole":
        return await stream(c, behaviour, argument, request)
    return await c.json(completion(request, behaviour))


async def stream(c: Connection, behaviour: str, argument: str, request: dict[str, Any]) -> None:
    """What `completion` says, as events of four characters and a token's log-probability each."""
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    c.writer.write(head.encode())
    sent = list(events(completion(request, behaviour), bool(request.get("stream_options", {}).get("include_usage"))))
    middle = {
        "error-event": {"error": {"message": json.dumps(request), "code": 500}},
        "two-choices": {"choices": [{"index": 1, "delta": {"content": "x"}}]},
    }.get(behaviour)
    for number, event in enumerate(sent):
        half = number == len(sent) // 2
        if half and behaviour == "cut-events":
            c.writer.close()
            return
        if behaviour == "no-end" and half:
            break
        data = json.dumps(middle if half and middle else event)
        if half and behaviour == "not-events":
            data = "{"
        await c.chunk(f"data: {data}\r\n\r\n")
        if behaviour == "paced":
            await asyncio.sleep(float(argument))
        if c.reader.at_eof():
            stats["left"] += 1
            c.writer.close()
            return
    await c.chunk("data: [DONE]\n\n")
    await c.chunk("")


def events(reply: dict[str, Any], usage: bool) -> Iterator[dict[str, Any]]:
    (choice,) = reply["choices"]
    scored = choice.get("logprobs", {}).get("content", [])
    deltas = [
        {name: choice["message"][name][at : at + 4]}
        for name in ("reasoning_content", "content")
        for at in range(0, len(choice["message"].get(name, "")), 4)
    ]
    yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    for number, delta in enumerate(deltas):
        last = number == len(deltas) - 1
        event: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": choice["finish_reason"] if last else None}
        if "stop_reason" in choice and last:
            event["stop_reason"] = choice["stop_reason"]
        if scored:
            event["logprobs"] = {"content": scored[number:] if last else scored[number : number + 1]}
        yield {"choices": [event]}
    if usage:
        yield {"choices": [], "usage": reply["usage"]}


async def models(c: Connection, path: str) -> None:
    if path.startswith("/broken"):
        return await c.send(500, b"oops")
    names = {"many": ["ok", "ignores", "strict"], "none": []}.get(path.split("/")[1], ["ok"])
    return await c.json({"object": "list", "data": [{"id": n, "object": "model"} for n in names]})


STRICT = {"model", "messages", "temperature", "max_tokens", "stop", "logprobs", "top_logprobs", "seed"}


def completion(request: dict[str, Any], behaviour: str) -> dict[str, Any]:
    """What a guard model would say; fields are honoured as a server of this behaviour does."""
    capable = behaviour not in ("ignores", "strict", "strips", "reasons")
    messages = request["messages"]
    continued = capable and request.get("continue_final_message") and messages[-1]["role"] == "assistant"
    asked = json.dumps(messages[:-1] if continued else messages)
    label = "harmful" if MARK in asked else "unharmful"
    text = f"<think>\nIt is seen. ü\n</think>\n\n<result>\nRequest: {label}\nResponse: None\n{STOP}"
    if continued:
        text = f" {label}"
    pattern = request.get("structured_outputs", {}).get("regex") if capable else None
    if pattern and pattern.isalnum():
        text = pattern
    finish, stop_reason = "stop", None
    for stop in request.get("stop", []):
        if stop in text:
            at, stop_reason = text.index(stop), stop
            text = text[: at + len(stop) if capable and request.get("include_stop_str_in_output") else at]
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if behaviour == "reasons":
        thought, _, rest = text.partition("</think>")
        choice["message"] |= {"content": rest, "reasoning_content": thought.removeprefix("<think>")}
    if capable:
        choice["stop_reason"] = stop_reason
    if capable and request.get("logprobs"):
        choice["logprobs"] = {"content": logprobs(text + (stop_reason or "") + ">x", label)}
    return {
        "id": "c-1", "object": "chat.completion", "model": request["model"], "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }  # fmt: skip


def logprobs(text: str, label: str) -> list[dict[str, Any]]:
    """Tokens of up to four bytes, so that some characters are in two of them; a label is one token of its own."""
    other = {"harmful": "unharmful", "unharmful": "harmful"}[label]
    pieces = [
        piece
        for part in text.partition(f" {label}")
        for piece in (_cut(part) if label not in part else [part.encode()])
    ]
    out = []
    for piece in pieces:
        shown = piece.decode("utf-8", "replace")
        alternatives = [(shown, 0.9), (f" {other}" if shown == f" {label}" else "!", 0.1)]
        top = [{"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in reversed(alternatives)]
        out.append({"token": shown, "logprob": math.log(0.9), "bytes": list(piece), "top_logprobs": top})
    return out


def _cut(text: str) -> list[bytes]:
    data = text.encode()
    return [data[i : i + 4] for i in range(0, len(data), 4)]


# ---- faults: each answers, or returns True to go on as ok ----------------------------------------------------------


async def slow(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    await asyncio.sleep(float(argument))
    return True


async def hang(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    raise Hang


async def hang_body(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    await c.send(200, json.dumps(completion(request, "ok")).encode(), cut=40)
    raise Hang


async def drip(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    await c.send(200, json.dumps(completion(request, "ok")).encode(), pause=0.05)
    return False


async def drip_body(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    c.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(1000):
        c.writer.write(b" ")
        await c.writer.drain()
        await asyncio.sleep(0.05)
    return False


async def status(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    said = {"message": f"refused: {json.dumps(request)[:2000]}", "type": "some_type", "code": "some_code"}
    await c.json({"error": said}, int(argument))
    return False


async def busy(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    await c.json({"error": {}}, 429, *([f"retry-after: {argument}"] if argument else []))
    return False


async def busy_date(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    await c.json({"error": {}}, 429, f"retry-after: {formatdate(time.time() + float(argument), usegmt=True)}")
    return False


async def redirect(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    await c.send(307, b"", "location: /v1/chat/completions")
    return False


async def html(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    await c.send(200, b"<html>Welcome to your gateway</html>", "content-type: text/html")
    return False


async def cut(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    await c.send(200, json.dumps(completion(request, "ok")).encode(), cut=40)
    c.writer.close()
    return False


async def abort(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    c.reset()
    return False


async def huge(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    size = 9 * 1024 * 1024
    if argument == "chunked":
        body = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        await c.send(200, body * 9 + b"0\r\n\r\n", "transfer-encoding: chunked")
    else:
        await c.send(200, b" " * size)
    return False


async def gzip(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    import gzip as g

    await c.send(200, g.compress(json.dumps(completion(request, "ok")).encode()), "content-encoding: gzip")
    return False


async def fail(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    failed = stats["failed"].get(argument, 0)
    if failed >= int(argument):
        return True
    stats["failed"][argument] = failed + 1
    await c.json({"error": {}}, 503)
    return False


async def changed(c: Connection, argument: str, request: dict[str, Any]) -> bool:
    behaviour = str(request["model"]).partition(":")[0]
    reply = completion(request, "ok")
    choice = reply["choices"][0]
    match behaviour:
        case "empty":
            choice["message"]["content"] = ""
            choice["stop_reason"] = None
        case "loop":
            choice |= {"finish_reason": "length", "stop_reason": None}
            choice["message"]["content"] = "<think>" + "and " * 50
        case "no-choices":
            reply["choices"] = []
        case "no-message":
            del choice["message"]
        case "no-content":
            choice["message"]["content"] = None
        case "no-finish":
            choice["finish_reason"] = None
        case "surrogate":
            choice["message"]["content"] = "\ud800"
        case "error-200":
            reply = {"error": {"message": json.dumps(request)}}
        case "types":
            token = {"token": "x", "logprob": 0, "top_logprobs": []}
            choice["logprobs"] = {"content": [token]}
            holders = {"choices": reply, "message": choice, "content": choice["message"], "finish_reason": choice,
                       "logprobs": choice, "token": token, "logprob": token}  # fmt: skip
            holders[argument][argument] = {"logprob": "x"}.get(argument, 7)
    body = {"not-json": b"{", "not-object": b"[1]", "nested": b"[" * 100_000}.get(behaviour)
    await c.send(200, json.dumps(reply).encode() if body is None else body)
    return False


FAULTS: dict[str, Any] = {
    "slow": slow, "hang": hang, "hang-body": hang_body, "drip": drip, "drip-body": drip_body, "status": status,
    "busy": busy, "busy-date": busy_date, "redirect": redirect, "html": html, "cut": cut, "reset": abort, "huge": huge,
    "gzip": gzip, "fail": fail,
    **dict.fromkeys(
        ("empty", "loop", "no-choices", "no-message", "no-content", "no-finish", "surrogate", "error-200", "types",
         "not-json", "not-object", "nested"), changed
    ),
}  # fmt: skip


async def main(port: int, certificate: str = "") -> None:
    reset()
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    server = await asyncio.start_server(handle, "127.0.0.1", port, limit=2**20, backlog=1024, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


# ---- for tests -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaultServer:
    """A running server."""

    root: str
    """URL without a slash at its end."""

    @property
    def url(self) -> str:
        """The API's base URL."""
        return f"{self.root}/v1"

    def stats(self) -> dict[str, Any]:
        """`requests` (path, headers, body, at), `connections`, and `most`: requests under way at a time."""
        return self._get("/_stats")

    def reset(self) -> None:
        """Forget what was received."""
        self._get("/_reset")

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.root + path, timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found


@contextmanager
def start(certificate: str = "") -> Iterator[FaultServer]:
    """A server on a free port of this machine; it ends with the block.

    `certificate`: a PEM file with a key and its certificate; the server then speaks TLS, and its stats can't be read.
    """
    process = subprocess.Popen([sys.executable, __file__, "0", certificate], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        scheme = "https" if certificate else "http"
        yield FaultServer(f"{scheme}://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 0, *sys.argv[2:3]))
