"""Every example runs, and shows what it says it shows."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from guardrail_vl import ImagePart
from tests.cli import tiny_server
from tests.docs.fences import ROOT

EXAMPLES = ROOT / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    load(name).main()
    return capsys.readouterr().out.splitlines()


def test_every_example_has_a_test_and_a_line_in_the_readme() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tests = {name.removeprefix("test_example_") for name in globals() if name.startswith("test_example_")}
    assert set(NAMES) == tests
    assert [name for name in NAMES if f"`{name}.py`" not in readme] == []


def test_example_first_check(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("guardrail_vl.engines.embedded")
    lines = run("first_check", capsys)
    assert [line[22:].split()[0] for line in lines] == ["allow", "block", "annotate", "block", "allow"]


def test_example_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("guardrail_vl.engines.embedded")
    lines = run("conversation", capsys)
    assert [line.split()[1] for line in lines[:-1]] == ["allow", "allow", "allow", "allow", "block"]
    assert lines[-1] == "The history holds 4 of 5 messages."
    assert "judged 2 of 4 parts anew" in lines[-2]


def test_example_policy_demo(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("guardrail_vl.engines.embedded")
    lines = run("policy_demo", capsys)
    actions = [(line.split("harmful text: ")[1].split()[0], line.split()[-1]) for line in lines[:3]]
    assert actions == [("block", "annotate"), ("annotate", "annotate"), ("block", "block")]
    assert lines[-1] == "help-desk: 4 of 4 examples passed"


def test_example_async_many(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("guardrail_vl.engines.embedded")
    lines = run("async_many", capsys)
    assert lines[-1] == "All three agree."
    assert "block" in lines[0]
    assert "allow" in lines[0]


def test_example_own_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert [line.split()[0] for line in run("own_engine", capsys)] == ["allow", "block"]


def test_example_remote_guard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUARDRAIL_VL_URL", raising=False)
    assert run("remote_guard", capsys)[0].startswith("Set GUARDRAIL_VL_URL")
    with tiny_server.serve() as url:
        monkeypatch.setenv("GUARDRAIL_VL_URL", url)
        assert [line.split()[0] for line in run("remote_guard", capsys)] == ["block", "allow"]
    monkeypatch.setenv("GUARDRAIL_VL_URL", "http://127.0.0.1:9/v1")  # nobody listens there
    assert "EngineUnavailableError" in run("remote_guard", capsys)[0]


def test_example_pictures(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    load("pictures").main(tmp_path)
    for name in ("door.png", "note.png"):
        # What lies in the folder is what the script draws.
        drawn, kept = (ImagePart.load(f"{folder}/{name}") for folder in (tmp_path, EXAMPLES))
        assert drawn.views()[0].size == kept.views()[0].size
        assert drawn.views()[0].getcolors(1) is None
