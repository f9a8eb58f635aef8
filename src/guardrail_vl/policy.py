"""What we do about a verdict, or about the failure to get one: definitions, thresholds, actions, fail mode.

YAML, TOML or Python in; a hash out, which is the policy's version. Knows no engine and no prompt.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from guardrail_vl.errors import ConfigurationError, ContentError, EngineError, GuardrailError
from guardrail_vl.turn import Turn
from guardrail_vl.verdict import Action, Decision, Label, Stage, Verdict

FailMode = Literal["closed", "open"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    _short_form: ClassVar[dict[str, Any] | None] = None
    """The JSON schema of the shorter way to write it; None: there is none."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        reference = handler(core)
        schema = handler.resolve_ref_schema(reference)
        # What a docstring says of errors is for callers of Python, not for authors of files.
        schema["description"] = str(schema.get("description", "")).partition("\n\nRaises:")[0]
        if cls._short_form is not None:
            full = dict(schema)
            schema.clear()
            schema["anyOf"] = [cls._short_form, full]
        return reference


class StageRule(_Frozen):
    """What a harmful request, or a harmful response, gets."""

    action: Action = Action.BLOCK
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Harmful from this score on. None: the model's own label decides."""

    _short_form = {"enum": [action.value for action in Action]}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"action": value} if isinstance(value, str) else value


class Fail(_Frozen):
    """What happens without a verdict: `closed` blocks, `open` annotates with the error."""

    engine: FailMode = "closed"
    """The engine is down, too slow or answers nonsense."""
    content: FailMode = "closed"
    """The turn can't be judged. A user can cause this at will: open it only if nothing depends on the guard."""
    parse: FailMode = "closed"
    """The model's answer follows no format. A user may be able to cause this."""

    _short_form = {"enum": list(get_args(FailMode))}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        # "open" is about a guard that is down; what a user can provoke stays closed unless it is named.
        return {"engine": value} if isinstance(value, str) else value

    def mode(self, error: GuardrailError) -> FailMode:
        """The mode for this kind of error."""
        if isinstance(error, EngineError):
            return self.engine
        return self.content if isinstance(error, ContentError) else self.parse


class Example(_Frozen):
    """A turn whose outcome the policy's author knows."""

    prompt: str | None = Field(default=None, repr=False)
    response: str | None = Field(default=None, repr=False)
    images: tuple[str, ...] = ()
    """Paths, relative to the policy file, or `data:` URLs."""

    _short_form = {"type": "string"}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"prompt": value} if isinstance(value, str) else value


class Category(_Frozen):
    """One kind of harm, defined in plain words."""

    definition: str
    prompt: Action | None = None
    """What a request in this category gets. None: what any harmful request gets."""
    response: Action | None = None
    """What a response in this category gets. None: what any harmful response gets."""
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Harmful from this score on, when the model names this category. None: the stage's threshold."""
    harmful: tuple[Example, ...] = ()
    """Turns that the guard must judge harmful."""
    harmless: tuple[Example, ...] = ()
    """Look-alikes that it must not."""

    def action(self, stage: Stage) -> Action | None:
        """The action at a stage, None where the category sets none."""
        return self.prompt if stage == Stage.PROMPT else self.response


def _no_allow(action: Action) -> Action:
    if action is Action.ALLOW:
        raise ValueError("what nobody judged is never simply allowed: use annotate or block")
    return action


def _freeze(value: Mapping[str, Category]) -> Mapping[str, Category]:
    return MappingProxyType(dict(value))


class Policy(_Frozen):
    """The rule from verdict or error to action.

    Raises:
        ConfigurationError: Unknown keys (with the nearest known one) or wrong values, from `load` and `of`.
    """

    name: str = "default"
    description: str = ""
    adapter: Annotated[str, Field(min_length=1)] | None = None
    """Name of the LoRA adapter whose answers this policy is about, of those that the engine has: one set of weights
    serves many policies. None: the checkpoint as it is."""
    prompt: StageRule = StageRule()
    response: StageRule = StageRule()
    history: Action = Action.ANNOTATE
    """What an earlier harmful request gets that was answered harmlessly (a refusal, say). The exchange in its context
    is judged besides, so this need not block for ever a user who was refused once."""
    unjudged: Annotated[Action, AfterValidator(_no_allow)] = Action.ANNOTATE
    """What a turn gets of which the engine could not judge all, and found nothing harmful in the rest."""
    trusted_roles: tuple[Literal["system", "developer"], ...] = ()
    """Roles whose messages are yours, and are not judged. Empty: everything is judged."""
    fail: Fail = Fail()
    categories: Annotated[Mapping[str, Category], AfterValidator(_freeze), PlainSerializer(dict)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    harmful: tuple[Example, ...] = ()
    harmless: tuple[Example, ...] = ()

    @classmethod
    def of(cls, source: Policy | Mapping[str, Any] | str | Path | None) -> Policy:
        """A policy from a policy, a mapping, a file's path, or None for the default.

        Raises:
            ConfigurationError: Unknown keys or wrong values.
        """
        if source is None:
            return cls()
        if isinstance(source, Policy):
            return source
        if isinstance(source, Mapping):
            return cls._read(dict(source), "the policy")
        return cls.load(source)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a `.yaml`, `.yml`, `.toml` or `.json` file.

        Raises:
            ConfigurationError: No such file, another suffix, bad syntax, unknown keys or wrong values.
        """
        path = Path(path)
        readers: dict[str, Callable[[str], object]] = {
            ".yaml": _yaml, ".yml": _yaml, ".toml": tomllib.loads, ".json": json.loads,
        }  # fmt: skip
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise ConfigurationError(f"A policy file is .yaml, .toml or .json, not {path.suffix or path.name!r}.")
        try:
            raw = reader(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"Can't read the policy file {path.name!r}: {error.strerror}.") from error
        except ValueError as error:  # every one of these parsers raises a ValueError
            raise ConfigurationError(f"The policy file {path.name!r} can't be parsed: {error}") from error
        if not isinstance(raw, dict):
            raise ConfigurationError(f"The policy file {path.name!r} must hold keys and values.")
        return cls._read(_absolute_images(raw, path.parent), f"the policy file {path.name!r}")

    @classmethod
    def _read(cls, raw: dict[str, Any], where: str) -> Self:
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise ConfigurationError(f"In {where}: {_explain(error)}") from None

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self).model_validate, (self.model_dump(mode="json"),))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with some fields changed."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("hash", None)  # it was that of the original
        return copy

    @cached_property
    def hash(self) -> str:
        """12 hexadecimal digits that change whenever the policy does: its version."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def rule(self, stage: Stage) -> StageRule:
        """The rule of a stage."""
        return self.prompt if stage == Stage.PROMPT else self.response

    def is_harmful(self, stage: Stage, verdict: Verdict) -> bool:
        """Whether this verdict counts as harmful: by score where a threshold is set, else by label."""
        score = verdict.score_of(stage)
        thresholds = [
            self.categories[name].threshold or self.rule(stage).threshold
            for name in verdict.categories
            if name in self.categories
        ] or [self.rule(stage).threshold]
        if score is None or None in thresholds:
            return verdict.label(stage) is Label.HARMFUL
        return any(score >= threshold for threshold in thresholds if threshold is not None)

    def decide(self, stage: Stage, outcome: Verdict | GuardrailError) -> tuple[Action, str]:
        """The action for a verdict or an error, and why, in words that hold no content."""
        if isinstance(outcome, GuardrailError):
            closed = self.fail.mode(outcome) == "closed"
            return (Action.BLOCK if closed else Action.ANNOTATE), f"No verdict: {outcome.message}"
        what = "request" if stage == Stage.PROMPT else "response"
        score = outcome.score_of(stage)
        shown = "" if score is None else f" (score {score:.2f})"
        if self.is_harmful(stage, outcome):
            named = f" as {', '.join(outcome.categories)}" if outcome.categories else ""
            return self._harmful_action(stage, outcome), f"The {what} was judged harmful{named}{shown}."
        if outcome.unjudged:
            rest = "; ".join(outcome.unjudged[:3])
            return self.unjudged, f"Nothing harmful was found in the {what}{shown}, but not all was judged: {rest}."
        return Action.ALLOW, f"The {what} was judged unharmful{shown}."

    def _harmful_action(self, stage: Stage, verdict: Verdict) -> Action:
        general = self.rule(stage).action
        named = [self.categories[n].action(stage) or general for n in verdict.categories if n in self.categories]
        # A category that the policy does not know gets the general rule; the strictest named one wins.
        unknown = [general] if any(n not in self.categories for n in verdict.categories) else []
        action = max([*named, *unknown], default=general, key=lambda a: a.rank)
        return max(action, self.unjudged, key=lambda a: a.rank) if verdict.unjudged else action

    def has_category_rules(self) -> bool:
        """Whether any category sets an action or a threshold of its own."""
        return any(c.prompt or c.response or c.threshold for c in self.categories.values())

    def test(self, guard: Checker) -> PolicyReport:
        """Run the policy's examples through a guard, like unit tests.

        Raises:
            ConfigurationError: An example can't be judged by any guard: a picture is missing, say.
        """
        rows = [("", e, want) for want, es in ((True, self.harmful), (False, self.harmless)) for e in es]
        for name, category in self.categories.items():
            rows += [(name, e, True) for e in category.harmful] + [(name, e, False) for e in category.harmless]
        return PolicyReport(tuple(self._run(guard, *row) for row in rows))

    def _run(self, guard: Checker, category: str, example: Example, want: bool) -> ExampleResult:
        try:
            turn = Turn.from_prompt(example.prompt, images=example.images, response=example.response)
        except ContentError as error:
            where = f"category {category!r}" if category else "the policy"
            raise ConfigurationError(f"An example of {where} can't be judged: {error}") from None
        stage = Stage.RESPONSE if example.response is not None else Stage.PROMPT
        decision = guard.check(turn)
        got = decision.verdict is not None and self.is_harmful(stage, decision.verdict)
        passed = not decision.failed and got == want
        return ExampleResult(category, example, want, decision, passed)


class Checker(Protocol):
    """What `Policy.test` needs of a guard."""

    def check(self, content: Any) -> Decision:
        """Judge a turn."""


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """One example and what the guard made of it."""

    category: str
    """Empty for an example of the whole policy."""
    example: Example
    harmful: bool
    """What the author expects."""
    decision: Decision
    passed: bool


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """What `Policy.test` found."""

    results: tuple[ExampleResult, ...]

    @property
    def failures(self) -> tuple[ExampleResult, ...]:
        """The examples that were judged otherwise than their author expects."""
        return tuple(r for r in self.results if not r.passed)

    @property
    def passed(self) -> bool:
        """Whether there are examples and all of them passed."""
        return bool(self.results) and not self.failures


def _yaml(text: str) -> object:
    import yaml  # only policies in YAML need it, and it takes 15 ms

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _absolute_images(raw: Any, folder: Path) -> Any:
    """Image paths in examples are relative to the policy file, not to where the program was started."""
    if isinstance(raw, dict):
        return {
            key: [i if i.startswith("data:") else str(folder / i) for i in value]
            if key == "images" and isinstance(value, list) and all(isinstance(i, str) for i in value)
            else _absolute_images(value, folder)
            for key, value in raw.items()
        }
    return [_absolute_images(item, folder) for item in raw] if isinstance(raw, list) else raw


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {where!r}{_nearest(problem['loc'])}")
        else:
            lines.append(f"{where or 'the whole'}: {problem['msg']}")
    return "; ".join(lines)


def _nearest(loc: tuple[int | str, ...]) -> str:
    known = set(_MODELS[_owner(loc)].model_fields)
    close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else f" (known: {', '.join(sorted(known))})"


def _owner(loc: tuple[int | str, ...]) -> str:
    path = [step for step in loc[:-1] if isinstance(step, str)]
    if not path:
        return "policy"
    if path[-1] in ("harmful", "harmless"):
        return "example"
    if path[0] == "categories":
        return "category"
    return "fail" if path[0] == "fail" else "stage"


_MODELS: dict[str, type[_Frozen]] = {
    "policy": Policy, "stage": StageRule, "fail": Fail, "category": Category, "example": Example,
}  # fmt: skip
