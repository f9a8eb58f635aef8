"""The law of streams, with both drivers: what is delivered is a prefix of what was approved, whatever the timing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail_vl._pump import apump, pump
from guardrail_vl.errors import ContentError, EngineUnavailableError
from guardrail_vl.parts import ImagePart, TextPart, ToolCallPart
from guardrail_vl.streaming import Check, HoldBack, Piece, Streaming
from guardrail_vl.turn import Turn
from guardrail_vl.verdict import Action, Decision, Label, Stage, Verdict
from tests.test_turn import png

BAD = "#"


@dataclass
class Item:
    """What a source yields: a number, so that order can be seen, and its content."""

    number: int
    pieces: tuple[Piece, ...] | ContentError


@dataclass
class World:
    """A source and a judge that note what happens. The judge blocks what holds BAD, each verdict after its own delay."""

    items: list[Item]
    delays: Sequence[float] = (0.0,)
    fails_at: int | None = None
    """The source raises OSError instead of this item. None: never."""
    judge_fails_at: int | None = None
    judged: list[Turn] = field(default_factory=list)
    approved: list[Turn] = field(default_factory=list)
    read: int = 0
    closed: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def source(self) -> Iterator[Item]:
        try:
            for item in self.items:
                self._next(item)
                yield item
        finally:
            self.closed += 1

    async def asource(self) -> AsyncIterator[Item]:
        try:
            for item in self.items:
                self._next(item)
                yield item
                if item.number % 3 == 0:
                    await asyncio.sleep(0)
        finally:
            self.closed += 1

    def _next(self, item: Item) -> None:
        if item.number == self.fails_at:
            raise OSError("cut")
        self.read += 1

    def begin(self, check: Check) -> tuple[float, Turn | ContentError]:
        with self.lock:
            ticket = check.ticket
            if ticket == self.judge_fails_at:
                raise ZeroDivisionError
            wait = self.delays[ticket % len(self.delays)]
            try:
                turn = check.turn(load=None)
            except ContentError as error:
                return wait, error
            self.judged.append(turn)
            return wait, turn

    def end(self, turn: Turn | ContentError) -> Decision:
        if isinstance(turn, ContentError):
            return Decision(Action.BLOCK, Stage.RESPONSE, "Unreadable.", error=turn)
        if BAD in said(turn):
            return Decision(Action.BLOCK, Stage.RESPONSE, "Bad.", verdict=Verdict(None, Label.HARMFUL))
        with self.lock:
            self.approved.append(turn)
        return Decision(Action.ALLOW, Stage.RESPONSE, "Fine.", verdict=Verdict(None, Label.UNHARMFUL))

    def judge(self, check: Check) -> Decision:
        delay, turn = self.begin(check)
        time.sleep(delay)
        return self.end(turn)

    async def ajudge(self, check: Check) -> Decision:
        delay, turn = self.begin(check)
        await asyncio.sleep(delay)
        return self.end(turn)

    def content(self, item: Item) -> tuple[Piece, ...]:
        if isinstance(item.pieces, ContentError):
            raise item.pieces
        return item.pieces


def said(turn: Turn) -> str:
    parts = turn.messages[-1].content
    return "".join(p.name + p.arguments if isinstance(p, ToolCallPart) else getattr(p, "text", "") for p in parts)


@dataclass
class Outcome:
    got: list[Item]
    error: BaseException | None
    hold: HoldBack[Item]


def run_sync(world: World, streaming: Streaming, *, leave_after: int | None = None, enforce: bool = True) -> Outcome:
    hold: HoldBack[Item] = HoldBack((), streaming, enforce=enforce)
    got: list[Item] = []
    error = None
    try:
        with contextlib.closing(pump(world.source(), hold, world.content, world.judge)) as items:
            for item in items:
                got.append(item)
                if len(got) == leave_after:
                    break
    except (OSError, ZeroDivisionError) as caught:
        error = caught
    return Outcome(got, error, hold)


def run_async(world: World, streaming: Streaming, *, leave_after: int | None = None, enforce: bool = True) -> Outcome:
    hold: HoldBack[Item] = HoldBack((), streaming, enforce=enforce)
    got: list[Item] = []

    async def scenario() -> BaseException | None:
        complaints: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        error = None
        try:
            async with contextlib.aclosing(apump(world.asource(), hold, world.content, world.ajudge)) as items:
                async for item in items:
                    got.append(item)
                    if len(got) == leave_after:
                        break
        except (OSError, ZeroDivisionError) as caught:
            error = caught
        assert not [
            task for task in asyncio.all_tasks() if task is not asyncio.current_task() and not task.cancelling()
        ]
        assert not complaints
        return error

    return Outcome(got, asyncio.run(scenario()), hold)


RUNNERS = [run_sync, run_async]
both = pytest.mark.parametrize("run", RUNNERS)


def texts(*chunks: str) -> list[Item]:
    return [Item(n, (Piece("text", chunk),) if chunk else ()) for n, chunk in enumerate(chunks)]


# ---- the law --------------------------------------------------------------------------------------------------------

chunk = st.text(st.sampled_from("ab. \n#"), max_size=6).map(lambda s: s if s.count(BAD) < 2 else s.replace(BAD, "a"))
delay = st.sampled_from([0.0, 0.0, 0.0005, 0.002])


@st.composite
def streams(draw: st.DrawFn) -> list[Item]:
    """Text in up to three choices, reasoning, and tool calls that come in pieces, beside each other."""
    items: list[Item] = []
    open_calls: dict[tuple[int, int], None] = {}
    calls = 0
    for number in range(draw(st.integers(0, 14))):
        choice = draw(st.integers(0, 2))
        goes_on = bool(open_calls) and draw(st.booleans())
        match draw(st.sampled_from(["text", "text", "text", "reasoning", "call", "call", "done", "nothing", "two"])):
            case "text":
                pieces: tuple[Piece, ...] = (Piece("text", draw(chunk), choice),)
            case "two":
                pieces = (Piece("text", draw(chunk), choice), Piece("text", draw(chunk), (choice + 1) % 3))
            case "reasoning":
                pieces = (Piece("reasoning", draw(chunk), choice),)
            case "call" if goes_on:
                at, index = draw(st.sampled_from(list(open_calls)))
                pieces = (Piece("tool_call", draw(chunk), at, index),)
            case "call":
                calls += 1
                open_calls[choice, calls] = None
                pieces = (Piece("tool_call", draw(chunk), choice, calls, name="f", id=f"c{calls}"),)
            case "done" if open_calls:
                at, index = draw(st.sampled_from(list(open_calls)))
                del open_calls[at, index]
                pieces = (Piece("tool_call", "", at, index, done=True),)
            case _:
                pieces = ()
        items.append(Item(number, pieces))
    return items


def clean_length(items: list[Item]) -> int:
    """How many items come before the first that, with those before it, holds something bad."""
    for item in items:
        assert not isinstance(item.pieces, ContentError)
        if any(BAD in piece.text for piece in item.pieces):
            return item.number
    return len(items)


def check_law(world: World, out: Outcome, whole: bool) -> None:
    assert [item.number for item in out.got] == list(range(len(out.got)))  # a prefix: no order, loss, doubles
    assert len(out.got) <= clean_length(world.items)
    for number in {piece.choice for item in out.got for piece in item.pieces}:  # type: ignore[union-attr]
        # Of what was delivered, some approved turn covers all: nothing went out that nobody saw.
        pieces = [p for item in out.got for p in item.pieces if p.choice == number]  # type: ignore[union-attr]
        for kind, index in {(p.kind, p.index) for p in pieces}:
            text = "".join(p.text for p in pieces if (p.kind, p.index) == (kind, index))
            if kind == "tool_call":  # what was judged is all of it
                read = [p for item in world.items[: world.read] for p in item.pieces if p.choice == number]  # type: ignore[union-attr]
                text = "".join(p.text for p in read if (p.kind, p.index) == (kind, index))
            assert not text.strip() or any(covers(turn, kind, text) for turn in world.approved)
    assert world.closed == (1 if world.read or world.fails_at == 0 or not world.items or whole else 0)


def covers(turn: Turn, kind: str, text: str) -> bool:
    for part in turn.messages[-1].content:
        if part.type != kind:
            continue
        if isinstance(part, ToolCallPart) and part.arguments == text:
            return True  # whole: a call's beginning is not enough
        if not isinstance(part, ToolCallPart) and getattr(part, "text", "").startswith(text):
            return True
    return False


@both
@given(data=st.data())
def test_the_law(run: Any, data: st.DataObject) -> None:
    world = World(data.draw(streams()), data.draw(st.lists(delay, min_size=1, max_size=5)))
    streaming = Streaming(
        mode=data.draw(st.sampled_from(["window", "window", "full"])),
        window=data.draw(st.sampled_from([1, 3, 8, 1000])),
        in_flight=data.draw(st.integers(1, 4)),
        patience=data.draw(st.sampled_from([0.0, 0.001, 10.0])),
    )
    out = run(world, streaming)
    check_law(world, out, whole=True)
    assert out.error is None
    if clean_length(world.items) == len(world.items):
        assert out.hold.stopped is None
        assert len(out.got) == len(world.items)
    else:
        assert out.hold.stopped is not None
        assert out.hold.stopped.blocked
        assert out.hold.stopped.error is None
    assert not any(BAD in said(turn) for turn in world.approved)


@both
@given(data=st.data())
def test_the_law_when_someone_leaves(run: Any, data: st.DataObject) -> None:
    items = data.draw(streams())
    world = World(items, data.draw(st.lists(delay, min_size=1, max_size=5)))
    how = data.draw(st.sampled_from(["source", "judge", "consumer"]))
    at = data.draw(st.integers(0, 5))
    if how == "source":
        world.fails_at = at
    elif how == "judge":
        world.judge_fails_at = at
    out = run(world, Streaming(window=3, patience=0.001), leave_after=at + 1 if how == "consumer" else None)
    check_law(world, out, whole=True)
    if how == "source" and at < len(items) and clean_length(items) >= at:
        assert isinstance(out.error, OSError)  # and what came before it was judged and delivered
        assert len(out.got) == at
    elif how == "source":
        assert out.error is None or clean_length(items) >= at
    elif how == "consumer":
        assert len(out.got) <= at + 1


@both
def test_annotating_stops_nothing(run: Any) -> None:
    world = World(texts("a. ", "#. ", "b. ", "#"))
    for mode in ("window", "full", "observe"):
        out = run(World(world.items), Streaming(mode=mode), enforce=False)
        assert (len(out.got), out.hold.stopped) == (4, None)
        assert out.hold.decisions[0].blocked


# ---- by example -----------------------------------------------------------------------------------------------------


@both
def test_verdicts_out_of_order_release_in_order(run: Any) -> None:
    world = World(texts("one. ", "two. ", "three. ", "four. "), delays=(0.06, 0.0, 0.03, 0.0))
    out = run(world, Streaming(window=4))
    assert [item.number for item in out.got] == [0, 1, 2, 3]


def test_what_a_slow_verdict_covers_waits_though_later_ones_came() -> None:
    hold: HoldBack[str] = HoldBack((), Streaming(window=4))
    hold.feed("1", [Piece("text", "one. ")], 0)
    (first,) = hold.checks(0)
    hold.feed("2", [Piece("text", "two. ")], 0)
    (second,) = hold.checks(0)
    fine = Decision(Action.ALLOW, Stage.RESPONSE, "Fine.", verdict=Verdict(None, Label.UNHARMFUL))
    hold.settle(second.ticket, fine)
    assert hold.release() == []
    hold.settle(first.ticket, fine)
    assert hold.release() == ["1", "2"]


@both
def test_a_source_is_not_read_far_ahead_of_a_slow_guard(run: Any) -> None:
    ahead: list[int] = []

    class Slow(World):
        def end(self, turn: Turn | ContentError) -> Decision:
            ahead.append(self.read - len(said(turn)) // 5 if isinstance(turn, Turn) else 0)
            return super().end(turn)

    world = Slow(texts(*["one. "] * 200), delays=(0.01,))
    out = run(world, Streaming(window=20, in_flight=2))
    assert len(out.got) == 200
    # Two rounds of at most 20 characters (4 items) under way, as much again unread, and a few in the driver's hands.
    assert max(ahead) <= 16


@both
@pytest.mark.parametrize("heavy", ["image", "unreadable"])
def test_content_without_characters_is_not_read_far_ahead_either(run: Any, heavy: str) -> None:
    picture = ImagePart(png())
    ahead: list[int] = []
    done = [0]

    class Slow(World):
        def end(self, turn: Turn | ContentError) -> Decision:
            covered = len(turn.messages[-1].content) if isinstance(turn, Turn) else done[0]
            ahead.append(self.read - covered)
            done[0] = self.read
            return Decision(Action.ANNOTATE, Stage.RESPONSE, "Fine.", error=ContentError("Odd."))

    content = (Piece("image", image=picture),) if heavy == "image" else ContentError("Odd.")
    world = Slow([Item(n, content) for n in range(60)], delays=(0.01,))
    out = run(world, Streaming(in_flight=2))
    assert len(out.got) == 60
    assert max(ahead) <= 8


@both
def test_a_full_stream_that_cant_be_read_asks_once_though_the_policy_lets_it_pass(run: Any) -> None:
    class Open(World):
        def end(self, turn: Turn | ContentError) -> Decision:
            return Decision(Action.ANNOTATE, Stage.RESPONSE, "Fine.", error=ContentError("Odd."))

    class Counting(Open):
        asked = 0

        def begin(self, check: Check) -> tuple[float, Turn | ContentError]:
            self.asked += 1
            return super().begin(check)

    world = Counting([Item(0, ContentError("Odd.")), *(Item(n, (Piece("text", "x", 1),)) for n in range(1, 50))])
    out = run(world, Streaming(mode="full"))
    assert len(out.got) == 50
    assert world.asked <= 3


@both
def test_silence_before_a_call_is_not_a_failure(run: Any) -> None:
    """A choice that is only whitespace so far, and then a call that is still being written."""
    busy = [Item(0, (Piece("text", "one. "),))]
    silent = [Item(1, (Piece("text", " ", 1),)), Item(2, (Piece("tool_call", "{", 1, 0, name="f"),))]
    more = [Item(n, (Piece("text", "two. "),)) for n in range(3, 9)]
    end = [Item(9, (Piece("tool_call", "}", 1, 0, done=True),))]
    for items in (busy + silent + more + end, silent[:1] + busy + silent[1:] + more + end):
        numbered = [Item(n, item.pieces) for n, item in enumerate(items)]
        for patience in (0.0, 10.0):
            world = World(numbered, delays=(0.002, 0.0))
            out = run(world, Streaming(window=1000, in_flight=1, patience=patience))
            assert out.hold.stopped is None
            assert len(out.got) == len(numbered)


def test_silence_alone_begins_no_check() -> None:
    hold: HoldBack[int] = HoldBack((), Streaming())
    hold.feed(1, [Piece("text", "one. ")], 0)
    (check,) = hold.checks(0)
    hold.feed(2, [Piece("text", " ", 1)], 0)
    hold.feed(3, [Piece("tool_call", "{", 1, 0, name="f")], 0)
    fine = Decision(Action.ALLOW, Stage.RESPONSE, "Fine.", verdict=Verdict(None, Label.UNHARMFUL))
    hold.settle(check.ticket, fine)
    assert hold.checks(99) == []
    assert hold.release() == [1, 2]


@both
def test_a_call_goes_out_whole_or_not_at_all(run: Any) -> None:
    items = [Item(0, (Piece("text", "Look. "),)), Item(1, (Piece("tool_call", '{"x": "', 0, 0, name="f", id="c"),)),
             Item(2, (Piece("tool_call", "y", 0, 0),)), Item(3, (Piece("tool_call", f'{BAD}"}}', 0, 0, done=True),))]  # fmt: skip
    out = run(World(items), Streaming(window=1))
    assert [item.number for item in out.got] in ([], [0])
    assert out.hold.stopped is not None


@both
@pytest.mark.parametrize("blanks", [1, 5, 200])
def test_whitespace_at_the_start_waits_for_nothing(run: Any, blanks: int) -> None:
    world = World(texts(*[" \n"] * blanks, "hello"))
    assert len(run(world, Streaming()).got) == blanks + 1
    assert len(world.judged) == 1
    assert run(World(texts(*[" "] * blanks)), Streaming()).hold.stopped is None


@both
def test_an_unreadable_item_is_a_failure(run: Any) -> None:
    for mode in ("window", "full"):
        items = [*texts("one. "), Item(1, ContentError("Odd.")), Item(2, (Piece("text", "two. "),))]
        out = run(World(items), Streaming(mode=mode))
        assert out.hold.stopped is not None
        assert isinstance(out.hold.stopped.error, ContentError)
        assert len(out.got) <= 1


@both
def test_a_failure_of_the_engine_stops_the_stream(run: Any) -> None:
    class Down(World):
        def end(self, turn: Turn | ContentError) -> Decision:
            return Decision(Action.BLOCK, Stage.RESPONSE, "Down.", error=EngineUnavailableError("Down."))

    world = Down(texts(*["one. "] * 50))
    out = run(world, Streaming())
    assert out.got == []
    assert isinstance(out.hold.stopped and out.hold.stopped.error, EngineUnavailableError)
    assert (world.closed, world.read < 50) == (1, True)


def test_waiting_for_a_call_to_be_written_costs_nothing() -> None:
    """No check can begin while a call is open, so the loop must sleep, not spin."""
    steps = 0

    async def source() -> AsyncIterator[Item]:
        yield Item(0, (Piece("tool_call", "{", name="f"),))
        await asyncio.sleep(0.15)
        yield Item(1, (Piece("tool_call", "}", done=True),))

    class Counted(HoldBack[Item]):
        def due(self, now: float) -> float | None:
            nonlocal steps
            steps += 1
            return super().due(now)

    async def scenario() -> list[int]:
        world = World([])
        hold = Counted((), Streaming(patience=0.001))
        return [item.number async for item in apump(source(), hold, world.content, world.ajudge)]

    assert asyncio.run(scenario()) == [0, 1]
    assert steps < 20


def test_patience_judges_what_there_is() -> None:
    async def source() -> AsyncIterator[Item]:
        yield Item(0, (Piece("text", "one"),))
        yield Item(1, (Piece("text", " two"),))
        await asyncio.sleep(5)
        yield Item(2, ())

    async def scenario() -> list[int]:
        world = World([])
        hold: HoldBack[Item] = HoldBack((), Streaming(patience=0.02))
        got: list[int] = []
        async with contextlib.aclosing(apump(source(), hold, world.content, world.ajudge)) as items:
            async with asyncio.timeout(2):
                async for item in items:
                    got.append(item.number)
                    if item.number == 1:
                        break
        return got

    assert asyncio.run(scenario()) == [0, 1]


def test_two_failing_judges_leave_no_complaint() -> None:
    async def scenario() -> None:
        complaints: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        pieces = tuple(Piece("text", "one. ", choice) for choice in range(3))
        world = World([Item(0, pieces)])

        async def judge(check: Check) -> Decision:
            raise ZeroDivisionError

        hold: HoldBack[Item] = HoldBack((), Streaming())
        with pytest.raises(ZeroDivisionError):
            async for _ in apump(world.asource(), hold, world.content, judge):
                pass
        import gc

        gc.collect()
        assert complaints == []

    asyncio.run(scenario())


@settings(max_examples=30)
@given(st.lists(chunk, min_size=1, max_size=10))
def test_a_turn_is_what_was_read(chunks: list[str]) -> None:
    world = World(texts(*chunks))
    run_sync(world, Streaming(mode="full"))
    whole = "".join(chunks)
    assert [said(turn) for turn in world.judged] == ([whole] if whole.strip() else [])
    assert all(turn.messages[-1].content == (TextPart(whole),) for turn in world.judged)


def test_a_source_that_loses_its_cancellation_is_ended() -> None:
    async def source() -> AsyncIterator[Item]:
        number = 0
        while True:
            with contextlib.suppress(asyncio.CancelledError):  # as a timeout around an await does in some Pythons
                await asyncio.sleep(0.01)
            yield Item(number, (Piece("text", "one. "),))
            number += 1

    async def scenario() -> None:
        world = World([])
        hold: HoldBack[Item] = HoldBack((), Streaming())
        items = apump(source(), hold, world.content, world.ajudge)
        async for _ in items:
            break
        await asyncio.wait_for(items.aclose(), 5)

    asyncio.run(scenario())
