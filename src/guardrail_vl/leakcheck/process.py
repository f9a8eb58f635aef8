"""Starts and stops the scripted upstream, sets its scenarios and asks what it saw. Kills its own process only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import guardrail_vl
from guardrail_vl.errors import EngineUnavailableError
from guardrail_vl.leakcheck.script import Reply, write_reply


@dataclass(frozen=True, slots=True)
class Record:
    """What the upstream saw of one scenario."""

    calls: int
    """Requests that send something (POST, web sockets), those to the judge not counted."""
    judged: int
    """Requests to the judge."""
    bodies: tuple[str, ...] = field(repr=False)
    """The requests' bodies."""
    own_client: bool
    """Whether a header came that only the caller's own HTTP client sets."""
    disconnected: bool
    """Whether a client went away before its reply was complete."""


class Upstream:
    """The upstream in a process of its own.

    Raises:
        EngineUnavailableError: It did not start.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        source = str(Path(guardrail_vl.__file__).parents[1])
        path = os.pathsep.join(p for p in (source, os.environ.get("PYTHONPATH", "")) if p)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "guardrail_vl.leakcheck.upstream"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise EngineUnavailableError("The scripted upstream did not start.")
        self._port = json.loads(line)["port"]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int | None:
        """The process; None when it does not run."""
        return None if self._process is None else self._process.pid

    def base_url(self, name: str) -> str:
        """Where a client finds the scenario's API."""
        return f"http://127.0.0.1:{self._port}/s/{name}/v1"

    def script(self, name: str, replies: Sequence[Reply]) -> str:
        """Set a scenario; gives its base URL."""
        self._ask(name, json.dumps([write_reply(reply) for reply in replies]).encode())
        return self.base_url(name)

    def record(self, name: str, *, until: Callable[[Record], bool] | None = None, seconds: float = 2.0) -> Record:
        """What was seen of a scenario; waits up to so many seconds for `until` to hold."""
        end = time.monotonic() + seconds
        while True:
            raw = self._ask(name, None)
            record = Record(**{**raw, "bodies": tuple(raw["bodies"])})
            if until is None or until(record) or time.monotonic() > end:
                return record
            time.sleep(0.02)

    def _ask(self, name: str, data: bytes | None) -> Any:
        url = f"http://127.0.0.1:{self._port}/control/{name}"
        # Loopback, at a port that we were told; a proxy of the environment has no business here.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, data=data, timeout=10) as reply:
            return json.load(reply)
