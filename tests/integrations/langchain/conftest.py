"""Servers for the tests of the LangChain integration."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integrations.llm import Llm

if any(importlib.util.find_spec(name) is None for name in ("langchain", "langchain_openai", "langchain_tests")):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def serve() -> Iterator[Callable[..., Llm]]:
    """Starts servers: of what `apps.says` takes, or of a function of the request."""
    from tests.integrations.langchain.apps import says

    servers: list[Llm] = []

    def make(*answers: Any) -> Llm:
        # ChatOpenAI keeps one async client for all event loops: what it left open would complain in another test.
        servers.append(Llm(answers[0] if callable(answers[0]) else says(*answers), keep_alive=False))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
