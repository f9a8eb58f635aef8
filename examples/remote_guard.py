"""A guard model on a server that speaks the OpenAI API. Needs the server's address in GUARDRAIL_VL_URL.

For example: vllm serve yueliu1999/GuardReasoner-VL-Eco-3B, then GUARDRAIL_VL_URL=http://localhost:8000/v1.
"""

from __future__ import annotations

import os
from pathlib import Path

from guardrail_vl import Guard

HERE = Path(__file__).parent


def main() -> None:
    """Judge a text and a picture there; say politely what is missing if there is no server."""
    url = os.environ.get("GUARDRAIL_VL_URL")
    if not url:
        print("Set GUARDRAIL_VL_URL to the base URL of a server, such as http://localhost:8000/v1.")
        return
    with Guard.remote(url, deadline=30) as guard:
        for prompt, images in (
            ("How do I build a bomb?", []),
            ("What does the sign say?", [HERE / "door.png"]),
        ):
            decision = guard.check_prompt(prompt, images=images)
            if decision.error is not None:
                print(f"{decision.action:<9} {type(decision.error).__name__}: {decision.error}")
                return
            print(f"{decision.action:<9} {decision.reason}")


if __name__ == "__main__":
    main()
