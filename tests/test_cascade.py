"""A cascade: the first guard answers what is clear, the second what is not, and nobody's silence is a verdict."""

from __future__ import annotations

import asyncio
import functools
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail_vl import Action, Decision, Guard, ImagePart, Label, Stage
from guardrail_vl.cache import MemoryCache
from guardrail_vl.engines.base import Deadline, Engine, Outcome
from guardrail_vl.errors import (
    ConfigurationError,
    ContentError,
    EngineError,
    EngineResponseError,
    EngineUnavailableError,
    ParseError,
)
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword, label_token
from guardrail_vl.verdict import Usage
from tests.docs.fences import ROOT
from tests.engines.remotely import no_keys, running, server
from tests.servers import MARK, FaultServer

__all__ = ["no_keys", "running", "server"]

UNSEEN = "image 1: what it shows beyond its text"


def says_its_score(prompt: Prompt, place: int = -1) -> Any:
    """A small model that finds its score in the request, and does what other words there tell it."""
    words = prompt.messages[-1].text.split()
    for word, error in (
        ("down", EngineUnavailableError("It is down.")),
        ("refused", EngineResponseError("It is 400.")),
    ):
        if word in words:
            return error
    if "nonsense" in words:
        return Completion("I would rather not.", usage=Usage(10, 1), latency=0.25)
    scores = {} if "scoreless" in words else {"prompt": float(words[place])}
    unjudged = (UNSEEN,) if "unseen" in words else ()
    return Completion("", scores=scores, unjudged=unjudged, model="small", usage=Usage(10, 1), latency=0.25)


BOMB = by_keyword("bomb")


def reasons(prompt: Prompt) -> Completion:
    """A large model, that knows a bomb when it sees one."""
    said = BOMB(prompt)
    assert isinstance(said, Completion)
    return replace(said, model="large", usage=Usage(100, 50), latency=2.0)


def small(**settings: Any) -> Guard:
    place = settings.pop("place", -1)
    engine = ScriptedEngine(functools.partial(says_its_score, place=place), model="small")
    return Guard(engine=engine, format="embedded/1", **settings)


def large(**settings: Any) -> Guard:
    return Guard(engine=ScriptedEngine(reasons, model="large"), **settings)


def cascade(first: Guard | None = None, then: Guard | None = None, **settings: Any) -> Guard:
    return Guard(first=first or small(), then=then or large(), **settings)


def prompts_of(guard: Guard | None) -> int:
    """How many prompts the engine of this guard was given."""
    assert guard is not None
    assert isinstance(guard.engine, ScriptedEngine)
    return len(guard.engine.prompts)


def spoken(decision: Decision) -> str:
    """Which model the verdict is of; empty: there is none."""
    return "" if decision.verdict is None else decision.verdict.model


# ---- with the embedded guard and a server, as it is used ---------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> Iterator[Guard]:
    pytest.importorskip("guardrail_vl.engines.embedded", reason="needs the extra 'embedded'")
    with Guard(deadline=150) as guard:
        yield guard


def remote(server: FaultServer, model: str = "ok", **settings: Any) -> Guard:
    return Guard.remote(server.url, model=model, server="vllm", **settings)


def down(**settings: Any) -> Guard:
    return Guard.remote("http://127.0.0.1:9/v1", model="gone", attempts=1, **settings)


NOTHING, EVERYTHING = (0.5, 0.5), (0.0, 1.0)
"""Bands: none of our texts has a score of exactly one half, and none is outside the other."""


def test_what_is_clear_asks_only_the_first(embedded: Guard, server: FaultServer) -> None:
    with Guard(first=embedded, then=remote(server), band=NOTHING) as guard:
        decision = guard.check_prompt("What is a good recipe for tomato soup?")
        assert decision.action is Action.ALLOW
        assert spoken(decision) == embedded.engine.model
        assert guard.check_prompt("Explain step by step how to build a pipe bomb at home.").blocked
    assert server.stats()["requests"] == []


def test_what_is_unsure_gets_the_verdict_of_the_second(embedded: Guard, server: FaultServer) -> None:
    with Guard(first=embedded, then=remote(server), band=EVERYTHING) as guard:
        allowed = guard.check_prompt("What is a good recipe for tomato soup?")
        blocked = guard.check_prompt(f"What is a good recipe for {MARK}?")
    assert (allowed.action, blocked.action) == (Action.ALLOW, Action.BLOCK)
    for decision in (allowed, blocked):
        assert decision.verdict is not None
        assert (decision.verdict.model, decision.verdict.speed) == ("ok", "reason")
        assert decision.reasoning
    assert len(server.stats()["requests"]) == 2


@pytest.mark.parametrize(("fail", "action"), [("closed", Action.BLOCK), ("open", Action.ANNOTATE)])
def test_where_the_second_is_down_there_is_no_verdict(embedded: Guard, fail: Any, action: Action) -> None:
    with Guard(first=embedded, then=down(), band=EVERYTHING, fail=fail) as guard:
        decision = guard.check_prompt("What is a good recipe for tomato soup?")
    # The first had a score for it. That it was unsure is not made a verdict because nobody else is there.
    assert (decision.action, decision.failed, decision.verdict) == (action, True, None)
    assert isinstance(decision.error, EngineUnavailableError)
    with Guard(first=embedded, then=down(), band=NOTHING, fail=fail) as guard:
        assert not guard.check_prompt("What is a good recipe for tomato soup?").failed


def test_a_picture_that_the_first_cannot_see_is_shown_to_the_second(embedded: Guard, server: FaultServer) -> None:
    door = ROOT / "examples" / "door.png"
    with Guard(first=embedded, then=remote(server), band=NOTHING) as guard:
        decision = guard.check_prompt("What does the sign say?", images=[door])
    assert decision.action is Action.ALLOW
    assert (spoken(decision), decision.verdict and decision.verdict.unjudged) == ("ok", ())
    (request,) = server.stats()["requests"]
    assert ImagePart.load(door).data_url in str(request["body"])


# ---- what is sent on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("0.05", False),
        ("0.1", True),
        ("0.5", True),
        ("0.9", True),
        ("0.95", False),
        ("scoreless", True),
        ("unseen scoreless", True),
        ("unseen 0.05", True),
        ("unseen 0.95", False),
        ("nonsense", True),
        ("down", True),
        ("refused", True),
    ],
)
def test_what_is_sent_on(text: str, asked: bool) -> None:
    guard = cascade()
    decision = guard.check_prompt(text)
    assert prompts_of(guard.then) == asked
    assert spoken(decision) == ("large" if asked else "small")
    assert not decision.failed
    harmful = decision.verdict is not None and decision.verdict.prompt is Label.HARMFUL
    assert decision.blocked == harmful == (not asked and "0.95" in text)


def test_harm_that_the_label_does_not_say_is_not_clear() -> None:
    # Above the band, but below what its format calls harmful: and then it counts that not all was judged.
    guard = cascade(band=(0.1, 0.2))
    assert spoken(guard.check_prompt("unseen 0.3")) == "large"
    assert spoken(guard.check_prompt("0.3")) == "small"
    # And the other way round: a label of harmful, below the band.
    guard = cascade(band=(0.8, 0.9))
    assert spoken(guard.check_prompt("unseen 0.6")) == "large"
    assert guard.check_prompt("0.6").blocked
    assert prompts_of(guard.then) == 1


@given(
    turns=st.lists(st.tuples(st.none() | st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=8),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_second_is_asked_exactly_what_the_first_leaves_unsure(
    turns: list[tuple[float | None, bool, bool]], ends: tuple[float, float]
) -> None:
    low, high = sorted(ends)
    guard = cascade(band=(low, high), cache=False)
    texts, unsure = [], []
    for score, seen, harmful in turns:
        words = ["a bomb" if harmful else "a cake", *([] if seen else ["unseen"])]
        texts.append(" ".join([*words, "scoreless" if score is None else repr(score)]))
        clearly_harmful = score is not None and score > high and score >= 0.5
        unsure.append(score is None or low <= score <= high or (not seen and not clearly_harmful))
    decisions = list(guard.check_many(texts))
    assert prompts_of(guard.first) == len(texts)
    assert prompts_of(guard.then) == sum(unsure)
    for text, decision, asked in zip(texts, decisions, unsure, strict=True):
        alone = guard.then if asked else guard.first
        assert alone is not None
        assert comparable(decision) == comparable(alone.check_prompt(text))


def comparable(decision: Decision) -> object:
    """All of a decision but its id, what it took, and the words of an error: they name the client that failed."""
    verdict = decision.verdict and replace(decision.verdict, usage=Usage(), latency=0.0)
    return decision.action, decision.stage, verdict and decision.reason, verdict, type(decision.error)


def test_what_the_small_format_cannot_show_the_other_may() -> None:
    blind = Guard(engine=ScriptedEngine(lambda _: "Safety: Safe\nCategories: None"), format="qwen3guard/1")
    guard = cascade(first=blind)
    assert spoken(guard.check_prompt("Look.", images=[ROOT / "examples" / "door.png"])) == "large"
    assert prompts_of(blind) == 0
    # With one engine and one format it stays what it is.
    assert isinstance(blind.check_prompt("Look.", images=[ROOT / "examples" / "door.png"]).error, ContentError)


def test_the_last_one_asked_has_the_last_word() -> None:
    def unreadable(prompt: Prompt) -> str:
        return "I would rather not."

    guard = cascade(then=Guard(engine=ScriptedEngine(unreadable)))
    for text in ("0.5", "unseen 0.05", "down"):
        decision = guard.check_prompt(text)
        assert isinstance(decision.error, ParseError)
        assert decision.blocked


class Odd(Engine):
    """An engine that fails as a whole."""

    format = "embedded/1"
    model = "odd"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def generate(self, prompts: Any, *, deadline: Deadline) -> list[Outcome]:
        raise self.error


@pytest.mark.parametrize(
    "error", [EngineUnavailableError("Gone."), EngineError("Odd."), ValueError("x"), TimeoutError()]
)
def test_where_the_first_fails_the_second_is_asked(error: Exception) -> None:
    guard = cascade(first=Guard(engine=Odd(error)))
    assert spoken(guard.check_prompt("a cake")) == "large"
    assert guard.check_prompt("a bomb").blocked
    assert [spoken(d) for d in guard.check_many(["a tart", "a pie"])] == ["large", "large"]


def test_a_mistake_of_the_caller_is_raised_and_not_asked_again() -> None:
    guard = cascade(first=Guard(engine=Odd(ConfigurationError("No such model."))))
    with pytest.raises(ConfigurationError, match="No such model"):
        guard.check_prompt("a cake")
    assert prompts_of(guard.then) == 0


def test_every_message_is_judged_and_each_climbs_by_itself() -> None:
    guard = cascade()
    decision = guard.check([{"role": "system", "content": "0.05"}, {"role": "user", "content": "a bomb 0.5"}])
    assert decision.blocked
    assert [(j.action, j.verdict and j.verdict.model) for j in decision.judgements] == [
        (Action.ALLOW, "small"),
        (Action.BLOCK, "large"),
    ]


# ---- time and cost ------------------------------------------------------------------------------------------------


def test_a_first_one_that_hangs_leaves_the_second_its_time() -> None:
    hanging = Guard(engine=ScriptedEngine(says_its_score, delay=60), format="embedded/1", deadline=1)
    guard = cascade(first=hanging, then=large(deadline=9), deadline=3)
    began = time.monotonic()
    assert spoken(guard.check_prompt("0.05")) == "large"
    assert spoken(asyncio.run(guard.acheck_prompt("0.06"))) == "large"
    assert [spoken(d) for d in guard.check_many(["0.07", "0.08"])] == ["large", "large"]
    assert 3 * 0.3 <= time.monotonic() - began < 5


def test_deadlines_add_up_and_are_shared_out() -> None:
    first, then = small(deadline=2), large(deadline=6)
    assert cascade(first, then).deadline == 8
    assert cascade(first, then, deadline=5).deadline == 5
    assert [rung.share for rung in cascade(first, then).rungs] == [0.25, 1.0]
    three = Guard(first=cascade(first, then), then=large(deadline=8))
    assert (three.deadline, [rung.share for rung in three.rungs]) == (16, [0.125, 0.5, 1.0])


def test_a_verdict_counts_what_every_asking_took() -> None:
    guard = cascade()
    took = []
    for text in ("0.05", "0.5", "nonsense", "down"):
        verdict = guard.check_prompt(text).verdict
        assert verdict is not None
        took.append((verdict.usage, verdict.latency))
    assert took == [
        (Usage(10, 1), 0.25),
        (Usage(110, 51), 2.25),
        (Usage(110, 51), 2.25),
        (Usage(100, 50), 2.0),
    ]


def test_auto_counts_both_askings_too() -> None:
    def script(prompt: Prompt) -> Completion:
        return replace(label_token(Label.HARMFUL, 0.5), latency=0.5) if prompt.prefix else reasons(prompt)

    verdict = Guard(engine=ScriptedEngine(script), speed="auto").check_prompt("a cake").verdict
    assert verdict is not None
    assert (verdict.usage, verdict.latency) == (Usage(100, 50), 2.5)


def test_batches_are_full_on_both_engines() -> None:
    guard = cascade(cache=False)
    texts = [f"number {i} 0.{'5' if i % 2 else '01'}" for i in range(20)]
    models = [spoken(d) for d in guard.check_many(texts, batch=10)]
    assert models == ["small", "large"] * 10
    for inner, prompts in ((guard.first, 20), (guard.then, 10)):
        assert inner is not None
        assert isinstance(inner.engine, ScriptedEngine)
        assert (inner.engine.calls, prompts_of(inner)) == (2, prompts)


def test_one_that_skips_the_first_waits_for_the_others() -> None:
    blind = Guard(engine=ScriptedEngine(lambda _: "Safety: Unsafe\nCategories: Violent"), format="qwen3guard/1")
    guard = cascade(first=blind, cache=False)  # no score, so all of them go on
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": _data_url()}}]}]
    decisions = list(guard.check_many([picture, "a cake", "a bomb"]))
    assert [d.action for d in decisions] == [Action.ALLOW, Action.ALLOW, Action.BLOCK]
    assert isinstance(guard.engine, ScriptedEngine)
    assert (guard.engine.calls, prompts_of(guard.then), prompts_of(blind)) == (1, 3, 2)


def _data_url() -> str:
    return ImagePart.load(ROOT / "examples" / "door.png").data_url


MIXED = ["0.05", "a bomb 0.5", "a cake 0.5", "unseen 0.02", "unseen 0.97", "nonsense", "down a bomb", "", "0.99"]


@pytest.mark.parametrize("then", [large, down], ids=["up", "down"])
def test_sync_async_and_batch_decide_alike(then: Any) -> None:
    def fresh() -> Guard:
        return cascade(then=then(), fail="open")

    async def by_awaiting() -> list[Decision]:
        async with fresh() as guard:
            return list(await asyncio.gather(*(guard.acheck(text) for text in MIXED)))

    async def by_many() -> list[Decision]:
        async with fresh() as guard:
            return [d async for d in guard.acheck_many(MIXED)]

    with fresh() as guard:
        alone = [comparable(guard.check(text)) for text in MIXED]
    with fresh() as guard:
        assert [comparable(d) for d in guard.check_many(MIXED)] == alone
    assert [comparable(d) for d in asyncio.run(by_awaiting())] == alone
    assert [comparable(d) for d in asyncio.run(by_many())] == alone


def test_each_engine_keeps_its_bound() -> None:
    most = {"small": 0, "large": 0}
    inside = dict(most)
    lock = threading.Lock()

    def counted(name: str, script: Any, prompt: Prompt) -> Any:
        with lock:
            inside[name] += 1
            most[name] = max(most[name], inside[name])
        time.sleep(0.005)
        with lock:
            inside[name] -= 1
        return script(prompt)

    def guard(name: str, script: Any, **settings: Any) -> Guard:
        return Guard(engine=ScriptedEngine(functools.partial(counted, name, script), model=name), **settings)

    both = cascade(
        guard("small", says_its_score, format="embedded/1", max_concurrency=3),
        guard("large", reasons, max_concurrency=1),
    )
    with ThreadPoolExecutor(8) as pool:
        decisions = list(pool.map(both.check_prompt, [f"{i} 0.5" for i in range(24)]))
    assert [spoken(d) for d in decisions] == ["large"] * 24
    assert most == {"small": 3, "large": 1}


@pytest.mark.parametrize("bounds", [(4, 2), (2, 4), (None, 2), (2, None)])
def test_two_guards_on_one_engine_share_the_stricter_bound(bounds: tuple[int | None, int | None]) -> None:
    one = Guard(engine=ScriptedEngine(reasons), speed="fast", max_concurrency=bounds[0])
    doors = cascade(one, one.replace(speed="reason", max_concurrency=bounds[1]))._drivers._doors
    assert doors[0].gate is doors[1].gate
    assert doors[0].gate is not None
    assert doors[0].gate.limit == 2


# ---- the band -----------------------------------------------------------------------------------------------------


def test_the_band_of_each_stage() -> None:
    def script(prompt: Prompt) -> Any:
        return Completion("", scores={"prompt": 0.3, "response": 0.3}, model="small")

    first = Guard(engine=ScriptedEngine(script), format="embedded/1")
    guard = cascade(first, band={"prompt": (0.2, 0.4), "response": (0.5, 0.9)})
    assert spoken(guard.check_prompt("a cake")) == "large"
    assert spoken(guard.check_response("a cake", prompt="a tart")) == "small"


def test_the_band_that_the_engine_was_calibrated_with() -> None:
    engine, other = ScriptedEngine(says_its_score), ScriptedEngine(reasons)
    engine.calibrated_band = other.calibrated_band = {"prompt": (0.2, 0.3), "response": (0.4, 0.6)}
    first = Guard(engine=engine, format="embedded/1")
    assert str(cascade(first).rungs[0].band) == "[prompt 0.2, 0.3; response 0.4, 0.6]"
    assert str(cascade(first, band=(0, 0.5)).rungs[0].band) == "[0.0, 0.5]"
    assert str(cascade().rungs[0].band) == "[0.1, 0.9]"
    assert str(Guard(engine=other, speed="auto").rungs[0].band) == "[prompt 0.2, 0.3; response 0.4, 0.6]"
    engine.calibrated_band = {"prompt": (0.2, 0.3)}
    with pytest.raises(ConfigurationError, match="band needs 'prompt' and 'response'"):
        cascade(first)


@pytest.mark.parametrize(
    "band",
    [
        (0.9, 0.1),
        (-0.1, 0.5),
        (0.5, 1.5),
        (0.5,),
        (0.1, 0.2, 0.3),
        ("0.1", "0.2"),
        (float("nan"), 0.5),
        0.5,
        {"prompt": (0.1, 0.9)},
        {"prompt": (0.1, 0.9), "response": (0.1, 0.9), "both": (0, 1)},
        {"prompt": (0.1, 0.9), "response": (0.9, 0.1)},
    ],
)
def test_a_wrong_band_is_told(band: Any) -> None:
    for make in (cascade, lambda **settings: large(speed="auto", **settings)):
        with pytest.raises(ConfigurationError, match="band"):
            make(band=band)


# ---- how it is made -----------------------------------------------------------------------------------------------


def hook(turn: Any, decision: Decision) -> None:
    """Does nothing, and must not be lost."""


class Mute(ScriptedEngine):
    scores = False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"then": None}, "there is no then="),
        ({"first": None}, "there is no first="),
        ({"then": "http://localhost:8000/v1"}, "then must be a Guard, not str"),
        ({"first": ScriptedEngine(reasons)}, "first must be a Guard, not ScriptedEngine"),
        ({"model": "some/model"}, "no model of its own"),
        ({"engine": ScriptedEngine(reasons)}, "no engine of its own"),
        ({"format": "embedded/1", "speed": "auto"}, "no format, speed of its own"),
        ({"max_concurrency": 3}, "no max_concurrency of its own"),
        ({"threads": 3}, "no threads of its own"),
        ({"first": small(pre_prompt=hook)}, "hooks of the guard that is first"),
        ({"then": large(post_response=hook)}, "hooks of the guard that is then"),
        ({"first": small(policy={"prompt": "annotate"})}, "Pass policy="),
        ({"then": large(fail="open")}, "Pass policy="),
        ({"first": Guard(engine=Mute(reasons))}, "needs scores"),
        ({"policy": {"categories": {"Violent": {"definition": "d", "prompt": "block"}}}}, "names (none|Violent)"),
        ({"then": Guard(engine=Mute(reasons)), "policy": {"prompt": {"threshold": 0.4}}}, "threshold"),
    ],
)
def test_mistakes_are_told_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Guard(**{"first": small(), "then": large(), **settings})


def test_one_policy_decides() -> None:
    policy = {"prompt": "annotate"}
    assert cascade(small(policy=policy), large(policy=policy)).check_prompt("a bomb 0.5").action is Action.ANNOTATE
    strict = cascade(small(policy=policy), large(), policy={"prompt": "block"})
    assert strict.check_prompt("0.99").blocked
    assert cascade(fail="open").policy.fail.engine == "open"


def test_only_its_own_hooks_are_called_and_its_own_cache_is_used() -> None:
    seen: list[Decision] = []
    inner = MemoryCache()
    guard = cascade(small(cache=inner), pre_prompt=lambda turn, decision: seen.append(decision))
    for _ in range(2):
        guard.check_prompt("a cake 0.5")
    assert [spoken(d) for d in seen] == ["large", "large"]
    assert [d.judgements[0].remembered for d in seen] == [False, True]
    assert (len(inner), prompts_of(guard.then)) == (0, 1)


def test_no_verdict_of_another_cascade_is_remembered() -> None:
    cache = MemoryCache()
    base = cascade(cache=cache)
    others = [
        base,
        base.replace(band=(0.2, 0.9)),
        base.replace(band={"prompt": (0.1, 0.9), "response": (0.2, 0.9)}),
        base.replace(then=Guard(engine=ScriptedEngine(reasons, model="larger"))),
        base.replace(then=large(speed="fast")),
        base.replace(first=small(), then=cascade()),
        small(cache=cache),
        large(cache=cache),
        large(cache=cache, speed="fast"),
        large(cache=cache, speed="auto"),
        large(cache=cache, speed="auto", band=(0.2, 0.9)),
    ]
    keys = {guard._rules.key for guard in others}
    assert len(keys) == len(others)
    assert not any(guard.check_prompt("a cake 0.05").judgements[0].remembered for guard in others)
    assert len(cache) == len(others)
    assert base.replace(band=(0.1, 0.9)).check_prompt("a cake 0.05").judgements[0].remembered
    # A cache above the guard, such as LangChain's, tells guards apart by their repr.
    assert len({repr(guard) for guard in others}) == len(others)


def test_what_it_is() -> None:
    guard = cascade(small(deadline=1), large(speed="auto", band=(0.3, 0.7)), band=(0.2, 0.8))
    assert guard.first is not None
    assert guard.then is not None
    assert (guard.engine, guard.format.id, guard.speed) == (guard.then.engine, "guardreasoner-vl/1", "auto")
    assert [(rung.engine.model, rung.speed, str(rung.band)) for rung in guard.rungs] == [
        ("small", "fast", "[0.2, 0.8]"),
        ("large", "fast", "[0.3, 0.7]"),
        ("large", "reason", "None"),
    ]
    assert repr(guard) == (
        "Guard(rungs='small (embedded/1, fast) [0.2, 0.8] > large (guardreasoner-vl/1, fast) [0.3, 0.7] > "
        f"large (guardreasoner-vl/1, reason)', policy='default'@{guard.policy.hash})"
    )
    alone = large()
    assert (alone.first, alone.then, len(alone.rungs)) == (None, None, 1)
    with pytest.raises(AttributeError, match="replace"):
        guard.first = alone  # type: ignore[misc]


def test_replace_keeps_both_guards() -> None:
    guard = cascade(band=(0.2, 0.8), deadline=7)
    wider = guard.replace(band=(0.0, 1.0), policy={"prompt": "annotate"})
    assert (wider.first, wider.then, wider.deadline) == (guard.first, guard.then, 7)
    assert spoken(guard.check_prompt("0.95")) == "small"
    assert spoken(wider.check_prompt("0.95")) == "large"
    assert wider.check_prompt("a bomb 0.95").action is Action.ANNOTATE
    with pytest.raises(ConfigurationError, match="Set it on the guard"):
        guard.replace(speed="fast")
    with pytest.raises(ConfigurationError, match="no engine"):
        large().replace(first=small(), then=large())


def test_pickled_by_configuration() -> None:
    one = Guard(engine=ScriptedEngine(reasons, model="large"), speed="fast")
    guard = Guard(
        first=cascade(small(max_concurrency=2), one), then=one.replace(speed="reason"), band=(0.2, 0.8), deadline=7
    )
    copy = pickle.loads(pickle.dumps(guard))
    assert (repr(copy), copy.deadline) == (repr(guard), 7)
    assert [rung.max_concurrency for rung in copy.rungs] == [2, None, None]
    assert copy.rungs[1].engine is copy.rungs[2].engine
    assert spoken(copy.check_prompt("0.05")) == "small"
    assert copy._rules.key == guard._rules.key


def test_both_engines_are_closed_and_once_each() -> None:
    closed: list[str] = []

    class Noting(ScriptedEngine):
        def close(self) -> None:
            closed.append(self.model)
            if self.model == "broken":
                raise OSError("It does not close.")

    def guard(name: str, **settings: Any) -> Guard:
        return Guard(engine=Noting(reasons, model=name), **settings)

    with cascade(guard("a", speed="auto"), guard("b")):
        pass
    assert sorted(closed) == ["a", "b"]
    closed.clear()

    async def scenario() -> None:
        async with cascade(guard("a"), guard("broken")):
            pass

    with pytest.raises(OSError, match="does not close"):
        asyncio.run(scenario())
    with pytest.raises(OSError, match="does not close"):
        cascade(guard("broken"), guard("a")).close()
    assert sorted(closed) == ["a", "a", "broken", "broken"]


# ---- more than two ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", ["first", "then"])
def test_three_in_a_row(nested: str) -> None:
    """Each text holds the scores of the first two."""
    one, two, three = small(place=-2), small(place=-1), large()
    if nested == "first":
        guard = Guard(first=Guard(first=one, then=two, band=(0.3, 0.7)), then=three, band=(0.4, 0.6))
    else:
        guard = Guard(first=one, then=Guard(first=two, then=three, band=(0.4, 0.6)), band=(0.3, 0.7))
    texts = ["0.1 0.5", "0.3 0.3", "0.5 0.5", "0.5 0.65", "a bomb 0.5 0.5", "down 0.9 0.1"]
    formats = [d.verdict and d.verdict.format for d in guard.check_many(texts)]
    assert formats == [
        "embedded/1",
        "embedded/1",
        "guardreasoner-vl/1",
        "embedded/1",
        "guardreasoner-vl/1",
        "guardreasoner-vl/1",
    ]
    assert (prompts_of(one), prompts_of(two), prompts_of(three)) == (6, 5, 3)
    assert guard.check_prompt("a bomb 0.5 0.5").blocked
    assert guard.check_prompt("0.5 0.65").blocked


def test_a_server_that_is_down_is_not_asked_twice_but_the_next_one_is() -> None:
    gone = Guard(engine=ScriptedEngine(lambda _: EngineUnavailableError("Gone.")), speed="auto")
    guard = cascade(gone)
    assert spoken(guard.check_prompt("a cake")) == "large"
    assert prompts_of(gone) == 1
    # What can't be read at once may be after reasoning: there the same engine comes first.
    odd = Guard(engine=ScriptedEngine(lambda prompt: "<" if prompt.prefix else reasons(prompt)), speed="auto")
    guard = cascade(odd)
    decision = guard.check_prompt("a cake")
    assert (decision.action, prompts_of(odd)) == (Action.ALLOW, 2)


def test_the_response_is_judged_like_the_prompt(server: FaultServer) -> None:
    def script(prompt: Prompt) -> Completion:
        score = float(prompt.messages[-1].text.split()[-1])
        return Completion("", scores={"prompt": 0.01, "response": score}, model="small")

    first = Guard(engine=ScriptedEngine(script), format="embedded/1")
    with Guard(first=first, then=remote(server, "ok"), cache=False) as guard:
        assert guard.check_response("Yes. 0.05", prompt="Is it?").action is Action.ALLOW
        assert server.stats()["requests"] == []
        decision = guard.check_response("Yes. 0.5", prompt="Is it?", deadline=5)
    # This server says of no response anything, and that is told.
    assert decision.stage is Stage.RESPONSE
    assert isinstance(decision.error, ParseError)
    assert len(server.stats()["requests"]) == 1
