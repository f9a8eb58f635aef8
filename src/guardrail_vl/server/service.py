"""What all endpoints share: the guards, whether they can be trusted, and how the server comes up. Knows no endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guardrail_vl.errors import ConfigurationError, GuardrailError
from guardrail_vl.guard import Guard
from guardrail_vl.policy import Policy
from guardrail_vl.server.answers import Refused
from guardrail_vl.server.canaries import failed
from guardrail_vl.server.metrics import Metrics
from guardrail_vl.server.settings import DEFAULT_POLICY, ApiKey, Settings

if TYPE_CHECKING:
    from guardrail_vl.audit import AuditLog

LOG = logging.getLogger("guardrail_vl.server")


class Service:
    """The guards behind one app.

    Args:
        guard: The guard, or what makes it: then the server answers 503 until it is made.
        settings: The server's.
        audit: Where every decision is recorded. None: nowhere.
    """

    def __init__(self, guard: Guard | Callable[[], Guard], settings: Settings, audit: AuditLog | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.keys = {key.sha256: key for key in settings.keys}
        self.draining = False
        self.failure: BaseException | None = None
        """Why there will never be a guard."""
        self._make = guard
        self._audit = audit
        # Last: they see what every other hook left of a decision.
        self._hooks: tuple[Any, ...] = (self.metrics.count, *(() if audit is None else (audit,)))
        self._guards: dict[tuple[str, str | None], Guard] = {}
        self._wrong: tuple[str, ...] = ("the guard is being loaded",)
        self._untrusted = True
        self._task: asyncio.Task[None] | None = None
        if isinstance(guard, Guard):
            self._set_up(guard)

    # ---- coming up --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to load the guard, and to look after it."""
        self._task = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """End it, and free what the engines hold."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for guard in {id(guard.engine): guard for guard in self._guards.values()}.values():
            await guard.aclose()
        if self._audit is not None:
            await asyncio.to_thread(self._audit.close)

    async def _live(self) -> None:
        if not self._guards:
            assert not isinstance(self._make, Guard)
            try:
                self._set_up(await asyncio.to_thread(self._make))
            except Exception as error:
                self.failure = error
                # Of a foreign error only the type: its message may hold anything.
                said = str(error) if isinstance(error, GuardrailError) else type(error).__name__
                self._wrong = ("the guard could not be made",)
                LOG.error("The guard could not be made: %s", said)
                return
        while True:
            await self.look()
            await asyncio.sleep(
                self.settings.canary_interval if not self._wrong else min(self.settings.canary_interval, 1)
            )

    async def look(self) -> None:
        """Ask the guard what everybody knows, and trust it or not."""
        wrong: tuple[str, ...] = ()
        if self.settings.canaries:
            # Policies with an adapter are judged by other weights.
            asked = {id(guard.engine): guard for (_, speed), guard in self._guards.items() if speed is None}
            wrong = tuple([one for guard in asked.values() for one in await failed(guard)])
        if wrong != self._wrong:
            LOG.log(
                logging.WARNING if wrong else logging.INFO, "Ready." if not wrong else f"Not ready: {'; '.join(wrong)}."
            )
        self._wrong = wrong
        # An engine that is down says so to every caller itself; one that answers wrongly must not be heard.
        self._untrusted = any("was judged" in one for one in wrong)
        self.metrics.ready.set(not wrong)

    def _set_up(self, guard: Guard) -> None:
        hooked = guard.replace(
            pre_prompt=(*guard._rules.pre_prompt, *self._hooks),
            post_response=(*guard._rules.post_response, *self._hooks),
        )
        policies: dict[str, Policy] = {DEFAULT_POLICY: guard.policy, **self.settings.policies}
        made: dict[tuple[str, str | None], Guard] = {}
        for name, policy in policies.items():
            made[name, None] = of_policy = hooked if name == DEFAULT_POLICY else hooked.replace(policy=policy)
            for speed in speeds(guard):
                made[name, speed] = of_policy if speed == guard.speed else of_policy.replace(speed=speed)
        self._guards = made
        # Nobody has asked the canaries yet.
        self._wrong = ("the guard has not been tried yet",) if self.settings.canaries else ()
        self._untrusted = self.settings.canaries

    # ---- for the endpoints ------------------------------------------------------------------------------------------

    def naming(self, key: ApiKey | None) -> contextlib.AbstractContextManager[None]:
        """While it lasts, decisions are recorded under this key's name."""
        if self._audit is None:
            return contextlib.nullcontext()
        from guardrail_vl.audit import app_name

        return app_name("" if key is None else key.name)

    @property
    def wrong(self) -> tuple[str, ...]:
        """Why the server is not ready; empty when it is."""
        return ("the server is shutting down",) if self.draining else self._wrong

    @property
    def guard(self) -> Guard:
        """The guard of the default policy.

        Raises:
            Refused: It is not there yet, or can't be trusted.
        """
        return self.pick(None, None, None)

    @property
    def speeds(self) -> tuple[str, ...]:
        """Speeds that a request may name; empty until the guard is there."""
        return tuple(speed for policy, speed in self._guards if policy == DEFAULT_POLICY and speed is not None)

    @property
    def policies(self) -> dict[str, Policy]:
        """Policies that a request may name; empty until the guard is there."""
        return {name: guard.policy for (name, speed), guard in self._guards.items() if speed is None}

    def pick(self, key: ApiKey | None, policy: str | None, speed: str | None) -> Guard:
        """The guard for a request.

        Args:
            key: Who asks; None where there are no keys.
            policy: The policy's name; None: the key's, else the default.
            speed: As for `Guard`; None: the guard's own.

        Raises:
            Refused: There is no such policy or speed, or this key may not use it; or the guard is not there.
        """
        if self._untrusted or not self._guards:
            raise Refused(
                503,
                f"The guard is not ready: {'; '.join(self.wrong)}.",
                "not_ready",
                retry_after=self.settings.retry_after,
            )
        own = None if key is None else key.policy
        if policy is not None and own is not None and policy != own:
            raise Refused(403, "This key is bound to another policy.", "policy_not_allowed")
        name = policy or own or DEFAULT_POLICY
        found = self._guards.get((name, speed))
        if found is None:
            known = self.policies if (name, None) not in self._guards else self.speeds
            what = "policy" if (name, None) not in self._guards else "speed"
            raise Refused(400, f"There is no such {what}; known: {', '.join(known)}.", f"unknown_{what}")
        return found


def speeds(guard: Guard) -> tuple[str, ...]:
    """Speeds that this guard can be asked in; a cascade has only its own."""
    if guard.first is not None:
        return (guard.speed,)
    usable: list[str] = []
    for speed in ("fast", "reason", "auto"):
        with contextlib.suppress(ConfigurationError):
            guard.replace(speed=speed)
            usable.append(speed)
    return tuple(usable)
