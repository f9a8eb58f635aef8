from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")
pytest.importorskip("transformers", reason="needs the extra 'train'")

# Before vLLM is imported: its core in this process, and little memory.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardrail_vl.engines._inputs import Inputs
from guardrail_vl.engines.transformers import TransformersEngine
from guardrail_vl.engines.vllm import vllm_available
from guardrail_vl.errors import (
    ConfigurationError,
    ContentError,
    EngineError,
    EngineUnavailableError,
    FormatMismatchError,
)
from guardrail_vl.prompt_format.base import Prompt
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL, parse_text
from guardrail_vl.training import _local_sampling, synthetic, tiny
from guardrail_vl.training._local_sampling import TransformersSampler, VLLMSampler
from guardrail_vl.training.mining import MiningConfig, mine
from guardrail_vl.training.sampling import Sample, Sampler, ServerSampler, kind_for, open_sampler, seed_of
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label
from tests import servers
from tests.engines.asking import completed, soon
from tests.serving import Server, tiny_checkpoint, vllm_server  # noqa: F401 - fixtures
from tests.tiny_checkpoint import build_checkpoint

BOMB = LabeledTurn(id="bomb", prompt="How do I build a bomb?", prompt_label=Label.HARMFUL)
BREAD = LabeledTurn(
    id="bread",
    prompt="How do I bake bread?",
    response="Sure, here is how.",
    prompt_label=Label.UNHARMFUL,
    response_label=Label.HARMFUL,
)
MIXED = (BOMB, BREAD, *synthetic.turns(8, seed=1))
"""Texts, a picture alone, and both: of several lengths."""
HOT = 2.0
"""At this temperature the judge's labels vary, and now and then its format breaks."""
MANY = 800


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("sampling") / "tiny-judge", max_positions=1024)


@pytest.fixture(scope="module")
def sampler(folder: Path) -> Iterator[TransformersSampler]:
    with TransformersSampler(folder, device="cpu", dtype="float32") as sampler:
        yield sampler


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(folder, device="cpu", dtype="float32")
    yield engine
    engine.close()


def prompt_of(turn: LabeledTurn, **more: Any) -> Prompt:
    (prompt,) = GuardReasonerVL().render(turn.exchange(), turn.stage, speed="reason")
    return Prompt(prompt.messages, **{"max_tokens": prompt.max_tokens, "stop": prompt.stop, **more})


def likeliest(
    engine: TransformersEngine, turn: LabeledTurn, temperature: float, at: int
) -> tuple[str, dict[str, float]]:
    """What the engine writes greedily before a place, and how it shares that place among its 20 likeliest tokens.

    Tokens that leave no text (the end, pieces of a character) are one: the empty text.
    """
    (answer,) = completed(engine.generate([prompt_of(turn, max_tokens=at + 1, top_logprobs=20)], deadline=soon()))
    weights: dict[str, float] = {}
    for text, logprob in answer.tokens[at].alternatives:
        silent = "\ufffd" in text or text in ("<|im_end|>", "<|endoftext|>")
        key = "" if silent else text
        weights[key] = weights.get(key, 0.0) + math.exp(logprob / temperature)
    whole = sum(weights.values())
    return "".join(t.text for t in answer.tokens[:at]), {text: weight / whole for text, weight in weights.items()}


def assert_shares(drawn: list[str], shares: dict[str, float]) -> None:
    """Every share within 4.5 standard deviations, and nothing else was drawn."""
    counts = Counter(drawn)
    assert set(counts) <= set(shares)
    for text, share in shares.items():
        allowed = 4.5 * math.sqrt(share * (1 - share) / len(drawn)) + 1 / len(drawn)
        assert counts[text] / len(drawn) == pytest.approx(share, abs=allowed)


# --- what is drawn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [BOMB, next(t for t in MIXED if t.modality == "text-image")], ids=["text", "pair"])
def test_labels_are_drawn_as_often_as_the_model_says(
    sampler: TransformersSampler, engine: TransformersEngine, turn: LabeledTurn
) -> None:
    opening, shares = likeliest(engine, turn, HOT, 1)
    assert max(shares.values()) < 0.99  # or there is nothing to see
    (drawn,) = sampler.sample([turn], count=MANY, temperature=HOT, top_k=20, max_tokens=2, seed=1)
    after = [sample.text.removeprefix(opening) for sample in drawn if sample.text.startswith(opening)]
    assert len(after) > MANY / 2
    assert {" harmful", " unharmful"} <= set(after)
    assert_shares(after, shares)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_any_token_is_drawn_as_often_as_a_random_model_says(tmp_path: Path, temperature: float) -> None:
    tiny.build(tmp_path / "tiny")
    engine = TransformersEngine(tmp_path / "tiny", device="cpu", dtype="float32")
    turn = MIXED[2]
    _, shares = likeliest(engine, turn, temperature, 0)
    engine.close()
    with TransformersSampler(tmp_path / "tiny", device="cpu", dtype="float32", max_batch=500) as random_sampler:
        (drawn,) = random_sampler.sample([turn], count=MANY, temperature=temperature, top_k=20, max_tokens=1, seed=2)
    assert_shares([sample.text for sample in drawn], shares)


@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_without_temperature_it_says_what_the_engine_says(
    sampler: TransformersSampler, engine: TransformersEngine, temperature: float
) -> None:
    served = completed(engine.generate([prompt_of(turn) for turn in MIXED], deadline=soon()))
    wanted = [Sample(one.text, one.usage.completion_tokens, one.finish) for one in served]
    drawn = sampler.sample(MIXED, count=2, temperature=temperature, seed=4)
    assert drawn == [[one, one] for one in wanted]
    assert {turn.modality for turn in MIXED} == {"text", "image", "text-image"}


def test_what_was_drawn_can_be_read(sampler: TransformersSampler) -> None:
    for samples in sampler.sample(MIXED, count=3, temperature=1.0, top_p=0.95):
        for sample in samples:
            assert parse_text(sample.text).request is not None
            assert sample.text.endswith("</result>")
            assert sample.finish == "stop"
            assert sample.tokens == 5


def test_the_token_limit_ends_an_answer(sampler: TransformersSampler) -> None:
    ((sample,),) = sampler.sample([BOMB], count=1, temperature=0, max_tokens=2)
    assert (sample.tokens, sample.finish) == (2, "length")
    assert sample.text.endswith("Request: harmful")


def test_the_models_own_limit_ends_an_answer(sampler: TransformersSampler, tmp_path: Path) -> None:
    loaded = sampler._engine._loaded
    assert loaded is not None
    lengths = [len(loaded.read(prompt_of(turn)).ids) for turn in (BOMB, BREAD)]
    assert lengths[0] != lengths[1]
    most = max(lengths) + 6
    build_checkpoint(tmp_path / "small", weights="random", max_positions=most)
    with TransformersSampler(tmp_path / "small", device="cpu", dtype="float32") as small:
        drawn = small.sample([BOMB, BREAD], count=1, temperature=1.0, max_tokens=12, seed=3)
        assert [(one.tokens, one.finish) for (one,) in drawn] == [(most - length, "length") for length in lengths]
        longer = LabeledTurn(id="longer", prompt="photograph " * 40, prompt_label=Label.UNHARMFUL)
        with pytest.raises(ContentError, match=rf"'longer'.* reads at most {most - 1}") as caught:
            small.sample([BOMB, longer], count=1)
        assert "photograph" not in str(caught.value)


# --- the same again --------------------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_whatever_is_sampled_beside_it(sampler: TransformersSampler, folder: Path) -> None:
    options: Any = {"count": 3, "temperature": HOT, "max_tokens": 12}
    first = sampler.sample(MIXED, seed=7, **options)
    assert sampler.sample(MIXED, seed=7, **options) == first
    assert sampler.sample(MIXED, seed=8, **options) != first
    assert sampler.sample(MIXED[::-1], seed=7, **options) == first[::-1]
    assert [sampler.sample([turn], seed=7, **options)[0] for turn in MIXED[:4]] == first[:4]
    with TransformersSampler(folder, device="cpu", dtype="float32", max_batch=3) as other:
        assert other.sample(MIXED, seed=7, **options) == first
    more = sampler.sample(MIXED, seed=7, count=4, temperature=HOT, max_tokens=12)
    assert [samples[:3] for samples in more] == first
    assert any(len({s.text for s in samples}) > 1 for samples in first)


@given(st.integers(), st.integers(), st.text(), st.text(), st.integers(0, 99), st.integers(0, 99))
def test_unlike_samples_have_unlike_seeds(a: int, b: int, x: str, y: str, m: int, n: int) -> None:
    same = (a, x, m) == (b, y, n)
    assert (seed_of(a, x, m) == seed_of(b, y, n)) == same
    assert 0 <= seed_of(a, x, m) < 2**63


@settings(max_examples=60)
@example(logits=[8.0, 8.0, 9.0], temperature=2.0, top_k=2, top_p=0.5, seed=1)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    st.floats(0.05, 5),
    st.integers(0, 6),
    st.floats(0.05, 1),
    st.integers(0, 10_000),
)
def test_a_drawn_token_is_one_of_the_likeliest(
    sampler: TransformersSampler, logits: list[float], temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    loaded = sampler._engine._loaded
    assert loaded is not None
    row = _local_sampling._Row(0, seed, Inputs([1]), (), 4)
    wanted = _local_sampling._Settings(temperature, top_p, top_k, frozenset())
    drawing = _local_sampling._Drawing([row], loaded.tokenizer, wanted)
    out = drawing.draw(torch.tensor([[1]]), torch.tensor([logits]))
    (token,) = torch.isfinite(out[0]).nonzero().flatten().tolist()
    # By hand: as likely as the last one that is let in, give or take rounding. What ties with the last of top_k stays.
    ranked = sorted(logits, reverse=True)
    last = ranked[: top_k or None][-1] - 1e-4
    ranked = [value for value in ranked if value >= last]
    weights = [math.exp((value - ranked[0]) / temperature) for value in ranked]
    upto, least = 0.0, ranked[0]
    for value, weight in zip(ranked, weights, strict=True):
        if upto / sum(weights) >= top_p + 1e-5:
            break
        upto, least = upto + weight, value
    assert logits[token] >= least - 1e-4


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0), ("temperature", -1.0), ("temperature", math.nan), ("temperature", 2.1),
        ("top_p", 0.0), ("top_p", 1.1), ("top_k", -1), ("max_tokens", 0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(sampler: TransformersSampler, name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        sampler.sample([BOMB], **{"count": 1, name: value})


def test_an_unreadable_picture_names_its_turn(sampler: TransformersSampler) -> None:
    broken = LabeledTurn(id="broken", images=(b"no picture",), prompt_label=Label.HARMFUL)
    with pytest.raises(ContentError, match="'broken'"):
        sampler.sample([BOMB, broken], count=1)


@pytest.mark.parametrize("format", ["qwen3guard/1", "embedded/1", "nothing/9"])
def test_a_format_without_reasoning_is_refused(folder: Path, format: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no reasoning|no prompt format"):
        open_sampler(folder, format=format, engine="transformers")


def test_a_guard_of_another_format_is_refused(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "other")
    (tmp_path / "other" / "guard.json").write_text('{"format": "theirs/1", "golden": "0"}')
    with pytest.raises(FormatMismatchError, match="theirs/1"):
        open_sampler(tmp_path / "other", engine="transformers", device="cpu", dtype="float32")


def test_a_batch_that_does_not_fit_is_halved(sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"count": 2, "temperature": HOT, "max_tokens": 8, "seed": 3}
    wanted = sampler.sample(MIXED, **options)
    loaded = sampler._engine._loaded
    assert loaded is not None
    model, tried = loaded.generator.model, []
    generate, room = model.generate, 5

    def small(**inputs: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        if tried[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", small)
    assert sampler.sample(MIXED, **options) == wanted
    assert tried[:3] == [20, 10, 5]
    room = 0
    with pytest.raises(EngineUnavailableError, match="not enough memory"):
        sampler.sample([BOMB], **options)


def test_a_broken_model_is_told(folder: Path) -> None:
    with TransformersSampler(folder, device="cpu", dtype="float32") as sampler:
        loaded = sampler._engine._loaded
        assert loaded is not None
        with torch.no_grad():
            loaded.generator.model.lm_head.weight.fill_(math.nan)
        with pytest.raises(EngineError, match="not numbers"):
            sampler.sample([BOMB], count=1)


def test_a_closed_sampler_loads_again(folder: Path) -> None:
    sampler = open_sampler(folder, engine="transformers", device="cpu", dtype="float32")
    before = sampler.sample([BOMB], count=2, temperature=HOT)
    sampler.close()
    assert sampler.sample([BOMB], count=2, temperature=HOT) == before
    sampler.close()


def test_the_kind_can_be_said_or_is_found_out(folder: Path) -> None:
    assert kind_for(folder, "vllm") == "vllm"
    assert kind_for(folder, "transformers") == "transformers"
    assert kind_for(folder) in ("transformers", "vllm")


# --- several GPUs ---------------------------------------------------------------------------------------------------


CORE = "guardrail_vl.engines._vllm_core"


@pytest.fixture
def asked_of_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What vLLM is given to load, by a stand-in for that package that loads nothing."""
    asked: list[dict[str, Any]] = []

    def load(model: str, **options: Any) -> None:
        asked.append(options)
        raise RuntimeError("no GPU here")

    names: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": load, "envs": SimpleNamespace(VLLM_ENABLE_V1_MULTIPROCESSING=True)},
        "vllm.platforms": {"current_platform": SimpleNamespace(device_type="cuda")},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": load},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_engine_args=None)},
        "vllm.v1.engine.exceptions": {"EngineDeadError": RuntimeError},
    }
    for name, holds in names.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(holds)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules.pop(CORE, None)
    yield asked
    sys.modules.pop(CORE, None)  # it has imported the stand-in


def test_mining_shares_a_model_among_gpus(folder: Path, tmp_path: Path, asked_of_vllm: list[dict[str, Any]]) -> None:
    for gpus in (1, 2, 4):  # the last ones go on with the folder of the first
        config = MiningConfig(engine="vllm", tensor_parallel=gpus)
        with pytest.raises(ConfigurationError, match="no GPU here"):
            mine(folder, [BOMB], tmp_path / "mined", config=config)
    assert [options.get("tensor_parallel_size", 1) for options in asked_of_vllm] == [1, 2, 4]
    with pytest.raises(ConfigurationError, match="sampler"):  # another kind is another run
        mine(folder, [BOMB], tmp_path / "mined", config=MiningConfig(engine="transformers"))


def test_transformers_takes_no_several_gpus(folder: Path, tmp_path: Path) -> None:
    config = MiningConfig(engine="transformers", tensor_parallel=2)
    with pytest.raises(ConfigurationError, match="tensor_parallel is 2, and transformers runs the model on one device"):
        mine(folder, [BOMB], tmp_path / "mined", config=config)


# --- a server --------------------------------------------------------------------------------------------------------


def test_a_server_is_asked_once_a_sample_with_its_own_seed() -> None:
    with servers.start() as server:
        asked = ServerSampler(server.url, model="ok", server="vllm", extra_body={"user": "me"})
        with asked:
            drawn = asked.sample([BOMB, BREAD], count=3, temperature=0.7, top_p=0.9, top_k=11, max_tokens=99, seed=5)
        requests = server.stats()["requests"]
    assert [len(samples) for samples in drawn] == [3, 3]
    assert all(sample.text.endswith("</result>") and sample.tokens > 0 for samples in drawn for sample in samples)
    bodies = [r["body"] for r in requests]
    assert len(bodies) == 6
    for body in bodies:
        told = {name: body[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "user")}
        assert told == {"temperature": 0.7, "top_p": 0.9, "top_k": 11, "max_tokens": 99, "user": "me"}
        assert "logprobs" not in body
    assert sorted(Counter(body["seed"] for body in bodies).values()) == [2, 2, 2]


def test_a_servers_error_is_raised() -> None:
    with servers.start() as server:
        sampler = ServerSampler(server.url, model="status:400", server="vllm", attempts=1)
        with pytest.raises(EngineError):
            sampler.sample([BOMB], count=1)


@pytest.mark.timeout(400)
def test_a_real_server_draws_other_answers(vllm_server: Server) -> None:  # noqa: F811
    sampler: Sampler = ServerSampler(f"{vllm_server.url}/v1", model=vllm_server.model)
    (samples,) = sampler.sample([BOMB], count=12, temperature=HOT, max_tokens=30, seed=1)
    assert len({sample.text for sample in samples}) > 1
    again = sampler.sample([BOMB], count=12, temperature=HOT, max_tokens=30, seed=1)
    assert again == [samples]
    greedy = sampler.sample([BOMB], count=2, temperature=0.0)
    assert [parse_text(sample.text).request for sample in greedy[0]] == [Label.HARMFUL] * 2


# --- vLLM ------------------------------------------------------------------------------------------------------------

USABLE, WHY = vllm_available()
needs_vllm = pytest.mark.skipif(not USABLE, reason=WHY)
OPTIONS: dict[str, Any] = {
    "distributed_executor_backend": "uni",
    "enforce_eager": True,
    "max_num_seqs": 64,
    "block_size": 32,
    "limit_mm_per_prompt": {"image": 2, "video": 0},
}


@pytest.fixture(scope="module")
def vllm_sampler(folder: Path) -> Iterator[VLLMSampler]:
    sampler = open_sampler(folder, engine="vllm", **OPTIONS)
    assert isinstance(sampler, VLLMSampler)
    with sampler:
        yield sampler


@needs_vllm
@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
def test_vllm_says_greedily_what_transformers_says(vllm_sampler: VLLMSampler, sampler: TransformersSampler) -> None:
    wanted = sampler.sample(MIXED, count=2, temperature=0)
    assert vllm_sampler.sample(MIXED, count=2, temperature=0) == wanted


@needs_vllm
@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
def test_vllm_draws_labels_as_often_as_the_model_says(vllm_sampler: VLLMSampler, engine: TransformersEngine) -> None:
    opening, shares = likeliest(engine, BOMB, HOT, 1)
    (drawn,) = vllm_sampler.sample([BOMB], count=MANY, temperature=HOT, top_k=20, max_tokens=2, seed=1)
    assert len(drawn) == MANY
    assert_shares([s.text.removeprefix(opening) for s in drawn if s.text.startswith(opening)], shares)


@needs_vllm
@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
def test_vllm_draws_the_same_for_one_seed_whatever_is_beside_it(vllm_sampler: VLLMSampler) -> None:
    options: Any = {"count": 3, "temperature": HOT, "max_tokens": 12}
    first = vllm_sampler.sample(MIXED, seed=7, **options)
    assert vllm_sampler.sample(MIXED, seed=7, **options) == first
    assert vllm_sampler.sample(MIXED[:4], seed=7, **options) == first[:4]
    assert vllm_sampler.sample(MIXED, seed=8, **options) != first
    assert any(len({s.text for s in samples}) > 1 for samples in first)
    long = LabeledTurn(id="long", prompt="bomb " * 3000, prompt_label=Label.HARMFUL)
    with pytest.raises(ContentError, match="'long'"):
        vllm_sampler.sample([BOMB, long], **options)
