"""Runs the benchmark of LangChain apps; see README.md. `python run.py [seq] [conc] [stream] [tool] [turns] [--smoke]`"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
BESIDE = HERE.parent / "openai_client"
sys.path.insert(0, str(BESIDE))
import run as base  # noqa: E402 - of ../openai_client

SMOKE, ROOT, VENVS = base.SMOKE, base.ROOT, base.VENVS
LANGCHAIN = ["langchain>=1", "langchain-openai>=1"]
PACKAGES = {
    "langchain": [f"{ROOT}[langchain]", *LANGCHAIN, "uvloop"],
    "langchain_nemo": ["nemoguardrails", *LANGCHAIN],
}
KINDS = {  # name: what it is; `sync` and `async` of each are measured
    "agent": {},
    "agent, GuardMiddleware": {"by": "ours"},
    "agent, OpenAIModerationMiddleware": {"by": "moderation"},
    "agent, NeMo GuardrailsMiddleware": {"by": "nemo"},
    "chat model": {"what": "model"},
    "chat model, guarded": {"what": "model", "by": "ours"},
}
OURS, NEMO = "agent, GuardMiddleware", "agent, NeMo GuardrailsMiddleware"
PHASES = ("seq", "stream", "conc", "tool", "turns")
TURNS = 3 if SMOKE else 10


def python(options):
    venv = "langchain_nemo" if options.get("by") == "nemo" else "langchain"
    return sys.executable if SMOKE else str(VENVS / venv / "bin" / "python")


def make_venvs():
    for venv, packages in PACKAGES.items():
        where = VENVS / venv / "bin" / "python"
        fresh = not where.exists()
        if fresh:
            subprocess.run([sys.executable, "-m", "venv", VENVS / venv], check=True)
        if fresh or venv == "langchain":  # ours is installed anew: it changes
            subprocess.run([where, "-m", "pip", "install", "-q", *packages], check=True)


class Stub(base.Stub):
    def __init__(self):
        command = [python({}), str(HERE / "stub.py")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.base = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"


class Worker(base.Worker):
    """The worker of ../openai_client with adapters of our own."""

    def __init__(self, kind, options, module, stub):
        self.kind, self.options, self.module, self.stub = kind, options, module, stub
        self.sync = module == "lc_sync"
        self.name = f"{kind}, {'sync' if self.sync else 'async'}"
        self.when = "before" if "by" in options else None
        paths = [str(HERE / "adapters"), *([str(ROOT / "src")] if SMOKE else [])]
        self.process = subprocess.Popen(
            [python(options), BESIDE / "worker.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None if SMOKE else subprocess.DEVNULL, text=True,
            env={**base.ENV, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip

    def made(self, models, **more):
        """Set up with further options."""
        plain, self.options = self.options, {**self.options, **more}
        self.setup(*models)
        self.options = plain


def beside(rows, name):
    """The row of the same kind without a guard."""
    kind, _, how = name.rpartition(", ")
    return rows[f"{kind.partition(', ')[0]}, {how}"]


def added(rows, keys):
    return {
        name: {**row, **{f"added_{key}": row[key] - beside(rows, name)[key] for key in keys}}
        for name, row in rows.items()
    }


def seq(stub, started):
    """In series; judge and LLM answer at once. `added`: beside the same without a guard."""
    runs = {w.name: [] for w in started}
    for worker in started:
        worker.setup()
        worker.calls(3 if SMOKE else 30)
        stub.asked()
        worker.calls(2)
        wanted = {"guard": 4 if worker.when else 0, "llm": 2}
        assert (got := stub.asked()) == wanted, f"{worker.name} asks {got} in two calls"
    for worker in base.interleaved(started, 8):
        runs[worker.name].append(worker.calls(3 if SMOKE else 50))
    rows = {}
    for name, got in runs.items():
        ms = [one for run in got for one in run["ms"]]
        cpu = statistics.median(run["cpu_ms"] for run in got)
        rows[name] = {"p10_ms": base.quantile(ms, 0.1), "p50_ms": statistics.median(ms), "cpu_ms": cpu}
    return added(rows, ("p10_ms", "p50_ms", "cpu_ms"))


def stream(stub, started):
    """200 tokens at 100/s, judge 50 ms, LLM 300 ms to its first byte; clean, and with a harmful token in it.

    Agents with `stream_mode="messages"`. `lag`: mean time from a token's arrival to its showing. `checks`: of the reply.
    `leaked`: tokens shown from the harmful one on.
    """
    rows = {}
    for bad in base.BADS[:2]:
        runs = {w.name: [] for w in started}
        for worker in started:
            worker.setup(0, 0, base.COUNT, 0)
            worker.do("stream")  # connections are made, modules loaded
            worker.setup(base.GUARD, base.LLM, base.COUNT, base.RATE, bad)
        for worker in base.interleaved(started, 3):
            runs[worker.name].append(base.measure(worker, bad))
        case = "clean" if bad < 0 else f"harmful at {bad}"
        for name, got in runs.items():
            row = {key: base.middle([one[key] for one in got]) for key in got[0]}
            rows[f"{case} | {name}"] = {**row, "leaked": max(one["leaked"] for one in got)}
    return rows


def conc(stub, started):
    """200 calls at concurrency 50; judge 50 ms, LLM 300 ms."""
    return base.concurrent([one for one in started if not one.sync], base.GUARD, base.LLM, 200)


def variants(started, **more):
    """The agents; ours with the cache of verdicts, which is on unless one says otherwise, and without."""
    for worker in started:
        if worker.options.get("what") == "model":
            continue
        if worker.kind != OURS:
            yield worker.name, worker, more
            continue
        how = worker.name.rpartition(", ")[2]
        yield f"{OURS} with cache, {how}", worker, {**more, "cache": True}
        yield f"{OURS} without cache, {how}", worker, more


def slow_and_quick(stub, started, rounds, calls, **more):
    """Judge calls and time of a call with delays, and time without."""
    rows = {}
    slow, quick = (base.GUARD, base.LLM), (0.0, 0.0)
    for name, worker, options in variants(started, **more):
        worker.made(slow, **options)
        worker.calls(1)
        stub.asked()
        got = [worker.calls(1)["ms"][0] for _ in range(1 if SMOKE else rounds)]
        asked = stub.asked()
        rows[name] = {
            "judge_calls": asked["guard"] / len(got), "llm_calls": asked["llm"] / len(got),
            "total_ms": statistics.median(got),
        }  # fmt: skip
    at_once = {name: [] for name in rows}
    for again in range(1 if SMOKE else 4):
        order = list(variants(started, **more))
        for name, worker, options in order if again % 2 == 0 else reversed(order):
            worker.made(quick, **options)
            worker.calls(2 if SMOKE else 5)
            at_once[name] += worker.calls(2 if SMOKE else calls)["ms"]
    for name, ms in at_once.items():
        rows[name] |= {"no_delay_p10_ms": base.quantile(ms, 0.1), "no_delay_p50_ms": statistics.median(ms)}
    return added(rows, ("total_ms", "no_delay_p10_ms", "no_delay_p50_ms"))


def tool(stub, started):
    """One turn with one tool call: the LLM is asked twice. Judge 50 ms, LLM 300 ms; and both at once."""
    # With NeMo's middleware a question becomes empty when a tool has answered, and so does the answer.
    return slow_and_quick(stub, [one for one in started if one.kind != NEMO], 5, 30, tools=True)


def turns(stub, started):
    """A conversation of 10 turns, which the agent sees whole each time. Judge 50 ms, LLM 300 ms; and both at once."""
    return slow_and_quick(stub, [one for one in started if not one.sync], 2, 4, turns=TURNS)


def main():
    phases = [one for one in sys.argv[1:] if one != "--smoke"] or PHASES
    if not SMOKE:
        make_venvs()
    saved = HERE / "results.json"
    results = json.loads(saved.read_text()) if saved.exists() and not SMOKE else {}
    stub = Stub()
    kinds = {name: of for name, of in KINDS.items() if not SMOKE or name != NEMO}
    started = [Worker(name, of, module, stub) for name, of in kinds.items() for module in ("lc_sync", "lc_async")]
    try:
        for phase in phases:
            work, load = globals()[phase], [base.load_average()]
            rows = work(stub, started)
            results[phase] = {"load": [*load, base.load_average()], "when": time.strftime("%F"), "rows": rows}
            print(base.table(phase, results[phase], work.__doc__), flush=True)
    finally:
        for worker in started:
            worker.stop()
        stub.process.kill()
        stub.process.wait(10)
    if SMOKE:
        return
    saved.write_text(json.dumps(results, indent=1))
    order = [phase for phase in PHASES if phase in results]
    (HERE / "results.md").write_text("\n".join(base.table(p, results[p], globals()[p].__doc__) for p in order))


if __name__ == "__main__":
    main()
