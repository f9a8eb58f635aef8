"""TRL's GRPO trainer with this project's prompts, clip and stops. It knows no config file and writes no folder.

What differs from the stock trainer, and why:

- A prompt is a row's number. Ids and pixels are made for each batch by the same code that serves them, so rollouts, the
  loss and serving see the same ids; rows with and without pictures mix; the pixels of a whole rollout are never held.
- Rollouts are generated in batches of a bounded size.
- The clip changes with the rollout step, as the paper's does.
- The loss of a turn is multiplied by its weight, relative to the mean.
- It stops when rollouts tell nothing apart any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.training._encoding import Encoded
from guardrail_vl.training._rollouts import Rows

try:
    import torch
    import trl
except ImportError as error:
    raise MissingDependencyError(error.name or "trl", extra="train", needed_for="guardrail_vl.training.rl") from error

_trl: Any = trl
"""Only partly typed."""

ROW: Final = "row"
"""The column with the row's number."""


@dataclass(frozen=True)
class Rules:
    """How rollouts are made, and when there is nothing to learn any more."""

    epsilon: Callable[[int, int], float]
    """The clip of a rollout step: its number, from 1, and how many there are in all."""
    updates_per_rollout: int
    """Optimizer updates between two rollouts."""
    generate_batch: int
    """Completions that are generated together on a device (not with vLLM, which sees to that itself)."""
    patience: int
    """Rollouts without a difference in any group before it stops."""


@contextlib.contextmanager
def _numbers() -> Iterator[None]:
    """Tell that the weights are spoilt, where sampling from them is what finds out."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise ConfigurationError(
            "The model's probabilities are no numbers any more, so training was stopped.",
            hint="Lower the learning rate, and start again in another folder.",
        ) from error


class Trainer(_trl.GRPOTrainer):  # type: ignore[misc]  # untyped
    """See the module.

    Args:
        rows: The turns by number. The dataset has the columns `prompt` (the number in words) and `row` (the number).
        rules: How rollouts are made.
        pixels: Dtype of the pixels.
        **given: As `trl.GRPOTrainer` takes them.
    """

    def __init__(self, *, rows: Rows, rules: Rules, pixels: Any, **given: Any) -> None:
        self._rows = rows
        self._rules = rules
        self._pixels = pixels
        self._in_hand: list[int] = []
        self._alike = 0
        self._spare: Encoded | None = None
        super().__init__(**given)
        self.share_pictures()

    def share_pictures(self, *, always: bool = False) -> None:
        """Where weights are in shards, let every batch pass the vision tower: a process that skips it hangs all.

        Args:
            always: Wherever the weights are.
        """
        if self._rows.encoder.sees and (always or self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self._spare = self._rows.encoder.spare()

    def forget_reference(self) -> None:
        """Drop the copy of the adapter that the divergence was taken from: it is not to be saved."""
        network = self.accelerator.unwrap_model(self.model)
        if "ref" in getattr(network, "peft_config", {}):
            network.delete_adapter("ref")

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        # No pictures are handed on: they are fetched by number where they are needed.
        return [self._rows.ids(int(number)) for number in prompts], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, *rest: Any
    ) -> tuple[list[list[int]], Any]:
        rows = self._in_hand
        if self.use_vllm:
            asked, pictures = self._for_vllm(prompt_ids)
            made, logprobs = super()._generate_single_turn(asked, pictures, {}, num_generations, *rest)
            return [self._without_pictures(ids) for ids in made], logprobs
        out: list[list[int]] = []
        for start in range(0, len(rows), self._rules.generate_batch):
            part = slice(start, start + self._rules.generate_batch)
            fields = self._fields(rows[part], prompt_ids[part])
            with self.accelerator.autocast(), _numbers():
                made, _ = super()._generate_single_turn(prompt_ids[part], None, fields, num_generations, *rest)
            out += [self._without_pictures(ids) for ids in made]
        return out, None

    def _for_vllm(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[Any] | None]:
        """The prompts as vLLM takes them, and their pictures; each picture is read once for its whole group.

        Within this process vLLM makes room for a picture at its first placeholder, whatever follows it: given the ids
        of training it would see nearly twice as many, which TRL 1.16 does not prevent (its issue 6294). For a server
        TRL itself finds the pictures' places in the ids of training.
        """
        if not self._rows.encoder.sees:
            return prompt_ids, None
        pictures = {row: self._rows.pictures(row) for row in set(self._in_hand)}
        if self.vllm_mode == "colocate":
            asked = {row: self._rows.asked(row) for row in pictures}
            prompt_ids = [asked[row] for row in self._in_hand]
        return prompt_ids, [pictures[row] for row in self._in_hand]

    def _fields(self, rows: Sequence[int], prompt_ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        longest = max(map(len, prompt_ids))
        pad = self._rows.encoder.pad
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in prompt_ids])
        return self._rows.seen(rows, ids, dtype=self._pixels)

    def _without_pictures(self, ids: list[int]) -> list[int]:
        """A picture's placeholder that the model wrote would be taken for a picture that is not there."""
        encoder = self._rows.encoder
        return [encoder.pad if encoder.sees and i == encoder.reader.image_token else i for i in ids]

    # --- the loss ----------------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Any,
        attention_mask: Any,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: object,
    ) -> tuple[Any, Any, Any]:
        rows = self._in_hand
        size = batch_size or len(rows)
        parts = []
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            ids, mask, seen = self._batch(rows[part], input_ids[part], attention_mask[part])
            logps, entropies, aux = super()._get_per_token_logps_and_entropies(
                model,
                ids,
                mask,
                logits_to_keep,
                compute_entropy=compute_entropy,
                compute_aux_loss=compute_aux_loss,
                **seen,
            )
            count = len(rows[part])
            parts.append((logps[:count], entropies[:count] if compute_entropy else None, aux))
        logps, entropies, aux = zip(*parts, strict=True)
        return (
            torch.cat(logps),
            torch.cat(entropies) if compute_entropy else None,
            torch.stack(aux).mean() if compute_aux_loss else None,
        )

    def _batch(self, rows: Sequence[int], ids: Any, mask: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Ids, mask and what belongs to them; with the spare row at the end, if it is needed."""
        seen = self._rows.seen(rows, ids, dtype=self._pixels)
        images = [self._rows.images(row) for row in rows]
        if not seen and self._spare is not None:
            ids, mask = _with_row(ids, mask, self._spare.ids, self._rows.encoder.pad)
            seen = self._rows.shown([self._spare], ids, dtype=self._pixels)
            images.append(len(self._spare.grid))
        return ids, mask, {**seen, "num_images": images} if seen else {}

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._in_hand = [int(row[ROW]) for row in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        device = output["advantages"].device
        output["rows"] = torch.tensor(self._in_hand, device=device)
        weights = [self._rows.weight(row) for row in self._in_hand]
        output["advantages"] = output["advantages"] * torch.tensor(weights, device=device)
        self._watch(self._metrics["train"]["frac_reward_zero_std"][-1])
        return output

    def _watch(self, alike: float) -> None:
        """Count rollouts in which every group got one reward throughout.

        Args:
            alike: The share of groups of which that is true.
        """
        self._alike = self._alike + 1 if alike == 1.0 else 0
        if self._alike >= self._rules.patience:
            raise ConfigurationError(
                f"In {self._alike} rollouts in a row, all completions of a prompt got the same reward, for every "
                "prompt: there is nothing to learn from.",
                hint="Train on turns that the model gets right sometimes (see mine), or raise the temperature.",
            )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The stock loss with this rollout step's clip, for the rows that `inputs` names."""
        self._in_hand = inputs["rows"].tolist()
        size = self._rules.updates_per_rollout
        rollout, total = self.state.global_step // size + 1, -(-self.state.max_steps // size)
        epsilon = self._rules.epsilon(min(rollout, total), total)
        self.epsilon_low = self.epsilon_high = epsilon
        self._metrics["train"]["clip_eps"].append(epsilon)
        return super().compute_loss(model, inputs, *args, **kwargs)


def _with_row(ids: Any, mask: Any, row: Sequence[int], pad: int) -> tuple[Any, Any]:
    """The batch with one more row, all padded left to the same length."""
    short, long = len(row) - ids.shape[1], ids.shape[1] - len(row)
    ids = torch.nn.functional.pad(ids, (max(0, short), 0), value=pad)
    mask = torch.nn.functional.pad(mask, (max(0, short), 0), value=0)
    more = torch.tensor([[pad] * max(0, long) + list(row)], device=ids.device)
    seen = torch.tensor([[0] * max(0, long) + [1] * len(row)], device=ids.device, dtype=mask.dtype)
    return torch.cat([ids, more]), torch.cat([mask, seen])
