"""`AuditLog`: a guard's last hook, which notes every decision. Judges nothing and changes no decision."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

from guardrail_vl.audit._store import open_store, shown
from guardrail_vl.audit._writer import Item, Sealing, Writer
from guardrail_vl.audit.archive import Archive, Cipher
from guardrail_vl.audit.records import Purged, StoredContent, record_of
from guardrail_vl.errors import AuditError, ConfigurationError
from guardrail_vl.parts import ImagePart, Part, ToolCallPart, ToolResultPart
from guardrail_vl.turn import Turn
from guardrail_vl.verdict import Decision

_APP: ContextVar[str | None] = ContextVar("guardrail_vl_audit_app", default=None)
_PATIENCE: Final = 30.0
"""Seconds that a strict log lets a check wait."""


@contextlib.contextmanager
def app_name(name: str) -> Iterator[None]:
    """Note decisions made within as those of this app, in this thread or task and in tasks that it starts.

    Args:
        name: The app's.
    """
    token = _APP.set(name)
    try:
        yield
    finally:
        _APP.reset(token)


class AuditLog:
    """Notes every decision: `Guard(pre_prompt=log, post_response=log)`. It must be the last hook.

    A record holds no content: neither text nor pictures, nor a hash of them, since that of a short text can be guessed.
    Records are written by a thread, in batches. Safe across threads, event loops and forks; picklable by its
    configuration.

    Args:
        target: A path `*.jsonl`, or an SQLAlchemy URL: `sqlite:///audit.db`, `postgresql+psycopg://…`.
        content: Keep the turn and the model's reasoning too, in a table or file of their own: `audit_content`, or
            `*.content.jsonl`. Say so only with the consent of those who wrote it.
        retention: Days after which records and contents are deleted: at start, and once a day. None: never.
        app: Whose decisions these are, where `app_name` does not say.
        encrypt: Encrypts content, and notes about it, before they are stored. None: they are stored as they are.
        decrypt: What undoes it.
        strict: A check waits until its record is stored, and raises AuditError where it can't be. Within a running
            event loop only the async checks can wait. False: it is tried again for a minute; what still can't be
            stored is counted in `dropped`, and logged.
        queue: Records that may wait; the contents that wait take at most 256 MiB.

    Raises:
        ConfigurationError: A wrong argument.
        MissingDependencyError: The target is a URL, and SQLAlchemy is not installed.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        content: bool = False,
        retention: float | None = None,
        app: str = "",
        encrypt: Cipher | None = None,
        decrypt: Cipher | None = None,
        strict: bool = False,
        queue: int = 10_000,
    ) -> None:
        if queue < 1:
            raise ConfigurationError("queue must be at least 1.")
        if retention is not None and not 0 < retention < 20_000:
            raise ConfigurationError("retention must be a number of days above 0, and below 20,000.")
        self._settings: dict[str, Any] = {
            "target": target, "content": content, "retention": retention, "app": app,
            "encrypt": encrypt, "decrypt": decrypt, "strict": strict, "queue": queue,
        }  # fmt: skip
        self._content, self._app, self._strict, self._encrypt = content, app, strict, encrypt
        store = open_store(target, content=content)
        self._archive = Archive._of(target, store, encrypt, decrypt)
        kept = None if retention is None else timedelta(days=retention)
        self._writer = Writer(store, size=queue, retention=kept, patient=not strict)
        # When nobody has it any more, and when the process ends: what waits is written first.
        weakref.finalize(self, self._writer.close)
        if retention is not None:
            self._writer.start()

    def __reduce__(self) -> tuple[object, ...]:
        return (_remade, (type(self), self._settings))

    def __call__(self, turn: Turn | None, decision: Decision) -> Any:
        """Note a decision. As a hook it changes nothing.

        Raises:
            AuditError: Only if `strict`: it can't be stored.
        """
        app = _APP.get()
        record = record_of(decision, app=self._app if app is None else app, time=datetime.now(UTC))
        item = Item(record)
        if self._content and turn is not None:
            item.seal, item.size = self._sealing(turn, decision.reasoning), _size(turn)
        if not self._strict:
            self._writer.put(item)
            return None
        item.done = Future()
        if not self._writer.put(item):
            raise AuditError("The audit log is full: this decision could not be noted.")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            try:
                item.done.result(_PATIENCE)
            except TimeoutError:
                raise _late() from None
            return None
        return _awaited(item.done)

    def _sealing(self, turn: Turn, reasoning: str | None) -> Sealing:
        def seal() -> bytes:
            plain = StoredContent(turn, reasoning).to_json().encode()
            return plain if self._encrypt is None else self._encrypt(plain)

        return seal

    @property
    def archive(self) -> Archive:
        """What it holds. Call `flush` first to see the newest."""
        return self._archive

    @property
    def dropped(self) -> int:
        """Records, and contents of records, that could not be stored, in this process."""
        return self._writer.dropped

    def flush(self, timeout: float | None = None) -> None:
        """Wait until what was noted is stored.

        Args:
            timeout: Seconds. None: as long as it takes.

        Raises:
            AuditError: It takes longer.
        """
        self._writer.flush(timeout)

    def purge(self, older_than: timedelta, *, content_only: bool = False) -> Purged:
        """Delete what is older; see `Archive.purge`."""
        self.flush()
        return self._archive.purge(older_than, content_only=content_only)

    def close(self) -> None:
        """Store what was noted, and free what it holds. A later decision opens it again."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"AuditLog({shown(self._settings['target'])!r}, content={self._content})"


def _remade(kind: type[AuditLog], settings: dict[str, Any]) -> AuditLog:
    return kind(**settings)


async def _awaited(done: Future[None]) -> None:
    try:
        await asyncio.wait_for(asyncio.wrap_future(done), _PATIENCE)
    except TimeoutError:
        raise _late() from None


def _late() -> AuditError:
    return AuditError(f"The audit log was not written within {_PATIENCE:.0f} seconds.")


def _size(turn: Turn) -> int:
    return sum(_parts_size(message.content) for message in turn.messages)


def _parts_size(parts: Sequence[Part]) -> int:
    size = 0
    for part in parts:
        match part:
            case ImagePart():
                size += len(part.data)
            case ToolCallPart():
                size += len(part.arguments)
            case ToolResultPart():
                size += _parts_size(part.content)
            case _:
                size += len(part.text)
    return size
