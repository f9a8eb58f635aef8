"""The engine that asks an OpenAI-compatible server: vLLM, llama.cpp, transformers serve, a gateway.

What happens with a prompt is written in `_exchange`, what is alive is in `_live`; here are the settings, and many
prompts at a time. Knows nothing of labels or verdicts. Environment proxies are not used.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from guardrail_vl.engines._breaker import Breaker
from guardrail_vl.engines._completions import Messages
from guardrail_vl.engines._exchange import Known, Once
from guardrail_vl.engines._http import Target, tls_context
from guardrail_vl.engines._live import Live
from guardrail_vl.engines._servers import SERVERS, Server
from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.prompt_format.base import Prompt

_KEY_VARIABLES: Final = ("GUARDRAIL_VL_API_KEY", "OPENAI_API_KEY")
_OWN_FIELDS: Final = frozenset(("messages", "model", "stream", "n"))
_OWN_HEADERS: Final = frozenset(
    ("host", "content-length", "content-type", "content-encoding", "transfer-encoding", "accept-encoding", "connection")
)


@dataclass(frozen=True, slots=True)
class _Settings:
    """What an engine is made of: all that is pickled."""

    url: str = field(repr=False)
    model: str | None
    api_key: str | None = field(repr=False)
    """As it was given: a key from the environment is read anew where the engine is unpickled."""
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    max_connections: int
    attempts: int
    extra_body: str = field(repr=False)
    """JSON."""
    verify: bool | str | ssl.SSLContext
    server: str
    trip_after: int
    cool_down: float


class RemoteEngine(Engine):
    """Completes prompts with a server's chat-completions API.

    The server is not contacted before the first prompt. Requests that fail because the server can't be reached, is busy
    or broken (connection errors, 408, 409, 429, 5xx) are sent again, with growing random waits, until `attempts` or the
    deadline are used up; `Retry-After` is honoured. A server that fails many times in a row is left alone for a while.

    A prompt that begins the answer for the model (`speed="fast"`) needs a server that continues it. Whether it does is
    found out by one tiny request before the first such prompt; a server that does not is never believed to.

    Args:
        url: The API's base URL, such as `http://guard:8000/v1`; a bare host means its `/v1`.
        model: The model's name there. None: the only one it serves, asked for once.
        api_key: Sent as a bearer token. None: from GUARDRAIL_VL_API_KEY, else OPENAI_API_KEY, else none.
        headers: Sent with every request; an Authorization among them is used instead of a key.
        max_connections: Connections open at a time, for threads together and for each event loop.
        attempts: How often one request is sent, at most.
        extra_body: More fields of every request, such as `{"reasoning_format": "none"}`.
        verify: Whose certificates are trusted: True (the system's and certifi's authorities), the path of a file of
            authorities, an `ssl.SSLContext` (the engine can't be pickled then), or False: anybody's.
        server: `vllm`, `transformers`, `llama.cpp` or `unknown`: what it can do, if that is known. None: found out.
        trip_after: Failed checks in a row after which the server is left alone.
        cool_down: Seconds for which it is, give or take a fifth.

    Raises:
        ConfigurationError: An argument is wrong. The message holds no key and no header.
    """

    format: ClassVar[str] = "guardreasoner-vl/1"
    default_deadline: ClassVar[float] = 10.0
    """A guard that is late is down."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        max_connections: int = 100,
        attempts: int = 4,
        extra_body: Mapping[str, Any] | None = None,
        verify: bool | str | os.PathLike[str] | ssl.SSLContext = True,
        server: str | None = None,
        trip_after: int = 5,
        cool_down: float = 5.0,
    ) -> None:
        if min(max_connections, attempts, trip_after) < 1 or not cool_down >= 0:
            raise ConfigurationError(
                "max_connections, attempts and trip_after must be at least 1, cool_down at least 0."
            )
        self._set_up(
            _Settings(
                url=url,
                model=model,
                api_key=api_key,
                headers=tuple((headers or {}).items()),
                max_connections=max_connections,
                attempts=attempts,
                extra_body=_extra(extra_body or {}),
                verify=verify if isinstance(verify, bool | ssl.SSLContext) else os.fspath(verify),
                server=server or "",
                trip_after=trip_after,
                cool_down=cool_down,
            )
        )

    def _set_up(self, settings: _Settings) -> None:
        self._settings = settings
        self._base, self._query, self._where = _endpoint(settings.url)
        self._server = _server(settings.server)
        self._target = Target(
            tls=_tls(settings.verify) if self._base.startswith("https:") else None,
            headers=_headers(dict(settings.headers), settings.api_key),
            max_connections=settings.max_connections,
        )
        self.model = settings.model or f"the only model of {self._where}"
        self._live = self._start()

    def __reduce__(self) -> tuple[Callable[[_Settings], RemoteEngine], tuple[_Settings]]:
        return _from_settings, (self._settings,)

    def __repr__(self) -> str:
        return f"RemoteEngine({self._where!r}, model={self._settings.model!r})"

    def adapted(self, adapter: str | None) -> RemoteEngine:
        """See `Engine.adapted`. A server has an adapter as one more model; whether it does shows at the first check."""
        return self if adapter is None else _from_settings(replace(self._settings, model=adapter))

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.generate`. Several prompts run beside each other in threads; one needs none.

        Raises:
            ConfigurationError: No model was named, and the server has several.
        """
        live = self._here()
        jobs = list(zip(prompts, _messages(prompts), strict=True))
        started = [live.threads.submit(live.run, *job, deadline) for job in jobs[1:]]
        first = [live.run(*job, deadline) for job in jobs[:1]]
        return _raised(first + [future.result() for future in started])

    async def agenerate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """See `Engine.agenerate`.

        Raises:
            ConfigurationError: No model was named, and the server has several.
        """
        live = self._here()
        jobs = list(zip(prompts, _messages(prompts), strict=True))
        if len(jobs) == 1:
            return _raised([await live.arun(*jobs[0], deadline)])
        outcomes: dict[int, Outcome] = {}
        waiting = iter(enumerate(jobs))

        async def work() -> None:
            for i, job in waiting:
                outcomes[i] = await live.arun(*job, deadline)

        await asyncio.gather(*(work() for _ in range(min(len(jobs), self._settings.max_connections))))
        return _raised([outcomes[i] for i in range(len(jobs))])

    async def astream(self, prompt: Prompt, *, deadline: Deadline, on_text: Callable[[str], None]) -> Outcome:
        """See `Engine.astream`. A server that sends no event stream is asked for its whole reply.

        Raises:
            ConfigurationError: No model was named, and the server has several.
        """
        outcome = await self._here().arun(prompt, Messages(prompt.messages), deadline, on_text)
        return _raised([outcome])[0]

    def close(self) -> None:
        """Close the connections and end the threads. The next prompt opens new ones."""
        self._here().close()

    async def aclose(self) -> None:
        """The same, and wait until the running event loop's connections are closed."""
        live = self._here()
        await live.async_http.aclose()
        self.close()

    def _here(self) -> Live:
        """What is alive in this process; after a fork, new."""
        live = self._live
        if live.pid != os.getpid():
            live.leave_behind()
            live = self._live = self._start()
        return live

    def _start(self) -> Live:
        settings = self._settings
        known = Known(
            base=self._base,
            query=self._query,
            where=self._where,
            attempts=settings.attempts,
            extra=json.loads(settings.extra_body),
            breaker=Breaker(threshold=settings.trip_after, cool_down=settings.cool_down),
            model=Once(settings.model or None),
            server=Once(self._server),
        )
        return Live(known, self._target)


def _from_settings(settings: _Settings) -> RemoteEngine:
    engine = RemoteEngine.__new__(RemoteEngine)
    engine._set_up(settings)
    return engine


def _raised(outcomes: list[Outcome]) -> list[Outcome]:
    for outcome in outcomes:
        if isinstance(outcome, ConfigurationError):
            raise outcome
    return outcomes


def _messages(prompts: Sequence[Prompt]) -> list[Messages]:
    """The prompts' messages; the same for those that share them, so that pictures are encoded once."""
    made: dict[int, Messages] = {}
    out = []
    for prompt in prompts:
        key = id(prompt.messages)
        if key not in made:
            made[key] = Messages(prompt.messages)
        out.append(made[key])
    return out


# ---- settings ------------------------------------------------------------------------------------------------------


def _endpoint(url: str) -> tuple[str, str, str]:
    """Base URL without a slash at its end, query string with its `?`, and the server's name for messages."""
    # The URL itself is in no message: it may hold a password or a key.
    wrong = ConfigurationError(
        "url is no http:// or https:// URL of a server.", hint="Give one such as 'http://guard:8000/v1'."
    )
    if not isinstance(url, str) or not url.isprintable() or " " in url.strip():
        raise wrong
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise wrong
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "url holds a user name or password.", hint="Use api_key=… or headers={'Authorization': …}."
        )
    try:
        host = parts.hostname.encode("idna").decode() if not parts.hostname.isascii() else parts.hostname
    except UnicodeError:
        raise wrong from None
    host = f"[{host}]" if ":" in host else host
    where = f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    base = where + (path if path or parts.path.rstrip("/") else "/v1")
    if not base.isascii() or not parts.query.isascii():
        raise wrong
    return base, f"?{parts.query}" if parts.query else "", where


def _headers(headers: dict[str, str], api_key: str | None) -> dict[str, str]:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str) or not _sendable(name) or not _sendable(value):
            raise ConfigurationError("headers must map text to text that an HTTP header can carry.")
        if name.lower() in _OWN_HEADERS:
            raise ConfigurationError(f"The header {name} is set by the engine itself.")
    if api_key is None and not any(name.lower() == "authorization" for name in headers):
        api_key = next((value for variable in _KEY_VARIABLES if (value := os.environ.get(variable, "").strip())), None)
    if api_key is not None:
        if not isinstance(api_key, str) or not _sendable(api_key.strip()) or " " in api_key.strip():
            raise ConfigurationError("The API key holds characters that an HTTP header can't carry.")
        if api_key.strip():
            headers = {**headers, "Authorization": f"Bearer {api_key.strip()}"}
    return {"User-Agent": "guardrail-vl", "Accept": "application/json", **headers}


def _sendable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _extra(extra: Mapping[str, Any]) -> str:
    if taken := sorted(_OWN_FIELDS & extra.keys()):
        raise ConfigurationError(f"extra_body can't set {', '.join(taken)}: the engine does.")
    try:
        return json.dumps(dict(extra), allow_nan=False)
    except (TypeError, ValueError):
        raise ConfigurationError("extra_body must hold JSON values.") from None


def _tls(verify: bool | str | ssl.SSLContext) -> ssl.SSLContext:
    try:
        return tls_context(verify)
    except OSError as error:
        raise ConfigurationError(f"verify names no readable file of certificates ({type(error).__name__}).") from None


def _server(name: str) -> Server | None:
    if not name:
        return None
    if name not in SERVERS:
        raise ConfigurationError(f"Unknown server {name!r}; known: {', '.join(SERVERS)}.")
    return SERVERS[name]
