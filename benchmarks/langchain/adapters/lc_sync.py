"""`invoke` and `stream`."""

from langchain_apps import App


class Adapter(App):
    asynchronous = False

    def setup(self, base, guard, llm, **options):
        self.make(base, guard, llm, **options)

    def call(self, prompt):
        messages = []
        for _ in range(self.turns):
            messages = self.told(self.app.invoke(self.asks(messages, prompt)))

    def stream(self, prompt):
        for item in self.app.stream(self.asks([], prompt), **({"stream_mode": "messages"} if self.agent else {})):
            yield self.shown(item)

    def close(self):
        if self.guard:
            self.guard.close()
