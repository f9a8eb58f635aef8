"""What any guard must beat: a constant guess, a keyword list, small classifiers. Each is an engine for a `Guard`.

They read text. A picture is reported as not judged, except by the constant guess, which looks at nothing. They speak
the format of models that classify (`embedded/1`): a score from 0 to 1, harmful from 0.5 on. They fetch nothing. Knows
no metric and no runner.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import re
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from guardrail_vl.engines.base import Deadline, Engine, Outcome, late
from guardrail_vl.errors import ConfigurationError, EngineError, GuardrailError, MissingDependencyError
from guardrail_vl.evaluation.cases import Case, CaseSet
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptImage
from guardrail_vl.verdict import Label, Stage

try:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline, make_pipeline
except ImportError as error:
    raise MissingDependencyError("scikit-learn", extra="evaluation", needed_for="Evaluation") from error

Scorer = Callable[[Sequence[str]], Sequence[float]]
"""Given texts: the probability in [0, 1] that each is harmful. Must be safe across threads."""

BATCH: Final = 64
"""Texts that are scored together; the deadline is looked at between two batches."""

WORDS: Final = (
    "anthrax", "arson", "assassinate", "assassination", "behead", "bioweapon", "blackmail", "bomb", "bomb-making",
    "bombs", "botnet", "brass knuckles", "bribe", "brute force", "bypass security", "cannibalism", "child abuse",
    "cocaine", "counterfeit", "credit card numbers", "cyanide", "ddos", "deepfake", "detonator", "dox", "doxxing",
    "embezzle", "ethnic cleansing", "explosive", "explosives", "exterminate", "extort", "fake id", "fentanyl",
    "forge", "fraud", "genocide", "ghost gun", "grenade", "gunpowder", "hack", "hacking", "harass", "heroin",
    "hijack", "hitman", "hostage", "human trafficking", "identity theft", "inferior race", "keylogger", "kidnap",
    "kill", "kill myself", "killing", "launder", "lynch", "malware", "mass shooting", "massacre", "meth",
    "methamphetamine", "molotov", "money laundering", "murder", "napalm", "nerve agent", "overdose", "phishing",
    "pipe bomb", "poison", "ponzi", "propaganda", "racial slur", "ransomware", "rape", "ricin", "rob", "sarin",
    "self-harm", "shoplift", "silencer", "slit", "smuggle", "stab", "stalk", "starve myself", "steal", "suicide",
    "swatting", "terrorist", "terrorist attack", "thermite", "torture", "trojan", "untraceable", "vandalize",
    "weapon", "weapons", "white power",
)  # fmt: skip
"""The words of `keywords()`: a short list written for this package, and given to the public domain (CC0)."""


@dataclass(frozen=True)
class BaselineEngine(Engine):
    """An engine around a function that scores texts.

    Args:
        model: Its name in reports.
        prompt: Scores requests. None: it can't judge them, and says so.
        response: Scores responses, each by itself.
        sees_pictures: Whether pictures need no judging of their own: true of a guess that looks at nothing.
    """

    format: ClassVar[str] = "embedded/1"

    model: str
    prompt: Scorer | None = field(repr=False)
    response: Scorer | None = field(repr=False)
    sees_pictures: bool = False

    def generate(self, prompts: Sequence[Prompt], *, deadline: Deadline) -> list[Outcome]:
        """Score the prompts. What is not done by the deadline, to within one batch, gets an error.

        Raises:
            EngineError: The classifier failed.
        """
        outcomes: list[Outcome] = []
        while len(outcomes) < len(prompts):
            batch = prompts[len(outcomes) : len(outcomes) + BATCH]
            outcomes += self._batch(batch) if deadline.remaining() else [late() for _ in batch]
        return outcomes

    def _batch(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        start = time.monotonic()
        found: dict[int, Completion] = {}
        for name, role, scorer in (("prompt", "user", self.prompt), ("response", "assistant", self.response)):
            mine = [index for index, prompt in enumerate(prompts) if (role == "assistant") == _answers(prompt)]
            texts = [_side(prompts[index], role) for index in mine]
            scores = self._scores(scorer, texts) if scorer and mine else []
            for place, index in enumerate(mine):
                unjudged = () if self.sees_pictures else _pictures(prompts[index], role)
                if scorer is None:
                    unjudged = (*unjudged, f"the {name}: there was nothing to learn from")
                # A picture alone leaves no text to score.
                known = bool(scores) and bool(texts[place] or not unjudged)
                found[index] = Completion(
                    "", scores={name: scores[place]} if known else {}, unjudged=unjudged, model=self.model
                )
        took = (time.monotonic() - start) / len(prompts)
        return [dataclasses.replace(found[index], latency=took) for index in range(len(prompts))]

    def _scores(self, scorer: Scorer, texts: Sequence[str]) -> list[float]:
        try:
            return [float(score) for score in scorer(texts)]
        except GuardrailError:
            raise
        except Exception as error:  # its text is not shown: it may quote content
            raise EngineError(f"The baseline {self.model} failed: {type(error).__name__}.") from None


def classifier(model: str, score: Scorer) -> BaselineEngine:
    """Any text classifier as a guard: requests and responses by the same function, a response by itself.

    Args:
        model: Its name, with its version.
        score: Gives texts their probabilities of harm.
    """
    return BaselineEngine(model, score, score)


def constant(label: Label | Literal["harmful", "unharmful"]) -> BaselineEngine:
    """The same answer for everything.

    On a balanced set `harmful` has an F1 of 66.7: F1 = 2p/(1+p), where p is the share of harmful samples.

    Args:
        label: What it always says. Its score is 1 or 0, so its curves are those of a blind guess.

    Raises:
        ConfigurationError: No such label.
    """
    if label not in tuple(Label):
        raise ConfigurationError(f"label must be {' or '.join(Label)}, not {label!r}.")
    score = functools.partial(_always, float(label == Label.HARMFUL))
    return BaselineEngine(f"constant-{label}", score, score, sees_pictures=True)


def keywords(words: Iterable[str] = WORDS) -> BaselineEngine:
    """Harmful where any of the words stands: whole words, whatever their case. The score is 1 or 0.

    Args:
        words: Words and phrases. The default is `WORDS`: our own short list, in the public domain. It is what a person
            writes down in ten minutes, not a product.

    Raises:
        ConfigurationError: No words, or an empty one.
    """
    listed = tuple(sorted({_folded(word).strip() for word in words}))
    if not listed or not listed[0]:
        raise ConfigurationError("keywords() needs words, and none of them empty.")
    version = hashlib.blake2b("\n".join(listed).encode(), digest_size=4).hexdigest()
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, listed))})(?!\w)")
    return classifier(f"keywords-{version}", functools.partial(_found, pattern))


def alt_profanity_check() -> BaselineEngine:
    """The package alt-profanity-check: a linear model on words and characters, trained on profane comments.

    It was made to find profanity in comments, not harmful requests to an assistant. Its weights are in its wheel (MIT).

    Raises:
        ConfigurationError: It is not installed, or its weights don't load with the installed scikit-learn.
    """
    try:
        with warnings.catch_warnings():
            # Weights written by a neighbouring scikit-learn warn and load; where they can't, what follows raises.
            warnings.simplefilter("ignore")
            from profanity_check import predict_prob

            predict_prob(["a text"])
    except ImportError as error:
        raise _missing("alt-profanity-check") from error
    except Exception as error:
        raise ConfigurationError(
            f"alt-profanity-check does not work with the installed scikit-learn: {type(error).__name__}.",
            hint="Install the version of alt-profanity-check that has scikit-learn's number.",
        ) from error
    return classifier(f"alt-profanity-check-{_version('alt-profanity-check')}", predict_prob)


def better_profanity() -> BaselineEngine:
    """The package better-profanity: a list of swear words and their spellings in look-alike characters (MIT).

    The score is 1 or 0. A long text is read in pieces, since the package's time grows with the square of the length.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        from better_profanity import Profanity
    except ImportError as error:
        raise _missing("better-profanity") from error
    contains = Profanity().contains_profanity
    return classifier(f"better-profanity-{_version('better-profanity')}", functools.partial(_in_pieces, contains))


def tfidf(cases: Iterable[Case]) -> BaselineEngine:
    """TF-IDF on words and word pairs, then logistic regression, trained on your own samples.

    What it can't judge, because no sample of that stage had both labels, it says. See `split` for the samples.

    Args:
        cases: Labelled samples; those without a label or without text are left out.

    Raises:
        ConfigurationError: No stage has samples of both labels.
        MissingDependencyError: scikit-learn is not installed.
    """
    texts: dict[Stage, list[tuple[str, bool]]] = {Stage.PROMPT: [], Stage.RESPONSE: []}
    for case in cases:
        text = case.prompt if case.stage == Stage.PROMPT else case.response
        if case.gold is not None and text:
            texts[case.stage].append((text, case.gold == Label.HARMFUL))
    usable = {stage: rows for stage, rows in texts.items() if len({gold for _, gold in rows}) == 2}
    if not usable:
        raise ConfigurationError("tfidf() needs samples of both labels.")
    state = hashlib.blake2b(digest_size=4)
    for stage, rows in usable.items():
        state.update(repr((str(stage), rows)).encode())
    scorers = {stage: functools.partial(_probabilities, _fitted(rows)) for stage, rows in usable.items()}
    return BaselineEngine(f"tfidf-{state.hexdigest()}", scorers.get(Stage.PROMPT), scorers.get(Stage.RESPONSE))


def split(
    sets: Iterable[CaseSet], *, share: float = 0.5, seed: int = 0
) -> tuple[tuple[Case, ...], tuple[CaseSet, ...]]:
    """Samples to train on, and the sets without them. A request, or a group, never stands on both sides.

    The side depends on the group (or the request's text) and the seed alone, so it is the same in every set and run.

    Args:
        sets: The sets.
        share: Of the groups: how many are for training, above 0 and below 1.
        seed: Another one makes another split.

    Returns:
        The training samples, and the sets of the rest. A set of which nothing is left is left out.

    Raises:
        ConfigurationError: A share that is none.
    """
    if not 0 < share < 1:
        raise ConfigurationError(f"share must be between 0 and 1, not {share!r}.")
    train: list[Case] = []
    rest = []
    for one in sets:
        kept: list[Case] = []
        for case in one.cases:
            (train if _place(case, seed) < share else kept).append(case)
        if kept:
            rest.append(CaseSet(one.name, tuple(kept)))
    return tuple(train), tuple(rest)


def _place(case: Case, seed: int) -> float:
    """Where between 0 and 1 the group of this sample falls."""
    group = case.group or " ".join(_folded(case.prompt or case.response or case.id).split())
    digest = hashlib.blake2b(f"{seed} {group}".encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def _answers(prompt: Prompt) -> bool:
    return any(message.role == "assistant" for message in prompt.messages)


def _pictures(prompt: Prompt, role: str) -> tuple[str, ...]:
    """The pictures of the judged side, as what was not judged."""
    shown = [p for m in prompt.messages if m.role == role for p in m.content if isinstance(p, PromptImage)]
    return tuple(f"image {number}" for number in range(1, len(shown) + 1))


def _side(prompt: Prompt, role: str) -> str:
    return "\n".join(message.text for message in prompt.messages if message.role == role)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _always(score: float, texts: Sequence[str]) -> list[float]:
    return [score] * len(texts)


def _found(pattern: re.Pattern[str], texts: Sequence[str]) -> list[float]:
    return [float(bool(pattern.search(_folded(text)))) for text in texts]


def _in_pieces(
    contains: Callable[[str], bool], texts: Sequence[str], *, size: int = 1_000, overlap: int = 60
) -> list[float]:
    return [
        float(any(contains(text[start : start + size]) for start in range(0, max(1, len(text)), size - overlap)))
        for text in texts
    ]


def _fitted(rows: Sequence[tuple[str, bool]]) -> Pipeline:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=200_000)
    model = make_pipeline(words, LogisticRegression(class_weight="balanced", C=10.0, max_iter=1_000))
    return model.fit([text for text, _ in rows], [gold for _, gold in rows])


def _probabilities(model: Pipeline, texts: Sequence[str]) -> list[float]:
    found: list[float] = model.predict_proba(list(texts))[:, 1].tolist()
    return found


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _missing(package: str) -> ConfigurationError:
    return ConfigurationError(
        f"This baseline needs the package {package!r}, which is not installed.", hint=f"Run: pip install {package}"
    )
