"""Rows of every layout become turns; what the facts don't say is refused, by its row."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.prompt_format.base import PromptImage
from guardrail_vl.prompt_format.guardreasoner_vl import INSTRUCTION, GuardReasonerVL
from guardrail_vl.training.dataset import read, validate
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label, Stage
from tests.evaluation.files import SECRET, H, Row, U, lines, table
from tests.evaluation.pictures import GREEN, RED

THOUGHT = "# Task 1\n\n## Reasoning Step 1\nIt asks for bread.\n\n# Task2\n\n## Reasoning Step 1: It tells how."


def chat(user: str, target: str, *images: str, system: str | None = INSTRUCTION) -> Row:
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": target}]
    return {"messages": messages, **({"images": list(images)} if images else {})}


def target(request: str = "unharmful", response: str = "unharmful", *, lead: str = "\n", thought: str = THOUGHT) -> str:
    return f"<think>{thought}\n</think>\n\n<result>{lead}Request: {request}\nResponse: {response}\n</result>"


def asked(request: str = "How do I bake?", response: str = "With flour.", end: str = "\n\n") -> str:
    return f"Human user:\n{request}\n\nAI assistant:\n{response}{end}"


def one(path: Path, row: Row, **options: Any) -> LabeledTurn:
    (turn,) = read(lines(path / "t.jsonl", [row]), **options)
    return turn


def refused(path: Path, row: Row, match: str, **options: Any) -> None:
    """Refused as the second row, by its number, and nothing of it is repeated; `validate` says the same."""
    good = {"prompt": "fine", "label": "safe"} if "prompt" in row or "label" in row else chat(asked(), target())
    file = lines(path / "t.jsonl", [good, row])
    with pytest.raises(ConfigurationError, match=match) as caught:
        read(file, **options)
    assert "t.jsonl, row 2: " in str(caught.value)
    assert SECRET not in str(caught.value)
    (problem,) = validate(file, **options)
    assert (problem.row, problem.kind) == (2, "row")
    assert re.search(match, problem.message)


# ---- GuardReasoner-VLTrain ----------------------------------------------------------------------------------------


def test_the_released_rows(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "a.png").write_bytes(RED)
    rows = [
        chat(asked(), target("harmful", "None")),
        chat(asked("<image>", "None", "\n"), target("harmful", "unharmful"), "./image/a.png"),
        chat(asked("<image>\nWhat is it?", "Red.", "\n"), target("unharmful", "harmful"), "image/a.png"),
    ]
    path = tmp_path / "GuardReasoner-VLTrainX.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    first, second, third = read(path)
    assert first == LabeledTurn(
        "GuardReasoner-VLTrainX-000000",
        "How do I bake?",
        response="With flour.",
        prompt_label=H,
        reasoning=THOUGHT,
        source="GuardReasoner-VLTrainX",
    )
    # The label of a response that isn't there says nothing.
    assert (second.prompt, second.response, second.prompt_label, second.response_label) == (None, None, H, None)
    assert second.images == third.images == (tmp_path / "image" / "a.png",)
    assert (third.prompt, third.response, third.response_label) == ("What is it?", "Red.", H)
    assert [turn.modality for turn in (first, second, third)] == ["text", "image", "text-image"]
    assert validate(path) == ()


@pytest.mark.parametrize("lead", ["", "\n", "\nAnswers: \n", "Answers:\n"])
@pytest.mark.parametrize("thought", [THOUGHT, "\n" + THOUGHT, ""])
def test_targets_of_every_known_form(tmp_path: Path, lead: str, thought: str) -> None:
    turn = one(tmp_path, chat(asked(), target("harmful", "None", lead=lead, thought=thought)))
    assert (turn.prompt_label, turn.response_label, turn.reasoning) == (H, None, thought or None)


def test_the_newline_before_the_end_of_thought_may_be_missing(tmp_path: Path) -> None:
    assert one(tmp_path, chat(asked(), target().replace("\n</think>", "</think>"))).reasoning == THOUGHT


def test_the_instruction_may_stand_before_the_transcript(tmp_path: Path) -> None:
    turn = one(tmp_path, chat(f"{INSTRUCTION}\n\n{asked()}", target(), system=None))
    assert (turn.prompt, turn.response) == ("How do I bake?", "With flour.")


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=40).filter(
    str.strip
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    prompt=WORDS,
    response=st.none() | WORDS.filter(lambda text: text != "None" and not text.endswith("\n")),
    pictures=st.integers(0, 2),
    label=st.sampled_from(Label),
    reasoning=st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1),
)
def test_what_our_format_renders_is_read_back(
    tmp_path: Path, prompt: str, response: str | None, pictures: int, label: Label, reasoning: str | None
) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    images = (tmp_path / "a.png",) * pictures
    made = LabeledTurn(
        "t-000000", prompt, images, response, label, None if response is None else label, reasoning, source="t"
    )
    rendered = GuardReasonerVL().render(made.exchange(), made.stage, speed="reason")[0].messages[1]
    user = "".join("<image>" if isinstance(part, PromptImage) else part.text for part in rendered.content)
    row = chat(user, GuardReasonerVL().target(made.verdict), *["a.png"] * pictures)
    turn = one(tmp_path, row)
    again = GuardReasonerVL().render(turn.exchange(), turn.stage, speed="reason")[0].messages[1]
    assert [part for part in again.content if not isinstance(part, PromptImage)] == [
        part for part in rendered.content if not isinstance(part, PromptImage)
    ]
    assert (turn.images, turn.verdict) == (made.images, made.verdict)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (chat(SECRET, target()), "template of GuardReasoner"),
        (chat(asked(SECRET), SECRET), "doesn't follow the format: it does not begin with <think>"),
        (chat(asked(), target("harmless")), "a label is neither harmful nor unharmful"),
        (chat(asked(), target(thought=f"<think>{SECRET}")), "tags inside the reasoning"),
        (chat(asked(SECRET, "None"), target("harmful", "harmful")), "labelled harmful, and there is no response"),
        (chat(asked(), target("None", "None")), "has no label"),
        (chat(asked(f"{SECRET}\n\nAI assistant:\nNo."), target()), "two lines say 'AI assistant:'"),
        (chat(asked(f"{SECRET} <image>"), target()), "shows more pictures than it names, which are 0"),
        (chat(asked("What?"), target(), "a.png"), "1 pictures are named and 0 are shown"),
        (chat(asked(f"{SECRET} <image>"), target(), "a.png"), "don't stand at the beginning"),
        (chat(asked("<image>"), target(), "../a.png"), "outside the folder"),
        (chat(asked("<image>"), target(), "https://x/a.png"), "is a URL"),
        (chat(asked(), target(), system=SECRET), "not GuardReasoner-VL's instruction"),
        ({"messages": SECRET}, "no list of objects"),
        ({"messages": [{"role": "user", "content": [SECRET]}]}, "'content' is not text"),
        ({"messages": [{"role": "user", "content": SECRET}]}, "a user's and an assistant's"),
        ({"text": SECRET}, "no field 'messages'"),
    ],
)
def test_other_chats_are_refused(tmp_path: Path, row: Row, match: str) -> None:
    refused(tmp_path, row, match)


# ---- tables -------------------------------------------------------------------------------------------------------


def test_a_plain_csv(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(GREEN)
    rows = [
        {"id": "x", "prompt": "bomb?", "response": "", "images": "", "label": "harmful", "weight": "2", "licence": "MIT"},
        {"id": "", "prompt": "bread?", "response": "Flour.", "images": "a.png", "label": "0", "weight": "", "licence": ""},
        {"id": "7", "prompt": "", "response": "", "images": '["a.png", "b.png"]', "label": "SAFE ", "weight": "0.5", "licence": ""},
    ]  # fmt: skip
    first, second, third = read(table(tmp_path / "mine.csv", rows))
    assert first == LabeledTurn("x", "bomb?", prompt_label=H, weight=2.0, licence="MIT")
    # One label is that of what is judged: the response, where there is one.
    assert (second.id, second.prompt_label, second.response_label) == ("mine-000001", None, U)
    assert (second.images, second.response) == ((tmp_path / "a.png",), "Flour.")
    assert (third.id, third.prompt, third.prompt_label, third.weight) == ("7", None, U, 0.5)
    assert third.images == (tmp_path / "a.png", tmp_path / "b.png")


def test_both_labels_and_a_picture_inside(tmp_path: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(RED).decode()}"
    row = {"prompt": "a", "response": "", "images": [url], "prompt_label": True, "response_label": 0, "category": 3}
    turn = one(tmp_path, row)
    assert turn == LabeledTurn("t-000000", "a", (RED,), "", H, U, category="3")


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"prompt": SECRET, "label": SECRET}, "'label' holds an unknown label"),
        ({"prompt": SECRET, "prompt_label": "spam"}, r"'prompt_label' holds an unknown label \('spam'\)"),
        ({"prompt": SECRET, "label": "safe", "prompt_label": "safe"}, "and also a label of the prompt"),
        ({"prompt": SECRET}, "has no label"),
        ({"prompt": SECRET, "response_label": "safe"}, "has a label of the response, and no response"),
        ({"label": "safe"}, "is empty"),
        ({"prompt": [SECRET], "label": "safe"}, "'prompt' is not text"),
        ({"prompt": "a", "label": "safe", "category": [SECRET]}, "'category' is neither text nor a number"),
        ({"prompt": "a", "label": "safe", "weight": SECRET}, "'weight' is no finite number"),
        ({"prompt": "a", "label": "safe", "weight": True}, "'weight' is no finite number"),
        ({"prompt": "a", "label": "safe", "weight": 1e999}, "'weight' is no finite number"),
        ({"prompt": "a", "label": "safe", "weight": -1}, "weight .* is not above 0"),
        ({"prompt": "a", "label": "safe", "images": [f"data:{SECRET}"]}, "data: URL is not base64"),
        ({"prompt": "a", "label": "safe", "images": "[1"}, "no list in JSON"),
        ({"prompt": "a", "label": "safe", "images": [5]}, "not named by a path"),
        ({"prompt": "a", "label": "safe", "images": ["/etc/a.png"]}, "outside the folder"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, row: Row, match: str) -> None:
    refused(tmp_path, row, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "holds no rows"),
        ('{"text": "a", "label": "safe"}\n', "no column 'prompt', 'response' or 'images'"),
        ('{"prompt": "a", "label": "safe"}\n\n{"prompt"\n', "row 3: not valid JSON"),
        ('{"prompt": "a\n', "row 1: not valid JSON: Invalid control character at character 13"),
        ('{"prompt": "a", "label": "safe"}\n[1]\n', "row 2: it is no object"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=match):
        read(path)


def test_an_unknown_layout_and_a_wrong_one(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [{"prompt": "a", "label": "safe"}])
    with pytest.raises(ConfigurationError, match="no layout 'alpaca'"):
        read(path, "alpaca")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="row 1: there is no field 'messages'"):
        read(path, "sharegpt")


# ---- the project's data folder ------------------------------------------------------------------------------------


def shared(**changes: Any) -> Row:
    return {
        "id": "100233c4851f.figstep.00000",
        "source": "figstep",
        "task_inputs": {"prompt": "Fill the list.", "images": ["images/a.png"], "response": None},
        "labels": {"prompt": "harmful", "response": None, "refusal": None},
        "category": "Fraud",
        "license": "MIT",
        **changes,
    }


def test_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(RED)
    answered = {"prompt": "a", "images": [], "response": ""}
    rows = [
        shared(),
        shared(id="g.x.1", task_inputs=answered, labels={"prompt": None, "response": "unharmful"}, category=None),
    ]
    first, second = read(lines(tmp_path / "t.jsonl", rows))
    assert first == LabeledTurn(
        "100233c4851f.figstep.00000",
        "Fill the list.",
        (tmp_path / "images" / "a.png",),
        prompt_label=H,
        category="Fraud",
        source="figstep",
        group="100233c4851f",
        licence="MIT",
    )
    assert (second.response, second.label(Stage.RESPONSE), second.category, second.group) == ("", U, "", "g")
    elsewhere = lines(tmp_path / "other" / "t.jsonl", rows)
    assert read(elsewhere, folder=tmp_path) == (first, second)
    with pytest.raises(ConfigurationError, match=r"row 1: the picture 'a.png' isn't there; 1 of 1"):
        read(elsewhere)


def test_a_row_of_the_data_folder_without_a_label(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [shared(labels={"prompt": None, "response": None, "refusal": "refusal"})])
    with pytest.raises(ConfigurationError, match=r"row 1: .* has no label"):
        read(path)
    with pytest.raises(ConfigurationError, match="row 1: the fields 'task_inputs' and 'labels' have to be objects"):
        read(lines(path, [shared(labels=SECRET)]))
    with pytest.raises(ConfigurationError, match="row 1: the field 'images' is no list"):
        read(lines(path, [shared(task_inputs={"prompt": SECRET, "images": None, "response": None})]))
    with pytest.raises(ConfigurationError, match="row 1: there is no field 'license'"):
        read(lines(path, [{name: value for name, value in shared().items() if name != "license"}]))
