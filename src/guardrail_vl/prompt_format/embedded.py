"""Placeholder until the real one lands."""
from guardrail_vl.prompt_format.guardreasoner_vl import GuardReasonerVL
class EmbeddedFormat(GuardReasonerVL):
    id = "embedded/1"
    speeds = ("fast",)
