from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import guardrail_vl
from guardrail_vl import Guard
from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation._folder import Manifest, RunWriter
from guardrail_vl.evaluation.cases import CaseSet
from guardrail_vl.evaluation.running import Progress, Run, run
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.testing import ScriptedEngine, by_keyword
from tests.evaluation.asked import MODEL, Server, ids, make_guard, questions, serve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as one:
        yield one


def judged(prompt: Prompt) -> Completion:
    said = by_keyword("bomb")(prompt)
    assert isinstance(said, Completion)
    return said


# ---- going on -----------------------------------------------------------------------------------------------------


class Stops(ScriptedEngine):
    """Raises KeyboardInterrupt, as Ctrl-C does, at one call."""

    stop_at = 3

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        if self.calls + 1 == self.stop_at:
            self.calls += 1
            raise KeyboardInterrupt
        return super().generate(prompts, deadline=deadline)


def test_what_was_done_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    engine = Stops(by_keyword("bomb"))
    cases = questions(10)
    with pytest.raises(KeyboardInterrupt):
        run(Guard(engine=engine), [cases], tmp_path, batch=2)
    before = Run.load(tmp_path)
    assert (ids(before.records), before.missing) == (["q0", "q1", "q2", "q3"], 6)
    engine.prompts.clear()
    done = run(Guard(engine=engine), [cases], tmp_path, batch=2)
    assert ids(done.records) == [f"q{i}" for i in range(10)]
    assert done.records[:4] == before.records
    assert len(engine.prompts) == 6
    assert done.started == before.started


def test_what_threads_had_done_is_kept(tmp_path: Path) -> None:
    """One thread fails; what another one does after that, before anyone looks, is written all the same."""
    begun, failing, beyond = threading.Event(), threading.Event(), threading.Event()

    def script(prompt: Prompt) -> Completion:
        asked = prompt.messages[-1].text
        if "question 1" in asked:
            assert begun.wait(20)
            failing.set()
            raise KeyboardInterrupt
        if "question 2" in asked:
            assert failing.wait(20)
            time.sleep(0.1)
        if "question 3" in asked:
            beyond.set()
        return judged(prompt)

    def told(progress: Progress) -> None:
        begun.set()
        assert beyond.wait(20)

    with pytest.raises(KeyboardInterrupt):
        run(make_guard(script), [questions(4)], tmp_path, batch=1, workers=2, progress=told)
    kept = set(ids(Run.load(tmp_path).records))
    assert {"q0", "q2"} <= kept <= {"q0", "q2", "q3"}


def test_a_write_that_was_cut_short_spoils_no_later_one(tmp_path: Path) -> None:
    done = run(make_guard(), [questions(2)], tmp_path / "done")
    folder = tmp_path / "new"
    with RunWriter(folder, done.cohort, [questions(2)]) as writer:
        writer.append(done.records[:1])
        with (folder / "records.jsonl").open("ab") as file:
            file.write(b'{"set": "quest')
        writer.append(done.records[1:])
    assert Run.load(folder).records == done.records


def test_records_are_on_the_disk_when_they_count_as_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noting(file: int) -> None:
        fsync(file)
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", noting)
    sizes: list[int] = []
    told = lambda progress: sizes.append((tmp_path / "records.jsonl").stat().st_size)  # noqa: E731
    run(make_guard(), [questions(4)], tmp_path, batch=2, progress=told)
    assert len(sizes) == 2
    assert set(sizes) <= set(synced)


@pytest.mark.parametrize("cut", [1, 2, 30, "nul", "garbage"])
def test_a_torn_end_is_cut_off(cut: int | str, tmp_path: Path) -> None:
    cases = questions(6)
    first = run(make_guard(), [cases], tmp_path)
    file = tmp_path / "records.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept = 6 if isinstance(cut, str) else 5
    torn = {"nul": whole + b"\0" * 4096, "garbage": whole + b'{"set": "ques\n{"half'}
    file.write_bytes(whole[:-cut] if isinstance(cut, int) else torn[cut])
    assert Run.load(tmp_path).records == first.records[:kept]
    guard = make_guard()
    again = run(guard, [cases], tmp_path)
    assert isinstance(guard.engine, ScriptedEngine)
    assert len(guard.engine.prompts) == 6 - kept
    assert ids(again.records) == ids(first.records)
    assert len(file.read_bytes().splitlines()) == len(lines)


def test_damage_before_the_end_is_told(tmp_path: Path) -> None:
    run(make_guard(), [questions(4)], tmp_path)
    file = tmp_path / "records.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1][:20] + lines[2] + lines[3])
    with pytest.raises(ConfigurationError, match=r"Line 2 of records.jsonl is damaged"):
        Run.load(tmp_path)
    with pytest.raises(ConfigurationError, match=r"Line 2 of records.jsonl is damaged"):
        run(make_guard(), [questions(4)], tmp_path)
    file.write_bytes(b"".join([*lines, lines[1]]))
    with pytest.raises(ConfigurationError, match="two records of 'q1' in 'questions'"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"speed": "fast"}, r"differs in speed \('reason' there, 'fast' now\)\. Use another folder"),
        ({"policy": {"prompt": "annotate"}}, r"differs in policy \('[0-9a-f]{12}' there, '[0-9a-f]{12}' now\)"),
    ],
)
def test_another_guards_folder_is_refused(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    first = run(make_guard(), [questions(2)], tmp_path)
    with pytest.raises(ConfigurationError, match=says):
        run(make_guard(**settings), [questions(2)], tmp_path)
    assert Run.load(tmp_path) == first


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ([questions(3)], r"the set questions \(2 samples @[0-9a-f]{16} there, 3 @[0-9a-f]{16} now\)"),
        ([questions(2, "other")], r"the sets \(there also questions\); the sets \(now also other\)"),
        ([questions(2), questions(2, "other")], r"the sets \(now also other\)"),
    ],
)
def test_other_datas_folder_is_refused(sets: list[CaseSet], says: str, tmp_path: Path) -> None:
    run(make_guard(), [questions(2)], tmp_path)
    with pytest.raises(ConfigurationError, match=says):
        run(make_guard(), sets, tmp_path)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"There is no run in .*: it has no run.json"):
        Run.load(tmp_path)
    (tmp_path / "records.jsonl").write_text("mine\n")
    with pytest.raises(ConfigurationError, match=r"has a records.jsonl and no run.json"):
        run(make_guard(), [questions(2)], tmp_path)
    assert (tmp_path / "records.jsonl").read_text() == "mine\n"
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"run.json is damaged, or of another version"):
        Run.load(tmp_path)


def test_another_layout_is_told(tmp_path: Path) -> None:
    done = run(make_guard(), [questions(1)], tmp_path)
    later = Manifest(done.cohort, dict(done.sets), done.started, layout=9)
    (tmp_path / "run.json").write_text(later.to_json())
    with pytest.raises(ConfigurationError, match="is of layout 9; this version reads 1"):
        Run.load(tmp_path)


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigurationError, match=r"The run's folder can't be written: (File exists|Not a directory)"):
        run(make_guard(), [questions(1)], tmp_path / "x")


# ---- other processes ----------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from guardrail_vl import Guard
from guardrail_vl.evaluation.running import run
from tests.evaluation.asked import MODEL, questions

url, folder, count, batch, workers = sys.argv[1:]
with Guard.remote(url, model=MODEL) as guard:
    run(guard, [questions(int(count))], Path(folder), batch=int(batch), workers=int(workers))
"""


def start(*arguments: object, code: str = CHILD) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what: Any, process: subprocess.Popen[str]) -> bool:
    """Whether it came true before the process ended."""
    until = time.monotonic() + 60
    while not what():
        if process.poll() is not None:
            return False
        assert time.monotonic() < until
        time.sleep(0.002)
    return True


@pytest.mark.parametrize(("batch", "workers"), [(4, 3), (1, 1)])
def test_killed_at_random_moments_no_turn_is_judged_twice_and_none_is_lost(
    batch: int, workers: int, server: Server, tmp_path: Path
) -> None:
    count, kills, chance = 100, 0, random.Random(7)
    server.delay = 0.005
    recorded: set[int] = set()
    partial = 0
    while True:
        begun = len(server.asked)
        process = start(server.url, tmp_path, count, batch, workers)
        enough = begun + chance.randint(1, 30)
        alive = kills < 4 and wait_for(lambda: len(server.asked) >= enough, process)  # noqa: B023
        if alive:
            time.sleep(chance.random() / 50)
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, said = process.communicate(timeout=60)
        server.settle()
        # The turns whose verdicts were kept are never asked about again.
        assert not recorded & set(server.asked[begun:])
        now = {int(one.id[1:]) for one in Run.load(tmp_path).records}
        assert recorded <= now
        recorded = now
        partial += 0 < len(now) < count
        if process.returncode == 0:
            break
        assert alive, said
    assert kills >= 3
    assert partial >= 3, "it was killed before anything was kept, or after everything was"
    done = Run.load(tmp_path)
    assert Counter(ids(done.records)) == Counter(f"q{i}" for i in range(count))
    assert all(record.label is record.gold for record in done.records)
    # Only what was under way when it was killed had to be asked again.
    assert len(server.asked) - count <= kills * batch * workers
    assert set(server.asked) == set(range(count))


def test_two_processes_on_one_folder_are_refused(server: Server, tmp_path: Path) -> None:
    server.delay = 0.05
    first = start(server.url, tmp_path, 80, 1, 1)
    assert wait_for((tmp_path / "records.jsonl").exists, first), first.communicate()
    with (
        Guard.remote(server.url, model=MODEL) as guard,
        pytest.raises(ConfigurationError, match=rf"Process {first.pid} is writing to this run's folder"),
    ):
        run(guard, [questions(80)], tmp_path, batch=1)
    # A dead process holds nothing, though its lock file says it does.
    first.kill()
    first.communicate(timeout=30)
    assert (tmp_path / "run.lock").read_text() == str(first.pid)
    server.delay = 0.0
    with Guard.remote(server.url, model=MODEL) as guard:
        assert run(guard, [questions(80)], tmp_path, batch=1).missing == 0
    assert (tmp_path / "run.lock").read_text() == ""


def test_one_process_can_not_open_a_folder_twice(tmp_path: Path) -> None:
    done = run(make_guard(), [questions(2)], tmp_path)
    with (
        RunWriter(tmp_path, done.cohort, [questions(2)]),
        pytest.raises(ConfigurationError, match=f"Process {os.getpid()} is writing"),
    ):
        run(make_guard(), [questions(2)], tmp_path)
    assert run(make_guard(), [questions(2)], tmp_path).records == done.records


FULL = """
import resource, sys
from pathlib import Path
from guardrail_vl import Guard
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation.running import run
from guardrail_vl.testing import ScriptedEngine, by_keyword
from tests.evaluation.asked import questions

resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    run(Guard(engine=ScriptedEngine(by_keyword("bomb"))), [questions(50)], Path(sys.argv[1]), batch=4)
except ConfigurationError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_no_more_room(tmp_path: Path) -> None:
    process = start(tmp_path, code=FULL)
    _, said = process.communicate(timeout=60)
    assert said.startswith("The run's folder can't be written: File too large."), said
    assert "What was judged before is kept" in said
    assert (tmp_path / "records.jsonl").stat().st_size == 5000, "the last line is torn"
    kept = ids(Run.load(tmp_path).records)
    assert 0 < len(kept) < 50
    done = run(make_guard(), [questions(50)], tmp_path, batch=4)
    assert ids(done.records)[: len(kept)] == kept
    assert Counter(ids(done.records)) == Counter(f"q{i}" for i in range(50))


def test_every_batch_is_on_the_disk_before_the_next(tmp_path: Path) -> None:
    lines: list[int] = []

    def script(prompt: Prompt) -> Completion:
        lines.append(len((tmp_path / "records.jsonl").read_bytes().splitlines()))
        return judged(prompt)

    run(make_guard(script), [questions(6)], tmp_path, batch=2)
    assert lines == [0, 0, 2, 2, 4, 4]


def test_run_json_says_what_the_run_is_of(tmp_path: Path) -> None:
    done = run(make_guard(), [questions(3)], tmp_path)
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["sets"] == {"questions": {"hash": questions(3).hash, "size": 3}}
    assert told["cohort"]["version"] == guardrail_vl.__version__
    assert told["started"] == done.started
    assert sorted(file.name for file in tmp_path.iterdir()) == ["records.jsonl", "run.json", "run.lock"]
