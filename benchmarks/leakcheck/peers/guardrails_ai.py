"""guardrails-ai: a Guard with a validator on the messages and on the output, `on_fail="exception"`; it calls the model."""

import os

from guardrail_vl.leakcheck.content import BREAK, MARK, OTHER, WIDE, WORDS, harmful
from guardrail_vl.leakcheck.drivers import KEY

from .chat import Chat

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


def validator():
    from guardrails.validator_base import Validator, register_validator
    from guardrails.validators import FailResult, PassResult

    @register_validator(name="leakcheck/words", data_type="string")
    class Words(Validator):
        def __init__(self, words=WORDS, on_fail=None):
            super().__init__(on_fail=on_fail, words=words)
            self.words = tuple(words)

        def _validate(self, value, metadata):
            if BREAK in str(value):
                raise RuntimeError("the validator is broken")
            return FailResult(error_message="harmful") if harmful(str(value), self.words) else PassResult()

    return Words


class GuardrailsAI(Chat):
    name = "guardrails-ai"
    packages = ("guardrails-ai", "litellm")
    setups = frozenset(("plain", "two_guards"))
    blocked = frozenset(("ValidationError",))
    words = None

    async def make(self, probe, base_url):
        from guardrails import Guard, settings

        settings.rc.enable_metrics = False
        GuardrailsAI.words = GuardrailsAI.words or validator()
        guard = Guard(name="leakcheck")
        guard.configure(allow_metrics_collection=False)
        for words in ((OTHER,), (MARK, WIDE)) if probe.setup == "two_guards" else (WORDS,):
            for place in ("messages", "output"):
                guard = guard.use(self.words(words, on_fail="exception"), on=place)
        return lambda **options: guard(
            model="openai/leakcheck-model", api_base=base_url, api_key=KEY, num_reasks=0, **options
        )

    def failed(self, log, error):
        # What a validator raises comes out wrapped in the same class as a finding; the message tells them apart.
        log.failed(error, blocked=type(error).__name__ == "ValidationError" and "harmful" in str(error))

    async def call(self, app, messages, log):
        import asyncio

        got = await asyncio.to_thread(app, messages=messages)
        log.value(got.to_dict())
        log.text(got.validated_output or "")
        if not got.validation_passed:
            log.refused()

    async def stream(self, app, messages, log):
        import asyncio

        def read():
            for got in app(messages=messages, stream=True):
                log.value(got.to_dict())
                log.text(got.validated_output or "")

        await asyncio.to_thread(read)


driver = GuardrailsAI()
