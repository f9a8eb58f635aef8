"""Making a turn whose pictures must be fetched first. Fetches nothing itself: it says what to fetch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guardrail_vl._flow import FetchPlan
from guardrail_vl.errors import ContentError
from guardrail_vl.media import ImageSource
from guardrail_vl.parts import blank_picture
from guardrail_vl.turn import ImageLoader, ImagePart, Turn


def with_fetched(make: Callable[..., Turn], load: ImageLoader) -> Turn | FetchPlan:
    """The turn, or what must be fetched to make it. One reader reads the content both times."""
    urls: list[str] = []

    def note(source: ImageSource) -> ImagePart:
        if isinstance(source, str) and source.startswith(("http:", "https:")):
            urls.append(source)
        return blank_picture()

    make(load=note)
    if not urls:
        return make(load=load)
    wanted = tuple(dict.fromkeys(urls))

    def finish(fetched: Sequence[bytes | ContentError]) -> Turn:
        by_url = dict(zip(wanted, fetched, strict=True))

        def pinned(source: ImageSource) -> ImagePart:
            if not isinstance(source, str) or source not in by_url:
                return load(source)
            data = by_url[source]
            if isinstance(data, ContentError):
                raise data
            return load(data)

        return make(load=pinned)

    return FetchPlan(wanted, finish)
