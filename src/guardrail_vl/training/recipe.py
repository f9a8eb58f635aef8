"""What a training run does, as a file that people write: `Recipe`. Reads and checks it; runs nothing, loads no model.

A section for each stage holds that stage's own config; a stage without its section is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, ValidationError, model_validator

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format import get_format
from guardrail_vl.training._explain import explained, read_yaml
from guardrail_vl.training._layouts import Layout
from guardrail_vl.training._rl_config import RLConfig
from guardrail_vl.training._sft_config import SFTConfig
from guardrail_vl.training._teacher import Teacher
from guardrail_vl.training.concat import ConcatConfig
from guardrail_vl.training.gate import GateConfig
from guardrail_vl.training.mining import MiningConfig
from guardrail_vl.training.synthesis import SynthesisConfig

STAGES: Final = ("data", "synthesize", "sft", "mine", "concat", "rl", "export", "gate")
"""In the order in which they run."""
_SMALL: Final = 1 << 20
"""Bytes of a file that is hashed whole."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TinyBase(_Section):
    """A tiny random model, built here: see `guardrail_vl.training.tiny.build`."""

    hidden: int = Field(default=64, ge=32, multiple_of=32)
    """Width of the text model."""
    layers: int = Field(default=2, ge=1)
    """Depth of the text model."""
    vocabulary: int = Field(default=900, ge=300)
    """Tokens of the text, at most."""
    window: int = Field(default=4096, ge=64)
    """Tokens of a prompt and its completion, at most. Random weights write until it is full."""
    seed: int = 0
    """Of the weights."""


class Base(_Section):
    """The model that training begins with. A bare string in the file is its `name`."""

    name: str = ""
    """A folder (relative to the recipe), or a hub id."""
    tiny: TinyBase | None = None
    """Instead: one that is built on the spot and knows nothing."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.name) == (self.tiny is not None):
            raise ValueError("give a folder, a hub id, or tiny: {}")
        return self


class Noise(_Section):
    """What goes wrong in the training turns of the synthetic task: see `synthetic.noisy`."""

    wrong: float = Field(default=0.3, ge=0, le=1)
    """The share of turns with other labels."""
    filler: int = Field(default=3, ge=0)
    """Idle sentences in a reasoning, at most."""
    seed: int = 0


class Synthetic(_Section):
    """Turns of the small task in `guardrail_vl.training.synthetic`."""

    train: int = Field(ge=1)
    """Turns to train on."""
    held_out: int = Field(default=0, ge=0)
    """Turns that only the gate sees."""
    seed: int = 0
    noise: Noise | None = None
    """Of the training turns of SFT. Mining and RL see the right labels. None: none."""


class DataFile(_Section):
    """A file of labelled turns. A bare string in the file is its `file`."""

    file: str
    """Relative to the recipe."""
    layout: Layout | None = None
    """See `guardrail_vl.training.dataset`. None: seen from the file."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"file": value} if isinstance(value, str) else value


class Data(_Section):
    """What is trained on, and what is held out for the gate."""

    train: tuple[DataFile, ...] = ()
    held_out: tuple[DataFile, ...] = ()
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """How much of the training turns is held out, where no file is; turns of one request stay together."""
    seed: int = 0
    """Of the split."""
    leaks: Literal["refuse", "drop"] = "refuse"
    """What happens if a held-out turn's request is trained on. `drop`: that held-out turn is left out, and counted."""
    synthetic: Synthetic | None = None
    """Instead of files."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.train) == (self.synthetic is not None):
            raise ValueError("give files in train, or synthetic")
        if self.synthetic is not None and (self.held_out or self.share):
            raise ValueError("synthetic has its own held_out")
        if self.held_out and self.share:
            raise ValueError("give files in held_out, or a share of the training turns")
        return self

    @property
    def holds_out(self) -> bool:
        """Whether anything is held out."""
        return bool(self.held_out or self.share or (self.synthetic is not None and self.synthetic.held_out))


class SynthesizeSection(_Section):
    """Who writes the reasoning that is missing, and what is accepted."""

    teacher: Teacher
    """Its key comes from the environment: GUARDRAIL_VL_TEACHER_API_KEY, else OPENAI_API_KEY."""
    config: SynthesisConfig = SynthesisConfig()

    @model_validator(mode="after")
    def _no_key(self) -> Self:
        if self.teacher.api_key is not None:
            raise ValueError("a recipe holds no key: put it into the environment, as GUARDRAIL_VL_TEACHER_API_KEY")
        return self


class ExportSection(_Section):
    """How the guard is written, and what its card says beside what is counted."""

    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Of the weights. None: as they were trained."""
    device: str | None = None
    """Where an adapter is merged. None: `cuda` where there is one, else `cpu`."""
    licence: str = ""
    """Of the new weights. Empty: not stated."""
    base_licence: str = ""
    languages: tuple[str, ...] = ()
    """Codes such as `en`: of what it is trained on."""
    not_tested: tuple[str, ...] = ()
    """What it was not tested on, in words."""
    attributions: tuple[str, ...] = ()
    """What the licences of the base and the data ask to be said."""


class Recipe(_Section):
    """A whole training run.

    Raises:
        ConfigurationError: From `load` and `of`: a key that isn't known, a wrong value, stages that don't fit together.
    """

    name: str
    """Of the recipe; the model card says it."""
    description: str = ""
    base: Base
    data: Data
    policy: str | None = None
    """A policy file (relative to the recipe): for the teacher, the gate and the exported guard. None: the default."""
    format: str = "guardreasoner-vl/1"
    """Id of the prompt format."""
    synthesize: SynthesizeSection | None = None
    sft: SFTConfig | None = None
    mine: MiningConfig | None = None
    concat: ConcatConfig | None = None
    rl: RLConfig | None = None
    export: ExportSection | None = None
    gate: GateConfig | None = None

    _folder: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="before")
    @classmethod
    def _no_empty_section(cls, value: object) -> object:
        if isinstance(value, dict):
            for stage in STAGES:
                if stage in value and value[stage] is None:
                    raise ValueError(f"{stage} is empty: write {{}} for its defaults, or leave it out")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.trains and (self.export is not None or self.gate is not None):
            raise ValueError("export and gate need sft or rl before them: nothing would have been trained")
        if self.concat is not None and self.rl is None:
            raise ValueError("concat is for rl, which is left out")
        if self.gate is not None and self.export is None:
            raise ValueError("gate needs export: it compares what is exported")
        if self.gate is not None and not self.data.holds_out:
            raise ValueError("gate needs held-out turns: see data.held_out and data.share")
        if self.rl is not None and self.sft is None and self.base.tiny is not None:
            raise ValueError("rl on a tiny base needs sft: random weights write nothing that could be rewarded")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file. Paths in it are relative to it.

        Raises:
            ConfigurationError: No such file, no YAML, or not a recipe; names the keys.
        """
        path = Path(path)
        return cls.of(read_yaml(path, "the recipe"), folder=path.parent, what=f"the recipe {path.name!r}")

    @classmethod
    def of(cls, raw: Mapping[str, Any], *, folder: str | Path = "", what: str = "the recipe") -> Self:
        """A recipe from keys and values.

        Args:
            raw: As a file has them.
            folder: What paths in it are relative to.
            what: What it is, for messages.

        Raises:
            ConfigurationError: Not a recipe; names the keys.
        """
        try:
            recipe = cls.model_validate(dict(raw))
        except ValidationError as error:
            raise ConfigurationError(f"In {what}: {explained(error, cls)}.") from None
        except ConfigurationError as error:  # what a stage's own config refuses
            raise ConfigurationError(f"In {what}: {_section_of(raw, cls)}{error.message}", hint=error.hint) from None
        recipe._folder = Path(folder)
        get_format(recipe.format)
        return recipe

    @property
    def trains(self) -> bool:
        """Whether any stage trains."""
        return self.sft is not None or self.rl is not None

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that run, in order."""
        return tuple(stage for stage in STAGES if getattr(self, stage) is not None)

    def path(self, name: str) -> Path:
        """A path in the recipe, as it is from here."""
        return self._folder / name

    @property
    def base_model(self) -> str | Path:
        """The base's folder, or its hub id where there is no such folder. Empty: it is to be built."""
        folder = self.path(self.base.name)
        return folder if self.base.name and folder.is_dir() else self.base.name

    @property
    def house_policy(self) -> Policy:
        """The policy.

        Raises:
            ConfigurationError: It can't be read.
        """
        return Policy.of(None if self.policy is None else self.path(self.policy))

    def with_whole_paths(self) -> dict[str, Any]:
        """The keys and values of a file that says the same, wherever it lies."""
        dumped = self.model_dump(mode="json")
        told = {key: value for key, value in dumped.items() if value is not None}
        for group in ("train", "held_out"):
            for one in told["data"][group]:
                one["file"] = str(self.path(one["file"]).resolve())
        if self.policy is not None:
            told["policy"] = str(self.path(self.policy).resolve())
        if isinstance(self.base_model, Path):
            told["base"]["name"] = str(self.base_model.resolve())
        return told

    def check(self) -> None:
        """Look for what it names, without loading any of it.

        Raises:
            ConfigurationError: A file isn't there; names all that are missing.
        """
        files = [one.file for one in (*self.data.train, *self.data.held_out)]
        missing = [name for name in files if not self.path(name).is_file()]
        base = self.base.name
        if base.startswith((".", "/")) and not self.path(base).is_dir():
            missing.append(base)
        if missing:
            raise ConfigurationError(
                f"The recipe names what is not there: {', '.join(missing)}.", hint="Paths are relative to the recipe."
            )
        self.house_policy  # noqa: B018 - reading it is the check

    def conditions(self) -> dict[str, JsonValue]:
        """All that decides what comes out, flat, by the path of its key; files by the hash of what is in them.

        Raises:
            ConfigurationError: A file can't be read.
        """
        how = {"sft": set(SFTConfig.HOW), "mine": set(MiningConfig.HOW)}
        told = _flat(self.model_dump(mode="json", exclude={"description": True, **how}))
        for group in ("train", "held_out"):
            for number, one in enumerate(getattr(self.data, group)):
                told[f"data.{group}[{number}].file"] = hash_of(self.path(one.file))
        if self.policy is not None:
            told["policy"] = self.house_policy.hash
        if isinstance(self.base_model, Path):
            told["base.name"] = _hash_of_folder(self.base_model)
        return told


def _section_of(raw: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Which section refuses, for errors that don't say it."""
    for stage in STAGES:
        if stage in raw:
            try:
                model.model_validate({"name": "x", "base": {"tiny": {}}, "data": {"train": ["x"]}, stage: raw[stage]})
            except ConfigurationError:
                return f"{stage}: "
            except ValidationError:
                continue
    return ""


def hash_of(file: Path) -> str:
    """12 hexadecimal digits of a file's content.

    Raises:
        ConfigurationError: It can't be read.
    """
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()[:12]
    except OSError as error:
        raise ConfigurationError(f"Can't read {file.name!r}: {error.strerror}.") from error


def _hash_of_folder(folder: Path) -> str:
    # Weights are gigabytes: their names and sizes have to do, beside the small files' content.
    state = hashlib.sha256()
    for file in sorted(one for one in folder.iterdir() if one.is_file()):
        size = file.stat().st_size
        state.update(f"{file.name} {size} {hash_of(file) if size < _SMALL else ''}\n".encode())
    return state.hexdigest()[:12]


def _flat(value: Any, path: str = "") -> dict[str, JsonValue]:
    if isinstance(value, Mapping) and value:
        parts = [_flat(part, f"{path}.{key}".lstrip(".")) for key, part in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        parts = [_flat(part, f"{path}[{number}]") for number, part in enumerate(value)]
    else:
        return {path: value}
    return {key: part for one in parts for key, part in one.items()}
