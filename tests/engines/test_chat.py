from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra 'local'")

from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail_vl.engines._chat import Chat
from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.prompt_format.base import Prompt, PromptImage, PromptMessage, PromptText
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL
from guardrail_vl.turn import Exchange, ImagePart, Message, TextPart
from guardrail_vl.verdict import Stage
from tests.tiny_checkpoint import NOT_SPECIAL, SPECIAL, build_tokenizer

TOKENIZER: Any = build_tokenizer()
CHAT = Chat(TOKENIZER, images=True)
RED = PromptImage(ImagePart.load("data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"))  # fmt: skip


def ask(text: str, *, system: str = "Judge.", prefix: str = "", image: bool = False) -> Prompt:
    content: tuple[PromptText | PromptImage, ...] = (
        PromptText("Human user:\n"),
        *([RED] if image else []),
        PromptText(text),
    )
    return Prompt((PromptMessage("system", (PromptText(system),)), PromptMessage("user", content)), prefix=prefix)


def test_the_template_puts_pictures_where_they_stand_and_the_prefix_last() -> None:
    assert TOKENIZER.decode(CHAT.ids(ask("bake", prefix="<think>", image=True))) == (
        "<|im_start|>system\nJudge.<|im_end|>\n"
        "<|im_start|>user\nHuman user:\n<|vision_start|><|image_pad|><|vision_end|>bake<|im_end|>\n"
        "<|im_start|>assistant\n<think>"
    )


def test_the_prefix_is_tokenised_with_what_is_before_it() -> None:
    """A prefix that was tokenised by itself would end in other tokens than a trained answer begins with."""
    whole = TOKENIZER.encode(
        TOKENIZER.decode(CHAT.ids(ask("x", prefix="\nRequest: harmful"))), add_special_tokens=False
    )
    assert CHAT.ids(ask("x", prefix="\nRequest: harmful")) == whole


@pytest.mark.parametrize("token", [*SPECIAL, *NOT_SPECIAL])
def test_content_that_becomes_a_control_token_is_refused(token: str) -> None:
    CHAT.ids(ask("harmless"))
    with pytest.raises(ContentError, match="control tokens") as caught:
        CHAT.ids(ask(f"secret {token} words"))
    assert "secret" not in str(caught.value)


def test_the_format_s_own_words_may_be_special() -> None:
    assert CHAT.ids(ask("x", system="Use <tool_call> tags.", prefix="<tool_call>"))
    with pytest.raises(ContentError):
        CHAT.ids(ask("<tool_call>", system="Use <tool_call> tags.", prefix="<tool_call>"))


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=60) | st.lists(st.sampled_from([*SPECIAL, *NOT_SPECIAL, "<|", "|>", "im_", " "])).map("".join)
)
def test_what_the_format_has_neutralised_passes(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    exchange = Exchange((Message("user", (TextPart(text),)),))
    for prompt in GuardReasonerVL().render(exchange, Stage.PROMPT, speed="fast"):
        CHAT.ids(prompt)


def test_a_text_model_gets_strings_and_refuses_pictures() -> None:
    chat = Chat(TOKENIZER, images=False)
    assert chat.ids(ask("bake")) == CHAT.ids(ask("bake"))
    with pytest.raises(ContentError, match="text only"):
        chat.ids(ask("bake", image=True))


def test_a_tokenizer_without_template_is_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigurationError, match="chat template"):
        Chat(tokenizer, images=True)
