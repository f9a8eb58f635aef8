"""Where records, contents and corrections lie: the one seam between the log and files or tables.

A store is given content as bytes, perhaps encrypted, and never looks into them. It is safe across threads and forks.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime

from guardrail_vl.audit.records import AuditRecord, Correction, Purged, Query
from guardrail_vl.errors import ConfigurationError


class Store(ABC):
    """Raises AuditError, with no content in it, where it can't do what it is asked."""

    @abstractmethod
    def add(self, items: Sequence[tuple[AuditRecord, bytes | None]]) -> None:
        """Keep records, and the content of those that have some. One that is there already stays as it is."""

    @abstractmethod
    def find(self, query: Query) -> list[AuditRecord]:
        """The records that are meant, newest first."""

    @abstractmethod
    def count(self, query: Query) -> int:
        """How many there are, whatever `after` and `limit` say."""

    @abstractmethod
    def get(self, id: str) -> AuditRecord | None:
        """One record."""

    @abstractmethod
    def apps(self) -> list[str]:
        """The names of apps that have records."""

    @abstractmethod
    def contents(self, ids: Sequence[str]) -> dict[str, bytes]:
        """The content of those that have some."""

    @abstractmethod
    def content_count(self) -> int:
        """How many contents there are."""

    @abstractmethod
    def correct(self, correction: Correction, note: bytes | None) -> None:
        """Keep a correction; its own note is left out."""

    @abstractmethod
    def corrections(self, ids: Sequence[str]) -> dict[str, tuple[Correction, bytes | None]]:
        """The newest correction of those that have one, and its note."""

    @abstractmethod
    def purge(self, before: datetime, *, content_only: bool) -> Purged:
        """Delete what was written before, contents and notes first."""

    @abstractmethod
    def close(self) -> None:
        """Free what it holds. It opens again when it is used."""


def open_store(target: str | os.PathLike[str], *, content: bool) -> Store:
    """The store that a target names. Nothing is opened or created before it is used.

    Args:
        target: A path `*.jsonl`, or an SQLAlchemy URL.
        content: Whether content will be written, so that there has to be room for it.

    Raises:
        ConfigurationError: It is neither.
        MissingDependencyError: A URL, and no SQLAlchemy.
    """
    named = os.fspath(target)
    if "://" in named:
        from guardrail_vl.audit._tables import TableStore

        return TableStore(named, content=content)
    if not named.endswith(".jsonl"):
        raise ConfigurationError(
            "An audit log is a file *.jsonl or an SQLAlchemy URL.",
            hint="Write, for example, audit.jsonl or sqlite:///audit.db",
        )
    from guardrail_vl.audit._lines import LineStore

    return LineStore(named)


def shown(target: str | os.PathLike[str]) -> str:
    """A target as it may be shown: a URL may hold a password."""
    named = os.fspath(target)
    return f"{named.partition('://')[0]}://…" if "://" in named else os.path.basename(named)
