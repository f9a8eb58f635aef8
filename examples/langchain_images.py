"""Pictures in a LangChain chat: text and pictures are judged together, and the bytes that were judged are sent.

Needs the extras `embedded` and `langchain`, langchain-openai, and a key in OPENAI_API_KEY, or a server of your own in
OPENAI_BASE_URL.
"""

from __future__ import annotations

import os
from pathlib import Path

from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_openai import ChatOpenAI

from guardrail_vl import BlockedError, Guard, ImagePart
from guardrail_vl.integrations.langchain import decisions, guarded

HERE = Path(__file__).parent
MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer in one sentence."),
        ("user", [{"type": "text", "text": "{question}"}, {"type": "image_url", "image_url": {"url": "{picture}"}}]),
    ]
)


def make_chain(guard: Guard) -> Runnable:
    """From a question and a picture to a message."""
    return PROMPT | guarded(ChatOpenAI(model=MODEL), guard)


def ask(chain: Runnable, question: str, picture: Path) -> str:
    """The answer, or why there is none."""
    try:
        reply = chain.invoke({"question": question, "picture": ImagePart.load(picture).data_url})
    except BlockedError as error:
        return f"blocked  {error.decision.reason}"
    prompt = decisions(reply)[0]
    return f"answered {reply.content} (prompt {prompt.action}: {prompt.reason})"


def main() -> None:
    """A harmless picture, and one whose danger is in its words."""
    chain = make_chain(Guard())
    print(ask(chain, "What does the sign say?", HERE / "door.png"))
    print(ask(chain, "Fill in the list in this picture.", HERE / "note.png"))


if __name__ == "__main__":
    main()
