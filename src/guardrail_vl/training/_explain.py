"""Reads YAML that people write, and says what is wrong with it by the path of the key. Repeats no value."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from guardrail_vl.errors import ConfigurationError

_ENOUGH: Final = 5
"""Mistakes told at once."""


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        path: The file.
        what: What it is, for messages.

    Raises:
        ConfigurationError: It can't be read, is no YAML, or has a key twice.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a safe loader, see below
    except OSError as error:
        raise ConfigurationError(f"Can't read {what} {path.name!r}: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ConfigurationError(f"{what.capitalize()} {path.name!r} is no YAML{line}: {error.problem}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigurationError(f"{what.capitalize()} {path.name!r} is no YAML in UTF-8.") from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigurationError(f"{what.capitalize()} {path.name!r} must hold keys and values.")
    return raw


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice; YAML would keep the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def explained(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong, one clause for each mistake, by the path of its key; unknown keys with what is allowed there."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = [_clause(problem["type"], problem["loc"], problem["msg"], model) for problem in problems[:_ENOUGH]]
    if len(problems) > _ENOUGH:
        told.append(f"and {len(problems) - _ENOUGH} more")
    return "; ".join(told)


def _clause(kind: str, loc: tuple[int | str, ...], message: str, model: type[BaseModel]) -> str:
    where = path_of(loc)
    if kind == "extra_forbidden":
        return f"unknown key {where!r}{_allowed(loc, model)}"
    if kind == "missing":
        return f"{where!r} is missing"
    if kind == "model_type":
        return f"{where!r} must hold keys and values: write {{}} for the defaults, or leave it out"
    return f"{where or 'the whole'}: {message.removeprefix('Value error, ')}"


def path_of(loc: tuple[int | str, ...]) -> str:
    """A path of keys in words: `data.train[0].file`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).lstrip(".")


def _allowed(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    known = list(_owner(loc[:-1], model).model_fields)
    close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.6)
    guess = f", did you mean {close[0]!r}?" if close else ""
    return f"{guess} (allowed: {', '.join(known)})"


def _owner(loc: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel]:
    """The model that holds the key at the end of this path."""
    for step in loc:
        field = model.model_fields.get(step) if isinstance(step, str) else None
        if field is not None:
            model = next(_models(field.annotation), model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    parts = typing.get_args(annotation)
    if not parts and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in parts:
        yield from _models(part)
