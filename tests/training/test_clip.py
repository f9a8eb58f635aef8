from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.training.clip import Clip, DynamicClip, FixedClip

totals = st.integers(1, 500)
epsilons = st.floats(1e-4, 0.99)


@pytest.mark.parametrize(("step", "value"), [(1, 0.191), (2, 0.175), (3, 0.152), (5, 0.098), (8, 0.033), (10, 0.011)])
def test_the_papers_23_steps(step: int, value: float) -> None:
    assert DynamicClip().at(step, 23) == pytest.approx(value, abs=5e-4)


def test_the_end_of_the_papers_23_steps() -> None:
    assert DynamicClip().at(15, 23) == pytest.approx(0.0002, abs=5e-5)
    assert [DynamicClip().at(step, 23) for step in (20, 22, 23, 24)] == [1e-4] * 4


@given(epsilons, totals)
def test_it_falls_and_stays_above_nothing(epsilon: float, total: int) -> None:
    clip = DynamicClip(epsilon=epsilon, floor=1e-4)
    values = [clip.at(step, total) for step in range(1, total + 3)]
    assert values == sorted(values, reverse=True)
    assert all(0 < value <= epsilon for value in values)
    assert values[-1] == 1e-4


@given(epsilons, totals, st.data())
def test_each_step_takes_its_share_of_the_one_before(epsilon: float, total: int, data: st.DataObject) -> None:
    clip = DynamicClip(epsilon=epsilon, floor=1e-300)
    step = data.draw(st.integers(1, total))
    before = epsilon if step == 1 else clip.at(step - 1, total)
    assert clip.at(step, total) == pytest.approx(max(1e-300, before * (total - step) / total))


@given(epsilons, totals, st.integers(1, 1000))
def test_a_fixed_clip_is_the_same_everywhere(epsilon: float, total: int, step: int) -> None:
    assert FixedClip(epsilon=epsilon).at(step, total) == epsilon


def test_a_file_says_which() -> None:
    read = TypeAdapter[DynamicClip | FixedClip](Clip).validate_python
    assert read({"kind": "fixed", "epsilon": 0.3}) == FixedClip(epsilon=0.3)
    assert read({"kind": "dynamic"}) == DynamicClip()
    with pytest.raises(ValidationError):
        read({"kind": "linear"})


def test_what_makes_no_sense_is_refused() -> None:
    for clip in (DynamicClip(), FixedClip()):
        for step, total in ((0, 5), (-1, 5), (1, 0)):
            with pytest.raises(ConfigurationError, match="from 1"):
                clip.at(step, total)
    with pytest.raises(ConfigurationError, match="floor"):
        DynamicClip(epsilon=0.1, floor=0.2)
    with pytest.raises(ValidationError):
        DynamicClip(epsilon=0)
