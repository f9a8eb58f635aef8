"""Which adapter judges: what a policy asks for and what engines make of it. With real adapters: tests/engines/test_vllm.py."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from guardrail_vl import Guard, Policy
from guardrail_vl.engines._adapters import Adapter, check_room, room
from guardrail_vl.engines.vllm import VLLMEngine
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.prompt_format.base import Completion
from guardrail_vl.testing import ScriptedEngine

NOWHERE = "http://127.0.0.1:9/v1"


def scripted() -> Guard:
    return Guard(engine=ScriptedEngine(lambda prompt: Completion("", model="scripted"), model="scripted"))


def test_a_server_is_asked_for_the_model_of_that_name() -> None:
    guard = Guard.remote(NOWHERE, model="base")
    kids = guard.replace(policy={"name": "kids", "adapter": "kids"})
    assert (guard.engine.model, kids.engine.model) == ("base", "kids")
    assert pickle.loads(pickle.dumps(kids)).engine.model == "kids"
    assert kids.replace(policy=Policy()).engine.model == "base"
    assert kids.replace(policy={"adapter": "bank"}).engine.model == "bank"


def test_an_engine_of_its_own_adapter_stays() -> None:
    engine = Guard.remote(NOWHERE, model="base").engine.adapted("kids")
    assert Guard(engine=engine, policy=Policy()).engine.model == "kids"


def test_an_engine_without_adapters_says_so() -> None:
    with pytest.raises(ConfigurationError, match="scripted takes no adapters, and the policy asks for 'kids'"):
        scripted().replace(policy={"adapter": "kids"})
    assert scripted().engine.adapted(None).model == "scripted"


def test_in_a_cascade_it_is_the_last_word_s() -> None:
    then = Guard.remote(NOWHERE, model="base", speed="reason")
    cascade = Guard(first=scripted(), then=then, policy={"adapter": "kids"})
    assert [rung.engine.model for rung in cascade.rungs] == ["scripted", "kids"]


def test_a_policy_s_version_changes_with_its_adapter(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("name: kids\nadapter: kids\n")
    assert Policy.load(file).adapter == "kids"
    assert Policy.load(file).hash != Policy(name="kids").hash
    with pytest.raises(ConfigurationError, match="adapter"):
        Policy.of({"adapter": ""})


def test_an_option_that_the_chosen_engine_does_not_take_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"The embedded engine.* unexpected keyword argument 'adapters'"):
        Guard(adapters={"kids": "kids"})


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"r": 0}', '{"r": "8"}', '{"r": 8'])
def test_a_folder_that_holds_none_is_refused(tmp_path: Path, told: str) -> None:
    (tmp_path / "adapter_config.json").write_text(told)
    with pytest.raises(ConfigurationError, match="'kids' holds no LoRA adapter"):
        VLLMEngine("m", adapters={"kids": tmp_path})


def test_on_a_cpu_one_place_stays_empty() -> None:
    two = (Adapter("a", "a", 8), Adapter("b", "b", 16))
    assert room(two, {}, cpu=False) == {"enable_lora": True, "max_loras": 2, "max_lora_rank": 16}
    assert room(two, {}, cpu=True)["max_loras"] > 2
    assert room((), {"enable_lora": True, "max_lora_rank": 64}, cpu=False)["max_lora_rank"] == 64
    assert room((), {}, cpu=True) == {}
    with pytest.raises(ConfigurationError, match="max_loras of 3 at least"):
        room(two, {"max_loras": 2}, cpu=True)
    with pytest.raises(ConfigurationError, match="has rank 16"):
        room(two, {"max_lora_rank": 8}, cpu=False)
    with pytest.raises(ConfigurationError, match="without room"):
        check_room(two, {}, cpu=False)


def test_a_folder_that_holds_one(tmp_path: Path) -> None:
    config: dict[str, Any] = {"r": 16, "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert Adapter.read("kids", tmp_path) == Adapter("kids", str(tmp_path), 16)
    with pytest.raises(ConfigurationError, match="needs a name"):
        Adapter.read(" ", tmp_path)
