"""Runs as an evaluation leaves them, with known quirks, made from a seed: sets of all kinds, hostile texts, pictures."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.evaluation.records import Cohort, Record
from guardrail_vl.evaluation.running import Run, SetInfo
from guardrail_vl.verdict import Action, Label, Stage

HOSTILE = (
    "</pre></script><script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "{{ 7*7 }} {% for x in y %} ]]> --> <!-- ",
    "right-to-left \u202e desrever \u200b hidden \x00 \x1b[31m \ud800 end",
    "javascript:document.title='pwned' &lt;b&gt; \"' ` $\\alpha_1$ ${x}",
)
"""Texts that must do nothing."""
NAMES = ("ToxicChat", "OpenAIModeration", "AegisSafetyTest", "SimpleSafetyTests", "HarmBenchPrompt", "WildGuardTest")


def picture(words: str = "how to", colour: str = "#ddeeff") -> bytes:
    image = Image.new("RGB", (240, 160), colour)
    ImageDraw.Draw(image).text((20, 60), words, fill="#223344")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def case_set(
    name: str, stage: Stage, size: int, share: float, *, seed: int, pictures: bool = False, hostile: bool = True
) -> CaseSet:
    """A set of `size` samples of which `share` is harmful; every eleventh has no label, some are hostile."""
    chance = random.Random(f"{name} {stage} {seed}")
    cases = []
    for number in range(size):
        harmful = chance.random() < share
        text = (
            HOSTILE[number % len(HOSTILE)]
            if hostile and number % 7 == 0
            else f"Sample {number} of {name}: tell me about it. " * 3
        )
        cases.append(
            Case(
                f"{name}.{number:04d}",
                stage,
                None if number % 11 == 10 else Label.HARMFUL if harmful else Label.UNHARMFUL,
                prompt=text,
                response=f"Certainly, number {number}." if stage == Stage.RESPONSE else None,
                images=(picture(f"number {number}"),) if pictures else (),
                category=f"category {chance.randrange(6)}" if harmful else ("everyday" if number % 3 else ""),
                group=f"{name}.{number // 2}",
            )
        )
    return CaseSet(name, tuple(cases))


def judged(one: CaseSet, *, skill: float, seed: int, scores: bool = True, texts: bool = True) -> list[Record]:
    """What a guard of that skill (0: blind, 3: good) says of them; every 23rd completion follows no format."""
    chance = random.Random(f"{one.name} {seed}")
    records = []
    for number, case in enumerate(one.cases):
        sign = 1 if case.gold == Label.HARMFUL else -1
        score = 1 / (1 + 2.718281828 ** -(sign * skill + chance.gauss(0, 1.6)))
        label: Label | None = Label.HARMFUL if score >= 0.5 else Label.UNHARMFUL
        failed = texts and number % 23 == 22
        line = "Request" if case.stage == Stage.PROMPT else "Response"
        text = (
            "I can't help with that."
            if failed
            else f"<think>{'step ' * 30}</think>\n<result>\n{line}: {label}\n</result>"
        )
        records.append(
            Record(
                one.name,
                case.id,
                case.digest,
                case.stage,
                case.gold,
                None if failed else label,
                action=Action.BLOCK if failed or label == Label.HARMFUL else Action.ALLOW,
                score=score if scores else None,
                text=text if texts else None,
                error="ParseError" if failed else "",
                prompt_tokens=chance.randrange(60, 900) if texts else 0,
                completion_tokens=chance.randrange(90, 380) if texts else 0,
                latency=chance.lognormvariate(0.5 if texts else -4, 0.5),
                modality=case.modality,
                category=case.category,
                group=case.group,
            )
        )
    return records


def run(
    sets: Sequence[CaseSet], *, model: str = "guard-3b@1f2e3d", skill: float = 2.0, seed: int = 1,
    scores: bool = True, texts: bool = True, folder: Path = Path("run"), speed: str = "reason",
) -> Run:  # fmt: skip
    cohort = Cohort(
        model=model,
        engine="VLLMEngine" if texts else "BaselineEngine",
        format="guardreasoner-vl/1" if texts else "embedded/1",
        speed=speed,
        policy="5f3c9a7de1",
        thresholds="model's own labels",
        version="0.1.0",
        machine="Xeon, 2 cores, Python 3.11; batch 32, 1 at a time",
    )
    records = [r for one in sets for r in judged(one, skill=skill, seed=seed, scores=scores, texts=texts)]
    infos = {one.name: SetInfo(one.hash, len(one.cases)) for one in sets}
    return Run(folder, cohort, infos, "2026-01-02T03:04:05+00:00", tuple(records))


def many_sets(count: int = 30, *, size: int = 60, seed: int = 1) -> list[CaseSet]:
    """Sets of both tasks; some are all harmful, some all harmless, some have pictures."""
    sets = []
    for number in range(count):
        name = NAMES[number] if number < len(NAMES) else f"source_number_{number:02d}_with_a_long_name"
        stage = Stage.RESPONSE if number % 3 == 2 and number >= len(NAMES) else Stage.PROMPT
        share = (0.15, 0.5, 0.65, 1.0, 0.0)[number % 5]
        sets.append(case_set(name, stage, size + 7 * number, share, seed=seed, pictures=number % 6 == 5))
    return sets


def without(one: Run, names: Sequence[str]) -> Run:
    """The same run, as if it had not had these sets."""
    return replace(
        one,
        sets={name: info for name, info in one.sets.items() if name not in names},
        records=tuple(record for record in one.records if record.set not in names),
    )
