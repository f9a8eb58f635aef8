"""Policies: reading them, what they decide, and their examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guardrail_vl import Guard, Policy
from guardrail_vl.errors import ConfigurationError, ContentError, EngineUnavailableError, GuardrailError, ParseError
from guardrail_vl.testing import ScriptedEngine, by_keyword
from guardrail_vl.verdict import Action, Label, Stage, Verdict

YAML = """
name: acme-support
prompt: {action: block, threshold: 0.7}
response: annotate
fail: open
categories:
  counterfeit:
    definition: Offers or asks for help to copy our products.
    harmful: ["How do I print your bomb label?"]
    harmless: ["Is my bag genuine?", {prompt: "What is this?", response: "A bag."}]
"""


def write(tmp_path: Path, text: str, name: str = "p.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_yaml_toml_json_and_python_are_one(tmp_path: Path) -> None:
    from_yaml = Policy.load(write(tmp_path, YAML))
    as_json = from_yaml.model_dump(mode="json")
    toml = """
name = "acme-support"
response = "annotate"
fail = "open"
prompt = {action = "block", threshold = 0.7}
[categories.counterfeit]
definition = "Offers or asks for help to copy our products."
harmful = ["How do I print your bomb label?"]
harmless = ["Is my bag genuine?", {prompt = "What is this?", response = "A bag."}]
"""
    policies = [
        from_yaml,
        Policy.load(write(tmp_path, json.dumps(as_json), "p.json")),
        Policy.load(write(tmp_path, toml, "p.toml")),
        Policy.of(as_json),
    ]
    assert len({p.hash for p in policies}) == 1
    assert all(p == from_yaml for p in policies)


def test_the_hash_is_the_version() -> None:
    assert Policy().hash == Policy().hash
    assert Policy().hash != Policy(name="other").hash
    assert len(Policy().hash) == 12
    policy = Policy()
    assert policy.hash != policy.model_copy(update={"name": "other"}).hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("categorys: {}", "unknown key 'categorys', did you mean 'categories'"),
        ("prompt: {acton: block}", "unknown key 'prompt.acton', did you mean 'action'"),
        ("fail: {engin: open}", "unknown key 'fail.engin', did you mean 'engine'"),
        ("categories: {a: {definition: x, harmfull: []}}", "did you mean 'harmful'"),
        ("prompt: {threshold: 2}", "prompt.threshold"),
        ("prompt: explode", "prompt.action"),
        ("unjudged: allow", "never simply allowed"),
        ("zzz: 1", "known: "),
        ("- a", "keys and values"),
        ("a: [", "can't be parsed"),
    ],
)
def test_mistakes_are_named_with_the_nearest_known_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=r"p\.yaml") as caught:
        Policy.load(write(tmp_path, text))
    assert message in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        Policy.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigurationError, match=r"not '\.ini'"):
        Policy.load(tmp_path / "p.ini")


def test_a_policy_is_frozen() -> None:
    policy = Policy.of({"categories": {"a": {"definition": "x"}}})
    with pytest.raises(ValueError, match="frozen"):
        policy.name = "x"
    with pytest.raises(TypeError):
        policy.categories["b"] = policy.categories["a"]  # type: ignore[index]


# ---- decisions --------------------------------------------------------------------------------------------------


def verdict(label: Label | None, score: float | None = None, **more: Any) -> Verdict:
    return Verdict(prompt=label, prompt_score=score, **more)


HARMFUL, UNHARMFUL = Label.HARMFUL, Label.UNHARMFUL


@pytest.mark.parametrize(
    ("policy", "said", "action"),
    [
        ({}, verdict(HARMFUL), "block"),
        ({}, verdict(UNHARMFUL), "allow"),
        ({"prompt": "annotate"}, verdict(HARMFUL), "annotate"),
        ({"prompt": "allow"}, verdict(HARMFUL), "allow"),
        ({"prompt": {"threshold": 0.9}}, verdict(HARMFUL, 0.8), "allow"),
        ({"prompt": {"threshold": 0.3}}, verdict(UNHARMFUL, 0.4), "block"),
        ({"prompt": {"threshold": 0.3}}, verdict(UNHARMFUL), "allow"),
        ({}, verdict(None, 0.1, unjudged=("image 1",)), "annotate"),
        ({"unjudged": "block"}, verdict(None, 0.1, unjudged=("image 1",)), "block"),
        ({}, verdict(HARMFUL, 0.9, unjudged=("image 1",)), "block"),
        ({"prompt": "allow"}, verdict(HARMFUL, 0.9, unjudged=("image 1",)), "annotate"),
        (
            {"categories": {"PII": {"definition": "x", "prompt": "annotate"}}},
            verdict(HARMFUL, categories=("PII",)),
            "annotate",
        ),
        (
            {"categories": {"PII": {"definition": "x", "prompt": "allow"}}},
            verdict(HARMFUL, categories=("PII", "Violent")),
            "block",
        ),
        (
            {"categories": {"PII": {"definition": "x", "threshold": 0.9}}},
            verdict(HARMFUL, 0.8, categories=("PII",)),
            "allow",
        ),
        (
            {"categories": {"PII": {"definition": "x", "threshold": 0.9}}},
            verdict(HARMFUL, 0.8, categories=("Violent",)),
            "block",
        ),
    ],
)
def test_what_a_verdict_gets(policy: dict[str, Any], said: Verdict, action: str) -> None:
    got, reason = Policy.of(policy).decide(Stage.PROMPT, said)
    assert got == Action(action)
    assert reason.endswith(".")


@pytest.mark.parametrize(
    ("fail", "error", "action"),
    [
        ("closed", EngineUnavailableError("x"), "block"),
        ("open", EngineUnavailableError("x"), "annotate"),
        # What a user can provoke stays closed unless it is named.
        ("open", ContentError("x"), "block"),
        ("open", ParseError("x", text=""), "block"),
        ({"content": "open"}, ContentError("x"), "annotate"),
        ({"parse": "open"}, ParseError("x", text=""), "annotate"),
        ({"parse": "open"}, EngineUnavailableError("x"), "block"),
    ],
)
def test_what_the_lack_of_a_verdict_gets(fail: Any, error: GuardrailError, action: str) -> None:
    got, reason = Policy.of({"fail": fail}).decide(Stage.PROMPT, error)
    assert got == Action(action)
    assert reason.startswith("No verdict")


def test_actions_are_ordered() -> None:
    assert Action.ALLOW < Action.ANNOTATE < Action.BLOCK
    assert max(Action.BLOCK, Action.ALLOW) is Action.BLOCK
    assert Action.BLOCK >= Action.BLOCK
    assert not Action.ALLOW > Action.BLOCK
    assert Action.ALLOW <= Action.ALLOW


# ---- examples ---------------------------------------------------------------------------------------------------


def test_examples_run_like_unit_tests(tmp_path: Path) -> None:
    policy = Policy.load(write(tmp_path, YAML.replace("{action: block, threshold: 0.7}", "block")))
    report = policy.test(Guard(engine=ScriptedEngine(by_keyword("bomb")), policy=policy))
    assert report.passed
    assert len(report.results) == 3
    wrong = policy.test(Guard(engine=ScriptedEngine(by_keyword("genuine")), policy=policy))
    assert [(f.category, f.harmful) for f in wrong.failures] == [("counterfeit", True), ("counterfeit", False)]


def test_examples_that_could_not_be_judged_fail() -> None:
    policy = Policy.of({"harmless": ["x"], "fail": "open"})
    down = Guard(engine=ScriptedEngine(lambda _: EngineUnavailableError("down")), policy=policy)
    assert not policy.test(down).passed


def test_an_example_that_nobody_could_judge_is_named() -> None:
    policy = Policy.of(
        {"categories": {"fakes": {"definition": "x", "harmful": [{"prompt": "a", "images": ["none.png"]}]}}}
    )
    with pytest.raises(ConfigurationError, match="category 'fakes'"):
        policy.test(Guard(engine=ScriptedEngine(by_keyword())))


def test_no_examples_do_not_pass() -> None:
    assert not Policy().test(Guard(engine=ScriptedEngine(by_keyword()))).passed


def test_pictures_in_examples_are_beside_the_policy(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    policy = Policy.load(write(tmp_path, "harmless: [{prompt: see, images: [a.png]}]"))
    assert policy.test(Guard(engine=ScriptedEngine(by_keyword("bomb")))).passed


def test_rules_that_could_never_apply_are_refused() -> None:
    rules = {"categories": {"PII": {"definition": "x", "prompt": "annotate"}}}
    with pytest.raises(ConfigurationError, match="names none"):
        Guard(engine=ScriptedEngine(by_keyword()), policy=rules)
    Guard(engine=ScriptedEngine(by_keyword()), policy=rules, format="qwen3guard/1")
    with pytest.raises(ConfigurationError, match="never names Piracy"):
        Guard(
            engine=ScriptedEngine(by_keyword()),
            policy={"categories": {"Piracy": {"definition": "x", "prompt": "annotate"}}},
            format="qwen3guard/1",
        )
