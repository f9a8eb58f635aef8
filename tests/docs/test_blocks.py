"""Every fenced block of the README and the docs is tried: Python runs, commands run, configuration loads.

The Python blocks of a page run in order, in one namespace and one folder, as a reader would paste them into a notebook;
`# > text` lines are what the block must print. A block under `<!-- needs: EXTRA -->` is compiled, and skipped with the
reason where that extra can't be used. Files that a page shows with a `title` are written to the page's folder.
`OpenAI()` finds a server that answers by rote.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import yaml

import guardrail_vl
from tests.cli import tiny_server
from tests.docs import llm
from tests.docs.fences import ALL, PAGES, ROOT, Fence, fences, marks

EXAMPLES = ROOT / "examples"
SERVER = "http://localhost:8000/v1"
CHECKPOINT = "yueliu1999/GuardReasoner-VL-Eco-3B"

# Where this package was imported from: commands run elsewhere, and a path may have been given relative to here.
IMPORTED_FROM = str(Path(guardrail_vl.__file__).parents[1])

PYTHON = [fence for fence in ALL if fence.language == "python"]
SHELL = [fence for fence in ALL if fence.language in ("bash", "console")]
FILES = [fence for fence in ALL if fence.language in ("yaml", "toml", "json")]
# Blocks to read: trees, transcripts of a prompt, tables in text.
TO_READ = ("text", "mermaid")


# ---- what a block needs -------------------------------------------------------------------------------------------


def _without(module: str, extra: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError:
        return f"the extra {extra!r} is not installed"
    return ""


def _without_vllm() -> str:
    from guardrail_vl.engines.vllm import vllm_available

    usable, why = vllm_available()
    return "" if usable else why


def _without_new_openai() -> str:
    import openai

    return "" if int(openai.__version__.partition(".")[0]) >= 2 else "openai 1 has not all of this"


def _without_langchain() -> str:
    missing_extra = _without("langchain", "langchain")
    return missing_extra or ("langchain-openai can't be used" if _without("langchain_openai", "langchain") else "")


def _without_evaluation() -> str:
    packages = ("jinja2", "matplotlib", "sklearn", "scipy")
    return next((found for package in packages if (found := _without(package, "evaluation"))), "")


NEEDS: dict[str, Callable[[], str]] = {
    "audit": lambda: _without("sqlalchemy", "audit"),
    "embedded": lambda: _without("guardrail_vl.engines.embedded", "embedded"),
    "evaluation": _without_evaluation,
    "langchain": _without_langchain,
    "local": lambda: _without("guardrail_vl.engines.transformers", "local"),
    "otel": lambda: _without("guardrail_vl.telemetry", "otel"),
    "redis": lambda: _without("guardrail_vl.cache.redis", "redis"),
    "ray": lambda: _without("ray", "ray") or _without("guardrail_vl.engines.embedded", "embedded"),
    "server": lambda: (
        _without("guardrail_vl.server", "server") or _without("guardrail_vl.engines.embedded", "embedded")
    ),
    "train": lambda: _without_evaluation() or _without("trl", "train") or _without("peft", "train"),
    "vllm": _without_vllm,
    "openai>=2": _without_new_openai,
}


@cache
def missing(need: str) -> str:
    """Why a block can't run here; empty if it can."""
    return NEEDS[need]() if need else ""


# ---- one page: a folder and a namespace ---------------------------------------------------------------------------


@dataclass
class Page:
    """A page on its way from the first block to the last."""

    folder: Path
    queue: list[Fence]
    url: str
    checkpoint: Callable[[], Path]
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def upto(self, fence: Fence) -> None:
        """Bring the page to this block: earlier ones run first, later ones wait."""
        while self.queue and self.queue[0].line <= fence.line:
            following = self.queue.pop(0)
            if following.title:
                (self.folder / following.title).write_text(following.text, encoding="utf-8")
            elif following.language == "python" and not missing(following.needs):
                self._run(following)

    def _run(self, fence: Fence) -> None:
        if CHECKPOINT in fence.text:
            self.place_checkpoint()
        code = compiled(fence, self.url)
        printed = io.StringIO()
        with redirect_stdout(printed):
            result = eval(code, self.names)
            if inspect.iscoroutine(result):
                asyncio.run(result)
        if wanted := outputs_of(fence):
            assert [line.strip() for line in printed.getvalue().splitlines()] == wanted, fence.place

    def place_checkpoint(self) -> None:
        """Put a tiny real checkpoint where the docs name a hub id: a folder of that name is what gets loaded."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            path.parent.mkdir()
            path.symlink_to(self.checkpoint(), target_is_directory=True)


_OUTPUT = re.compile(r" *# ?>(.*)")


def outputs_of(fence: Fence) -> list[str]:
    """What a Python block says that it prints."""
    return [found[1].strip() for line in fence.text.splitlines() if (found := _OUTPUT.fullmatch(line))]


def compiled(fence: Fence, url: str = SERVER) -> CodeType:
    """The block's code, with its lines numbered as on the page; `await` may stand at the top, as in a notebook."""
    source = "\n" * (fence.line - 1) + fence.text.replace(SERVER, url)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: CodeType = compile(source, str(fence.page), "exec", flags=flags, dont_inherit=True)
    return code


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with tiny_server.serve() as base:
        yield base


@pytest.fixture(scope="session")
def openai_url() -> Iterator[str]:
    with llm.serve() as server:
        yield server.url


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, openai_url: str) -> None:
    """What `OpenAI()` finds."""
    monkeypatch.setenv("OPENAI_BASE_URL", openai_url)
    monkeypatch.setenv("OPENAI_API_KEY", "no-key")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    @cache
    def build() -> Path:
        from tests.tiny_checkpoint import build_checkpoint

        return build_checkpoint(tmp_path_factory.mktemp("checkpoint"))

    return build


@pytest.fixture(scope="session")
def page_of(
    tmp_path_factory: pytest.TempPathFactory, url: str, checkpoint: Callable[[], Path]
) -> Callable[[Fence], Page]:
    @cache
    def make(path: Path) -> Page:
        folder = tmp_path_factory.mktemp(path.stem)
        for name in ("door.png", "note.png", "policy.yaml"):
            shutil.copy(EXAMPLES / name, folder)
        shutil.copytree(EXAMPLES, folder / "examples")
        return Page(folder, list(fences(path)), url, checkpoint)

    return lambda fence: make(fence.page)


# ---- the tests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fence", PYTHON, ids=lambda fence: fence.place)
def test_python_block(fence: Fence, page_of: Callable[[Fence], Page], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(fence)
    if why := missing(fence.needs):
        pytest.skip(why)
    page = page_of(fence)
    monkeypatch.chdir(page.folder)
    page.upto(fence)


@pytest.mark.parametrize("fence", FILES, ids=lambda fence: fence.place)
def test_configuration_block_is_well_formed(fence: Fence) -> None:
    readers: dict[str, Callable[[str], object]] = {"yaml": yaml.safe_load, "toml": tomllib.loads, "json": json.loads}
    value = readers[fence.language](fence.text)
    assert value
    if fence.title.startswith("policy"):
        from guardrail_vl import Policy

        assert isinstance(value, dict)
        Policy.of(value)


# Commands that install, fetch or serve: they are shown, and can't run in a test.
NOT_RUN = ("pip", "python", "git", "vllm", "llama-server", "transformers", "mkdocs", "uv", "just", "curl", "taskset")
_COMMAND = re.compile(r"(?<![\w-])guardrail-vl\b")


def commands(fence: Fence) -> list[str]:
    """The commands of a block, each on one line."""
    lines = fence.text.replace("\\\n", " ").splitlines()
    if fence.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [part for line in lines for part in line.split(" && ")]


def outputs(fence: Fence) -> list[str]:
    """What a console block shows after each command."""
    parts = re.split(r"^\$ .*(?:(?<=\\)\n.*)*\n", fence.text, flags=re.MULTILINE)
    return [part.strip() for part in parts[1:]]


def is_run(command: str) -> bool:
    return bool(_COMMAND.search(command)) and command.split()[0] not in NOT_RUN


# A server runs until it is stopped: it is started, on another port and on loopback, and stopped when it listens.
_SERVES = re.compile(r"(?<![\w-])guardrail-vl (serve|review)\b")


def start_and_stop(command: str, page: Page) -> str:
    """What a server says until it listens; it must come so far."""
    words = re.sub(r"--host \S+|--port \S+", "", _SERVES.sub(r"\1", command)).split()
    process = subprocess.Popen(
        [sys.executable, "-m", "guardrail_vl", *words, "--port", "0"],
        cwd=page.folder,
        env={**os.environ, "PYTHONPATH": IMPORTED_FROM, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said += line
            if re.search(r"(Listening on|Review at) http", line):
                return said
        raise AssertionError(f"{command} ended before it listened: {said}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("fence", SHELL, ids=lambda fence: fence.place)
def test_shell_block(
    fence: Fence, page_of: Callable[[Fence], Page], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = commands(fence)
    assert shown
    ours = [command for command in shown if is_run(command)]
    others = [command for command in shown if not is_run(command)]
    for command in others:
        assert command.split()[0] in (*NOT_RUN, "echo", ".", "export"), f"{fence.place}: nothing tries {command!r}"
    if not ours:
        return
    if why := missing(fence.needs):
        pytest.skip(why)
    page = page_of(fence)
    monkeypatch.chdir(page.folder)
    page.upto(fence)
    if CHECKPOINT in fence.text:
        page.place_checkpoint()
    for command in [command for command in ours if _SERVES.search(command)]:
        start_and_stop(command, page)
        ours.remove(command)
    runnable = [command for command in shown if command in ours or command.startswith("echo $?")]
    found = run_in_bash(runnable, page, tmp_path)
    if fence.language == "console":
        assert [masked(text) for text, _ in found] == [masked(text) for text in outputs(fence)], fence.place
    else:
        for command, (text, status) in zip(runnable, found, strict=True):
            assert status == 0, f"{fence.place}: {command} ended with {status}: {text}"


def run_in_bash(lines: list[str], page: Page, scratch: Path) -> list[tuple[str, int]]:
    """Run commands one after the other in one shell; the output and the status of each."""
    program = scratch / "bin" / "guardrail-vl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m guardrail_vl "$@"\n')
    program.chmod(0o755)
    mark = "@@@"
    script = "".join(f"{line}\n__s=$?; echo; echo {mark} $__s; (exit $__s)\n" for line in lines)
    done = subprocess.run(
        ["bash", "-c", script.replace(SERVER, page.url)],
        cwd=page.folder,
        env={**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": IMPORTED_FROM},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )
    pieces = re.split(rf"^{mark} (\d+)\n", done.stdout, flags=re.MULTILINE)
    return [(text.strip(), int(status)) for text, status in zip(pieces[::2], pieces[1::2], strict=False)]


def masked(text: str) -> str:
    """The text without what differs from machine to machine: numbers, and how cells of a table are spaced."""
    lines = (re.sub(r"\s{2,}", "  ", re.sub(r"\d+(?:\.\d+)*", "0", line)).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


# ---- nothing is left out ------------------------------------------------------------------------------------------


def test_every_block_says_what_it_is() -> None:
    known = {"python", "bash", "console", "yaml", "toml", "json", *TO_READ}
    assert [fence.place for fence in ALL if fence.language not in known] == []


def test_every_mark_stands_above_a_block_and_names_what_we_know() -> None:
    assert {fence.needs for fence in ALL} - {""} <= NEEDS.keys()
    for page in PAGES:
        assert marks(page) == sum(bool(fence.needs) for fence in fences(page)), page.name


def test_there_are_blocks() -> None:
    assert {fence.page.name for fence in PYTHON} >= {"README.md", "quickstart.md", "images.md", "policies.md"}
    assert sum(map(len, map(outputs_of, PYTHON))) > 100
    assert any(is_run(command) for fence in SHELL for command in commands(fence))


_LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:|#)([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = [link for link in _LINK.findall(text) if not (page.parent / link).exists()]
    assert broken == []
