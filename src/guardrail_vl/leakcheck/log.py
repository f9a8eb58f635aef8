"""What one caller gets, written down while it happens: replies, events, raw bytes, exceptions, log lines.

Reads the shapes of OpenAI's JSON; knows no client and no guard.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from guardrail_vl.leakcheck.seen import Outcome, Seen

_FINISHED: Final = ("content_filter",)


class Log(logging.Handler):
    """A caller's notes. As a context manager it also listens to the log, at whatever level the log is set to."""

    def __init__(self, refusal: str = "") -> None:
        super().__init__()
        self._refusal = refusal
        self._texts: list[str] = []
        self._joined: dict[str, list[str]] = {}
        self._logged: list[str] = []
        self._choices: dict[int, list[str]] = {}
        self._calls: dict[tuple[int, int], list[str]] = {}
        self._refused = False
        self._outcome: Outcome = "passed"
        self._error = ""
        self.unsupported = ""
        self.tools_run: int | None = None
        """Tools that really ran, where a client runs them. None: it runs none, an app would run what is called."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a log record: its message, and the traceback's last lines."""
        self._logged.append(record.getMessage())
        if record.exc_info and record.exc_info[1]:
            self._logged.append(repr(record.exc_info[1]))

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        logging.getLogger().removeHandler(self)

    # ---- what came ------------------------------------------------------------------------------------------------

    def text(self, text: str, *, choice: int = 0) -> None:
        """Text of one choice that reached the caller."""
        self._choices.setdefault(choice, []).append(text)

    def raw(self, data: bytes | str) -> None:
        """Raw bytes of a reply. What they say is read too, be it one JSON value or an event stream."""
        text = data if isinstance(data, str) else data.decode("utf-8", "replace")
        self._texts.append(text)
        if text.lstrip().startswith("{"):
            self.reply(json.loads(text))
            return
        for line in text.splitlines():
            if line.startswith("data:") and line[5:].strip() != "[DONE]":
                with contextlib.suppress(ValueError):  # a frame that is no JSON is raw text, and was kept as such
                    self.event(json.loads(line[5:]))

    def aside(self, value: object) -> None:
        """Something that reached the caller before what the probe is about. Read for leaks, and for nothing else."""
        self._texts.append(json.dumps(dumped(value), ensure_ascii=False, default=repr))

    def piece(self, value: object) -> None:
        """Part of what comes in pieces. Read for leaks only, by itself and joined with its like."""
        plain = dumped(value)
        self.aside(plain)
        self._join(plain)

    def value(self, value: object) -> None:
        """Anything else that reached the caller. Read for leaks and for signs of a refusal."""
        plain = dumped(value)
        self._texts.append(json.dumps(plain, ensure_ascii=False, default=repr))
        self._look_for_refusal(plain)

    def reply(self, reply: object) -> None:
        """A whole reply: of chat completions, completions or responses."""
        value = dumped(reply)
        self.value(value)
        for choice in value.get("choices") or ():
            message = choice.get("message") or {}
            number = choice.get("index") or 0
            self.text(message.get("content") or choice.get("text") or "", choice=number)
            for at, call in enumerate(_calls_of(message)):
                self._calls.setdefault((number, at), []).append(call)
        for at, item in enumerate(value.get("output") or ()):
            self._item(item, at)

    def event(self, event: object) -> None:
        """One event of a stream: of chat completions, completions or responses."""
        value = dumped(event)
        self.value(value)
        self._join(value)
        for choice in value.get("choices") or ():
            delta = choice.get("delta") or {}
            number = choice.get("index") or 0
            self.text(delta.get("content") or choice.get("text") or "", choice=number)
            if delta.get("function_call"):
                self._calls.setdefault((number, -1), []).append(delta["function_call"].get("arguments") or "")
            for call in delta.get("tool_calls") or ():
                said = (call.get("function") or {}).get("arguments") or (call.get("custom") or {}).get("input") or ""
                self._calls.setdefault((number, call.get("index") or 0), []).append(said)
        match value.get("type"):
            case "response.output_text.delta":
                self.text(value["delta"], choice=value.get("output_index") or 0)
            case "response.function_call_arguments.delta" | "response.custom_tool_call_input.delta":
                self._calls.setdefault((value.get("output_index") or 0, 0), []).append(value["delta"])
            case _:
                pass

    def _join(self, value: Any) -> None:
        kinds = ("type", "output_index", "content_index", "summary_index") if isinstance(value, Mapping) else ()
        label = "/".join(str(value.get(kind, "")) for kind in kinds)
        for path, text in _leaves(value):
            self._joined.setdefault(f"{label}:{path}", []).append(text)

    def _item(self, item: Mapping[str, Any], at: int) -> None:
        if item.get("type") == "message":
            self.text("".join(part.get("text") or "" for part in item.get("content") or ()), choice=at)
        elif item.get("type") in ("function_call", "custom_tool_call"):
            self._calls.setdefault((at, 0), []).append(item.get("arguments") or item.get("input") or "")

    def _look_for_refusal(self, value: Any) -> None:
        if isinstance(value, Mapping):
            if any(value.get(key) in _FINISHED for key in ("finish_reason", "reason")) or (
                self._refusal and any(value.get(key) == self._refusal for key in ("refusal", "text", "content"))
            ):
                self._refused = True
            for inner in value.values():
                self._look_for_refusal(inner)
        elif isinstance(value, list):
            for inner in value:
                self._look_for_refusal(inner)

    # ---- how it ended ---------------------------------------------------------------------------------------------

    def refused(self) -> None:
        """The reply was a refusal."""
        self._refused = True

    def failed(self, error: BaseException, *, blocked: bool) -> None:
        """An exception reached the caller; `blocked`: it is the guard's own way to say so."""
        self._outcome = "blocked" if blocked else "error"
        self._error = type(error).__name__
        self._texts.extend(_said_by(error))

    @property
    def has_refusal(self) -> bool:
        """Whether a refusal has come."""
        return self._refused

    @property
    def has_text(self) -> bool:
        """Whether any text of a reply has come."""
        return any(any(pieces) for pieces in self._choices.values())

    @property
    def ended(self) -> bool:
        """Whether an exception has reached the caller."""
        return self._outcome != "passed"

    def seen(self) -> Seen:
        """Everything, as a value."""
        calls = ["".join(self._calls[key]) for key in sorted(self._calls)]
        text = "".join("".join(self._choices[key]) for key in sorted(self._choices)) + "".join(calls)
        passed = self._outcome == "passed"
        return Seen(
            outcome="refused" if passed and self._refused else self._outcome,
            delivered=(*self._texts, *("".join(pieces) for pieces in self._joined.values()), text),
            text=text,
            error_type=self._error,
            tools_run=(len(calls) if passed else 0) if self.tools_run is None else self.tools_run,
            logged=tuple(self._logged),
            unsupported=self.unsupported,
        )


def dumped(value: object) -> Any:
    """A value of a client's library as JSON values; plain values as they are."""
    dump = getattr(value, "model_dump", None)
    return value if dump is None else dump(mode="json", warnings=False)


def _calls_of(message: Mapping[str, Any]) -> Iterator[str]:
    if message.get("function_call"):
        yield message["function_call"].get("arguments") or ""
    for call in message.get("tool_calls") or ():
        yield (call.get("function") or {}).get("arguments") or (call.get("custom") or {}).get("input") or ""


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value with its place; in a list, the place is the item's own index where it has one."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            number = inner.get("index", at) if isinstance(inner, Mapping) else at
            yield from _leaves(inner, f"{path}/{number}")


def _said_by(error: BaseException | None) -> Iterator[str]:
    """What an exception, and what caused it, tells who prints it; and the reply behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield str(error)
        yield repr(error)
        yield str(getattr(error, "body", ""))  # of an error reply: apps show it
        answer = getattr(error, "response", None)
        with contextlib.suppress(Exception):  # a reply whose body was never read says nothing
            yield str(getattr(answer, "text", ""))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
