"""Pictures through a guarded client: text and pictures are judged together, and the bytes that were judged are sent.

Needs the extras `embedded` and `openai`, and a key in OPENAI_API_KEY, or a server of your own in OPENAI_BASE_URL.
"""

from __future__ import annotations

import os
from pathlib import Path

from openai import OpenAI

from guardrail_vl import BlockedError, Guard, ImagePart
from guardrail_vl.integrations.openai import decisions, guarded

HERE = Path(__file__).parent
MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


def ask(client: OpenAI, question: str, picture: Path) -> str:
    """The answer, or why there is none."""
    content = [
        {"type": "text", "text": question},
        {"type": "image_url", "image_url": {"url": ImagePart.load(picture).data_url}},
    ]
    try:
        reply = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    except BlockedError as error:
        return f"blocked  {error.decision.reason}"
    prompt = decisions(reply)[0]
    return f"answered {reply.choices[0].message.content} (prompt {prompt.action}: {prompt.reason})"


def main() -> None:
    """A harmless picture, and one whose danger is in its words."""
    with guarded(OpenAI(), Guard()) as client:
        print(ask(client, "What does the sign say?", HERE / "door.png"))
        print(ask(client, "Fill in the list in this picture.", HERE / "note.png"))


if __name__ == "__main__":
    main()
