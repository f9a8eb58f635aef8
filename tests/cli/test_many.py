from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from guardrail_vl import Guard
from guardrail_vl.cli.many import check_rows
from guardrail_vl.errors import ConfigurationError, EngineUnavailableError, GuardrailError
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword


def make_guard() -> Guard:
    judge = by_keyword("bomb")

    def script(prompt: Prompt) -> str | Completion | GuardrailError:
        return EngineUnavailableError("It is down.") if "crash" in prompt.messages[-1].text else judge(prompt)

    return Guard(engine=ScriptedEngine(script))


def run(
    text: str, capsys: pytest.CaptureFixture[str], *, batch: int = 2, progress: bool | None = None
) -> tuple[int, list[dict[str, Any]], str]:
    status = check_rows(make_guard(), io.BytesIO(text.encode()), batch=batch, progress=progress)
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


@pytest.mark.parametrize("batch", [1, 2, 3, 32])
def test_order_ids_and_numbers_are_kept_around_bad_rows(batch: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = '"a"\n{broken\n\n{"id": 7, "prompt": "a bomb"}\n{"id": "k", "oops": 1}\n"crash"\n"b"\n'
    status, out, err = run(text, capsys, batch=batch)
    assert status == 2
    assert [(line["row"], line["id"]) for line in out] == [(1, None), (2, None), (4, 7), (5, "k"), (6, None), (7, None)]
    actions = [line["decision"] and line["decision"]["action"] for line in out]
    assert actions == ["allow", None, "block", None, "block", "allow"]
    kinds = [line["error"] and line["error"]["type"] for line in out]
    assert kinds == [None, "ContentError", None, "ContentError", "EngineUnavailableError", None]
    assert err.startswith("6 rows: 2 allow, 0 annotate, 1 block, 3 error in ")


@pytest.mark.parametrize(
    ("text", "status"), [('"a"\n"b"', 0), ('"a"\n"bomb"', 1), ('"bomb"\n"crash"', 2), ('"a"\n[]', 2), ('"bomb"\n""', 2)]
)
def test_the_status_is_the_worst(text: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(text, capsys)[0] == status


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_no_rows_is_an_error_not_a_pass(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="no rows"):
        run(text, capsys)


def test_rows_are_read_no_further_than_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    class Watched(io.RawIOBase):
        def __init__(self) -> None:
            self.lines: Iterator[bytes] = iter([b'"a"\n'] * 6)
            self.printed_before: list[int] = []

        def readline(self, size: int | None = -1, /) -> bytes:
            self.printed_before.append(capsys.readouterr().out.count("\n"))
            return next(self.lines, b"")

    stream = Watched()
    check_rows(make_guard(), cast("Any", stream), batch=2, progress=False)
    # Two rows are read, then two are printed before the third is read.
    assert stream.printed_before == [0, 0, 2, 0, 2, 0, 2]


def test_the_progress_bar_is_on_stderr_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('"a"\n' * 5)
    with file.open("rb") as stream:
        assert check_rows(make_guard(), stream, batch=2, progress=True) == 0
    captured = capsys.readouterr()
    assert len([json.loads(line) for line in captured.out.splitlines()]) == 5
    assert "100%" in captured.err


def test_the_progress_bar_does_without_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run('"a"\n"b"', capsys, progress=True)
    assert (status, len(out)) == (0, 2)
    assert "2 rows: 2 allow" in err


def test_nobody_watching_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run('"a"', capsys)
    assert err.count("\n") == 1
    assert err.startswith("1 row: 1 allow")
