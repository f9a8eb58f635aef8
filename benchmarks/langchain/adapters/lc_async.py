"""`ainvoke` and `astream`."""

from langchain_apps import App


class Adapter(App):
    asynchronous = True

    async def setup(self, base, guard, llm, **options):
        self.make(base, guard, llm, **options)

    async def call(self, prompt):
        messages = []
        for _ in range(self.turns):
            messages = self.told(await self.app.ainvoke(self.asks(messages, prompt)))

    async def stream(self, prompt):
        modes = {"stream_mode": "messages"} if self.agent else {}
        async for item in self.app.astream(self.asks([], prompt), **modes):
            yield self.shown(item)

    async def close(self):
        if self.guard:
            await self.guard.aclose()
