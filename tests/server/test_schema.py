"""The server against its own description: schemathesis makes requests of it, and none ends in a 500."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.server.serving import serving

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


def test_no_request_makes_a_server_error() -> None:
    tried = []
    with serving() as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()
            tried.append(operation.label)

            @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                case.call_and_validate(checks=CHECKS)

            ask()
    assert {"POST /v1/guard", "POST /v1/moderations", "POST /beta/litellm_basic_guardrail_api", "GET /readyz"} <= {
        *tried
    }
