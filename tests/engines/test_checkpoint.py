from __future__ import annotations

from pathlib import Path

import pytest

from guardrail_vl.engines._checkpoint import TrainedFormat, model_name, read_guard_json
from guardrail_vl.errors import ConfigurationError


def test_guard_json_is_read_from_the_folder_or_the_file(tmp_path: Path) -> None:
    assert read_guard_json(tmp_path) is None
    (tmp_path / "guard.json").write_text('{"format": "a/1", "golden": "0f", "more": 1}')
    assert read_guard_json(tmp_path) == read_guard_json(tmp_path / "guard.json") == TrainedFormat("a/1", "0f")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "a/1"}', '{"format": 1, "golden": "x"}'])
def test_a_broken_guard_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "guard.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"guard\.json is not of the form"):
        read_guard_json(tmp_path)


def test_names(tmp_path: Path) -> None:
    (tmp_path / "my-guard").mkdir()
    assert model_name(tmp_path / "my-guard", None) == "my-guard"
    assert model_name("owner/name", None) == "owner/name"
    assert model_name("owner/name", "v2") == "owner/name@v2"
