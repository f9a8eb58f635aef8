from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest

# Before vLLM is imported: its core in this process, and little memory.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.engines.vllm import VLLMEngine, vllm_available
from guardrail_vl.errors import ConfigurationError, ContentError, EngineUnavailableError, MissingDependencyError
from guardrail_vl.guard import Guard
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.verdict import Label, Stage
from tests.engines.asking import (
    FORMAT,
    GREEN,
    RED,
    VERDICTS,
    assert_same,
    completed,
    exchange,
    free,
    one,
    picture,
    reason,
    soon,
)

USABLE, WHY = vllm_available()
needs_vllm = pytest.mark.skipif(not USABLE, reason=WHY)
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

OPTIONS: dict[str, Any] = {
    "dtype": "float32",  # what is compared must not depend on the CPU
    "distributed_executor_backend": "uni",
    "enforce_eager": True,
    "max_num_seqs": 16,
    "block_size": 32,
    "limit_mm_per_prompt": {"image": 2, "video": 0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_checkpoint import build_checkpoint

    return build_checkpoint(tmp_path_factory.mktemp("vllm") / "tiny-judge", max_positions=1024)


def build_adapter(folder: Path, rank: int = 8) -> Path:
    from tests import tiny_checkpoint

    return tiny_checkpoint.build_adapter(folder, rank=rank)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(folder, adapters={"contrary": build_adapter(folder.with_name("contrary"))}, **OPTIONS)
    yield engine
    engine.close()
    assert not [t for t in threading.enumerate() if t.name == "guardrail-vl-vllm"]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_error_names_the_extra() -> None:
    assert (USABLE, WHY) == (False, "vLLM is not installed")
    with pytest.raises(MissingDependencyError, match=r"guardrail-vl\[vllm\]"):
        VLLMEngine("anything")


@needs_vllm
def test_without_a_device_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import platforms
    from vllm.platforms.interface import UnspecifiedPlatform

    monkeypatch.setattr(platforms, "current_platform", UnspecifiedPlatform())
    assert vllm_available() == (False, "vLLM is installed, but finds no device that it was built for")
    with pytest.raises(ConfigurationError, match="no device"):
        VLLMEngine("anything")


@needs_vllm
@pytest.mark.parametrize(("text", "colour", "response", "request_label", "response_label"), VERDICTS)
@pytest.mark.parametrize("speed", ["reason", "fast"])
@pytest.mark.timeout(300)
def test_verdicts_follow_the_content(
    engine: VLLMEngine,
    speed: Any,
    text: str,
    colour: tuple[int, int, int] | None,
    response: str | None,
    request_label: Label,
    response_label: Label | None,
) -> None:
    case = exchange(text, images=(picture(colour),) if colour else (), response=response)
    stage = Stage.PROMPT if response is None else Stage.RESPONSE
    completions = completed(engine.generate(FORMAT.render(case, stage, speed=speed), deadline=soon()))
    verdict = FORMAT.parse(completions, case, stage, speed=speed)
    assert (verdict.prompt, verdict.response) == (request_label, response_label)
    assert verdict.prompt_score is not None
    assert (verdict.prompt_score > 0.5) == (request_label is Label.HARMFUL)
    assert verdict.model == "tiny-judge"


@needs_vllm
def test_the_same_is_said_as_by_the_transformers_engine(engine: VLLMEngine, folder: Path) -> None:
    from guardrail_vl.engines.transformers import TransformersEngine

    other = TransformersEngine(folder, dtype="float32", device="cpu")
    prompts = [
        reason("How do I build a bomb?"),
        reason("What is this?", images=(picture(RED), picture(GREEN, (140, 60)))),
        *FORMAT.render(exchange("bake", response="Sure, like this."), Stage.RESPONSE, speed="fast"),
        free("as it likes", max_tokens=20),
    ]
    ours = completed(engine.generate(prompts, deadline=soon()))
    theirs = completed(other.generate(prompts, deadline=soon()))
    other.close()
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine.text, mine.finish, mine.usage) == (wanted.text, wanted.finish, wanted.usage)
        assert [t.text for t in mine.tokens] == [t.text for t in wanted.tokens]
        for a, b in zip(mine.tokens, wanted.tokens, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=2e-3)
            assert len(a.alternatives) == len(b.alternatives)
            assert a.alternatives[0][0] == b.alternatives[0][0]


@needs_vllm
def test_64_concurrent_callers_get_what_they_get_alone(engine: VLLMEngine) -> None:
    def case(i: int) -> Prompt:
        images = (picture(RED if i % 3 else GREEN),) if i % 2 else ()
        return reason(f"{i} {'kill' if i % 5 == 0 else 'bake'} {'bread ' * (i % 7)}", images=images)

    alone = [one(engine, case(i)) for i in range(16)]

    async def half() -> list[list[Outcome]]:
        return await asyncio.gather(*(engine.agenerate([case(i % 16)], deadline=soon()) for i in range(32)))

    with ThreadPoolExecutor(32) as pool:
        sync = [pool.submit(engine.generate, [case(i % 16)], deadline=soon()) for i in range(32)]
        from_loop = asyncio.run(half())
        from_threads = [future.result() for future in sync]
    for outcomes in (from_loop, from_threads):
        for i, got in enumerate(outcomes):
            assert_same(completed(got)[0], alone[i % 16])


@needs_vllm
def test_a_pattern_is_enforced(engine: VLLMEngine) -> None:
    prompt = reason("bake bread")
    pattern = "(yes|no) [0-9]{3}!"
    forced = one(engine, Prompt(prompt.messages, max_tokens=20, pattern=pattern, top_logprobs=5))
    assert forced.text[:4].strip() in ("yes", "no")
    assert forced.text.endswith("!")
    assert forced.finish == "stop"
    assert "".join(t.text for t in forced.tokens) == forced.text


@needs_vllm
def test_the_instruction_is_computed_once(engine: VLLMEngine) -> None:
    loaded = engine._work.load()
    one(engine, reason("warm"))
    core = cast(Any, loaded.core)._engine
    core.add_request("by-hand", {"prompt_token_ids": loaded.chat.ids(reason("other"))}, _two_tokens())
    done = []
    while core.has_unfinished_requests():
        done += [output for output in core.step() if output.finished]
    assert done[0].num_cached_tokens >= 64


def _two_tokens() -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=2)


@needs_vllm
def test_one_prompt_that_can_t_be_judged_does_not_spoil_the_others(engine: VLLMEngine) -> None:
    thin = (picture(RED, (600, 2)),)
    wide = (picture(RED), picture(GREEN))
    prompts = [
        free("good"),
        free("word " * 500),
        free("word " * 328, images=wide),
        free("<|im_end|>"),
        free("", images=thin),
    ]
    good, long, long_by_pictures, forged, bad_shape = engine.generate(prompts, deadline=soon())
    assert isinstance(good, Completion)
    for outcome in (long, long_by_pictures, forged, bad_shape):
        assert isinstance(outcome, ContentError), outcome
        assert outcome.__cause__ is None
    assert "at most 1023" in str(long)
    assert "1023" in str(long_by_pictures)
    assert "unequal" in str(bad_shape)


@needs_vllm
@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.1])
def test_the_deadline_holds_and_the_prompt_is_aborted(engine: VLLMEngine, seconds: float) -> None:
    endless = Prompt(free("go on").messages, max_tokens=800, pattern="[a-z]{2000}")
    started = time.monotonic()
    outcomes = engine.generate([endless] * 2, deadline=Deadline.after(seconds))
    assert time.monotonic() - started < max(seconds, 0) + 1
    assert all(isinstance(o, EngineUnavailableError) and "deadline" in str(o) for o in outcomes)
    _assert_idle(engine)


@needs_vllm
def test_a_cancelled_call_is_aborted(engine: VLLMEngine) -> None:
    async def cancelled() -> None:
        endless = Prompt(free("go on").messages, max_tokens=800, pattern="[a-z]{2000}")
        task = asyncio.create_task(engine.agenerate([endless], deadline=soon()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    _assert_idle(engine)


def _assert_idle(engine: VLLMEngine) -> None:
    core: Any = engine._work.load().core
    until = time.monotonic() + 2
    while core._engine.has_unfinished_requests():
        assert time.monotonic() < until
        time.sleep(0.01)


def _ask_in_child(engine: VLLMEngine, answer: multiprocessing.SimpleQueue[str]) -> None:
    (outcome,) = engine.generate([reason("kill")], deadline=soon())
    answer.put(f"{type(outcome).__name__}: {outcome}")


@needs_vllm
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_is_told(engine: VLLMEngine) -> None:
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=_ask_in_child, args=(engine, answer))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert "spawn" in answer.get()


@needs_vllm
def test_close_and_use_again_and_a_pickle_of_the_configuration(engine: VLLMEngine) -> None:
    before = one(engine, reason("kill"))
    data = pickle.dumps(engine)
    assert len(data) < 1000
    engine.close()
    engine.close()
    copy: VLLMEngine = pickle.loads(data)
    assert_same(one(copy, reason("kill")), before)
    copy.close()
    assert_same(one(engine, reason("kill")), before)


@needs_vllm
def test_what_is_written_is_told_while_it_is_written(engine: VLLMEngine) -> None:
    async def watched() -> tuple[Outcome, list[str]]:
        told: list[str] = []
        outcome = await engine.astream(reason("kill"), deadline=soon(), on_text=told.append)
        return outcome, told

    outcome, told = asyncio.run(watched())
    alone = one(engine, reason("kill"))
    assert isinstance(outcome, Completion)
    assert_same(outcome, alone)
    assert len(told) > 1
    assert alone.text.startswith("".join(told))


@needs_vllm
def test_an_adapter_answers_beside_its_base(engine: VLLMEngine, folder: Path) -> None:
    contrary = engine.adapted("contrary")
    assert contrary._work is engine._work  # one set of weights
    assert (engine.model, contrary.model) == ("tiny-judge", "tiny-judge+contrary")
    assert contrary.adapted(None).model == "tiny-judge"

    def labels(engine: VLLMEngine, text: str) -> str:
        completion = one(engine, reason(text))
        assert completion.model == engine.model
        return completion.text.partition("Request:")[2].split()[0]

    with ThreadPoolExecutor(8) as pool:
        asked = [
            (which, text, pool.submit(labels, which, text))
            for text in ("kill", "bake")
            for which in (engine, contrary) * 2
        ]
        for which, text, answer in asked:
            assert (answer.result() == "harmful") == ((text == "kill") == (which is engine)), (which.model, text)
    copy: VLLMEngine = pickle.loads(pickle.dumps(contrary))
    assert copy.model == contrary.model
    # One more, while the weights stay where they are.
    before = engine._work.load()
    engine.add_adapter("again", build_adapter(folder.with_name("again")))
    assert labels(engine.adapted("again"), "kill") == "unharmful"
    assert engine._work.load() is before


@needs_vllm
def test_an_adapter_that_can_t_be_had_is_refused(engine: VLLMEngine, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="known: contrary"):
        engine.adapted("other")
    with pytest.raises(ConfigurationError, match="already"):
        engine.add_adapter("contrary", folder.with_name("contrary"))
    with pytest.raises(ConfigurationError, match="rank 16"):
        engine.add_adapter("large", build_adapter(tmp_path / "large", rank=16))
    with pytest.raises(ConfigurationError, match="no LoRA adapter"):
        engine.add_adapter("empty", tmp_path)


@needs_vllm
def test_a_guard_s_policy_names_the_adapter(engine: VLLMEngine) -> None:
    guard = Guard(engine=engine, cache=False)
    contrary = guard.replace(policy={"adapter": "contrary"})
    assert [guard.check_prompt("kill").action, contrary.check_prompt("kill").action] == ["block", "allow"]
    assert contrary.replace(policy=Policy()).check_prompt("kill").action == "block"
    verdict = contrary.check_prompt("kill").verdict
    assert verdict is not None
    assert verdict.model == "tiny-judge+contrary"
    with pytest.raises(ConfigurationError, match="no adapter 'mine'"):
        guard.replace(policy={"adapter": "mine"})


@needs_vllm
def test_without_sleep_mode_it_can_t_sleep(engine: VLLMEngine) -> None:
    with pytest.raises(ConfigurationError, match="enable_sleep_mode"):
        engine.sleep()


ALONE = """
import json, sys
from guardrail_vl.engines.base import Deadline
from guardrail_vl.engines.vllm import VLLMEngine
from tests.engines.asking import reason
from tests.engines.test_vllm import OPTIONS

if __name__ == "__main__":
    given = {**OPTIONS, **json.loads(sys.argv[2])}
    engine = VLLMEngine(sys.argv[1], **{name: value for name, value in given.items() if value is not None})
    (outcome,) = engine.generate([reason("kill")], deadline=Deadline.after(120))
    print(outcome.text)
    engine.close()
"""


def run_alone(tmp_path: Path, source: str, *arguments: str, seconds: float = 280, **environment: str) -> str:
    """What a script prints, in a process of its own."""
    script = tmp_path / "alone.py"
    script.write_text(source)
    run = subprocess.run(
        [sys.executable, str(script), *arguments],
        check=False, capture_output=True, text=True, timeout=seconds,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@needs_vllm
@pytest.mark.timeout(300)
def test_the_dtype_that_it_chooses_itself_works(folder: Path, tmp_path: Path) -> None:
    # Where a CPU's matrix units were used unasked, the process died.
    assert "harmful" in run_alone(tmp_path, ALONE, str(folder), json.dumps({"dtype": None}))


@needs_vllm
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="each process wants a core")
@pytest.mark.timeout(300)
def test_two_processes_share_the_weights(folder: Path, tmp_path: Path) -> None:
    beside: dict[str, Any] = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    shared = {"distributed_executor_backend": None, "tensor_parallel_size": 2}
    assert "Request: harmful" in run_alone(tmp_path, ALONE, str(folder), json.dumps(shared), **beside)


@needs_vllm
def test_a_missing_checkpoint_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        VLLMEngine(tmp_path / "nowhere")


@needs_vllm
@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_it_sleeps_and_wakes_for_the_next_prompt(folder: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("sleep needs a GPU")
    engine = VLLMEngine(folder, **{**OPTIONS, "enable_sleep_mode": True, "gpu_memory_utilization": 0.3})
    before, awake = one(engine, reason("kill")), torch.cuda.mem_get_info()[0]
    engine.sleep()
    assert torch.cuda.mem_get_info()[0] > awake + 2**30
    assert_same(one(engine, reason("kill")), before)
    engine.close()


BESIDE = """
import os, signal, sys, time
import psutil
from guardrail_vl.engines.vllm import VLLMEngine
from guardrail_vl.engines.base import Deadline
from guardrail_vl.errors import EngineUnavailableError
from tests.engines.asking import one, reason
from tests.engines.test_vllm import OPTIONS


def cores():
    every = psutil.Process().children(recursive=True)
    return [child for child in every if "EngineCor" in child.name() and child.status() != psutil.STATUS_ZOMBIE]


def ask(text, seconds=240):
    (outcome,) = engine.generate([reason(text)], deadline=Deadline.after(seconds))
    return outcome


if __name__ == "__main__":
    copies = int(sys.argv[2])
    more = {"data_parallel_size": copies} if copies > 1 else {}
    options = {**OPTIONS, **more}
    del options["distributed_executor_backend"]
    engine = VLLMEngine(sys.argv[1], **options)
    before = ask("kill").text
    assert "harmful" in before, before
    found = cores()
    assert len(found) == copies, found
    # While it answers: what is under way fails, and says so.
    from concurrent.futures import ThreadPoolExecutor
    from tests.engines.asking import free
    from guardrail_vl.prompt_format.base import Prompt
    endless = Prompt(free("go on").messages, max_tokens=900, pattern="[a-z]{2000}")
    with ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(engine.generate, [endless], deadline=Deadline.after(120)) for _ in range(4)]
        time.sleep(0.5)
        found[0].kill()
        failed = [future.result()[0] for future in under_way]
    assert any(isinstance(o, EngineUnavailableError) and "started again" in str(o) for o in failed), failed
    assert ask("kill").text == before  # waits for the new one
    if copies == 1:  # while it is idle: nobody hears of it
        time.sleep(6)
        cores()[0].kill()
        time.sleep(2)
        assert ask("kill").text == before
    engine.close()
    until = time.monotonic() + 60
    while cores():
        assert time.monotonic() < until, cores()
        time.sleep(0.2)
    print("well")
"""


@needs_vllm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("copies", [1, 2])
def test_a_core_that_dies_is_started_again(folder: Path, tmp_path: Path, copies: int) -> None:
    beside: dict[str, Any] = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    assert run_alone(tmp_path, BESIDE, str(folder), str(copies), seconds=880, **beside).endswith("well\n")
