"""GuardReasoner-VL's 14 benchmarks (arXiv 2505.11049, table 5), in the order of its two tables of results.

Label counts are those of the release's files that could be read. WildGuardTest and SPA-VL-Eval could not: None.
"""

from __future__ import annotations

from typing import Final

from guardrail_vl.evaluation._benchmark import Benchmark, Layout
from guardrail_vl.verdict import Stage

RELEASE: Final = "https://huggingface.co/datasets/yueliu1999/GuardReasoner-VLTest"
"""Where the authors keep the files of all 14, in the folder `test`."""

_WILDGUARD_URL: Final = "https://huggingface.co/datasets/allenai/wildguardmix"
_WILDGUARD_OWN: Final = Layout("wildguard", ("wildguard_test.parquet", "wildguard_test.jsonl", "wildguard_test.csv"))
_WILDGUARD_LICENCE: Final = "ODC-BY-1.0"
_WILDGUARD_NOTES: Final = (
    "Gated: AI2's Responsible Use Guidelines have to be accepted. The file has 1,725 rows; the paper's averages of its "
    "own guards use that number, with a missing label counted as unharmful, and its table says {size}."
)
_SPA_NOTES: Final = (
    "Half of SPA-VL's validation rows, with labels that only the release's file has: the original has preferences and "
    "no safety labels, so it isn't read."
)


def _files(*names: str) -> Layout:
    return Layout("guardreasoner", names)


_PROMPT: Final = (
    Benchmark(
        name="toxic_chat",
        title="ToxicChat",
        paper_name="ToxicChat",
        stage=Stage.PROMPT,
        modality="text",
        layouts=(
            _files("ToxicChat.json", "0_8_toxic_chat.json"),
            Layout("toxic_chat", ("0124/toxic-chat_annotation_test.csv", "toxic-chat_annotation_test.csv")),
        ),
        licence="CC-BY-NC-4.0",
        url="https://huggingface.co/datasets/lmsys/toxic-chat",
        size=2853,
        harmful=362,
        unharmful=2491,
        weight=2853,
        notes="The version 0124, test part, rows annotated by people.",
    ),
    Benchmark(
        name="harmbench_prompt",
        title="HarmBench, behaviours",
        paper_name="HarmBenchPrompt",
        stage=Stage.PROMPT,
        modality="text",
        layouts=(
            _files("HarmBenchPrompt.json", "0_3_harmbench_prompt.json"),
            Layout("harmbench_behaviors", ("harmbench_behaviors_text_test.csv",)),
        ),
        licence="MIT",
        url="https://github.com/centerforaisafety/HarmBench",
        size=239,
        harmful=239,
        unharmful=0,
        weight=239,
        notes="The test behaviours but the contextual ones. All harmful: F1 tells no more than recall.",
    ),
    Benchmark(
        name="openai_moderation",
        title="OpenAI moderation evaluation",
        paper_name="OpenAIModeration",
        stage=Stage.PROMPT,
        modality="text",
        layouts=(
            _files("OpenAIModeration.json", "0_2_OpenAIModeration.json"),
            Layout("openai_moderation", ("samples-1680.jsonl.gz", "samples-1680.jsonl")),
        ),
        licence="MIT",
        url="https://github.com/openai/moderation-api-release",
        size=1680,
        harmful=522,
        unharmful=1158,
        weight=1680,
        notes="Harmful where any category is flagged; a category that a row leaves out counts as not flagged.",
    ),
    Benchmark(
        name="aegis_safety_test",
        title="Aegis AI content safety 1.0, test",
        paper_name="AegisSafetyTest",
        stage=Stage.PROMPT,
        modality="text",
        layouts=(
            _files("AegisSafetyTest.json", "0_1_AegisSafetyTest.json"),
            Layout(
                "aegis",
                (
                    "Content Moderation Extracted Annotations *_test_release_*.parquet",
                    "aegis_1_0_test.parquet",
                    "aegis_1_0_test.csv",
                    "aegis_1_0_test.jsonl",
                    "aegis_1_0_test.json",
                ),
            ),
        ),
        licence="CC-BY-4.0",
        url="https://huggingface.co/datasets/nvidia/Aegis-AI-Content-Safety-Dataset-1.0",
        size=359,
        harmful=232,
        unharmful=127,
        weight=359,
        notes="Rows that are one user message; the majority of the annotators.",
    ),
    Benchmark(
        name="simple_safety_tests",
        title="SimpleSafetyTests",
        paper_name="SimpleSafetyTests",
        stage=Stage.PROMPT,
        modality="text",
        layouts=(
            _files("SimpleSafetyTests.json", "0_0_SimpleSafetyTests.json"),
            Layout("simple_safety_tests", ("SimpleSafetyTests - test cases.csv", "sst_test_cases.csv")),
        ),
        licence="CC-BY-4.0",
        url="https://github.com/bertiev/SimpleSafetyTests",
        size=100,
        harmful=100,
        unharmful=0,
        weight=100,
        notes="All harmful: F1 tells no more than recall. The copy on Hugging Face says CC-BY-2.0.",
    ),
    Benchmark(
        name="wildguard_test_prompt",
        title="WildGuardTest, requests",
        paper_name="WildGuardTest",
        stage=Stage.PROMPT,
        modality="text",
        layouts=(
            _files("WildGuardTestPrompt.json"),
            _WILDGUARD_OWN,
        ),
        licence=_WILDGUARD_LICENCE,
        url=_WILDGUARD_URL,
        size=1756,
        weight=1725,
        notes=_WILDGUARD_NOTES.format(size="1,756"),
    ),
    Benchmark(
        name="harm_image_test",
        title="HarmImageTest",
        paper_name="HarmImageTest",
        stage=Stage.PROMPT,
        modality="image",
        layouts=(_files("HarmImageTest.json"),),
        licence="Apache-2.0",
        url=RELEASE,
        size=3295,
        harmful=837,
        unharmful=2458,
        weight=3295,
        notes=(
            "The licence is that of the authors' collection; its pictures come from UnsafeBench, BadNews, "
            "HatefulMemes, political memes and HOD, whose own terms apply. The constant guess has an F1 of 40.5."
        ),
    ),
    Benchmark(
        name="spa_vl_prompt",
        title="SPA-VL-Eval, requests",
        paper_name="SPA-VL-Eval",
        stage=Stage.PROMPT,
        modality="text-image",
        layouts=(_files("SPA_VL_Eval.json"),),
        licence="CC-BY-4.0",
        url=RELEASE,
        size=3282,
        weight=3282,
        notes=_SPA_NOTES + " The paper's guards saw the response beside the request; here the request is judged alone.",
    ),
)

_RESPONSE: Final = (
    Benchmark(
        name="harmbench_response",
        title="HarmBench, classifier validation",
        paper_name="HarmBenchResponse",
        stage=Stage.RESPONSE,
        modality="text",
        layouts=(
            _files("HarmBenchResponse.json", "0_5_harmbench_response.json"),
            Layout("harmbench_votes", ("text_behaviors_val_set.json", "harmbench_text_behaviors_val_set.json")),
        ),
        licence="MIT",
        url="https://github.com/centerforaisafety/HarmBench",
        size=602,
        harmful=273,
        unharmful=329,
        weight=602,
        notes="The majority of three people's votes.",
    ),
    Benchmark(
        name="safe_rlhf",
        title="PKU-SafeRLHF, test",
        paper_name="SafeRLHF",
        stage=Stage.RESPONSE,
        modality="text",
        layouts=(
            _files("SafeRLHF.json", "0_9_safe_rlhf.json"),
            Layout("safe_rlhf", ("round0/test.jsonl.xz", "safe_rlhf_test.jsonl.xz", "safe_rlhf_test.jsonl")),
        ),
        licence="CC-BY-NC-4.0",
        url="https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
        size=2000,
        harmful=1000,
        unharmful=1000,
        weight=2000,
        notes=(
            "The paper's guard has an F1 of 66.4, no better than the constant guess (66.7). Its 2,000 are a sample; "
            "the original gives both answers of every request whose answers differ in their label."
        ),
    ),
    Benchmark(
        name="beavertails",
        title="BeaverTails, 30k test",
        paper_name="BeaverTails",
        stage=Stage.RESPONSE,
        modality="text",
        layouts=(
            _files("BeaverTails.json", "0_A_beaver_tails.json"),
            Layout("beavertails", ("30k/test.jsonl.gz", "beavertails_30k_test.jsonl.gz", "beavertails_30k_test.jsonl")),
        ),
        licence="CC-BY-NC-4.0",
        url="https://huggingface.co/datasets/PKU-Alignment/BeaverTails",
        size=3021,
        harmful=1733,
        unharmful=1288,
        weight=3021,
    ),
    Benchmark(
        name="xstest_response",
        title="XSTest-Response, harmfulness",
        paper_name="XSTestReponseHarmful",
        stage=Stage.RESPONSE,
        modality="text",
        layouts=(
            _files("XSTestReponseHarmful.json", "XSTestResponseHarmful.json", "0_6_xstest_response_harmful.json"),
            Layout(
                "xstest_response",
                (
                    "response_harmfulness-*.parquet",
                    "xstest_response_harmfulness.parquet",
                    "xstest_response_harmfulness.jsonl",
                    "xstest_response_harmfulness.csv",
                ),
            ),
        ),
        licence="ODC-BY-1.0",
        url="https://huggingface.co/datasets/allenai/xstest-response",
        size=446,
        harmful=78,
        unharmful=368,
        weight=446,
    ),
    Benchmark(
        name="wildguard_test_response",
        title="WildGuardTest, responses",
        paper_name="WildGuardTest",
        stage=Stage.RESPONSE,
        modality="text",
        layouts=(
            _files("WildGuardTestResponse.json"),
            _WILDGUARD_OWN,
        ),
        licence=_WILDGUARD_LICENCE,
        url=_WILDGUARD_URL,
        size=1768,
        weight=1725,
        notes=_WILDGUARD_NOTES.format(size="1,768"),
    ),
    Benchmark(
        name="spa_vl_response",
        title="SPA-VL-Eval, responses",
        paper_name="SPA-VL-Eval",
        stage=Stage.RESPONSE,
        modality="text-image",
        layouts=(_files("SPA_VL_Eval.json"),),
        licence="CC-BY-4.0",
        url=RELEASE,
        size=3282,
        weight=3282,
        notes=_SPA_NOTES,
    ),
)

PAPER: Final = _PROMPT + _RESPONSE
