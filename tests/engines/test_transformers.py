from __future__ import annotations

import asyncio
import math
import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'local'")
pytest.importorskip("transformers", reason="needs the extra 'local'")

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

from guardrail_vl.engines import transformers as under_test
from guardrail_vl.engines._batching import Job
from guardrail_vl.engines._checkpoint import TrainedFormat
from guardrail_vl.engines._generation import Row
from guardrail_vl.engines._hardware import cpu_has_bfloat16
from guardrail_vl.engines.base import Deadline, Outcome
from guardrail_vl.engines.transformers import TransformersEngine
from guardrail_vl.errors import ConfigurationError, ContentError, EngineError, EngineUnavailableError
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
from tests.tiny_checkpoint import build_checkpoint, build_tokenizer


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-judge")


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-random", weights="random", max_positions=512)


@pytest.fixture(scope="module")
def judge(judge_folder: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(judge_folder, dtype="float32")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def chatter(random_folder: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(random_folder, dtype="float32", max_wait=0.05)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tireless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    """Goes on for many seconds when it is let: with this seed it never writes the end token."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-tireless"
    build_checkpoint(folder, weights="random", max_positions=50_000, seed=1)
    engine = TransformersEngine(folder, dtype="float32")
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def _no_thread_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    engines = [v for v in request.node.funcargs.values() if isinstance(v, TransformersEngine)]
    for engine in engines:
        engine._batcher.close()
    assert not [t for t in threading.enumerate() if t.name == "guardrail-vl"]


# --- verdicts of the judge, through the real format -------------------------------------------------------------------


@pytest.mark.parametrize(("text", "colour", "response", "request_label", "response_label"), VERDICTS)
@pytest.mark.parametrize("speed", ["reason", "fast"])
def test_verdicts_follow_the_content(
    judge: TransformersEngine,
    speed: Any,
    text: str,
    colour: tuple[int, int, int] | None,
    response: str | None,
    request_label: Label,
    response_label: Label | None,
) -> None:
    case = exchange(text, images=(picture(colour),) if colour else (), response=response)
    stage = Stage.PROMPT if response is None else Stage.RESPONSE
    prompts = FORMAT.render(case, stage, speed=speed)
    completions = completed(judge.generate(prompts, deadline=soon()))
    verdict = FORMAT.parse(completions, case, stage, speed=speed)
    assert (verdict.prompt, verdict.response) == (request_label, response_label)
    assert verdict.prompt_score is not None
    assert (verdict.prompt_score > 0.5) == (request_label is Label.HARMFUL)
    assert verdict.model == "tiny-judge"
    assert all(c.latency > 0 and c.usage.prompt_tokens > 100 for c in completions)


def test_an_answer_stops_after_its_result_and_its_tokens_add_up(judge: TransformersEngine) -> None:
    completion = one(judge, reason("bake bread"))
    assert completion.finish == "stop"
    assert completion.text.endswith("</result>")
    assert "".join(token.text for token in completion.tokens) == completion.text
    assert completion.usage.completion_tokens == len(completion.tokens)


def test_the_end_token_ends_the_answer_and_is_not_in_it(judge: TransformersEngine) -> None:
    prompt = reason("bake bread")
    ended = one(judge, Prompt(prompt.messages, max_tokens=50))
    assert ended.finish == "stop"
    assert ended.text == one(judge, prompt).text
    assert ended.tokens == ()


def test_a_stop_string_inside_a_token_cuts_it(judge: TransformersEngine) -> None:
    prompt = reason("bake bread")
    cut = one(judge, Prompt(prompt.messages, max_tokens=50, stop=("never", "</think>"), top_logprobs=1))
    assert cut.text == "<think>The words were read one by one.\n</think>"
    assert [token.text for token in cut.tokens] == [cut.text]
    assert cut.finish == "stop"


def test_the_token_limit_is_reported(judge: TransformersEngine) -> None:
    prompt = reason("bake bread")
    cut = one(judge, Prompt(prompt.messages, max_tokens=2, stop=prompt.stop))
    assert cut.finish == "length"
    assert cut.usage.completion_tokens == 2


def test_a_prefix_is_continued_and_the_labels_are_among_the_alternatives(judge: TransformersEngine) -> None:
    (prompt,) = FORMAT.render(exchange("kill"), Stage.PROMPT, speed="fast")
    completion = one(judge, prompt)
    assert completion.text == " harmful"
    (token,) = completion.tokens
    assert len(token.alternatives) == 20
    assert token.alternatives[0] == (" harmful", token.logprob)
    assert " unharmful" in dict(token.alternatives)
    values = [logprob for _, logprob in token.alternatives]
    assert values == sorted(values, reverse=True)
    assert 0.9 < sum(map(math.exp, values)) < 1.0001


# --- batching does not change what is said -----------------------------------------------------------------------------


def mixed_prompts() -> list[Prompt]:
    wide = picture((10, 20, 200), (140, 56))
    return [
        free("short"),
        free("a much longer text that needs many more tokens than the others do, and then some"),
        free("look", images=(picture(RED),)),
        free("two", images=(picture(GREEN), wide)),
        free("a limit of its own", max_tokens=3),
        free("no scores", top_logprobs=0),
        free("", images=(wide,)),
    ]


def test_a_mixed_batch_equals_one_by_one(chatter: TransformersEngine) -> None:
    prompts = mixed_prompts()
    alone = [one(chatter, prompt) for prompt in prompts]
    assert len({c.text for c in alone}) == len(prompts)
    for got, wanted in zip(completed(chatter.generate(prompts, deadline=soon())), alone, strict=True):
        assert_same(got, wanted)


def test_a_random_model_s_pieces_add_up_too(chatter: TransformersEngine) -> None:
    """Random bytes: most are no whole characters."""
    for prompt in mixed_prompts():
        completion = one(chatter, Prompt(prompt.messages, max_tokens=60, top_logprobs=1))
        assert "".join(t.text for t in completion.tokens) == completion.text


def test_64_concurrent_callers_get_what_they_get_alone(judge: TransformersEngine) -> None:
    def case(i: int) -> Prompt:
        images = (picture(RED if i % 3 else GREEN),) if i % 2 else ()
        return reason(f"{i} {'kill' if i % 5 == 0 else 'bake'} {'bread ' * (i % 7)}", images=images)

    alone = [one(judge, case(i)) for i in range(16)]

    async def half() -> list[list[Outcome]]:
        return await asyncio.gather(*(judge.agenerate([case(i % 16)], deadline=soon()) for i in range(32)))

    with ThreadPoolExecutor(32) as pool:
        sync = [pool.submit(judge.generate, [case(i % 16)], deadline=soon()) for i in range(32)]
        from_loop = asyncio.run(half())
        from_threads = [future.result() for future in sync]
    for outcomes in (from_loop, from_threads):
        for i, got in enumerate(outcomes):
            assert_same(completed(got)[0], alone[i % 16])
    assert {c.text.count("unharmful") for c in alone} == {1, 2}


def test_decoding_is_plain_greedy_whatever_the_checkpoint_s_settings_say(chatter: TransformersEngine) -> None:
    """Against whole forward passes without cache, padding or `generate`; the checkpoint asks for a repetition penalty."""
    loaded = chatter._loaded
    assert loaded is not None
    prompt = free("look at this", images=(picture(RED),), max_tokens=10)
    completion = one(chatter, prompt)
    row = under_test._row(Job(prompt, soon()), loaded)
    assert row is not None
    inputs = loaded.generator._inputs([row])
    for token in completion.tokens:
        with torch.inference_mode():
            logits = loaded.generator.model(**inputs, use_cache=False).logits[0, -1]
        logprob, best = torch.log_softmax(logits, -1).max(-1)
        assert token.logprob == pytest.approx(float(logprob), abs=1e-4)
        for name, value in (("input_ids", int(best)), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            inputs[name] = torch.cat([inputs[name], torch.full_like(inputs[name][:, :1], value)], dim=1)
    assert len(completion.tokens) == 10


def test_inputs_are_those_of_the_upstream_processor(chatter: TransformersEngine, random_folder: Path) -> None:
    """Our own expansion of pictures, against the class that the checkpoint names."""

    class WithoutVideo(Qwen2_5_VLProcessor):
        """The upstream class, less the part that needs torchvision."""

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            mixin: Any = ProcessorMixin
            mixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    loaded = chatter._loaded
    assert loaded is not None
    processor = WithoutVideo(loaded.pictures, loaded.chat._tokenizer, loaded.chat._tokenizer.chat_template)
    prompts = [
        free("a longer text", images=(picture(RED), picture(GREEN, (140, 70)))),
        free("b"),
        free("c", images=(picture(RED),)),
    ]
    rows = [under_test._row(Job(prompt, soon()), loaded) for prompt in prompts]
    ours = loaded.generator._inputs([row for row in rows if row is not None])
    text = [
        loaded.chat._tokenizer.apply_chat_template(
            [{"role": m.role, "content": loaded.chat._content(m)} for m in prompt.messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    processor.tokenizer.padding_side = "left"
    upstream = processor(
        text=text, images=[[i.pixels() for i in p.images] for p in prompts], padding=True, return_tensors="pt"
    )
    assert set(upstream) == set(ours)
    for name, value in upstream.items():
        torch.testing.assert_close(ours[name], value, check_dtype=False)


# --- faults --------------------------------------------------------------------------------------------------------------


def test_one_row_that_can_t_be_judged_does_not_spoil_the_batch(chatter: TransformersEngine) -> None:
    prompts = [free("good"), free("word " * 600), free("<|im_end|>"), free("", images=(picture(RED, (600, 2)),))]
    good, long, forged, thin = chatter.generate(prompts, deadline=soon())
    assert isinstance(good, Completion)
    assert isinstance(long, ContentError)
    assert "at most 511" in str(long)
    assert isinstance(forged, ContentError)
    assert isinstance(thin, ContentError)
    assert "unequal" in str(thin)


def test_an_answer_ends_where_the_model_s_positions_end(chatter: TransformersEngine) -> None:
    completion = one(chatter, free("word " * 150, max_tokens=5000))
    assert completion.finish == "length"
    assert completion.usage.prompt_tokens + completion.usage.completion_tokens == 512


ENDLESS = free("go on", max_tokens=40_000, top_logprobs=0)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.05])
def test_the_deadline_holds_and_the_batch_is_given_up(tireless: TransformersEngine, seconds: float) -> None:
    deadline = Deadline.after(seconds)
    started = time.monotonic()
    outcomes = tireless.generate([ENDLESS] * 3, deadline=deadline)
    assert time.monotonic() - started < max(seconds, 0) + 1
    assert all(isinstance(o, EngineUnavailableError) and "deadline" in str(o) for o in outcomes)
    _assert_free(tireless)


def test_a_cancelled_call_gives_up_its_batch(tireless: TransformersEngine) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(tireless.agenerate([ENDLESS], deadline=soon()))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    _assert_free(tireless)


def test_close_gives_up_the_batch(tireless: TransformersEngine) -> None:
    (job,) = tireless._batcher.submit([ENDLESS], soon())
    time.sleep(0.1)
    started = time.monotonic()
    tireless.close()
    assert time.monotonic() - started < 1
    assert "closed" in str(job.outcome())


def test_the_interpreter_exits_while_the_model_runs(tireless: TransformersEngine) -> None:
    """A thread inside torch while the interpreter goes away would abort the process."""
    code = f"""if True:
        import time, torch
        torch.set_num_threads(1)
        from guardrail_vl.engines.base import Deadline
        from guardrail_vl.engines.transformers import TransformersEngine
        from guardrail_vl.prompt_format.base import Prompt, PromptMessage, PromptText
        engine = TransformersEngine({tireless._settings.model!r}, dtype="float32")
        endless = Prompt((PromptMessage("user", (PromptText("go on"),)),), max_tokens=40_000)
        (job,) = engine._batcher.submit([endless], Deadline.after(100))
        time.sleep(0.3)
        assert not job.future.done()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def _assert_free(engine: TransformersEngine) -> None:
    started = time.monotonic()
    one(engine, free("next", max_tokens=1))
    assert time.monotonic() - started < 1


def test_short_answers_leave_a_batch_early(chatter: TransformersEngine) -> None:
    """In a batch with a long answer, a short one is not held back until the long one is done."""
    deadline = soon()
    long, short = chatter._batcher.submit([free("a", max_tokens=400), free("b", max_tokens=40)], deadline)
    short.future.result(30)
    assert not long.future.done()
    long.future.cancel()


class Crowded:
    """`generate` of a model on a device with room for only so many rows."""

    def __init__(self, generate: Any, room: int, error: Exception) -> None:
        self.generate, self.room, self.error, self.rows = generate, room, error, list[int]()

    def __call__(self, *, input_ids: Any, **more: Any) -> Any:
        self.rows.append(len(input_ids))
        if len(input_ids) > self.room:
            raise self.error
        return self.generate(input_ids=input_ids, **more)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried…"
    ),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_becomes_a_smaller_batch(
    chatter: TransformersEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    loaded = chatter._loaded
    assert loaded is not None
    prompts = [free(str(i)) for i in range(7)]
    alone = [one(chatter, prompt) for prompt in prompts]
    crowded = Crowded(loaded.generator.model.generate, 2, error)
    monkeypatch.setattr(loaded.generator.model, "generate", crowded)
    for got, wanted in zip(completed(chatter.generate(prompts, deadline=soon())), alone, strict=True):
        assert_same(got, wanted)
    assert crowded.rows == [7, 3, 1, 2, 4, 2, 2]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_on_one_row_is_an_error_with_a_hint(
    chatter: TransformersEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    loaded = chatter._loaded
    assert loaded is not None
    monkeypatch.setattr(loaded.generator.model, "generate", Crowded(None, 0, error))
    for outcome in chatter.generate([free("a"), free("b")], deadline=soon()):
        assert isinstance(outcome, EngineUnavailableError)
        assert outcome.hint
        assert outcome.__cause__ is error
        assert error.__traceback__ is None


def test_another_failure_of_the_model_is_an_engine_error(
    chatter: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = chatter._loaded
    assert loaded is not None
    failing = Crowded(None, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    monkeypatch.setattr(loaded.generator.model, "generate", failing)
    outcomes = chatter.generate([free("a"), free("b")], deadline=soon())
    assert [type(o) for o in outcomes] == [EngineError, EngineError]
    assert failing.rows == [2]


def test_rows_of_unlike_length_are_not_padded_to_one_another_s_length() -> None:
    def row(length: int) -> Row:
        return Row(Job(free(""), soon()), [0] * length, 1)

    rows = [row(n) for n in (10, 100, 12, 90, 11)]
    batches = under_test._split(rows, 100)
    assert [[len(r.ids) for r in batch] for batch in batches] == [[10, 11, 12], [90], [100]]
    assert under_test._split([], 100) == []
    assert [len(b) for b in under_test._split([row(500)], 100)] == [1]


# --- loading, closing, copying -----------------------------------------------------------------------------------------


def test_close_frees_the_weights_and_the_next_call_loads_them_again(judge_folder: Path) -> None:
    engine = TransformersEngine(judge_folder, dtype="float32")
    before = one(engine, reason("kill"))
    engine.close()
    engine.close()
    assert engine._loaded is None
    assert_same(one(engine, reason("kill")), before)
    engine.close()


def test_a_pickle_carries_the_configuration_only(judge: TransformersEngine) -> None:
    data = pickle.dumps(judge)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy._loaded is None
    assert_same(one(copy, reason("kill")), one(judge, reason("kill")))
    copy.close()


def test_weights_that_are_gone_when_they_are_wanted_again_are_an_outcome(tmp_path: Path) -> None:
    engine = TransformersEngine(build_checkpoint(tmp_path / "here"))
    engine.close()
    (tmp_path / "here").rename(tmp_path / "gone")
    outcomes = engine.generate([free("a"), free("b")], deadline=soon())
    assert [type(o) for o in outcomes] == [ConfigurationError, ConfigurationError]
    engine.close()


def _ask_in_child(engine: TransformersEngine, answer: multiprocessing.SimpleQueue[str]) -> None:
    answer.put(one(engine, reason("kill", images=(picture(RED),))).text)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_use_it(judge: TransformersEngine) -> None:
    wanted = one(judge, reason("kill", images=(picture(RED),))).text
    context = multiprocessing.get_context("fork")
    answer: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    child = context.Process(target=_ask_in_child, args=(judge, answer))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answer.get() == wanted


def test_a_missing_checkpoint_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        TransformersEngine(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError):
        TransformersEngine(tmp_path)


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_wait": -1}, {"dtype": "auto"}])
def test_wrong_arguments_are_named(judge_folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        TransformersEngine(judge_folder, **wrong)


def test_the_checkpoint_s_own_format_is_told(judge: TransformersEngine, tmp_path: Path) -> None:
    assert judge.trained_format is None
    folder = build_checkpoint(tmp_path / "told")
    (folder / "guard.json").write_text('{"format": "guardreasoner-vl/1", "golden": "abc"}')
    engine = TransformersEngine(folder)
    assert engine.trained_format == TrainedFormat("guardreasoner-vl/1", "abc")
    engine.close()


def test_no_dtype_is_chosen_that_this_cpu_only_emulates(judge_folder: Path) -> None:
    engine = TransformersEngine(judge_folder, device="cpu")
    assert engine._loaded is not None
    fast = cpu_has_bfloat16()
    assert engine._loaded.generator.model.dtype is (torch.bfloat16 if fast else torch.float32)
    engine.close()


def test_a_causal_text_model_runs_too(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine(tmp_path, dtype="float32", max_wait=0.05)
    prompts = [free("one"), free("and another one, longer")]
    alone = [one(engine, prompt) for prompt in prompts]
    *batched, refused = engine.generate([*prompts, free("", images=(picture(RED),))], deadline=soon())
    for got, wanted in zip(completed(batched), alone, strict=True):
        assert_same(got, wanted)
    assert isinstance(refused, ContentError)
    engine.close()
