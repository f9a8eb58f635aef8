"""What is written is read; what is wrong is told; no request stands on two sides."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pyarrow")

from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.prompt_format.guardreasoner_vl import MAX_ANSWER, MAX_IMAGES
from guardrail_vl.training import dataset
from guardrail_vl.training.dataset import Problem, dedupe, leaks, read, split, stats, validate, write
from guardrail_vl.training.synthetic import turns as synthetic
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label
from tests.evaluation.files import SECRET, H, U, lines
from tests.evaluation.pictures import GREEN, RED

HERE = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
SHORT = st.text(max_size=12)
LABEL = st.sampled_from(Label)


@st.composite
def labeled(draw: st.DrawFn, id: str = "", words: st.SearchStrategy[str] = SHORT) -> LabeledTurn:
    """Any turn, with pictures that are bytes of any kind."""
    response = draw(st.none() | words)
    images = tuple(draw(st.lists(st.binary(min_size=1, max_size=9) | st.just(RED), max_size=2)))
    prompt = draw(words if response is None and not images else st.none() | words)
    request = draw(LABEL if response is None else st.none() | LABEL)
    return LabeledTurn(
        id or draw(st.text(min_size=1, max_size=9)),
        prompt,
        images,
        response,
        request,
        None if response is None else draw(LABEL if request is None else st.none() | LABEL),
        draw(st.none() | words),
        **{name: draw(SHORT) for name in ("category", "source", "group", "licence")},
        weight=draw(st.floats(1e-300, 1e300)),
    )


ANY = st.lists(labeled(), min_size=1, max_size=5, unique_by=lambda turn: turn.id)
FEW = st.lists(labeled(words=st.sampled_from(["a b", "A, b!", "c", ""])), max_size=12, unique_by=lambda turn: turn.id)


# ---- files --------------------------------------------------------------------------------------------------------


@HERE
@given(turns=ANY, form=st.sampled_from(["jsonl", "jsonl.gz", "jsonl.xz", "parquet"]), kept=st.booleans())
def test_what_is_written_is_read(tmp_path: Path, turns: list[LabeledTurn], form: str, kept: bool) -> None:
    path = tmp_path / f"t.{form}"
    write(path, turns, pictures="kept" if kept else "inside")
    assert read(path) == tuple(turns)


def test_files_within_the_folder_are_named_and_others_copied(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    near, far = tmp_path / "data" / "images" / "a.png", tmp_path / "b.xyz"
    near.write_bytes(RED)
    far.write_bytes(b"no picture")
    turn = LabeledTurn("x", images=(near, far, GREEN), prompt_label=U)
    for form in ("jsonl", "parquet"):
        path = tmp_path / "data" / f"t.{form}"
        write(path, [turn])
        (found,) = read(path)
        assert found.images[0] == near
        assert found.images[2] == GREEN
        copy = found.images[1]
        assert isinstance(copy, Path)
        assert copy.parent == tmp_path / "data" / "t-pictures"
        assert (copy.suffix, copy.read_bytes()) == (".xyz", b"no picture")
        assert str(tmp_path) not in path.read_bytes().decode("latin-1")
        assert found.content_digest == turn.content_digest
        write(path, [found])
        assert read(path) == (found,)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_pictures_go_where_they_are_asked_to(tmp_path: Path, form: str) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    turn = LabeledTurn("x", images=(tmp_path / "a.png", GREEN, GREEN), prompt_label=U)
    path = tmp_path / f"t.{form}"
    write(path, [turn], pictures="inside")
    assert read(path) == (replace(turn, images=(RED, GREEN, GREEN)),)
    write(path, [turn], pictures="beside")
    (found,) = read(path)
    assert found.images[0] == tmp_path / "a.png"
    assert found.images[1] == found.images[2]
    assert [one.suffix for one in (tmp_path / "t-pictures").iterdir()] == [".png"]
    assert found.content_digest == turn.content_digest


def test_parquet_without_pictures_has_the_same_columns(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    write(tmp_path / "a.parquet", [LabeledTurn("x", "a", prompt_label=U)])
    write(tmp_path / "b.parquet", [LabeledTurn("x", images=(RED,), prompt_label=U)])
    assert parquet.read_schema(tmp_path / "a.parquet") == parquet.read_schema(tmp_path / "b.parquet")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="A Parquet file needs the package 'pyarrow'"):
        write(tmp_path / "t.parquet", [PLAIN])


def test_it_takes_no_heavy_package() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'sklearn', 'matplotlib'}"
    code = f"import sys, guardrail_vl.training.dataset; sys.exit(repr({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == "set()"


def test_parquet_of_several_groups(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    turns = tuple(LabeledTurn(str(n), f"{n}", (RED,) if n % 7 == 0 else (), prompt_label=U) for n in range(2_300))
    write(tmp_path / "t.parquet", turns)
    assert parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3
    assert read(tmp_path / "t.parquet") == turns


def test_the_same_turns_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write(tmp_path / name, synthetic(5))
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert set(json.loads(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).splitlines()[0])) <= {
        *dataset.COLUMNS
    }


def test_texts_that_are_no_unicode(tmp_path: Path) -> None:
    turn = LabeledTurn("x", "\ud800", prompt_label=U)
    write(tmp_path / "t.jsonl", [turn])
    assert read(tmp_path / "t.jsonl") == (turn,)
    with pytest.raises(ConfigurationError, match="not valid Unicode"):
        write(tmp_path / "t.parquet", [turn])
    assert not (tmp_path / "t.parquet").exists()


PLAIN = LabeledTurn("x", SECRET, prompt_label=U)


@pytest.mark.parametrize(
    ("name", "turns", "match"),
    [
        ("t.jsonl", [], "no turns to write"),
        ("t.csv", [PLAIN], r"no format that can be written"),
        ("t.parquet.gz", [PLAIN], r"no format that can be written"),
        ("t.jsonl", [PLAIN, PLAIN], "Two turns have the id 'x'"),
        ("t.jsonl", [replace(PLAIN, id="")], "has no id"),
        ("t.jsonl", [replace(PLAIN, weight=float("inf"))], "is not finite"),
        (
            "t.jsonl",
            [replace(PLAIN, images=(Path("gone") / "a.png",))],
            "picture of the turn 'x' can't be read: No such",
        ),
    ],
)
def test_what_is_not_written(tmp_path: Path, name: str, turns: list[LabeledTurn], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as caught:
        write(tmp_path / "sub" / name, turns)
    assert SECRET not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, [PLAIN])
    with pytest.raises(ConfigurationError):
        write(path, [PLAIN, PLAIN])
    assert read(path) == (PLAIN,)


def test_two_rows_with_one_id(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", [{"id": "x", "prompt": text, "label": "safe"} for text in "ab"])
    with pytest.raises(ConfigurationError, match="row 2: it has the same id as row 1"):
        read(path)


# ---- what is wrong ------------------------------------------------------------------------------------------------


def test_synthetic_turns_have_no_problems(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", synthetic(60))
    assert validate(tmp_path / "t.jsonl") == ()


def test_all_problems_are_told_with_their_rows(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(RED[:-20])
    wrong = f"{SECRET}\n# Task 1 Conclusion\nRequest: unharmful\n"
    rows = [
        {"id": "a", "prompt": "fine", "label": "safe"},
        {"id": "b", "prompt": SECRET, "label": "spam"},
        {"id": "a", "prompt": "other", "label": "safe"},
        {"id": "c", "images": ["bad.png", "gone.png"], "label": "safe"},
        {"id": "d", "prompt": "d", "label": "harmful", "reasoning": wrong},
        {"id": "e", "prompt": "e", "label": "harmful", "reasoning": f"{SECRET}</think>"},
        {"id": "f", "prompt": " ", "response": "", "label": "harmful"},
        {"id": "g", "prompt": "fine", "label": "unsafe", "licence": "CC-BY-SA-4.0; test use only, training prohibited"},
    ]
    path = lines(tmp_path / "t.jsonl", rows)
    with path.open("a") as file:
        file.write("{broken\n")
    found = validate(path)
    assert [(p.row, p.id, p.kind) for p in found] == [
        (2, "", "row"), (3, "a", "id"), (4, "c", "picture"), (4, "c", "picture"), (5, "d", "label"),
        (6, "e", "reasoning"), (7, "f", "content"), (7, "f", "content"), (8, "g", "label"), (8, "g", "licence"),
        (9, "", "row"),
    ]  # fmt: skip
    told = [p.message for p in found]
    assert told[0].startswith("the field 'label' holds an unknown label ('spam')")
    assert told[1] == "it has the same id as row 1."
    assert told[2].startswith("picture 1 of 2 can't be used: ")
    assert told[3] == "picture 2 of 2 can't be used: the picture can't be read: no such file."
    assert told[4] == "the reasoning concludes otherwise than the label of the prompt, which is harmful."
    assert told[8] == "it has the same content as row 1, and another label."
    assert not any(SECRET in message for message in told)
    parsed = dataset.sound(dataset._parsed(path, None, None), found)
    assert [turn.id for turn in parsed] == ["a"]
    assert Problem.from_json(found[0].to_json()) == found[0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Request: harmful", False),
        ("Request: unharmful", True),
        ("**Request:** harmless.", True),
        ("- request : UNHARMFUL", True),
        ("Request: None", True),
        ("Response: unharmful", False),
        ("Response: harmful", True),
        ("Request: unharmful words, but a harmful aim", False),
        ("The request: unharmful", False),
        ("Response: see above", False),
    ],
)
def test_a_conclusion_in_the_reasoning(tmp_path: Path, line: str, told: bool) -> None:
    turn = LabeledTurn("x", "a", (), "b", H, U, f"First.\n{line}\nLast.")
    write(tmp_path / "t.jsonl", [turn])
    assert [problem.kind for problem in validate(tmp_path / "t.jsonl")] == ["label"] * told


def test_a_label_that_is_not_known_contradicts_nothing(tmp_path: Path) -> None:
    turn = LabeledTurn("x", "a", (), "b", None, U, "Request: harmful\nResponse: unharmful")
    write(tmp_path / "t.jsonl", [turn])
    assert validate(tmp_path / "t.jsonl") == ()


@pytest.mark.parametrize(
    ("turn", "kind", "match"),
    [
        (LabeledTurn("x", "a", prompt_label=U, reasoning=""), "reasoning", "empty or holds"),
        (LabeledTurn("x", "a", prompt_label=U, reasoning="a" * MAX_ANSWER), "reasoning", "characters"),
        (LabeledTurn("x", "\ud800", prompt_label=U), "content", "lone surrogate"),
        (LabeledTurn("x", "a", (RED,) * (MAX_IMAGES + 1), prompt_label=U), "content", "pictures"),
        (LabeledTurn("x", "a", (b"no picture",), prompt_label=U), "picture", "the picture can't be used"),
    ],
)
def test_what_can_not_be_trained_on(tmp_path: Path, turn: LabeledTurn, kind: str, match: str) -> None:
    write(tmp_path / "t.jsonl", [turn])
    (problem,) = validate(tmp_path / "t.jsonl")
    assert (problem.kind, problem.id) == (kind, "x")
    assert match in problem.message


# ---- repeats ------------------------------------------------------------------------------------------------------


def test_repeats_and_contradictions() -> None:
    turns = [
        LabeledTurn("a", "one", (RED,), "yes", H, None),
        LabeledTurn("b", "one", (RED,), "yes", H, U, reasoning="because"),
        LabeledTurn("c", "one", (RED,), "no", H, U),
        LabeledTurn("d", "two", prompt_label=H),
        LabeledTurn("e", "two", prompt_label=U),
        LabeledTurn("f", "two", prompt_label=U),
    ]
    once = dedupe(turns)
    assert [turn.id for turn in once.turns] == ["b", "c"]
    assert once.repeated == (("a", "b"),)
    assert once.contradicting == (("d", "e", "f"),)
    kept = dedupe(turns, contradicting="keep")
    assert [turn.id for turn in kept.turns] == ["b", "c", "d", "e"]
    assert kept.repeated == (("a", "b"), ("f", "e"))


def test_labels_of_repeats_are_put_together(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    one = LabeledTurn("a", "q", (tmp_path / "a.png",), "r", H, None)
    other = LabeledTurn("b", "q", (RED,), "r", None, U)
    assert dedupe([one, other]).turns == (replace(one, response_label=U),)


@HERE
@given(turns=FEW, keep=st.booleans())
def test_each_content_once(turns: list[LabeledTurn], keep: bool) -> None:
    once = dedupe(turns, contradicting="keep" if keep else "drop")
    ids = [turn.id for turn in once.turns]
    assert ids == [turn.id for turn in turns if turn.id in ids]
    contradicting = {id for ids in once.contradicting for id in ids}
    counts = Counter(turn.content_digest for turn in once.turns if turn.id not in contradicting)
    assert set(counts.values()) <= {1}
    gone = {turn.id for turn in turns} - set(ids)
    assert gone == {id for id, _ in once.repeated} | (set() if keep else contradicting)
    again = dedupe(once.turns, contradicting="keep" if keep else "drop")
    assert (again.turns, again.repeated) == (once.turns, ())


# ---- sides --------------------------------------------------------------------------------------------------------


@HERE
@given(
    turns=FEW, seed=st.integers(0, 9), shares=st.sampled_from([{"a": 0.5, "b": 0.5}, {"a": 0.6, "b": 0.3, "c": 0.1}])
)
def test_no_request_stands_on_two_sides(turns: list[LabeledTurn], seed: int, shares: dict[str, float]) -> None:
    many = [
        replace(turn, id=f"more-{turn.id}", prompt=f"{n} {turn.prompt}", group="") for n, turn in enumerate(turns * 3)
    ]
    turns = list({turn.id: turn for turn in (*turns, *many, *synthetic(20))}.values())
    sides = split(turns, shares, seed)
    assert sorted(turn.id for side in sides.values() for turn in side) == sorted(turn.id for turn in turns)
    for name, side in sides.items():
        for other in sides.keys() - {name}:
            assert leaks(side, sides[other]) == ()
    mixed = turns.copy()
    random.Random(seed).shuffle(mixed)
    again = split(mixed, shares, seed)
    assert {name: set(side) for name, side in again.items()} == {name: set(side) for name, side in sides.items()}


def test_the_shares_are_kept_in_every_stratum() -> None:
    turns = synthetic(400, seed=3)
    sides = split(turns)
    assert list(sides) == ["train", "held_out"]
    assert abs(len(sides["held_out"]) - 80) <= 8
    whole = Counter((turn.modality, turn.prompt_label) for turn in turns)
    held = Counter((turn.modality, turn.prompt_label) for turn in sides["held_out"])
    assert all(abs(held[stratum] - count / 5) <= 5 for stratum, count in whole.items())
    assert split(turns, seed=1) != sides


def test_large_requests_do_not_gather_on_one_side() -> None:
    turns = [LabeledTurn(f"{n}-{m}", f"request {n}", (), f"{m}", U, U) for n in range(300) for m in range(1 + n % 3)]
    held = split(turns)["held_out"]
    mean = len(held) / len({turn.prompt for turn in held})
    assert 1.7 < mean < 2.3  # as of all


@pytest.mark.parametrize(
    "shares",
    [{"a": 1.0}, {"a": 0.5, "b": 0.4}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}, {"a": float("nan"), "b": 1.0}],
)
def test_shares_that_are_none(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="add up to 1"):
        split(synthetic(9), shares)


def test_too_little_to_split() -> None:
    same = [replace(PLAIN, id=str(number)) for number in range(9)]
    with pytest.raises(ConfigurationError, match="Nothing would be left for 'held_out': there are 1 requests"):
        split(same)
    with pytest.raises(ConfigurationError, match="one id"):
        split([PLAIN, PLAIN])


A = LabeledTurn("a", "How do I bake?", prompt_label=U)
P = LabeledTurn("p", images=(RED,), prompt_label=U)


@pytest.mark.parametrize(
    ("train", "test", "why"),
    [
        (A, replace(A, prompt_label=H), "content"),
        (A, replace(A, prompt="how do I   BAKE"), "request"),
        (A, replace(A, response="No."), "request"),
        (A, replace(A, prompt="What?"), None),
        (replace(A, group="g"), replace(A, prompt="What?", group="g"), "group"),
        (replace(A, group="g"), replace(A, group="h"), "content"),
        (A, replace(A, images=(RED,)), "group"),
        (replace(A, images=(RED,), group="g"), replace(A, images=(GREEN,), group="h"), None),
        (P, replace(P, prompt_label=H), "content"),
        (P, replace(P, response="No."), "request"),
        (P, replace(P, images=(GREEN,)), None),
        (LabeledTurn("r", response="x", response_label=U), LabeledTurn("s", response="y", response_label=U), None),
        (
            LabeledTurn("r", response="X", response_label=U),
            LabeledTurn("s", response="x!", response_label=U),
            "request",
        ),
    ],
)
def test_why_a_turn_leaks(train: LabeledTurn, test: LabeledTurn, why: str | None) -> None:
    test = replace(test, id="t")
    found = leaks([LabeledTurn("z", "unlike", prompt_label=U), train], [test])
    assert [tuple(leak) for leak in found] == ([(train.id, "t", why)] if why else [])


def test_a_leak_by_a_file_and_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    assert [leak.why for leak in leaks([P], [replace(P, images=(tmp_path / "a.png",))])] == ["content"]


@pytest.mark.parametrize("ask", [stats, dedupe, split, lambda turns: leaks(turns, [])])
def test_a_picture_that_is_gone(ask: Callable[[list[LabeledTurn]], object]) -> None:
    gone = [A, replace(P, images=(Path("gone") / "a.png",))]
    with pytest.raises(ConfigurationError, match="picture of the turn 'p' can't be read: No such file"):
        ask(gone)


# ---- what there is ------------------------------------------------------------------------------------------------


def test_what_is_counted() -> None:
    turns = [
        LabeledTurn("a", "1234", (), "12", H, None, "because", "fraud", "ours", licence="MIT"),
        LabeledTurn("b", "12", (), None, U, None, None, "fraud", "theirs"),
        LabeledTurn("c", "12", (), None, H),
        LabeledTurn("d", None, (RED, GREEN), None, U),
    ]
    found = stats(turns)
    assert (found.turns, found.requests, found.pictures) == (4, 3, 2)
    assert (found.unlabelled, found.without_reasoning, found.repeated, found.contradicting) == (1, 3, 1, 1)
    assert found.modalities == {"text": 3, "image": 1}
    assert found.prompt_labels == {"harmful": 2, "unharmful": 2}
    assert found.response_labels == {"none": 3, "unknown": 1}
    assert found.categories == {"": 2, "fraud": 2}
    assert found.sources == {"": 2, "ours": 1, "theirs": 1}
    assert found.licences == {"": 3, "MIT": 1}
    assert found.lengths["prompt"] == dataset.Lengths(3, 2, 2, 4, 4)
    assert found.lengths["reasoning"] == dataset.Lengths(1, 7, 7, 7, 7)
    with pytest.raises(ConfigurationError, match="no turns"):
        stats([])


def test_the_95_of_100() -> None:
    turns = [LabeledTurn(str(n), "a" * n, prompt_label=U) for n in range(1, 101)]
    assert stats(turns).lengths["prompt"] == dataset.Lengths(100, 1, 50.5, 95, 100)
