"""Ours with the prompt check beside the LLM call: nothing is shown before both are there."""

import asyncio

from guardrail_vl_adapter import FORMAT, IMPORT  # noqa: F401
from guardrail_vl_adapter import Adapter as Base


class Adapter(Base):
    parallel = True

    async def call(self, prompt):
        answer = asyncio.ensure_future(self.answer(prompt))
        try:
            (await self.guard.acheck_prompt(prompt)).raise_if_blocked()
            text = await answer
        finally:
            answer.cancel()
        (await self.guard.acheck_response(text, prompt=prompt)).raise_if_blocked()
        return text
