"""An http(s) image URL becomes its bytes: once, under limits, and never from inside the network we run in.

Only used where the caller allows it (`Guard(fetch_images=True)`). The bytes go on, so what is judged is what is sent.

The address check holds against DNS rebinding and redirects: the host is resolved here, every address it resolves to
must be public, and the connection goes to that very address; the name is then only used for `Host` and TLS. Each
redirect starts again from the top. No proxy, no cookies, no credentials, no content encoding.
What a fetch does is written once, as a generator of steps (`_plan`); two drivers take the steps. Knows no pictures: it
is `media` that finds out what the bytes are.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import httpx

from guardrail_vl._address import is_disguised, is_host, is_public, resolve
from guardrail_vl.errors import ContentError
from guardrail_vl.media import DEFAULT_LIMITS, ImageLimits

Resolver = Callable[[str, int], Sequence[str]]
"""From a host name and a port to IP addresses in text; raises `OSError` when there are none."""

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for a whole fetch: look-ups, redirects and every byte."""
DEFAULT_PORTS: Final = frozenset({80, 443})
MAX_REDIRECTS: Final = 3
_MAX_URL: Final = 8192
_MAX_ADDRESSES: Final = 3
"""How many of a host's addresses are tried when the first can't be reached."""
_CONNECT_TIMEOUT: Final = 3.0
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_HEADERS: Final = {
    "Accept": "image/png,image/jpeg,image/webp,image/gif,image/bmp",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "guardrail-vl",
}


# ---- the plan --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Resolve:
    """A step that is answered with addresses, or with None when the look-up fails."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class _Get:
    """A step that is answered with a reply, or with None when nothing listens."""

    url: httpx.URL
    headers: dict[str, str]
    sni: str


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    location: str
    body: bytes


_Plan = Generator[_Resolve | _Get, Any, bytes]


def _plan(text: str, ports: Collection[int], allow_address: Callable[[str], bool]) -> _Plan:
    """The steps of one fetch. Returns the bytes.

    Raises:
        ContentError: A URL, an address or a reply that is refused.
    """
    url, port = _checked_url(text, ports)
    for _ in range(MAX_REDIRECTS + 1):
        host = url.raw_host.decode("ascii").removesuffix(".")
        addresses: Sequence[str] | None = yield _Resolve(host, port)
        if not addresses:
            raise ContentError("The picture's host is not known.")
        # One private address among public ones is how a name is made to pass a check and then point inside.
        if not all(allow_address(address) for address in addresses):
            raise ContentError(
                "The picture's host has an address that is not on the public internet.",
                hint="Pass the picture's bytes.",
            )
        name = f"[{host}]" if ":" in host else host
        headers = _HEADERS | {"Host": name if url.port is None else f"{name}:{url.port}"}
        reply: _Reply | None = None
        for address in addresses[:_MAX_ADDRESSES]:
            reply = yield _Get(url.copy_with(host=address, fragment=None), headers, host)
            if reply is not None:
                break
        if reply is None:
            raise ContentError("The picture's host can't be reached.")
        if reply.status in _REDIRECTS:
            url, port = _next_url(url, reply.location, ports)
            continue
        if reply.status != 200:
            raise ContentError(f"The picture's host answered with status {reply.status}.")
        return reply.body
    raise ContentError(f"The picture's URL redirects more than {MAX_REDIRECTS} times.")


def _checked_url(text: str, ports: Collection[int]) -> tuple[httpx.URL, int]:
    if len(text) > _MAX_URL:
        raise ContentError(f"The picture's URL has more than {_MAX_URL} characters.")
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        raise ContentError("The picture's URL is malformed.") from None
    if url.scheme not in ("http", "https"):
        raise ContentError("Pictures are fetched over http and https only.")
    if not host:
        raise ContentError("The picture's URL names no host.")
    if not is_host(host):
        raise ContentError("The picture's URL names a host that can't exist.")
    if url.userinfo:
        raise ContentError("A picture's URL may hold no user name or password.")
    if is_disguised(host):
        raise ContentError("The picture's host is a number in disguise.", hint="Pass the picture's bytes.")
    port = url.port if url.port is not None else 443 if url.scheme == "https" else 80
    if port not in ports:
        raise ContentError(f"Pictures are not fetched from port {port}.")
    return url, port


def _next_url(url: httpx.URL, location: str, ports: Collection[int]) -> tuple[httpx.URL, int]:
    if not location:
        raise ContentError("The picture's URL redirects to nowhere.")
    try:
        joined = url.join(location)
    except (httpx.InvalidURL, ValueError):
        raise ContentError("The picture's URL redirects to a malformed one.") from None
    if url.scheme == "https" and joined.scheme == "http":
        raise ContentError("The picture's URL redirects from https to http.")
    return _checked_url(str(joined), ports)


class _Body:
    """Gathers a reply under a cap. Neither the length nor the type that a server declares is believed."""

    def __init__(self, response: httpx.Response, limits: ImageLimits) -> None:
        self._response = response
        self._limits = limits
        self._chunks: list[bytes] = []
        self._size = 0
        self.wanted = response.status_code == 200
        if self.wanted and response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ContentError("The picture's host sent an encoding that was not asked for.")
        declared = response.headers.get("content-length", "")
        if self.wanted and declared.isdecimal() and len(declared) < 20:
            self._count(int(declared))

    def _count(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise ContentError(f"The picture has more than {self._limits.max_bytes} bytes.", hint="Scale it down.")

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        self._count(self._size)
        self._chunks.append(chunk)

    def reply(self) -> _Reply:
        return _Reply(self._response.status_code, self._response.headers.get("location", ""), b"".join(self._chunks))


def _late(timeout: float) -> ContentError:
    return ContentError(f"The picture could not be fetched within {timeout:g} seconds.")


@contextmanager
def _door() -> Iterator[None]:
    """Whatever the network does leaves as a `ContentError`; a picture that can't be had can't be judged."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
        raise ContentError(f"The picture could not be fetched: {type(error).__name__}.") from None


@cache
def _tls() -> ssl.SSLContext:
    # Reading the certificates takes longer than many a fetch.
    return httpx.create_ssl_context(trust_env=False)


def _client_options(tls: ssl.SSLContext | None) -> dict[str, Any]:
    # A client per step: no cookie and no connection outlives it.
    return {"verify": tls or _tls(), "trust_env": False, "follow_redirects": False}


def _request(client: httpx.Client | httpx.AsyncClient, step: _Get, left: float, **extensions: Any) -> httpx.Request:
    left = max(left, 0.001)
    timeout = httpx.Timeout(left, connect=min(left, _CONNECT_TIMEOUT))
    extensions["sni_hostname"] = step.sni
    return client.build_request("GET", step.url, headers=step.headers, timeout=timeout, extensions=extensions)


def _look_up(step: _Resolve, resolver: Resolver, deliver: Callable[[Sequence[str] | None], object]) -> None:
    """Look a host up in a thread of its own: the system's look-up knows no timeout, and may outlive the fetch."""

    def work() -> None:
        try:
            found = resolver(step.host, step.port)
        except Exception:  # no such name, a name that can't be encoded, a resolver of the caller's that fails
            found = None
        with suppress(RuntimeError):  # the event loop is gone
            deliver(found)

    threading.Thread(target=work, daemon=True, name="guardrail-vl-resolve").start()


# ---- two drivers -----------------------------------------------------------------------------------------------


def fetch(
    url: str,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    timeout: float = DEFAULT_TIMEOUT,
    ports: Collection[int] = DEFAULT_PORTS,
    resolver: Resolver = resolve,
    allow_address: Callable[[str], bool] = is_public,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """The bytes behind an http(s) URL.

    Args:
        url: Where the picture is.
        limits: `max_bytes` is enforced while the bytes arrive.
        timeout: Seconds for all of it.
        ports: The ports that may be asked.
        resolver: From host and port to addresses.
        allow_address: Which addresses may be asked. Widen it only for hosts that you own.
        tls: Which certificates are trusted; None: those that httpx trusts.

    Raises:
        ContentError: Refused, too large, too slow or not to be had. The message holds no URL.
    """
    deadline = time.monotonic() + timeout
    plan = _plan(url, ports, allow_address)
    answer: object = None
    while True:
        try:
            step = plan.send(answer)
        except StopIteration as done:
            body: bytes = done.value
            return body
        left = deadline - time.monotonic()
        if left <= 0:
            raise _late(timeout)
        with _Watch(left) as watch:
            try:
                with _door():
                    if isinstance(step, _Resolve):
                        answer = _resolve(step, resolver, left)
                    else:
                        answer = _get(step, limits, left, tls, watch)
            except ContentError:
                if time.monotonic() >= deadline:
                    raise _late(timeout) from None
                raise
        # A body without a declared length ends where the connection does: also where the watch cut it.
        if time.monotonic() >= deadline:
            raise _late(timeout)


def _resolve(step: _Resolve, resolver: Resolver, left: float) -> Sequence[str] | None:
    found: queue.SimpleQueue[Sequence[str] | None] = queue.SimpleQueue()
    _look_up(step, resolver, found.put)
    try:
        return found.get(timeout=left)
    except queue.Empty:
        return None


def _get(step: _Get, limits: ImageLimits, left: float, tls: ssl.SSLContext | None, watch: _Watch) -> _Reply | None:
    with httpx.Client(**_client_options(tls)) as client:
        try:
            response = client.send(_request(client, step, left, trace=watch.trace), stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return None
        try:
            body = _Body(response, limits)
            if body.wanted:
                for chunk in response.iter_raw():
                    body.add(chunk)
            return body.reply()
        finally:
            response.close()


class _Watch:
    """Cuts the connection at the deadline: timeouts of the client start anew at every byte that trickles in."""

    def __init__(self, seconds: float) -> None:
        self._late = False
        self._stream: Any = None
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._stream = None

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Called by the client at each of its stages; remembers the newest connection."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]
            if self._late:
                self._cut()

    def _cut(self) -> None:
        self._late = True
        stream = self._stream
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


async def afetch(
    url: str,
    limits: ImageLimits = DEFAULT_LIMITS,
    *,
    timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109 - the same words as `fetch`
    ports: Collection[int] = DEFAULT_PORTS,
    resolver: Resolver = resolve,
    allow_address: Callable[[str], bool] = is_public,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """`fetch` without blocking the event loop."""
    deadline = time.monotonic() + timeout
    plan = _plan(url, ports, allow_address)
    answer: object = None
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    step = plan.send(answer)
                except StopIteration as done:
                    body: bytes = done.value
                    return body
                with _door():
                    if isinstance(step, _Resolve):
                        answer = await _aresolve(step, resolver)
                    else:
                        answer = await _aget(step, limits, deadline - time.monotonic(), tls)
    except TimeoutError:
        raise _late(timeout) from None


async def _aresolve(step: _Resolve, resolver: Resolver) -> Sequence[str] | None:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Sequence[str] | None] = loop.create_future()

    def settle(addresses: Sequence[str] | None) -> None:
        if not found.done():
            found.set_result(addresses)

    _look_up(step, resolver, lambda addresses: loop.call_soon_threadsafe(settle, addresses))
    return await found


async def _aget(step: _Get, limits: ImageLimits, left: float, tls: ssl.SSLContext | None) -> _Reply | None:
    connections: list[Any] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            connections.append(info["return_value"])

    async with httpx.AsyncClient(**_client_options(tls)) as client:
        try:
            response = await client.send(_request(client, step, left, trace=trace), stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return None
        except BaseException:
            # The client forgets the connection when it is cancelled amid a TLS handshake.
            for connection in connections:
                await connection.aclose()
            raise
        try:
            body = _Body(response, limits)
            if body.wanted:
                async for chunk in response.aiter_raw():
                    body.add(chunk)
            return body.reply()
        finally:
            await response.aclose()
