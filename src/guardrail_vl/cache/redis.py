"""Verdicts that servers share, in Redis. Redis down means slower by a timeout, then not at all; never wrong.

What is read back is input like any other: what is not exactly a verdict that one of us wrote counts as nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import hmac
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from guardrail_vl.cache import MemoryCache, VerdictCache
from guardrail_vl.errors import ConfigurationError, ContentError, MissingDependencyError
from guardrail_vl.verdict import Verdict

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.exceptions import AuthenticationError, ResponseError
    from redis.retry import Retry
except ImportError as error:
    raise MissingDependencyError("redis", extra="redis", needed_for="The shared verdict cache") from error

LOG: Final = logging.getLogger("guardrail_vl.cache")

MAX_BYTES: Final = 1_000_000
"""A value that is longer was not written here."""
_WORKERS: Final = 8
_SHORTEST_KEY: Final = 16
_Result = TypeVar("_Result")


class RedisCache(VerdictCache):
    """Verdicts in Redis, behind those in this process. Thread-safe, also across forks; picklable by its configuration.

    A read asks the memory first, and Redis once for all the rest; what it finds stays in memory for as long as it has
    left in Redis. Anything wrong with Redis makes the cache look empty: after a failure it is left alone for
    `cool_down`, and one check then tries it. Give the same `key`, `prefix` and `reasoning` to all servers that share.

    Args:
        url: `redis://`, `rediss://` (TLS) or `unix://`, with the password and the number of the database.
        ttl: Seconds that a verdict is kept, here and there.
        memory: The memory in front of it; False: none. True: one of usual size.
        prefix: What the names of its keys begin with. Guards whose models have one name and different weights need
            different ones.
        timeout: Seconds that a check waits for Redis at most, connecting included; once to read, once to write.
        cool_down: Seconds that Redis is left alone after it failed, give or take a fifth.
        key: A secret of at least 16 bytes. Values are authenticated with it, and those that don't verify count as
            nothing; without the secret the names of the keys don't tell what was judged either. None: whoever can write
            to this Redis can make the guard allow anything.
        reasoning: Write the model's reasoning too, which may quote the content. False: what Redis gives back has none.

    Raises:
        ConfigurationError: A wrong argument. Redis is not contacted before the first check.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl: float = 3600.0,
        memory: MemoryCache | bool = True,
        prefix: str = "guardrail-vl",
        timeout: float = 0.05,
        cool_down: float = 5.0,
        key: bytes | str | None = None,
        reasoning: bool = False,
    ) -> None:
        for name, seconds in (("ttl", ttl), ("timeout", timeout), ("cool_down", cool_down)):
            if not 0.001 <= seconds < math.inf:
                raise ConfigurationError(f"{name} must be at least 0.001 seconds and finite, not {seconds!r}.")
        secret = key.encode() if isinstance(key, str) else key
        if secret is not None and len(secret) < _SHORTEST_KEY:
            raise ConfigurationError(
                f"The key of a shared cache needs at least {_SHORTEST_KEY} bytes.",
                hint="secrets.token_hex() makes one.",
            )
        self.ttl = ttl
        self.timeout = timeout
        self.cool_down = cool_down
        self.prefix = prefix
        self.reasoning = reasoning
        self.memory: MemoryCache | None
        if isinstance(memory, MemoryCache):
            self.memory = memory
        else:
            self.memory = MemoryCache(ttl=ttl) if memory else None
        self._url = url
        self._secret = secret
        self._reset()
        self._connect()  # a wrong URL is said now

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._client: redis.Redis | None = None
        self._not_before = -math.inf
        self._failing = False
        self._refused = False

    def __reduce__(self) -> tuple[object, ...]:
        settings = {
            "ttl": self.ttl, "memory": False if self.memory is None else self.memory, "prefix": self.prefix,
            "timeout": self.timeout, "cool_down": self.cool_down, "key": self._secret, "reasoning": self.reasoning,
        }  # fmt: skip
        return _rebuild, (type(self), self._url, settings)

    def __repr__(self) -> str:
        # Not the URL: it may hold a password.
        return f"RedisCache(prefix={self.prefix!r}, ttl={self.ttl}, authenticated={self._secret is not None})"

    # ---- the verbs of a cache -------------------------------------------------------------------------------------

    def get(self, keys: Sequence[bytes]) -> list[Verdict | None]:
        """See `VerdictCache.get`."""
        found, missing = self._remembered(keys)
        if missing and (job := self._begin(lambda client: self._read(client, missing))):
            self._fill(found, self._wait(job) or {})
        return [found.get(key) for key in keys]

    def put(self, items: Sequence[tuple[bytes, Verdict]]) -> None:
        """See `VerdictCache.put`."""
        self._remember(items)
        if job := self._begin(lambda client: self._write(client, items)):
            self._wait(job)

    async def aget(self, keys: Sequence[bytes]) -> list[Verdict | None]:
        """See `VerdictCache.aget`. The event loop goes on while Redis is asked."""
        found, missing = self._remembered(keys)
        if missing and (job := self._begin(lambda client: self._read(client, missing))):
            self._fill(found, await self._await(job) or {})
        return [found.get(key) for key in keys]

    async def aput(self, items: Sequence[tuple[bytes, Verdict]]) -> None:
        """See `VerdictCache.aput`. The event loop goes on while Redis is told."""
        self._remember(items)
        if job := self._begin(lambda client: self._write(client, items)):
            await self._await(job)

    def close(self) -> None:
        """Close the connections. A later check opens them again. What is in memory stays."""
        if self._pid != os.getpid():  # the connections are the parent's
            self._reset()
        with self._lock:
            pool, client = self._pool, self._client
            self._pool = self._client = None
        if pool is not None:
            pool.shutdown()  # what is under way ends by itself, and soon
        if client is not None:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---- memory ---------------------------------------------------------------------------------------------------

    def _remembered(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Verdict], list[bytes]]:
        found: dict[bytes, Verdict] = {}
        if self.memory is not None:
            found = {
                key: verdict for key, verdict in zip(keys, self.memory.get(keys), strict=True) if verdict is not None
            }
        return found, [key for key in dict.fromkeys(keys) if key not in found]

    def _remember(self, items: Iterable[tuple[bytes, Verdict]]) -> None:
        # Before Redis is told, so that nothing is in memory for longer than there.
        if self.memory is not None:
            self.memory.put(list(items), ttl=self.ttl)

    def _fill(self, found: dict[bytes, Verdict], read: dict[bytes, tuple[float, Verdict]]) -> None:
        now = time.monotonic()
        for key, (until, verdict) in read.items():
            if until > now:
                found[key] = verdict
                if self.memory is not None:
                    self.memory.put([(key, verdict)], ttl=until - now)

    # ---- Redis, in threads of its own -----------------------------------------------------------------------------

    def _read(self, client: redis.Redis, keys: Sequence[bytes]) -> dict[bytes, tuple[float, Verdict]]:
        """What Redis has under these keys, and until when (`time.monotonic()`)."""
        names = [self._name(key) for key in keys]
        asked, today = time.monotonic(), time.time()  # before Redis says what is left, so that it is never too much
        with client.pipeline(transaction=False) as pipe:
            pipe.mget(names)
            for name in names:
                pipe.pttl(name)
            values, *lives = pipe.execute()
        found = {}
        for key, value, life in zip(keys, values, lives, strict=True):
            read = self._parse(key, value)
            if read is not None and isinstance(life, int):
                end, verdict = read
                # A key that lost its end, or was put back after it, is no longer what was written.
                left = min(life / 1000, end - today, self.ttl)
                if left > 0:
                    found[key] = (asked + left, verdict)
        return found

    def _write(self, client: redis.Redis, items: Sequence[tuple[bytes, Verdict]]) -> None:
        end = time.time() + self.ttl
        with client.pipeline(transaction=False) as pipe:
            for key, verdict in items:
                pipe.set(self._name(key), self._value(key, verdict, end), px=int(self.ttl * 1000))
            pipe.execute()

    def _begin(self, work: Callable[[redis.Redis], _Result]) -> Future[_Result] | None:
        """Start on it in a thread: that alone bounds the wait, since looking up a host name knows no timeout.

        None: Redis is left alone for now.
        """
        if self._pid != os.getpid():  # threads and connections stayed in the parent
            self._reset()
        with self._lock:
            now = time.monotonic()
            if now < self._not_before:
                return None
            if self._failing:  # this one finds out whether Redis is back; others don't wait with it
                self._not_before = now + self._pause()
            if self._client is None:
                self._client = self._connect()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="guardrail-vl-cache")
            try:
                return self._pool.submit(contextvars.copy_context().run, work, self._client)
            except RuntimeError:  # the interpreter is about to end
                return None

    def _wait(self, job: Future[_Result]) -> _Result | None:
        try:
            result = job.result(self.timeout)
        except Exception as error:
            self._failed(job, error)
            return None
        self._worked()
        return result

    async def _await(self, job: Future[_Result]) -> _Result | None:
        try:
            result = await asyncio.wait_for(asyncio.wrap_future(job), self.timeout)
        except Exception as error:
            self._failed(job, error)
            return None
        self._worked()
        return result

    def _connect(self) -> redis.Redis:
        try:
            client = redis.Redis.from_url(
                self._url,
                socket_timeout=self.timeout,
                socket_connect_timeout=self.timeout,
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
            )
            client.connection_pool.make_connection()  # not opened: it only reads the settings in the URL
        except (ValueError, TypeError, AttributeError):
            raise ConfigurationError(
                "The url of the shared cache is not one of Redis.", hint="Such as redis://localhost:6379/0."
            ) from None
        return client

    # ---- failures -------------------------------------------------------------------------------------------------

    def _pause(self) -> float:
        return self.cool_down * random.uniform(0.8, 1.2)  # so that many servers don't come back at once

    def _failed(self, job: Future[Any], error: Exception) -> None:
        if job.cancel():
            return  # never begun: too many at once, which says nothing of Redis
        # Whatever it was: a server that speaks nonsense raises all sorts of things, and no check may fail for it.
        # A command that is refused (no memory left, a replica) cost no time, and others may be taken.
        refused = isinstance(error, ResponseError) and not isinstance(error, AuthenticationError)
        with self._lock:
            if refused:
                told, self._refused = self._refused, True
            else:
                told, self._failing = self._failing, True
                self._not_before = time.monotonic() + self._pause()
        if not told:  # once for each outage; the error's own words may hold a host, a name or a value
            LOG.warning("The shared verdict cache failed (%s): turns are judged anew.", type(error).__name__)

    def _worked(self) -> None:
        with self._lock:
            told, self._failing = self._failing, False
            self._not_before = -math.inf
        if told:
            LOG.info("The shared verdict cache answers again.")

    # ---- names and values -----------------------------------------------------------------------------------------

    def _name(self, key: bytes) -> str:
        # Keyed, or somebody who reads the names could find out whether a text that they guess was judged.
        return f"{self.prefix}:1:{self._mac(b'name', key) if self._secret else key.hex()}"

    def _value(self, key: bytes, verdict: Verdict, end: float) -> bytes:
        kept = verdict if self.reasoning else replace(verdict, reasoning=None)
        body = b"%.3f %b" % (end, kept.to_json().encode())
        return self._mac(b"value", key, body).encode() + b" " + body

    def _parse(self, key: bytes, value: Any) -> tuple[float, Verdict] | None:
        """When it ends (`time.time()`), and the verdict; None: this is nothing that one of us wrote."""
        if not isinstance(value, bytes) or len(value) > MAX_BYTES:
            return None
        mac, _, body = value.partition(b" ")
        if not hmac.compare_digest(mac, self._mac(b"value", key, body).encode()):
            return None
        end, _, text = body.partition(b" ")
        try:
            verdict = Verdict.from_json(text)
            until = float(end)
        except (ContentError, ValueError):
            return None
        scores = [score for score in (verdict.prompt_score, verdict.response_score) if score is not None]
        # A verdict that says nothing is never remembered.
        says = verdict.prompt is not None or verdict.response is not None or verdict.unjudged
        return (until, verdict) if says and all(0 <= score <= 1 for score in scores) else None

    def _mac(self, use: bytes, key: bytes, body: bytes = b"") -> str:
        """Of a value and the key that it stands under; without a secret only a checksum."""
        text = b"%b %d %b%b" % (use, len(key), key, body)
        return hmac.new(self._secret or b"-", text, hashlib.sha256).hexdigest()


def _rebuild(kind: type[RedisCache], url: str, settings: dict[str, Any]) -> RedisCache:
    return kind(url, **settings)
