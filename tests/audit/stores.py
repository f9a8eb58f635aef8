"""Stores for these tests: JSON lines, SQLite, and a PostgreSQL of their own where one can be started."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from guardrail_vl import Guard
from guardrail_vl.audit import AuditLog
from guardrail_vl.audit.records import AuditRecord
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Action, Stage


def guard(log: AuditLog) -> Guard:
    """A guard that blocks bombs and tells a log."""
    return Guard(engine=ScriptedEngine(by_keyword("bomb")), pre_prompt=log, post_response=log)


def record(id: str, *, days: float = 0.0, action: Action = Action.ALLOW, app: str = "") -> AuditRecord:
    """A record that is some days old."""
    time = datetime.now(UTC) - timedelta(days=days)
    return AuditRecord(id=id, time=time, app=app, stage=Stage.PROMPT, action=action, reason="Said so.")


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a server that lives as long as the block; skips the test where none can."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if os.name != "posix" or not programs:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    folder = Path(programs[-1]).parent
    home = tempfile.mkdtemp(prefix="gvl-pg-", dir="/tmp")
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses root
        setpriv = shutil.which("setpriv")
        if setpriv is None or subprocess.run(["id", "postgres"], capture_output=True, check=False).returncode:
            pytest.skip("PostgreSQL refuses root, and there is no other user for it")
        shutil.chown(home, "postgres", "postgres")
        as_user = [setpriv, "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = f"{home}/data"
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    try:
        _done([*as_user, f"{folder}/initdb", "-D", data, "-U", "audit", "-A", "trust", "--no-sync"], home)
        _done([*as_user, f"{folder}/pg_ctl", "-D", data, "-w", "-l", f"{home}/log", "-o", options, "start"], home)
        yield f"postgresql+psycopg://audit@127.0.0.1:{port}/postgres"
    finally:
        stop = [*as_user, f"{folder}/pg_ctl", "-D", data, "-m", "immediate", "stop"]
        subprocess.run(stop, cwd=home, capture_output=True, check=False, timeout=60)
        shutil.rmtree(home, ignore_errors=True)


def _done(command: list[str], home: str) -> None:
    # Not through pipes: the server would keep them open.
    with open(f"{home}.out", "wb") as out:
        status = subprocess.run(command, cwd=home, stdout=out, stderr=out, check=False, timeout=120).returncode
    said = Path(f"{home}.out").read_text(errors="replace")
    os.remove(f"{home}.out")
    if status:
        pytest.skip(f"PostgreSQL can't be started here: {said[-300:]}")
