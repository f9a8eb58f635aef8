"""The log as a hook: nothing of the content without consent, nothing lost in silence, nobody kept waiting."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail_vl import Guard
from guardrail_vl.audit import Archive, AuditLog, app_name
from guardrail_vl.audit import _writer as writing
from guardrail_vl.audit._lines import LineStore
from guardrail_vl.audit._store import open_store
from guardrail_vl.audit.records import AuditRecord
from guardrail_vl.errors import AuditError, ConfigurationError, ContentError, EngineUnavailableError
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.training.audited import labelled
from guardrail_vl.verdict import Label
from tests.audit.stores import guard, record
from tests.evaluation.pictures import RED

# ---- content ------------------------------------------------------------------------------------------------------

# Words that no record holds by itself.
SAID = st.text(st.characters(codec="utf-8"), min_size=6).map(lambda text: f"ß{text}ß")


@settings(max_examples=40)
@given(prompt=SAID, response=SAID, database=st.booleans())
def test_without_consent_no_file_holds_a_text(prompt: str, response: str, database: bool) -> None:
    if database:
        pytest.importorskip("sqlalchemy")

    def quoting(asked: Any) -> Any:  # a model that quotes all it was given
        completion = by_keyword(prompt)(asked)
        return completion.text.replace("Looked", prompt + response + "\nLooked")  # type: ignore[union-attr]

    with tempfile.TemporaryDirectory() as folder:
        target = f"sqlite:///{folder}/audit.db" if database else f"{folder}/audit.jsonl"
        with AuditLog(target) as log:
            one = Guard(engine=ScriptedEngine(quoting), pre_prompt=log, post_response=log)
            one.check_prompt(prompt, images=[RED])
            one.check_response(response, prompt=prompt)
            log.flush()
            assert log.archive.count() == 2
            assert log.archive.stats()["contents"] == 0
        for file in Path(folder).iterdir():
            data = file.read_bytes()
            for said in (prompt, response):
                escaped = json.dumps(said)[1:-1]
                assert said.encode() not in data
                assert escaped.encode() not in data
            assert RED not in data


def test_with_consent_it_lies_in_a_file_of_its_own(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl", content=True) as log:
        decision = guard(log).check_prompt("xylophone-7", images=[RED])
        log.flush()
        content = log.archive.content(decision.id)
        assert content is not None
        assert content.turn.messages[0].images[0].data == RED
        assert "xylophone" not in repr(content) + repr(log)
    holding = {file.name for file in tmp_path.iterdir() if b"xylophone-7" in file.read_bytes()}
    assert holding == {"audit.content.jsonl"}


def test_content_can_be_encrypted(tmp_path: Path) -> None:
    def flip(data: bytes) -> bytes:
        return bytes(byte ^ 0x5A for byte in data)

    path = tmp_path / "audit.jsonl"
    with AuditLog(path, content=True, encrypt=flip, decrypt=flip) as log:
        decision = guard(log).check_prompt("xylophone-7")
        log.flush()
        assert log.archive.content(decision.id) is not None
    assert not any(b"xylophone" in file.read_bytes() for file in tmp_path.iterdir())
    with Archive(path) as archive, pytest.raises(ContentError, match="encrypted"):
        archive.content(decision.id)
    with Archive(path, encrypt=flip, decrypt=lambda data: data[:-1]) as archive, pytest.raises(ContentError):
        archive.content(decision.id)

    def refuse(data: bytes) -> bytes:
        raise ValueError(data)

    with Archive(path, encrypt=flip, decrypt=refuse) as archive, pytest.raises(ContentError, match="decrypted"):
        archive.content(decision.id)
    with Archive(path) as archive:
        assert next(archive.entries()).content is None
    with pytest.raises(ConfigurationError, match="together"):
        AuditLog(path, encrypt=flip)


def test_what_was_refused_before_it_became_a_turn(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl", content=True) as log:
        guard(log).check_prompt(images=[b"no picture"])
        log.flush()
        (found,) = log.archive.find()
    assert found.error == "ContentError"
    assert found.action == "block"
    assert not (tmp_path / "audit.content.jsonl").exists()


# ---- records ------------------------------------------------------------------------------------------------------


def test_what_a_record_says(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl", app="shop") as log:
        one = guard(log)
        decision = one.check(
            [{"role": "user", "content": "bread"}, {"role": "assistant", "content": "yes"},
             {"role": "user", "content": "a bomb"}]
        )  # fmt: skip
        with app_name("bot"):
            asyncio.run(one.acheck_response("bread", prompt="bread"))
        down = Guard(engine=ScriptedEngine(lambda prompt: EngineUnavailableError("It is down.")), pre_prompt=log)
        down.check_prompt("bread")
        log.flush()
        third, second, first = log.archive.find()
    assert (first.id, first.app, first.action, first.prompt) == (decision.id, "shop", "block", Label.HARMFUL)
    assert (first.first, first.last, first.in_context, first.policy) == (2, 2, False, decision.policy)
    assert (first.model, first.format, first.speed) == ("scripted", "guardreasoner-vl/1", "reason")
    assert (second.app, second.stage, second.response) == ("bot", "response", Label.UNHARMFUL)
    assert (third.error, third.error_message, third.prompt) == ("EngineUnavailableError", "It is down.", None)
    assert first.time.utcoffset() == timedelta(0)


def test_labels_that_rest_on_what_came_before(tmp_path: Path) -> None:
    messages = [{"role": role, "content": text} for role, text in
                (("user", "a bomb"), ("assistant", "no"), ("user", "bread"))]  # fmt: skip
    with AuditLog(tmp_path / "audit.jsonl", content=True) as log:
        one = guard(log).replace(policy={"history": "allow"})
        one.check(messages)
        log.flush()
        (found,) = log.archive.find()
        # The script finds the word in the context, which a model may do too.
        assert (found.first, found.in_context, found.prompt) == (2, True, Label.HARMFUL)
        assert labelled(log.archive).unfit == 1


def test_it_changes_no_decision(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl") as log:
        assert log(None, guard(log).check_prompt("bread")) is None


# ---- threads, loops, processes ------------------------------------------------------------------------------------


def test_many_threads(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl", content=True) as log:
        one = guard(log)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one.check_prompt, [f"bread {number}" for number in range(200)]))
        log.flush()
        assert (log.archive.count(), log.dropped) == (200, 0)


class Stuck(LineStore):
    """A store that writes nothing until it may."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.go = threading.Event()

    def add(self, items: Sequence[tuple[AuditRecord, bytes | None]]) -> None:
        self.go.wait(60)
        super().add(items)


class Broken(LineStore):
    """A store that fails, and names what it was given."""

    def add(self, items: Sequence[tuple[AuditRecord, bytes | None]]) -> None:
        raise RuntimeError(f"can't store {items!r}")


def with_store(log: AuditLog, store: LineStore) -> AuditLog:
    log._writer._store = store
    return log


def test_an_event_loop_never_waits(tmp_path: Path) -> None:
    store = Stuck(str(tmp_path / "audit.jsonl"))
    log = with_store(AuditLog(tmp_path / "audit.jsonl"), store)
    one = guard(log)

    async def check() -> float:
        begun = time.monotonic()
        await asyncio.gather(*(one.acheck_prompt(f"bread {number}") for number in range(50)))
        return time.monotonic() - begun

    try:
        assert asyncio.run(check()) < 5
        assert log.archive.count() == 0
        with pytest.raises(AuditError, match="in time"):
            log.flush(timeout=0.05)
    finally:
        store.go.set()
        log.close()
    assert log.archive.count() == 50


def test_a_full_queue_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Stuck(str(tmp_path / "audit.jsonl"))
    log = with_store(AuditLog(tmp_path / "audit.jsonl", queue=5), store)
    one = guard(log)
    with caplog.at_level(logging.WARNING, logger="guardrail_vl.audit"):
        for number in range(20):
            one.check_prompt(f"xylophone {number}")
    store.go.set()
    log.close()
    assert 14 <= log.dropped <= 15
    assert log.archive.count() == 20 - log.dropped
    (warning,) = caplog.records  # not one for each
    assert "queue is full" in warning.getMessage()
    assert "xylophone" not in caplog.text


def test_pictures_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "QUEUE_BYTES", 3 * len(RED))
    store = Stuck(str(tmp_path / "audit.jsonl"))
    log = with_store(AuditLog(tmp_path / "audit.jsonl", content=True), store)
    one = guard(log)
    for _ in range(10):
        one.check_prompt(images=[RED])
    store.go.set()
    log.close()
    assert log.dropped == 7
    one.check_prompt(images=[RED])  # there is room again
    log.close()
    assert log.dropped == 7


def test_a_store_that_fails_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with with_store(AuditLog(tmp_path / "audit.jsonl", content=True), Broken(str(tmp_path / "audit.jsonl"))) as log:
        assert guard(log).check_prompt("xylophone-7").action == "allow"
        log.flush()
    assert log.dropped == 1
    assert "RuntimeError" in caplog.text
    assert "xylophone" not in caplog.text


class Down(LineStore):
    """A store that is down for some tries."""

    def __init__(self, path: str, tries: int) -> None:
        super().__init__(path)
        self.tries = tries
        self.tried = 0

    def add(self, items: Sequence[tuple[AuditRecord, bytes | None]]) -> None:
        self.tried += 1
        if self.tried <= self.tries:
            raise AuditError("It is down.")
        super().add(items)


def test_a_store_that_is_down_for_a_while_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.jsonl"
    with with_store(AuditLog(path), Down(str(path), 3)) as log:
        one = guard(log)
        for number in range(5):
            one.check_prompt(f"xylophone {number}")
        log.flush()
        assert (log.dropped, log.archive.count()) == (0, 5)
    assert "tried again" in caplog.text
    assert "xylophone" not in caplog.text


def test_a_store_that_stays_down_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    store = Down(str(path), 1_000_000)
    log = with_store(AuditLog(path), store)
    one = guard(log)
    for number in range(600):
        one.check_prompt(f"bread {number % 7}")
    begun = time.monotonic()
    log.close()
    assert time.monotonic() - begun < 10
    assert log.dropped == 600
    assert store.tried < 20
    store.tries = 0
    one.check_prompt("bread")
    log.close()
    assert (log.dropped, log.archive.count()) == (600, 1)


def test_one_bad_record_costs_only_itself(tmp_path: Path) -> None:
    class Picky(LineStore):
        def add(self, items: Sequence[tuple[AuditRecord, bytes | None]]) -> None:
            if any(record.action == "block" for record, _ in items):
                raise ValueError
            super().add(items)

    store = Picky(str(tmp_path / "audit.jsonl"))
    with with_store(AuditLog(tmp_path / "audit.jsonl"), store) as log:
        one = guard(log)
        for text in ("bread", "a bomb", "butter"):
            one.check_prompt(text)
        log.flush()
        assert (log.dropped, log.archive.count()) == (1, 2)


def test_strict_waits_or_raises(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path, strict=True) as log:
        one = guard(log)
        one.check_prompt("bread")
        assert log.archive.count() == 1  # without a flush

        async def check() -> None:
            await one.acheck_prompt("butter")
            assert log.archive.count() == 2
            with pytest.raises(ConfigurationError, match="async check"):
                one.check_prompt("jam")

        asyncio.run(check())
    with with_store(AuditLog(path, strict=True), Broken(str(path))) as log:
        with pytest.raises(AuditError):
            guard(log).check_prompt("bread")
        with pytest.raises(AuditError):
            asyncio.run(guard(log).acheck_prompt("bread"))


def test_content_that_cannot_be_encrypted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(data: bytes) -> bytes:
        raise RuntimeError(data.decode())

    with AuditLog(tmp_path / "audit.jsonl", content=True, encrypt=broken, decrypt=broken) as log:
        guard(log).check_prompt("xylophone-7")
        log.flush()
        assert (log.archive.count(), log.dropped) == (1, 1)
    assert "xylophone" not in caplog.text


def test_it_is_pickled_by_its_configuration(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl", app="shop", content=True) as log:
        one = guard(log)
        with pickle.loads(pickle.dumps(log)) as again:
            again(None, one.check_prompt("bread"))
            again.flush()
            log.flush()
            assert again._settings == log._settings
            assert log.archive.find()[0].app == "shop"


def test_it_opens_again_after_close_and_is_written_when_nobody_has_it(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    guard(log).check_prompt("bread")
    log.close()
    guard(log).check_prompt("butter")
    thread = log._writer._thread
    del log
    gc.collect()
    assert thread is not None
    assert not thread.is_alive()
    with Archive(tmp_path / "audit.jsonl") as archive:
        assert archive.count() == 2


# ---- retention ----------------------------------------------------------------------------------------------------


def test_retention_at_start_and_every_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_DAY", 0.05)
    path = tmp_path / "audit.jsonl"
    with closing(open_store(path, content=True)) as store:
        store.add([(record("old", days=8), b"{}"), (record("new", days=6), b"{}")])
        with AuditLog(path, retention=7) as log:  # before any decision
            until = time.monotonic() + 20
            while log.archive.count() > 1 and time.monotonic() < until:
                time.sleep(0.02)
            assert [one.id for one in log.archive.find()] == ["new"]
            store.add([(record("older", days=9), b"{}")])
            while log.archive.count() > 1 and time.monotonic() < until:
                time.sleep(0.02)
            assert [one.id for one in log.archive.find()] == ["new"]


# ---- what it needs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("sqlalchemy", "from guardrail_vl.audit import AuditLog; AuditLog('sqlite:///audit.db')", "audit"),
        ("fastapi", "import guardrail_vl.review", "server"),
        ("uvicorn", "import guardrail_vl.review", "server"),
    ],
)
def test_what_is_missing_is_named(missing: str, code: str, extra: str) -> None:
    said = run(f"import sys; sys.modules[{missing!r}] = None; {code}")
    assert f"pip install 'guardrail-vl[{extra}]'" in said
    assert "MissingDependencyError" in said


def test_lines_need_nothing() -> None:
    code = "import sys, guardrail_vl, guardrail_vl.audit as a; a.AuditLog('audit.jsonl'); print('sqlalchemy' in sys.modules)"
    assert run(code) == "False\n"
    assert (
        run("import sys, guardrail_vl.cli; print({'sqlalchemy', 'fastapi', 'uvicorn'} & set(sys.modules))") == "set()\n"
    )


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("wrong", [{"retention": 0}, {"retention": 1e6}, {"queue": 0}])
def test_wrong_settings(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        AuditLog(tmp_path / "audit.jsonl", **wrong)
