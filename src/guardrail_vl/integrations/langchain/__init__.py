"""LangChain: guarded chat models, runnables and agents.

`guarded` makes a chat model of the same class, or a runnable, that judges what goes in and what comes out; `guard_step`
is a visible step of a chain; `GuardMiddleware` guards an agent. Works with langchain-core 1 and langchain 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail_vl.errors import MissingDependencyError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "langchain-core", extra="langchain", needed_for="guardrail_vl.integrations.langchain"
    ) from error

from guardrail_vl.integrations.langchain._guarded import decisions, guarded
from guardrail_vl.integrations.langchain._steps import guard_step

if TYPE_CHECKING:
    from guardrail_vl.integrations.langchain._agents import GuardMiddleware

__all__ = ["GuardMiddleware", "decisions", "guard_step", "guarded"]


def __getattr__(name: str) -> Any:
    # It needs langchain, which chains don't; and langchain takes long to import.
    if name == "GuardMiddleware":
        try:
            from guardrail_vl.integrations.langchain._agents import GuardMiddleware
        except ImportError as error:
            raise MissingDependencyError("langchain", extra="langchain", needed_for="GuardMiddleware") from error
        return GuardMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
