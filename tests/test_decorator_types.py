"""`@guard` keeps types: real type checkers read a small file."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
from collections.abc import AsyncIterator, Generator
from typing import assert_type, overload

from guardrail_vl import Decision, Guard


def use(guard: Guard, notes: list[Decision]) -> None:
    @guard
    def plain(question: str, *, photo: bytes | None = None) -> str:
        return question

    assert_type(plain("x", photo=b""), str)

    @guard(prompt="question", images="photo", on_block="refuse", on_decision=notes.append)
    async def coroutine(question: str, photo: bytes) -> list[str]:
        return [question]

    async def waits() -> None:
        assert_type(await coroutine("x", b""), list[str])

    @guard(stream="full")
    def generator(question: str) -> Generator[str, None, int]:
        yield question
        return 3

    assert_type(generator("x"), Generator[str, None, int])

    @guard
    async def async_generator(question: str) -> AsyncIterator[str]:
        yield question

    assert_type(async_generator("x"), AsyncIterator[str])

    class Bot:
        @guard
        def method(self, question: str) -> int:
            return 3

        @guard(prompt=None)
        def other(self, question: str) -> int:
            return 3

        @classmethod
        @guard
        def of_class(cls, question: str) -> "Bot":
            return cls()

        @staticmethod
        @guard
        def static(question: str) -> float:
            return 3.0

    assert_type(Bot().method("x"), int)
    assert_type(Bot().other(question="x"), int)
    assert_type(Bot.of_class("x"), Bot)
    assert_type(Bot.static("x"), float)

    @overload
    def either(question: str) -> str: ...
    @overload
    def either(question: bytes) -> bytes: ...
    @guard
    def either(question: str | bytes) -> str | bytes:
        return question

    assert_type(either("x"), str)


def wrong(guard: Guard) -> None:
    @guard
    def plain(question: str) -> str:
        return question

    plain(3)  # wrong: argument
    plain("x", "y")  # wrong: one too many
    plain(text="x")  # wrong: name
    guard(on_block="ignore")  # wrong: mode
    guard(promt="question")  # wrong: option
    guard(3)  # wrong: not a function
"""
WRONG = {number for number, line in enumerate(SOURCE.splitlines(), 1) if "# wrong" in line}
SRC = Path(__file__).parent.parent / "src"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "typed.py"
    path.write_text(SOURCE)
    return path


def test_mypy_sees_through(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api")
    monkeypatch.setenv("MYPYPATH", str(SRC))
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\n")
    flags = ["--strict", "--config-file", str(config), "--no-error-summary", "--follow-imports", "silent"]
    out, err, _ = api.run([*flags, "--cache-dir", str(tmp_path / "cache"), str(file)])
    assert not err
    found = {int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line}
    assert found == WRONG, out


def test_pyright_sees_through(file: Path) -> None:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("needs the package pyright")
    (file.parent / "pyrightconfig.json").write_text(
        json.dumps({"extraPaths": [str(SRC)], "typeCheckingMode": "strict", "reportUnusedFunction": False})
    )
    command = [sys.executable, "-W", "ignore", "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run([*command, str(file)], check=False, capture_output=True, text=True, cwd=file.parent)
    try:
        found = json.loads(run.stdout)["generalDiagnostics"]
    except ValueError:
        pytest.skip("pyright can't run here: it fetches its own parts")
    lines = {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}
    assert lines == WRONG, found
