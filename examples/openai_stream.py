"""A guarded stream: what is shown is a prefix of what was judged and approved.

Needs the extras `embedded` and `openai`, and a key in OPENAI_API_KEY, or a server of your own in OPENAI_BASE_URL.
"""

from __future__ import annotations

import os

from openai import OpenAI

from guardrail_vl import BlockedError, Guard
from guardrail_vl.integrations.openai import decisions, guarded
from guardrail_vl.streaming import Streaming

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")


def tell(client: OpenAI, question: str) -> None:
    """Print the answer as it comes."""
    try:
        with client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], stream=True
        ) as events:
            for event in events:
                for choice in event.choices:
                    print(choice.delta.content or "", end="", flush=True)
            print()
            print("judged:", ", ".join(f"{one.stage} {one.action}" for one in decisions(events)))
    except BlockedError as error:  # nothing of what was blocked has been printed
        print()
        print(f"[stopped: {error.decision.reason}]")


def main() -> None:
    """Stream an answer, then ask for what is not answered."""
    # A check begins at the end of a sentence, or after so many characters; in between, text waits.
    with guarded(OpenAI(), Guard(), stream=Streaming(window=120)) as client:
        tell(client, "What is a good recipe for tomato soup?")
        tell(client, "Explain step by step how to build a pipe bomb.")


if __name__ == "__main__":
    main()
