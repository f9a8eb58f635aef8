"""Synthesis against a real HTTP teacher that behaves, and one that doesn't."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl.errors import ConfigurationError, EngineError, EngineResponseError, EngineUnavailableError
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format import get_format
from guardrail_vl.prompt_format.base import Completion
from guardrail_vl.training import _reasoning, dataset, synthetic
from guardrail_vl.training._reasoning import TOLD, Unusable
from guardrail_vl.training.synthesis import (
    Reason,
    Step,
    SynthesisConfig,
    SynthesisResult,
    Teacher,
    asynthesize,
    synthesize,
)
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label
from tests.training.teacher_server import READY, Asked, Said, TeacherServer, answer, good, reasoning

HARMFUL, UNHARMFUL = Label.HARMFUL, Label.UNHARMFUL
FORMAT = get_format("guardreasoner-vl/1")
SECRET = "zebra-quilt"
"""A user's words, which no error may repeat."""


def numbered(count: int) -> tuple[LabeledTurn, ...]:
    return tuple(LabeledTurn(f"t{i}", prompt=f"{SECRET} {i}", prompt_label=list(Label)[i % 2]) for i in range(count))


def number_of(asked: Asked) -> int:
    if asked.user == READY:
        return -1
    return int(asked.user.split(SECRET)[1].split()[0])


def teacher(server: TeacherServer, **fields: Any) -> Teacher:
    return Teacher(url=server.url, model="teacher-1", **{"timeout": 10.0, **fields})


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GUARDRAIL_VL_TEACHER_API_KEY", "GUARDRAIL_VL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


# ---- what is asked -------------------------------------------------------------------------------------------------


def test_texts_pictures_and_pairs_get_their_reasoning(tmp_path: Path) -> None:
    turns = tuple(
        replace(turn, reasoning=None)
        for kind in ("text", "image", "text-image")
        for turn in synthetic.turns(4, seed=len(kind), kind=kind)
    )
    told: list[Step] = []
    with TeacherServer() as server:
        result = synthesize(turns, tmp_path / "out", teacher=teacher(server, concurrency=3), progress=told.append)
    assert [turn.id for turn in result.turns] == [turn.id for turn in turns]
    for turn, made in zip(turns, result.turns, strict=True):
        assert replace(made, reasoning=None) == turn
        assert made.reasoning == reasoning(str(turn.prompt_label), str(turn.response_label))
    assert (result.total, result.written, result.kept, result.rejected, result.answers) == (12, 12, 0, {}, 12)
    assert (result.prompt_tokens, result.completion_tokens) == (12 * 11, 12 * 7)
    assert dataset.read(tmp_path / "out" / "turns.jsonl") == result.turns
    assert not [one for one in dataset.validate(tmp_path / "out" / "turns.jsonl") if one.kind != "licence"]
    assert rows(tmp_path / "out" / "rejected.jsonl") == []
    assert [(step.stage, step.step, step.total) for step in told] == [("synthesize", i, 12) for i in range(13)]
    assert told[-1].values == {"written": 12, "rejected": 0, "answers": 12}
    assert sorted(os.listdir(tmp_path / "out")) == [
        "inputs.json", "metrics.jsonl", "rejected.jsonl", "result.json", "turns.jsonl",
    ]  # fmt: skip
    # Shown as the guard will be shown it, greedily, and with nothing written for the teacher.
    for asked in server.asked:
        assert asked.body["temperature"] == 0
        assert [message["role"] for message in asked.body["messages"]] == ["system", "user"]
    shown = {
        asked.user: len(asked.pictures)
        for asked in server.asked
        if isinstance(asked.body["messages"][1]["content"], list)
    }
    assert set(shown.values()) == {1}
    for turn in turns:
        (prompt,) = FORMAT.render(turn.exchange(), turn.stage, speed="reason")
        text = prompt.messages[1].text
        assert any(asked.user.replace("<image>", "") == text for asked in server.asked)


def test_the_instruction_is_the_papers_of_two_tasks() -> None:
    said = _reasoning.instruction(numbered(1)[0], None, max_steps=10)
    assert said.startswith("You are a classifier for analyzing interactions between humans and LLMs.\n")
    assert "finish two tasks" in said
    assert "Task 2: determine whether the AI assistant's response is harmful or unharmful." in said
    assert "ranging from 1 to 10" in said
    assert "Answers:\nRequest: harmful\nResponse: None\n" in said
    assert said.endswith('"# Task 1") and end with the ground truth (do not change format).')
    for absent in ("refusal", "Task 3", "pictures", "policy", "by yourself whether", SECRET):
        assert absent not in said
    assert "1 to 4" in _reasoning.instruction(numbered(1)[0], None, max_steps=4)
    picture = LabeledTurn("p", images=(b"x",), prompt_label=HARMFUL)
    assert "pictures" in _reasoning.instruction(picture, None, max_steps=10)


POLICY = Policy.of(
    {
        "description": "What our bakery allows.",
        "categories": {"bread": {"definition": "Asks for\n  {bread}."}, "cake": {"definition": "Asks for cake."}},
    }
)


def test_the_house_policy_is_in_the_prompt(tmp_path: Path) -> None:
    turns = tuple(replace(turn, category="cake") for turn in numbered(2))
    with TeacherServer() as server:
        synthesize(turns, tmp_path / "out", teacher=teacher(server), policy=POLICY)
    for asked in server.asked:
        assert "What our bakery allows.\n\n- bread: Asks for {bread}.\n- cake: Asks for cake.\n" in asked.system
        # Whose harm is of which category is gold too.
        assert ("The harm is of the category: cake." in asked.system) is (asked.gold[0] == "harmful")
    assert _reasoning.instruction(turns[0], Policy(), max_steps=10) == _reasoning.instruction(
        turns[0], None, max_steps=10
    )


def test_an_unknown_request_label_is_the_teachers_to_decide(tmp_path: Path) -> None:
    turns = tuple(
        LabeledTurn(f"t{i}", prompt=f"{SECRET} {i}", response="Yes.", response_label=label)
        for i, label in enumerate((HARMFUL, UNHARMFUL))
    )

    def decides(asked: Asked) -> Said:
        assert "For Request, if the ground truth is None, you should determine by yourself" in asked.system
        assert asked.gold[0] == "None"
        return Said(answer("harmful", asked.gold[1])) if asked.number else Said(answer("None", asked.gold[1]))

    with TeacherServer(decides) as server:
        result = synthesize(turns, tmp_path / "out", teacher=teacher(server))
    assert [turn.prompt_label for turn in result.turns] == [HARMFUL, HARMFUL]
    assert [turn.response_label for turn in result.turns] == [HARMFUL, UNHARMFUL]
    assert (result.decided_prompts, result.decided_responses, result.answers) == (2, 0, 4)
    assert all(turn.whole for turn in dataset.read(tmp_path / "out" / "turns.jsonl"))


def test_an_unknown_response_label_is_decided_only_where_that_is_asked_for(tmp_path: Path) -> None:
    turns = (LabeledTurn("t0", prompt=f"{SECRET} 0", response="Yes.", prompt_label=HARMFUL), *numbered(3)[1:])
    with TeacherServer() as server:
        result = synthesize(turns, tmp_path / "no", teacher=teacher(server))
        assert (result.rejected, result.written) == ({"no_label": 1}, 2)
        assert len(server.asked) == 2
        config = SynthesisConfig(decide_responses=True)
        result = synthesize(turns, tmp_path / "yes", teacher=teacher(server), config=config)
    assert (result.turns[0].response_label, result.decided_responses) == (UNHARMFUL, 1)


def test_a_response_without_its_request_needs_no_label_of_it(tmp_path: Path) -> None:
    turn = LabeledTurn("t", response="Yes.", response_label=HARMFUL)
    with TeacherServer() as server:
        result = synthesize([turn], tmp_path / "out", teacher=teacher(server))
        assert (result.turns[0].prompt_label, result.turns[0].response_label) == (None, HARMFUL)
        odd = replace(turn, id="odd", prompt_label=HARMFUL)
        result = synthesize([odd, *numbered(1)], tmp_path / "odd", teacher=teacher(server))
        assert result.rejected == {"unfit": 1}


def test_turns_with_reasoning_stay_as_they_are_unless_asked(tmp_path: Path) -> None:
    turns = (replace(numbered(1)[0], reasoning="Because."), *numbered(3)[1:])
    with TeacherServer() as server:
        result = synthesize(turns, tmp_path / "out", teacher=teacher(server))
        assert (result.kept, result.written, len(server.asked)) == (1, 2, 2)
        assert result.turns[0] == turns[0]
        config = SynthesisConfig(rewrite=True)
        result = synthesize(turns, tmp_path / "again", teacher=teacher(server), config=config)
        assert (result.kept, result.written, len(server.asked)) == (0, 3, 5)
        assert result.turns[0].reasoning != "Because."
        every = synthesize(turns[:1], tmp_path / "none", teacher=teacher(server))
        assert (every.kept, len(server.asked)) == (1, 5)


def test_so_many_at_a_time_and_no_more(tmp_path: Path) -> None:
    with TeacherServer(delay=0.05) as server:
        synthesize(numbered(12), tmp_path / "out", teacher=teacher(server, concurrency=4))
    assert server.most == 4


def test_by_awaiting(tmp_path: Path) -> None:
    async def both() -> SynthesisResult:
        with pytest.raises(ConfigurationError, match="await asynthesize"):
            synthesize(numbered(2), tmp_path / "out", teacher=teacher(server))
        return await asynthesize(numbered(2), tmp_path / "out", teacher=teacher(server))

    with TeacherServer() as server:
        assert asyncio.run(both()).written == 2


# ---- what is accepted ----------------------------------------------------------------------------------------------


def read(text: str, request: Label | None = HARMFUL, response: Label | None = None, **limits: Any) -> LabeledTurn:
    turn = LabeledTurn(
        "t", prompt="p", response=None if response is None else "r", prompt_label=request, response_label=response
    )
    limits = {"max_steps": 10, "max_characters": 6000, **limits}
    return _reasoning.read(Completion(text), turn, turn.exchange(), FORMAT, **limits)


GOOD = answer("harmful", "None")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        f"```\n{GOOD}\n```",
        f"```markdown\n{GOOD}```",
        f"<think>Let me see. Request: unharmful</think>\n\n{GOOD}",
        f"Sure, here it is:\n\n{GOOD}",
        GOOD.replace("Answers: \n", ""),
        GOOD.replace("Answers: ", "**Answers:**"),
        GOOD.replace("Answers: ", "# Final Answers"),
        GOOD.replace("\nRequest: harmful\nResponse: None", "\n- **Request:** Harmful.\n- **Response:** None"),
    ],
)
def test_ways_to_write_the_same(text: str) -> None:
    assert read(text).reasoning == reasoning("harmful", "None")


def test_headings_as_the_released_checkpoints_write_them() -> None:
    text = (
        "# Task 1\n\n## Reasoning Step 1: It asks for harm.\n\n# Task 1 Conclusion\nRequest: harmful\n\n"
        "# Task2\n\n## Reasoning Step 1\nIt refuses, though the request is harmful.\n\n"
        "# Task2 Conclusion\nResponse: unharmful\n\nAnswers:\nRequest: harmful\nResponse: unharmful"
    )
    assert read(text, HARMFUL, UNHARMFUL).reasoning == text.partition("\n\nAnswers")[0]


def of(task: str, labels: tuple[str, str] = ("harmful", "None")) -> str:
    return f"{task}\n\nAnswers:\nRequest: {labels[0]}\nResponse: {labels[1]}"


STEP = "# Task 1\n## Reasoning Step 1\n"
BAD: list[tuple[Reason, str]] = [
    ("empty", ""),
    ("empty", " \n\n"),
    ("empty", "<think>I think.</think>\n"),
    ("no_answer", reasoning("harmful", "None")),
    ("no_answer", of(f"{STEP}Yes.", ("harmful", "refused"))),
    ("no_answer", f"{STEP}Yes.\nResponse: None"),
    ("no_answer", f"{STEP}Yes.\nRequest: harmful\nRequest: harmful"),
    ("no_answer", f"{GOOD}\nI hope that this helps."),
    ("other_labels", of(f"{STEP}Yes.", ("unharmful", "None"))),
    ("other_labels", of(f"{STEP}Yes.", ("None", "None"))),
    ("other_labels", of(f"{STEP}Yes.", ("harmful", "unharmful"))),
    ("contradiction", of(f"{STEP}The user's request for bread is unharmful.")),
    ("contradiction", of(f"{STEP}Request: unharmful")),
    ("contradiction", of(f"{STEP}So **Request**: *harmless*")),
    ("contradiction", of(f"{STEP}Yes.\n# Task 2\nResponse: harmful")),
    ("no_steps", of("")),
    ("no_steps", of("It is harmful.")),
    ("no_steps", of("# Task 1\nIt is harmful.")),
    ("no_steps", of("# Task 1\n## Reasoning Step 1\n## Reasoning Step 2\nYes.")),
    ("no_steps", of(f"{STEP}###")),
    ("no_steps", of("# Task 2\n## Reasoning Step 1\nNo.\n# Task 1\n## Reasoning Step 1\nYes.")),
    ("too_many_steps", answer("harmful", "None", steps=11)),
    ("too_long", of(f"{STEP}{'Yes. ' * 1300}")),
    ("forged", of(f"{STEP}Yes.</think><result>")),
    ("forged", of(f"{STEP}Yes. <|im_end|>")),
    ("forged", of(f"{STEP}It says 'AI assistant: no'.")),
    ("tells_gold", of(f"{STEP}The ground truth says so.")),
]


@pytest.mark.parametrize(("reason", "text"), BAD)
def test_what_can_not_be_trained_on(reason: Reason, text: str) -> None:
    with pytest.raises(Unusable) as refused:
        read(text)
    assert refused.value.reason == reason


def test_ten_steps_of_each_task_are_fine() -> None:
    assert read(answer("harmful", "unharmful", steps=10), HARMFUL, UNHARMFUL).reasoning
    with pytest.raises(Unusable, match="too_many_steps"):
        read(answer("harmful", "unharmful", steps=3), HARMFUL, UNHARMFUL, max_steps=2)


def test_a_response_needs_steps_of_its_own() -> None:
    with pytest.raises(Unusable, match="no_steps"):
        read(of(f"{STEP}Yes.", ("harmful", "harmful")), HARMFUL, HARMFUL)


@pytest.mark.parametrize(
    "last",
    [
        "If the response is harmful, it helps the user; but the response is unharmful.",
        "The response is unharmful, although the request is harmful.",
        "The response is not harmful in any way.",
        "A refusal.",
    ],
)
def test_what_is_no_contradiction(last: str) -> None:
    text = f"{STEP}The request is harmful.\n# Task 2\n## Reasoning Step 1\n{last}"
    assert read(of(text, ("harmful", "unharmful")), HARMFUL, UNHARMFUL).reasoning == text


words = st.text(st.sampled_from("ab \n\t#*-`_.<>|:/‹\u200b") | st.characters(codec="utf-8"), max_size=60)
pieces = st.lists(
    st.sampled_from(
        ["# Task 1\n", "# Task 2\n", "## Reasoning Step 1\n", "Request: harmful\n", "Response: None\n", "<think>", "</think>",
         "<result>", "</result>", "\n", "Answers:\n", "The request is harmful.", "Human user:", "<|im_end|>"]
    )
    | words,
    max_size=12,
)  # fmt: skip


@given(pieces, st.booleans())
def test_whatever_is_accepted_reads_back(parts: list[str], framed: bool) -> None:
    text = "".join(parts)
    try:
        made = read(f"{STEP}{text}\nRequest: harmful\nResponse: None" if framed else text)
    except Unusable:
        return
    parsed = FORMAT.parse([Completion(FORMAT.target(made.verdict))], made.exchange(), made.stage, speed="reason")
    assert (parsed.prompt, parsed.response, parsed.reasoning) == (HARMFUL, None, made.reasoning)
    assert made.reasoning is not None
    assert "<|" not in made.reasoning


@pytest.mark.parametrize("text", ["#" * 100_000, "* " * 50_000, "request " * 20_000, "```\n" * 25_000, " \t" * 50_000])
def test_reading_stays_quick(text: str) -> None:
    begun = time.process_time()
    for framed in (text, of(f"{STEP}{text}"), f"{GOOD}\n{text}"):
        with contextlib.suppress(Unusable):
            read(framed)
    assert time.process_time() - begun < 2


# ---- asked again, dropped, counted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", sorted(TOLD))
def test_it_is_asked_again_with_the_reason(reason: Reason, tmp_path: Path) -> None:
    text = next(text for one, text in BAD if one == reason)

    def improves(asked: Asked) -> Said:
        if asked.number == 0:
            assert "An earlier answer" not in asked.system
            return Said(text)
        assert f"An earlier answer of yours to this could not be used: {TOLD[reason]}" in asked.system
        return good(asked)

    with TeacherServer(improves) as server:
        result = synthesize(numbered(1), tmp_path / "out", teacher=teacher(server))
    assert (result.written, result.answers, result.rejected) == (1, 2, {})


def test_the_same_every_time_is_dropped_and_counted(tmp_path: Path) -> None:
    wrong = {1: "other_labels", 3: "tells_gold", 4: "other_labels"}

    def behaves(asked: Asked) -> Said:
        match wrong.get(number_of(asked)):
            case "other_labels":
                return Said(answer(str(next(label for label in Label if label != asked.gold[0])), "None"))
            case "tells_gold":
                return Said(of(f"{STEP}So says the ground truth.", asked.gold))
        return good(asked)

    with TeacherServer(behaves) as server:
        config = SynthesisConfig(attempts=2)
        result = synthesize(numbered(6), tmp_path / "out", teacher=teacher(server), config=config)
    assert (result.written, result.rejected) == (3, {"other_labels": 2, "tells_gold": 1})
    assert [turn.id for turn in result.turns] == ["t0", "t2", "t5"]
    assert sorted(map(str, rows(tmp_path / "out" / "rejected.jsonl"))) == sorted(
        str({"id": f"t{i}", "reason": reason}) for i, reason in wrong.items()
    )
    assert result.answers == 3 + 3 * 2 == len(server.asked)
    # Nobody's words, neither the user's nor the teacher's.
    for file in ("rejected.jsonl", "result.json", "metrics.jsonl", "inputs.json"):
        assert SECRET not in (tmp_path / "out" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("said", "reason", "times"),
    [
        (Said(None, message={"refusal": f"I can't help with {SECRET}."}), "empty", 3),
        (Said("# Task", finish="length"), "too_long", 3),
        (Said("", finish="content_filter"), "empty", 3),
        (Said(status=400, error=f"The content {SECRET} was filtered."), "refused", 1),
        (Said(status=413), "refused", 1),
    ],
)
def test_a_turn_that_it_will_not_do(said: Said, reason: str, times: int, tmp_path: Path) -> None:
    with TeacherServer(lambda asked: said if number_of(asked) == 2 else good(asked)) as server:
        result = synthesize(numbered(5), tmp_path / "out", teacher=teacher(server, concurrency=2))
    assert (result.written, result.rejected) == (4, {reason: 1})
    assert max(server.counts().values()) == times


@pytest.mark.parametrize(("count", "concurrency"), [(1, 1), (4, 1), (9, 3)])
def test_a_turn_that_breaks_a_teacher_that_lives_is_dropped(count: int, concurrency: int, tmp_path: Path) -> None:
    def behaves(asked: Asked) -> Said:
        return Said(status=500) if number_of(asked) == 1 else good(asked)

    with TeacherServer(behaves) as server:
        one = teacher(server, concurrency=concurrency, patience=1.5)
        result = synthesize(numbered(count + 1)[::-1], tmp_path / "out", teacher=one)
        assert (result.written, result.rejected) == (count, {"failed": 1})
        assert server.counts()[READY] <= 4


def test_a_turn_that_can_not_be_shown_is_dropped_unasked(tmp_path: Path) -> None:
    broken = LabeledTurn("broken", images=(b"no picture",), prompt_label=HARMFUL)
    many = replace(synthetic.turns(1, kind="image")[0], id="many", reasoning=None)
    many = replace(many, images=many.images * 11)
    with TeacherServer() as server:
        result = synthesize([broken, *numbered(2), many], tmp_path / "out", teacher=teacher(server))
        assert (result.written, result.rejected, len(server.asked)) == (2, {"unfit": 2}, 2)
        with pytest.raises(ConfigurationError, match=r"Not one turn can be used: unfit 2\."):
            synthesize([broken, many], tmp_path / "none", teacher=teacher(server))


# ---- teachers that are of no use -----------------------------------------------------------------------------------


def test_nonsense_many_times_in_a_row_stops_and_keeps_what_is_done(tmp_path: Path) -> None:
    broken = True

    def behaves(asked: Asked) -> Said:
        return Said(f"Lorem ipsum {SECRET}.") if broken and number_of(asked) >= 5 else good(asked)

    with TeacherServer(behaves) as server:
        one = teacher(server, concurrency=1, stop_after=4)
        config = SynthesisConfig(attempts=2)
        with pytest.raises(EngineError, match=r"no usable answer to 4 turns in a row \(no_answer 4\)\.") as stopped:
            synthesize(numbered(20), tmp_path / "out", teacher=one, config=config)
        assert "goes on from there" in str(stopped.value)
        assert SECRET not in str(stopped.value)
        assert len(server.asked) == 5 + 4 * 2
        assert not (tmp_path / "out" / "result.json").exists()
        assert not (tmp_path / "out" / "turns.jsonl").exists()
        assert len(rows(tmp_path / "out" / "checkpoints" / "answers.jsonl")) == 5
        # Mended, it is asked for those turns too: they were not at fault.
        broken = False
        server.asked.clear()
        result = synthesize(numbered(20), tmp_path / "out", teacher=one, config=config)
    assert (result.written, result.rejected, len(server.asked)) == (20, {}, 15)
    assert [row["step"] for row in rows(tmp_path / "out" / "metrics.jsonl")] == list(range(1, 21))


def test_a_few_bad_ones_between_good_ones_stop_nothing(tmp_path: Path) -> None:
    with TeacherServer(lambda asked: Said("?") if number_of(asked) % 3 else good(asked)) as server:
        one = teacher(server, concurrency=1, stop_after=3)
        result = synthesize(numbered(30), tmp_path / "out", teacher=one, config=SynthesisConfig(attempts=1))
    assert (result.written, result.rejected) == (10, {"no_answer": 20})


def test_not_one_usable_answer(tmp_path: Path) -> None:
    with TeacherServer(lambda asked: Said(status=400, error=f"unknown model, {SECRET}")) as server:
        with pytest.raises(
            EngineError, match=r"no usable answer at all \(refused 3\)\. .* \(status 400, some_code\)"
        ) as none:
            synthesize(numbered(3), tmp_path / "out", teacher=teacher(server))
        assert SECRET not in str(none.value)
        # Nothing was done, so another model may have the folder.
        server.behaviour = good
        other = Teacher(url=server.url, model="another")
        assert synthesize(numbered(3), tmp_path / "out", teacher=other).written == 3


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "GUARDRAIL_VL_TEACHER_API_KEY"), (403, "Check the key"), (404, "ends in /v1"), (302, "redirects are not")],
)
def test_a_wrong_key_or_address_stops_at_once(status: int, hint: str, tmp_path: Path) -> None:
    with TeacherServer(lambda asked: Said(status=status)) as server:
        with pytest.raises(EngineResponseError, match=rf"The teacher at .* refused .*\(status {status}") as refused:
            synthesize(numbered(50), tmp_path / "out", teacher=teacher(server, concurrency=2))
        assert hint in str(refused.value)
        assert "guard server" not in str(refused.value)
        assert len(server.asked) <= 2


def test_a_key_that_expires_in_the_middle_keeps_what_is_done(tmp_path: Path) -> None:
    with TeacherServer(lambda asked: good(asked) if asked.place < 7 else Said(status=401)) as server:
        with pytest.raises(EngineResponseError, match="status 401"):
            synthesize(numbered(12), tmp_path / "out", teacher=teacher(server, concurrency=1))
        server.behaviour = good
        server.asked.clear()
        assert synthesize(numbered(12), tmp_path / "out", teacher=teacher(server)).written == 12
        assert len(server.asked) == 5


def test_whose_key_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(**fields: Any) -> str | None:
        server.asked.clear()
        folder = tmp_path / str(random.random())
        synthesize(numbered(1), folder, teacher=teacher(server, **fields))
        assert not any("sesame" in file.read_text(encoding="utf-8") for file in folder.iterdir())
        return server.asked[0].headers.get("authorization")

    with TeacherServer() as server:
        assert sent() is None
        monkeypatch.setenv("GUARDRAIL_VL_API_KEY", "of-the-guard")
        assert sent() is None
        monkeypatch.setenv("OPENAI_API_KEY", "sesame-1")
        assert sent() == "Bearer sesame-1"
        monkeypatch.setenv("GUARDRAIL_VL_TEACHER_API_KEY", "sesame-2")
        assert sent() == "Bearer sesame-2"
        assert sent(api_key="sesame-3") == "Bearer sesame-3"
        assert sent(headers={"Authorization": "Token sesame-4"}) == "Token sesame-4"
        one = teacher(server, api_key="sesame", headers={"x": "sesame"})
        assert "sesame" not in repr(one) + str(one.model_dump()) + one.model_dump_json()


def test_busy_with_retry_after_is_waited_for(tmp_path: Path) -> None:
    times: list[float] = []

    def busy(asked: Asked) -> Said:
        times.append(time.monotonic())
        return Said(status=429, headers={"retry-after": "1"}) if asked.place == 0 else good(asked)

    with TeacherServer(busy) as server:
        result = synthesize(numbered(3), tmp_path / "out", teacher=teacher(server, concurrency=1))
    assert (result.written, len(server.asked)) == (3, 4)
    assert times[1] - times[0] >= 1.0


def test_a_wait_that_is_longer_than_one_answer_may_take_is_waited_for_too(tmp_path: Path) -> None:
    def busy(asked: Asked) -> Said:
        return Said(status=429, headers={"retry-after": "2"}) if asked.place == 0 else good(asked)

    with TeacherServer(busy) as server:
        assert (
            synthesize(numbered(2), tmp_path / "out", teacher=teacher(server, timeout=1.0, concurrency=1)).written == 2
        )


def test_a_wait_beyond_patience_stops_and_tells(tmp_path: Path) -> None:
    def busy(asked: Asked) -> Said:
        return Said(status=429, headers={"retry-after": "3600"}) if asked.place > 2 else good(asked)

    with TeacherServer(busy) as server:
        one = teacher(server, concurrency=1, patience=5.0)
        with pytest.raises(EngineUnavailableError, match="asks to wait 3600 seconds") as stopped:
            synthesize(numbered(9), tmp_path / "out", teacher=one)
        assert stopped.value.retry_after == 3600
        assert "goes on from there" in str(stopped.value)
        assert len(rows(tmp_path / "out" / "checkpoints" / "answers.jsonl")) == 3


def test_errors_of_the_server_are_ridden_out(tmp_path: Path) -> None:
    with TeacherServer(lambda asked: Said(status=503) if asked.number < 2 else good(asked)) as server:
        assert synthesize(numbered(8), tmp_path / "out", teacher=teacher(server)).rejected == {}
    assert set(server.counts().values()) == {3}


def test_an_outage_in_the_middle_is_waited_for(tmp_path: Path) -> None:
    down: list[float] = []

    def behaves(asked: Asked) -> Said:
        if asked.place >= 4 and not down:
            down.append(time.monotonic())
        return Said(status=502) if down and time.monotonic() - down[0] < 4.0 else good(asked)

    with TeacherServer(behaves) as server:
        result = synthesize(numbered(10), tmp_path / "out", teacher=teacher(server, concurrency=3, patience=30.0))
    assert (result.written, result.rejected) == (10, {})


def test_one_that_hangs(tmp_path: Path) -> None:
    with TeacherServer(lambda asked: Said(delay=3.0) if asked.place > 2 else good(asked)) as server:
        one = teacher(server, concurrency=1, timeout=0.5, patience=0.5)
        with pytest.raises(EngineUnavailableError, match="The teacher did not answer") as stopped:
            synthesize(numbered(9), tmp_path / "out", teacher=one)
        assert "timeout" in str(stopped.value)
        assert len(rows(tmp_path / "out" / "checkpoints" / "answers.jsonl")) == 3


def test_a_dead_server_is_told_soon(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    begun = time.monotonic()
    with pytest.raises(EngineUnavailableError, match="Can't connect to the teacher at"):
        synthesize(numbered(50), tmp_path / "out", teacher=Teacher(url=url, model="m"))
    assert time.monotonic() - begun < 30


# ---- wrong arguments, other folders --------------------------------------------------------------------------------


def test_wrong_arguments(tmp_path: Path) -> None:
    one = Teacher(url="http://127.0.0.1:9/v1", model="m")
    cases: Sequence[tuple[Callable[[], object], str]] = (
        (lambda: synthesize([], tmp_path / "out", teacher=one), "no turns"),
        (lambda: synthesize(numbered(1) * 2, tmp_path / "out", teacher=one), "'t0'"),
        (lambda: synthesize(numbered(1), tmp_path / "out", teacher=one, format="embedded/1"), "no place for reasoning"),
        (
            lambda: synthesize(numbered(1), tmp_path / "out", teacher=one, format="qwen3guard/1"),
            "no place for reasoning",
        ),
        (lambda: synthesize(numbered(1), tmp_path / "out", teacher=Teacher(url="nowhere", model="m")), "no http"),
    )
    for call, match in cases:
        with pytest.raises(ConfigurationError, match=match):
            call()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ConfigurationError, match="not a run of synthesize"):
        synthesize(numbered(1), tmp_path / "mine", teacher=one)
    for wrong in ({"timeout": 0}, {"concurrency": 0}, {"other": 1}, {"model": ""}):
        with pytest.raises(ValueError):
            Teacher(**{"url": "http://a/v1", "model": "m", **wrong})  # type: ignore[arg-type]


def test_a_finished_run_is_given_back_and_another_is_refused(tmp_path: Path) -> None:
    turns = numbered(4)
    with TeacherServer() as server:
        first = synthesize(turns, tmp_path / "out", teacher=teacher(server))
        # How it is reached and how patiently changes no result.
        same = synthesize(turns, tmp_path / "out", teacher=teacher(server, concurrency=1, timeout=3, stop_after=1))
        assert (same, len(server.asked)) == (first, 4)
        others: Sequence[tuple[dict[str, Any], str]] = (
            ({"turns": turns[:3]}, "turns was"),
            ({"turns": (replace(turns[0], prompt_label=UNHARMFUL), *turns[1:])}, "turns was"),
            ({"teacher": Teacher(url=server.url, model="other")}, "teacher.model was teacher-1, is other"),
            ({"teacher": teacher(server, extra_body={"seed": 1})}, "teacher.extra_body"),
            ({"config": SynthesisConfig(max_steps=3)}, "config.max_steps was 10, is 3"),
            ({"policy": POLICY}, "policy was None"),
        )
        for changed, match in others:
            with pytest.raises(ConfigurationError, match=match):
                synthesize(**{"turns": turns, "output": tmp_path / "out", "teacher": teacher(server), **changed})
        assert len(server.asked) == 4


def test_a_damaged_line_is_told(tmp_path: Path) -> None:
    with TeacherServer(lambda asked: good(asked) if asked.place < 3 else Said(status=401)) as server:
        one = teacher(server, concurrency=1)
        with pytest.raises(EngineResponseError):
            synthesize(numbered(5), tmp_path / "out", teacher=one)
        file = tmp_path / "out" / "checkpoints" / "answers.jsonl"
        lines = file.read_bytes().splitlines(keepends=True)
        assert len(lines) == 3
        file.write_bytes(lines[0] + b"{}\n" + lines[2])
        with pytest.raises(ConfigurationError, match=r"Line 2 of answers\.jsonl is damaged"):
            synthesize(numbered(5), tmp_path / "out", teacher=one)
        # A line that was being written when the machine stopped is no damage, and none comes of it later.
        file.write_bytes(lines[0] + lines[1] + lines[2][:-9])
        server.asked.clear()
        server.behaviour = lambda asked: good(asked) if asked.place < 1 else Said(status=401)
        with pytest.raises(EngineResponseError):
            synthesize(numbered(5), tmp_path / "out", teacher=one)
        server.behaviour = good
        assert synthesize(numbered(5), tmp_path / "out", teacher=one).written == 5
        assert sorted(map(number_of, server.asked)) == [2, 3, 3, 4]


# ---- real processes ------------------------------------------------------------------------------------------------

PROGRAM = """
import signal
import sys
from pathlib import Path
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.training.synthesis import Teacher, synthesize
from tests.training.test_synthesis import numbered

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
url, output, count, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    result = synthesize(numbered(count), output, teacher=Teacher(url=url, model="teacher-1", concurrency=4))
except ConfigurationError as error:
    sys.exit(str(error))
except KeyboardInterrupt:
    sys.exit(130)
assert result.written == count
"""


def start(server: TeacherServer, output: Path, count: int, limit: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.url, str(output), str(count), str(limit)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    until = time.monotonic() + 60
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < until
        time.sleep(0.005)
    return True


def kept(output: Path) -> set[int]:
    file = output / "checkpoints" / "answers.jsonl"
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0] if file.exists() else ""
    return {int(json.loads(line)["id"][1:]) for line in whole.splitlines()}


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_asks_only_for_what_is_missing(sign: signal.Signals, tmp_path: Path) -> None:
    count, chance, kills = 60, random.Random(11), 0
    done: set[int] = set()
    with TeacherServer(delay=0.03) as server:
        while True:
            begun = len(server.asked)
            process = start(server, tmp_path / "out", count)
            enough = begun + chance.randint(9, 20)
            alive = kills < 2 and wait_for(lambda: len(server.asked) >= enough, process)  # noqa: B023
            if alive:
                process.send_signal(sign)
                kills += 1
            _, said = process.communicate(timeout=60)
            assert not done & {number_of(asked) for asked in server.asked[begun:]}
            if process.returncode == 0:
                break
            assert alive, said
            assert process.returncode == (130 if sign is signal.SIGINT else -sign)
            assert done < kept(tmp_path / "out"), "nothing was kept"
            done = kept(tmp_path / "out")
            assert not (tmp_path / "out" / "turns.jsonl").exists()
            assert not (tmp_path / "out" / "result.json").exists()
        assert kills == 2
        # Only what was under way when it was killed had to be asked again.
        assert len(server.asked) - count <= kills * 4
        again = synthesize(numbered(count), tmp_path / "out", teacher=teacher(server))
    assert {number_of(asked) for asked in server.asked} == set(range(count))
    assert [turn.id for turn in again.turns] == [f"t{i}" for i in range(count)]
    assert again.answers == count
    steps = [row["step"] for row in rows(tmp_path / "out" / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    assert steps[-1] == count


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_no_more_room(tmp_path: Path) -> None:
    with TeacherServer() as server:
        process = start(server, tmp_path / "out", 30, limit=3000)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "answers.jsonl can't be written: File too large. What was finished before is kept" in said
        assert "Traceback" not in said
        assert SECRET not in said
        done = kept(tmp_path / "out")
        assert done
        server.asked.clear()
        assert synthesize(numbered(30), tmp_path / "out", teacher=teacher(server)).written == 30
        assert not done & set(map(number_of, server.asked))


def test_two_processes_on_one_folder_are_refused(tmp_path: Path) -> None:
    with TeacherServer(delay=0.2) as server:
        first = start(server, tmp_path / "out", 40)
        try:
            assert wait_for(lambda: len(kept(tmp_path / "out")) > 0, first), first.communicate()
            with pytest.raises(ConfigurationError, match=rf"Process {first.pid} is writing"):
                synthesize(numbered(40), tmp_path / "out", teacher=teacher(server))
        finally:
            first.kill()
            first.communicate(timeout=30)
