"""What the embedded engine is made of: its weights, and the code that reads text and pictures for them."""

from __future__ import annotations

from guardrail_vl.errors import MissingDependencyError

try:
    import numpy as np  # noqa: F401 - asked for here, once, for every module of this folder
    import onnxruntime  # noqa: F401
    import tokenizers  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        error.name or "onnxruntime", extra="embedded", needed_for="The embedded guard"
    ) from error
