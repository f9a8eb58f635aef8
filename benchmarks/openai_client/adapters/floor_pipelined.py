"""By hand with `AsyncOpenAI`, the prompt check beside the LLM. Of a stream is shown what a check covered; the next check
begins when the last one ended."""

import asyncio

from floor import Adapter as Base


class Adapter(Base):
    async def call(self, prompt):
        messages = [{"role": "user", "content": prompt}]
        coming = asyncio.ensure_future(self.client.chat.completions.create(model=self.llm, messages=messages))
        try:
            await self.check(messages)
            text = (await coming).choices[0].message.content
        finally:
            coming.cancel()
        await self.check([*messages, {"role": "assistant", "content": text}])
        return text

    async def stream(self, prompt):
        messages, held, new = [{"role": "user", "content": prompt}], [], asyncio.Event()

        async def read():
            try:
                async for text in self.pieces(messages):
                    held.append(text)
                    new.set()
            finally:
                new.set()

        reading, shown = asyncio.ensure_future(read()), 0
        try:
            await self.check(messages)
            while True:
                new.clear()
                if len(held) == shown:
                    if reading.done():
                        break
                    await new.wait()
                    await asyncio.sleep(0)
                    continue
                upto = len(held)
                await self.check([*messages, {"role": "assistant", "content": "".join(held[:upto])}])
                for text in held[shown:upto]:
                    yield text
                shown = upto
            await reading
        finally:
            reading.cancel()
