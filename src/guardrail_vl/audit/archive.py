"""What a log holds, for people: find, read, correct, purge. Makes no decision and trains nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self

from guardrail_vl.audit._store import Store, open_store, shown
from guardrail_vl.audit.records import FLAGGED, AuditRecord, Correction, Purged, Query, StoredContent
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.verdict import Action

Cipher = Callable[[bytes], bytes]
"""Encrypts bytes, or decrypts them."""

_PAGE: Final = 200
_NOTE: Final = 4_000
"""Characters of a note."""
_REVIEWER: Final = 200
"""Characters of a reviewer's name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record with what else there is of its decision."""

    record: AuditRecord
    content: StoredContent | None
    """None: not stored, purged, or it can't be read."""
    correction: Correction | None
    """The newest. None: nobody said anything."""


class Archive:
    """The records of an audit log, their contents and what people say of them. Safe across threads and forks.

    Args:
        target: As of `AuditLog`.
        encrypt: As of `AuditLog`: notes may quote the content. None: they are kept as they are.
        decrypt: What undoes it.

    Raises:
        ConfigurationError: No such target.
        MissingDependencyError: It is a URL, and SQLAlchemy is not installed.
    """

    def __init__(
        self, target: str | os.PathLike[str], *, encrypt: Cipher | None = None, decrypt: Cipher | None = None
    ) -> None:
        self._open(target, open_store(target, content=False), encrypt, decrypt)

    def _open(
        self, target: str | os.PathLike[str], store: Store, encrypt: Cipher | None, decrypt: Cipher | None
    ) -> None:
        if (encrypt is None) != (decrypt is None):
            raise ConfigurationError("encrypt and decrypt go together: pass both, or none.")
        self._target, self._store, self._encrypt, self._decrypt = target, store, encrypt, decrypt

    @classmethod
    def _of(
        cls, target: str | os.PathLike[str], store: Store, encrypt: Cipher | None, decrypt: Cipher | None
    ) -> Archive:
        """Of a store that a log writes to."""
        archive = cls.__new__(cls)
        archive._open(target, store, encrypt, decrypt)
        return archive

    def find(self, query: Query | None = None) -> tuple[AuditRecord, ...]:
        """The records that are meant, newest first. None: the newest of all.

        Raises:
            AuditError: The store can't be read.
        """
        return tuple(self._store.find(query or Query()))

    def count(self, query: Query | None = None) -> int:
        """How many records are meant, whatever `after` and `limit` say."""
        return self._store.count(query or Query())

    def apps(self) -> tuple[str, ...]:
        """The names of apps that have records."""
        return tuple(self._store.apps())

    def get(self, id: str) -> AuditRecord | None:
        """The record of a decision. None: there is none."""
        return self._store.get(id)

    def content(self, id: str) -> StoredContent | None:
        """The content of a decision. None: it was not stored, or was purged.

        Raises:
            ContentError: It is encrypted otherwise, or it was judged under wider limits than the default ones.
        """
        sealed = self._store.contents([id]).get(id)
        return None if sealed is None else self._opened(sealed)

    def corrections(self, ids: Sequence[str]) -> dict[str, Correction]:
        """The newest correction of those that have one."""
        found = {}
        for id, (correction, note) in self._store.corrections(list(ids)).items():
            found[id] = replace(correction, note=self._read(note))
        return found

    def entries(self, query: Query | None = None) -> Iterator[Entry]:
        """Everything there is of the records that are meant, newest first, however many; `limit` is not looked at."""
        query = replace(query or Query(), limit=_PAGE)
        while records := self.find(query):
            ids = [record.id for record in records]
            contents, corrections = self._store.contents(ids), self.corrections(ids)
            for record in records:
                sealed = contents.get(record.id)
                yield Entry(record, self._maybe(sealed), corrections.get(record.id))
            query = replace(query, after=ids[-1])

    def correct(self, correction: Correction) -> None:
        """Keep what a person says.

        Raises:
            ConfigurationError: There is no such decision, or a name or a note is too long.
            AuditError: The store can't be written.
        """
        if len(correction.note) > _NOTE or len(correction.reviewer) > _REVIEWER:
            raise ConfigurationError(
                f"A note has at most {_NOTE:,} characters, and a reviewer's name at most {_REVIEWER}."
            )
        if self._store.get(correction.id) is None:
            raise ConfigurationError("There is no decision with this id.")
        note = correction.note.encode(errors="replace") if correction.note else None
        if note is not None and self._encrypt is not None:
            note = self._encrypt(note)
        self._store.correct(replace(correction, reviewer=correction.reviewer.replace("\0", "")), note)

    def purge(self, older_than: timedelta, *, content_only: bool = False) -> Purged:
        """Delete what is older: contents and notes, and also records and corrections.

        Args:
            older_than: Since the decision.
            content_only: Keep records, and the labels that people gave.

        Raises:
            ConfigurationError: A time before the epoch, or in the future.
            AuditError: The store can't be written.
        """
        return self._store.purge(earlier(older_than), content_only=content_only)

    def stats(self) -> dict[str, int]:
        """How many records there are: in all, by action, flagged and reviewed; and how many contents."""
        actions = {str(action): self.count(Query(actions=(action,))) for action in Action}
        return {
            "records": sum(actions.values()),
            **actions,
            "reviewed": self.count(Query(reviewed=True)),
            "to_review": self.count(Query(actions=FLAGGED, reviewed=False)),
            "contents": self._store.content_count(),
        }

    def close(self) -> None:
        """Free what it holds. It opens again when it is used."""
        self._store.close()

    def _maybe(self, sealed: bytes | None) -> StoredContent | None:
        try:
            return None if sealed is None else self._opened(sealed)
        except ContentError:
            return None

    def _opened(self, sealed: bytes) -> StoredContent:
        try:
            plain = sealed if self._decrypt is None else self._decrypt(sealed)
        except Exception:
            raise ContentError("The stored content can't be decrypted.", hint="Was the key changed?") from None
        if plain[:1] != b"{":
            raise ContentError("The stored content is encrypted.", hint="Pass decrypt= to Archive.")
        return StoredContent.from_json(plain)

    def _read(self, note: bytes | None) -> str:
        if note is None:
            return ""
        try:
            return (note if self._decrypt is None else self._decrypt(note)).decode(errors="replace")
        except Exception:  # another key: the label counts all the same
            return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({shown(self._target)!r})"


def earlier(by: timedelta) -> datetime:
    """The time that much before now, in UTC.

    Raises:
        ConfigurationError: A time before the epoch, or in the future.
    """
    try:
        then = datetime.now(UTC) - by
    except OverflowError:
        then = datetime.min.replace(tzinfo=UTC)
    if by < timedelta(0) or then.year < 1970:
        raise ConfigurationError("The time must be some days ago, and after 1970.")
    return then
