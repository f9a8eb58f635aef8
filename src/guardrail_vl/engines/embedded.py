"""The guard that ships inside the package: no GPU, no download. Scores, not words.

Text goes through a small fine-tuned encoder, window by window and sentence by sentence; the highest score counts. Of a
picture, its text and the name of its main object are judged; what it shows beyond these is not, and every completion
says so. Knows no verdicts.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from guardrail_vl.engines._embedded.cases import Case, WindowTable, prepare
from guardrail_vl.engines._embedded.encoder import Encoder, Vector
from guardrail_vl.engines._embedded.heads import Heads
from guardrail_vl.engines._embedded.pictures import PictureReader
from guardrail_vl.engines._hardware import cpu_cores
from guardrail_vl.engines.base import Deadline, Engine, Outcome, late
from guardrail_vl.errors import ConfigurationError, EngineError, EngineUnavailableError, GuardrailError
from guardrail_vl.prompt_format.base import Completion, Prompt
from guardrail_vl.verdict import Usage

MAX_THREADS: Final = 4
"""More bring nothing for a model this small."""
GROUP_WINDOWS: Final = 256
"""Prompts are taken together until they hold this many windows."""


class _Models:
    """What one process has loaded."""

    def __init__(self, threads: int) -> None:
        self.encoder = Encoder(threads=threads)
        self.heads = Heads.load()
        self.pictures = PictureReader(threads=threads)


class EmbeddedEngine(Engine):
    """The default engine. Its weights load when it is made; the OCR models with the first picture.

    Safe across threads; after a fork the child loads its own. A call may overrun its deadline by one batch of
    1,024 tokens, by one picture, or by the cutting of one text into windows.

    Args:
        threads: Threads that one call may use. None: one for each core, at most 4.

    Raises:
        MissingDependencyError: The `embedded` extra is not installed.
        ConfigurationError: A wrong argument.
    """

    format: ClassVar[str] = "embedded/1"

    def __init__(self, *, threads: int | None = None) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ConfigurationError(f"threads must be at least 1, not {threads!r}.")
        self._threads = threads
        self._lock = threading.Lock()
        self._models: _Models | None = None
        self._forked: list[_Models | None] = []
        heads = self._load().heads
        self.model = f"guardrail-vl-embedded-{heads.version}"
        self.calibrated_band = heads.bands
        _ENGINES.add(self)

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """Score the prompts, batched. What is not done by the deadline gets an error.

        Raises:
            EngineError: The runtime failed on all of them.
            MissingDependencyError: There is a picture, and the OCR package is not installed.
        """
        start = time.monotonic()
        models = self._load()
        outcomes: list[Outcome] = []
        # In groups, so that the first ones are done when the deadline passes in a long batch.
        while len(outcomes) < len(prompts):
            table = WindowTable(models.encoder)
            cases: list[Case | GuardrailError] = []
            with _door():
                for prompt in prompts[len(outcomes) :]:
                    cases.append(prepare(prompt, models.pictures, table, deadline))
                    if len(table.windows) >= GROUP_WINDOWS:
                        break
                needed = (row for case in cases if isinstance(case, Case) for row in case.rows)
                features, done = table.encode(needed, deadline)
            outcomes += [self._outcome(case, table, features, done, models.heads, start) for case in cases]
        return outcomes

    def _outcome(
        self,
        case: Case | GuardrailError,
        table: WindowTable,
        features: Vector,
        done: Sequence[bool],
        heads: Heads,
        start: float,
    ) -> Outcome:
        if isinstance(case, GuardrailError):
            return case
        if not all(done[row] for row in case.rows):
            return late()
        return Completion(
            text="",
            scores=_scores(case, features, heads),
            unjudged=tuple(case.unjudged),
            model=self.model,
            usage=Usage(table.tokens(case.rows)),
            latency=time.monotonic() - start,
        )

    def close(self) -> None:
        """Free the weights. The next call loads them again."""
        with self._lock:
            self._models = None

    def _load(self) -> _Models:
        models = self._models
        if models is None:
            with self._lock:
                if self._models is None:
                    self._models = _Models(self._threads or min(MAX_THREADS, cpu_cores()))
                models = self._models
        return models

    def _after_fork(self) -> None:
        # The runtime's threads did not survive. Kept, not freed: its destructor would wait for them.
        self._forked.append(self._models)
        self._models = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return (_make, (type(self), self._threads))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r})"


_ENGINES: weakref.WeakSet[EmbeddedEngine] = weakref.WeakSet()


def _reset_all() -> None:
    for engine in list(_ENGINES):
        engine._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)


def _make(kind: type[EmbeddedEngine], threads: int | None) -> EmbeddedEngine:
    return kind(threads=threads)


@contextlib.contextmanager
def _door() -> Iterator[None]:
    """Turn the runtime's exceptions into ours. Their texts are not shown: they may quote content."""
    try:
        yield
    except GuardrailError:
        raise
    except MemoryError as error:
        raise EngineUnavailableError("The embedded guard is out of memory.") from error
    except Exception as error:
        raise EngineError(f"The embedded guard failed: {type(error).__name__}.") from error


def _scores(case: Case, features: Vector, heads: Heads) -> dict[str, float]:
    scores = {}
    if case.request:
        alone = _highest(heads.prompt.margins(features[case.sentences])) - heads.sentence_penalty
        margin = max(_highest(heads.prompt.margins(features[case.request])), alone)
        if case.in_context and heads.prompt.score(_highest(heads.prompt.margins(features[case.context]))) < 0.5:
            # Harm that only shows when both are read together. Where what came before is harmful by itself, that was
            # judged there, and reading it again would hold it against every later request.
            margin = max(margin, _highest(heads.prompt.margins(features[case.in_context])))
        scores["prompt"] = heads.prompt.score(margin)
        scores |= _hazards(case, features, heads)
    if case.response:
        answer = features[case.response]
        scores["response"] = heads.response.score(_highest(heads.response.margins(answer)))
        # A refusal shows at the beginning.
        scores["refusal"] = heads.refusal.score(float(heads.refusal.margins(answer[:1])[0]))
    return scores


def _hazards(case: Case, features: Vector, heads: Heads) -> dict[str, float]:
    """Which hazard it is, judged where it looks worst."""
    rows = features[[*case.request, *case.sentences]]
    return heads.hazards.likely(rows[heads.prompt.margins(rows).argmax()])


def _highest(margins: Vector) -> float:
    return float(margins.max()) if len(margins) else float("-inf")
