"""Reads the fenced blocks of a Markdown page. Knows nothing of what is in them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    ROOT / "examples" / "README.md",
    *sorted(ROOT.glob("integrations/**/README.md")),
)

_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)")
_NEEDS = re.compile(r"\s*<!-- needs: (?P<what>.*?) -->\s*")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Fence:
    """One fenced block."""

    page: Path
    line: int
    """Of its first line of content, from 1."""
    language: str
    title: str
    """The file name that the page gives it; empty: none."""
    needs: str
    """What `<!-- needs: … -->` on the line before says; empty: nothing."""
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fences(page: Path) -> Iterator[Fence]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        opening = _FENCE.fullmatch(lines[at])
        if opening is None:
            at += 1
            continue
        end = next(
            (i for i in range(at + 1, len(lines)) if lines[i].strip() == opening["ticks"]),
            None,
        )
        assert end is not None, f"{page.name}:{at + 1} opens a block that never ends"
        needs = _NEEDS.fullmatch(lines[at - 1]) if at else None
        title = _TITLE.search(opening["info"])
        yield Fence(
            page,
            at + 2,
            opening["info"].split()[0] if opening["info"].strip() else "",
            title[1] if title else "",
            needs["what"] if needs else "",
            textwrap.dedent("\n".join(lines[at + 1 : end])) + "\n",
        )
        at = end + 1


def marks(page: Path) -> int:
    """How many `<!-- needs: … -->` lines a page has, fenced or not."""
    return sum(_NEEDS.fullmatch(line) is not None for line in page.read_text(encoding="utf-8").splitlines())


ALL = tuple(fence for page in PAGES if page.exists() for fence in fences(page))
