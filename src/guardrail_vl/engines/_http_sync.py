"""HTTP by calling, over httpcore, within a total time that holds even if the server sends a byte now and then.

httpcore's own timeouts are for one read each. Here every operation on a socket gets what is left of the request's time,
which the thread that makes the request carries. Safe for threads; not for forks (see `_live`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

import httpcore

from guardrail_vl.engines._http import CONNECT, KEEP_ALIVE, MAX_BODY, Reply, Request, Target, TransportError

_SLICE: Final = 256 * 1024


class _Clock(threading.local):
    at: float = 0.0
    """When this thread's request must end, in `time.monotonic()` seconds."""

    def left(self, error: type[Exception]) -> float:
        left = self.at - time.monotonic()
        if left <= 0:
            raise error
        return left


class _Stream(httpcore.NetworkStream):
    """A socket on which every operation ends with the request."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        sock = self._stream.get_extra_info("socket")
        view = memoryview(buffer)
        try:
            while view:
                sock.settimeout(self._clock.left(httpcore.WriteTimeout))
                view = view[sock.send(view[:_SLICE]) :]
        except TimeoutError:
            raise httpcore.WriteTimeout from None
        except OSError as error:
            raise httpcore.WriteError(type(error).__name__) from None

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = min(CONNECT, self._clock.left(httpcore.ConnectTimeout))
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        end = time.monotonic() + min(CONNECT, self._clock.left(httpcore.ConnectTimeout))
        addresses = _resolve(host, port, end)
        failure: Exception = httpcore.ConnectTimeout()
        for tried, address in enumerate(addresses):
            share = (end - time.monotonic()) / (len(addresses) - tried)
            if share <= 0:
                break
            try:
                stream = self._backend.connect_tcp(address, port, share, local_address, socket_options)
                return _Stream(stream, self._clock)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def _resolve(host: str, port: int, end: float) -> list[str]:
    """The host's addresses. The system's lookup knows no timeout, so it gets a thread, which may outlive this call."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found: list[str] = []
    failed: list[str] = []

    def look_up() -> None:
        try:
            found.extend(dict.fromkeys(str(i[4][0]) for i in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:
            failed.append(type(error).__name__)

    thread = threading.Thread(target=look_up, name="guardrail-vl-dns", daemon=True)
    thread.start()
    thread.join(max(0.0, end - time.monotonic()))
    if failed:
        raise httpcore.ConnectError(failed[0])
    if not found:
        raise httpcore.ConnectTimeout
    return found


class SyncTransport:
    """A connection pool for threads.

    Args:
        target: Where requests go.
    """

    def __init__(self, target: Target) -> None:
        self._clock = _Clock()
        self._headers = {"Accept-Encoding": "identity", **target.headers}
        self._pool = httpcore.ConnectionPool(
            ssl_context=target.tls,
            max_connections=target.max_connections,
            max_keepalive_connections=target.max_connections,
            keepalive_expiry=KEEP_ALIVE,
            network_backend=_Backend(self._clock),
        )

    def send(self, request: Request, timeout: float) -> Reply:
        """Send a request and read all of the reply.

        Args:
            request: What to send.
            timeout: Seconds for all of it.

        Raises:
            TransportError: There was no whole reply within that time.
        """
        self._clock.at = time.monotonic() + timeout
        begun: list[int] = []
        try:
            return self._send(request, timeout, begun)
        except TransportError:
            raise
        except Exception as error:
            failure = _failure(error, replying=bool(begun))
        raise failure  # outside of the handler: the foreign error is not kept

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        self._pool.close()

    def __del__(self) -> None:
        # Nobody is in it any more. Without this, each open socket of a forgotten engine would warn.
        with contextlib.suppress(Exception):
            self._pool.close()

    def _send(self, request: Request, timeout: float, begun: list[int]) -> Reply:
        url = httpcore.URL(request.url)
        headers: list[tuple[bytes | str, bytes | str]] = [("Host", _host(url)), *self._headers.items()]
        if request.method == "POST":
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(request.body)))]
        message = httpcore.Request(
            request.method, url, headers=headers, content=request.body, extensions={"timeout": {"pool": timeout}}
        )
        response = self._pool.handle_request(message)
        begun.append(response.status)
        chunks: list[bytes] = []
        size = 0
        try:
            for chunk in response.iter_stream():
                size += len(chunk)
                if size > MAX_BODY:
                    raise TransportError("too_large")
                chunks.append(chunk)
        finally:
            response.close()
        names = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return Reply(response.status, names, b"".join(chunks))


def _host(url: httpcore.URL) -> str:
    # httpcore keeps an IPv6 address without its brackets.
    host = url.host.decode("ascii")
    host = f"[{host}]" if ":" in host else host
    return host if url.port is None else f"{host}:{url.port}"


def _failure(error: Exception, *, replying: bool) -> TransportError:
    name = type(error).__name__
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return TransportError("tls", name)
    if isinstance(error, httpcore.PoolTimeout):
        return TransportError("busy", name)
    if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout):
        return TransportError("connect", name)
    if isinstance(error, httpcore.TimeoutException):
        return TransportError("timeout", name)
    if isinstance(error, httpcore.ReadError | httpcore.WriteError) and not replying:
        return TransportError("dropped", name)
    if isinstance(error, httpcore.RemoteProtocolError) and not replying and "disconnected" in str(error):
        return TransportError("dropped", name)
    return TransportError("broken", name)
