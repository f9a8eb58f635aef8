"""A driver for what has no client like OpenAI's: an object that takes chat messages and gives an answer or a stream.

A subclass says how one is made (`make`), asked (`call`) and streamed (`stream`); what else a probe asks for is
unsupported.
"""

import asyncio
import contextlib
import signal
from importlib.metadata import version

from guardrail_vl.leakcheck import Log, Seen
from guardrail_vl.leakcheck.drivers import both

CALLS = frozenset(("chat.create", "chat.stream", "chat.history", "chat.interleave", "chat.together", "chat.cancel"))

SECONDS = 20
"""For one probe."""


class Chat:
    name = "?"
    packages = ()
    surfaces = CALLS
    fields = frozenset(("model", "messages", "users", "then", "stream_options"))
    """Fields of a request that can be passed on."""
    setups = frozenset(("plain",))
    blocked = frozenset()

    @property
    def version(self):
        return ", ".join(f"{name} {version(name)}" for name in self.packages)

    def lacks(self, probe):
        if probe.surface not in self.surfaces:
            return f"{self.name} has no {probe.surface}"
        if probe.setup not in self.setups:
            return f"no {probe.setup} here"
        if extra := set(probe.request) - self.fields:
            return f"{', '.join(sorted(extra))} can't be passed on"
        return ""

    def run(self, probe, base_url):
        if why := self.lacks(probe):
            return Seen("passed", unsupported=why)

        def late(number, frame):
            raise TimeoutError(f"no answer in {SECONDS} s")

        # An alarm, not a timeout of the event loop: a client that turns in a circle never comes back to the loop.
        signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        try:
            return asyncio.run(self._run(probe, base_url))
        except TimeoutError as error:
            return Seen("error", error_type=type(error).__name__)
        finally:
            signal.alarm(0)

    async def _run(self, probe, base_url):
        with Log() as log:
            if probe.surface in ("chat.interleave", "chat.together"):
                return await self._users(probe, base_url)
            try:
                await self._one(probe, base_url, log)
            except Exception as error:
                self.failed(log, error)
        return log.seen()

    def failed(self, log, error):
        log.failed(error, blocked=not self.blocked.isdisjoint(kind.__name__ for kind in type(error).__mro__))

    async def _one(self, probe, base_url, log):
        app = await self.make(probe, base_url)
        messages = list(probe.request["messages"])
        if probe.surface == "chat.create":
            await self.call(app, messages, log)
        elif probe.surface == "chat.stream":
            await self.stream(app, messages, log)
        elif probe.surface == "chat.history":
            await self.history(app, messages, probe.request["then"], log)
        else:
            task = asyncio.ensure_future(self.stream(app, messages, log))
            await asyncio.sleep(0.5)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def history(self, app, messages, then, log):
        first = Log()
        try:
            await self.call(app, messages, first)
        except Exception as error:
            self.failed(first, error)
        seen = first.seen()
        log.aside(seen.delivered)
        if seen.outcome in ("passed", "refused") and seen.text:
            messages.append({"role": "assistant", "content": seen.text})
        await self.call(app, [*messages, {"role": "user", "content": then}], log)

    async def _users(self, probe, base_url):
        app = await self.make(probe, base_url)
        with Log() as first, Log() as second:
            logs = (first, second)

            async def one(log, said):
                try:
                    await self.stream(app, [{"role": "user", "content": said}], log)
                except Exception as error:
                    self.failed(log, error)

            # Read at once, one app for both: what is shared between streams is shared here.
            await asyncio.gather(
                *(one(log, said) for log, said in zip(logs, probe.request["users"].values(), strict=True))
            )
        return both(first.seen(), second.seen())
