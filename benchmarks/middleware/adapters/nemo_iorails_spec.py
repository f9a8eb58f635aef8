"""NeMo Guardrails: its fast engine (IORails), self check of input and output, input check beside the LLM call."""

from nemoguardrails import Guardrails, RailsConfig

FORMAT = "yesno"
IMPORT = "from nemoguardrails import Guardrails, RailsConfig"
REFUSALS = ("I'm sorry, I can't respond to that.", "I'm sorry, an internal error has occurred.")

CONFIG = """
models:
{models}
rails:
  input:
    speculative_generation: true
    flows: [self check input]
  output:
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
    parameters: {{base_url: "{base}", api_key: sk-stub{timeout}}}
"""


class Adapter:
    parallel = True

    async def setup(self, base, guard, llm, deadline):
        def model(kind, name, timeout=""):
            return MODEL.format(type=kind, model=name, base=base, timeout=timeout)

        limit = f", timeout: {deadline}" if deadline else ""
        models = model("main", llm) + model("self_check_input", guard, limit) + model("self_check_output", guard, limit)
        self.rails = Guardrails(
            RailsConfig.from_content(yaml_content=CONFIG.format(models=models)), require_iorails=True
        )
        await self.rails.startup()

    async def call(self, prompt):
        reply = await self.rails.generate_async(messages=[{"role": "user", "content": prompt}])
        text = reply["content"] if isinstance(reply, dict) else str(reply)
        if text in REFUSALS:
            raise RuntimeError("blocked")
        return text

    async def close(self):
        await self.rails.shutdown()
