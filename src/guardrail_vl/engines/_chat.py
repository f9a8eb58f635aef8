"""From a prompt to token ids through the checkpoint's own chat template: for every engine that has a tokenizer.

Second lock on the content: after tokenising, nothing but the template, the system message and the prefix may have
become a special token. (The first is the prompt format, which neutralises content.) Knows no model and no pixels: a
picture is one placeholder token here.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from guardrail_vl.errors import ConfigurationError, ContentError
from guardrail_vl.prompt_format.base import Prompt, PromptMessage, PromptText

_FILLER: Final = "x"
_REMEMBERED: Final = 64


class Chat:
    """Renders prompts for one tokenizer.

    Args:
        tokenizer: A fast tokenizer of transformers, with a chat template.
        images: Whether the template takes content as a list of text and image parts; else it gets plain strings.
    """

    def __init__(self, tokenizer: Any, *, images: bool) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigurationError("This checkpoint has no chat template, so it can't be asked anything.")
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigurationError("This checkpoint has no fast tokenizer (tokenizer.json).")
        self._tokenizer = tokenizer
        self._images = images
        self._marks = frozenset(tokenizer.added_tokens_decoder) | frozenset(tokenizer.all_special_ids)
        self._expected: OrderedDict[object, tuple[int, ...]] = OrderedDict()

    def ids(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids, its prefix included; one placeholder id for each picture.

        Raises:
            ContentError: Content became a special token, or there are pictures and the model takes none.
        """
        if prompt.images and not self._images:
            raise ContentError("This guard model reads text only, and there is a picture to judge.")
        ids = self._tokenised(prompt.messages, prompt.prefix)
        if self._special(ids) != self._own_marks(prompt):
            raise ContentError("The content would be read as control tokens of the guard model.")
        return ids

    def continuation(self, text: str) -> list[int]:
        """Token ids of what a model is to write after a prompt, without its end token.

        Raises:
            ContentError: Some of it is a special token, which no answer holds.
        """
        ids: list[int] = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if self._special(ids):
            raise ContentError("The text to train on holds control tokens of the guard model.")
        return ids

    def _tokenised(self, messages: tuple[PromptMessage, ...], prefix: str) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            [{"role": m.role, "content": self._content(m)} for m in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        # The prefix is joined as text and tokenised with the rest, as it would be in training.
        ids: list[int] = self._tokenizer.backend_tokenizer.encode(text + prefix, add_special_tokens=False).ids
        return ids

    def _content(self, message: PromptMessage) -> str | list[dict[str, str]]:
        if not self._images:
            return message.text
        return [
            {"type": "text", "text": part.text} if isinstance(part, PromptText) else {"type": "image"}
            for part in message.content
        ]

    def _special(self, ids: list[int]) -> tuple[int, ...]:
        return tuple(i for i in ids if i in self._marks)

    def _own_marks(self, prompt: Prompt) -> tuple[int, ...]:
        """The special tokens of a prompt of this shape whose content is harmless."""
        messages = tuple(m if m.role == "system" else _harmless(m) for m in prompt.messages)
        key = (prompt.prefix, tuple((m.role, self._shape(m)) for m in messages))
        known = self._expected.get(key)
        if known is None:
            known = self._special(self._tokenised(messages, prompt.prefix))
            self._expected[key] = known
            if len(self._expected) > _REMEMBERED:
                self._expected.popitem(last=False)
        return known

    @staticmethod
    def _shape(message: PromptMessage) -> tuple[str | None, ...]:
        return tuple(part.text if isinstance(part, PromptText) else None for part in message.content)


def _harmless(message: PromptMessage) -> PromptMessage:
    content = tuple(PromptText(_FILLER) if isinstance(part, PromptText) else part for part in message.content)
    return PromptMessage(message.role, content)
