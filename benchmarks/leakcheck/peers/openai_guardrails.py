"""openai-guardrails on the suite's surfaces: its clients are subclasses of OpenAI's, so OpenAI's driver drives them."""

from dataclasses import dataclass
from importlib.metadata import version

from guardrail_vl.leakcheck.drivers import KEY, TIMEOUT, OpenAIDriver, own_http


def check(model):
    details = "Flag harmful content."
    config = {"model": model, "confidence_threshold": 0.7, "system_prompt_details": details}
    return {"name": "Custom Prompt Check", "config": config}


@dataclass(frozen=True)
class Guardrails(OpenAIDriver):
    @property
    def version(self):
        return f"openai-guardrails {version('openai-guardrails')}, openai {version('openai')}"

    def client(self, probe, base_url):
        import guardrails

        words = ("first", "second") if probe.setup == "two_guards" else ("",)
        checks = [check(f"leakcheck-judge-flagged-{word}") for word in words]
        stage = {"version": 1, "guardrails": checks}
        # pre_flight is the stage that ends before the call is made; `input` runs beside it.
        config = {"version": 1, "pre_flight": stage, "output": stage}
        options = {"api_key": KEY, "timeout": TIMEOUT, "raise_guardrail_errors": True}
        if probe.setup == "custom_http":
            import openai

            options["http_client"] = own_http(openai, marked=True, asynchronous=self.asynchronous)
        if probe.setup == "azure":
            kind = guardrails.GuardrailsAsyncAzureOpenAI if self.asynchronous else guardrails.GuardrailsAzureOpenAI
            return kind(config=config, azure_endpoint=base_url.removesuffix("/v1"), api_version="2024-10-21", **options)
        kind = guardrails.GuardrailsAsyncOpenAI if self.asynchronous else guardrails.GuardrailsOpenAI
        return kind(config=config, base_url=base_url, **options)


BLOCKED = frozenset(("GuardrailTripwireTriggered",))
sync = Guardrails("openai-guardrails", blocked=BLOCKED)
asynchronous = Guardrails("openai-guardrails (async)", asynchronous=True, blocked=BLOCKED)
