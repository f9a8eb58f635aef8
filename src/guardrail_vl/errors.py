"""The error tree. Every error this package raises on purpose is here, and knows nothing of the rest.

GuardrailError
├── ConfigurationError          wrong argument, unknown policy key, nothing would be checked
│   ├── MissingDependencyError  also an ImportError; says which extra to install
│   └── FormatMismatchError     these weights were trained with another prompt format
├── ContentError                this turn can't be judged: unreadable image, unsupported part, too large
├── EngineError                 the engine failed
│   ├── EngineUnavailableError  can't connect, too slow, 5xx, out of memory; retryable
│   └── EngineResponseError     4xx or a malformed reply; carries the request id
├── ParseError                  the completion does not follow the format
├── AuditError                  the audit log can't be written or read
└── BlockedError                not a failure: the policy said block; carries the decision

Content, engine and parse errors become decisions through the policy's fail mode. Configuration errors always raise.
No message holds a user's text or image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail_vl.verdict import Decision


class GuardrailError(Exception):
    """The root of the tree.

    Args:
        message: What happened, in one sentence.
        hint: What to do next, in one sentence; empty when there is nothing useful to say.
    """

    retryable = False
    """Whether the same call may succeed later, unchanged."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[GuardrailError], state: dict[str, object]) -> GuardrailError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class ConfigurationError(GuardrailError):
    """A wrong argument or setting. Always raised, never turned into a decision."""


class MissingDependencyError(ConfigurationError, ImportError):
    """An optional package is missing.

    Args:
        package: The package that could not be imported.
        extra: The extra of guardrail-vl that brings it.
        needed_for: What needs it, for the message.
    """

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed.",
            hint=f"Run: pip install 'guardrail-vl[{extra}]'",
        )
        self.package = package
        self.extra = extra


class FormatMismatchError(ConfigurationError):
    """These weights were trained with another prompt format than the one they would be served with."""


class ContentError(GuardrailError):
    """This turn can't be judged: an unreadable image, an unsupported part, or too much of something."""


class EngineError(GuardrailError):
    """The engine failed to complete a prompt."""


class EngineUnavailableError(EngineError):
    """The engine can't be reached, is too slow, answered 5xx or 429, or is out of memory."""

    retryable = True

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after
        """Seconds that the engine asked us to wait; None when it did not say."""


class EngineResponseError(EngineError):
    """The engine answered, but not with a completion: 4xx, no JSON, missing fields."""

    def __init__(
        self, message: str, *, hint: str = "", status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        """HTTP status; None when the engine is not a server."""
        self.request_id = request_id
        """The server's id for the request; None when it gave none."""


class ParseError(GuardrailError):
    """The completion does not follow the prompt format. The text is an attribute, never in the message."""

    def __init__(self, message: str, *, text: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.text = text
        """The completion as the model wrote it. May echo user content: don't log it."""


class AuditError(GuardrailError):
    """The audit log can't be written or read. A check raises it only with `AuditLog(strict=True)`."""

    def __init__(self, message: str, *, hint: str = "", retryable: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        """False: the store is there, and refuses this record."""


class BlockedError(GuardrailError):
    """The policy said block. Raised by `Decision.raise_if_blocked`."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"Blocked: {decision.reason}")
        self.decision = decision
