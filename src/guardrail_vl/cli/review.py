"""`guardrail-vl review`: a page on which people look at flagged turns and correct labels. Serves until Ctrl-C."""

from __future__ import annotations

import getpass
from typing import Annotated

import typer

from guardrail_vl.cli.audit import AuditOption, existing
from guardrail_vl.cli.door import PASSED, door


@door
def review(
    audit: AuditOption,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen at. One that others reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8090,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="GUARDRAIL_VL_REVIEW_TOKEN",
            help="What a reviewer must know. Give it by the environment: arguments are seen by others.",
        ),
    ] = None,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="The name that labels bear. Default: that of the system's user.")
    ] = None,
) -> int:
    """Look at flagged turns in a browser, and correct labels."""
    from guardrail_vl.audit import Archive
    from guardrail_vl.review import serve

    with Archive(existing(audit)) as archive:
        serve(
            archive,
            host=host,
            port=port,
            token=token,
            reviewer=_user() if reviewer is None else reviewer,
            on_start=lambda url: typer.echo(f"Review at {url}"),
        )
    return PASSED


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return ""
