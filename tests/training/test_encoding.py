from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.checkpoints import text_only  # isort: skip - skips where the extra is missing

import torch

from guardrail_vl import Guard
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training._encoding import IGNORED, Encoded, Encoder
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label, Stage


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("encoding") / "seeing")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_only(tmp_path_factory.mktemp("encoding") / "reading")


@pytest.fixture(scope="module")
def encoder(seeing: Path) -> Encoder:
    return Encoder(seeing)


def served(folder: Path, turn: LabeledTurn, speed: Any) -> list[dict[str, torch.Tensor]]:
    """What reaches the model when a guard judges the turn, seen from the model's own door."""
    seen: list[dict[str, torch.Tensor]] = []
    with Guard(folder, speed=speed, cache=False, dtype="float32", max_batch=1) as guard:
        model: Any = guard.engine._loaded.generator.model  # type: ignore[attr-defined]
        generate = model.generate

        def watched(**given: Any) -> Any:
            seen.append({name: value for name, value in given.items() if isinstance(value, torch.Tensor)})
            # The words that come are of no interest.
            given["generation_config"].max_new_tokens = 1
            return generate(**given)

        model.generate = watched
        if turn.stage is Stage.RESPONSE:
            guard.check_response(turn.response, prompt=turn.prompt, images=turn.images)
        else:
            guard.check_prompt(turn.prompt, images=turn.images)
    return seen


KINDS = [(kind, answered) for kind in ("text", "image", "text-image") for answered in (False, True)]


def a_turn(kind: Any, answered: bool) -> LabeledTurn:
    turn = synthetic.turns(1, seed=3, kind=kind)[0]
    if not answered:
        return replace(turn, response=None, response_label=None)
    return replace(turn, response="Sure, here is how.", response_label=Label.HARMFUL)


@pytest.mark.parametrize(("kind", "answered"), KINDS)
def test_training_begins_with_exactly_what_serving_sends(
    seeing: Path, encoder: Encoder, kind: str, answered: bool
) -> None:
    turn = a_turn(kind, answered)
    (sent,) = served(seeing, turn, "reason")
    row = encoder.encode(turn, target=encoder.target(turn))
    prompt = sent["input_ids"][0].tolist()
    assert list(row.ids[: len(prompt)]) == prompt
    assert set(row.labels[: len(prompt)]) == {IGNORED}
    assert row.labels[len(prompt) :] == row.ids[len(prompt) :]
    if kind == "text":
        assert row.pixels is None
        assert row.grid is None
    else:
        torch.testing.assert_close(row.pixels, sent["pixel_values"], rtol=0, atol=0)
        assert row.grid.tolist() == sent["image_grid_thw"].tolist()


@pytest.mark.parametrize("answered", [False, True])
def test_a_text_model_too(reading: Path, answered: bool) -> None:
    encoder = Encoder(reading)
    turn = a_turn("text", answered)
    (sent,) = served(reading, turn, "reason")
    row = encoder.encode(turn, target=encoder.target(turn))
    prompt = sent["input_ids"][0].tolist()
    assert list(row.ids[: len(prompt)]) == prompt
    assert encoder.tokenizer.decode(row.ids[len(prompt) :]) == encoder.target(turn) + "<|im_end|>"
    with pytest.raises(ContentError, match="reads text only"):
        encoder.encode(a_turn("image", False), target=None)


@pytest.mark.parametrize(("kind", "answered"), KINDS)
def test_a_fast_target_begins_with_what_fast_serving_sends(
    seeing: Path, encoder: Encoder, kind: str, answered: bool
) -> None:
    """Its prefix is tokenised together with the prompt there, and apart from it here."""
    turn = a_turn(kind, answered)
    row = encoder.encode(turn, target=encoder.target(turn, fast=True))
    prompts = [sent["input_ids"][0].tolist() for sent in served(seeing, turn, "fast")]
    fitting = [prompt for prompt in prompts if list(row.ids[: len(prompt)]) == prompt]
    # Of the prefixes with a request's label, the one with this label.
    assert len(fitting) == (2 if turn.stage is Stage.RESPONSE else 1)
    assert len(fitting[0]) > sum(label == IGNORED for label in row.labels)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("turn", synthetic.turns(12, seed=7), ids=lambda turn: turn.category)
def test_labels_are_the_target_and_the_end_and_nothing_else(encoder: Encoder, turn: LabeledTurn, fast: bool) -> None:
    row = encoder.encode(turn, target=encoder.target(turn, fast=fast))
    learnt = [label for label in row.labels if label != IGNORED]
    assert encoder.tokenizer.decode(learnt) == encoder.target(turn, fast=fast) + "<|im_end|>"
    assert learnt[-1] == encoder.end
    assert learnt.count(encoder.end) == 1
    assert encoder.encode(turn, target=None).ids == row.ids[: len(row.ids) - len(learnt)]
    assert ("<think>\n</think>" in encoder.target(turn, fast=fast)) is fast


def test_a_target_can_t_hold_control_tokens(encoder: Encoder) -> None:
    turn = replace(a_turn("text", False), reasoning="It ends here.<|im_end|>")
    with pytest.raises(ContentError, match="control tokens"):
        encoder.encode(turn, target=encoder.target(turn))


def test_weights_come_along(encoder: Encoder) -> None:
    assert encoder.encode(replace(a_turn("text", False), weight=2.5), target=None).weight == 2.5


rows = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 12)).map(
        lambda n: Encoded(ids=(5,) * n[0] + (7,) * n[1], labels=(IGNORED,) * n[0] + (7,) * n[1])
    ),
    min_size=1,
    max_size=6,
)


@given(rows=rows, side=st.sampled_from(["left", "right"]))
def test_padding_is_on_its_side_and_counts_nowhere(encoder: Encoder, rows: list[Encoded], side: Any) -> None:
    batch = encoder.collate(rows, side=side)
    longest = max(len(row.ids) for row in rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for place, row in enumerate(rows):
        mask = batch["attention_mask"][place].bool()
        assert batch["input_ids"][place][mask].tolist() == list(row.ids)
        assert batch["labels"][place][mask].tolist() == list(row.labels)
        assert batch["labels"][place][~mask].eq(IGNORED).all()
        assert batch["input_ids"][place][~mask].eq(encoder.pad).all()
        edge = 0 if side == "right" else longest - 1
        assert mask[edge]


@pytest.mark.parametrize("side", ["left", "right"])
def test_pictures_of_a_batch_are_marked(encoder: Encoder, side: Any) -> None:
    given = [a_turn("text", True), a_turn("image", False), a_turn("text-image", True)]
    encoded = [encoder.encode(turn, target=encoder.target(turn)) for turn in given]
    batch = encoder.collate(encoded, side=side)
    marked = batch["mm_token_type_ids"].bool()
    assert marked.equal(batch["input_ids"].eq(encoder.reader.image_token))
    assert marked.sum(1).tolist()[0] == 0
    assert int(marked.sum()) == int(batch["image_grid_thw"].prod(-1).sum()) // 4
    assert len(batch["pixel_values"]) == int(batch["image_grid_thw"].prod(-1).sum())


def test_no_row_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ContentError):
        encoder.collate([])


def test_a_checkpoint_that_can_t_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="can't be loaded"):
        Encoder(tmp_path)
    with pytest.raises(ConfigurationError, match="no prompt format"):
        Encoder(tmp_path, "guardreasoner-vl/9")
