"""What a picture shows, as names of objects: EfficientNet-Lite0 on the thousand kinds of ImageNet. ONNX on the CPU.

Knows no text and no scores. A name is a guess at the main object, no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
from PIL import Image

from guardrail_vl.engines._embedded.encoder import HERE
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.media import PILImage

SURE: Final = 0.3
"""Probability from which an object is named."""
SIDE: Final = 224
"""Pixels of each side of what the model sees: the middle of the picture, scaled."""
_MIDDLE: Final = 0.875


class Objects:
    """Names what a picture shows. Thread-safe.

    Args:
        folder: Holds `objects.onnx` and `objects.txt`.
        threads: Threads that one call may use.

    Raises:
        ConfigurationError: The files are missing, or this onnxruntime can't load them.
    """

    def __init__(self, folder: Path = HERE, *, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._names = (folder / "objects.txt").read_text(encoding="utf-8").splitlines()
            self._session = onnxruntime.InferenceSession(
                str(folder / "objects.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the package has no public kind for this
            raise ConfigurationError(
                f"onnxruntime {onnxruntime.__version__} can't load the embedded guard's picture model.",
                hint="Run: pip install --upgrade 'guardrail-vl[embedded]'",
            ) from error

    def names(self, image: PILImage) -> tuple[str, ...]:
        """What an RGB picture shows, likeliest first; none where the model is not sure."""
        width, height = image.size
        side = _MIDDLE * min(width, height)
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
        scaled = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        pixels = ((np.asarray(scaled, np.float32) - 127) / 128).transpose(2, 0, 1)[None]
        margins = self._session.run(None, {"pixels": pixels})[0][0]
        likely = np.exp(margins - margins.max())
        likely /= likely.sum()
        return tuple(self._names[place] for place in np.argsort(-likely)[:3] if likely[place] >= SURE)
