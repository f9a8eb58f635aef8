"""Runs the probes against a client and keeps the findings. Decides nothing: `seen.find` does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.leakcheck.drivers import Driver
from guardrail_vl.leakcheck.probe import Probe
from guardrail_vl.leakcheck.probes import PROBES
from guardrail_vl.leakcheck.process import Upstream
from guardrail_vl.leakcheck.seen import Finding, Seen, find


@dataclass(frozen=True, slots=True)
class Row:
    """One probe and what came of it."""

    probe: Probe
    finding: Finding
    seen: Seen
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """What the suite found of one client."""

    client: str
    version: str
    rows: tuple[Row, ...]

    @property
    def green(self) -> bool:
        """Whether nothing leaked and nothing was wrong, and at least one probe was sealed."""
        return bool(self.sealed) and not self.red

    @property
    def sealed(self) -> tuple[Row, ...]:
        """The probes that went as they should."""
        return tuple(row for row in self.rows if row.finding.green)

    @property
    def red(self) -> tuple[Row, ...]:
        """The probes that did not."""
        return tuple(row for row in self.rows if row.finding.red)

    @property
    def leaks(self) -> tuple[Row, ...]:
        """The red ones where something harmful got out."""
        return tuple(row for row in self.rows if row.finding.status == "leaks")

    @property
    def unsupported(self) -> tuple[Row, ...]:
        """The probes that this client can't do; they count neither way."""
        return tuple(row for row in self.rows if row.finding.status == "unsupported")

    @property
    def summary(self) -> str:
        """The counts, in one line."""
        wrong = len(self.red) - len(self.leaks)
        return (
            f"{len(self.rows)} probes: {len(self.sealed)} sealed, {len(self.leaks)} leak, {wrong} wrong, "
            f"{len(self.unsupported)} unsupported"
        )

    def to_json(self) -> str:
        """The report as one line of JSON. Holds none of the texts that were seen."""
        return json.dumps(
            {
                "client": self.client,
                "version": self.version,
                "green": self.green,
                "summary": self.summary,
                "probes": [_as_value(row) for row in self.rows],
            }
        )

    def table(self) -> str:
        """The report in plain text, a line for each probe and the counts last."""
        width = max((len(row.probe.id) for row in self.rows), default=0)
        lines = [f"{row.probe.id:<{width}}  {row.finding.status:<11}  {row.finding.why}".rstrip() for row in self.rows]
        return "\n".join([f"{self.client} ({self.version})", *lines, self.summary])


def _as_value(row: Row) -> dict[str, Any]:
    return {
        "id": row.probe.id,
        "title": row.probe.title,
        "rows": list(row.probe.rows),
        "surface": row.probe.surface,
        "status": row.finding.status,
        "why": row.finding.why,
        "outcome": row.seen.outcome,
        "error": row.seen.error_type,
        "upstream_calls": row.seen.upstream_calls,
        "seconds": round(row.seconds, 3),
    }


def run(
    driver: Driver, probes: Sequence[Probe] = PROBES, *, progress: Callable[[Row], None] = lambda row: None
) -> Report:
    """Run the probes, one after the other, against an upstream of their own.

    Args:
        driver: The client under test.
        probes: Which of them.
        progress: Called with each row as it comes.

    Raises:
        ConfigurationError: There are no probes: nothing would be checked.
        EngineUnavailableError: The upstream did not start.
    """
    if not probes:
        raise ConfigurationError("There are no probes to run.")
    rows = []
    with Upstream() as upstream:
        for number, probe in enumerate(probes):
            rows.append(_run_one(driver, probe, upstream, f"p{number}"))
            progress(rows[-1])
    return Report(driver.name, driver.version, tuple(rows))


def _run_one(driver: Driver, probe: Probe, upstream: Upstream, name: str) -> Row:
    base_url = upstream.script(name, probe.replies)
    start = time.monotonic()
    seen = driver.run(probe, base_url)
    seconds = time.monotonic() - start
    wait = probe.expect.disconnected and not seen.unsupported
    record = upstream.record(name, until=(lambda r: r.disconnected) if wait else None)
    seen = replace(
        seen,
        upstream_calls=record.calls,
        sent=record.bodies,
        own_client=record.own_client,
        disconnected=record.disconnected,
    )
    return Row(probe, find(probe.expect, seen), seen, seconds)
