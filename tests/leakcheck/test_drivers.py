from __future__ import annotations

import pytest

from guardrail_vl import leakcheck
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.leakcheck.content import BLUE, BREAK, HALVES, MARK, OTHER, RED, SAFE, WIDE, WORDS
from guardrail_vl.leakcheck.drivers import UNGUARDED, knows, load

pytest.importorskip("openai")


@pytest.mark.parametrize(
    ("text", "bad"),
    [(SAFE, False), (MARK, True), (WIDE, True), (OTHER, True), (HALVES[0], False), (" ".join(HALVES), True)],
)
def test_our_guard_finds_exactly_what_is_harmful(text: str, bad: bool) -> None:
    guard = knows(*WORDS)
    assert guard.check_prompt(text).blocked is bad
    assert guard.check_response(text, prompt=SAFE).blocked is bad


def test_our_guard_finds_the_red_picture_on_both_sides() -> None:
    guard = knows(*WORDS)
    assert guard.check_prompt(SAFE, images=[RED]).blocked
    assert not guard.check_prompt(SAFE, images=[BLUE]).blocked
    assert guard.check_response(SAFE, prompt=SAFE, response_images=[RED]).blocked


def test_our_guard_breaks_on_its_word() -> None:
    assert knows(*WORDS).check_prompt(BREAK).failed
    assert not knows(OTHER).check_prompt(MARK).blocked


def test_drivers_are_loaded_by_name_and_by_place() -> None:
    assert load("openai").name == "openai"
    assert load("guardrail_vl.leakcheck:UNGUARDED") == UNGUARDED
    for wrong in ("nobody", "guardrail_vl.leakcheck:NOTHING", "no_such_module:driver"):
        with pytest.raises(ConfigurationError):
            load(wrong)


@pytest.mark.parametrize("name", ["openai", "openai-async", "openai-refuse", "openai-beside", "openai-full"])
def test_our_clients_are_green(name: str) -> None:
    report = leakcheck.run(load(name))
    assert report.green, report.table()
