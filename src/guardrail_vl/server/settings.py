"""What a server is told before it starts: keys, policies, upstream, limits. Frozen; knows no HTTP framework."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from guardrail_vl.blocking import REFUSAL, OnBlock
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.policy import Policy
from guardrail_vl.streaming import Mode, Streaming
from guardrail_vl.wire.exchange import Rules

DEFAULT_POLICY: Final = "default"
"""The name of the policy that is used where none is named."""
MAX_BODY: Final = 32 * 2**20
"""Bytes of one request's body."""
MAX_IN_FLIGHT: Final = 512
"""Requests under way at a time."""
MAX_BATCH: Final = 256
"""Inputs of one request."""

_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RATE: Final = re.compile(r"[1-9]\d{0,8}/(second|minute|hour|day)")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An app's key: only its hash is kept.

    Args:
        name: The app's, for metrics and the audit log.
        sha256: Of the key, in hexadecimal digits.
        policy: Name of the policy that its turns are judged by. None: the one that a request names, or the default.
        rate: How often it may ask, such as `600/minute`; a batch of n counts n times. None: as often as it likes.

    Raises:
        ConfigurationError: A value of another form.
    """

    name: str
    sha256: str = field(repr=False)
    policy: str | None = None
    rate: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError("A key's name is made of letters, digits, dots, dashes and underscores.")
        if not _SHA256.fullmatch(self.sha256):
            raise ConfigurationError(f"The sha256 of the key {self.name!r} must be 64 hexadecimal digits.")
        if self.rate is not None and not _RATE.fullmatch(self.rate):
            raise ConfigurationError(f"The rate of the key {self.name!r} must be like '600/minute'.")

    @classmethod
    def of(cls, name: str, secret: str, **settings: str | None) -> ApiKey:
        """From the key itself, which is not kept."""
        if len(secret) < 16:
            raise ConfigurationError(f"The key {name!r} must have at least 16 characters.")
        return cls(name, digest(secret), **settings)


def digest(secret: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: str | Path) -> tuple[ApiKey, ...]:
    """Keys from a YAML file: a list of mappings with `name`, `key` or `sha256`, `policy` and `rate`.

    Raises:
        ConfigurationError: It can't be read, or holds something else. The message repeats no key.
    """
    import yaml

    path = Path(path)
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"Can't read the keys file {path.name!r}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):  # whose messages quote the file
        raise ConfigurationError(f"The keys file {path.name!r} is not valid YAML.") from None
    if not isinstance(rows, list) or not rows:
        raise ConfigurationError(f"The keys file {path.name!r} must hold a list of keys.")
    return tuple(_read_key(row, number) for number, row in enumerate(rows, 1))


def _read_key(row: object, number: int) -> ApiKey:
    known = {"name", "key", "sha256", "policy", "rate"}
    if not isinstance(row, dict) or not set(row) <= known or not all(isinstance(v, str) for v in row.values()):
        raise ConfigurationError(
            f"Key {number} must have name, key or sha256, perhaps policy and rate, all of them text."
        )
    if "name" not in row or ("key" in row) == ("sha256" in row):
        raise ConfigurationError(f"Key {number} must have a name, and either key or sha256.")
    secret = row.pop("key", None)
    return ApiKey(**row) if secret is None else ApiKey.of(row.pop("name"), secret, **row)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server is.

    Args:
        keys: Who may ask. Empty: everybody who reaches it, which `run` allows on the loopback interface only.
        policies: Policies that a request may name, beside the guard's own, which is `default`.
        upstream: Base URL of an OpenAI-compatible API that the proxy guards. None: there is no proxy.
        upstream_key: Sent to it as a bearer token. None: what the caller sent, if it was no key of ours.
        on_block: What a blocked turn gets at the proxy: `refuse` in the API's own shape, `raise` (an HTTP error), or
            `annotate` (nothing but headers).
        stream: How the proxy judges replies while they are written.
        refusal: What a refused reply says.
        allow_unguarded: Names of endpoints, fields, tools and parts that pass the proxy unjudged.
        max_body: Bytes of a request's body; more is a 413.
        max_in_flight: Requests under way at a time; more is a 503 with Retry-After.
        max_batch: Inputs of one request; more is a 413.
        retry_after: Seconds, in replies that ask the caller to come again.
        canaries: Whether known turns are judged at start and every `canary_interval` seconds; while one of them is
            judged wrongly, the server is not ready and answers 503.
        canary_interval: Seconds.
        upstream_timeout: Seconds that upstream may be silent.

    Raises:
        ConfigurationError: A value out of range, two keys of one name, or a key whose policy is not there.
    """

    keys: tuple[ApiKey, ...] = ()
    policies: Mapping[str, Policy] = field(default_factory=lambda: MappingProxyType({}))
    upstream: str | None = None
    upstream_key: str | None = field(default=None, repr=False)
    on_block: OnBlock = "refuse"
    stream: Streaming | Mode = "window"
    refusal: str = REFUSAL
    allow_unguarded: frozenset[str] = frozenset()
    max_body: int = MAX_BODY
    max_in_flight: int = MAX_IN_FLIGHT
    max_batch: int = MAX_BATCH
    retry_after: float = 1.0
    canaries: bool = True
    canary_interval: float = 60.0
    upstream_timeout: float = 600.0

    def __post_init__(self) -> None:
        if min(self.max_body, self.max_in_flight, self.max_batch) < 1:
            raise ConfigurationError("max_body, max_in_flight and max_batch must be at least 1.")
        if min(self.retry_after, self.canary_interval, self.upstream_timeout) <= 0:
            raise ConfigurationError("retry_after, canary_interval and upstream_timeout must be above 0 seconds.")
        if len({key.name for key in self.keys}) < len(self.keys) or len({k.sha256 for k in self.keys}) < len(self.keys):
            raise ConfigurationError("Two keys have one name, or are the same.")
        for name in self.policies:
            if name == DEFAULT_POLICY or not _NAME.fullmatch(name):
                raise ConfigurationError(f"A policy can't be called {name!r}.")
        for key in self.keys:
            if key.policy is not None and key.policy not in (DEFAULT_POLICY, *self.policies):
                raise ConfigurationError(f"The policy of the key {key.name!r} is not there: {key.policy!r}.")
        Rules(on_block=self.on_block, streaming=Streaming.of(self.stream), allow=self.allow_unguarded)
        if self.upstream is not None:
            check_upstream(self.upstream)


def check_upstream(url: str) -> None:
    """Whether this is the base URL of an API.

    Raises:
        ConfigurationError: It is not. The URL is not repeated: it may hold a key.
    """
    import httpx

    try:
        parsed: Any = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ConfigurationError(
            "upstream is no http:// or https:// base URL.", hint="Such as https://api.openai.com/v1."
        )
    if parsed.userinfo:
        raise ConfigurationError("upstream holds a user name or password.", hint="Give the key as upstream_key.")
