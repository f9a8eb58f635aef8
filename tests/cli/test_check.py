from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from guardrail_vl.cli import app
from guardrail_vl.turn import MAX_TEXT
from guardrail_vl.verdict import Decision
from tests.cli.tiny_server import MODEL

SECRET = "xyzzy"


def run(*args: str, stdin: str | bytes | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args), input=stdin)
    return result.exit_code, result.stdout, result.stderr


def check(url: str, *args: str, stdin: str | bytes | None = None) -> tuple[int, str, str]:
    return run("check", "--url", url, *args, stdin=stdin)


def test_the_status_says_allow_or_block(url: str) -> None:
    status, out, err = check(url, "hello")
    assert (status, err) == (0, "")
    assert out.startswith("ALLOW\njudged      the prompt\n")
    status, out, _ = check(url, "a bomb")
    assert status == 1
    assert out.startswith("BLOCK\n")


def test_json_is_one_decision(url: str) -> None:
    status, out, _ = check(url, "a bomb", "--json")
    value = json.loads(out)
    assert status == 1
    assert out.count("\n") == 1
    assert value.keys() == Decision.json_schema()["properties"].keys()
    assert value["verdict"]["prompt"] == "harmful"
    assert value["verdict"]["model"] == MODEL


def test_a_response_is_judged_with_its_prompt(url: str) -> None:
    status, out, _ = check(url, "hello", "--response", "a bomb is made so", "--json")
    value = json.loads(out)
    assert (status, value["stage"]) == (1, "response")
    assert (value["verdict"]["prompt"], value["verdict"]["response"]) == ("unharmful", "harmful")


def test_a_response_alone(url: str) -> None:
    status, out, _ = check(url, "--response", "fine", stdin="a bomb")
    assert status == 0
    assert "judged      the response" in out


def test_a_picture_alone_leaves_standard_input_alone(url: str, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    assert check(url, "--image", str(picture), stdin="a bomb")[0] == 0
    assert check(url, "a bomb", "--image", str(picture), "--image", str(picture))[0] == 1


def test_a_conversation_from_a_file(url: str, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "?"},
    ]
    for value in (messages, {"messages": messages}):
        file.write_text(json.dumps(value))
        status, out, _ = check(url, "--messages", str(file))
        assert status == 0
        assert "decided by message 2" in out


def test_standard_input_is_the_prompt(url: str) -> None:
    assert check(url, stdin="hello\nthere")[0] == 0
    assert check(url, stdin="hello\na bomb")[0] == 1


def test_rows_from_standard_input(url: str) -> None:
    status, out, err = check(url, "-", stdin='"hello"\n{"id": 3, "prompt": "a bomb"}\n')
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 1
    assert [(line["row"], line["id"], line["decision"]["action"]) for line in lines] == [
        (1, None, "allow"),
        (2, 3, "block"),
    ]
    assert err.startswith("2 rows: 1 allow, 0 annotate, 1 block, 0 error in ")


def test_what_can_not_be_judged_is_an_error_and_says_so(url: str, tmp_path: Path) -> None:
    broken = tmp_path / "xyzzy.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nxyzzy")
    for args in (("",), ("  \n",), ("hi", "--image", str(broken)), ("hi", "--image", "xyzzy.png")):
        status, out, err = check(url, *args)
        assert status == 2
        assert out.startswith("BLOCK · no verdict\n")
        assert "ContentError" in out
        assert SECRET not in out + err


def test_a_server_that_is_down_is_an_error_in_either_fail_mode(url: str) -> None:
    dead = "http://127.0.0.1:9/v1"
    for mode, title in (("closed", "BLOCK"), ("open", "ANNOTATE (!)")):
        status, out, _ = check(dead, SECRET, "--fail", mode, "--deadline", "1")
        assert status == 2
        assert out.startswith(f"{title} · no verdict\n")
        assert SECRET not in out


def test_a_policy_changes_the_action(url: str, tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("prompt: annotate\n")
    status, out, _ = check(url, "a bomb", "--policy", str(file))
    assert status == 0
    assert out.startswith("ANNOTATE (!)\n")


def test_the_guard_that_ships_inside_judges_text_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("guardrail_vl.engines.embedded", exc_type=ImportError)
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "green").save(picture)
    status, out, err = run("check", "What is a good recipe for tomato soup?")
    assert (status, err) == (0, "")
    assert "score" in out
    status, out, err = run("check", "What colour is this?", "--image", str(picture), "--json")
    value = json.loads(out)
    assert (status, err) == (0, "")
    assert value["error"] is None
    assert value["verdict"]["model"]


# ---- wrong usage: no guard is needed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "stdin", "says"),
    [
        (["hi", "--policy", "none.yaml"], None, "none.yaml"),
        (["hi", "--url", ""], None, "--url is empty"),
        (["hi", "--model", ""], None, "--model is empty"),
        (["hi", "--url", "http://h/v1", "--deadline", "-1"], None, "deadline"),
        (["hi", "--speed", "slow"], None, "slow"),
        (["-", "--response", SECRET], "", "each row brings its own"),
        (["-", "--image", SECRET], "", "each row brings its own"),
        ([SECRET, "--messages", "f.json"], None, "whole conversation"),
        (["--messages", "none.json"], None, "Can't read the file"),
        ([], b"xyzzy\xff", "not valid UTF-8 at byte 5"),
        ([], "x" * (MAX_TEXT * 4 + 1), "Standard input has over"),
        (["how", "is", SECRET, "made"], None, "put the text in quotes"),
        (["--xyzzy is made how"], None, "goes after --"),
        (["hi", "--jsn"], None, "--jsn"),
    ],
)
def test_wrong_usage_is_an_error_without_a_traceback(args: list[str], stdin: str | bytes | None, says: str) -> None:
    status, out, err = run("check", *args, stdin=stdin)
    assert (status, out) == (2, "")
    assert says in " ".join(err.split())
    assert SECRET not in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "content", [b'{"messages": 3}', b'"xyzzy"', b"[xyzzy", b'"\xff"', b'{"messages": [], "xyzzy": 1}']
)
def test_a_conversation_that_is_none(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_bytes(content)
    status, out, err = run("check", "--messages", str(file))
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert SECRET not in err


def test_a_sentence_in_place_of_a_command_is_not_repeated() -> None:
    status, _, err = run("how is xyzzy made")
    assert status == 2
    assert SECRET not in err
    assert "guardrail-vl check" in err


# ---- as a process -----------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "guardrail_vl"]
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8"}


def process(*args: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    settings = {"env": ENVIRONMENT, "stdin": subprocess.DEVNULL, **settings}
    if "input" in settings:
        del settings["stdin"]
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=60, check=False, **settings)


def test_version_as_a_process() -> None:
    import guardrail_vl

    done = process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"guardrail-vl {guardrail_vl.__version__}\n", "")


def test_check_as_a_process(url: str) -> None:
    done = process("check", "a bomb", "--url", url)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("BLOCK\n")


def test_an_output_that_can_not_show_a_character_gets_its_escape(url: str) -> None:
    done = process("check", "", "--url", url, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert done.stdout.startswith("BLOCK \\xb7 no verdict\n")


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_a_reader_that_went_away_is_no_traceback() -> None:
    running = subprocess.Popen(
        [*COMMAND, "policy", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    with running.stderr as stderr:
        assert stderr.read() == b""
    assert running.wait(60) == 141


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_control_c_ends_with_one_line(url: str) -> None:
    running = subprocess.Popen(
        [*COMMAND, "check", "-", "--url", url, "--batch", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, bufsize=0,
        # A background job starts with the signal ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )  # fmt: skip
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stderr is not None
    with running.stdin as stdin, running.stdout as stdout, running.stderr as stderr:
        stdin.write(b'"hello"\n')
        assert json.loads(stdout.readline())["decision"]["action"] == "allow"
        running.send_signal(signal.SIGINT)  # it waits for the next row
        assert running.wait(60) == 130
        assert stderr.read() == b"Interrupted.\n"


def test_importing_the_package_imports_no_command_line() -> None:
    code = "import sys, guardrail_vl; print(sorted({'typer', 'rich', 'guardrail_vl.cli'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
