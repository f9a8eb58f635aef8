"""Write `seen.txt`: hashes of the requests that the embedded guard was trained and calibrated on. See README.md."""

from __future__ import annotations

import argparse
from pathlib import Path

import data

from guardrail_vl.evaluation._samples import request_group

HEAD = """\
# Requests that the embedded guard 0.2 was trained on, or that its threshold was chosen on, as hashes.
# guardrail-vl eval run --seen training/embedded/seen.txt leaves them out.
"""


def main() -> None:
    """Write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of labelled rows")
    rows = [row for row in data.load(parser.parse_args().data) if row.split in ("train", "dev")]
    # The row's own group too, which is another for a picture of a text: that goes where the text goes.
    found = {name for row in rows for name in (row.group, row.id.split(".")[0]) if not row.source.startswith("seed")}
    found |= {request_group(row.prompt) for row in rows if row.prompt and not row.images}
    Path(__file__).with_name("seen.txt").write_text(HEAD + "".join(f"{name}\n" for name in sorted(found)), "utf-8")


if __name__ == "__main__":
    main()
