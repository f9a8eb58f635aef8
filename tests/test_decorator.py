"""`@guard`: what of a call is judged, what follows, and that every kind of function keeps its kind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import io
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from guardrail_vl import BlockedError, Decision, Guard, ImagePart, Message, Stage, TextPart, Turn
from guardrail_vl.blocking import REFUSAL
from guardrail_vl.errors import ConfigurationError, ContentError, EngineUnavailableError
from guardrail_vl.prompt_format.base import PromptImage
from guardrail_vl.streaming import Streaming
from guardrail_vl.testing import ScriptedEngine, by_keyword


def make(script: Any = None, **settings: Any) -> tuple[Guard, ScriptedEngine]:
    engine = ScriptedEngine(script or by_keyword("bomb"))
    return Guard(engine=engine, **settings), engine


def picture(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "PNG")
    return buffer.getvalue()


def judged(engine: ScriptedEngine) -> str:
    return "\n".join(p.messages[-1].text for p in engine.prompts)


def pictures(engine: ScriptedEngine) -> int:
    return sum(isinstance(part, PromptImage) for p in engine.prompts for part in p.messages[-1].content)


class Colour(Enum):
    RED = "bomb"


@dataclass
class Settings:
    text: str = "bomb"


# ---- what is judged before the call ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument",
    [
        "a bomb",
        ["hi", "a bomb"],
        ("hi", ["a bomb"]),
        [{"role": "user", "content": "a bomb"}],
        [
            {"role": "user", "content": "a bomb"},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "?"},
        ],
        {"role": "user", "content": "a bomb"},
        Message("user", (TextPart("a bomb"),)),
        Turn.of("a bomb"),
    ],
)
def test_every_shape_of_content_is_judged_before_the_call(argument: Any) -> None:
    guard, _ = make()
    calls = []

    @guard
    def answer(number: int, content: Any, *, flag: bool = True, colour: Colour = Colour.RED, none: None = None) -> str:
        calls.append(content)
        return "ok"

    with pytest.raises(BlockedError) as caught:
        answer(3, argument)
    assert caught.value.decision.stage is Stage.PROMPT
    assert calls == []
    assert answer(3, "a cake") == "ok"


def test_pictures_of_every_kind_are_judged(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(picture())
    for photo in (picture(), path, Image.new("RGB", (3, 2)), ImagePart(picture()), [picture("blue")], (path, None)):
        guard, engine = make()

        @guard
        def answer(question: str, photo: Any = None) -> None: ...

        answer("what is it?", photo)
        assert pictures(engine) == 1
        assert answer("what is it?") is None


def test_an_unreadable_picture_is_a_failure_by_the_policys_mode() -> None:
    guard, engine = make()
    seen: list[Decision] = []

    @guard(on_block="refuse", on_decision=seen.append)
    def answer(question: str, photo: bytes) -> str:
        raise AssertionError("not called")

    with pytest.raises(ContentError):
        answer("hi", b"not a picture")
    assert (seen[0].failed, engine.calls) == (True, 0)
    opened = guard.replace(policy={"fail": {"content": "open"}})
    assert opened(lambda question, photo: "ok")("hi", b"not a picture") == "ok"


@pytest.mark.parametrize("odd", [Settings(), {"text": "bomb"}, {"bomb"}, object(), iter(["bomb"]), lambda: "bomb"])
def test_what_cant_be_read_is_refused_by_name(odd: Any) -> None:
    guard, engine = make()
    with pytest.raises(ConfigurationError, match=r"'settings'.*@guard\(prompt=") as caught:
        guard(lambda question, settings: "ok")("hi", settings=odd)
    assert "bomb" not in str(caught.value)
    assert engine.calls == 0
    with pytest.raises(ConfigurationError, match="'rest'"):
        guard(lambda *rest: "ok")("hi", odd)
    with pytest.raises(ConfigurationError, match="'more'"):
        guard(lambda **more: "ok")(x=odd)


def test_star_arguments_and_defaults_are_judged() -> None:
    guard, _ = make()

    @guard
    def rest(*texts: str) -> None: ...

    @guard
    def more(**texts: str) -> None: ...

    @guard
    def default(a: str, b: str = "bomb") -> None: ...

    with pytest.raises(BlockedError):
        rest("hi", "bomb")
    with pytest.raises(BlockedError):
        more(a="hi", b="bomb")
    with pytest.raises(BlockedError):
        default("hi")
    assert default("hi", "cake") is None


def test_parameters_by_name() -> None:
    guard, engine = make()

    @guard(prompt=("question", "more"), images="photo")
    def answer(settings: Settings, question: str, more: str = "", photo: Any = None) -> str:
        return "ok"

    assert answer(Settings(), "hi") == "ok"
    for words in (("bomb", ""), ("hi", "bomb")):
        with pytest.raises(BlockedError):
            answer(Settings(), *words)
    assert answer(Settings(), "look", photo=[picture()]) == "ok"
    assert pictures(engine) == 2  # once before the call, once with the response
    with pytest.raises(ConfigurationError, match="'photo'"):
        answer(Settings(), "look", photo=3)


def test_a_text_named_as_picture_is_a_path(tmp_path: Path) -> None:
    guard, engine = make()
    path = tmp_path / "bomb.png"
    path.write_bytes(picture())
    assert guard(images="path")(lambda question, path: "ok")("hi", str(path)) == "ok"
    assert pictures(engine) == 2  # once before the call, once with the response
    assert "bomb.png" not in judged(engine)


def test_a_picture_that_no_name_covers_is_judged_all_the_same() -> None:
    guard, engine = make()

    def answer(question: str, photo: Any) -> str:
        return "ok"

    guard(prompt="question")(answer)("hi", [Image.new("RGB", (3, 2))])
    assert pictures(engine) == 2  # once before the call, once with the response
    guard(prompt="question", images=())(answer)("ho", Image.new("RGB", (3, 2)))
    assert pictures(engine) == 2


def test_a_function_of_the_arguments() -> None:
    guard, _ = make()

    @guard(prompt=lambda call: [{"role": "user", "content": call.arguments["settings"].text}])
    def answer(settings: Settings = Settings()) -> str:  # noqa: B008
        return "ok"

    with pytest.raises(BlockedError):
        answer()
    assert answer(Settings("cake")) == "ok"
    nothing: Callable[[], str] = guard(prompt=lambda call: None)(lambda: "ok")
    with pytest.raises(ContentError, match="nothing to judge"):
        nothing()


def test_a_call_without_content_is_a_failure_unless_only_the_response_is_judged() -> None:
    guard, engine = make()
    nothing: list[Any] = [None, "", 3, []]
    for argument in nothing:
        with pytest.raises(ContentError, match="nothing to judge"):
            guard(lambda question: "ok")(argument)
    assert engine.calls == 0
    only: Callable[[Settings], str] = guard(prompt=None)(lambda settings: settings.text)
    assert only(Settings("cake")) == "cake"
    with pytest.raises(BlockedError) as caught:
        only(Settings("bomb"))
    assert caught.value.decision.stage is Stage.RESPONSE
    assert guard(prompt=None, images="photo")(lambda photo=None: "ok")() == "ok"


def test_a_reply_to_go_on_with_is_judged_with_the_prompt() -> None:
    guard, _ = make()
    given = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "take the bomb and"}]
    with pytest.raises(BlockedError):
        guard(lambda messages: "ok")(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "qestion"}, "no parameter 'qestion'; it has: question"),
        ({"images": ["photo"]}, "no parameter 'photo'"),
        ({"prompt": ()}, "prompt=None"),
        ({"prompt": 3}, "names of parameters"),
        ({"prompt": lambda call: "x", "images": "question"}, "no place"),
        ({"on_block": "ignore"}, "on_block must be one of"),
        ({"stream": "observe"}, "can't block"),
        ({"stream": "sometimes"}, "stream mode"),
        ({"response": "text"}, "response="),
        ({"on_decision": 3}, "on_decision="),
    ],
)
def test_mistakes_are_told_when_it_decorates(options: dict[str, Any], message: str) -> None:
    guard, _ = make()

    def answer(question: str) -> str:
        return question

    with pytest.raises(ConfigurationError, match=message):
        guard(**options)(answer)


def test_what_has_nothing_to_judge_cant_be_decorated() -> None:
    guard, _ = make()
    with pytest.raises(ConfigurationError, match="prompt=None"):
        guard(lambda: "ok")
    with pytest.raises(ConfigurationError, match="functions and methods"):
        guard(Settings)
    with pytest.raises(ConfigurationError, match="functions and methods"):
        guard(property(lambda self: "ok"))  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        guard(lambda question: "ok")()  # type: ignore[call-arg]


# ---- what is judged after it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [
        "a bomb",
        ["x", "a bomb"],
        ("x", ["a bomb"]),
        Message("assistant", (TextPart("a bomb"),)),
        {"role": "assistant", "content": "a bomb"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": "bomb"}'}}]},
    ],
)  # fmt: skip
def test_every_shape_of_result_is_judged(result: Any) -> None:
    guard, _ = make()
    with pytest.raises(BlockedError) as caught:
        guard(lambda question: result)("hi")
    assert caught.value.decision.stage is Stage.RESPONSE


def test_a_result_is_judged_with_what_it_answers_and_given_as_it_was() -> None:
    guard, engine = make()
    result = ["fine", Image.new("RGB", (3, 2))]
    assert guard(lambda question: result)("hello there") is result
    assert "hello there" in engine.prompts[-1].messages[-1].text
    assert "fine" in engine.prompts[-1].messages[-1].text
    assert pictures(engine) == 1


@pytest.mark.parametrize("nothing", [None, "", "  ", [], [None], {"role": "assistant", "content": " "}])
def test_nothing_needs_no_verdict(nothing: Any) -> None:
    guard, engine = make()
    assert guard(lambda question: nothing)("hi") == nothing
    assert engine.calls == 1


@pytest.mark.parametrize("odd", [3, True, b"x", Settings(), {"text": "bomb"}, {"x"}, iter(["bomb"])])
def test_a_result_that_cant_be_read_is_refused(odd: Any) -> None:
    guard, _ = make()
    with pytest.raises(ConfigurationError, match="response="):
        guard(lambda question: odd)("hi")
    assert guard(response=lambda result: None)(lambda question: odd)("hi") is odd
    with pytest.raises(BlockedError):
        guard(response=lambda result: "bomb")(lambda question: odd)("hi")


def test_an_awaitable_or_a_generator_that_a_plain_function_gives_is_refused() -> None:
    guard, _ = make()

    async def coroutine() -> str:
        return "bomb"

    with pytest.raises(ConfigurationError, match="coroutine"):
        guard(lambda question: coroutine())("hi")  # type: ignore[unused-coroutine]
    with pytest.raises(ConfigurationError, match="must itself be a generator"):
        guard(lambda question: (x for x in "bomb"))("hi")


def test_content_that_response_cant_give_is_a_failure() -> None:
    guard, _ = make()

    def read(result: Any) -> Any:
        raise ContentError("Odd.")

    with pytest.raises(ContentError, match=r"Odd\."):
        guard(response=read)(lambda question: "x")("hi")
    assert guard(response=read, on_block="annotate")(lambda question: "x")("hi") == "x"


# ---- every kind of function, under every mode -----------------------------------------------------------------------

Runner = Callable[..., Any]


def plain(echo: Callable[[str], str]) -> tuple[Any, Runner]:
    def answer(question: str) -> str:
        return echo(question)

    return answer, lambda f, *a: [f(*a)]


def coroutine(echo: Callable[[str], str]) -> tuple[Any, Runner]:
    async def answer(question: str) -> str:
        return echo(question)

    return answer, lambda f, *a: [asyncio.run(f(*a))]


def generator(echo: Callable[[str], str]) -> tuple[Any, Runner]:
    def answer(question: str) -> Iterator[str]:
        yield echo(question)

    return answer, lambda f, *a: list(f(*a))


def async_generator(echo: Callable[[str], str]) -> tuple[Any, Runner]:
    async def answer(question: str) -> AsyncIterator[str]:
        yield echo(question)

    async def collect(items: Any) -> list[str]:
        return [item async for item in items]

    return answer, lambda f, *a: asyncio.run(collect(f(*a)))


kinds = pytest.mark.parametrize("kind", [plain, coroutine, generator, async_generator])


@kinds
def test_the_kind_and_the_signature_stay(kind: Any) -> None:
    guard, _ = make()
    function, run = kind(lambda question: question)
    function.__doc__ = "Answers."
    guarded = guard(function)
    for test in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert test(guarded) == test(function)
    assert inspect.signature(guarded) == inspect.signature(function)
    assert (guarded.__name__, guarded.__doc__) == ("answer", "Answers.")
    assert run(guarded, "hi") == ["hi"]


@kinds
def test_raise(kind: Any) -> None:
    guard, _ = make()
    asked: list[str] = []

    def echo(question: str) -> str:
        asked.append(question)
        return "a bomb"

    function, run = kind(echo)
    for question, called in (("bomb", []), ("hi", ["hi"])):
        with pytest.raises(BlockedError):
            run(guard(function), question)
        assert asked == called


@kinds
def test_refuse(kind: Any) -> None:
    guard, _ = make()
    function, run = kind(lambda question: "a bomb" if question == "hi" else "fine")
    assert run(guard(on_block="refuse")(function), "bomb") == [REFUSAL]
    assert run(guard(on_block="refuse")(function), "hi") == [REFUSAL]
    assert run(guard(on_block="refuse")(function), "hello") == ["fine"]
    assert run(guard(on_block="refuse", refusal=3)(function), "bomb") == [3]
    assert run(guard(on_block="refuse", refusal=lambda d: d.stage)(function), "hi") == ["response"]


@kinds
def test_annotate(kind: Any) -> None:
    guard, _ = make()
    seen: list[Decision] = []
    function, run = kind(lambda question: "a bomb")
    assert run(guard(on_block="annotate", on_decision=seen.append)(function), "bomb") == ["a bomb"]
    assert [(d.stage, d.blocked) for d in seen] == [(Stage.PROMPT, True), (Stage.RESPONSE, True)]
    observed = guard(on_block="annotate", stream="observe", on_decision=seen.append)
    assert run(observed(function), "bomb") == ["a bomb"]
    assert len(seen) == 4


@kinds
@pytest.mark.parametrize("on_block", ["raise", "refuse"])
@pytest.mark.parametrize("at", ["prompt", "response"])
def test_a_failure_is_never_a_block(kind: Any, on_block: Any, at: str) -> None:
    def script(prompt: Any) -> Any:
        if at == "prompt" or "fine" in prompt.messages[-1].text:
            return EngineUnavailableError("Down.")
        return by_keyword("bomb")(prompt)

    guard, _ = make(script)
    seen: list[Decision] = []
    function, run = kind(lambda question: "fine")
    with pytest.raises(EngineUnavailableError):
        run(guard(on_block=on_block, on_decision=seen.append)(function), "hi")
    assert [d.failed for d in seen] == [False] * (at == "response") + [True]
    opened = guard.replace(policy={"fail": "open"})
    assert run(opened(on_block=on_block)(function), "hi") == ["fine"]


@kinds
def test_decisions_are_told_under_every_mode(kind: Any) -> None:
    guard, _ = make()
    for on_block in ("raise", "refuse", "annotate"):
        seen: list[Decision] = []
        function, run = kind(lambda question: "fine")
        run(guard(on_block=on_block, on_decision=seen.append)(function), "hi")
        with contextlib.suppress(BlockedError):
            run(guard(on_block=on_block, on_decision=seen.append)(function), "bomb")
        assert [d.blocked for d in seen][:3] == [False, False, True]


def test_methods_of_every_kind() -> None:
    guard, _ = make()

    class Bot:
        @guard
        def method(self, question: str) -> str:
            return f"{type(self).__name__} {question}"

        @guard
        @classmethod
        def above_class(cls, question: str) -> str:
            return f"{cls.__name__} {question}"

        @classmethod
        @guard(prompt="question")
        def below_class(cls, question: str) -> str:
            return f"{cls.__name__} {question}"

        @guard
        @staticmethod
        def above_static(question: str) -> str:
            return f"Bot {question}"

        @staticmethod
        @guard
        def below_static(question: str) -> str:
            return f"Bot {question}"

        @guard
        async def coroutine(self, question: str) -> str:
            return f"Bot {question}"

        @guard
        def __call__(self, question: str) -> str:
            return f"Bot {question}"

    bot = Bot()
    for call in (bot.method, bot.above_class, bot.below_class, bot.above_static, bot.below_static, bot,
                 Bot.above_class, Bot.below_class, Bot.above_static, Bot.below_static,
                 lambda q: asyncio.run(bot.coroutine(q)), guard(bot.method), guard(bot)):  # fmt: skip
        assert call("hi") == "Bot hi"
        with pytest.raises(BlockedError):
            call("bomb")


def test_a_parameter_called_self_outside_a_class_is_judged() -> None:
    guard, _ = make()

    def answer(self: str) -> str:
        return "ok"

    with pytest.raises(BlockedError):
        guard(answer)("bomb")


def test_partials() -> None:
    guard, _ = make()

    async def answer(settings: Settings, question: str) -> str:
        return "ok"

    guarded = guard(prompt="question")(functools.partial(answer, Settings()))
    assert inspect.iscoroutinefunction(guarded)
    assert asyncio.run(guarded(question="hi")) == "ok"


def returns(annotation: Any, streams: bool = False) -> Any:
    def function(question: str) -> Any:
        return question

    def stream(question: str) -> Any:
        yield question

    chosen = stream if streams else function
    chosen.__annotations__["return"] = annotation
    return chosen


def test_only_functions_that_give_text_refuse_in_words() -> None:
    guard, _ = make()
    refusing = guard(on_block="refuse")
    for good in (str, "str", Any, object, str | None, "str | None", "Nowhere | str"):
        refusing(returns(good))
    for good in (Iterator[str], Generator[str, None, int], "Iterator[str]", "Nowhere | str",
                 "typing.AsyncIterator[str | None]", "AsyncGenerator[str, Nowhere]"):  # fmt: skip
        refusing(returns(good, streams=True))
    for bad in (int, "int", Message, list[str], "list[str]", None, "Nowhere"):
        with pytest.raises(ConfigurationError, match="refusal="):
            refusing(returns(bad))
        guard(on_block="refuse", refusal=3)(returns(bad))
    for other in (Iterator[bytes], "Iterator[bytes]", "Nowhere[str]", "Nowhere[bytes]"):
        with pytest.raises(ConfigurationError, match="refusal="):
            refusing(returns(other, streams=True))


# ---- streams --------------------------------------------------------------------------------------------------------


def test_nothing_of_a_blocked_stream_gets_past_what_was_approved() -> None:
    guard, _ = make()
    closed: list[bool] = []

    @guard(stream=Streaming(window=4))
    def answer(question: str) -> Iterator[str]:
        try:
            yield from ["one. ", "two. ", "a bo", "mb. ", "three. "] + ["more. "] * 50
        finally:
            closed.append(True)

    got = []
    with pytest.raises(BlockedError):
        for piece in answer("hi"):
            got.append(piece)
    assert "".join(got) in ("", "one. ", "one. two. ", "one. two. a bo")
    assert closed == [True]


def test_a_generators_return_value_stays_unless_it_was_blocked() -> None:
    guard, _ = make()

    def answer(question: str) -> Generator[str, None, int]:
        yield question
        return 7

    def outer(question: str, **options: Any) -> Generator[str, None, Any]:
        return (yield from guard(prompt=None, **options)(answer)(question))

    def value_of(items: Generator[str, None, Any]) -> Any:
        while True:
            try:
                next(items)
            except StopIteration as stop:
                return stop.value

    assert value_of(outer("hi")) == 7
    assert value_of(outer("bomb", on_block="refuse")) is None


def test_send_is_refused_and_close_closes() -> None:
    guard, _ = make()
    closed: list[bool] = []

    @guard
    def answer(question: str) -> Generator[str, Any, None]:
        try:
            while True:
                yield "hi. "
        finally:
            closed.append(True)

    items = answer("hi")
    next(items)
    with pytest.raises(ConfigurationError, match="send"):
        items.send("x")
    items = answer("hi")
    assert (next(items), items.send(None)) == ("hi. ", "hi. ")
    items.close()
    items = answer("hi")
    next(items)
    with pytest.raises(KeyError):
        items.throw(KeyError())
    assert closed == [True] * 3


def test_an_async_stream_is_closed_when_its_reader_leaves() -> None:
    guard, _ = make()
    closed: list[bool] = []

    @guard
    async def answer(question: str) -> AsyncIterator[str]:
        try:
            while True:
                yield "hi. "
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def scenario() -> None:
        async with contextlib.aclosing(answer("hi")) as items:  # type: ignore[type-var]
            async for _ in items:
                break
        items = answer("hi")
        await anext(items)
        with pytest.raises(ConfigurationError, match="send"):
            await items.asend("x")  # type: ignore[attr-defined]

    asyncio.run(scenario())
    assert closed == [True, True]


@pytest.mark.parametrize("kind", [generator, async_generator])
def test_items_of_other_kinds_need_a_reading(kind: Any) -> None:
    guard, engine = make()
    function, run = kind(lambda question: {"text": question})
    with pytest.raises(ConfigurationError, match=r"dict.*response="):
        run(guard(prompt=None)(function), "hi")
    assert engine.calls == 0
    read = guard(prompt=None, response=lambda item: item["text"])
    assert run(read(function), "hi") == [{"text": "hi"}]
    with pytest.raises(BlockedError):
        run(read(function), "bomb")
    nothing, run = kind(lambda question: None)
    assert run(guard(nothing), "hi") == [None]


def test_a_stream_is_judged_with_what_it_answers() -> None:
    guard, engine = make()
    function, run = generator(lambda question: "fine")
    run(guard(function), "hello there")
    assert "hello there" in engine.prompts[-1].messages[-1].text
    assert "fine" in engine.prompts[-1].messages[-1].text


def test_an_error_of_the_function_comes_through() -> None:
    guard, _ = make()
    for kind in (plain, coroutine, generator, async_generator):
        function, run = kind({"": ""}.__getitem__)
        with pytest.raises(KeyError):
            run(guard(function), "hi")

    def stops(question: str) -> str:
        raise StopIteration

    with pytest.raises(StopIteration):
        guard(stops)("hi")
