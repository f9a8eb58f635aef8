"""Pictures that were fetched, in place of their URLs: what was judged is what is sent. Fetches nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.messages import BaseMessage

from guardrail_vl.parts import ImagePart


def pinned(message: BaseMessage, fetched: Mapping[str, ImagePart]) -> BaseMessage:
    """The message with each picture's URL replaced by what was fetched from it."""
    if isinstance(message.content, str):
        return message
    return message.model_copy(update={"content": [_pinned(block, fetched) for block in message.content]})


def _pinned(value: Any, fetched: Mapping[str, ImagePart]) -> Any:
    if isinstance(value, list):
        return [_pinned(inner, fetched) for inner in value]
    if not isinstance(value, dict):
        return value
    out = {name: _pinned(inner, fetched) for name, inner in value.items()}
    picture = out.get("image_url")
    if isinstance(picture, str) and picture in fetched:
        out["image_url"] = fetched[picture].data_url
    elif isinstance(picture, dict):
        out["image_url"] = _as_data(picture, fetched, lambda part: {"url": part.data_url})
    if isinstance(out.get("source"), dict):
        out["source"] = _as_data(out["source"], fetched, _source)
    if out.get("type") == "image":
        old = out.get("source_type") == "url"
        kind = {"source_type": "base64"} if old else {}
        name = "data" if old else "base64"
        out = _as_data(out, fetched, lambda part: {**kind, name: _base64(part), "mime_type": part.media_type})
    return out


def _as_data(
    block: dict[str, Any], fetched: Mapping[str, ImagePart], data: Callable[[ImagePart], dict[str, Any]]
) -> dict[str, Any]:
    """The block with data in place of its URL, if it was fetched."""
    url = block.get("url")
    if not isinstance(url, str) or url not in fetched:
        return block
    return {**{name: value for name, value in block.items() if name != "url"}, **data(fetched[url])}


def _source(part: ImagePart) -> dict[str, Any]:
    return {"type": "base64", "media_type": part.media_type, "data": _base64(part)}


def _base64(part: ImagePart) -> str:
    return part.data_url.partition(",")[2]
