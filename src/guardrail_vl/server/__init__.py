"""One guard for many apps, over HTTP: its own API, OpenAI's moderations, a guarding proxy, LiteLLM's guardrail API.

    app = create_app(Guard(), Settings(upstream="https://api.openai.com/v1"))

`guardrail-vl serve` runs it. Needs the extra `server`.
"""

from __future__ import annotations

from guardrail_vl.server.app import create_app as create_app
from guardrail_vl.server.canaries import CANARIES as CANARIES
from guardrail_vl.server.canaries import Canary as Canary
from guardrail_vl.server.running import run as run
from guardrail_vl.server.settings import ApiKey as ApiKey
from guardrail_vl.server.settings import Settings as Settings
from guardrail_vl.server.settings import read_keys as read_keys
