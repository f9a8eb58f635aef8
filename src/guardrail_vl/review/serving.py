"""The review page on a socket: this machine's own by default, others' only with a token."""

from __future__ import annotations

import socket
from collections.abc import Callable

from guardrail_vl._address import is_loopback
from guardrail_vl.audit import Archive
from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.review._door import LOOPBACK
from guardrail_vl.review.app import create_app

try:
    import uvicorn
except ImportError as error:
    raise MissingDependencyError("uvicorn", extra="server", needed_for="The review page") from error


def serve(
    archive: Archive,
    *,
    host: str = "127.0.0.1",
    port: int = 8090,
    token: str | None = None,
    reviewer: str = "",
    on_start: Callable[[str], object] | None = None,
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        archive: What is reviewed.
        host: The address to listen at.
        port: 0: any that is free.
        token: What reviewers must know. None: nothing, and then only this machine is listened to.
        reviewer: The name that the page suggests.
        on_start: Called with the page's address once it is listened at.

    Raises:
        ConfigurationError: Others would reach the page, and there is no token.
        OSError: The address can't be listened at.
    """
    if token is None and not is_loopback(host):
        raise ConfigurationError(
            "A review page that others reach needs a token.",
            hint="Set GUARDRAIL_VL_REVIEW_TOKEN, and put TLS in front of it; or use --host 127.0.0.1",
        )
    app = create_app(archive, token=token, reviewer=reviewer, hosts=(*LOOPBACK, host))
    listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    with listening:
        if on_start is not None:
            name = f"[{host}]" if ":" in host else host
            on_start(f"http://{name}:{listening.getsockname()[1]}/")
        # No access log: it would tell which decisions somebody looks at.
        config = uvicorn.Config(app, log_level="warning", access_log=False, ws="none", server_header=False)
        uvicorn.Server(config).run(sockets=[listening])
