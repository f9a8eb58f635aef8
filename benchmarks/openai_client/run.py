"""Runs the benchmark of the guarded OpenAI client; see README.md. `python run.py [seq] [conc] [sat] [stream] [--smoke]`"""

import inspect
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from stub import token

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENVS = Path(os.environ.get("BENCH_VENVS", Path.home() / ".cache" / "guardrail-vl-bench"))
PACKAGES = {"openai_client": [f"{ROOT}[openai]", "uvloop"], "nemo": ["nemoguardrails"]}
SMOKE = "--smoke" in sys.argv
QUIET = {
    "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "NEMO_GUARDRAILS_NO_USAGE_STATS": "1", "OTEL_SDK_DISABLED": "true",
    "LANGSMITH_TRACING": "false", "OPENAI_API_KEY": "sk-stub", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
ENV = {**os.environ, **QUIET, **({"PYTHONPATH": str(ROOT / "src")} if SMOKE else {})}

BEFORE, BESIDE = {"when": "before"}, {"when": "beside"}
CALLS = {  # adapter: (its module, its options, when it judges the prompt)
    "plain": ("openai_async", {}, None),
    "plain sync": ("openai_sync", {}, None),
    "floor_openai": ("floor", {}, "before"),
    "floor_pipelined": ("floor_pipelined", {}, "beside"),
    "nemo_iorails": ("nemo_iorails", {}, "beside"),
    "guarded before": ("openai_async", BEFORE, "before"),
    "guarded beside": ("openai_async", BESIDE, "beside"),
    "guarded before sync": ("openai_sync", BEFORE, "before"),
    "guarded beside sync": ("openai_sync", BESIDE, "beside"),
}
STREAMS = {
    "plain": ("openai_async", {}, None),
    "floor: buffer all": ("floor", {}, "before"),
    "floor: pipelined": ("floor_pipelined", {}, "beside"),
    "nemo_iorails chunk 10": ("nemo_iorails", {"chunk": 10}, "before"),
    **{
        f"{mode} {when['when']}{sync}": (f"openai_{sync.strip() or 'async'}", {**when, "stream": mode}, when["when"])
        for mode in ("window", "full") for when in (BEFORE, BESIDE) for sync in ("", " sync")
    },
}  # fmt: skip
GUARD, LLM, COUNT, RATE = (0.01, 0.03, 30, 300) if SMOKE else (0.05, 0.3, 200, 100)
BADS = (-1, COUNT // 2, COUNT // 4)
IN_SMOKE = (
    "plain",
    "plain sync",
    "floor_openai",
    "guarded beside",
    "window before",
    "window beside sync",
    "full beside",
)
PHASES = ("seq", "conc", "sat", "stream")


def python(module):
    venv = "nemo" if module.startswith("nemo") else "openai_client"
    return sys.executable if SMOKE else str(VENVS / venv / "bin" / "python")


def make_venvs():
    for venv, packages in PACKAGES.items():
        fresh = not (VENVS / venv / "bin" / "python").exists()
        if fresh:
            subprocess.run([sys.executable, "-m", "venv", VENVS / venv], check=True)
        if fresh or venv == "openai_client":  # ours is installed anew: it changes
            subprocess.run([VENVS / venv / "bin" / "python", "-m", "pip", "install", "-q", *packages], check=True)


class Stub:
    def __init__(self):
        command = [python("stub"), str(HERE / "stub.py")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.base = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def asked(self):
        """Requests since this was last asked."""
        with urllib.request.urlopen(self.base.removesuffix("/v1") + "/asked", timeout=5) as reply:
            return json.load(reply)


class Worker:
    def __init__(self, name, adapter, stub):
        self.name, self.stub = name, stub
        self.module, self.options, self.when = adapter
        self.process = subprocess.Popen(
            [python(self.module), HERE / "worker.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if SMOKE else subprocess.DEVNULL, text=True,
            env=ENV,
        )  # fmt: skip

    def do(self, run, **arguments):
        self.process.stdin.write(json.dumps({"run": run, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} died")
        return json.loads(line)

    def setup(self, guard=0.0, llm=0.0, count=20, rate=0, bad=-1):
        models = {"guard": f"guard_{guard * 1000:.0f}", "llm": f"llm_{llm * 1000:.0f}_{count}_{rate}_{bad}"}
        self.do("setup", module=self.module, options=self.options, base=self.stub.base, **models)

    def calls(self, count, concurrency=1):
        return self.do("calls", count=count, concurrency=concurrency)

    def stop(self):
        self.process.stdin.close()
        self.process.wait(20)


def load_average():
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def workers(adapters, stub):
    return [Worker(name, of, stub) for name, of in adapters.items() if not SMOKE or name in IN_SMOKE]


def interleaved(started, rounds):
    for k in range(1 if SMOKE else rounds):
        yield from started if k % 2 == 0 else reversed(started)


def seq(stub, started):
    """In series, no delays. `added` is beside the plain call of the same kind."""
    runs = {w.name: [] for w in started}
    for worker in started:
        worker.setup()
        worker.calls(3 if SMOKE else 30)
        stub.asked()
        worker.calls(2)
        wanted = {"guard": 4 if worker.when else 0, "llm": 2}
        assert stub.asked() == wanted, f"{worker.name} does not ask the guard twice and the LLM once a call"
    for worker in interleaved(started, 8):
        runs[worker.name].append(worker.calls(3 if SMOKE else 50))
    rows = {}
    for name, got in runs.items():
        ms = [one for run in got for one in run["ms"]]
        rows[name] = {
            "p10_ms": quantile(ms, 0.1), "p50_ms": statistics.median(ms), "p99_ms": quantile(ms, 0.99),
            "cpu_ms": statistics.median(run["cpu_ms"] for run in got),
        }  # fmt: skip
    for name, row in rows.items():
        plain = rows["plain sync" if name.endswith("sync") else "plain"]
        row["added_p10_ms"] = row["p10_ms"] - plain["p10_ms"]
        row["added_p50_ms"] = row["p50_ms"] - plain["p50_ms"]
        row["added_cpu_ms"] = row["cpu_ms"] - plain["cpu_ms"]
        row["cpu_vs_floor_openai"] = row["cpu_ms"] / rows["floor_openai"]["cpu_ms"]
    return rows


def concurrent(started, guard, llm, count):
    runs = {w.name: [] for w in started}
    for worker in started:
        worker.setup(guard, llm)
        worker.calls(50, 50)  # connections and threads are there
    for worker in interleaved(started, 4):
        got = worker.calls(count, 50)
        runs[worker.name].append({**got, "per_s": count / got["wall_s"]})
    rows = {}
    for worker in started:
        got = runs[worker.name]
        middle = sorted(got, key=lambda g: g["per_s"])[len(got) // 2]
        ideal = llm + {None: 0, "before": 2 * guard, "beside": max(guard - llm, 0) + guard}[worker.when]
        rows[worker.name] = {
            "calls_per_s": statistics.median(g["per_s"] for g in got), "best_calls_per_s": max(g["per_s"] for g in got),
            "ideal_calls_per_s": 50 / ideal if ideal else None,
            "p50_ms": statistics.median(middle["ms"]), "p99_ms": quantile(middle["ms"], 0.99), "ideal_ms": ideal * 1e3,
            "cpu_ms": statistics.median(g["cpu_ms"] for g in got),
        }  # fmt: skip
    return rows


def conc(stub, started):
    """200 calls at concurrency 50; guard 50 ms, LLM 300 ms."""
    return concurrent(started, GUARD, LLM, 200)


def sat(stub, started):
    """400 calls at concurrency 50, no delays: calls a second on one core."""
    return concurrent(started, 0, 0, 100 if SMOKE else 400)


def measure(worker, bad):
    """One stream: when it was shown, and what of it should not have been."""
    worker.stub.asked()
    got = worker.do("stream")
    asked = worker.stub.asked()
    came = LLM + (GUARD if worker.when == "before" else 0)
    times = [at for at, text in got["shown"] for _ in text.split()]
    shown = "".join(text for _, text in got["shown"])
    wanted = [token(i, bad).strip() for i in range(COUNT)]
    assert shown.split() == wanted[: len(times)], f"{worker.name} changed what it shows"
    assert bad >= 0 or len(times) == COUNT, f"{worker.name} lost what it should show"
    blocked = "Blocked" in got["outcome"]
    assert blocked == (bad >= 0 and worker.when is not None), f"{worker.name}: {got['outcome']}"
    lags = [at - came - (i + 1) / RATE for i, at in enumerate(times)]
    return {
        "first_s": times[0] if times else None, "total_s": got["total_s"],
        "lag_s": statistics.fmean(lags) if lags else None, "checks": asked["guard"] - (worker.when is not None),
        "shown": len(times), "leaked": max(0, len(times) - bad) if bad >= 0 else 0, "cpu_ms": got["cpu_ms"],
    }  # fmt: skip


def stream(stub, started):
    """200 tokens at 100/s, guard 50 ms, LLM 300 ms to its first byte; clean, and with a violation in it.

    `lag`: mean time from a token's arrival to its showing. `checks`: of the reply. `leaked`: tokens shown from the
    violation on. `best` and `ideal` rows: computed, see ideal.py; `vs_ideal`: the larger of first and total against it.
    """
    setting = {"guard": GUARD, "llm": LLM, "rate": RATE, "count": COUNT, "bads": BADS}
    command = [python("ideal"), HERE / "ideal.py", json.dumps(setting)]
    computed = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ENV).stdout)
    rows = {}
    for bad in BADS:
        runs = {w.name: [] for w in started}
        for worker in started:
            worker.setup(GUARD, LLM, COUNT, RATE, bad)
            if bad < 0:
                worker.setup(0, 0, COUNT, 0)
                worker.do("stream")  # connections are made, modules loaded
                worker.setup(GUARD, LLM, COUNT, RATE, bad)
        for worker in interleaved(started, 3):
            runs[worker.name].append(measure(worker, bad))
        case = "clean" if bad < 0 else f"violation at {bad}"
        rows |= {
            f"{case} | {name.removesuffix(f' {bad}')} ({'best possible' if name.startswith('best') else 'ideal'})": {
                **row, "leaked": 0, "cpu_ms": None, "vs_ideal": None,
            }
            for name, row in computed.items() if name.endswith(f" {bad}")
        }  # fmt: skip
        for name, got in runs.items():
            row = {key: middle([one[key] for one in got]) for key in got[0]}
            row["leaked"] = max(one["leaked"] for one in got)
            ideal = computed.get(f"{name.removesuffix(' sync')} {bad}")
            ratios = [row[k] / ideal[k] for k in ("first_s", "total_s") if row[k] and ideal[k]] if ideal else []
            rows[f"{case} | {name}"] = {**row, "vs_ideal": max(ratios) if ratios else None}
    return rows


def middle(values):
    return None if None in values else statistics.median(values)


def cell(value):
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 10 else f"{value:.0f}"


def table(phase, result, title):
    rows = result["rows"]
    columns = list(next(iter(rows.values())))
    load = " ".join(f"{one:.1f}" for one in result["load"])
    lines = [f"### {phase}: {inspect.cleandoc(title)}", "", f"Load average before and after: {load}.", ""]
    lines += ["| adapter | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name, row in rows.items():
        lines.append(f"| {name.replace(' | ', ': ')} | " + " | ".join(cell(row[c]) for c in columns) + " |")
    return "\n".join(lines) + "\n"


def main():
    phases = [one for one in sys.argv[1:] if one != "--smoke"] or PHASES
    if not SMOKE:
        make_venvs()
    saved = HERE / "results.json"
    results = json.loads(saved.read_text()) if saved.exists() and not SMOKE else {}
    stub = Stub()
    kinds = {False: CALLS, True: STREAMS}
    started = {kind: workers(kinds[kind], stub) for kind in {phase == "stream" for phase in phases}}
    try:
        for phase in phases:
            work, load = globals()[phase], [load_average()]
            rows = work(stub, started[phase == "stream"])
            results[phase] = {"load": [*load, load_average()], "when": time.strftime("%F"), "rows": rows}
            print(table(phase, results[phase], work.__doc__), flush=True)
    finally:
        for worker in [one for some in started.values() for one in some]:
            worker.stop()
        stub.process.kill()
        stub.process.wait(10)
    if SMOKE:
        return
    saved.write_text(json.dumps(results, indent=1))
    order = [phase for phase in PHASES if phase in results]
    (HERE / "results.md").write_text("\n".join(table(p, results[p], globals()[p].__doc__) for p in order))


if __name__ == "__main__":
    main()
