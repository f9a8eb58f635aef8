"""`OpenAI`, as it is or guarded by us."""

from openai import OpenAI


class Adapter:
    asynchronous = False

    def setup(self, base, guard, llm, **options):
        self.client, self.guard, self.llm = OpenAI(base_url=base, api_key="sk-stub"), None, llm
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

    def call(self, prompt):
        return self.create(prompt).choices[0].message.content

    def stream(self, prompt):
        for chunk in self.create(prompt, stream=True):
            yield chunk.choices[0].delta.content if chunk.choices else None

    def close(self):
        self.client.close()
        if self.guard:
            self.guard.close()
