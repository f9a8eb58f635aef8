"""guardrail-vl: a reasoning vision-language guard model between an LLM app and its users."""

from guardrail_vl.errors import BlockedError, GuardrailError
from guardrail_vl.guard import Guard
from guardrail_vl.policy import Policy
from guardrail_vl.turn import ImagePart, Message, TextPart, Turn
from guardrail_vl.verdict import Action, Decision, Label, Stage, Verdict

__version__ = "0.1.0"

__all__ = [
    "Action", "BlockedError", "Decision", "Guard", "GuardrailError", "ImagePart", "Label", "Message", "Policy", "Stage",
    "TextPart", "Turn", "Verdict",
]  # fmt: skip
