from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from guardrail_vl import Guard, ImagePart
from guardrail_vl._lock import FolderLock
from guardrail_vl.bulk import Progress, RayPool, Summary, moderate
from guardrail_vl.bulk._journal import Journal
from guardrail_vl.errors import ConfigurationError, GuardrailError
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword
from tests.bulk.files import keywords, lasting, make_guard, read, write

FORMATS = ("jsonl", "csv", "parquet")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def parquet_where_it_is_asked_for(request: pytest.FixtureRequest) -> None:
    if "parquet" in request.node.name:
        pytest.importorskip("pyarrow")


def rows(count: int) -> list[dict[str, Any]]:
    words = ("a cake", "a bomb", "a crash", "a door", "ein Törtchen")
    return [{"id": f"r{i}", "prompt": f"question {i}: {words[i % 5]}?", "kind": words[i % 5]} for i in range(count)]


def folder_of(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


# ---- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_every_format_gives_the_same_rows(source: str, output: str, tmp_path: Path) -> None:
    there = write(tmp_path / f"in.{source}", rows(70))
    out = tmp_path / f"out.{output}"
    summary = moderate(make_guard(), there, out, keep=["kind"], batch=8)
    found = read(out)
    assert (summary.rows, summary.allow, summary.block, summary.error) == (70, 42, 14, 14)
    assert [(row["row"], row["id"]) for row in found] == [(i, f"r{i - 1}") for i in range(1, 71)]
    assert [row["action"] for row in found[:5]] == ["allow", "block", "block", "allow", "allow"]
    assert [row["kind"] for row in found[:5]] == ["a cake", "a bomb", "a crash", "a door", "ein Törtchen"]
    assert [row["error"] for row in found[:3]] == [None, None, "EngineUnavailableError: It is down."]
    expected = tmp_path / "expected.jsonl"
    moderate(make_guard(), write(tmp_path / "same.jsonl", rows(70)), expected, keep=["kind"])
    assert lasting(found) == lasting(read(expected))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {there.name, out.name, "same.jsonl", "expected.jsonl"}
    )


@pytest.mark.parametrize("source", FORMATS)
def test_a_row_says_what_check_says(source: str, tmp_path: Path) -> None:
    conversation = [{"role": "user", "content": "a cake?"}, {"role": "assistant", "content": "Here is a bomb."}]
    given: list[dict[str, Any]] = [
        {"id": 1, "prompt": "a cake?", "response": "a bomb", "messages": None},
        {"id": 2, "prompt": None, "response": None, "messages": conversation},
        {"id": 3, "prompt": "a bomb?", "response": None, "messages": None},
    ]
    if source == "csv":
        given = [{name: value for name, value in row.items() if value is not None} for row in given]
    guard = Guard(engine=ScriptedEngine(by_keyword("bomb")))
    out = tmp_path / "out.jsonl"
    moderate(guard, write(tmp_path / f"in.{source}", given), out, reasoning=True)
    decisions = [
        guard.check_response("a bomb", prompt="a cake?"),
        guard.check(conversation),
        guard.check_prompt("a bomb?"),
    ]
    for row, decision in zip(read(out), decisions, strict=True):
        verdict = decision.verdict
        assert verdict is not None
        assert (row["action"], row["stage"], row["reason"]) == (decision.action, decision.stage, decision.reason)
        assert (row["prompt_label"], row["response_label"]) == (verdict.prompt, verdict.response)
        assert (row["model"], row["policy"], row["reasoning"]) == (verdict.model, guard.policy.hash, verdict.reasoning)
        assert row["decision"].startswith("gd_")


@pytest.mark.parametrize("source", FORMATS)
def test_pictures_come_as_paths_urls_and_lists_of_these(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), "red").save("a.png")
    url = ImagePart.load("a.png").data_url
    engine = ScriptedEngine(by_keyword("bomb"))
    listed: list[dict[str, Any]] = [{"images": ["a.png", url]}, {"images": ["a.png"]}]
    alone: list[dict[str, Any]] = [{"images": "a.png"}, {"images": url}, {"images": "none.png"}]
    for name, given in (("listed", listed), ("alone", alone)):
        moderate(Guard(engine=engine), write(tmp_path / f"{name}.{source}", given), tmp_path / f"{name}_out.jsonl")
    found = read(tmp_path / "listed_out.jsonl") + read(tmp_path / "alone_out.jsonl")
    assert [row["action"] for row in found] == ["allow", "allow", "allow", "allow", "block"]
    assert found[-1]["error"].startswith("ContentError: In row 3:")
    assert "none.png" not in json.dumps(found)


def test_parquet_brings_pictures_as_bytes(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for name, images in (("alone", data), ("list", [data]), ("dataset", {"bytes": data, "path": "a.png"})):
        out = tmp_path / f"{name}.jsonl"
        guard = make_guard()
        moderate(guard, write(tmp_path / f"{name}.parquet", [{"prompt": "see", "images": images}]), out)
        assert read(out)[0]["error"] is None
        assert isinstance(guard.engine, ScriptedEngine)
        assert len(guard.engine.prompts) == 1


def test_messages_of_parquet_lose_the_fields_that_only_the_table_has(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a bomb?", "name": None},
        {"role": "assistant", "content": "No.", "name": "helper"},
    ]
    moderate(make_guard(), write(tmp_path / "in.parquet", [{"messages": messages}]), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["error"] is None


def test_kept_columns_of_parquet_keep_their_type(tmp_path: Path) -> None:
    import datetime

    import pyarrow.parquet as pq

    day = datetime.date(2026, 1, 2)
    given = [{"id": 7, "prompt": "p", "n": 1, "x": 0.5, "ok": True, "day": day}, {"prompt": "q", "x": float("nan")}]
    moderate(
        make_guard(), write(tmp_path / "in.parquet", given), tmp_path / "out.parquet", keep=["n", "x", "ok", "day"]
    )
    table = pq.read_table(tmp_path / "out.parquet")
    assert [str(table.schema.field(name).type) for name in ("id", "n", "x", "ok", "day")] == [
        "int64", "int64", "double", "bool", "string",
    ]  # fmt: skip
    first, second = table.select(["id", "n", "x", "ok", "day"]).to_pylist()
    assert first == {"id": 7, "n": 1, "x": 0.5, "ok": True, "day": "2026-01-02"}
    assert second == {"id": None, "n": None, "x": None, "ok": None, "day": None}


# ---- bad rows -----------------------------------------------------------------------------------------------------

SECRET = "xyzzy"


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("in.jsonl", b'{"prompt": "xyzzy\n', "not valid JSON"),
        ("in.jsonl", b'{"other": "xyzzy"}\n', "Row 1 has nothing to judge"),
        ("in.jsonl", b'{"prompt": "xyzzy", "messages": []}\n', "messages and other content"),
        ("in.jsonl", b'{"id": ["xyzzy"], "prompt": "a"}\n', "neither text nor a number"),
        ("in.jsonl", b'"xyzzy\xff"\n', "not valid UTF-8"),
        ("in.csv", b'id,prompt\n1,"xyzzy"b\n', "not valid CSV"),
        ("in.csv", b"id,prompt\n1,xyzzy,xyzzy\n", "has 3 fields, the header 2"),
        ("in.csv", b"id,prompt\n1,xyzzy\xff\n", "not valid UTF-8"),
        ("in.csv", b"id,prompt\n1,\n", "nothing to judge"),
        ("in.csv", b'id,messages,prompt\n1,"[xyzzy",\n', "messages of row 1 is not valid JSON"),
        ("in.csv", b'id,images,prompt\n1,"[xyzzy",\n', "images of row 1 is not valid JSON"),
    ],
)
def test_a_bad_row_is_a_row(name: str, raw: bytes, says: str, tmp_path: Path) -> None:
    commas = raw.partition(b"\n")[0].count(b",")
    good = b"2" + b"," * commas + b"fine\n" if name.endswith("csv") else b'{"prompt": "fine"}\n'
    (tmp_path / name).write_bytes(raw + good)
    summary = moderate(make_guard(), tmp_path / name, tmp_path / "out.jsonl")
    bad, fine = read(tmp_path / "out.jsonl")
    assert (bad["action"], bad["row"], fine["row"], fine["action"]) == ("block", 1, 2, "allow")
    assert bad["error"].startswith("ContentError: ")
    assert says in bad["error"]
    assert (summary.error, summary.allow) == (1, 1)
    assert SECRET not in (tmp_path / "out.jsonl").read_text()


def test_the_fail_mode_says_what_becomes_of_a_row_without_a_verdict(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"prompt": "crash"}])
    moderate(make_guard(fail="open"), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert (row["action"], row["error"]) == ("annotate", "EngineUnavailableError: It is down.")


def test_parquet_text_that_is_no_utf8_is_an_error_of_its_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"fine", b"xyzzy\xff", b"good"]).view(pa.string())
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "in.parquet")
    moderate(make_guard(), tmp_path / "in.parquet", tmp_path / "out.jsonl")
    found = read(tmp_path / "out.jsonl")
    assert [row["error"] is None for row in found] == [True, False, True]
    assert SECRET not in json.dumps(found)


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("in.jsonl", b"", "no rows"),
        ("in.jsonl", b"\n\n", "no rows"),
        ("in.csv", b"", "no header"),
        ("in.csv", b"prompt\n", "no rows"),
        ("in.csv", b"text\nxyzzy\n", "nothing to judge"),
        ("in.csv", b"prompt,prompt\na,b\n", "twice"),
        ("in.txt", b"xyzzy", "no format"),
        ("in.parquet", b"xyzzy", "no Parquet file"),
        ("none.jsonl", None, "no file"),
    ],
)
def test_an_input_with_nothing_to_judge_leaves_nothing(name: str, raw: bytes | None, says: str, tmp_path: Path) -> None:
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(ConfigurationError, match=says) as caught:
        moderate(make_guard(), tmp_path / name, tmp_path / "out.jsonl")
    assert SECRET not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {name}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep": ["action"]}, "'action' can't be kept"),
        ({"keep": ["kind", "kind"]}, "twice"),
        ({"batch": 0}, "at least 1"),
        ({"limit": 0}, "at least 1"),
        ({"output": "out.txt"}, "no format"),
        ({"output": "in.jsonl"}, "replace the input"),
        ({"output": "folder.jsonl"}, "is a folder"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_judged(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    source = write(tmp_path / "in.jsonl", rows(3))
    guard = make_guard()
    output = tmp_path / settings.pop("output", "out.jsonl")
    with pytest.raises(ConfigurationError, match=says):
        moderate(guard, source, output, **settings)
    assert isinstance(guard.engine, ScriptedEngine)
    assert guard.engine.calls == 0


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_a_column_to_keep_must_be_there(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no column 'none'"):
        moderate(make_guard(), write(tmp_path / f"in.{source}", rows(3)), tmp_path / "out.jsonl", keep=["none"])


@pytest.mark.parametrize("settings", [{"workers": 0}, {"cpus_per_worker": 0}, {"gpus_per_worker": -1}])
def test_a_pool_needs_workers(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        RayPool(**settings)


def test_a_finished_output_is_replaced_only_on_request(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", rows(3)), tmp_path / "out.jsonl"
    moderate(make_guard(), source, out)
    before = out.read_bytes()
    with pytest.raises(ConfigurationError, match=r"out\.jsonl is there already"):
        moderate(make_guard(), source, out)
    assert out.read_bytes() == before
    moderate(make_guard(), source, out, overwrite=True, limit=2)
    assert len(read(out)) == 2


# ---- stopped and resumed ------------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a run."""


def stopping(after: int, error: type[BaseException] = Stop) -> Callable[[Progress], None]:
    def tick(told: Progress) -> None:
        if told.done >= after:
            raise error

    return tick


@pytest.mark.parametrize("output", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_a_run_goes_on_where_it_was_stopped(source: str, output: str, tmp_path: Path) -> None:
    there, out = write(tmp_path / f"in.{source}", rows(50)), tmp_path / f"out.{output}"
    for after in (8, 24):
        with pytest.raises(Stop):
            moderate(make_guard(), there, out, batch=8, progress=stopping(after))
        assert not out.exists()
    told: list[Progress] = []
    guard = make_guard()
    summary = moderate(guard, there, out, batch=8, progress=told.append)
    assert isinstance(guard.engine, ScriptedEngine)
    assert len(guard.engine.prompts) == 50 - 24
    assert told[0] == Progress(24, 24, 50)
    assert told[-1] == Progress(50, 24, 50)
    assert (summary.rows, summary.kept, summary.error) == (50, 24, 10)
    whole = tmp_path / f"whole.{output}"
    moderate(make_guard(), there, whole)
    assert lasting(read(out)) == lasting(read(whole))
    assert not folder_of(out).exists()


def test_a_torn_or_damaged_end_is_judged_again(tmp_path: Path) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(20)), tmp_path / "out.jsonl"
    whole = tmp_path / "whole.jsonl"
    moderate(make_guard(), there, whole)
    for damage in (b'{"row": 9, "act', b"\0" * 50 + b"\n", b'{"row": 3}\n', b'{"row": 1, "action": "a", "error": 1}\n'):
        with pytest.raises(Stop):
            moderate(make_guard(), there, out, batch=4, progress=stopping(8))
        with (folder_of(out) / "rows.jsonl").open("ab") as file:
            file.write(damage)
        assert moderate(make_guard(), there, out).kept == 8
        assert lasting(read(out)) == lasting(read(whole))
        out.unlink()


def _other_input(tmp_path: Path) -> dict[str, Any]:
    write(tmp_path / "in.jsonl", rows(21))
    return {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_other_input, "the input"),
        (lambda _: {"guard": make_guard(fail="open")}, "the guard"),
        (lambda _: {"keep": ["kind"]}, "the columns"),
        (lambda _: {"reasoning": True}, "the columns"),
        (lambda _: {"limit": 12}, "the limit"),
    ],
)
def test_what_is_left_of_another_run_is_refused(
    change: Callable[[Path], dict[str, Any]], says: str, tmp_path: Path
) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(20)), tmp_path / "out.jsonl"
    with pytest.raises(Stop):
        moderate(make_guard(), there, out, batch=4, progress=stopping(8))
    settings = {"guard": make_guard(), **change(tmp_path)}
    guard = settings.pop("guard")
    with pytest.raises(ConfigurationError, match=f"has changed: {says}.*--restart"):
        moderate(guard, there, out, **settings)
    summary = moderate(guard, there, out, restart=True, **settings)
    assert summary.kept == 0
    assert len(read(out)) == summary.rows >= 12


def test_a_run_that_judged_nothing_binds_nobody(tmp_path: Path) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(5)), tmp_path / "out.jsonl"
    with pytest.raises(Stop):
        moderate(make_guard(), there, out, progress=stopping(0))
    assert not folder_of(out).exists()
    assert moderate(make_guard(fail="open"), there, out).rows == 5


def test_a_run_killed_while_it_cleared_up_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(10)), tmp_path / "out.csv"
    real = os.replace

    def killed(old: Path, new: Path) -> None:
        real(old, new)
        if Path(new) == out:
            raise Stop

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Stop):
        moderate(make_guard(), there, out)
    monkeypatch.undo()
    before = out.read_bytes()
    assert folder_of(out).exists()
    guard = make_guard()
    summary = moderate(guard, there, out)
    assert isinstance(guard.engine, ScriptedEngine)
    assert guard.engine.calls == 0
    assert (summary.rows, summary.block, out.read_bytes()) == (10, 2, before)
    assert not folder_of(out).exists()


@pytest.mark.parametrize("output", FORMATS)
def test_a_run_killed_before_the_output_was_in_place_goes_on(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(10)), tmp_path / f"out.{output}"
    real = os.replace

    def killed(old: Path, new: Path) -> None:
        if Path(new) == out:
            raise Stop
        real(old, new)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Stop):
        moderate(make_guard(), there, out)
    monkeypatch.undo()
    assert not out.exists()
    summary = moderate(make_guard(), there, out)
    assert (summary.rows, summary.kept, len(read(out))) == (10, 10, 10)
    assert not folder_of(out).exists()


def test_restart_judges_again_what_was_finished_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(10)), tmp_path / "out.jsonl"
    monkeypatch.setattr(Journal, "_clear", lambda self: None)
    moderate(make_guard(), there, out)
    monkeypatch.undo()
    guard = make_guard()
    with pytest.raises(ConfigurationError, match="there already"):
        moderate(guard, there, out, restart=True)
    assert moderate(guard, there, out, restart=True, overwrite=True).kept == 0
    assert isinstance(guard.engine, ScriptedEngine)
    assert len(guard.engine.prompts) == 10


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(20)), tmp_path / "out.jsonl"
    real = os.write
    written: list[int] = []

    def full(file: int, data: Any) -> int:
        if bytes(data).startswith(b'{"row": 9'):
            written.append(real(file, bytes(data)[:20]))
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ConfigurationError, match="No space left"):
        moderate(make_guard(), there, out, batch=4)
    monkeypatch.undo()
    assert written == [20]
    assert moderate(make_guard(), there, out).kept == 8
    assert [row["row"] for row in read(out)] == list(range(1, 21))


def test_an_output_to_replace_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(20)), tmp_path / "out.jsonl"
    out.write_text("old")
    with pytest.raises(Stop):
        moderate(make_guard(), there, out, batch=4, overwrite=True, progress=stopping(8))
    assert out.read_text() == "old"
    assert moderate(make_guard(), there, out, overwrite=True).kept == 8


def test_an_input_that_changes_meanwhile_makes_no_output(tmp_path: Path) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(20)), tmp_path / "out.jsonl"

    def change(told: Progress) -> None:
        if told.done == 8:
            with there.open("a") as file:
                file.write('{"prompt": "more"}\n')

    with pytest.raises(ConfigurationError, match="was changed while"):
        moderate(make_guard(), there, out, batch=8, progress=change)
    assert not out.exists()


def test_two_runs_on_one_output_are_refused(tmp_path: Path) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(20)), tmp_path / "out.jsonl"
    refused: list[str] = []

    def other(told: Progress) -> None:
        if told.done == 8:
            with pytest.raises(ConfigurationError) as caught:
                moderate(make_guard(), there, out)
            refused.append(str(caught.value))

    assert moderate(make_guard(), there, out, batch=8, progress=other).rows == 20
    assert len(refused) == 1
    assert str(os.getpid()) in refused[0]


@pytest.mark.skipif(sys.platform == "win32", reason="a held file can't be removed there")
def test_a_lock_whose_folder_was_removed_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    real = os.open

    def late(path: Any, *args: Any) -> int:
        file = real(path, *args)
        (folder / "run.lock").unlink()
        return file

    monkeypatch.setattr(os, "open", late)
    with pytest.raises(ConfigurationError):
        FolderLock(folder).acquire()


SLOW = """
import sys
from guardrail_vl import Guard
from guardrail_vl.bulk import moderate
from guardrail_vl.testing import ScriptedEngine
from tests.bulk.files import keywords
moderate(Guard(engine=ScriptedEngine(keywords, delay=0.03)), sys.argv[1], sys.argv[2], batch=2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
@pytest.mark.parametrize("output", ["jsonl", "parquet"])
def test_kill_minus_9_loses_nothing(output: str, tmp_path: Path) -> None:
    there, out = write(tmp_path / "in.jsonl", rows(60)), tmp_path / f"out.{output}"
    journal = folder_of(out) / "rows.jsonl"
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    for least in (1, 20):
        command = [sys.executable, "-c", SLOW, str(there), str(out)]
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT) as running:
            until = time.monotonic() + 60
            while not journal.exists() or journal.read_bytes().count(b"\n") < least:
                assert running.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            running.send_signal(signal.SIGKILL)
        assert running.returncode == -signal.SIGKILL
        assert not out.exists()
    summary = moderate(make_guard(), there, out)
    assert 20 <= summary.kept < 60
    whole = tmp_path / f"whole.{output}"
    moderate(make_guard(), there, whole)
    assert lasting(read(out)) == lasting(read(whole))


# ---- memory -------------------------------------------------------------------------------------------------------


def test_rows_are_read_no_further_than_the_batch(tmp_path: Path) -> None:
    there = write(tmp_path / "in.jsonl", rows(64))
    sizes: list[int] = []
    journal = folder_of(tmp_path / "out.jsonl") / "rows.jsonl"

    def script(prompt: Prompt) -> str | Completion | GuardrailError:
        sizes.append(journal.read_bytes().count(b"\n"))
        return by_keyword("bomb")(prompt)

    moderate(Guard(engine=ScriptedEngine(script)), there, tmp_path / "out.jsonl", batch=16)
    assert sorted(set(sizes)) == [0, 16, 32, 48]


def test_the_summary_is_plain_numbers(tmp_path: Path) -> None:
    summary = moderate(
        Guard(engine=ScriptedEngine(keywords)), write(tmp_path / "in.jsonl", rows(5)), tmp_path / "o.csv"
    )
    assert summary == Summary(5, allow=3, annotate=0, block=1, error=1, kept=0, seconds=summary.seconds)
