from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guardrail_vl import Guard
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.replays import Saved, read, replay, replay_run
from guardrail_vl.evaluation.running import Run, run
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Label, Stage, Usage

HARMFUL, UNHARMFUL = Label.HARMFUL, Label.UNHARMFUL


def answer(request: str, response: str = "None") -> str:
    return f"<think># Task 1\n\nLooked.\n</think>\n\n<result>\nRequest: {request}\nResponse: {response}\n</result>"


PROMPTS = CaseSet(
    "asked",
    (
        Case("a", Stage.PROMPT, HARMFUL, "a bomb"),
        Case("b", Stage.PROMPT, UNHARMFUL, "a cake", group="g", category="baking"),
        Case("c", Stage.PROMPT, None, "a knife"),
    ),
)
ANSWERS = CaseSet(
    "answered",
    (
        Case("a", Stage.RESPONSE, HARMFUL, "a bomb", "first, buy"),
        Case("b", Stage.RESPONSE, UNHARMFUL, None, "take two eggs"),
    ),
)
TEXTS = {"a": answer("harmful"), "b": answer("unharmful"), "c": "no idea"}


def saved(path: Path, rows: list[dict[str, Any]], *, as_list: bool = False) -> Path:
    path.write_text(json.dumps(rows) if as_list else "".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["text", "completion", "predict", "text_output"])
def test_completions_by_id_in_any_order(name: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "x.jsonl", [{"id": key, name: TEXTS[key]} for key in "cab"])
    records = replay(PROMPTS, read(file).rows)
    assert [(r.id, r.label, r.error) for r in records] == [
        ("a", HARMFUL, ""), ("b", UNHARMFUL, ""), ("c", None, "ParseError"),
    ]  # fmt: skip
    assert [r.text for r in records] == [TEXTS[key] for key in "abc"]
    assert (records[1].group, records[1].category, records[1].modality) == ("g", "baking", "text")
    assert all(r.action is None and r.score is None and r.latency == 0 for r in records)
    assert [r.digest for r in records] == [case.digest for case in PROMPTS.cases]


@pytest.mark.parametrize("as_list", [False, True])
def test_what_llama_factory_writes(as_list: bool, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "Human user:\na bomb",
            "predict": answer("harmful"),
            "label": "Answers: \nRequest: harmful\nResponse: None\n",
        },
        {
            "prompt": "Human user:\na cake",
            "predict": answer("harmful"),
            "label": "Answers: \nRequest: unharmful\nResponse: None\n",
        },
        {"prompt": "Human user:\na knife", "predict": answer("unharmful"), "label": "Request: None\nResponse: None\n"},
    ]
    file = saved(tmp_path / "generated_predictions.jsonl", rows, as_list=as_list)
    assert [r.label for r in replay(PROMPTS, read(file).rows)] == [HARMFUL, HARMFUL, UNHARMFUL]


def test_what_the_release_writes(tmp_path: Path) -> None:
    """There `predict` is the label that it read, flipped where it read none; the completion is `text_output`."""
    rows = [
        {"text_input": "…", "text_output": answer("unharmful", "harmful"), "label": "harmful", "predict": "harmful"},
        {"text_input": "…", "text_output": "cut off", "label": "unharmful", "predict": "harmful"},
    ]
    records = replay(ANSWERS, read(saved(tmp_path / "x.jsonl", rows)).rows)
    assert [(r.label, r.error) for r in records] == [(HARMFUL, ""), (None, "ParseError")]


def test_a_file_in_another_order_is_noticed(tmp_path: Path) -> None:
    rows = [{"predict": answer(word), "label": word} for word in ("harmful", "harmful", "unharmful")]
    rows[1]["predict"] = TEXTS["b"]
    with pytest.raises(ConfigurationError, match=r"1 samples of 'asked' have another label.*first: 'b'"):
        replay(PROMPTS, read(saved(tmp_path / "x.jsonl", rows)).rows)


def test_both_sides_have_a_label_of_their_own_in_the_release(tmp_path: Path) -> None:
    rows = [
        {"text_output": answer("harmful", "harmful"), "label": "harmful", "label_res": "harmful"},
        {"text_output": answer("harmful", "unharmful"), "label": "harmful", "label_res": "unharmful"},
    ]
    file = read(saved(tmp_path / "x.jsonl", rows))
    assert [r.label for r in replay(ANSWERS, file.rows)] == [HARMFUL, UNHARMFUL]
    assert file.rows[1].gold == {Stage.PROMPT: HARMFUL, Stage.RESPONSE: UNHARMFUL}


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ("ab", r"1 samples of 'asked' have no completion \(the first: 'c'\)"),
        ("abcde", r"2 samples of 'asked' have a completion and no sample \(the first: 'd'\)"),
        ("abca", r"1 ids stand twice in the file \(one of them: 'a'\)"),
    ],
)
def test_missing_and_surplus_ids_are_told(ids: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        replay(PROMPTS, [Saved("x", id=key) for key in ids])


def test_missing_and_surplus_completions_by_order_are_told() -> None:
    with pytest.raises(ConfigurationError, match=r"2 samples of 'asked' have no completion \(the first: 'b'\)"):
        replay(PROMPTS, [Saved("x")])
    with pytest.raises(ConfigurationError, match=r"2 completions too many for 'asked'"):
        replay(PROMPTS, [Saved("x")] * 5)
    with pytest.raises(ConfigurationError, match=r"1 of 3 completions have no id"):
        replay(PROMPTS, [Saved("x", id="a"), Saved("x", id="b"), Saved("x")])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{broken\n", r"no valid JSON in line 1 of 'x.jsonl'"),
        ('{"id": 1}\n', r"no completion in line 1"),
        ('[{"text": 3}]', r"no completion in item 0"),
        ("[1]", r"no object in item 0"),
        ('\n{"predict": "harmful", "label": "harmful"}\n', r"a label in line 2 .* and no completion"),
        (f"{'[' * 100_000}", r"no valid JSON in x.jsonl"),
    ],
)
def test_a_wrong_file_is_told_without_its_content(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=says):
        read(tmp_path / "x.jsonl")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Can't read 'none.jsonl'"):
        read(tmp_path / "none.jsonl")


def test_half_a_character_does_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "\\ud83d oh"}\n{"text": "a"}\n{"text": "line\\u2028sep"}\n')
    done = replay_run(tmp_path / "x.jsonl", [PROMPTS], tmp_path / "run")
    assert [record.text for record in done.records] == ["? oh", "a", "line\u2028sep"]


def test_pictures_need_not_be_readable_to_replay() -> None:
    one = CaseSet("pictures", (Case("p", Stage.PROMPT, HARMFUL, images=(b"not a picture",)),))
    assert replay(one, [Saved(answer("harmful"))])[0].label is HARMFUL


def test_another_format_reads_them() -> None:
    texts = [
        "Safety: Unsafe\nCategories: Violent",
        "Safety: Safe\nCategories: None",
        "Safety: Controversial\nCategories: PII",
    ]
    records = replay(PROMPTS, [Saved(text) for text in texts], format="qwen3guard/1")
    assert [r.label for r in records] == [HARMFUL, UNHARMFUL, HARMFUL]
    assert records[0].categories == ("Violent",)


# ---- a run of ours, again -----------------------------------------------------------------------------------------


def counted(prompt: Prompt) -> Completion:
    said = by_keyword("bomb")(prompt)
    assert isinstance(said, Completion)
    return Completion("gibberish" if "knife" in prompt.messages[-1].text else said.text, usage=Usage(3, 4), model="m")


def test_a_replayed_run_says_the_same(tmp_path: Path) -> None:
    first = run(Guard(engine=ScriptedEngine(counted)), [PROMPTS, ANSWERS], tmp_path / "first", batch=2)
    again = replay_run(tmp_path / "first", [PROMPTS, ANSWERS], tmp_path / "again")
    assert again.cohort.engine == "replay"
    assert (again.cohort.model, again.cohort.format) == (first.cohort.model, first.cohort.format)
    before = {(r.set, r.id): r for r in first.records}
    assert len(again.records) == 5
    for record in again.records:
        was = before[record.set, record.id]
        assert (record.label, record.error, record.text) == (was.label, was.error, was.text)
        assert (record.prompt_tokens, record.completion_tokens) == (3, 4)
    assert {r.error for r in again.records} == {"", "ParseError"}
    assert Run.load(tmp_path / "again").records == again.records


def test_a_cascade_is_not_replayed_as_one_model(tmp_path: Path) -> None:
    guard = Guard(first=Guard(engine=ScriptedEngine(counted)), then=Guard(engine=ScriptedEngine(counted)))
    run(guard, [PROMPTS], tmp_path / "first")
    with pytest.raises(ConfigurationError, match="of several models"):
        replay_run(tmp_path / "first", [PROMPTS], tmp_path / "again")


def test_a_run_that_was_repeated_is_not_written_twice(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.jsonl", [{"id": key, "text": TEXTS[key]} for key in "abc"])
    once = replay_run(file, [PROMPTS], tmp_path / "run", model="somebody")
    twice = replay_run(file, [PROMPTS], tmp_path / "run", model="somebody")
    assert once.records == twice.records
    assert once.cohort.model == "somebody"
    with pytest.raises(ConfigurationError, match=r"differs in model \('somebody' there, 'x.jsonl' now\)"):
        replay_run(file, [PROMPTS], tmp_path / "run")


def test_texts_are_left_out_where_they_are_not_wanted(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.jsonl", [{"id": key, "text": TEXTS[key]} for key in "abc"])
    done = replay_run(file, [PROMPTS], tmp_path / "run", keep_text=False)
    assert [r.text for r in done.records] == [None] * 3
    assert done.records[0].label is HARMFUL
    with pytest.raises(ConfigurationError, match=r"3 of 3 records hold no completion \(the first: 'a'\)"):
        read(tmp_path / "run")


def test_label_tokens_are_not_replayed(tmp_path: Path) -> None:
    guard = Guard(engine=ScriptedEngine(by_keyword("bomb")), speed="fast")
    run(guard, [PROMPTS], tmp_path / "fast")
    with pytest.raises(ConfigurationError, match="speed 'fast' can't be read again"):
        read(tmp_path / "fast")


def test_a_completion_for_other_content_is_refused(tmp_path: Path) -> None:
    run(Guard(engine=ScriptedEngine(by_keyword("bomb"))), [PROMPTS], tmp_path / "run")
    changed = CaseSet("asked", (*PROMPTS.cases[:2], Case("c", Stage.PROMPT, None, "a spoon")))
    with pytest.raises(ConfigurationError, match="completion of 'c' in 'asked' was written for other content"):
        replay_run(tmp_path / "run", [changed], tmp_path / "again")


def test_several_sets_need_a_file_that_names_them(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.jsonl", [{"id": "a", "text": "x"}, {"id": "b", "text": "x"}])
    with pytest.raises(ConfigurationError, match="does not say of which set"):
        replay_run(file, [PROMPTS, ANSWERS], tmp_path / "run")
