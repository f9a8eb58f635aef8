"""What every frozen value shares: a JSON schema, JSON out, JSON in. Knows nothing of what the values mean."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError

from guardrail_vl.errors import ContentError

JSON_BYTES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", extra="forbid", hide_input_in_errors=True)


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


class Value:
    """Mix-in for the frozen dataclasses of the public API. Bytes are base64 in JSON."""

    __slots__ = ()
    __pydantic_config__ = JSON_BYTES

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of this value (draft 2020-12)."""
        return _adapter(cls).json_schema()

    def to_json(self) -> str:
        """This value as JSON, content included."""
        return _adapter(type(self)).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a value that `to_json` wrote.

        Raises:
            ContentError: The JSON does not follow the schema; the message names the fields, not their content.
        """
        try:
            value: Self = _adapter(cls).validate_json(text)
        except ValidationError as error:
            where = ", ".join(sorted({".".join(map(str, e["loc"])) or "the whole" for e in error.errors()})[:5])
            raise ContentError(f"This is not the JSON of a {cls.__name__}: see {where}.") from None
        return value
