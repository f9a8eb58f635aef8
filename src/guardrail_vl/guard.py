"""`Guard`: one object that judges turns. It joins an engine, a prompt format and a policy, and runs the one flow.

Immutable after construction; safe across threads, event loops and forks; picklable by its configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, get_args, overload

from guardrail_vl import engines
from guardrail_vl._arguments import EVERY, PromptOf
from guardrail_vl._drivers import Drivers
from guardrail_vl._fetched import with_fetched
from guardrail_vl._flow import Band as Band
from guardrail_vl._flow import FetchPlan, Flow, Hook, Rules, SpeedChoice, check_flow, rules_key
from guardrail_vl._flow import Rung as Rung
from guardrail_vl._observed import ObservedDrivers
from guardrail_vl._settings import (
    BandChoice,
    as_band,
    as_hooks,
    cascade_rungs,
    check_fit,
    check_numbers,
    check_observer,
    check_text,
    own_rungs,
    pick_speed,
    with_adapter,
)
from guardrail_vl.blocking import OnBlock
from guardrail_vl.cache import MemoryCache, VerdictCache
from guardrail_vl.decorator import Function, decorate
from guardrail_vl.engines.base import Deadline, Engine
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.hygiene import Entry, arun, clean, run
from guardrail_vl.media import DEFAULT_LIMITS, ImageLimits, ImageSource
from guardrail_vl.observing import Observer
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format import PromptFormat, get_format
from guardrail_vl.streaming import Mode, Streaming
from guardrail_vl.turn import ImageLoader, ImagePart, Turn
from guardrail_vl.verdict import Decision, Judgement, Stage

Images = Iterable[ImageSource | ImagePart]


class Guard:
    """Judges prompts and responses, text and pictures together.

    Args:
        model: A checkpoint folder or hub id for a local engine: vLLM where it is installed and has a device, else
            transformers. None: the small model that ships inside the package (no GPU, no download).
        engine: An engine of your own, instead of `model`.
        first: With `then`, instead of both: a cascade. This guard is asked first; it may be a cascade too. Its engine,
            format, speed, band and max_concurrency are used, and nothing else of it.
        then: The guard that is asked what the first leaves unsure; the same of it is used. What it says is the verdict,
            and where it fails there is none.
        policy: A `Policy`, a mapping, or the path of a YAML, TOML or JSON file. None: block what is harmful; for a
            cascade, the policy of both guards.
        format: Id of the prompt format, or one of your own. None: the engine's.
        speed: `reason` writes the full reasoning first; `fast` reads the label at once; `auto` is fast and reasons only
            where the score is uncertain. None: `reason` where the format can, else `fast`.
        band: The uncertain scores for `auto` or for a cascade, ends included: `(low, high)`, or one of these for each
            stage, `{"prompt": …, "response": …}`. None: what the engine was calibrated with, else `(0.1, 0.9)`.
        fail: What happens without a verdict: `closed` blocks, `open` annotates with the error when the engine is down.
            None: the policy's.
        deadline: Seconds for one check, retries and waiting included. None: the engine's default; for a cascade, what
            both guards have together. The first gets its share of it, so that the other has time when it hangs.
        cache: Where verdicts are remembered: a `VerdictCache`, or False for nowhere. True: in memory.
        max_concurrency: Engine calls under way at a time; not of a cascade, whose guards have their own. None: as many
            as come.
        pre_prompt: Called with (turn, decision) after a prompt was judged, or could not be; may return another one.
            May be async. The turn is None where the content was refused before it became one.
        post_response: The same after a response was judged.
        fetch_images: Fetch `http(s)` pictures, once, under limits; False: refuse them.
        limits: Caps on pictures.
        observer: Told of every check while it happens, such as `telemetry.OpenTelemetry()`. None: nobody is.
        options: For the engine that `model` chooses.

    Raises:
        ConfigurationError: A wrong argument, or a rule that this model can never trigger.
        MissingDependencyError: What the engine needs is not installed; says the pip line.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        engine: Engine | None = None,
        first: Guard | None = None,
        then: Guard | None = None,
        policy: Policy | Mapping[str, Any] | str | Path | None = None,
        format: PromptFormat | str | None = None,
        speed: SpeedChoice | None = None,
        band: BandChoice | None = None,
        fail: Literal["closed", "open"] | None = None,
        deadline: float | None = None,
        cache: VerdictCache | bool = True,
        max_concurrency: int | None = None,
        pre_prompt: Sequence[Hook] | Hook = (),
        post_response: Sequence[Hook] | Hook = (),
        fetch_images: bool = False,
        limits: ImageLimits = DEFAULT_LIMITS,
        observer: Observer | None = None,
        **options: Any,
    ) -> None:
        pair = self._pair = _cascade(
            first,
            then,
            model=model,
            engine=engine,
            format=format,
            speed=speed,
            max_concurrency=max_concurrency,
            **options,
        )
        if engine is not None and (model is not None or options):
            raise ConfigurationError("Pass a model (with its options) or an engine, not both.")
        wanted = _shared_policy(*pair) if pair and policy is None else Policy.of(policy)
        if fail is not None:
            if fail not in ("closed", "open"):
                raise ConfigurationError(f"fail must be 'closed' or 'open', not {fail!r}.")
            wanted = wanted.model_copy(update={"fail": type(wanted.fail).model_validate(fail)})
        check_numbers(deadline, max_concurrency)
        check_observer(observer)
        frozen = as_band(band)
        if pair:
            self._deadline = pair[0].deadline + pair[1].deadline
            own: dict[str, Any] = {"first": pair[0], "then": pair[1]}
            then_rungs = with_adapter(pair[1].rungs, wanted.adapter)  # the first guard's are not the policy's to choose
            rungs = cascade_rungs(pair[0].rungs, then_rungs, frozen, pair[0].deadline / self._deadline)
            self._speed: SpeedChoice = pair[1].speed
        else:
            chosen = format if isinstance(format, PromptFormat) else None
            engine = engine or engines.load(None if model is None else str(model), **options)
            chosen = chosen or get_format(format if isinstance(format, str) else engine.format)
            self._deadline = engine.default_deadline
            self._speed = pick_speed(speed, chosen, engine)
            own = {"engine": engine, "format": chosen, "speed": self._speed, "max_concurrency": max_concurrency}
            rungs = own_rungs(engine, chosen, self._speed, frozen, max_concurrency)
            rungs = with_adapter(rungs, wanted.adapter)
        for rung in rungs:
            check_fit(rung.format, wanted, rung.engine)
        if deadline is not None:
            self._deadline = deadline
        hooks = {"pre_prompt": as_hooks(pre_prompt), "post_response": as_hooks(post_response)}
        # Kept for `replace` and for pickling: everything needed to make this guard again around the same engines.
        self._settings: dict[str, Any] = {
            **own, "policy": wanted, "band": frozen, "deadline": deadline,
            "cache": MemoryCache() if cache is True else cache, "fetch_images": fetch_images, "limits": limits,
            "observer": observer, **hooks,
        }  # fmt: skip
        self._rules = Rules(
            policy=wanted,
            rungs=rungs,
            cache=self._settings["cache"] if cache is not False else None,
            key=rules_key(wanted, rungs),
            **hooks,
        )
        self._load: ImageLoader | None = (
            None if limits == DEFAULT_LIMITS else functools.partial(ImagePart.load, limits=limits)
        )
        self._drivers = Drivers(rungs, limits) if observer is None else ObservedDrivers(rungs, limits, observer)
        self._frozen = True

    @classmethod
    def remote(cls, url: str, *, model: str | None = None, api_key: str | None = None, **settings: Any) -> Self:
        """A guard on an OpenAI-compatible chat-completions server.

        Args:
            url: The server's base URL, such as `http://guard:8000/v1`.
            model: The model's name there. None: the only one it serves.
            api_key: None: from GUARDRAIL_VL_API_KEY or OPENAI_API_KEY.
            settings: Anything `Guard` takes, and anything `RemoteEngine` takes.

        Raises:
            ConfigurationError: A wrong URL or argument. The server is not contacted before the first check.
        """
        from guardrail_vl.engines.remote import RemoteEngine

        own = {name: settings.pop(name) for name in list(settings) if name in _GUARD_SETTINGS}
        return cls(engine=RemoteEngine(url, model=model, api_key=api_key, **settings), **own)

    # ---- checks ---------------------------------------------------------------------------------------------------

    def check_prompt(
        self, prompt: str | None = None, *, images: Images = (), deadline: float | None = None
    ) -> Decision:
        """Judge a prompt before a model sees it.

        Args:
            prompt: Its text; None for pictures alone.
            images: Pictures: paths, bytes, PIL images, `data:` URLs.
            deadline: Seconds, instead of the guard's.
        """
        return self._drivers.run(self._prompt_flow(prompt, images, deadline))

    async def acheck_prompt(
        self, prompt: str | None = None, *, images: Images = (), deadline: float | None = None
    ) -> Decision:
        """`check_prompt` without blocking the event loop."""
        return await self._drivers.arun(self._prompt_flow(prompt, images, deadline))

    def check_response(
        self,
        response: str | None = None,
        *,
        prompt: str | None = None,
        images: Images = (),
        response_images: Images = (),
        deadline: float | None = None,
    ) -> Decision:
        """Judge a response before a user sees it, knowing the prompt it answers.

        Args:
            response: Its text; None for pictures alone.
            prompt: The prompt's text.
            images: The prompt's pictures.
            response_images: The response's pictures.
            deadline: Seconds, instead of the guard's.
        """
        return self._drivers.run(self._response_flow(response, prompt, images, response_images, deadline))

    async def acheck_response(
        self,
        response: str | None = None,
        *,
        prompt: str | None = None,
        images: Images = (),
        response_images: Images = (),
        deadline: float | None = None,
    ) -> Decision:
        """`check_response` without blocking the event loop."""
        return await self._drivers.arun(self._response_flow(response, prompt, images, response_images, deadline))

    def check(self, content: Any, *, stage: Stage | str | None = None, deadline: float | None = None) -> Decision:
        """Judge a turn: a string, a `Turn`, a list of OpenAI-style messages, or a callable that makes a `Turn`.

        Args:
            content: The turn. Every message in it is judged; see `Decision.judgements`. A callable is called with
                `load=`, which makes a part of a picture's source; ContentError raised in it becomes a decision.
            stage: What is judged. None: the response if the turn ends in one, else the prompt.
            deadline: Seconds, instead of the guard's.
        """
        return self._drivers.run(self._flow(content, stage, deadline))

    async def acheck(
        self, content: Any, *, stage: Stage | str | None = None, deadline: float | None = None
    ) -> Decision:
        """`check` without blocking the event loop."""
        return await self._drivers.arun(self._flow(content, stage, deadline))

    def awatch(
        self, content: Any, *, stage: Stage | str | None = None, deadline: float | None = None
    ) -> AsyncGenerator[str | Decision, None]:
        """`acheck`, with the model's reasoning as it is written: pieces of text, then the decision, last and once.

        The decision is the one that `acheck` gives. Of a conversation whose messages are judged one by one, it is the
        reasoning on the newest. It comes as one piece where it was remembered, or the engine can't tell it sooner; not
        at all where the model does not reason. It may quote the content. Closing the generator ends the check.

        Args:
            content: As for `check`.
            stage: As for `check`.
            deadline: Seconds, instead of the guard's.
        """
        return self._drivers.watch(self._flow(content, stage, deadline))

    def check_many(
        self,
        contents: Iterable[Any],
        *,
        stage: Stage | str | None = None,
        batch: int = 32,
        deadline: float | None = None,
    ) -> Iterator[Decision]:
        """Judge many turns, `batch` at a time on the engine. Order is kept; input is read as it is needed.

        Args:
            contents: The turns, each as `check` takes it.
            stage: As for `check`.
            batch: Turns that go to the engine together.
            deadline: Seconds for each batch, instead of the guard's.
        """
        if batch < 1:
            raise ConfigurationError("batch must be at least 1.")
        return self._drivers.run_many((self._flow(content, stage, deadline) for content in contents), size=batch)

    async def acheck_many(
        self,
        contents: Iterable[Any],
        *,
        stage: Stage | str | None = None,
        batch: int = 32,
        deadline: float | None = None,
    ) -> AsyncIterator[Decision]:
        """`check_many` without blocking the event loop: `batch` checks under way at a time, order kept."""
        if batch < 1:
            raise ConfigurationError("batch must be at least 1.")
        pending: list[asyncio.Task[Decision]] = []
        source = iter(contents)
        try:
            for content in source:
                pending.append(asyncio.ensure_future(self.acheck(content, stage=stage, deadline=deadline)))
                if len(pending) >= batch:
                    yield await pending.pop(0)
            while pending:
                yield await pending.pop(0)
        finally:
            for task in pending:
                task.cancel()

    # ---- functions and conversations ------------------------------------------------------------------------------

    @overload
    def __call__(self, function: Function, /) -> Function: ...

    @overload
    def __call__(
        self,
        *,
        prompt: PromptOf = EVERY,
        images: str | Sequence[str] | None = None,
        response: Callable[[Any], Any] | None = None,
        on_block: OnBlock = "raise",
        stream: Streaming | Mode = "window",
        refusal: Any = None,
        on_decision: Callable[[Decision], object] | None = None,
    ) -> Callable[[Function], Function]: ...

    def __call__(
        self,
        function: Any = None,
        *,
        prompt: PromptOf = EVERY,
        images: str | Sequence[str] | None = None,
        response: Callable[[Any], Any] | None = None,
        on_block: OnBlock = "raise",
        stream: Streaming | Mode = "window",
        refusal: Any = None,
        on_decision: Callable[[Decision], object] | None = None,
    ) -> Any:
        """Guard a function: `@guard` or `@guard(...)`. Its arguments are judged before it runs, then what it gives.

        For functions and methods, async ones, generators and async generators; type and signature stay. The function is
        not called when its prompt is blocked. What a generator yields is held back until it is judged, so it takes no
        `send()`. A file given by its path is read once here and again by the function: pass bytes if it may change.

        Args:
            function: The function.
            prompt: What is judged before the call: a parameter, several, or a function that is given the arguments
                (`inspect.BoundArguments`) and returns what `check` takes. None: only the result is judged. `"*"`: every
                parameter but self and cls; text, messages, pictures (also bytes and paths) and lists of these are read,
                numbers and enums hold nothing, and anything else is an error.
            images: Parameters that hold pictures, where text is a path or URL. None: pictures (PIL images, ImageParts)
                are judged in whatever parameter they are; `()`: only in those that `prompt` names.
            response: A function of the result, or of each item of a generator: what of it is judged. None: the result
                itself, which then is text, messages, pictures, a list of these or None; items are text.
            on_block: `raise` raises `BlockedError`; `refuse` gives the refusal instead; `annotate` stops nothing.
                Where a verdict is missing and the policy blocks, `raise` and `refuse` raise the error itself.
            stream: How a generator is judged: `window`, `full`, `observe` (with `annotate`), or `Streaming(...)`.
            refusal: What a refused call gives: a value or a function of the decision. None: one sentence, for functions
                that give text.
            on_decision: Called with every decision, whatever follows from it.

        Raises:
            ConfigurationError: A wrong argument, or nothing would be judged; most are told when it decorates.
        """
        return decorate(
            self,
            function,
            prompt=prompt,
            images=images,
            response=response,
            on_block=on_block,
            stream=stream,
            refusal=refusal,
            on_decision=on_decision,
        )

    def sanitize(
        self,
        messages: Sequence[Entry],
        *,
        replace: str | Callable[[Judgement], str] | None = None,
        deadline: float | None = None,
    ) -> list[Entry]:
        """A conversation without what is blocked in it, so that one bad turn neither replays nor poisons the next.

        What was judged before is remembered, so an unchanged history costs little. A tool call and its results stay or
        go together.

        Args:
            messages: OpenAI-style messages or `Message` values; they are not changed. A mapping may have an `id`.
            replace: A sentence that takes the place of what each blocked message said, pictures and arguments gone;
                or a function that gives it for a judgement. None: blocked exchanges are dropped.
            deadline: Seconds for each check, instead of the guard's.

        Raises:
            GuardrailError: There is no verdict, and the policy blocks what has none.
            ConfigurationError: Not a list of messages, or an empty sentence.
        """
        flow = clean(messages, replace)
        return run(flow, functools.partial(self.check, deadline=deadline))

    async def asanitize(
        self,
        messages: Sequence[Entry],
        *,
        replace: str | Callable[[Judgement], str] | None = None,
        deadline: float | None = None,
    ) -> list[Entry]:
        """`sanitize` without blocking the event loop."""
        flow = clean(messages, replace)
        return await arun(flow, functools.partial(self.acheck, deadline=deadline))

    # ---- what it is -----------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The policy that decides."""
        return self._rules.policy

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """What a check asks, in order; each but the first only where the one before it was unsure."""
        return self._rules.rungs

    @property
    def first(self) -> Guard | None:
        """The guard that a cascade asks first. None: this is no cascade."""
        return self._pair[0] if self._pair else None

    @property
    def then(self) -> Guard | None:
        """The guard that a cascade asks what the first leaves unsure. None: this is no cascade."""
        return self._pair[1] if self._pair else None

    @property
    def engine(self) -> Engine:
        """The engine that completes prompts; of a cascade, the one whose word is final."""
        return self.rungs[-1].engine

    @property
    def format(self) -> PromptFormat:
        """The prompt format it is asked in."""
        return self.rungs[-1].format

    @property
    def speed(self) -> SpeedChoice:
        """`reason`, `fast` or `auto`; of a cascade, that of the guard whose word is final."""
        return self._speed

    @property
    def limits(self) -> ImageLimits:
        """Caps on pictures."""
        limits: ImageLimits = self._settings["limits"]
        return limits

    @property
    def deadline(self) -> float:
        """Seconds for one check."""
        return self._deadline

    def replace(self, **settings: Any) -> Self:
        """A guard like this one, on the same engine, or of the same two guards, with other settings."""
        return type(self)(**{**self._settings, **settings})

    def close(self) -> None:
        """Free what the engine holds. A later check opens it again."""
        with contextlib.ExitStack() as all_of_them:  # one that fails to close does not keep another open
            for engine in self._engines():
                all_of_them.callback(engine.close)

    async def aclose(self) -> None:
        """`close`, and what belongs to the running event loop."""
        async with contextlib.AsyncExitStack() as all_of_them:
            for engine in self._engines():
                all_of_them.push_async_callback(engine.aclose)

    def _engines(self) -> Iterable[Engine]:
        return {id(rung.engine): rung.engine for rung in self.rungs}.values()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        # Whoever remembers what a guard let pass tells guards apart by this: all that a verdict depends on is in it.
        policy = f"policy={self.policy.name!r}@{self.policy.hash}"
        if self._pair:
            return f"Guard(rungs='{' > '.join(map(str, self.rungs))}', {policy})"
        band = "" if self.rungs[0].band is None else f"band={self.rungs[0].band}, "
        return f"Guard(model={self.engine.model!r}, format={self.format.id!r}, speed={self.speed!r}, {band}{policy})"

    def __setattr__(self, name: str, value: object) -> None:
        if getattr(self, "_frozen", False):
            raise AttributeError("A guard does not change after it is made: use replace().")
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self._settings))

    # ---- flows ----------------------------------------------------------------------------------------------------

    def _prompt_flow(self, prompt: str | None, images: Images, deadline: float | None) -> Flow:
        check_text(prompt, "prompt")
        return self._make(functools.partial(Turn.from_prompt, prompt, images=_listed(images)), Stage.PROMPT, deadline)

    def _response_flow(
        self, response: str | None, prompt: str | None, images: Images, response_images: Images, deadline: float | None
    ) -> Flow:
        check_text(prompt, "prompt")
        check_text(response, "response")
        make = functools.partial(
            Turn.from_prompt,
            prompt,
            images=_listed(images),
            response=response or "",
            response_images=_listed(response_images),
        )
        return self._make(make, Stage.RESPONSE, deadline)

    def _flow(self, content: Any, stage: Stage | str | None, deadline: float | None) -> Flow:
        if stage is not None and stage not in get_args(Literal["prompt", "response"]):
            raise ConfigurationError(f"stage must be 'prompt' or 'response', not {stage!r}.")
        return self._make(functools.partial(Turn.of, content), None if stage is None else Stage(stage), deadline)

    def _make(self, make: Callable[..., Turn], stage: Stage | None, deadline: float | None) -> Flow:
        if deadline is not None:
            check_numbers(deadline, None)
        until = Deadline.after(self._deadline if deadline is None else deadline)
        source: Callable[[], Turn | FetchPlan] = functools.partial(make, load=self._load)
        if self._settings["fetch_images"]:
            source = functools.partial(with_fetched, make, self._load or ImagePart.load)
        return check_flow(source, stage, self._rules, until)


_GUARD_SETTINGS: Final = {
    "first", "then", "policy", "format", "speed", "band", "fail", "deadline", "cache", "max_concurrency", "pre_prompt",
    "post_response", "fetch_images", "limits", "observer",
}  # fmt: skip


def _cascade(first: object, then: object, **others: object) -> tuple[Guard, Guard] | None:
    """The two guards of a cascade; None: there is to be none.

    Args:
        first: As for `Guard`.
        then: The same.
        others: Settings that only a guard with an engine of its own has.
    """
    if first is None and then is None:
        return None
    pair = _member("first", first), _member("then", then)
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigurationError(
            f"A cascade has no {', '.join(given)} of its own.", hint="Set it on the guard that is first or then."
        )
    return pair


def _member(name: str, guard: object) -> Guard:
    if guard is None:
        raise ConfigurationError(
            f"A cascade needs two guards, and there is no {name}=.", hint="Guard(first=Guard(), then=Guard.remote(…))."
        )
    if not isinstance(guard, Guard):
        raise ConfigurationError(f"{name} must be a Guard, not {type(guard).__name__}.")
    if guard._rules.pre_prompt or guard._rules.post_response:
        raise ConfigurationError(
            f"The hooks of the guard that is {name} would never be called.", hint="Pass them to the cascade."
        )
    return guard


def _shared_policy(first: Guard, then: Guard) -> Policy:
    if first.policy.hash != then.policy.hash:
        raise ConfigurationError(
            "The two guards of the cascade have different policies, and one must decide.",
            hint="Pass policy= to the cascade.",
        )
    return first.policy


def _rebuild(kind: type[Guard], settings: dict[str, Any]) -> Guard:
    return kind(**settings)


def _listed(images: Images) -> Images:
    # Read once: the flow may look at it twice.
    return images if isinstance(images, str | bytes | Sequence) else tuple(images)
