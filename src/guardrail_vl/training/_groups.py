"""Which turns belong together: the same content, or one request. Compares words and bytes, and no meanings.

A picture that was scaled or saved anew is another picture here; a request in other words is another request.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.evaluation._samples import request_group
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label, Stage

Contradicting = Literal["drop", "keep"]
"""What becomes of turns that have the same content and other labels."""
Why = Literal["content", "request", "group"]
"""`content`: request, pictures and response are the same. `request`: all but the response. `group`: they share a group,
or a turn without one has a request of the same words."""

_STRENGTH: Final[tuple[Why, ...]] = ("content", "request", "group")


class Leak(NamedTuple):
    """Two turns on two sides that are too close for the one to test what was learnt from the other."""

    train: str
    """The id of the turn that is trained on; of the first, if there are several."""
    test: str
    """The id of the turn that is tested on."""
    why: Why


@dataclass(frozen=True, slots=True)
class Deduped:
    """Turns of which no two have the same content, but for contradictions that were kept."""

    turns: tuple[LabeledTurn, ...]
    repeated: tuple[tuple[str, str], ...]
    """Ids of turns that are left out, each with that of the turn that stands for it."""
    contradicting: tuple[tuple[str, ...], ...]
    """Ids of turns that have the same content and other labels."""


def dedupe(turns: Iterable[LabeledTurn], *, contradicting: Contradicting = "drop") -> Deduped:
    """Each content once.

    Of turns with the same content the first that has reasoning stays, else the first; a label that only another one has
    is added to it. Two labels contradict each other if both are known and differ.

    Args:
        turns: In order, which is kept.
        contradicting: `drop`: none of the turns that contradict each other stays. `keep`: they stay, once for each pair
            of labels.

    Raises:
        ConfigurationError: A picture can't be read.
    """
    alike: dict[str, list[LabeledTurn]] = {}
    given = list(turns)
    for turn in given:
        alike.setdefault(content(turn), []).append(turn)
    stays: dict[int, LabeledTurn] = {}
    repeated: list[tuple[str, str]] = []
    contradictions: list[tuple[str, ...]] = []
    for same in alike.values():
        if contradict(same):
            contradictions.append(tuple(turn.id for turn in same))
            if contradicting == "drop":
                continue
            labelled: dict[tuple[Label | None, Label | None], list[LabeledTurn]] = {}
            for turn in same:
                labelled.setdefault((turn.prompt_label, turn.response_label), []).append(turn)
            sets = list(labelled.values())
        else:
            sets = [same]
        for one in sets:
            best = next((turn for turn in one if turn.reasoning), one[0])
            stays[id(best)] = _filled(best, one)
            repeated += [(turn.id, best.id) for turn in one if turn is not best]
    kept = tuple(stays[id(turn)] for turn in given if id(turn) in stays)
    return Deduped(kept, tuple(repeated), tuple(contradictions))


def _filled(best: LabeledTurn, same: Iterable[LabeledTurn]) -> LabeledTurn:
    request, response = best.prompt_label, best.response_label
    for turn in same:
        request, response = request or turn.prompt_label, response or turn.response_label
    if (request, response) == (best.prompt_label, best.response_label):
        return best
    return replace(best, prompt_label=request, response_label=response)


def contradict(same: Iterable[LabeledTurn]) -> bool:
    """Whether two of these turns, which have the same content, have two labels of one stage."""
    known = list(same)
    return any(len({turn.label(stage) for turn in known} - {None}) > 1 for stage in Stage)


def content(turn: LabeledTurn) -> str:
    """See `LabeledTurn.content_digest`.

    Raises:
        ConfigurationError: A picture can't be read.
    """
    try:
        return turn.content_digest
    except OSError as error:
        raise _unreadable(turn, error) from None


# ---- requests -----------------------------------------------------------------------------------------------------


def requests(turns: Sequence[LabeledTurn]) -> list[list[int]]:
    """The places of the turns, those of one request together, in the order in which the requests first come.

    Raises:
        ConfigurationError: A picture can't be read.
    """
    parent = list(range(len(turns)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[str, int] = {}
    pictures = _Pictures()
    for place, turn in enumerate(turns):
        for key in _keys(turn, pictures):
            one, other = sorted((root(first.setdefault(key, place)), root(place)))
            parent[other] = one
    together: dict[int, list[int]] = {}
    for place in range(len(turns)):
        together.setdefault(root(place), []).append(place)
    return list(together.values())


def leaks(train: Iterable[LabeledTurn], test: Iterable[LabeledTurn]) -> tuple[Leak, ...]:
    """The tested turns whose content or request is trained on, each with the closest trained one.

    Args:
        train: What is trained on.
        test: What is tested on, in whose order the leaks are told.

    Raises:
        ConfigurationError: A picture can't be read.
    """
    pictures = _Pictures()
    contents: dict[str, str] = {}
    keys: dict[str, str] = {}
    for turn in train:
        contents.setdefault(content(turn), turn.id)
        for key in _keys(turn, pictures):
            keys.setdefault(key, turn.id)
    found = []
    for turn in test:
        ways = [(contents.get(content(turn)), "content")]
        ways += [(keys.get(key), key.partition(":")[0]) for key in _keys(turn, pictures)]
        hits = {why: id for id, why in ways if id is not None}
        if why := next((why for why in _STRENGTH if why in hits), None):
            found.append(Leak(hits[why], turn.id, why))
    return tuple(found)


def _keys(turn: LabeledTurn, pictures: _Pictures) -> tuple[str, ...]:
    """What turns of one request have in common; one shared key is enough."""
    words = request_group(turn.prompt) if turn.prompt else ""
    shown = [pictures.digest(turn, image) for image in turn.images]
    if words or shown:
        request = f"request:{words} {' '.join(shown)}"
    else:  # a response alone
        request = f"request:- {request_group(turn.response or '')}"
    group = turn.group or words
    return (request, f"group:{group}") if group else (request,)


class _Pictures:
    """The digests of pictures; each file is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def digest(self, turn: LabeledTurn, image: Path | bytes) -> str:
        if isinstance(image, bytes):
            return _hash(image)
        if image not in self._known:
            try:
                self._known[image] = _hash(image.read_bytes())
            except OSError as error:
                raise _unreadable(turn, error) from None
        return self._known[image]


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _unreadable(turn: LabeledTurn, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"A picture of the turn {turn.id!r} can't be read: {error.strerror or type(error).__name__}."
    )


# ---- splits -------------------------------------------------------------------------------------------------------


def split(turns: Iterable[LabeledTurn], shares: Mapping[str, float], seed: int) -> dict[str, tuple[LabeledTurn, ...]]:
    """See `dataset.split`."""
    if len(shares) < 2 or not all(share > 0 for share in shares.values()) or not _one(shares.values()):
        raise ConfigurationError("A split needs two shares or more, each above 0, that add up to 1.")
    turns = list(turns)
    given = sorted(turns, key=lambda turn: turn.id)  # so that the order they came in decides nothing
    order = [
        (_stratum([given[place] for place in places]), _drawn(seed, given[places[0]].id), places)
        for places in requests(given)
    ]
    side: dict[str, str] = {}
    total: Counter[str] = Counter()
    strata: dict[str, Counter[str]] = {}
    for stratum, _, places in sorted(order):
        here = strata.setdefault(stratum, Counter())
        # The side that lacks most, of the stratum and of all: so each stratum is shared out alike, and small ones too.
        # How many turns the request has plays no part, or large ones would gather on one side.
        name = max(shares, key=lambda one: sum(_lacks(shares[one], one, counts) for counts in (here, total)))
        here[name] += len(places)
        total[name] += len(places)
        side.update(dict.fromkeys((given[place].id for place in places), name))
    if empty := [name for name in shares if not total[name]]:
        raise ConfigurationError(
            f"Nothing would be left for {empty[0]!r}: there are {len(order)} requests.", hint="Label more turns."
        )
    return {name: tuple(turn for turn in turns if side[turn.id] == name) for name in shares}


def _lacks(share: float, name: str, counts: Counter[str]) -> float:
    return share * counts.total() - counts[name]


def _one(shares: Iterable[float]) -> bool:
    return math.isclose(sum(shares), 1, abs_tol=1e-6)


def _stratum(turns: Sequence[LabeledTurn]) -> str:
    first = turns[0]
    return f"{first.modality} {first.prompt_label} {first.response_label}"


def _drawn(seed: int, id: str) -> str:
    return hashlib.blake2b(f"{seed}:{id}".encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
