"""By hand with `AsyncOpenAI`: guard, LLM, guard, one after the other. A stream is collected, judged, then shown."""

from openai import AsyncOpenAI


class Blocked(Exception):
    pass


class Adapter:
    asynchronous = True

    async def setup(self, base, guard, llm):
        self.client = AsyncOpenAI(base_url=base, api_key="sk-stub")
        self.checker = AsyncOpenAI(base_url=base, api_key="sk-stub")
        self.guard, self.llm = f"{guard}_safe", llm

    async def check(self, messages):
        reply = await self.checker.chat.completions.create(model=self.guard, messages=messages)
        if reply.choices[0].message.content != "safe":
            raise Blocked

    async def call(self, prompt):
        messages = [{"role": "user", "content": prompt}]
        await self.check(messages)
        reply = await self.client.chat.completions.create(model=self.llm, messages=messages)
        text = reply.choices[0].message.content
        await self.check([*messages, {"role": "assistant", "content": text}])
        return text

    async def pieces(self, messages):
        async for chunk in await self.client.chat.completions.create(model=self.llm, messages=messages, stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    async def stream(self, prompt):
        messages = [{"role": "user", "content": prompt}]
        await self.check(messages)
        held = [text async for text in self.pieces(messages)]
        await self.check([*messages, {"role": "assistant", "content": "".join(held)}])
        for text in held:
            yield text

    async def close(self):
        await self.client.close()
        await self.checker.close()
