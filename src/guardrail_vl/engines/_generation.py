"""One padded batch through `generate` of transformers: tensors in, a completion a row out, each as soon as it is done.

Knows token ids, rows and their limits. Knows no chat template, no queue and no label.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from guardrail_vl.engines._batching import Job, closed
from guardrail_vl.engines._decode import Transcript, piece
from guardrail_vl.engines._inputs import hf, padded
from guardrail_vl.engines.base import late
from guardrail_vl.errors import MissingDependencyError
from guardrail_vl.prompt_format.base import Completion
from guardrail_vl.verdict import Usage

try:
    import torch
except ImportError as error:  # pragma: no cover - the test environment has them
    raise MissingDependencyError(error.name or "torch", extra="local", needed_for="TransformersEngine") from error


@dataclass(slots=True)
class Row:
    """One prompt as the model takes it, and what became of it so far."""

    job: Job
    ids: list[int]
    """Token ids; a picture takes as many placeholder ids as the model has visual tokens for it."""
    limit: int
    """New tokens at most."""
    image_token: int = -1
    """Id of the placeholder; -1: the model takes no pictures."""
    pixels: Any = None
    """Float tensor (patches, values of a patch), all pictures of the row one after another; None: no picture."""
    grid: Any = None
    """Int tensor (pictures, 3): patches in time, height and width; None: no picture."""


@dataclass(slots=True)
class _Progress:
    transcript: Transcript
    count: int = 0
    done: bool = False


@dataclass(frozen=True)
class Generator:
    """A loaded model and what is needed to run it. The same for every batch."""

    model: Any
    tokenizer: Any
    name: str
    ends: frozenset[int]
    """Ids of the tokens that end an answer."""
    pad: int
    takes_token_types: bool

    def run(self, rows: Sequence[Row], stopping: threading.Event) -> None:
        """Complete the rows and settle their jobs.

        Raises:
            Exception: Whatever torch or transformers raise; rows that are done by then are settled.
        """
        watch = _Watch(self, rows, stopping)
        with torch.inference_mode():
            self.model.generate(
                **self._inputs(rows),
                generation_config=hf.GenerationConfig(
                    max_new_tokens=max(row.limit for row in rows),
                    do_sample=False,
                    eos_token_id=sorted(self.ends),
                    pad_token_id=self.pad,
                ),
                logits_processor=hf.LogitsProcessorList([watch.see_logits]),
                stopping_criteria=hf.StoppingCriteriaList([watch.see_tokens]),
            )

    def _inputs(self, rows: Sequence[Row]) -> dict[str, Any]:
        inputs = padded(
            rows,
            pad=self.pad,
            side="left",
            image_token=rows[0].image_token,
            takes_token_types=self.takes_token_types,
        )
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}


class _Watch:
    """Sees every step of a running batch: gathers text and scores, and says which rows need no more."""

    def __init__(self, generator: Generator, rows: Sequence[Row], stopping: threading.Event) -> None:
        self._generator = generator
        self._rows = rows
        self._stopping = stopping
        self._progress = [_Progress(Transcript(generator.tokenizer, row.job.prompt.stop)) for row in rows]
        self._logits: Any = None

    def see_logits(self, ids: Any, logits: Any) -> Any:
        """Keep this step's logits (rows, vocabulary), unchanged."""
        self._logits = logits
        return logits

    def see_tokens(self, ids: Any, scores: Any, **_: object) -> Any:
        """Take in this step's tokens.

        Args:
            ids: Int tensor (rows, tokens so far).
            scores: Not used.

        Returns:
            Bool tensor (rows): whether the row is done.
        """
        newest = ids[:, -1].tolist()
        scored = self._scored(newest)
        for i, token in enumerate(newest):
            if not self._progress[i].done:
                self._step(i, token, scored.get(i))
        return torch.tensor([p.done for p in self._progress], device=ids.device)

    def _scored(self, newest: list[int]) -> dict[int, tuple[float, list[tuple[str, float]]]]:
        """Log-probability and alternatives of each row's newest token, where they are wanted."""
        asked = [row.job.prompt.top_logprobs for row in self._rows]
        wanted = [i for i, many in enumerate(asked) if many > 0 and not self._progress[i].done]
        if not wanted:
            return {}
        logprobs = torch.log_softmax(self._logits[wanted].float(), dim=-1)
        most = min(max(asked[i] for i in wanted), logprobs.shape[-1])
        values, which = (t.tolist() for t in torch.topk(logprobs, most, dim=-1))
        own = logprobs[range(len(wanted)), [newest[i] for i in wanted]].tolist()
        tokenizer = self._generator.tokenizer
        return {
            i: (own[n], [(piece(tokenizer, t), v) for t, v in zip(which[n], values[n], strict=True)][: asked[i]])
            for n, i in enumerate(wanted)
        }

    def _step(self, i: int, token: int, scored: tuple[float, list[tuple[str, float]]] | None) -> None:
        row, progress = self._rows[i], self._progress[i]
        if self._stopping.is_set() or row.job.over:
            row.job.settle(closed() if self._stopping.is_set() else late())
            progress.done = True
            return
        progress.count += 1
        ended = token in self._generator.ends or progress.transcript.add(token, *(scored or ()))
        row.job.tell(progress.transcript.text)
        if ended:
            self._finish(i, "stop")
        elif progress.count >= row.limit:
            self._finish(i, "length")

    def _finish(self, i: int, how: Literal["stop", "length"]) -> None:
        row, progress = self._rows[i], self._progress[i]
        progress.done = True
        row.job.settle(
            Completion(
                text=progress.transcript.text,
                finish=how,
                tokens=tuple(progress.transcript.tokens),
                model=self._generator.name,
                usage=Usage(len(row.ids), progress.count),
                latency=time.monotonic() - row.job.since,
            )
        )
