"""One guard over HTTP for two apps: a key for each, a stricter policy for one, and a record of every decision.

Needs the extras `embedded`, `server` and `audit`. Then: curl -H "X-API-Key: the-key-of-the-shop" \
    -d '{"prompt": "What is in this picture?"}' localhost:8080/v1/guard
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

from guardrail_vl import Guard, Policy
from guardrail_vl.audit import AuditLog
from guardrail_vl.server import ApiKey, Settings, create_app, run

SETTINGS = Settings(
    keys=(
        ApiKey.of("shop", "the-key-of-the-shop", rate="600/minute"),
        ApiKey.of("school", "the-key-of-the-school", policy="strict"),
    ),
    # For the school a picture that nobody judged to the end is as good as a harmful one.
    policies={"strict": Policy.of({"name": "strict", "unjudged": "block"})},
)


def make_app(audit: Path) -> FastAPI:
    """The app. The guard is made when it is up; until then it is not ready, and says so."""
    return create_app(Guard, SETTINGS, audit=AuditLog(audit))


def main() -> None:
    """Serve it on this machine."""
    run(make_app(Path("decisions.jsonl")))


if __name__ == "__main__":
    main()
