"""By hand with aiohttp: guard, LLM, guard, one after the other."""

import aiohttp

FORMAT = "safe"
IMPORT = "import aiohttp"


class Adapter:
    parallel = False

    async def setup(self, base, guard, llm, deadline):
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self.url, self.guard, self.llm = base + "/chat/completions", guard, llm
        self.timeout = aiohttp.ClientTimeout(total=deadline)

    async def post(self, model, messages):
        async with self.session.post(
            self.url, json={"model": model, "messages": messages}, timeout=self.timeout
        ) as reply:
            return (await reply.json())["choices"][0]["message"]["content"]

    async def check(self, messages):
        if await self.post(self.guard, messages) != "safe":
            raise RuntimeError("blocked")

    async def call(self, prompt):
        messages = [{"role": "user", "content": prompt}]
        await self.check(messages)
        text = await self.post(self.llm, messages)
        await self.check([*messages, {"role": "assistant", "content": text}])
        return text

    async def close(self):
        await self.session.close()
