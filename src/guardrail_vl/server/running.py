"""Runs the app: binds, says where, drains on SIGTERM. Refuses to be open to others without keys."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from guardrail_vl._address import is_loopback
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.server.service import LOG, Service

COLLECTIONS: Final = (50_000, 10, 10)
"""As `gc.set_threshold` takes them: the first is in objects, more than hundreds of requests under way hold."""


def run(
    app: FastAPI,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    tls_certificate: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    drain: float = 0.0,
    patience: float = 30.0,
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is under way.

    Args:
        app: From `create_app`.
        host: Address to bind. Without keys only one of the loopback interface.
        port: 0: any that is free.
        tls_certificate: PEM file of the certificate chain; with `tls_key`, the server speaks HTTPS only.
        tls_key: PEM file of its private key.
        drain: Seconds between the signal, when `/readyz` begins to say no, and the end of taking connections: as
            long as a balancer needs to notice.
        patience: Seconds that requests under way may then take.

    Raises:
        ConfigurationError: No keys and an address that others reach, files that can't be read, or a port that is taken;
            or the guard could not be made.
    """
    service: Service = app.state.service
    if not service.keys and not is_loopback(host.strip("[]")):
        raise ConfigurationError(
            "Without keys the server binds to the loopback interface only.",
            hint="Give it keys (--keys FILE), or --host 127.0.0.1.",
        )
    if (tls_certificate is None) != (tls_key is None):
        raise ConfigurationError("TLS needs both a certificate and a key.")
    for file in (tls_certificate, tls_key):
        if file is not None and not Path(file).is_file():
            raise ConfigurationError(f"There is no file {Path(file).name!r}.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # a path may hold what a caller wrote
        ssl_certfile=tls_certificate,
        ssl_keyfile=tls_key,
        timeout_graceful_shutdown=max(1, round(patience)),
        server_header=False,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines hold URLs
    try:
        server = Server(config, service, drain)
    except OSError as error:  # the certificate, or what is in it
        raise ConfigurationError(f"TLS can't be set up: {type(error).__name__}.") from None
    try:
        with _rare_collections():
            server.run()
    except SystemExit as stop:
        raise ConfigurationError(f"The server could not bind to {host}:{port}.", hint="Is the port taken?") from stop
    if service.failure is not None:
        raise ConfigurationError("The guard could not be made; see the log.") from service.failure


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """While it lasts, this process seldom looks for cycles of garbage.

    At Python's own pace, a quarter of a busy server's time goes into looking at requests that are under way.
    """
    before = gc.get_threshold()
    gc.set_threshold(*COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Server(uvicorn.Server):
    """uvicorn's, which says where it is, gives balancers time to notice, and ends when there will be no guard."""

    def __init__(self, config: uvicorn.Config, service: Service, drain: float) -> None:
        super().__init__(config)
        self._service, self._drain = service, drain
        self._frozen = False

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Bind, and say where."""
        await super().startup(sockets)  # type: ignore[arg-type]
        for one in self.servers:
            for socket in one.sockets:
                name, port = socket.getsockname()[:2]
                shown = f"[{name}]" if ":" in name else name
                LOG.info("Listening on %s://%s:%s", "https" if self.config.is_ssl else "http", shown, port)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is over."""
        if self._service.failure is not None:
            self.should_exit = True
        if not self._frozen and self._service.policies:
            # Modules, weights and guards stay: no collection needs to look at them again.
            self._frozen = True
            gc.collect()
            gc.freeze()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins to drain; the second ends it at once."""
        if self._service.draining or self._drain <= 0:
            self._service.draining = True
            super().handle_exit(sig, frame)
            return
        self._service.draining = True
        LOG.info("Draining for %g s.", self._drain)
        timer = threading.Timer(self._drain, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()
