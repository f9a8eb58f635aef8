"""Runs the middleware benchmark; see README.md. `python run.py [info] [seq] [conc] [sat] [hang] [cache]`"""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENVS = Path(os.environ.get("BENCH_VENVS", Path.home() / ".cache" / "guardrail-vl-bench"))
PEERS = {  # adapter: (virtual environment, what pip installs in it)
    "guardrail_vl_adapter": ("guardrail_vl", [str(ROOT)]),
    "guardrail_vl_beside": ("guardrail_vl", [str(ROOT)]),
    "floor_aiohttp": ("guardrail_vl", [str(ROOT)]),
    "floor_openai": ("openai", ["openai"]),
    "nemo_iorails_spec": ("nemo", ["nemoguardrails"]),
}
QUIET = {
    "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "NEMO_GUARDRAILS_NO_USAGE_STATS": "1", "OTEL_SDK_DISABLED": "true",
    "LANGSMITH_TRACING": "false", "OPENAI_API_KEY": "sk-stub", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
PHASES = ("info", "seq", "conc", "sat", "hang", "cache")


def python(venv):
    return str(VENVS / venv / "bin" / "python")


def make_venvs():
    for venv, packages in {"stub": ["uvicorn", "uvloop", "httptools"], **dict(PEERS.values())}.items():
        fresh = not Path(python(venv)).exists()
        if fresh:
            subprocess.run([sys.executable, "-m", "venv", VENVS / venv], check=True)
        if fresh or packages == [str(ROOT)]:  # ours is installed anew: it changes
            subprocess.run([python(venv), "-m", "pip", "install", "-q", *packages], check=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stub:
    def __init__(self):
        port = free_port()
        self.base = f"http://127.0.0.1:{port}/v1"
        self.url = f"http://127.0.0.1:{port}/requests"
        self.process = subprocess.Popen(["taskset", "-c", "1", python("stub"), HERE / "stub.py", str(port)])
        for _ in range(200):
            try:
                self.requests()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit("the stub did not start")

    def requests(self):
        with urllib.request.urlopen(self.url, timeout=5) as reply:
            return json.load(reply)["requests"]


class Worker:
    def __init__(self, name):
        venv = PEERS[name][0]
        self.name = name
        self.process = subprocess.Popen(
            ["taskset", "-c", "0", python(venv), HERE / "worker.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **QUIET},
        )  # fmt: skip

    def do(self, run, **arguments):
        self.process.stdin.write(json.dumps({"run": run, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} died")
        return json.loads(line)

    def setup(self, stub, guard_ms=0, llm_ms=0, deadline=None):
        return self.do("setup", adapter=self.name, base=stub.base, guard_ms=guard_ms, llm_ms=llm_ms, deadline=deadline)

    def stop(self):
        self.process.stdin.close()
        self.process.wait(10)


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def interleaved(workers, rounds):
    for k in range(rounds):
        yield from workers if k % 2 == 0 else reversed(workers)


def seq(stub, workers):
    """In series, no delays."""
    rows = {w.name: {"ms": [], "cpu": []} for w in workers}
    for worker in workers:
        worker.setup(stub)
        worker.do("seq", count=30)
        stub.requests()
        worker.do("seq", count=10)
        assert stub.requests() == 30, f"{worker.name} does not make three requests a call"
    for worker in interleaved(workers, 8):
        got = worker.do("seq", count=50)
        rows[worker.name]["ms"] += got["ms"]
        rows[worker.name]["cpu"].append(got["cpu_ms"])
    floor = statistics.median(rows["floor_openai"]["cpu"])
    return {
        name: {
            "p10_ms": quantile(r["ms"], 0.1), "p50_ms": statistics.median(r["ms"]), "p99_ms": quantile(r["ms"], 0.99),
            "cpu_ms": statistics.median(r["cpu"]), "cpu_vs_floor_openai": statistics.median(r["cpu"]) / floor,
        }
        for name, r in rows.items()
    }  # fmt: skip


def concurrent(stub, workers, guard_ms, llm_ms, count):
    runs = {w.name: [] for w in workers}
    for worker in workers:
        worker.setup(stub, guard_ms, llm_ms)
        worker.do("seq", count=5)
    for worker in interleaved(workers, 4):
        got = worker.do("conc", count=count, concurrency=50)
        runs[worker.name].append({**got, "per_s": count / got["wall_s"]})
    rows = {}
    for name, got in runs.items():
        middle = sorted(got, key=lambda g: g["per_s"])[len(got) // 2]
        rows[name] = {
            "calls_per_s": statistics.median(g["per_s"] for g in got), "best_calls_per_s": max(g["per_s"] for g in got),
            "p50_ms": statistics.median(middle["ms"]), "p99_ms": quantile(middle["ms"], 0.99),
            "cpu_ms": statistics.median(g["cpu_ms"] for g in got), "rss_mb": got[0]["rss_mb"],
        }  # fmt: skip
    return rows


def conc(stub, workers):
    """200 calls at concurrency 50; guard 50 ms, LLM 300 ms."""
    return concurrent(stub, workers, 50, 300, 200)


def sat(stub, workers):
    """400 calls at concurrency 50, no delays: calls a second on one core."""
    return concurrent(stub, workers, 0, 0, 400)


def hang(stub, workers):
    """The guard never answers; it was given one second."""
    rows = {}
    for worker in workers:
        worker.setup(stub, "hang", 0, deadline=1.0)
        runs = [worker.do("hang") for _ in range(3)]
        rows[worker.name] = {"seconds": statistics.median(r["seconds"] for r in runs), "outcome": runs[0]["outcome"]}
    return rows


def info():
    """Import time (least of five), size on disk, packages, memory after import."""
    rows = {}
    for name, (venv, _) in PEERS.items():
        if name == "guardrail_vl_beside":
            continue
        line = next(
            text for text in (HERE / "adapters" / f"{name}.py").read_text().splitlines() if text.startswith("IMPORT =")
        )
        code = (
            f"import time\nt = time.perf_counter()\n{line.split('=', 1)[1].strip()[1:-1]}\nt = time.perf_counter() - t\n"
            "r = next(int(l.split()[1]) / 1024 for l in open('/proc/self/status') if l.startswith('VmRSS'))\n"
            "import sys\nprint(t, r, len(sys.modules))"
        )
        command = ["taskset", "-c", "0", python(venv), "-c", code]
        runs = [
            subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, **QUIET}
            ).stdout.split()
            for _ in range(6)
        ]
        rows[name] = {
            "import_s": min(float(r[0]) for r in runs[1:]),
            "rss_mb": float(runs[-1][1]),
            "modules": int(runs[-1][2]),
        }
        site = next((VENVS / venv / "lib").glob("python3*")) / "site-packages"
        own = [
            p
            for p in site.iterdir()
            if not p.name.startswith(("pip", "setuptools", "_distutils_hack", "pkg_resources", "distutils"))
        ]
        size = sum(f.stat().st_size for p in own for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file())
        rows[name] |= {"site_packages_mb": size / 2**20, "distributions": sum(p.suffix == ".dist-info" for p in own)}
    return rows


def cache():
    """A whole check whose verdict is remembered, in microseconds: the median of 9 rounds of 2,000."""
    code = (
        "import time, statistics\nfrom guardrail_vl import Guard\nfrom guardrail_vl.testing import ScriptedEngine, by_keyword\n"
        "g = Guard(engine=ScriptedEngine(by_keyword('bomb')))\ng.check_prompt('hello')\nout = []\n"
        "for _ in range(9):\n  t = time.perf_counter()\n  for _ in range(2000): g.check_prompt('hello')\n"
        "  out.append((time.perf_counter() - t) / 2000 * 1e6)\nprint(statistics.median(out))"
    )
    out = subprocess.run(
        ["taskset", "-c", "0", python("guardrail_vl"), "-c", code], capture_output=True, text=True, check=True
    )
    return {"guardrail_vl_adapter": {"hit_us": float(out.stdout)}}


def table(phase, rows, title):
    columns = list(next(iter(rows.values())))
    lines = [f"### {phase}: {title}", "", "| adapter | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, row in rows.items():
        cells = (
            f"{v:.3g}" if isinstance(v, float) and v < 10 else f"{v:.0f}" if isinstance(v, float) else str(v)
            for v in row.values()
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    phases = sys.argv[1:] or PHASES
    make_venvs()
    saved = HERE / "results.json"
    results = json.loads(saved.read_text()) if saved.exists() else {}
    stub = Stub()
    workers = [Worker(name) for name in PEERS]
    try:
        for phase in phases:
            work = globals()[phase]
            rows = work() if phase in ("info", "cache") else work(stub, workers)
            results[phase] = {"load": os.getloadavg(), "when": time.strftime("%F"), "rows": rows}
            print(table(phase, rows, work.__doc__), flush=True)
    finally:
        for worker in workers:
            worker.stop()
        stub.process.kill()  # it may hold requests that hang
        stub.process.wait(10)
    saved.write_text(json.dumps(results, indent=1))
    order = [p for p in PHASES if p in results]
    (HERE / "results.md").write_text("\n".join(table(p, results[p]["rows"], globals()[p].__doc__) for p in order))


if __name__ == "__main__":
    main()
