"""Servers for the tests of the LangChain integration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integrations.langchain.apps import says
from tests.integrations.llm import Llm


@pytest.fixture
def serve() -> Iterator[Callable[..., Llm]]:
    """Starts servers: of what `apps.says` takes, or of a function of the request."""
    servers: list[Llm] = []

    def make(*answers: Any) -> Llm:
        servers.append(Llm(answers[0] if callable(answers[0]) else says(*answers)))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
