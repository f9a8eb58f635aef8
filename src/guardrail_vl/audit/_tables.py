"""A store of three tables, by SQLAlchemy: `audit_records`, `audit_content`, `audit_labels`.

The content's table has no key to the others, so it can be granted, moved and emptied alone; it is made only where
content is written. What is deleted from SQLite is overwritten.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final

from guardrail_vl.audit._store import Store
from guardrail_vl.audit.records import AuditRecord, Correction, Purged, Query
from guardrail_vl.errors import AuditError, ConfigurationError, MissingDependencyError
from guardrail_vl.verdict import Action, Label, Stage

try:
    import sqlalchemy as sql
except ImportError as error:
    raise MissingDependencyError("sqlalchemy", extra="audit", needed_for="An audit log in a database") from error

_IDS: Final = 500
"""Ids in one question: databases have limits."""


class _UTC(sql.types.TypeDecorator[datetime]):
    """A time in UTC, also where the database knows no zones."""

    impl = sql.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sql.Dialect) -> datetime | None:
        """Into the database."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sql.Dialect) -> datetime | None:
        """Out of it."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_META = sql.MetaData()
_RECORDS = sql.Table(
    "audit_records", _META,
    sql.Column("id", sql.String(64), primary_key=True),
    sql.Column("time", _UTC, nullable=False),
    sql.Column("app", sql.Text, nullable=False),
    sql.Column("stage", sql.String(16), nullable=False),
    sql.Column("action", sql.String(16), nullable=False),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("prompt", sql.String(16)),
    sql.Column("response", sql.String(16)),
    sql.Column("prompt_score", sql.Float(53)),
    sql.Column("response_score", sql.Float(53)),
    sql.Column("categories", sql.JSON, nullable=False),
    sql.Column("error", sql.Text),
    sql.Column("error_message", sql.Text),
    sql.Column("policy", sql.Text, nullable=False),
    sql.Column("model", sql.Text, nullable=False),
    sql.Column("format", sql.Text, nullable=False),
    sql.Column("speed", sql.String(16), nullable=False),
    sql.Column("latency", sql.Float(53), nullable=False),
    sql.Column("prompt_tokens", sql.Integer, nullable=False),
    sql.Column("completion_tokens", sql.Integer, nullable=False),
    sql.Column("first", sql.Integer),
    sql.Column("last", sql.Integer),
    sql.Column("in_context", sql.Boolean, nullable=False),
    sql.Index("audit_records_time", "time", "id"),
)  # fmt: skip
_CONTENT = sql.Table(
    "audit_content", _META,
    sql.Column("id", sql.String(64), primary_key=True),
    sql.Column("time", _UTC, nullable=False, index=True),
    sql.Column("content", sql.LargeBinary, nullable=False),
)  # fmt: skip
_LABELS = sql.Table(
    "audit_labels", _META,
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("id", sql.String(64), nullable=False, index=True),
    sql.Column("reviewer", sql.Text, nullable=False),
    sql.Column("time", _UTC, nullable=False),
    sql.Column("prompt", sql.String(16)),
    sql.Column("response", sql.String(16)),
    sql.Column("note", sql.LargeBinary),
)  # fmt: skip

_ENUMS: Final = {"stage": Stage, "action": Action, "prompt": Label, "response": Label}


class TableStore(Store):
    """See `Store`.

    Args:
        url: An SQLAlchemy URL, such as `sqlite:///audit.db` or `postgresql+psycopg://…`.
        content: Whether the content's table is needed.

    Raises:
        ConfigurationError: No such database, its driver is not installed, or it would be gone with the process.
    """

    def __init__(self, url: str, *, content: bool) -> None:
        try:
            self._url = sql.make_url(url)
            memory = self._url.get_backend_name() == "sqlite" and self._url.database in (None, "", ":memory:")
            # No parameters in errors: they are content.
            self._engine = sql.create_engine(self._url, pool_pre_ping=True, hide_parameters=True, **_options(self._url))
        except ImportError:
            raise ConfigurationError(
                "The driver of the audit log's database is not installed.",
                hint="For PostgreSQL: pip install 'psycopg[binary]', and a URL postgresql+psycopg://…",
            ) from None
        except sql.exc.SQLAlchemyError:
            raise ConfigurationError("The audit log's target is no URL that SQLAlchemy knows.") from None
        if memory:
            raise ConfigurationError(
                "An audit log in SQLite needs a file.", hint="Write sqlite:///audit.db, with three slashes."
            )
        if self._url.get_backend_name() == "sqlite":
            sql.event.listen(self._engine, "connect", _overwrite_what_is_deleted)
        self._content = content
        self._reset()
        weakref.finalize(self, _dispose, self._engine, os.getpid())

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._ready = False

    # ---- writing --------------------------------------------------------------------------------------------------

    def add(self, items: Sequence[tuple[AuditRecord, bytes | None]]) -> None:
        """See `Store.add`."""
        try:
            with self._begin() as connection:
                self._add(connection, items)
        except sql.exc.IntegrityError:
            # One is there already, which need not cost the others.
            for item in items:
                with contextlib.suppress(sql.exc.IntegrityError), self._begin() as connection:
                    self._add(connection, [item])

    def _add(self, connection: sql.Connection, items: Sequence[tuple[AuditRecord, bytes | None]]) -> None:
        connection.execute(sql.insert(_RECORDS), [_row(record) for record, _ in items])
        contents = [{"id": r.id, "time": r.time, "content": content} for r, content in items if content is not None]
        if contents:
            connection.execute(sql.insert(_CONTENT), contents)

    def correct(self, correction: Correction, note: bytes | None) -> None:
        """See `Store.correct`."""
        with self._begin() as connection:
            connection.execute(
                sql.insert(_LABELS).values(
                    id=correction.id,
                    reviewer=correction.reviewer,
                    time=correction.time,
                    prompt=correction.prompt,
                    response=correction.response,
                    note=note,
                )
            )

    def purge(self, before: datetime, *, content_only: bool) -> Purged:
        """See `Store.purge`."""
        old = sql.select(_RECORDS.c.id).where(_RECORDS.c.time < before)
        contents = records = 0
        with self._begin() as connection:
            if self._has_content(connection):
                contents = connection.execute(sql.delete(_CONTENT).where(_CONTENT.c.time < before)).rowcount
            if content_only:
                quoting = sql.or_(_LABELS.c.id.in_(old), _LABELS.c.time < before)
                connection.execute(sql.update(_LABELS).where(quoting).values(note=None))
            else:
                connection.execute(sql.delete(_LABELS).where(_LABELS.c.id.in_(old)))
                records = connection.execute(sql.delete(_RECORDS).where(_RECORDS.c.time < before)).rowcount
        return Purged(records=records, contents=contents)

    # ---- reading --------------------------------------------------------------------------------------------------

    def find(self, query: Query) -> list[AuditRecord]:
        """See `Store.find`."""
        wanted = sql.select(_RECORDS).where(*_conditions(query))
        if query.after is not None:
            mark = self.get(query.after)
            if mark is None:
                return []
            same = sql.and_(_RECORDS.c.time == mark.time, _RECORDS.c.id < mark.id)
            wanted = wanted.where(sql.or_(_RECORDS.c.time < mark.time, same))
        wanted = wanted.order_by(_RECORDS.c.time.desc(), _RECORDS.c.id.desc()).limit(query.limit)
        with self._begin() as connection:
            return [_record(row) for row in connection.execute(wanted)]

    def count(self, query: Query) -> int:
        """See `Store.count`."""
        wanted = sql.select(sql.func.count()).select_from(_RECORDS).where(*_conditions(query))
        with self._begin() as connection:
            return int(connection.execute(wanted).scalar_one())

    def get(self, id: str) -> AuditRecord | None:
        """See `Store.get`."""
        with self._begin() as connection:
            row = connection.execute(sql.select(_RECORDS).where(_RECORDS.c.id == id)).first()
        return None if row is None else _record(row)

    def apps(self) -> list[str]:
        """See `Store.apps`."""
        with self._begin() as connection:
            return sorted(connection.execute(sql.select(_RECORDS.c.app).distinct()).scalars())

    def contents(self, ids: Sequence[str]) -> dict[str, bytes]:
        """See `Store.contents`."""
        found = {}
        with self._begin() as connection:
            if not self._has_content(connection):
                return {}
            for start in range(0, len(ids), _IDS):
                some = _CONTENT.c.id.in_(ids[start : start + _IDS])
                for row in connection.execute(sql.select(_CONTENT.c.id, _CONTENT.c.content).where(some)):
                    found[row.id] = bytes(row.content)
        return found

    def content_count(self) -> int:
        """See `Store.content_count`."""
        with self._begin() as connection:
            if not self._has_content(connection):
                return 0
            return int(connection.execute(sql.select(sql.func.count()).select_from(_CONTENT)).scalar_one())

    def corrections(self, ids: Sequence[str]) -> dict[str, tuple[Correction, bytes | None]]:
        """See `Store.corrections`."""
        found = {}
        with self._begin() as connection:
            for start in range(0, len(ids), _IDS):
                some = _LABELS.c.id.in_(ids[start : start + _IDS])
                for row in connection.execute(sql.select(_LABELS).where(some).order_by(_LABELS.c.number)):
                    values = _typed({**row._mapping, "note": ""})
                    del values["number"]
                    found[row.id] = Correction(**values), None if row.note is None else bytes(row.note)
        return found

    def close(self) -> None:
        """See `Store.close`."""
        _dispose(self._engine, self._pid)

    @contextlib.contextmanager
    def _begin(self) -> Iterator[sql.Connection]:
        """A transaction, with the tables there."""
        if self._pid != os.getpid():
            self._engine.dispose(close=False)  # the connections are the parent's
            self._reset()
        with _door():
            if not self._ready:
                with self._lock:
                    self._make()
            with self._engine.begin() as connection:
                yield connection

    def _make(self) -> None:
        tables = [_RECORDS, _LABELS, *([_CONTENT] if self._content else [])]
        try:
            _META.create_all(self._engine, tables=tables)
        except sql.exc.DBAPIError:  # another process makes them at this moment
            _META.create_all(self._engine, tables=tables)
        self._ready = True

    def _has_content(self, connection: sql.Connection) -> bool:
        return self._content or sql.inspect(connection).has_table(_CONTENT.name)


def _dispose(engine: sql.Engine, pid: int) -> None:
    # A forked child shares its parent's connections, and must not end them.
    engine.dispose(close=pid == os.getpid())


def _options(url: sql.URL) -> dict[str, Any]:
    # Another process may write for longer than SQLite waits by itself, and a host that is gone may be waited for for
    # minutes.
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": 30}}
    waits = url.get_driver_name() in ("psycopg", "psycopg2") and "connect_timeout" not in url.query
    return {"connect_args": {"connect_timeout": 10}} if waits else {}


def _overwrite_what_is_deleted(connection: Any, _: object) -> None:
    connection.execute("PRAGMA secure_delete = ON").close()


@contextlib.contextmanager
def _door() -> Iterator[None]:
    try:
        yield
    except sql.exc.IntegrityError:
        raise
    except sql.exc.SQLAlchemyError as error:
        # The message may hold what was to be written; its type doesn't.
        refused = isinstance(error, sql.exc.DataError | sql.exc.StatementError) and not isinstance(
            error, sql.exc.OperationalError | sql.exc.InterfaceError
        )
        message = f"The audit log's database can't be used: {type(error).__name__}."
        raise AuditError(message, retryable=not refused) from None


def _conditions(query: Query) -> list[sql.ColumnElement[bool]]:
    conditions: list[sql.ColumnElement[bool]] = [_RECORDS.c.action.in_([str(action) for action in query.actions])]
    if query.stage is not None:
        conditions.append(_RECORDS.c.stage == str(query.stage))
    if query.app is not None:
        conditions.append(_RECORDS.c.app == query.app)
    if query.reviewed is not None:
        said = sql.exists().where(_LABELS.c.id == _RECORDS.c.id)
        conditions.append(said if query.reviewed else ~said)
    return conditions


def _row(record: AuditRecord) -> dict[str, Any]:
    values = {one.name: getattr(record, one.name) for one in fields(record)}
    # PostgreSQL's text holds no NUL.
    values = {name: value.replace("\0", "") if isinstance(value, str) else value for name, value in values.items()}
    return {**values, "categories": [name.replace("\0", "") for name in record.categories]}


def _record(row: sql.Row[Any]) -> AuditRecord:
    values = _typed(row._mapping)
    return AuditRecord(**{**values, "categories": tuple(values["categories"])})


def _typed(values: Any) -> dict[str, Any]:
    return {
        name: _ENUMS[name](value) if name in _ENUMS and value is not None else value for name, value in values.items()
    }
