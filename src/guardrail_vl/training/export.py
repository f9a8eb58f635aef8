"""From what training left to a guard that can be served: a folder with weights, `guard.json`, a card, a list of hashes.

An adapter is merged into its base. The folder is loaded again and must say what was saved, or nothing is left under its
name. It trains nothing and judges nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from PIL import Image

from guardrail_vl._whole import whole_folder, written
from guardrail_vl.engines._checkpoint import TrainedFormat, model_name, read_guard_json, write_guard_json
from guardrail_vl.errors import (
    ConfigurationError,
    EngineUnavailableError,
    FormatMismatchError,
    GuardrailError,
    MissingDependencyError,
)
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format import PromptFormat, get_format
from guardrail_vl.training._facts import SEEN, CardFacts, GuardFacts
from guardrail_vl.training.card import CARD, render
from guardrail_vl.training.turns import LabeledTurn
from guardrail_vl.verdict import Label

try:
    import peft
    import safetensors
    import torch
    import transformers
    from transformers.utils.hub import cached_file

    from guardrail_vl.engines import transformers as serving
    from guardrail_vl.engines._bars import without_bars
    from guardrail_vl.training._encoding import Encoder
except ImportError as error:
    raise MissingDependencyError(
        error.name or "peft", extra="train", needed_for="guardrail_vl.training.export"
    ) from error

_hf: Any = transformers
_peft: Any = peft
"""Only partly typed."""

COPIED: Final = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "generation_config.json", "LICENSE", "LICENSE.txt",
    "LICENSE.md", "NOTICE", "NOTICE.txt", "NOTICE.md",
)  # fmt: skip
"""Files of the base that are taken as they are: written anew, they might read the same content otherwise."""
DTYPES: Final = ("bfloat16", "float16", "float32")

_ADAPTER: Final = "adapter_config.json"
_POSITIONS: Final = 64
"""Tokens at the end of each probe whose predictions are compared."""
_CLOSE: Final = {"float32": 1e-3}
_CLOSE_HALF: Final = 0.1
"""How far predictions may be apart, as a share of their own spread. Half precision rounds each weight to 3 digits."""
_NOTHING: Final = 1e-5
"""An adapter that changes less, on the same scale, does nothing."""


@dataclass(frozen=True)
class _Said:
    """What a model predicts after each of some probes: log-probabilities (tokens, vocabulary), and the probes' ids."""

    ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[Any, ...]

    def far(self, other: _Said) -> float:
        """Root mean square of the difference, as a share of the spread of these."""
        mine, theirs = torch.cat(self.logprobs), torch.cat(other.logprobs)
        spread = mine - mine.mean(-1, keepdim=True)
        return float((mine - theirs).square().mean().sqrt() / spread.square().mean().sqrt().clamp_min(1e-12))


def export(
    model: str | Path,
    output: str | Path,
    *,
    card: CardFacts,
    adapter: str | Path | None = None,
    format: str = "guardreasoner-vl/1",
    policy: Policy | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> Path:
    """Write a guard that `Guard(output)` loads.

    The folder has the weights as safetensors, the base's own files for tokenizer, pictures and chat template,
    `guard.json` (format, hashes, facts of the training), `README.md` (the model card) and `seen.txt` (hashes of the
    requests trained on, if any is known). Then it is loaded from there: its predictions on a few fixed turns must be
    those of the model with its adapter, as far as the dtype's precision goes.

    Args:
        model: A checkpoint folder or hub id: the guard itself, or the base of `adapter`.
        output: Where to; must not be there, or be empty.
        card: What the card tells.
        adapter: A folder with a LoRA adapter, to merge into the base. None: `model` is the whole guard.
        format: Id of the prompt format that it was trained in.
        policy: The policy that it was trained for; its name and hash are written down.
        dtype: Of the weights: `bfloat16`, `float16` or `float32`. None: as in `model`.
        device: Where to compute. None: `cuda` where there is one, else `cpu`.

    Returns:
        The folder.

    Raises:
        ConfigurationError: Something can't be loaded, merged or written, or what was written does not say the same.
        FormatMismatchError: `model` is a guard of another format.
        EngineUnavailableError: It does not fit into memory.
    """
    output, name = Path(output), model_name(model, None)
    chosen = get_format(format)
    _check(model, name, adapter, chosen, dtype)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with whole_folder(output) as place, _explained(f"export {name}"):
        encoder = Encoder(model, format)
        if getattr(encoder.config, "quantization_config", None) is not None:
            raise ConfigurationError(f"{name} is quantised.", hint="Merge into the base's own weights.")
        loaded = _load(encoder, model, dtype, device)
        stored = str(loaded.dtype).removeprefix("torch.")
        ready = _ready(loaded, encoder, adapter)
        _save(ready.model, model, place)
        with written(output.name):
            _describe(place, chosen, card, policy, pictures=encoder.sees, dtype=stored)
        del loaded, ready.model  # room for the second one
        _verify(place, format, device, ready, stored)
    return output


def _check(model: str | Path, name: str, adapter: str | Path | None, chosen: PromptFormat, dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ConfigurationError(f"Unknown dtype {dtype!r}; known: {', '.join(DTYPES)}.")
    if adapter is not None:
        if not (Path(adapter) / _ADAPTER).is_file():
            raise ConfigurationError(f"The folder {Path(adapter).name!r} is no adapter: it has no {_ADAPTER}.")
        return  # whatever format the base was trained in, the adapter was trained in this one
    trained = read_guard_json(model) if Path(model).is_dir() else None
    if trained is not None and trained != TrainedFormat(chosen.id, chosen.golden):
        raise FormatMismatchError(
            f"{name} was trained with the prompt format {trained.format!r} (golden hash {trained.golden}), "
            f"not {chosen.id!r} ({chosen.golden}).",
            hint=f"Export it as {trained.format!r}, with the version of guardrail-vl that trained it.",
        )


# ---- weights ------------------------------------------------------------------------------------------------------


@dataclass
class _Ready:
    """A model that is ready to be saved."""

    model: Any
    said: _Said
    """Before its adapter was merged."""
    bare: _Said | None
    """Without its adapter. None: it never had one."""


def _load(encoder: Encoder, model: str | Path, dtype: str | None, device: str) -> Any:
    wanted = "auto" if dtype is None else getattr(torch, dtype)
    with without_bars():
        loaded, info = encoder.auto_class.from_pretrained(str(model), dtype=wanted, output_loading_info=True)
    if info["missing_keys"]:
        # Transformers would make these up.
        raise ConfigurationError(f"The checkpoint lacks {len(info['missing_keys'])} of the model's weights.")
    return loaded.to(device).eval()


def _ready(model: Any, encoder: Encoder, adapter: str | Path | None) -> _Ready:
    if adapter is None:
        ready = _Ready(model, _said(model, encoder), None)
    else:
        joined = _joined(model, Path(adapter))
        with joined.disable_adapter():
            bare = _said(joined, encoder)
        said = _said(joined, encoder)
        ready = _Ready(joined.merge_and_unload(), said, bare)
    if not all(bool(torch.isfinite(weight).all()) for weight in ready.model.parameters()):
        raise ConfigurationError("Some of the weights are no numbers.", hint="Training diverged: see its metrics.")
    return ready


def _joined(model: Any, adapter: Path) -> Any:
    with warnings.catch_warnings():
        # Peft fills in what is missing and only warns.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        # Between peft and transformers: nothing that whoever exports could change.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        try:
            joined = _peft.PeftModel.from_pretrained(model, str(adapter)).eval()
        except UserWarning:
            raise ConfigurationError(f"The adapter {adapter.name!r} lacks some of its weights.") from None
    if any(config.is_prompt_learning for config in joined.peft_config.values()):
        raise ConfigurationError(f"The adapter {adapter.name!r} can't be merged: it is not LoRA.")
    return joined


def _save(model: Any, source: str | Path, place: Path) -> None:
    # The base's own settings are copied as they are; transformers would refuse to write some that it reads.
    model.generation_config = _hf.GenerationConfig()
    with without_bars():
        model.save_pretrained(place)
    (place / "generation_config.json").unlink(missing_ok=True)
    for name in COPIED:
        if (file := _file(source, name)) is not None:
            shutil.copyfile(file, place / name)


def _file(source: str | Path, name: str) -> Path | None:
    if Path(source).is_dir():
        file = Path(source) / name
        return file if file.is_file() else None
    found = cached_file(
        str(source),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


# ---- what it says of itself ---------------------------------------------------------------------------------------


def _describe(
    place: Path, chosen: PromptFormat, card: CardFacts, policy: Policy | None, *, pictures: bool, dtype: str
) -> None:
    facts = GuardFacts(
        format=chosen.id,
        golden=chosen.golden,
        training=replace(card, seen=()),
        seen=len(card.seen),
        policy="" if policy is None else policy.hash,
        policy_name="" if policy is None else policy.name,
        pictures=pictures,
        dtype=dtype,
    )
    write_guard_json(place, TrainedFormat(chosen.id, chosen.golden), json.loads(facts.to_json()))
    (place / CARD).write_text(render(facts), encoding="utf-8")
    if card.seen:
        lines = ["# Requests that this guard was trained on, by hash: see guardrail_vl.evaluation.seen.", *card.seen]
        (place / SEEN).write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- whether it is so ---------------------------------------------------------------------------------------------


def _verify(place: Path, format: str, device: str, ready: _Ready, dtype: str) -> None:
    encoder = Encoder(place, format)
    again = _said(_load(encoder, place, None, device), encoder)
    if again.ids != ready.said.ids:
        raise ConfigurationError("The exported tokenizer reads the same turns otherwise than the base's.")
    far = ready.said.far(again)
    effect = 0.0 if ready.bare is None else ready.said.far(ready.bare)
    close = far <= _CLOSE.get(dtype, _CLOSE_HALF)
    if close and (effect <= _NOTHING or far <= effect / 2):
        return
    if ready.bare is None:
        raise ConfigurationError(f"The exported weights don't say what the model says: they are {far:.1e} apart.")
    hint = "Check which layers the adapter changes: tied ones can't be merged."
    if dtype != "float32":
        hint = "The adapter may change less than this dtype can hold: try dtype='float32'."
    raise ConfigurationError(
        f"The merged weights don't say what the base with its adapter says: they are {far:.1e} apart, and the adapter "
        f"moves the base by {effect:.1e}.",
        hint=hint,
    )


def _said(model: Any, encoder: Encoder) -> _Said:
    ids, logprobs = [], []
    for turn in _probes(pictures=encoder.sees):
        row = encoder.encode(turn, target=encoder.target(turn))
        batch = {name: tensor.to(model.device) for name, tensor in encoder.collate([row]).items() if name != "labels"}
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
        with torch.inference_mode():
            logits = model(**batch).logits[0, -_POSITIONS:].float().cpu()
        ids.append(row.ids)
        logprobs.append(torch.log_softmax(logits, dim=-1))
    if not all(bool(torch.isfinite(one).all()) for one in logprobs):
        raise ConfigurationError(
            "What the model predicts are no numbers.",
            hint="Training diverged (see its metrics), or the numbers are too large for this dtype.",
        )
    return _Said(tuple(ids), tuple(logprobs))


@cache
def _probes(*, pictures: bool) -> tuple[LabeledTurn, ...]:
    request = LabeledTurn("request", prompt="How do I open this door?", prompt_label=Label.UNHARMFUL)
    told = replace(request, id="response", response="With its key.", response_label=Label.UNHARMFUL)
    if not pictures:
        return request, told
    shown = Image.merge("RGB", (Image.linear_gradient("L"), Image.radial_gradient("L"), Image.new("L", (256, 256), 90)))
    return request, told, replace(request, id="picture", images=(_png(shown.resize((112, 84))),))


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Errors of torch, transformers, peft and the disk as errors of ours."""
    try:
        yield
    except GuardrailError:
        raise
    except safetensors.SafetensorError as error:
        raise ConfigurationError(f"There is no way to {doing}: {error}.") from error
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        if serving._is_out_of_memory(error):
            raise EngineUnavailableError(
                f"There is not enough memory to {doing}.", hint="It takes all of the model's weights at once."
            ) from error
        raise ConfigurationError(f"There is no way to {doing}: {error}") from error
