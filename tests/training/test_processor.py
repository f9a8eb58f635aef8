from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.checkpoints import hf, text_only  # isort: skip - skips where the extra is missing

import torch
from PIL import Image
from transformers.processing_utils import ProcessorMixin

from guardrail_vl.prompt_format.base import PromptText
from guardrail_vl.training import synthetic, tiny
from guardrail_vl.training._encoding import Encoder
from guardrail_vl.training._processor import load_processor


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    torch.set_num_threads(1)
    return Encoder(tiny.build(tmp_path_factory.mktemp("processor") / "seeing"))


def test_a_padded_mixed_batch_is_what_the_encoder_makes(encoder: Encoder) -> None:
    """Ids, pixels, and above all the marks of pictures, which a wrong padding side would shift."""
    processor = load_processor(encoder)
    given = [turn for kind in ("text", "image", "text-image") for turn in synthetic.turns(2, seed=5, kind=kind)]
    messages: list[Any] = []
    for turn in given:
        prompt = encoder.prompt(turn)
        messages.append(
            [
                {
                    "role": message.role,
                    "content": [
                        {"type": "text", "text": part.text}
                        if isinstance(part, PromptText)
                        else {"type": "image", "image": part.pixels()}
                        for part in message.content
                    ],
                }
                for message in prompt.messages
            ]
        )
    theirs = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"padding": True, "return_tensors": "pt"},
    )
    ours = encoder.collate([encoder.encode(turn, target=None) for turn in given], side="left")
    ours.pop("labels")
    assert set(theirs) == set(ours)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, check_dtype=False, rtol=0, atol=0)


def test_it_is_of_upstream_s_class_and_can_be_saved(encoder: Encoder, tmp_path: Path) -> None:
    processor = load_processor(encoder)
    assert isinstance(processor, ProcessorMixin)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    processor.save_pretrained(tmp_path)
    # What was saved reads like what it was made from.
    pictures = hf.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    picture = Image.new("RGB", (90, 50), "red")
    one, other = (made(images=[picture], return_tensors="pt") for made in (pictures, encoder.reader.pictures))
    torch.testing.assert_close(one["pixel_values"], other["pixel_values"], rtol=0, atol=0)


def test_a_text_model_s_processor_is_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_processor(text_only(tmp_path / "reading"))
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id is not None
    ids = tokenizer(["one", "and one more"], padding=True)["attention_mask"]
    assert ids[0][0] == 0
    assert ids[0][-1] == 1
