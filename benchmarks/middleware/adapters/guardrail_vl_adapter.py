"""Ours: a remote guard; the user's own LLM call is made with aiohttp, as in `floor_aiohttp`."""

import aiohttp

from guardrail_vl import Guard

FORMAT = "guardreasoner"
IMPORT = "import guardrail_vl"


class Adapter:
    parallel = False

    async def setup(self, base, guard, llm, deadline):
        # Without a cache: every call must reach the guard model, as it does for the others.
        self.guard = Guard.remote(base, model=guard, api_key="sk-stub", cache=False, deadline=deadline)
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self.url, self.llm = base + "/chat/completions", llm

    async def answer(self, prompt):
        async with self.session.post(
            self.url, json={"model": self.llm, "messages": [{"role": "user", "content": prompt}]}
        ) as reply:
            return (await reply.json())["choices"][0]["message"]["content"]

    async def call(self, prompt):
        (await self.guard.acheck_prompt(prompt)).raise_if_blocked()
        text = await self.answer(prompt)
        (await self.guard.acheck_response(text, prompt=prompt)).raise_if_blocked()
        return text

    async def close(self):
        await self.session.close()
        await self.guard.aclose()
