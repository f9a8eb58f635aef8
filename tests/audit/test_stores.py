"""What every store does: the same, in files, in SQLite, in PostgreSQL."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

from guardrail_vl.audit import Archive, AuditLog, Correction, Purged, Query
from guardrail_vl.audit._store import Store, open_store
from guardrail_vl.audit.records import FLAGGED
from guardrail_vl.errors import AuditError, ConfigurationError
from guardrail_vl.verdict import Action, Label, Stage
from tests.audit.stores import guard, postgres, record


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["lines", "sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "lines":
        yield str(tmp_path / "audit.jsonl")
    elif request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'audit.db'}"
    else:
        import sqlalchemy

        url = request.getfixturevalue("server")
        yield url
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            for table in ("audit_records", "audit_content", "audit_labels"):
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")
        engine.dispose()


@pytest.fixture
def store(target: str) -> Iterator[Store]:
    with closing(open_store(target, content=True)) as store:
        yield store


def test_a_record_comes_back_as_it_was(store: Store) -> None:
    full = replace(
        record("a", app="shop"), stage=Stage.RESPONSE, prompt=Label.UNHARMFUL, response=Label.HARMFUL, prompt_score=0.1,
        response_score=1 / 3, categories=("violence", "täuschung"), error="ParseError", error_message="No label.",
        policy="p", model="m", format="f", speed="fast", latency=0.25, prompt_tokens=7, completion_tokens=9, first=0,
        last=3, in_context=True,
    )  # fmt: skip
    bare = record("b", days=1)
    store.add([(full, b'{"a": "\xc3\xa4"}'), (bare, None)])
    assert store.find(Query()) == [full, bare]
    assert (store.get("a"), store.get("c")) == (full, None)
    assert store.contents(["a", "b"]).keys() == {"a"}
    assert store.content_count() == 1


def test_bytes_that_are_no_json_come_back(store: Store) -> None:
    sealed = bytes(range(256))
    store.add([(record("a"), sealed)])
    assert store.contents(["a"]) == {"a": sealed}


def test_a_record_is_kept_once(store: Store) -> None:
    store.add([(record("a"), None)])
    store.add([(record("a"), None), (record("b"), None)])
    assert sorted(one.id for one in store.find(Query())) == ["a", "b"]


def test_finding(store: Store) -> None:
    ages = {"a": 5, "b": 4, "c": 3, "d": 3, "e": 1}
    same = record("d", days=3)
    for id, days in ages.items():
        one = record(
            id, days=days, action=Action.BLOCK if id in "bcd" else Action.ALLOW, app="shop" if id < "c" else ""
        )
        store.add([(replace(one, time=same.time) if id in "cd" else one, None)])
    store.correct(Correction("c", "Ada", datetime.now(UTC), prompt=Label.HARMFUL), None)

    def found(query: Query) -> str:
        assert store.count(replace(query, after=None, limit=1)) >= len(store.find(query))
        return "".join(one.id for one in store.find(query))

    assert found(Query()) == "edcba"
    assert found(Query(limit=2)) == "ed"
    assert found(Query(limit=2, after="d")) == "cb"
    assert found(Query(after="gone")) == ""
    assert found(Query(actions=FLAGGED)) == "dcb"
    assert found(Query(app="shop")) == "ba"
    assert found(Query(app="")) == "edc"
    assert found(Query(reviewed=True)) == "c"
    assert found(Query(actions=FLAGGED, reviewed=False)) == "db"
    assert found(Query(stage=Stage.RESPONSE)) == ""
    assert store.apps() == ["", "shop"]


def test_the_newest_correction_counts(store: Store, target: str) -> None:
    store.add([(record("a"), None)])
    with Archive(target) as archive:
        for label, note in ((Label.HARMFUL, "first"), (Label.UNHARMFUL, "säcond")):
            archive.correct(Correction("a", "Ada", datetime.now(UTC), prompt=label, note=note))
        found = archive.corrections(["a", "b"])
        assert (found["a"].prompt, found["a"].note, len(found)) == (Label.UNHARMFUL, "säcond", 1)
        with pytest.raises(ConfigurationError, match="no decision"):
            archive.correct(Correction("b", "Ada", datetime.now(UTC), prompt=Label.HARMFUL))
        with pytest.raises(ConfigurationError, match="at most"):
            archive.correct(replace(found["a"], note="x" * 5_000))


def test_purging(store: Store, target: str) -> None:
    store.add([(record(id, days=days), b'{"secret": 1}') for id, days in (("a", 40), ("b", 20), ("c", 1))])
    with Archive(target) as archive:
        for id in "abc":
            archive.correct(Correction(id, "Ada", datetime.now(UTC), prompt=Label.HARMFUL, note="quotes"))
        assert archive.purge(timedelta(days=10), content_only=True) == Purged(0, 2)
        assert store.contents(list("abc")).keys() == {"c"}
        found = archive.corrections(list("abc"))
        assert {id: one.note for id, one in found.items()} == {"a": "", "b": "", "c": "quotes"}
        assert archive.purge(timedelta(days=30)) == Purged(1, 0)
        assert [one.id for one in archive.find()] == ["c", "b"]
        assert archive.corrections(list("abc")).keys() == {"b", "c"}
        for wrong in (timedelta(days=-1), timedelta(days=90_000)):
            with pytest.raises(ConfigurationError):
                archive.purge(wrong)


def test_a_guard_fills_it(target: str) -> None:
    with AuditLog(target, content=True) as log:
        one = guard(log)
        decision = one.check_prompt("a bomb")
        one.check_prompt("bread")
        log.flush()
        assert log.archive.stats() == {
            "records": 2, "allow": 1, "annotate": 0, "block": 1, "reviewed": 0, "to_review": 1, "contents": 2,
        }  # fmt: skip
        content = log.archive.content(decision.id)
        assert content is not None
        assert content.turn.messages[0].text == "a bomb"
        assert content.reasoning


def _child(target: str) -> None:
    with AuditLog(target) as log:
        one = guard(log)
        for _ in range(25):
            one.check_prompt("a bomb")


def test_processes_write_at_the_same_time(target: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=_child, args=(target,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(100)
    assert [child.exitcode for child in children] == [0, 0]
    with Archive(target) as archive:
        assert archive.count() == 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_writes_too(target: str) -> None:
    with AuditLog(target) as log:
        one = guard(log)
        one.check_prompt("a bomb")
        log.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                one.check_prompt("bread")
                log.close()
                status = log.dropped
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        one.check_prompt("a bomb")
        log.flush()
        assert log.archive.count() == 3


# ---- one kind only ------------------------------------------------------------------------------------------------


def test_the_content_table_stands_alone(tmp_path: Path) -> None:
    import sqlalchemy

    url = f"sqlite:///{tmp_path / 'audit.db'}"
    for content, tables in ((False, {"audit_records", "audit_labels"}), (True, {"audit_content"})):
        with AuditLog(url, content=content) as log:
            guard(log).check_prompt("bread")
            log.flush()
        engine = sqlalchemy.create_engine(url)
        assert tables <= set(sqlalchemy.inspect(engine).get_table_names())
        assert ("audit_content" in sqlalchemy.inspect(engine).get_table_names()) == content
        engine.dispose()


def test_what_was_purged_is_not_in_the_file(tmp_path: Path) -> None:
    for target in (f"sqlite:///{tmp_path / 'audit.db'}", str(tmp_path / "audit.jsonl")):
        with AuditLog(target, content=True) as log:
            guard(log).check_prompt("the word is xylophone-7")
            log.flush()
            log.purge(timedelta(0), content_only=True)
    assert not any(b"xylophone-7" in file.read_bytes() for file in tmp_path.iterdir())


def test_a_line_that_was_cut_off_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with closing(open_store(path, content=False)) as store:
        store.add([(record("a"), None)])
        with path.open("ab") as file:
            file.write(b'{"id":"b","time":"20')
        store.add([(record("c"), None)])
        assert sorted(one.id for one in store.find(Query())) == ["a", "c"]


def test_what_another_process_purged_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with closing(open_store(path, content=False)) as one, closing(open_store(path, content=False)) as other:
        assert one.find(Query()) == []
        for number in range(3):
            other.add([(record(f"a{number}", days=number * 10), None)])
            assert one.count(Query()) == number + 1
        other.purge(datetime.now(UTC) - timedelta(days=5), content_only=False)
        assert [found.id for found in one.find(Query())] == ["a0"]
        other.add([(record("b"), None)])
        assert one.get("b") is not None
        path.unlink()
        assert one.count(Query()) == 0


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_files_are_the_owners_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (tmp_path / "audit.content.jsonl").symlink_to(tmp_path / "vault" / "content.jsonl")
    with AuditLog(tmp_path / "audit.jsonl", content=True) as log:
        guard(log).check_prompt("bread")
        log.flush()
        log.purge(timedelta(days=1))
    vault = tmp_path / "vault" / "content.jsonl"
    assert (tmp_path / "audit.content.jsonl").is_symlink()
    assert b"bread" in vault.read_bytes()
    assert [oct(path.stat().st_mode & 0o777) for path in (vault, tmp_path / "audit.jsonl")] == ["0o600", "0o600"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("audit.txt", "jsonl"),
        ("sqlite://", "needs a file"),
        ("nonsense://x", "no URL"),
        ("mssql+pymssql://x/y", "driver"),
    ],
)
def test_targets_that_are_none(target: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        AuditLog(target)


def test_a_database_that_is_down_tells_no_secret(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    url = "postgresql+psycopg://audit:hunter2@127.0.0.1:9/none"
    with Archive(url) as archive, pytest.raises(AuditError) as caught:
        archive.count()
    assert "hunter2" not in str(caught.value) + repr(archive)
    assert caught.value.__suppress_context__
