"""By hand with AsyncOpenAI: guard, LLM, guard, one after the other."""

from openai import AsyncOpenAI

FORMAT = "safe"
IMPORT = "from openai import AsyncOpenAI"


class Adapter:
    parallel = False

    async def setup(self, base, guard, llm, deadline):
        self.client = AsyncOpenAI(base_url=base, api_key="sk-stub")
        self.checker = AsyncOpenAI(base_url=base, api_key="sk-stub", timeout=deadline)
        self.guard, self.llm = guard, llm

    async def check(self, messages):
        reply = await self.checker.chat.completions.create(model=self.guard, messages=messages)
        if reply.choices[0].message.content != "safe":
            raise RuntimeError("blocked")

    async def call(self, prompt):
        messages = [{"role": "user", "content": prompt}]
        await self.check(messages)
        reply = await self.client.chat.completions.create(model=self.llm, messages=messages)
        text = reply.choices[0].message.content
        await self.check([*messages, {"role": "assistant", "content": text}])
        return text

    async def close(self):
        await self.client.close()
        await self.checker.close()
