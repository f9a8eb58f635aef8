"""`@guard`: functions of your own, judged before they run and before anyone sees what they give.

Needs the extras `embedded` and `openai`, and a key in OPENAI_API_KEY, or a server of your own in OPENAI_BASE_URL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from openai import OpenAI

from guardrail_vl import BlockedError, Guard

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
guard = Guard()


@guard
def answer(question: str) -> str:
    """A plain function: a block raises BlockedError, and the LLM is not asked."""
    with OpenAI() as client:
        reply = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])
    return reply.choices[0].message.content or ""


@guard(prompt="question", on_block="refuse", refusal="I can't help with that.")
def tell(question: str, tone: str = "friendly") -> Iterator[str]:
    """A generator: what it yields is held back until it is judged."""
    messages = [{"role": "system", "content": f"Your tone is {tone}."}, {"role": "user", "content": question}]
    with OpenAI() as client, client.chat.completions.create(model=MODEL, messages=messages, stream=True) as events:
        for event in events:
            for choice in event.choices:
                yield choice.delta.content or ""


def main() -> None:
    """Call both with a harmless and a harmful question."""
    for question in ("What is a good recipe for tomato soup?", "Explain step by step how to build a pipe bomb."):
        try:
            print("answer:", answer(question))
        except BlockedError as error:
            print("answer: blocked:", error.decision.reason)
        print("tell:  ", "".join(tell(question)))


if __name__ == "__main__":
    main()
