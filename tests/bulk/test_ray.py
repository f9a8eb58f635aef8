from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guardrail_vl.bulk import moderate
from tests.bulk.files import lasting, make_guard, read, write

ROOT = Path(__file__).parents[2]

# Where `tests.bulk.files` can be imported, a guard that holds a function of it can be sent to workers.
RUN = """
import sys
from guardrail_vl.bulk import RayPool, moderate
from guardrail_vl.errors import ConfigurationError
from tests.bulk.files import make_guard

source, output = sys.argv[1:]
try:
    moderate(make_guard(), source, output, pool=RayPool(workers=64, cpus_per_worker=99))
except ConfigurationError as error:
    print(error)

# From here on the cluster is the caller's: it is neither started nor stopped for each run.
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)

class Stop(Exception):
    pass

def tick(told):
    if told.done > 20:
        raise Stop

pool = RayPool(workers=2, cpus_per_worker=0.5)
try:
    moderate(make_guard(), source, output, keep=["kind"], batch=4, pool=pool, progress=tick)
except Stop:
    print("stopped")
summary = moderate(make_guard(), source, output, keep=["kind"], batch=4, pool=pool)
print(ray.is_initialized(), summary.rows, summary.allow, summary.block, summary.error, summary.kept > 20)
"""


@pytest.mark.timeout(170)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra 'ray'")
@pytest.mark.skipif(sys.platform == "win32", reason="Ray is not tried there")
def test_workers_on_ray_give_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    words = ("cake", "bomb", "crash", "door")
    rows = [{"id": i, "prompt": f"question {i}: {words[i % 4]}?", "kind": words[i % 4]} for i in range(200)]
    source, output = write(tmp_path / "in.parquet", rows), tmp_path / "ray.parquet"
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(source), str(output)],
        # Ray's socket lies below this folder, and its path may not be long.
        env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "(raylet)" not in line]  # which it may say when we stop it
    assert lines[0].startswith("64 workers need 6336 CPUs")
    assert lines[-2:] == ["stopped", "True 200 100 50 50 True"]
    here = tmp_path / "here.parquet"
    moderate(make_guard(), source, here, keep=["kind"])
    assert lasting(read(output)) == lasting(read(here))
