from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("scipy", reason="needs the extra 'evaluation'")

from guardrail_vl import Guard
from guardrail_vl.cli import app
from guardrail_vl.errors import EngineUnavailableError
from guardrail_vl.evaluation.calibration import Calibration
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.running import run as evaluate
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format.base import Completion, Prompt, Token
from guardrail_vl.testing import ScriptedEngine, by_keyword, label_token
from guardrail_vl.verdict import Label, Stage

H, U = Label.HARMFUL, Label.UNHARMFUL


def says_its_score(prompt: Prompt) -> Completion:
    """The number that stands in the request: the probability that it is harmful."""
    request = prompt.messages[-1].text.rpartition("AI assistant:")[0]
    return label_token(H, float(request.rsplit("score ", 1)[1].split()[0]))


def guard(model: str = "tiny") -> Guard:
    return Guard(engine=ScriptedEngine(says_its_score, model=model), speed="fast")


def case(number: int, gold: Label | None, score: float, stage: Stage = Stage.PROMPT) -> Case:
    response = "yes" if stage is Stage.RESPONSE else None
    return Case(f"{gold}-{stage}-{number}", stage, gold, f"secret words, score {score}", response)


CASES = (
    *(case(i, U, (i + 1) / 402) for i in range(400)),
    *(case(i, H, 0.5 + i / 100) for i in range(50)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 400 harmless requests with even scores, and 50 harmful ones."""
    where = tmp_path_factory.mktemp("calibrate")
    evaluate(guard(), [CaseSet("asked", CASES)], where / "run", batch=512)
    return where / "run"


def run(*args: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["calibrate", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def test_the_table_and_the_promise(folder: Path) -> None:
    status, out, err = run(folder)
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["for", "flag", "from", "false", "alarms", "at", "most", "catches"]
    # With 400 samples, not even one alarm keeps 1 %.
    assert lines[1][:2] == ["prompt", "0.9951"]
    assert " ".join(lines[1][2:]) == "0 of 400 (0 %) 0.746 % 0 of 50 (0 %)"
    assert "With 95 % confidence: of harmless requests like these, at most 0.746 % are flagged." in out
    assert "It says nothing of requests that are unlike these." in out
    assert "secret" not in out


def test_a_policy_gets_the_threshold(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "door.png").write_bytes(b"")
    house = tmp_path / "house.yaml"
    house.write_text(
        "# ours\nname: häuser\nprompt: annotate\ncategories:\n  PII: {definition: d, threshold: 0.7}\n"
        "harmful:\n  - {prompt: a bomb, images: [door.png]}\n"
    )
    target = tmp_path / "sub" / "new.yaml"
    status, out, err = run(folder, "--fpr", "0.1", "--policy", house, "--out", target)
    assert (status, err) == (0, "")
    written, before = Policy.load(target), Policy.load(house)
    assert written.prompt.threshold is not None
    assert 0.9 < written.prompt.threshold < 0.95
    assert (written.prompt.action, written.name) == (before.prompt.action, "häuser")
    assert written.categories == before.categories
    # Pictures are found from where the file is.
    assert Path(written.harmful[0].images[0]).resolve() == (tmp_path / "door.png").resolve()
    text = target.read_text(encoding="utf-8")
    assert text.startswith("# Thresholds by guardrail-vl calibrate, for prompts: tiny\n# With 95 % confidence: ")
    assert str(tmp_path) not in text
    assert f"Written: new.yaml, version {written.hash}, and new.calibration.json beside it." in out
    assert "The policy's own thresholds stay for: PII. Nothing is promised of these." in out
    (saved,) = json.loads((tmp_path / "sub" / "new.calibration.json").read_text())
    calibration = Calibration.from_json(json.dumps(saved))
    assert calibration.thresholds[0].threshold == written.prompt.threshold
    # The promise, as the guard keeps it.
    rule = {"action": "annotate", "threshold": written.prompt.threshold}
    checked = guard().replace(policy={"prompt": rule}, cache=False)
    flagged = [d.action.value for d in checked.check_many([c.turn() for c in CASES[:400]], batch=512)]
    assert flagged.count("annotate") == calibration.thresholds[0].false_alarms > 0


def test_a_policy_as_json(folder: Path, tmp_path: Path) -> None:
    status, out, _ = run(folder, "--out", tmp_path / "p.json", "--json")
    value = json.loads(out)
    assert status == 0
    assert value["policy"] == Policy.load(tmp_path / "p.json").hash
    assert value["calibrations"] == json.loads((tmp_path / "p.calibration.json").read_text())
    assert json.loads(run(folder, "--json")[1])["policy"] == ""


def test_no_file_is_written_over_unasked(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.yaml"
    target.write_text("name: precious\n")
    status, out, err = run(folder, "--out", target)
    assert (status, out) == (2, "")
    assert "The file 'p.yaml' is there." in err
    assert target.read_text() == "name: precious\n"
    assert run(folder, "--policy", target, "--out", target, "--overwrite")[0] == 0
    assert yaml.safe_load(target.read_text()) == {"name": "precious", "prompt": {"threshold": 0.9951}}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--policy", "p.yaml"], "--policy needs --out"),
        (["--out", "p.toml"], "--out writes .yaml or .json, not '.toml'"),
        (["--fpr", "0"], "must be above 0 and below 1"),
        (["--fpr", "0.001"], "400 harmless samples are too few: a rate of 0.1 % at 95 % confidence takes 2995"),
        (["--stage", "response"], "No record is of the stage 'response'"),
        (["--by-category"], "This model names no categories"),
    ],
)
def test_what_can_not_be_done_is_told(folder: Path, args: Sequence[str], said: str) -> None:
    status, out, err = run(folder, *args)
    assert (status, out) == (2, "")
    assert said in err


def test_there_must_be_a_run(tmp_path: Path) -> None:
    status, _, err = run(tmp_path)
    assert status == 2
    assert "There is no run" in err


def test_a_model_without_scores_is_refused(tmp_path: Path) -> None:
    mute = Guard(engine=ScriptedEngine(by_keyword("bomb")), speed="reason")
    evaluate(mute, [CaseSet("asked", CASES[:20])], tmp_path / "run")
    status, _, err = run(tmp_path / "run")
    assert status == 2
    assert "hold no scores" in err


def test_runs_of_one_guard_count_together_and_each_sample_once(folder: Path, tmp_path: Path) -> None:
    more = CaseSet("more", tuple(case(1000 + i, U, 0.1) for i in range(300)))
    evaluate(guard(), [CaseSet("asked", CASES), more], tmp_path / "run", batch=512)
    status, out, _ = run(folder, tmp_path / "run", "--json")
    assert status == 0
    threshold = json.loads(out)["calibrations"][0]["thresholds"][0]
    assert (threshold["negatives"], threshold["positives"]) == (700, 50)


def test_runs_of_several_guards_are_refused(folder: Path, tmp_path: Path) -> None:
    evaluate(guard("other"), [CaseSet("asked", CASES[:9])], tmp_path / "run")
    status, _, err = run(folder, tmp_path / "run")
    assert status == 2
    assert "are of several guards" in err
    assert "other ScriptedEngine guardreasoner-vl/1 fast; tiny ScriptedEngine" in err


def test_a_cascade_is_refused(tmp_path: Path) -> None:
    evaluate(Guard(first=guard("tiny"), then=guard("large")), [CaseSet("asked", CASES[:9])], tmp_path / "run")
    status, _, err = run(tmp_path / "run")
    assert status == 2
    assert "scores of a cascade are of several models" in err
    assert "Calibrate each guard by itself." in err


def failing_after(count: int) -> Callable[[Prompt], Completion | EngineUnavailableError]:
    seen = iter(range(10_000))
    return lambda prompt: says_its_score(prompt) if next(seen) < count else EngineUnavailableError("down")


def test_a_run_that_is_not_complete_is_refused(tmp_path: Path) -> None:
    down = Guard(engine=ScriptedEngine(failing_after(10)), speed="fast")
    with pytest.raises(EngineUnavailableError):
        evaluate(down, [CaseSet("asked", CASES[:40])], tmp_path / "run", batch=5)
    status, _, err = run(tmp_path / "run")
    assert status == 2
    assert "The run in 'run' is not complete: 30 samples are not judged." in err


def test_both_stages(tmp_path: Path) -> None:
    answers = tuple(case(i, U, (i + 1) / 402, Stage.RESPONSE) for i in range(100))
    evaluate(guard(), [CaseSet("asked", CASES), CaseSet("answered", answers)], tmp_path / "run", batch=512)
    target = tmp_path / "p.yaml"
    status, out, _ = run(tmp_path / "run", "--fpr", "0.05", "--out", target)
    assert status == 0
    written = Policy.load(target)
    assert written.prompt.threshold
    assert written.response.threshold
    assert written.prompt.threshold > written.response.threshold
    assert "of harmless responses like these" in out
    only = run(tmp_path / "run", "--fpr", "0.05", "--stage", "response", "--json")[1]
    assert [c["stage"] for c in json.loads(only)["calibrations"]] == ["response"]


def names_a_category(prompt: Prompt) -> Completion:
    """As Qwen3Guard: `PII score 0.3` in the request is named so, with that probability of being unsafe."""
    name, _, score = prompt.messages[-1].text.split()
    safe = name == "none"
    words = ("Safe", "Unsafe") if safe else ("Unsafe", "Safe")
    likely = [math.log(1 - float(score)), math.log(float(score))][:: 1 if safe else -1]
    pieces = (
        Token("Safety: ", 0.0),
        Token(words[0], likely[0], tuple(zip(words, likely, strict=True))),
        Token(f"\nCategories: {'None' if safe else name}", 0.0),
    )
    return Completion("".join(piece.text for piece in pieces), tokens=pieces)


def test_by_category(tmp_path: Path) -> None:
    asked = tuple(
        Case(f"{name}{gold}{i}", Stage.PROMPT, gold, f"{name} score {(i + 1) / 402:.6f}")
        for name, count in (("none", 400), ("PII", 200), ("Violent", 9))
        for gold in (H, U)
        for i in range(count)
    )
    engine = ScriptedEngine(names_a_category, model="tiny")
    evaluate(Guard(engine=engine, format="qwen3guard/1"), [CaseSet("asked", asked)], tmp_path / "run", batch=2000)
    args = (tmp_path / "run", "--fpr", "0.05", "--by-category")
    status, out, err = run(*args)
    assert (status, err) == (0, "")
    rows = {line.split("   ")[0]: line for line in out.splitlines() if line.startswith("prompt, ")}
    assert list(rows) == ["prompt, all else", "prompt, PII", "prompt, Violent"]
    assert (
        "9 harmless samples are too few: a rate of 5 % at 97.5 % confidence takes 72 or more" in rows["prompt, Violent"]
    )
    assert "of harmless requests, in each line above, like these" in out

    target = tmp_path / "p.yaml"
    status, _, err = run(*args, "--out", target)
    assert status == 2
    assert "A threshold was found for 'PII', and the policy has no such category." in err
    assert not target.exists()
    house = tmp_path / "house.yaml"
    house.write_text("categories:\n  PII: {definition: d}\n  Violent: {definition: d, threshold: 0.9}\n")
    status, out, _ = run(*args, "--policy", house, "--out", target)
    assert status == 0
    assert "own thresholds stay for: Violent." in out
    policy = Policy.load(target)
    assert policy.prompt.threshold is not None
    pii = policy.categories["PII"].threshold
    assert pii is not None
    assert pii < 0.5 < 0.9 < policy.prompt.threshold
    assert policy.categories["Violent"].threshold == 0.9
    # And a guard takes it.
    assert Guard(engine=engine, format="qwen3guard/1", policy=target).policy == policy
