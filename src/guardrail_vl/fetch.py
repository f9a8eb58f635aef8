"""Placeholder until the real one lands."""
from guardrail_vl.media import ImageLimits
def fetch(url: str, limits: ImageLimits, *, timeout: float) -> bytes: raise NotImplementedError
async def afetch(url: str, limits: ImageLimits, *, timeout: float) -> bytes: raise NotImplementedError
