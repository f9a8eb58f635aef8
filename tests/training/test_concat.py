from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.evaluation._joining import either
from guardrail_vl.media import PILImage, load_image, render_views
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL
from guardrail_vl.training import synthetic
from guardrail_vl.training.concat import ConcatConfig, concat
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label, Stage
from tests.evaluation.pictures import GREEN, RED, plain

H, U = Label.HARMFUL, Label.UNHARMFUL


@st.composite
def some(draw: st.DrawFn, least: int = 2, most: int = 12) -> tuple[LabeledTurn, ...]:
    """Turns of every shape, with ids and groups that are easily mixed up."""
    count = draw(st.integers(least, most))
    ids = draw(st.lists(st.text("ab+", min_size=1, max_size=3), min_size=count, max_size=count, unique=True))
    made = []
    for number, id in enumerate(ids):
        images = draw(st.sampled_from([(), (RED,), (GREEN, RED)]))
        prompt = draw(st.sampled_from([f"ask {number}", None] if images else [f"ask {number}"]))
        response = draw(st.sampled_from([None, f"say {number}"]))
        answered = draw(st.sampled_from([H, U, None])) if response else None
        asked = draw(st.sampled_from([H, U, None] if answered else [H, U]))
        made.append(
            LabeledTurn(
                id=id,
                prompt=prompt,
                images=images,
                response=response,
                prompt_label=asked,
                response_label=answered,
                reasoning="Because.",
                group=draw(st.sampled_from(["", "one", "two"])),
                weight=draw(st.sampled_from([1.0, 2.0])),
            )
        )
    return tuple(made)


def texts(count: int, *, harmful: float = 0.5) -> tuple[LabeledTurn, ...]:
    return tuple(
        LabeledTurn(id=str(n), prompt=f"ask {n}", prompt_label=H if n < harmful * count else U) for n in range(count)
    )


def tried(turns: tuple[LabeledTurn, ...], config: ConcatConfig) -> tuple[LabeledTurn, ...]:
    """The result, or () where these few turns have too few pairs."""
    try:
        return concat(turns, config=config)
    except ConfigurationError:
        return ()


def joined_of(
    turns: tuple[LabeledTurn, ...], result: tuple[LabeledTurn, ...]
) -> list[tuple[LabeledTurn, LabeledTurn, LabeledTurn]]:
    """Each joined turn with the two it is made of: what they say tells."""
    known = {turn.id for turn in turns}
    parts = {(f"{a.id}+{b.id}"): (a, b) for a, b in itertools.permutations(turns, 2)}
    return [(*parts[made.id], made) for made in result if made.id not in known and made.id in parts]


# ---- laws ---------------------------------------------------------------------------------------------------------


@given(some(), st.sampled_from([0.2, 0.5]), st.integers(0, 5))
def test_a_joined_turn_is_harmful_if_either_is(turns: tuple[LabeledTurn, ...], share: float, seed: int) -> None:
    turns = tuple(replace(turn, id=f"t{number}") for number, turn in enumerate(turns))
    result = tried(turns, ConcatConfig(share=share, seed=seed))
    for one, two, made in joined_of(turns, result):
        assert made.prompt_label == either(one.prompt_label, two.prompt_label)
        there = [turn.response_label for turn in (one, two) if turn.response is not None]
        assert made.response_label == (either(*there) if there else None)
        assert made.reasoning is None
        assert made.weight == (one.weight + two.weight) / 2


@given(some(), st.sampled_from([0.2, 0.5]), st.integers(0, 5))
def test_nothing_that_was_said_or_shown_is_lost(turns: tuple[LabeledTurn, ...], share: float, seed: int) -> None:
    turns = tuple(replace(turn, id=f"t{number}") for number, turn in enumerate(turns))
    for one, two, made in joined_of(turns, tried(turns, ConcatConfig(share=share, seed=seed))):
        for turn in (one, two):
            assert (turn.prompt or "") in (made.prompt or "")
            assert (turn.response or "") in (made.response or "")
        both = bool(one.images and two.images)
        assert len(made.images) == len(one.images) + len(two.images) - both


@given(some(), st.floats(0, 0.6), st.integers(0, 5))
def test_ids_are_unique_and_two_of_a_group_are_never_joined(
    turns: tuple[LabeledTurn, ...], share: float, seed: int
) -> None:
    result = tried(turns, ConcatConfig(share=share, seed=seed))
    assert len({turn.id for turn in result}) == len(result)
    for made in result[len(turns) :]:
        assert made.group not in ("one+one", "two+two")
        assert "+" in made.group


@given(some(), st.floats(0, 0.9), st.integers(0, 5), st.booleans())
def test_the_same_seed_gives_the_same(turns: tuple[LabeledTurn, ...], share: float, seed: int, balance: bool) -> None:
    config = ConcatConfig(share=share, seed=seed, balance=balance)
    assert tried(turns, config) == tried(turns, config)


@given(st.integers(30, 300), st.floats(0, 0.6))
def test_all_turns_stay_and_the_share_is_of_the_result(count: int, share: float) -> None:
    turns = texts(count)
    result = concat(turns, config=ConcatConfig(share=share))
    assert result[:count] == turns
    assert abs(len(result) - count - share * len(result)) <= 0.5


@given(st.integers(30, 300), st.floats(0, 0.6))
def test_a_total_is_kept_and_draws_from_what_was_given(count: int, share: float) -> None:
    turns = texts(count)
    result = concat(turns, config=ConcatConfig(share=share, total=count))
    originals = [turn for turn in result if turn in turns]
    assert len(result) == count
    assert abs(count - len(originals) - share * count) <= 0.5
    assert [int(turn.id) for turn in originals] == sorted(int(turn.id) for turn in originals)
    used = {id for turn in result[len(originals) :] for id in turn.id.split("+")}
    assert used <= {turn.id for turn in originals}


def test_the_papers_12_000() -> None:
    turns = texts(12_000)
    result = concat(turns, config=ConcatConfig(total=12_000))
    assert len(result) == 12_000
    joined = result[9_600:]
    assert all("+" not in turn.id for turn in result[:9_600])
    assert all("+" in turn.id for turn in joined)
    # Each pair once, whatever its order, and no turn with itself.
    pairs = {frozenset(turn.id.split("+")) for turn in joined}
    assert len(pairs) == 2_400
    assert all(len(pair) == 2 for pair in pairs)
    assert {int(turn.id.split("+")[0]) > int(turn.id.split("+")[1]) for turn in joined} == {True, False}


@pytest.mark.parametrize("harmful", [0.02, 0.5, 0.97])
def test_balanced_turns_are_half_harmful(harmful: float) -> None:
    turns = texts(1000, harmful=harmful)
    found = [turn.prompt_label for turn in concat(turns, config=ConcatConfig(balance=True))[1000:]]
    assert (found.count(H), found.count(U)) == (125, 125)
    assert found != sorted(found, key=str)


def test_without_balance_most_are_harmful() -> None:
    found = [turn.prompt_label for turn in concat(texts(2000))[2000:]]
    assert len(found) == 500
    assert 0.68 < found.count(H) / 500 < 0.82  # 3 of 4, by the rule


def test_every_pair_can_be_used_and_no_more() -> None:
    turns = texts(5)
    result = concat(turns, config=ConcatConfig(share=10 / 15))
    assert len(result) == 15
    with pytest.raises(ConfigurationError, match="12 pairs are wanted that can be joined, and 10 were found among 5"):
        concat(turns, config=ConcatConfig(share=12 / 17))


# ---- texts and pictures -------------------------------------------------------------------------------------------

ONE = LabeledTurn("one", "How?", (), "So.", U, U, "Because.", "craft", "ours", "", "MIT")
TWO = LabeledTurn("two", "Why?", (), None, H, None, "Because.", "law", "ours", "g2", "Apache-2.0")


def made_of(one: LabeledTurn, two: LabeledTurn, **settings: object) -> LabeledTurn:
    """The joined turn, with `one` first."""
    for seed in range(50):
        config = ConcatConfig.model_validate({"share": 1 / 3, "seed": seed, **settings})
        made = concat((one, two), config=config)[-1]
        if made.id.startswith(one.id):
            return made
    raise AssertionError("never in this order")


def test_request_with_request_and_response_with_response() -> None:
    made = made_of(ONE, TWO)
    expected = LabeledTurn(
        "one+two", "How?\n\nWhy?", (), "So.", H, U, None, "craft + law", "ours", "one+g2", "MIT + Apache-2.0"
    )
    assert made == expected
    assert made_of(ONE, replace(TWO, response="Thus.", response_label=H)).response == "So.\n\nThus."


def test_it_is_the_join_that_evaluation_makes() -> None:
    pytest.importorskip("matplotlib", reason="transforms draw texts")
    from guardrail_vl.evaluation.transforms import join

    one, two = replace(ONE, images=(RED, GREEN)), replace(TWO, images=(GREEN,))
    case = join(one.case(Stage.PROMPT), two.case(Stage.PROMPT))
    made = made_of(one, two)
    assert (made.prompt, made.prompt_label) == (case.prompt, case.gold)
    assert [view(image).tobytes() for image in made.images] == [view(image).tobytes() for image in case.images]


def view(image: Path | bytes) -> PILImage:
    assert isinstance(image, bytes)
    return render_views(image)[0]


def test_pictures_side_by_side_fit_and_are_png() -> None:
    one = replace(ONE, images=(plain((250, 0, 0), (900, 300)),))
    two = replace(TWO, images=(plain((0, 0, 250), (1100, 1200)),))
    (image,) = made_of(one, two).images
    assert isinstance(image, bytes)
    facts = load_image(image)
    assert (facts.media_type, facts.width, facts.height) == ("image/png", 1024, 614)
    picture = view(image)
    assert [picture.getpixel(at) for at in ((5, 5), (5, 600), (1000, 600))] == [
        (250, 0, 0),
        (255, 255, 255),
        (0, 0, 250),
    ]
    (small,) = made_of(one, two, max_side=100).images
    assert view(small).size == (100, 60)


def test_where_one_has_no_picture_the_others_stay_as_they_are() -> None:
    assert made_of(ONE, replace(TWO, images=(RED, GREEN))).images == (RED, GREEN)
    assert made_of(replace(ONE, images=(RED,)), TWO).images == (RED,)


def test_an_unreadable_picture_is_named_by_its_turns() -> None:
    with pytest.raises(ContentError, match=r"pictures of 'one\+two'"):
        made_of(replace(ONE, images=(RED,)), replace(TWO, images=(b"nothing",)))


def test_a_real_corpus() -> None:
    turns = synthetic.turns(60, seed=3)
    result = concat(turns)
    assert len(result) == 75
    for turn in result:
        GuardReasonerVL().render(turn.exchange(), turn.stage, speed="reason")
    assert {turn.modality for turn in result[60:]} >= {"text-image"}


# ---- switches of the release --------------------------------------------------------------------------------------


def shown(turn: LabeledTurn) -> str:
    (prompt,) = GuardReasonerVL().render(turn.exchange(), turn.stage, speed="reason")
    return prompt.messages[1].text


def test_the_release_puts_two_transcripts_in_one_prompt() -> None:
    made = made_of(ONE, TWO, layout="release")
    # The first headers are the template's. The others are content, so they lose their colons.
    assert shown(made) == ("Human user:\nHow?\n\nAI assistant:\nSo. Human user꞉\nWhy?\n\nAI assistant꞉\nNone\n")
    assert (made.prompt_label, made.response_label) == (H, U)


def test_two_transcripts_without_a_response_have_none() -> None:
    made = made_of(replace(ONE, response=None, response_label=None), TWO, layout="release")
    assert shown(made) == ("Human user:\nHow?\n\nAI assistant꞉\nNone Human user꞉\nWhy?\n\nAI assistant:\nNone\n")
    assert made.response is None
    bare = replace(ONE, id="bare", prompt=None, images=(RED,), response=None, response_label=None)
    assert shown(made_of(bare, TWO, layout="release")) == (
        "Human user:\n\n\nAI assistant꞉\nNone Human user꞉\nWhy?\n\nAI assistant:\nNone\n"
    )


def test_the_releases_gold_is_that_of_the_first() -> None:
    made = made_of(ONE, TWO, gold="first")
    assert (made.prompt_label, made.response_label) == (U, U)
    made = made_of(TWO, ONE, gold="first")
    assert (made.prompt_label, made.response_label) == (H, None)


def test_the_releases_placeholder_is_for_every_turn_without_a_picture() -> None:
    result = concat(
        (ONE, TWO, replace(ONE, id="seen", prompt="What?", images=(RED,))), config=ConcatConfig(placeholder=True)
    )
    assert result[2].images == (RED,)
    for turn in result[:2]:
        (image,) = turn.images
        assert view(image).size == (1, 1)
        assert view(image).getpixel((0, 0)) == (255, 255, 255)


# ---- refused ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="same id"):
        concat((ONE, ONE))
    with pytest.raises(ConfigurationError, match="takes 8 turns; there are 2"):
        concat((ONE, TWO), config=ConcatConfig(total=10))
    with pytest.raises(ConfigurationError, match="are unharmful together, and 0 were found"):
        concat(texts(20, harmful=1), config=ConcatConfig(balance=True))
    with pytest.raises(ConfigurationError, match="can be joined, and 0 were found"):
        concat(tuple(replace(turn, group="one") for turn in texts(8)))
    with pytest.raises(ConfigurationError, match="can be joined, and 0 were found"):
        concat(tuple(replace(turn, prompt="the same") for turn in texts(8)))
    # Of these two together nothing is known: one's request and the other's response could be anything.
    one, two = replace(ONE, response_label=None), LabeledTurn("odd", "What?", (), "So.", None, U)
    with pytest.raises(ConfigurationError, match="0 were found among 2"):
        concat((one, two), config=ConcatConfig(share=1 / 3))
    for wrong in ({"share": 1}, {"share": -0.1}, {"total": 0}, {"layout": "theirs"}, {"shares": 0.1}):
        with pytest.raises(ValidationError):
            ConcatConfig.model_validate(wrong)


def test_few_turns_are_left_as_they_are() -> None:
    assert concat(()) == ()
    assert concat((ONE,)) == (ONE,)
    assert concat((ONE, TWO), config=ConcatConfig(share=0)) == (ONE, TWO)
