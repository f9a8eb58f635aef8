"""`guardrail-vl serve`: one guard for many apps, over HTTP. Decides nothing; see `guardrail_vl.server`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from guardrail_vl.cli.door import PASSED, door
from guardrail_vl.cli.options import (
    AdapterOption,
    DataParallelOption,
    DeadlineOption,
    FailOption,
    FetchOption,
    FormatOption,
    GuardOptions,
    ModelOption,
    SpeedOption,
    TensorParallelOption,
    UrlOption,
    make_guard,
)
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.guard import Guard
from guardrail_vl.policy import Policy

_PROXY, _LIMITS, _AUDIT = "The proxy", "Limits", "Audit"
_KEY, _UPSTREAM_KEY, _CACHE_KEY = "GUARDRAIL_VL_SERVER_KEY", "GUARDRAIL_VL_UPSTREAM_KEY", "GUARDRAIL_VL_CACHE_KEY"


@door
def serve(
    host: Annotated[
        str, typer.Option(help="Address to bind; without keys, of the loopback interface only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="A policy. One without a name is the default; repeat for more."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Keys of apps, in YAML. One key alone: {_KEY}.")
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option("--tls-cert", metavar="PEM", help="Speak HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="PEM")] = None,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", help="After SIGTERM: not ready, but still serving, for so long.")
    ] = 0.0,
    canaries: Annotated[
        bool, typer.Option("--canaries/--no-canaries", help="Judge known turns at start and on a timer.")
    ] = True,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"Guard this OpenAI-compatible API below /v1. Its key: {_UPSTREAM_KEY}.",
            rich_help_panel=_PROXY,
        ),
    ] = None,
    on_block: Annotated[
        str, typer.Option(help="refuse, raise or annotate: what a blocked turn gets.", rich_help_panel=_PROXY)
    ] = "refuse",
    stream: Annotated[
        str, typer.Option(help="window, full or observe: how streams are judged.", rich_help_panel=_PROXY)
    ] = "window",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-unguarded", metavar="NAME", help="Passes unjudged; repeat for more.", rich_help_panel=_PROXY
        ),
    ] = None,
    max_body: Annotated[int, typer.Option(metavar="BYTES", rich_help_panel=_LIMITS)] = 32 * 2**20,
    max_in_flight: Annotated[int, typer.Option(metavar="N", help="Requests at a time.", rich_help_panel=_LIMITS)] = 512,
    max_concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="Engine calls at a time.", rich_help_panel=_LIMITS)
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="Record every decision, without content: .jsonl or a database.",
            rich_help_panel=_AUDIT,
        ),
    ] = None,
    audit_content: Annotated[
        bool, typer.Option("--audit-content", help="Keep the turns too: only with consent.", rich_help_panel=_AUDIT)
    ] = False,
    audit_retention: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Purge what is older.", rich_help_panel=_AUDIT)
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(metavar="URL", help=f"Share verdicts on this Redis; the key that seals them: {_CACHE_KEY}."),
    ] = None,
    telemetry: Annotated[
        bool, typer.Option("--telemetry", help="Spans and metrics by OpenTelemetry, as its environment says.")
    ] = False,
    model: ModelOption = None,
    url: UrlOption = None,
    format: FormatOption = None,
    speed: SpeedOption = None,
    fail: FailOption = None,
    deadline: DeadlineOption = None,
    fetch_images: FetchOption = False,
    tensor_parallel: TensorParallelOption = None,
    data_parallel: DataParallelOption = None,
    adapter: AdapterOption = None,
) -> int:
    """Serve a guard: its own API, OpenAI's moderations, a guarding proxy, LiteLLM's API, and a page to try it on."""
    from guardrail_vl import server

    named, default = _policies(policy or [])
    options = GuardOptions(
        model=model, url=url, policy=default, format=format, speed=speed, fail=fail, deadline=deadline,
        fetch_images=fetch_images, tensor_parallel=tensor_parallel, data_parallel=data_parallel,
        adapters=tuple(adapter or ()),
    )  # fmt: skip
    settings = server.Settings(
        keys=_keys(keys),
        policies={name: Policy.load(path) for name, path in named.items()},
        upstream=upstream,
        upstream_key=os.environ.get(_UPSTREAM_KEY, "").strip() or None,
        on_block=on_block,  # type: ignore[arg-type]
        stream=stream,  # type: ignore[arg-type]
        allow_unguarded=frozenset(allow or ()),
        max_body=max_body,
        max_in_flight=max_in_flight,
        canaries=canaries,
    )

    more: dict[str, Any] = {"max_concurrency": max_concurrency} if max_concurrency is not None else {}
    if cache is not None:
        from guardrail_vl.cache.redis import RedisCache

        more["cache"] = RedisCache(cache, key=os.environ.get(_CACHE_KEY, "").strip() or None)
    if telemetry:
        from guardrail_vl.telemetry import OpenTelemetry

        more["observer"] = OpenTelemetry()
    log = None
    if audit is not None:
        from guardrail_vl.audit import AuditLog

        log = AuditLog(audit, content=audit_content, retention=audit_retention)
    elif audit_content or audit_retention is not None:
        raise ConfigurationError("There is no audit log to keep anything in.", hint="Give it --audit FILE.")

    def make() -> Guard:
        guard = make_guard(options)
        return guard.replace(**more) if more else guard

    app = server.create_app(make, settings, audit=log)
    server.run(app, host=host, port=port, tls_certificate=tls_certificate, tls_key=tls_key, drain=drain)
    return PASSED


def _policies(given: list[str]) -> tuple[dict[str, str], str | None]:
    """Those with a name, and the default's file."""
    named: dict[str, str] = {}
    default = None
    for one in given:
        name, equals, path = one.partition("=")
        if not equals:
            if default is not None:
                raise ConfigurationError("Two policies have no name, and one is the default.", hint="Write NAME=FILE.")
            default = name
        elif name in named:
            raise ConfigurationError(f"Two policies are called {name!r}.")
        else:
            named[name] = path
    return named, default


def _keys(path: Path | None) -> tuple[Any, ...]:
    from guardrail_vl import server

    found = () if path is None else server.read_keys(path)
    alone = os.environ.get(_KEY, "").strip()
    return (*found, server.ApiKey.of("environment", alone)) if alone else found
