from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL
from guardrail_vl.training.rewards import ECO, PAPER, RELEASE, RELEASE_ECO, REWARDS, RewardConfig, read, reward, safety
from guardrail_vl.verdict import Label, Verdict

H, U = Label.HARMFUL, Label.UNHARMFUL

labels = st.sampled_from([H, U])
maybe = st.sampled_from([H, U, None])
configs = st.one_of(
    st.sampled_from(list(REWARDS.values())),
    st.builds(
        RewardConfig,
        beta=st.floats(1e-3, 1),
        unit=st.sampled_from(["tokens", "characters"]),
        limit=st.integers(1, 10_000),
        floor=st.floats(1e-4, 1),
        needs_think=st.booleans(),
        labels=st.sampled_from(["strict", "release"]),
    ),
)
in_tokens = configs.filter(lambda config: config.unit == "tokens")


def text(prompt: Label | None, response: Label | None, reasoning: str | None = "It is so.") -> str:
    return GuardReasonerVL().target(Verdict(prompt=prompt, response=response, reasoning=reasoning))


def of(prompt: Label, response: Label, share: float, beta: float, written: str = "") -> float:
    """The reward where both golds are harmful, at a length of this share of the limit."""
    config = RewardConfig(beta=beta, limit=1000)
    return reward(written or text(prompt, response), H, H, share * 1000, config).value


# ---- the paper's numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1, 1 / 6])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0, 3.0])
def test_vector_both_right_is_nothing_lost(beta: float, share: float) -> None:
    assert of(H, H, share, beta) == 0


def test_vector_one_right_at_half_length() -> None:
    assert of(H, U, 0.5, 1) == of(U, H, 0.5, 1) == pytest.approx(-2)
    assert of(H, U, 0.5, 1 / 6) == pytest.approx(-18)


def test_vector_both_wrong_at_half_length() -> None:
    assert of(U, U, 0.5, 1) == pytest.approx(-4)
    assert of(U, U, 0.5, 1 / 6) == pytest.approx(-36)


def test_vector_both_wrong_at_a_tenth_is_the_same_for_eco() -> None:
    assert of(U, U, 0.1, 1) == pytest.approx(-100)
    assert of(U, U, 0.1, 1 / 6) == pytest.approx(-100)


def test_vector_broken_format_at_half_length() -> None:
    broken = text(H, H).replace("</think>", "")
    assert of(H, H, 0.5, 1, broken) == pytest.approx(-4)
    assert not reward(broken, H, H, 1, PAPER).format


def test_the_presets_are_what_the_sources_say() -> None:
    assert (PAPER.beta, PAPER.unit, PAPER.limit, PAPER.needs_think) == (1, "tokens", 3072, True)
    assert RewardConfig(beta=1 / 6) == ECO
    assert (RELEASE.unit, RELEASE.needs_think, RELEASE.clamp, RELEASE.labels) == ("characters", False, False, "release")
    assert RELEASE_ECO.beta * RELEASE_ECO.limit == 500


# ---- laws ---------------------------------------------------------------------------------------------------------


@given(labels, labels, st.integers(0, 100_000), configs)
def test_a_right_answer_always_earns_the_most(
    prompt: Label, response: Label, tokens: int, config: RewardConfig
) -> None:
    assert reward(text(prompt, response), prompt, response, tokens, config)[:3] == (0, 1, True)


@given(st.text(), maybe, labels, st.integers(0, 10**9), configs)
def test_a_reward_is_finite_and_at_most_nothing(
    written: str, prompt: Label | None, response: Label, tokens: int, config: RewardConfig
) -> None:
    earned = reward(written, prompt, response, tokens, config)
    assert math.isfinite(earned.value)
    assert earned.value <= 0
    assert 0 <= earned.safety <= 1
    assert config.floor <= earned.l_norm <= (1 if config.clamp else math.inf)


@given(st.sampled_from([text(H, U), text(U, U), "nothing"]), st.integers(0, 20_000), st.integers(0, 20_000), in_tokens)
def test_a_wrong_answer_loses_less_the_longer_it_is_up_to_the_cap(
    written: str, one: int, two: int, config: RewardConfig
) -> None:
    short, long = sorted((one, two))
    less, more = (reward(written, H, H, tokens, config).value for tokens in (short, long))
    assert less <= more < 0
    if short >= config.limit * config.beta and short >= config.limit * config.floor:
        assert less == more
    elif long > short >= config.limit * config.floor:
        assert less < more


@given(st.integers(0, 20_000), in_tokens)
def test_worse_answers_never_earn_more(tokens: int, config: RewardConfig) -> None:
    ranked = ["nothing", text(U, U), text(H, U), text(H, H)]
    values = [reward(written, H, H, tokens, config).value for written in ranked]
    assert values == sorted(values)
    assert values[1] < values[2] < values[3]


@given(st.integers(1, 20_000))
def test_without_a_clamp_length_has_no_end(tokens: int) -> None:
    config = RewardConfig(clamp=False)
    assert reward("", H, H, 4 * 3072 + tokens, config).value > reward("", H, H, 4 * 3072, config).value > -1


@given(labels, maybe, maybe, configs)
def test_a_side_without_gold_is_not_rewarded(
    gold: Label, request: Label | None, response: Label | None, config: RewardConfig
) -> None:
    """The known side counts whole, and the other one is not looked at."""
    written = text(request, response)
    said = read(written, config)
    assert said is not None
    assert safety(written, gold, None, config) == float(said[0] == gold)
    assert safety(written, None, gold, config) == float(said[1] == gold)


# ---- reading ------------------------------------------------------------------------------------------------------


def test_what_could_not_be_served_earns_nothing() -> None:
    good = text(H, U)
    for bad in (f"{good} And more.", f"Well: {good}", good.replace("harmful", "bad", 1), f"{good}{text(U, U)}", ""):
        assert read(bad, PAPER) is None
        assert reward(bad, H, U, 3072, PAPER) == (-1, 0, False, 1)


def test_an_empty_thought_is_in_the_format() -> None:
    assert read(text(H, U, reasoning=None), PAPER) == (H, U)


def test_the_thought_can_be_left_out_where_the_switch_says_so() -> None:
    bare = "<result>\nRequest: harmful\nResponse: None\n</result>"
    for kind in ("strict", "release"):
        assert read(bare, RewardConfig.model_validate({"labels": kind})) is None
    assert read(bare, RewardConfig(needs_think=False)) == (H, None)
    assert read(bare, RewardConfig(needs_think=False, labels="release")) == (H, U)
    assert read(f"Hm. {bare}", RewardConfig(needs_think=False)) is None


def test_the_release_reads_the_first_result_in_any_case() -> None:
    written = "So Request: harmful.<result>request: UNHARMFUL</result> <result>Request: harmful</result>"
    assert read(written, RELEASE) == (U, None)
    assert read(written, PAPER) is None
    assert read("<result>Request: harmful", RELEASE) is None
    # One label missing is half right there, and no format here.
    assert safety(written, U, H, RELEASE) == 0.5


def test_the_release_counts_characters_of_the_whole() -> None:
    wrong = text(U, U, reasoning="a" * 1000)
    expected = -1 / (len(wrong) / 3072) ** 2
    assert reward(wrong, H, H, None, RELEASE).value == pytest.approx(expected)
    assert reward(wrong, H, H, 7, RELEASE).value == pytest.approx(expected)
    assert reward(wrong, H, H, None, RELEASE_ECO).value == pytest.approx(-1 / (500 / 3072) ** 2)
    assert reward("", H, H, None, RELEASE).value == pytest.approx(-(64**2))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no gold"):
        safety(text(H, H), None, None, PAPER)
    with pytest.raises(ConfigurationError, match="number of tokens"):
        reward(text(H, H), H, H, None, PAPER)
    with pytest.raises(ConfigurationError, match="clamp"):
        RewardConfig(beta=0.5, clamp=False)
    for wrong in ({"beta": 0}, {"beta": math.nan}, {"floor": 0}, {"limit": 0}, {"unit": "words"}, {"betta": 1}):
        with pytest.raises(ValidationError):
            RewardConfig.model_validate(wrong)
