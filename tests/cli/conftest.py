from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.cli import tiny_server


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    if importlib.util.find_spec("guardrail_vl.engines.remote") is None:
        pytest.skip("there is no remote engine")
    with tiny_server.serve() as base:
        yield base
