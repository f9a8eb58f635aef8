"""Pictures behind URLs in a request's or reply's JSON. Fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def remote_pictures(value: Any) -> bool:
    """Whether the JSON has pictures that must be fetched before it can be sent."""
    if isinstance(value, Mapping):
        picture = value.get("image_url")
        url = picture.get("url") if isinstance(picture, Mapping) else picture
        return (isinstance(url, str) and not url.startswith("data:")) or any(map(remote_pictures, value.values()))
    return isinstance(value, list) and any(map(remote_pictures, value))


def pin(value: Any, fetched: Mapping[str, str]) -> Any:
    """The JSON with each picture's URL replaced by the `data:` URL of what was fetched from it."""
    if isinstance(value, list):
        return [pin(one, fetched) for one in value]
    if not isinstance(value, Mapping):
        return value
    out = {key: pin(one, fetched) for key, one in value.items()}
    picture = out.get("image_url")
    if isinstance(picture, str):
        out["image_url"] = fetched.get(picture, picture)
    elif isinstance(picture, dict) and isinstance(picture.get("url"), str):
        picture["url"] = fetched.get(picture["url"], picture["url"])
    return out
