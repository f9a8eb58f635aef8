"""Runs the leak suite on guarded clients, each in a virtual environment of its own; see README.md.

`python run.py [client ...]`: makes what is missing, runs, and writes results.json and results.md. Clients that are not
named keep their former results.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VENVS = Path(os.environ.get("LEAKCHECK_VENVS", Path.home() / ".cache" / "guardrail-vl-leakcheck"))
SECONDS = 1200
CLIENTS = {  # name: (virtual environment and its requirements, driver)
    "guardrail-vl": ("openai", "openai"),
    "guardrail-vl async": ("openai", "openai-async"),
    "unguarded": ("openai", "guardrail_vl.leakcheck:UNGUARDED"),
    "openai-guardrails": ("openai_guardrails", "peers.openai_guardrails:sync"),
    "openai-guardrails async": ("openai_guardrails", "peers.openai_guardrails:asynchronous"),
    "NeMo Guardrails": ("nemo", "peers.nemo:driver"),
    "NeMo in LangChain": ("nemo", "peers.langchain:nemo"),
    "guardrails-ai": ("guardrails_ai", "peers.guardrails_ai:driver"),
    "LangChain moderation": ("langchain", "peers.langchain:default"),
    "LangChain moderation, error": ("langchain", "peers.langchain:error"),
}
QUIET = {
    "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "NEMO_GUARDRAILS_NO_USAGE_STATS": "1", "OTEL_SDK_DISABLED": "true",
    "LANGSMITH_TRACING": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_KEY": "sk-leakcheck",
    "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{HERE}",
}  # fmt: skip
KEPT = ("id", "title", "status", "why", "outcome", "error", "upstream_calls")
SHOWN = {"sealed": "sealed", "leaks": "**LEAKS**", "wrong": "wrong", "unsupported": "–"}


def python(venv):
    return str(VENVS / venv / "bin" / "python")


def install(venv):
    """Why the environment can't be made; empty when it is there."""
    done = VENVS / venv / "installed.txt"
    wanted = (HERE / "requirements" / f"{venv}.txt").read_text()
    if done.exists() and done.read_text() == wanted:
        return ""
    print(f"installing {venv} …", flush=True)
    if not Path(python(venv)).exists():
        subprocess.run([sys.executable, "-m", "venv", VENVS / venv], check=True)
    requirements = HERE / "requirements" / f"{venv}.txt"
    command = [python(venv), "-m", "pip", "install", "-q", "-r", str(requirements), str(ROOT)]
    got = subprocess.run(command, capture_output=True, text=True, check=False)
    if got.returncode:
        return f"pip: {got.stderr.strip().splitlines()[-1][:200]}"
    done.write_text(wanted)
    return ""


def test(name):
    venv, driver = CLIENTS[name]
    if why := install(venv):
        return {"client": name, "skipped": why}
    start = time.monotonic()
    command = [python(venv), "-m", "guardrail_vl", "leakcheck", "--client", driver, "--json"]
    try:
        got = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **QUIET}, cwd=HERE, check=False
        )
    except subprocess.TimeoutExpired:
        return {"client": name, "skipped": f"not done in {SECONDS} s"}
    lines = [line for line in got.stdout.splitlines() if line.startswith('{"client"')]
    if not lines:
        tail = got.stderr.strip().splitlines()[-2:]
        return {"client": name, "skipped": f"status {got.returncode}: {' '.join(tail)[:300]}"}
    report = json.loads(lines[-1])
    report["probes"] = [{key: probe[key] for key in KEPT} for probe in report["probes"]]
    print(f"{name}: {report['summary']} ({time.monotonic() - start:.0f} s)", flush=True)
    return {**report, "client": name}


def table(results):
    tested = [r for r in results if "probes" in r]
    lines = [
        "# Leakcheck: what got out",
        "",
        "Written by `python benchmarks/leakcheck/run.py`; how each client was set up is in the README beside it.",
        "*sealed*: as it should be. **LEAKS**: something harmful got out, or a tool ran. *wrong*: nothing got out, but "
        "the caller saw the wrong thing (an error where a block is due, a harmless reply lost). –: the client has no such "
        "surface, or it can't be asked for there.",
        "",
        "| client | version | sealed | leaks | wrong | unsupported |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        if r not in tested:
            lines.append(f"| {r['client']} | skipped: {r['skipped']} | | | | |")
            continue
        counts = [sum(p["status"] == s for p in r["probes"]) for s in SHOWN]
        lines.append(f"| {r['client']} | {r['version']} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", "| probe | " + " | ".join(r["client"] for r in tested) + " |", "|---" * (len(tested) + 1) + "|"]
    by_id = {r["client"]: {p["id"]: p["status"] for p in r["probes"]} for r in tested}
    for probe in tested[0]["probes"] if tested else ():
        cells = [SHOWN.get(by_id[r["client"]].get(probe["id"]), "") for r in tested]
        lines.append(f"| {probe['title']} (`{probe['id']}`) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    names = sys.argv[1:] or list(CLIENTS)
    if unknown := set(names) - set(CLIENTS):
        raise SystemExit(f"no client is called {', '.join(sorted(unknown))}; there are: {', '.join(CLIENTS)}")
    file = HERE / "results.json"
    former = {r["client"]: r for r in json.loads(file.read_text())["results"]} if file.exists() else {}
    for name in names:
        former[name] = test(name)
        results = [former[n] for n in CLIENTS if n in former]
        machine = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
        text = json.dumps({"machine": machine, "results": results}, ensure_ascii=False)
        file.write_text(text.replace('{"id":', '\n{"id":') + "\n")  # a line for each probe
        (HERE / "results.md").write_text(table(results))


if __name__ == "__main__":
    main()
