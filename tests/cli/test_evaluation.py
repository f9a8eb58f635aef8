from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from guardrail_vl.cli import app
from tests.evaluation.asked import MODEL, Server, serve

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from guardrail_vl.evaluation.readers import request_group
from guardrail_vl.evaluation.running import Run

ROOT = Path(__file__).parents[2]
PROMPTS, ANSWERS = "shared_strongreject", "shared_safe_rlhf"


def tried(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def row(number: int, **labels: str | None) -> dict[str, Any]:
    bad = "a bomb" if number % 3 == 0 else "a cake"
    answered = "response" in labels
    return {
        "id": f"g{number}.x.{number}",
        "source": "x",
        "task_inputs": {"prompt": f"question {number}: {bad}?", "images": [], "response": "No." if answered else None},
        "labels": {"prompt": None, "response": None, "refusal": None, **labels},
        "category": "kitchen",
        "license": "MIT",
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    asked = [row(i, prompt="harmful" if i % 3 == 0 else "unharmful") for i in range(30)]
    answered = [row(i, response="unharmful") for i in range(6)]
    for name, rows in (("strongreject", asked), ("safe_rlhf", answered)):
        text = "".join(f"{json.dumps(one)}\n" for one in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as one:
        yield one


def start(*arguments: object, **settings: Any) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    # Whoever runs the tests in the background ignores Ctrl-C, and a child inherits that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    run = "import sys; from guardrail_vl.cli import main; sys.argv[0] = 'guardrail-vl'; main()"
    command = [sys.executable, "-c", f"{heed}; {run}", "eval", *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, text=True, **settings)


# ---- run ----------------------------------------------------------------------------------------------------------


def test_a_run_is_judged_told_and_reported(server: Server, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    got = tried("run", MODEL, "--url", server.url, "--data", data, "--out", out, "--batch", "8", "--jobs", "2")
    assert got.exit_code == 0, got.output
    lines = [line.split() for line in got.stdout.splitlines()]
    assert lines[0] == ["set", "task", "n", "F1", "precision", "recall", "FPR", "parse", "failures", "p50"]
    by_set = {line[0]: line for line in lines[1:3]}
    assert by_set[PROMPTS][1:8] == ["prompt", "30", "100.0", "100.0", "100.0", "0.0", "0.0"]
    assert by_set[ANSWERS][1:3] == ["response", "6"]
    assert got.stdout.rstrip().endswith(str(out / "report.html"))
    assert (out / "report.html").is_file()
    assert "36 of 36 samples in " in got.stderr
    done = Run.load(out)
    assert (len(done.records), done.missing) == (36, 0)
    assert done.cohort.model == MODEL
    assert Counter(server.asked) == Counter([*range(30), *range(6)])


def test_the_same_command_goes_on(server: Server, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("run", MODEL, "--url", server.url, "--data", data, "--set", PROMPTS)
    assert tried(*command).exit_code == 0
    (folder,) = (tmp_path / "eval-runs").iterdir()
    assert folder.name.startswith("noting-guard-reason-")
    records = folder / "records.jsonl"
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:12]))
    server.asked.clear()
    got = tried(*command)
    assert got.exit_code == 0, got.output
    assert "12 of 30 samples were judged before" in got.stderr
    assert len(server.asked) == 18
    # Other data or another policy is another run.
    assert tried(*command, "--limit", "3").exit_code == 0
    assert len(list((tmp_path / "eval-runs").iterdir())) == 2


def test_the_json_says_the_same(server: Server, data: Path, tmp_path: Path) -> None:
    command = ("run", MODEL, "--url", server.url, "--data", data, "--out", tmp_path / "out", "--limit", "6", "--json")
    value = json.loads(tried(*command).stdout)
    scores = {(one["set"], one["task"]): one for one in value["scores"]}
    assert {key: one["n"] for key, one in scores.items()} == {(PROMPTS, "prompt"): 6, (ANSWERS, "response"): 6}
    assert (scores[PROMPTS, "prompt"]["f1"], scores[PROMPTS, "prompt"]["fpr"]) == (1.0, 0.0)
    assert value["runs"][0]["cohort"]["engine"] == "RemoteEngine"
    assert value["runs"][0]["missing"] == 0


def test_nothing_of_the_samples_is_kept_where_it_is_not_wanted(server: Server, data: Path, tmp_path: Path) -> None:
    # A question that is judged wrongly, so that the report has something to show.
    rows = [row(1, prompt="harmful"), row(3, prompt="harmful"), row(5, prompt="unharmful")]
    (data / "strongreject.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows), encoding="utf-8")
    command = ("run", MODEL, "--url", server.url, "--data", data, "--set", PROMPTS)
    for name, options in (("with", ()), ("without", ("--no-text",))):
        out = tmp_path / name
        assert tried(*command, "--out", out, *options).exit_code == 0
        written = "".join(file.read_text(encoding="utf-8") for file in out.iterdir())
        assert ("question 1" in written) == (name == "with")
        assert ("Looked for a word" in written) == (name == "with")


def test_the_embedded_guard_needs_no_model(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    got = tried("run", "--data", data, "--out", tmp_path / "out", "--limit", "2")
    assert got.exit_code == 0, got.output
    assert Run.load(tmp_path / "out").cohort.engine == "EmbeddedEngine"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "mine.csv"
    rows = [
        f"q{i},question {i}: {'a bomb' if i % 2 else 'a cake'}?,{'harmful' if i % 2 else 'safe'},me" for i in range(6)
    ]
    file.write_text("\n".join(["id,prompt,label,author", *rows]), encoding="utf-8")
    return file


def test_a_table_of_ones_own(server: Server, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    got = tried("run", MODEL, "--url", server.url, "--table", table, "--out", out)
    assert got.exit_code == 0, got.output
    assert "Columns of mine.csv that are not read: author" in got.stderr
    assert got.stdout.splitlines()[1].split()[:5] == ["mine", "prompt", "6", "100.0", "100.0"]
    shown = tried("report", out, "--table", table, "--out", tmp_path / "again")
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "again" / "report.html").read_bytes() == (out / "report.html").read_bytes()


def test_a_table_beside_benchmarks(server: Server, data: Path, table: Path, tmp_path: Path) -> None:
    arguments = ("run", MODEL, "--url", server.url, "--data", data, "--set", PROMPTS, "--table", table, "--limit", "4")
    assert tried(*arguments, "--out", tmp_path / "out").exit_code == 0
    assert {name: info.size for name, info in Run.load(tmp_path / "out").sets.items()} == {PROMPTS: 4, "mine": 4}
    got = tried("report", tmp_path / "out", "--data", data, "--table", table)
    assert got.exit_code == 0, got.output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt\nhello", "mine.csv has no column 'label'."),
        ("label\nharmful", "No column is named that could be judged."),
        ("prompt,label\nhello,bad", "mine.csv, row 1: "),
    ],
)
def test_a_table_that_can_not_be_read(text: str, says: str, table: Path) -> None:
    table.write_text(text, encoding="utf-8")
    got = tried("run", "--table", table)
    assert got.exit_code == 2
    assert says in got.stderr


def test_what_was_trained_on_is_left_out(server: Server, data: Path, tmp_path: Path) -> None:
    listed = tmp_path / "seen.txt"
    listed.write_text(
        "\n".join(request_group(f"question {i}: {'a bomb' if i % 3 == 0 else 'a cake'}?") for i in range(6))
    )
    command = ("run", MODEL, "--url", server.url, "--data", data, "--out", tmp_path / "out", "--seen", listed)
    got = tried(*command)
    assert got.exit_code == 0, got.output
    assert "Left out: 12 samples of 2 sets, which seen.txt lists." in got.stderr
    assert f"Nothing is left of: {ANSWERS}" in got.stderr
    assert sorted(server.asked) == list(range(6, 30))
    got = tried(*command, "--set", ANSWERS)
    assert got.exit_code == 2
    assert "All samples are listed in seen.txt" in got.stderr


def test_disguises_are_judged_beside_the_plain(server: Server, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("run", MODEL, "--url", server.url, "--data", data, "--limit", "6", "--out", out)
    got = tried(*command, "--transform", "upper")
    assert got.exit_code == 0, got.output
    # The server looks for the word as it is, so capitals hide it.
    by_set = {line.split()[0]: line.split() for line in got.stdout.splitlines()[1:-1]}
    assert [by_set[name][3] for name in (PROMPTS, f"{PROMPTS}+upper")] == ["100.0", "0.0"]
    assert set(by_set) == {PROMPTS, f"{PROMPTS}+upper", ANSWERS, f"{ANSWERS}+upper"}
    assert "There is no transform 'loud'." in tried(*command, "--transform", "loud").stderr
    shown = tried("report", out, "--data", data, "--out", tmp_path / "again")
    assert shown.exit_code == 0, shown.output
    assert "QUESTION" in (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    drawn = ("run", MODEL, "--url", server.url, "--data", data, "--set", ANSWERS, "--transform", "typographic")
    got = tried(*drawn, "--out", tmp_path / "drawn")
    assert got.exit_code == 0, got.output
    assert f"Left out: No sample of '{ANSWERS}' can be made typographic." in got.stderr


def test_baselines_stand_in_the_same_table(server: Server, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("run", MODEL, "--url", server.url, "--data", data, "--set", PROMPTS, "--out", out)
    got = tried(*command, "--baseline", "constant-harmful", "--baseline", "keywords")
    assert got.exit_code == 0, got.output
    rows = {line.split()[2]: line.split()[3:8] for line in got.stdout.splitlines()[1:4]}
    assert rows["out"] == ["30", "100.0", "100.0", "100.0", "0.0"]
    assert rows["constant-harmful"] == ["30", "50.0", "33.3", "100.0", "100.0"]
    assert rows["keywords"] == ["30", "100.0", "100.0", "100.0", "0.0"]
    assert "constant-harmful" in (out / "report.md").read_text(encoding="utf-8")
    got = tried(*command, "--baseline", "tarot")
    assert got.exit_code == 2
    assert "There is no baseline 'tarot'." in got.stderr


def test_a_server_that_is_down_is_an_error(server: Server, data: Path, tmp_path: Path) -> None:
    server.status = 503
    command = ("run", MODEL, "--url", server.url, "--data", data, "--out", tmp_path / "out", "--deadline", "0.05")
    got = tried(*command)
    assert got.exit_code == 2
    assert "Error: The engine gave no answer to" in got.stderr
    assert "the same command goes on from there" in got.stderr
    assert "Traceback" not in got.output


def test_another_runs_folder_is_refused(server: Server, data: Path, tmp_path: Path) -> None:
    command = ("run", MODEL, "--url", server.url, "--data", data, "--out", tmp_path / "out")
    assert tried(*command, "--limit", "2").exit_code == 0
    got = tried(*command)
    assert got.exit_code == 2
    assert "Error: The folder holds another run. It differs in the set " in got.stderr
    assert "Use another folder" in got.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "nothing_such"), "There is no benchmark 'nothing_such'."),
        (("--set", "toxic_chat"), "does not hold 'toxic_chat'."),
        (("--set", PROMPTS, "--set", "paper"), "does not hold 'paper'."),
    ],
)
def test_a_set_that_is_not_there(arguments: tuple[str, ...], says: str, data: Path) -> None:
    got = tried("run", "--data", data, *arguments)
    assert got.exit_code == 2
    assert says in got.stderr


def test_a_folder_without_data(tmp_path: Path) -> None:
    assert "holds no benchmark" in tried("run", "--data", tmp_path).stderr
    assert tried("run", "--data", tmp_path / "none").exit_code == 2
    assert "There is nothing to judge." in tried("run").stderr
    assert "--set names benchmarks" in tried("run", "--set", PROMPTS).stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("jobs", [1, 3])
def test_ctrl_c_keeps_what_is_done(jobs: int, server: Server, data: Path, tmp_path: Path) -> None:
    server.delay = 0.1
    out = tmp_path / "out"
    command = ("run", MODEL, "--url", server.url, "--data", data, "--out", out, "--batch", 1, "--jobs", jobs)
    process = start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while len(server.asked) < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    server.delay = 40.0  # what is under way now will not be waited for
    time.sleep(0.3)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert time.monotonic() - begun < 20
    assert f"What was judged is kept in {out}: the same command goes on from there.\nInterrupted.\n" in told
    assert "Traceback" not in told
    assert said == ""
    kept = len(Run.load(out).records)
    assert 4 <= kept < 36
    server.delay = 0.0
    server.settle()
    server.asked.clear()
    assert tried(*command).exit_code == 0
    assert len(server.asked) == 36 - kept


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_terminal_gets_a_bar(server: Server, data: Path, tmp_path: Path) -> None:
    import pty

    server.delay = 0.02
    ours, theirs = pty.openpty()
    command = ("run", MODEL, "--url", server.url, "--data", data, "--out", tmp_path / "out", "--batch", 1)
    process = start(*command, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"/36" in seen
    assert PROMPTS.encode() in seen
    assert b"samples in" not in seen
    assert said.startswith("set ")


# ---- list ---------------------------------------------------------------------------------------------------------


def test_the_benchmarks_are_listed(data: Path) -> None:
    everything = tried("list")
    assert everything.exit_code == 0
    assert {"toxic_chat", PROMPTS} <= {line.split()[0] for line in everything.stdout.splitlines()}
    paper = [json.loads(line) for line in tried("list", "--set", "paper", "--json").stdout.splitlines()]
    assert len(paper) == 14
    assert {"name", "stage", "modality", "size", "licence", "url"} <= paper[0].keys()
    assert "file" not in paper[0]
    here = {line.split()[0]: line for line in tried("list", "--data", data).stdout.splitlines()}
    assert here[PROMPTS].rstrip().endswith("strongreject.jsonl")
    assert here["toxic_chat"].rstrip().endswith("not there")
    values = [json.loads(line) for line in tried("list", "--data", data, "--json").stdout.splitlines()]
    assert {one["name"] for one in values if one["file"]} == {PROMPTS, ANSWERS}


# ---- replay, report, compare, parity ------------------------------------------------------------------------------


def answer(label: str) -> str:
    return f"<think>Looked.\n</think>\n\n<result>\nRequest: {label}\nResponse: None\n</result>"


def test_saved_completions_are_scored(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    texts = ["???", *(answer("harmful" if i % 3 == 0 or i == 1 else "unharmful") for i in range(1, 30))]
    file.write_text("".join(f"{json.dumps({'predict': text})}\n" for text in texts))
    command = ("replay", file, "--data", data, "--set", PROMPTS, "--out", tmp_path / "out", "--model", "theirs")
    got = tried(*command)
    assert got.exit_code == 0, got.output
    # By hand: 10 harmful, 9 of them found and one unreadable; 20 unharmful, one flagged.
    (line,) = (line.split() for line in got.stdout.splitlines() if line.startswith(PROMPTS))
    assert line[1:] == ["prompt", "30", "90.0", "90.0", "90.0", "5.0", "3.3", "–"]
    assert Run.load(tmp_path / "out").cohort.model == "theirs"
    assert (tmp_path / "out" / "report.html").is_file()
    file.write_text("".join(f"{json.dumps({'predict': text})}\n" for text in texts[:-1]))
    short = tried("replay", file, "--data", data, "--set", PROMPTS, "--out", tmp_path / "short")
    assert short.exit_code == 2
    assert "1 samples of 'shared_strongreject' have no completion (the first: " in short.stderr
    assert "--set is missing" in tried("replay", file, "--data", data).stderr


@pytest.fixture
def runs(server: Server, data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two runs on the same data; the second one on half a server."""
    folders = (tmp_path / "one", tmp_path / "two")
    for folder, model in zip(folders, (MODEL, "another"), strict=True):
        command = ("run", model, "--url", server.url, "--data", data, "--out", folder)
        assert tried(*command).exit_code == 0
    return folders


def test_a_run_is_replayed_on_the_sets_it_names(runs: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    got = tried("replay", runs[0], "--data", data, "--out", tmp_path / "again", "--json")
    assert got.exit_code == 0, got.output
    again = Run.load(tmp_path / "again")
    assert again.cohort.engine == "replay"
    first = {(one.set, one.id): one.label for one in Run.load(runs[0]).records}
    assert {(one.set, one.id): one.label for one in again.records} == first


def test_reports_of_runs(runs: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    got = tried("report", *runs, "--out", tmp_path / "both", "--data", data)
    assert got.exit_code == 0, got.output
    assert (tmp_path / "both" / "report.html").is_file()
    lines = [line.split() for line in got.stdout.splitlines()]
    assert [line[2] for line in lines if line[0] == PROMPTS] == ["one", "two"]
    compared = tried("compare", *runs)
    assert compared.exit_code == 0, compared.output
    assert (runs[1] / "comparison" / "report.html").is_file()
    assert tried("report", tmp_path).exit_code == 2


def test_an_unfinished_run_is_reported_as_such(runs: tuple[Path, Path]) -> None:
    records = runs[0] / "records.jsonl"
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:30]))
    got = tried("report", runs[0])
    assert got.exit_code == 0, got.output
    assert "Not finished: 6 samples of " in got.stdout


def test_parity_of_runs(runs: tuple[Path, Path]) -> None:
    same = tried("parity", *runs)
    assert same.exit_code == 0, same.output
    assert "All is within the tolerance." in same.stdout
    file = runs[1] / "records.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    changed = json.loads(lines[0])
    changed["label"] = "unharmful" if changed["label"] == "harmful" else "harmful"
    file.write_text("".join([f"{json.dumps(changed)}\n", *lines[1:]]))
    other = tried("parity", *runs)
    assert other.exit_code == 1
    assert "Outside the tolerance: labels agree on 97.22%" in other.stdout
    assert tried("parity", *runs, "--labels", "0.9").exit_code == 0
    value = json.loads(tried("parity", *runs, "--json").stdout)
    assert (value["passed"], value["cases"]) == (False, 36)


def test_parity_of_guards(server: Server, data: Path) -> None:
    got = tried("parity", server.url, server.url, "--data", data, "--limit", "3")
    assert got.exit_code == 0, got.output
    assert len(server.asked) == 12
    pytest.importorskip("onnxruntime")
    embedded = tried("parity", "embedded", server.url, "--data", data, "--set", PROMPTS, "--limit", "3")
    assert embedded.exit_code in (0, 1), embedded.output
    assert "EmbeddedEngine" in embedded.stdout


def test_parity_needs_two_of_a_kind(runs: tuple[Path, Path], server: Server, data: Path) -> None:
    for arguments in ((runs[0], server.url), (*runs, "--data", data), (server.url, server.url)):
        got = tried("parity", *arguments)
        assert got.exit_code == 2
        assert got.stderr.startswith("Error: ")
