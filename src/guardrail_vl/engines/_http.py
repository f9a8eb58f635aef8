"""What the HTTP transports share: the request, the reply, why there was none. Knows no HTTP client and no API.

Environment proxies are not used, redirects are not followed, and compressed replies are not asked for: what is judged
goes to the server that was named, and a reply can't unpack to more than was received.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import certifi

MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes of a reply's body; a longer one is refused."""
CONNECT: Final = 3.0
"""Seconds for one attempt to connect, so that a dead address leaves time for another attempt."""
KEEP_ALIVE: Final = 15.0
"""Seconds for which an idle connection is kept."""

Trouble = Literal["connect", "tls", "busy", "timeout", "dropped", "broken", "too_large"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a transport sends, and with what."""

    tls: ssl.SSLContext | None
    """None: plain HTTP."""
    headers: Mapping[str, str] = field(repr=False)
    """Sent with every request. Holds secrets."""
    max_connections: int
    """Connections that one transport has open at a time, at most."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: Literal["GET", "POST"]
    url: str = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that arrived whole."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """By lower-case name."""
    body: bytes = field(repr=False)


class TransportError(Exception):
    """There was no whole reply.

    `connect`: no connection; `tls`: the server's certificate was not accepted; `busy`: all of our own connections were
    in use; `timeout`: the time given was over; `dropped`: the connection ended before a reply began; `broken`: it ended
    within the reply, or what came is no HTTP; `too_large`: the body exceeds `MAX_BODY`.

    Args:
        kind: One of these.
        detail: The name of the foreign exception. Its text is left behind: it may hold headers.
    """

    def __init__(self, kind: Trouble, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


def tls_context(verify: bool | str | os.PathLike[str] | ssl.SSLContext) -> ssl.SSLContext:
    """The TLS settings for both transports.

    Args:
        verify: True: the system's authorities and certifi's, or only those that SSL_CERT_FILE or SSL_CERT_DIR name;
            a path: the authorities in this file; a context: as it is; False: any certificate.

    Raises:
        OSError: The file can't be read, or holds no certificate.
    """
    if isinstance(verify, ssl.SSLContext):
        return verify
    if not isinstance(verify, bool):
        return ssl.create_default_context(cafile=verify)
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif not {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys():
        context.load_verify_locations(certifi.where())
    return context
