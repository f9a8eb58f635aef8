"""All the probes, as frozen values, and which of the known leaks each stands for. Knows no client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.leakcheck._controls import CONTROLS
from guardrail_vl.leakcheck._prompts import PROMPTS
from guardrail_vl.leakcheck._replies import REPLIES
from guardrail_vl.leakcheck._streams import STREAMS
from guardrail_vl.leakcheck.probe import ROWS as ROWS
from guardrail_vl.leakcheck.probe import Probe

PROBES: Final[tuple[Probe, ...]] = (*PROMPTS, *REPLIES, *STREAMS, *CONTROLS)
"""Every probe, in the order in which they are run and shown."""


def pick(ids: Iterable[str], among: Sequence[Probe] = PROBES) -> tuple[Probe, ...]:
    """The probes with these ids, in the suite's order. An id that ends in `*` stands for all that begin so.

    Args:
        ids: Of the probes.
        among: From which they are picked.

    Raises:
        ConfigurationError: No probe has one of them.
    """
    wanted: set[str] = set()
    for one in ids:
        fitting = {p.id for p in among if p.id == one or (one.endswith("*") and p.id.startswith(one[:-1]))}
        if not fitting:
            raise ConfigurationError(f"No probe is called {one!r}.", hint="See guardrail-vl leakcheck --list.")
        wanted |= fitting
    return tuple(probe for probe in among if probe.id in wanted)


def by_row() -> dict[int, tuple[Probe, ...]]:
    """For each known leak, the probes that stand for it."""
    return {row: tuple(probe for probe in PROBES if row in probe.rows) for row in ROWS}
