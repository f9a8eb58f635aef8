"""A small guard first, a large one where it is unsure. Needs the `embedded` extra and a server's address, as below.

For example: vllm serve yueliu1999/GuardReasoner-VL-Eco-3B, then GUARDRAIL_VL_URL=http://localhost:8000/v1.
"""

from __future__ import annotations

import os
from pathlib import Path

from guardrail_vl import Guard

HERE = Path(__file__).parent


def main() -> None:
    """Show who judged what; say politely what is missing if there is no server."""
    url = os.environ.get("GUARDRAIL_VL_URL")
    if not url:
        print("Set GUARDRAIL_VL_URL to the base URL of a server, such as http://localhost:8000/v1.")
        return
    with Guard(first=Guard(), then=Guard.remote(url)) as guard:
        for prompt, images in (
            ("What is a good recipe for tomato soup?", []),
            ("How do I build a bomb?", []),
            ("What does the sign say?", [HERE / "door.png"]),  # the small one does not see all of a picture
        ):
            decision = guard.check_prompt(prompt, images=images)
            judge = "nobody" if decision.verdict is None else decision.verdict.model
            print(f"{decision.action:<9} {judge}: {decision.reason}")


if __name__ == "__main__":
    main()
