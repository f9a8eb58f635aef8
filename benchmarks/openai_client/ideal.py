"""The schedule that a guarded stream would have if nothing but the guard and the LLM took time.

`window` and `full` run the package's own rules (`HoldBack`) on a clock that only the stub's delays move. `best` shows
every token when a check that began at its arrival has ended: without knowing the future, nothing can be faster.
"""

import heapq
import json
import sys

from stub import MARK, token

from guardrail_vl import Guard
from guardrail_vl.streaming import HoldBack, Piece, Streaming
from guardrail_vl.testing import ScriptedEngine, by_keyword


def arrivals(setting, when, bad):
    """When each token comes, in seconds; and its text."""
    first = setting["llm"] + (setting["guard"] if when == "before" else 0)
    return [(first + (i + 1) / setting["rate"], token(i, bad)) for i in range(setting["count"])]


def best(setting, when, bad):
    came = [at for at, _ in arrivals(setting, when, bad)]
    shown = came[:bad] if bad >= 0 else came
    judged = came[: len(shown) + (bad >= 0)]
    return row([at + setting["guard"] for at in shown], came, judged[-1] + setting["guard"], len(judged))


def simulated(mode, setting, when, bad):
    guard = Guard(engine=ScriptedEngine(by_keyword(MARK)), cache=False)
    hold = HoldBack((), Streaming.of(mode))
    coming = arrivals(setting, when, bad)[::-1]
    came = [at for at, _ in reversed(coming)]
    verdicts, shown, checks = [], [], 0
    now = setting["guard"]  # nothing is read before the prompt's verdict
    while not hold.done:
        if hold.hungry and coming and coming[-1][0] <= now:
            text = coming.pop()[1]
            hold.feed(text, [Piece("text", text)], now)
            if not coming:  # the end comes with the last token
                hold.end()
        elif verdicts and verdicts[0][0] <= now:
            _, ticket, decision = heapq.heappop(verdicts)
            hold.settle(ticket, decision)
        else:
            times = [at for at, *_ in verdicts[:1]]
            times += [coming[-1][0]] if hold.hungry and coming else []
            due = hold.due(now)
            now = min(times if due is None else [*times, now + due])
        for check in hold.checks(now):
            checks += 1
            decision = guard.check(check.turn, stage="response")
            heapq.heappush(verdicts, (now + setting["guard"], check.ticket, decision))
        shown += [now for _ in hold.release()]
    return row(shown, came, now, checks)


def row(shown, came, total, checks):
    lags = [at - before for at, before in zip(shown, came, strict=False)]
    return {
        "first_s": shown[0] if shown else None,
        "total_s": total,
        "lag_s": sum(lags) / len(lags) if lags else None,
        "checks": checks,
        "shown": len(shown),
    }


def main():
    setting = json.loads(sys.argv[1])
    rows = {}
    for when in ("before", "beside"):
        for bad in setting["bads"]:
            rows[f"best {when} {bad}"] = best(setting, when, bad)
            for mode in ("window", "full"):
                rows[f"{mode} {when} {bad}"] = simulated(mode, setting, when, bad)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
