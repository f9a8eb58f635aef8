"""CPU per request of Python HTTP clients, for the choice recorded in docs/design/decisions/0002-http-client.md.

Each client posts 2.4 kB of JSON to a bare local server (another process, on another core where there is one), one
request after another on one kept connection, and reads the 0.3 kB reply. Clients take turns, several rounds; the
figures are the CPU time of the client's process and the wall time, per request. A client that is not installed is
skipped and said so.

    python -m venv V && V/bin/pip install aiohttp httpcore httpx niquests pyreqwest requests urllib3 uvloop
    V/bin/python benchmarks/http_client/measure.py
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

BODY = json.dumps({"model": "guard", "messages": [{"role": "user", "content": "x" * 2330}], "max_tokens": 8}).encode()
REPLY = json.dumps(
    {
        "id": "c-1",
        "object": "chat.completion",
        "model": "guard",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "safe"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
    }
).encode()
HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer k"}


class Server(asyncio.Protocol):
    """Answers every request with the same reply, and looks only at its length."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head = self.data[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            if len(self.data) < end + 4 + length:
                return
            self.data = self.data[end + 4 + length :]
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(REPLY)
            self.transport.write(head + REPLY)  # type: ignore[attr-defined]


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


AsyncPost = Callable[[], Awaitable[bytes]]
SyncPost = Callable[[], bytes]


async def aiohttp_async(url: str, run: Callable[[AsyncPost], Awaitable[None]]) -> None:
    import aiohttp

    async with aiohttp.ClientSession(headers=HEADERS, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def post() -> bytes:
            async with session.post(url, data=BODY) as reply:
                return await reply.read()

        await run(post)


async def httpx_async(url: str, run: Callable[[AsyncPost], Awaitable[None]]) -> None:
    import httpx

    async with httpx.AsyncClient(headers=HEADERS, trust_env=False) as client:

        async def post() -> bytes:
            return (await client.post(url, content=BODY)).content

        await run(post)


async def httpcore_async(url: str, run: Callable[[AsyncPost], Awaitable[None]]) -> None:
    import httpcore

    async with httpcore.AsyncConnectionPool() as pool:
        head = {**HEADERS, "Host": "x", "Content-Length": str(len(BODY))}

        async def post() -> bytes:
            return (await pool.request("POST", url, headers=head, content=BODY)).content

        await run(post)


async def niquests_async(url: str, run: Callable[[AsyncPost], Awaitable[None]]) -> None:
    import niquests

    async with niquests.AsyncSession() as session:

        async def post() -> bytes:
            return (await session.post(url, data=BODY, headers=HEADERS)).content or b""

        await run(post)


async def pyreqwest_async(url: str, run: Callable[[AsyncPost], Awaitable[None]]) -> None:
    from pyreqwest.client import ClientBuilder

    async with ClientBuilder().default_headers(HEADERS).build() as client:

        async def post() -> bytes:
            reply = await client.post(url).body_bytes(BODY).build().send()
            return bytes(await reply.bytes())

        await run(post)


def httpx_sync(url: str, run: Callable[[SyncPost], None]) -> None:
    import httpx

    with httpx.Client(headers=HEADERS, trust_env=False) as client:
        run(lambda: client.post(url, content=BODY).content)


def httpcore_sync(url: str, run: Callable[[SyncPost], None]) -> None:
    import httpcore

    head = {**HEADERS, "Host": "x", "Content-Length": str(len(BODY))}
    with httpcore.ConnectionPool() as pool:
        run(lambda: pool.request("POST", url, headers=head, content=BODY).content)


def urllib3_sync(url: str, run: Callable[[SyncPost], None]) -> None:
    import urllib3

    with urllib3.PoolManager(headers=HEADERS) as pool:
        run(lambda: pool.request("POST", url, body=BODY).data)


def requests_sync(url: str, run: Callable[[SyncPost], None]) -> None:
    import requests

    with requests.Session() as session:
        session.trust_env = False
        run(lambda: session.post(url, data=BODY, headers=HEADERS).content)


def pyreqwest_sync(url: str, run: Callable[[SyncPost], None]) -> None:
    from pyreqwest.client import SyncClientBuilder

    with SyncClientBuilder().default_headers(HEADERS).build() as client:
        run(lambda: bytes(client.post(url).body_bytes(BODY).build().send().bytes()))


def stdlib_sync(url: str, run: Callable[[SyncPost], None]) -> None:
    connection = http.client.HTTPConnection(url.split("/")[2])

    def post() -> bytes:
        connection.request("POST", "/v1/chat/completions", body=BODY, headers=HEADERS)
        return connection.getresponse().read()

    run(post)
    connection.close()


async def raw_async(url: str, run: Callable[[AsyncPost], Awaitable[None]]) -> None:
    host, port = url.split("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)

    async def post() -> bytes:
        writer.write(head + BODY)
        got = await reader.readuntil(b"\r\n\r\n")
        return await reader.readexactly(int(got.split(b"content-length:")[1].split(b"\r\n")[0]))

    await run(post)
    writer.close()


CLIENTS: dict[str, Any] = {
    "raw asyncio streams (floor), async": (raw_async, "", False),
    "aiohttp, async": (aiohttp_async, "aiohttp", False),
    "aiohttp, async, uvloop": (aiohttp_async, "aiohttp", True),
    "httpcore, async": (httpcore_async, "httpcore", False),
    "httpx, async": (httpx_async, "httpx", False),
    "niquests, async": (niquests_async, "niquests", False),
    "pyreqwest, async": (pyreqwest_async, "pyreqwest", False),
    "http.client (stdlib), sync": (stdlib_sync, "", False),
    "httpcore, sync": (httpcore_sync, "httpcore", False),
    "httpx, sync": (httpx_sync, "httpx", False),
    "urllib3, sync": (urllib3_sync, "urllib3", False),
    "requests, sync": (requests_sync, "requests", False),
    "pyreqwest, sync": (pyreqwest_sync, "pyreqwest", False),
}


def one_client(name: str, port: int, requests: int) -> None:
    """In a process of its own: print CPU and wall milliseconds per request."""
    client, _, uvloop = CLIENTS[name]
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    times = []

    def note(cpu: float, wall: float) -> None:
        times.append(((time.process_time() - cpu) / requests * 1e3, (time.perf_counter() - wall) / requests * 1e3))

    async def arun(post: AsyncPost) -> None:
        for _ in range(50):
            assert await post() == REPLY
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(requests):
            await post()
        note(cpu, wall)

    def run(post: SyncPost) -> None:
        for _ in range(50):
            assert post() == REPLY
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(requests):
            post()
        note(cpu, wall)

    if "async" in name and uvloop:
        import uvloop as loops

        loops.run(client(url, arun))
    elif "async" in name:
        asyncio.run(client(url, arun))
    else:
        client(url, run)
    print(json.dumps(times[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
        return
    if args.one:
        one_client(args.one[0], int(args.one[1]), args.requests)
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    if len(cores) > 1:
        os.sched_setaffinity(server.pid, {cores[-1]})
        os.sched_setaffinity(0, {cores[0]})
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CLIENTS}
    died = dict.fromkeys(CLIENTS, 0)
    try:
        for _ in range(args.rounds):
            for name in CLIENTS:
                command = [sys.executable, __file__, "--requests", str(args.requests), "--one", name, str(port)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.stdout:
                    found[name].append(tuple(json.loads(done.stdout)))
                    died[name] += done.returncode != 0
                elif "ModuleNotFoundError" not in done.stderr:
                    raise SystemExit(done.stderr)
    finally:
        server.kill()
        server.wait()
    python, load = sys.version.split()[0], os.getloadavg()[0]
    print(f"Python {python}, load {load:.1f}, {args.rounds} rounds of {args.requests} requests")
    print("| client | version | CPU ms, min | CPU ms, median | wall ms, min | crashes at exit |")
    print("|---|---|---|---|---|---|")
    for name, times in found.items():
        package = CLIENTS[name][1]
        if not times:
            print(f"| {name} | not installed | | | | |")
            continue
        version = importlib.metadata.version(package) if package else "-"
        cpu, wall = [t[0] for t in times], [t[1] for t in times]
        figures = f"{min(cpu):.3f} | {statistics.median(cpu):.3f} | {min(wall):.3f}"
        print(f"| {name} | {version} | {figures} | {died[name]} |")


if __name__ == "__main__":
    main()
