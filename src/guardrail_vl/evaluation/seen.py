"""What a guard was trained on, as hashes of its requests: such samples say nothing of how good it is.

A list is a text file with a hash on each line (see `request_group`) and remarks after `#`. It holds no request, so it
can be published where the data can't. Judges nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation._samples import request_group
from guardrail_vl.evaluation.cases import Case, CaseSet

_HASH: Final = re.compile(r"[0-9a-f]{12}")


def hashes(cases: Iterable[Case]) -> frozenset[str]:
    """The hashes of the samples' requests: by their group where it is such a hash, and by their words."""
    return frozenset(name for case in cases for name in _names(case))


def write(path: Path, cases: Iterable[Case], *, about: str = "") -> None:
    """Write a list.

    Args:
        path: Of the file; written over.
        cases: What a guard was trained on.
        about: A remark for the first line.

    Raises:
        OSError: It can't be written.
    """
    head = [f"# {line}" for line in about.splitlines()]
    path.write_text("\n".join([*head, *sorted(hashes(cases))]) + "\n", encoding="utf-8")


def read(path: Path) -> frozenset[str]:
    """Read a list.

    Raises:
        ConfigurationError: It can't be read, is empty, or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path.name} can't be read: {type(error).__name__}.") from None
    found = [word for line in lines if (word := line.partition("#")[0].strip())]
    if bad := [number for number, word in enumerate(found, 1) if not _HASH.fullmatch(word)]:
        raise ConfigurationError(f"{path.name}: entry {bad[0]} is no hash of 12 hex digits.")
    if not found:
        raise ConfigurationError(f"{path.name} lists nothing.")
    return frozenset(found)


def leave_out(sets: Iterable[CaseSet], seen: frozenset[str]) -> tuple[tuple[CaseSet, ...], dict[str, int]]:
    """The sets without what was seen.

    A sample counts as seen by its group or by the words of its request; in either way a response goes with its request.
    A picture alone is known by its group only.

    Returns:
        The sets of which something is left, and how many samples each set lost, those that lost all included.
    """
    kept, lost = [], {}
    for one in sets:
        rest = tuple(case for case in one.cases if not seen & set(_names(case)))
        if len(rest) < len(one.cases):
            lost[one.name] = len(one.cases) - len(rest)
        if rest:
            kept.append(replace(one, cases=rest))
    return tuple(kept), lost


def _names(case: Case) -> Iterable[str]:
    if _HASH.fullmatch(case.group):
        yield case.group
    if case.prompt:
        yield request_group(case.prompt)


__all__ = ["hashes", "leave_out", "read", "write"]
