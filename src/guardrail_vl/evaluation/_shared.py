"""The sources of this project's data folder, as benchmarks: one for each task that a source has labels of.

The folder holds 70% of each source, filtered (its README says how), so a number on it is not one on the whole source.
Refusal labels are no task of a guard and are not here.
"""

from __future__ import annotations

from typing import Final

from guardrail_vl.evaluation._benchmark import Benchmark, Layout
from guardrail_vl.evaluation.cases import Modality
from guardrail_vl.verdict import Stage

_GUARDREASONER: Final = "https://github.com/yueliu1999/GuardReasoner"
_HARMBENCH: Final = "https://github.com/centerforaisafety/HarmBench"
_XSTEST: Final = "https://github.com/paul-rottger/exaggerated-safety"
_RED_INSTRUCT: Final = "https://github.com/declare-lab/red-instruct"
_REFUSAL_DIRECTION: Final = "https://github.com/andyrdt/refusal_direction"
_MOSSBENCH: Final = "https://github.com/xirui-li/MOSSBench"
_MOSSBENCH_LICENCE: Final = "CC-BY-SA-4.0; test use only, training prohibited"

_Counts = tuple[int, int]


def _shared(
    source: str,
    title: str,
    url: str | None,
    licence: str,
    *,
    prompt: _Counts | None = None,
    response: _Counts | None = None,
    modality: Modality = "text",
    repeats: str = "",
    training_prohibited: bool = False,
    notes: str = "",
) -> tuple[Benchmark, ...]:
    """The benchmarks of one source; `prompt` and `response` are its harmful and unharmful samples."""
    counts = {stage: given for stage, given in ((Stage.PROMPT, prompt), (Stage.RESPONSE, response)) if given}
    both = len(counts) == 2
    return tuple(
        Benchmark(
            name=f"shared_{source}_{stage}" if both else f"shared_{source}",
            title=f"{title}, {stage}s" if both else title,
            stage=stage,
            modality=modality,
            layouts=(Layout("shared", (f"{source}.jsonl.gz", f"{source}.jsonl")),),
            licence=licence,
            url=url,
            group="shared",
            size=harmful + unharmful,
            harmful=harmful,
            unharmful=unharmful,
            repeats=repeats if stage is Stage.PROMPT else "",
            training_prohibited=training_prohibited,
            notes=notes,
        )
        for stage, (harmful, unharmful) in counts.items()
    )


SHARED: Final = (
    *_shared(
        "toxic_chat",
        "ToxicChat",
        "https://huggingface.co/datasets/lmsys/toxic-chat",
        "CC-BY-NC-4.0",
        prompt=(234, 1695),
    ),
    *_shared(
        "openai_moderation",
        "OpenAI moderation evaluation",
        "https://github.com/openai/moderation-api-release",
        "MIT",
        prompt=(258, 763),
        notes="Without the rows flagged S3.",
    ),
    *_shared("aegis_safety_test", "Aegis 1.0 test", _GUARDREASONER, "CC-BY-4.0", prompt=(175, 85)),
    *_shared(
        "simple_safety_tests",
        "SimpleSafetyTests",
        "https://github.com/bertiev/SimpleSafetyTests",
        "CC-BY-4.0",
        prompt=(58, 0),
        notes="Without the area of child safety.",
    ),
    *_shared("harmbench_prompts", "HarmBench behaviours", _HARMBENCH, "MIT", prompt=(288, 0)),
    *_shared("harmbench_responses", "HarmBench classifier validation", _HARMBENCH, "MIT", response=(199, 233)),
    *_shared("safe_rlhf", "PKU-SafeRLHF", _GUARDREASONER, "CC-BY-NC-4.0", response=(581, 595)),
    *_shared("beavertails", "BeaverTails", _GUARDREASONER, "CC-BY-NC-4.0", response=(1221, 869)),
    *_shared("xstest_prompts", "XSTest", _XSTEST, "CC-BY-4.0", prompt=(138, 167)),
    *_shared(
        "xstest_response",
        "XSTest-Response",
        _GUARDREASONER,
        "ODC-BY-1.0",
        prompt=(138, 165),
        response=(53, 248),
        repeats="shared_xstest_prompts",
    ),
    *_shared(
        "xstest_completions",
        "XSTest with five models' answers",
        _XSTEST,
        "CC-BY-4.0",
        prompt=(682, 821),
        repeats="shared_xstest_prompts",
        notes="Every request up to five times; the answers have refusal labels only, so they are not judged.",
    ),
    *_shared("advbench", "AdvBench", _REFUSAL_DIRECTION, "MIT", prompt=(366, 0)),
    *_shared("strongreject", "StrongREJECT", _REFUSAL_DIRECTION, "MIT", prompt=(220, 0)),
    *_shared("jbb_behaviors", "JailbreakBench behaviours", _REFUSAL_DIRECTION, "MIT", prompt=(69, 0)),
    *_shared(
        "jbb_artifacts",
        "JailbreakBench artifacts",
        "https://github.com/JailbreakBench/artifacts",
        "MIT",
        prompt=(1118, 0),
        response=(652, 466),
        notes="The labels of the responses are an LLM judge's, not people's.",
    ),
    *_shared("harmfulqa", "HarmfulQA", _RED_INSTRUCT, "Apache-2.0", prompt=(1333, 0), notes="Written by an LLM."),
    *_shared("catqa", "CatQA, English", _RED_INSTRUCT, "Apache-2.0", prompt=(324, 0)),
    *_shared(
        "alpaca_harmless",
        "Alpaca instructions",
        _REFUSAL_DIRECTION,
        "CC-BY-NC-4.0",
        prompt=(0, 2107),
        notes="Ordinary instructions; a few labels may be wrong.",
    ),
    *_shared(
        "mitre_frr",
        "CyberSecEval MITRE false refusals",
        "https://github.com/meta-llama/PurpleLlama",
        "MIT",
        prompt=(0, 526),
        notes="Benign requests about cyber security; written by an LLM.",
    ),
    *_shared(
        "self_instruct",
        "Self-Instruct",
        "https://github.com/yizhongw/self-instruct",
        "Apache-2.0",
        prompt=(0, 306),
    ),
    *_shared("gsm8k", "GSM8K, first 500", "https://github.com/openai/grade-school-math", "MIT", prompt=(0, 327)),
    *_shared(
        "msts_textonly",
        "MSTS, English, text only",
        "https://github.com/paul-rottger/msts-multimodal-safety",
        "CC-BY-4.0",
        response=(10, 537),
    ),
    *_shared(
        "figstep",
        "FigStep",
        "https://github.com/ThuCCSLab/FigStep",
        "MIT",
        prompt=(208, 0),
        modality="text-image",
        notes="Six of its ten categories.",
    ),
    *_shared(
        "harmbench_multimodal",
        "HarmBench multimodal behaviours",
        _HARMBENCH,
        "MIT",
        prompt=(71, 0),
        modality="text-image",
        notes="Harmful by request and picture together; about half are CAPTCHA requests.",
    ),
    *_shared(
        "harmbench_multimodal_responses",
        "HarmBench multimodal classifier validation",
        _HARMBENCH,
        "MIT",
        prompt=(142, 0),
        response=(79, 63),
        modality="text-image",
        repeats="shared_harmbench_multimodal",
        notes="The clean picture stands in for the perturbed one of the source.",
    ),
    *_shared(
        "mossbench",
        "MOSSBench",
        _MOSSBENCH,
        _MOSSBENCH_LICENCE,
        prompt=(0, 126),
        modality="text-image",
        training_prohibited=True,
        notes="Benign requests on pictures that look risky.",
    ),
    *_shared(
        "mossbench_contrast",
        "MOSSBench, contrast set",
        _MOSSBENCH,
        _MOSSBENCH_LICENCE,
        prompt=(93, 0),
        modality="text-image",
        training_prohibited=True,
    ),
    *_shared(
        "typographic_benign",
        "Benign text drawn into pictures",
        "https://github.com/yizhongw/self-instruct",
        "Apache-2.0, CC-BY-4.0",
        prompt=(0, 206),
        modality="text-image",
        notes="Rendered for this project from Self-Instruct and XSTest.",
    ),
    *_shared(
        "openclipart",
        "Open Clip Art",
        "https://packages.debian.org/openclipart-png",
        "CC0/public domain (Open Clip Art Library)",
        prompt=(0, 166),
        modality="image",
        notes="Labels assigned for this project.",
    ),
    *_shared(
        "debian_wallpapers",
        "Debian wallpapers",
        None,
        "CC-BY-SA-4.0/CC-BY-4.0/CC-BY-SA-3.0/GPL-2+ (Debian backgrounds packages)",
        prompt=(0, 38),
        modality="image",
        notes="Labels assigned for this project.",
    ),
    *_shared(
        "skimage_data",
        "Sample pictures of scikit-image and scikit-learn",
        "https://github.com/scikit-image/scikit-image",
        "CC0/BSD-3 (scikit-image, scikit-learn sample images)",
        prompt=(0, 12),
        modality="image",
        notes="Labels assigned for this project.",
    ),
)
