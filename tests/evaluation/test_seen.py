from __future__ import annotations

from pathlib import Path

import pytest

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation import seen
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.readers import request_group
from guardrail_vl.verdict import Label, Stage

BREAD = "How do I bake bread?"


def asked(id: str, prompt: str | None = None, **more: object) -> Case:
    return Case(id, Stage.PROMPT, Label.UNHARMFUL, prompt, **more)  # type: ignore[arg-type]


def answered(id: str, prompt: str) -> Case:
    return Case(id, Stage.RESPONSE, Label.UNHARMFUL, prompt, "With flour.")


def test_what_was_trained_on_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "seen.txt"
    seen.write(
        path, [asked("1", BREAD), asked("2", None, images=(b"x",), group="0123456789ab")], about="ours\nof today"
    )
    assert path.read_text(encoding="utf-8").splitlines()[:2] == ["# ours", "# of today"]
    assert BREAD not in path.read_text(encoding="utf-8")
    listed = seen.read(path)
    assert listed == {request_group(BREAD), "0123456789ab"}
    asks = CaseSet("asks", (asked("a", "how do I bake BREAD"), asked("b", "How do I bake a cake?")))
    pictures = CaseSet("pictures", (asked("c", None, images=(b"y",), group="0123456789ab"),))
    answers = CaseSet("answers", (answered("d", BREAD), answered("e", "And cake?")))
    kept, lost = seen.leave_out([asks, pictures, answers], listed)
    assert [(one.name, [case.id for case in one.cases]) for one in kept] == [("asks", ["b"]), ("answers", ["e"])]
    assert lost == {"asks": 1, "pictures": 1, "answers": 1}


def test_a_set_that_was_not_seen_is_the_same() -> None:
    one = CaseSet("one", (asked("a", BREAD),))
    assert seen.leave_out([one], frozenset({"0" * 12})) == ((one,), {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "lists nothing"),
        ("# a remark\n\n", "lists nothing"),
        (f"{'0' * 12}\nHow do I bake bread?\n", "entry 2 is no hash"),
        ("0" * 11, "entry 1 is no hash"),
    ],
)
def test_a_list_that_is_none(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "seen.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says) as told:
        seen.read(path)
    assert "bread" not in str(told.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"seen\.txt can't be read: FileNotFoundError"):
        seen.read(tmp_path / "seen.txt")
