"""Text in pictures: PP-OCR through rapidocr, offline. Knows nothing of prompts or scores.

The OCR library is imported here and nowhere else, so that text alone never pays for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from guardrail_vl.errors import ConfigurationError, MissingDependencyError
from guardrail_vl.media import PILImage

try:
    import rapidocr
except ImportError as error:
    raise MissingDependencyError(
        error.name or "rapidocr", extra="embedded", needed_for="Reading the text in pictures"
    ) from error

_PARTS: Final = {"Det": "*_det_*.onnx", "Rec": "*_rec_*.onnx", "Cls": "*_cls_*.onnx"}


class Ocr:
    """Reads the text in a picture. Not thread-safe: the caller holds a lock.

    Args:
        threads: Threads that one call may use.

    Raises:
        ConfigurationError: The installed rapidocr does not hold its models.
    """

    def __init__(self, *, threads: int = 1) -> None:
        params: dict[str, object] = {
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            # Lines together are padded to the longest: more memory, and no faster on a CPU.
            "Rec.rec_batch_num": 1,
        }
        # By path: without one the library would fetch what it does not find.
        models = Path(rapidocr.__file__).parent / "models"
        for part, pattern in _PARTS.items():
            found = sorted(models.glob(pattern))
            if len(found) != 1:
                raise ConfigurationError(
                    "The installed rapidocr does not hold the models it reads pictures with.",
                    hint="Run: pip install --force-reinstall 'rapidocr>=3.10,<4'",
                )
            params[f"{part}.model_path"] = str(found[0])
        self._ocr = rapidocr.RapidOCR(params=params)

    def read(self, image: PILImage) -> str:
        """The text in an RGB picture, a line each, from the top; empty when there is none."""
        # The library expects the channels as OpenCV orders them: blue, green, red.
        pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
        found: Any = self._ocr(pixels)
        return "\n".join(found.txts or ())
