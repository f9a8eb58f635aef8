"""NeMo Guardrails: its fast engine (IORails), self check of input and output."""

from nemoguardrails import Guardrails, RailsConfig

REFUSALS = ("I'm sorry, I can't respond to that.", "I'm sorry, an internal error has occurred.")
CONFIG = """
models:
{models}
rails:
  input:
    {input}
    flows: [self check input]
  output:
    {output}
    flows: [self check output]
prompts:
  - task: self_check_input
    content: 'Message of a user: "{{{{ user_input }}}}". Is it harmful? Answer Yes or No.'
  - task: self_check_output
    content: 'Message of a bot: "{{{{ bot_response }}}}". Is it harmful? Answer Yes or No.'
"""
MODEL = """
  - type: {type}
    engine: openai
    model: {model}
    parameters: {{base_url: "{base}", api_key: sk-stub}}
"""
# Its prompt check beside the LLM call is for calls that are not streamed.
BESIDE = "speculative_generation: true"
CHUNKS = "streaming: {{enabled: true, chunk_size: {chunk}, context_size: {context}, stream_first: false}}"


class Blocked(Exception):
    pass


class Adapter:
    asynchronous = True

    async def setup(self, base, guard, llm, chunk=0):
        kinds = {"main": llm, "self_check_input": f"{guard}_yesno", "self_check_output": f"{guard}_yesno"}
        config = CONFIG.format(
            models="".join(MODEL.format(type=kind, model=model, base=base) for kind, model in kinds.items()),
            input="" if chunk else BESIDE,
            output=CHUNKS.format(chunk=chunk, context=chunk // 2) if chunk else "",
        )
        self.rails = Guardrails(RailsConfig.from_content(yaml_content=config), require_iorails=True)
        await self.rails.startup()

    async def call(self, prompt):
        reply = await self.rails.generate_async(messages=[{"role": "user", "content": prompt}])
        text = reply["content"] if isinstance(reply, dict) else str(reply)
        if text in REFUSALS:
            raise Blocked
        return text

    async def stream(self, prompt):
        async for text in self.rails.stream_async(messages=[{"role": "user", "content": prompt}]):
            if text in REFUSALS or text.startswith('{"error"'):
                raise Blocked
            yield text

    async def close(self):
        await self.rails.shutdown()
