"""A conformance suite against leaks: a scripted upstream, probes, and a driver for each client under test.

    report = leakcheck.run(leakcheck.load("openai"))
    assert report.green, report.table()

It asks of a guarded client what an app would ask, on every surface, and looks at what reached the caller, the tools,
the log and the upstream. It knows no client; drivers do. It makes no request to anything but its own upstream.
"""

from __future__ import annotations

from guardrail_vl.leakcheck.content import BREAK as BREAK
from guardrail_vl.leakcheck.content import LEAKS as LEAKS
from guardrail_vl.leakcheck.drivers import DRIVERS as DRIVERS
from guardrail_vl.leakcheck.drivers import UNGUARDED as UNGUARDED
from guardrail_vl.leakcheck.drivers import Driver as Driver
from guardrail_vl.leakcheck.drivers import OpenAIDriver as OpenAIDriver
from guardrail_vl.leakcheck.drivers import load as load
from guardrail_vl.leakcheck.drivers import probes_of as probes_of
from guardrail_vl.leakcheck.langchain import LangChainDriver as LangChainDriver
from guardrail_vl.leakcheck.log import Log as Log
from guardrail_vl.leakcheck.probe import Probe as Probe
from guardrail_vl.leakcheck.probe import Setup as Setup
from guardrail_vl.leakcheck.probe import Surface as Surface
from guardrail_vl.leakcheck.probes import PROBES as PROBES
from guardrail_vl.leakcheck.probes import ROWS as ROWS
from guardrail_vl.leakcheck.probes import by_row as by_row
from guardrail_vl.leakcheck.probes import pick as pick
from guardrail_vl.leakcheck.process import Record as Record
from guardrail_vl.leakcheck.process import Upstream as Upstream
from guardrail_vl.leakcheck.report import Report as Report
from guardrail_vl.leakcheck.report import Row as Row
from guardrail_vl.leakcheck.report import run as run
from guardrail_vl.leakcheck.seen import Expect as Expect
from guardrail_vl.leakcheck.seen import Finding as Finding
from guardrail_vl.leakcheck.seen import Seen as Seen
