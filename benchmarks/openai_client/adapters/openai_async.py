"""`AsyncOpenAI`, as it is or guarded by us."""

from openai import AsyncOpenAI


class Adapter:
    asynchronous = True

    async def setup(self, base, guard, llm, **options):
        self.client, self.guard, self.llm = AsyncOpenAI(base_url=base, api_key="sk-stub"), None, llm
        if options:
            from guardrail_vl import Guard
            from guardrail_vl.integrations.openai import guarded

            # Without a cache: every check must reach the guard model, as it does for the others.
            self.guard = Guard.remote(base, model=f"{guard}_guardreasoner", api_key="sk-stub", cache=False)
            self.client = guarded(self.client, self.guard, **options)

    def create(self, prompt, **more):
        return self.client.chat.completions.create(
            model=self.llm, messages=[{"role": "user", "content": prompt}], **more
        )

    async def call(self, prompt):
        return (await self.create(prompt)).choices[0].message.content

    async def stream(self, prompt):
        async for chunk in await self.create(prompt, stream=True):
            yield chunk.choices[0].delta.content if chunk.choices else None

    async def close(self):
        await self.client.close()
        if self.guard:
            await self.guard.aclose()
