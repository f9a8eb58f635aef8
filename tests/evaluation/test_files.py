"""What is wrong with a file is told by file, row and field, and nothing of its content is repeated."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from guardrail_vl.evaluation.readers import read
from tests.evaluation.files import BY_NAME, SECRET, Row, refused

SHARED: Row = {"id": "g.s.1", "source": "gsm8k", "task_inputs": {"prompt": "hi", "images": [], "response": None},
          "labels": {"prompt": "unharmful", "response": None, "refusal": None}, "category": None,
          "license": "MIT"}  # fmt: skip


def without(row: Mapping[str, Any], name: str) -> Row:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (without(SHARED, "labels"), r"gsm8k.jsonl, row 3: there is no field 'labels'"),
        (SHARED | {"id": 7}, r"row 3: the field 'id' is not text"),
        (SHARED | {"labels": {"prompt": "benign"}}, r"row 3: .*'labels.prompt' holds an unknown label \('benign'\)"),
        (SHARED | {"labels": {"prompt": SECRET}}, r"row 3: .*'labels.prompt' holds an unknown label\."),
        (SHARED | {"labels": [SECRET]}, r"row 3: the fields 'task_inputs' and 'labels' have to be objects"),
        (SHARED | {"task_inputs": {"prompt": 5, "images": [], "response": None}}, "row 3: the field 'prompt' is not text"),
        (SHARED | {"task_inputs": {"prompt": None, "images": [], "response": None}}, "row 3: .* and no prompt"),
        (SHARED | {"task_inputs": {"prompt": "a", "images": SECRET, "response": None}}, "row 3: .*'images' is no list"),
        (SHARED | {"task_inputs": {"prompt": "a", "images": ["../a.png"], "response": None}}, "row 3: .* outside the"),
        (SHARED | {"task_inputs": {"prompt": "a", "images": ["/a.png"], "response": None}}, "row 3: .* outside the"),
        (SHARED | {"task_inputs": {"prompt": "a", "images": ["http://a/b"], "response": None}}, "row 3: .* a URL"),
        (SHARED | {"id": "g.s.0"}, "row 3: it has the same id as row 1"),
        ([SECRET], "row 3: it is no object"),
    ],
)  # fmt: skip
def test_malformed_rows_are_told_by_number_and_field(tmp_path: Path, row: Any, match: str) -> None:
    path = tmp_path / "gsm8k.jsonl"
    good = json.dumps(SHARED | {"id": "g.s.0"})
    path.write_text(f"{good}\n\n{json.dumps(row)}\n", encoding="utf-8")
    refused(path, "shared_gsm8k", match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "gsm8k.jsonl holds no rows"),
        (b"\n \n", "gsm8k.jsonl holds no rows"),
        (f'{{"id": "{SECRET}'.encode(), "row 1: not valid JSON"),
        ((json.dumps(SHARED) + "\n").encode("utf-16"), "not UTF-8"),
        (b'{"id": ' + b"9" * 5000 + b"}", "row 1: JSON that can't be read"),
        (b"[" * 200_000, "row 1: JSON that can't be read"),
        (json.dumps(SHARED | {"labels": {"prompt": None}}).encode(), "no samples with a label of the prompt"),
    ],
)
def test_files_that_are_no_such_file(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "gsm8k.jsonl").write_bytes(data)
    refused(tmp_path / "gsm8k.jsonl", "shared_gsm8k", match)


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps(SHARED), encoding="utf-8-sig")
    assert len(read(BY_NAME["shared_gsm8k"], tmp_path).cases) == 1


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_damaged_archives(tmp_path: Path, suffix: str) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if suffix == ".gz" else lzma.compress
    whole = pack(json.dumps(SHARED).encode() * 50)
    for broken in (whole[: len(whole) // 2], whole[:12] + b"\xff" * 30 + whole[42:], b"nothing of the kind"):
        path = tmp_path / f"rows.jsonl{suffix}"
        path.write_bytes(broken)
        refused(path, "shared_gsm8k", f"rows.jsonl{suffix} is damaged", layout="shared")
        path = path.rename(tmp_path / f"votes.json{suffix}")
        refused(path, "harmbench_response", f"votes.json{suffix} is damaged", layout="harmbench_votes")


def test_the_wrong_file_is_told(tmp_path: Path) -> None:
    refused(tmp_path / "gsm8k.jsonl", "shared_gsm8k", "gsm8k.jsonl can't be read: No such file")
    refused(tmp_path, "shared_gsm8k", r"isn't in the folder.* Its files are called gsm8k.jsonl.gz, gsm8k.jsonl")
    refused(tmp_path / "other.jsonl", "shared_gsm8k", "no name that a file of 'shared_gsm8k' goes by")
    refused(tmp_path / "other.jsonl", "shared_gsm8k", "in the layout 'aegis'", layout="aegis")
    refused(tmp_path / "other.xlsx", "shared_gsm8k", "no format that can be read", layout="shared")
    array = tmp_path / "BeaverTails.json"
    array.write_text('{"a": 1}', encoding="utf-8")
    refused(array, "beavertails", "BeaverTails.json is not a JSON array")
    votes = tmp_path / "text_behaviors_val_set.json"
    votes.write_text("[]", encoding="utf-8")
    refused(votes, "harmbench_response", "no JSON object of behaviours")
    votes.write_text('{"a": ["x"]}', encoding="utf-8")
    refused(votes, "harmbench_response", "no list of objects")
