"""Without the extra `server` there is nothing here to test."""

from __future__ import annotations

from importlib.util import find_spec

NEEDED = ("fastapi", "limits", "prometheus_client", "uvicorn")

if not all(map(find_spec, NEEDED)):
    collect_ignore_glob = ["test_*.py"]
