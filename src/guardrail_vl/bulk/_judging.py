"""Rows of a source become rows of the output, a batch at a time. Knows neither where they go nor who else judges."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

from guardrail_vl.bulk._output import Shape, as_line, word
from guardrail_vl.bulk._sources import Record, Source, Span
from guardrail_vl.errors import ContentError
from guardrail_vl.guard import Guard


@dataclass(frozen=True, slots=True)
class Judged:
    """A batch of rows of the output."""

    lines: bytes
    """JSON lines."""
    counts: Counter[str]
    """Of allow, annotate, block, error."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done with each span of rows. Picklable."""

    source: Source
    shape: Shape
    batch: int

    def judge(self, guard: Guard, span: Span) -> Iterator[Judged]:
        """Judge the rows of a span; a batch comes out for each that goes in."""
        records = self.source.read(span)
        while chunk := list(islice(records, self.batch)):
            decisions = guard.check_many(map(_content, chunk), batch=self.batch)
            rows = [self.shape.values(record, decision) for record, decision in zip(chunk, decisions, strict=True)]
            yield Judged(b"".join(map(as_line, rows)), Counter(map(word, rows)))


def _content(record: Record) -> Any:
    # The guard makes a decision of the error, so that its policy says what happens to a row that can't be read.
    error = record.row.error
    return record.row.content if error is None else functools.partial(_refuse, error)


def _refuse(error: ContentError, *, load: object) -> NoReturn:
    raise error
