"""A chat in the terminal on a guarded client. What is blocked stays neither on the screen nor in the history."""

from __future__ import annotations

import os
import sys
from typing import Any

from openai import OpenAI

from guardrail_vl import BlockedError, Guard, GuardrailError
from guardrail_vl.integrations.openai import guarded

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


def main() -> None:
    """Answer each line of the input until it ends."""
    history: list[Any] = []
    with guarded(OpenAI(), Guard()) as client:
        for line in sys.stdin:
            asked = [*history, {"role": "user", "content": line.strip()}]
            said = ""
            try:
                for event in client.chat.completions.create(model=MODEL, messages=asked, stream=True):
                    for choice in event.choices:
                        said += choice.delta.content or ""
                        print(choice.delta.content or "", end="", flush=True)
            except BlockedError as error:
                print(f"[blocked: {error.decision.reason}]")
            except GuardrailError as error:
                print(f"[no verdict, please try again: {error}]")
            else:
                print()
                history = [*asked, {"role": "assistant", "content": said}]


if __name__ == "__main__":
    main()
