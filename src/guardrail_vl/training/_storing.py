"""Labelled turns into a file, whole or not at all: JSON lines or Parquet, with pictures inside it or beside it.

A file is made in memory before it is written. Doesn't look into a picture, except for its type.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib
import io
import json
import lzma
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from guardrail_vl._picture import open_picture
from guardrail_vl._whole import write_whole
from guardrail_vl.errors import ConfigurationError, ContentError, MissingDependencyError
from guardrail_vl.training.turns import LabeledTurn

Pictures = Literal["kept", "beside", "inside"]
"""Where pictures go. `kept`: bytes inside the file, files beside it. `beside`: all beside. `inside`: all inside."""

_SAID: Final = ("id", "prompt", "response", "prompt_label", "response_label", "reasoning")
_ABOUT: Final = ("category", "source", "group", "licence")
_TEXTS: Final = (*_SAID, *_ABOUT)
_ROWS: Final = 1_000
"""Rows of a group in Parquet: the pictures of one group have to stay under 2 GiB."""
_PACKED: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),  # the same turns give the same bytes
    ".xz": lzma.compress,
}


def write(path: Path, turns: Sequence[LabeledTurn], pictures: Pictures) -> None:
    """See `dataset.write`."""
    if not turns:
        raise ConfigurationError(f"{path.name}: there are no turns to write.")
    _check(turns)
    packed = path.suffix if path.suffix in _PACKED else ""
    form = Path(path.name.removesuffix(packed)).suffix
    if form not in (".jsonl", ".parquet") or (packed and form == ".parquet"):
        raise ConfigurationError(
            f"{path.name} is in no format that can be written.",
            hint="Formats are .jsonl (also .gz or .xz) and .parquet.",
        )
    place = _Place(path.parent, path.name.partition(".")[0], pictures)
    if form == ".parquet":
        write_whole(path, _parquet(path, turns, place))
    else:
        data = b"".join(_line(_values(turn, place, _url)) for turn in turns)
        write_whole(path, _PACKED[packed](data) if packed else data)


def _check(turns: Iterable[LabeledTurn]) -> None:
    seen: set[str] = set()
    for turn in turns:
        if not turn.id or turn.id in seen:
            raise ConfigurationError("A turn has no id." if not turn.id else f"Two turns have the id {turn.id!r}.")
        if not math.isfinite(turn.weight):
            raise ConfigurationError(f"The weight of the turn {turn.id!r} is not finite.")
        seen.add(turn.id)


def _values(turn: LabeledTurn, place: _Place, inside: Callable[[bytes], object]) -> dict[str, Any]:
    stored = (place.store(turn.id, image) for image in turn.images)
    images = [inside(one) if isinstance(one, bytes) else _named(one, inside) for one in stored]
    texts = {name: getattr(turn, name) for name in _TEXTS}
    return {**texts, "weight": float(turn.weight), "images": images}


def _named(name: str, inside: Callable[[bytes], object]) -> object:
    return name if inside is _url else {"bytes": None, "path": name}


def _url(data: bytes) -> str:
    return f"data:{_media_type(data)};base64,{base64.b64encode(data).decode()}"


def _media_type(data: bytes) -> str:
    try:
        return open_picture(data, max_pixels=math.inf, max_frames=math.inf).media_type
    except ContentError:
        return "application/octet-stream"  # no picture: `validate` says so


def _line(values: Mapping[str, Any]) -> bytes:
    # A reader takes what isn't there for the default; an empty text is not the same as none.
    kept = {n: v for n, v in values.items() if v is not None and v != [] and (v != "" or n in _SAID)}
    try:
        return (json.dumps(kept, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate
        return (json.dumps(kept) + "\n").encode()


def _parquet(path: Path, turns: Sequence[LabeledTurn], place: _Place) -> bytes:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingDependencyError("pyarrow", extra="train", needed_for="A Parquet file") from error
    # As `datasets` stores pictures. Said outright: a file without pictures has the same columns.
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    schema = arrow.schema(
        [*((name, arrow.string()) for name in _TEXTS), ("weight", arrow.float64()), ("images", arrow.list_(image))]
    )
    out = io.BytesIO()
    try:
        with parquet.ParquetWriter(out, schema) as writer:
            for start in range(0, len(turns), _ROWS):
                some = turns[start : start + _ROWS]
                rows = [_values(turn, place, lambda data: {"bytes": data, "path": None}) for turn in some]
                writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{path.name}: a text is not valid Unicode, which Parquet can't hold.", hint="Write JSON lines."
        ) from None
    return out.getvalue()


@dataclass(slots=True)
class _Place:
    """Where the pictures of one file go."""

    folder: Path
    name: str
    pictures: Pictures
    beside: set[str] = field(default_factory=set)

    def store(self, id: str, image: Path | bytes) -> bytes | str:
        """The bytes to put inside, or the path to name."""
        if isinstance(image, bytes):
            return image if self.pictures != "beside" else self._put(image, "")
        named = None if self.pictures == "inside" else self._relative(image)
        if named is not None:
            return named
        try:
            data = image.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"A picture of the turn {id!r} can't be read: {error.strerror or type(error).__name__}."
            ) from None
        return data if self.pictures == "inside" else self._put(data, image.suffix)

    def _relative(self, image: Path) -> str | None:
        """The path within the folder, if a reader would find the file by it."""
        try:
            name = Path(os.path.abspath(image)).relative_to(os.path.abspath(self.folder)).as_posix()
        except ValueError:
            return None
        return None if ":" in name or "\\" in name else name

    def _put(self, data: bytes, suffix: str) -> str:
        """Write a picture beside the file, named by its bytes."""
        kind, _, ending = _media_type(data).partition("/")
        ending = f".{ending}" if kind == "image" else suffix
        name = f"{self.name}-pictures/{hashlib.blake2b(data, digest_size=12).hexdigest()}{ending}"
        if name not in self.beside:
            self.beside.add(name)
            write_whole(self.folder / name, data)
        return name
