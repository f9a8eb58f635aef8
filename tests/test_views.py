"""Pixels are decoded once for each picture, never shared, and not held for long."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardrail_vl import ImagePart, Stage, Turn, _views
from guardrail_vl._views import MOST, ROOM, Views
from guardrail_vl.errors import ContentError
from guardrail_vl.media import fit, render_views
from guardrail_vl.prompt_format import get_format
from tests.test_media import VALID, animation, saved


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formats that Pillow opened, in order."""
    seen: list[str] = []
    really = Image.open

    def spy(*args: Any, **options: Any) -> Any:
        image = really(*args, **options)
        seen.append(str(image.format))
        return image

    monkeypatch.setattr(Image, "open", spy)
    return seen


@pytest.fixture(autouse=True)
def _nothing_yet() -> Iterator[None]:
    gc.collect()
    yield
    gc.collect()


def noise(width: int, height: int) -> bytes:
    return saved(Image.effect_noise((width, height), 90).convert("RGB"), "PNG")


def remembered() -> int:
    """Bytes of pixels that are alive."""
    alive = [one() for one, _ in _views._recent]
    kept = [one._rendered or (one._decoded,) for one in alive if one is not None and (one._rendered or one._decoded)]
    return sum(4 * image.width * image.height for images in kept for image in images if image is not None)


@pytest.mark.parametrize(
    ("name", "times"), [("jpeg", 1), ("png", 1), ("png-alpha", 1), ("gif", 1), ("gif-animated", 6)]
)
def test_a_judged_picture_is_decoded_once_and_an_animation_s_frames_twice(
    name: str, times: int, opened: list[str]
) -> None:
    turn = Turn.from_prompt("See this.", images=[VALID[name]], response="I do.")
    prompts = get_format("guardreasoner-vl/1").render(turn.exchanges()[-1], Stage.RESPONSE, speed="fast")
    assert len(prompts) == 3
    shown = [[image.pixels().tobytes() for image in prompt.images] for prompt in prompts]
    assert len(opened) == times
    assert shown[0] == shown[1] == shown[2] == [view.tobytes() for view in render_views(VALID[name])]


@given(st.sampled_from(sorted(VALID)), st.integers(1, 600), st.permutations(["count", "views", "one", "forget"]))
def test_remembered_or_not_the_views_are_the_same(name: str, most: int, order: list[str]) -> None:
    part, expected = ImagePart(VALID[name]), render_views(VALID[name])
    for step in order:
        if step == "forget":
            part._shown.forget()
        elif step == "count":
            assert part.view_count == len(expected)
        elif step == "views":
            assert [view.tobytes() for view in part.views()] == [view.tobytes() for view in expected]
        else:
            for number, view in enumerate(expected):
                one = part.view(number, max_pixels=most)
                assert (one.size, one.tobytes()) == (fit(view, most).size, fit(view, most).tobytes())


def test_who_changes_a_view_changes_only_his_own() -> None:
    part = ImagePart(noise(8, 8))
    before = part.views()[0].tobytes()
    part.views()[0].paste("red", (0, 0, 8, 8))
    part.view(0, max_pixels=64).paste("red", (0, 0, 8, 8))
    assert part.views()[0].tobytes() == part.view(0, max_pixels=64).tobytes() == before


def test_what_is_remembered_is_no_part_of_the_value() -> None:
    used, fresh = ImagePart(VALID["png"]), ImagePart(VALID["png"])
    used.views()
    assert (used, hash(used), repr(used), used.to_json()) == (fresh, hash(fresh), repr(fresh), fresh.to_json())
    assert pickle.dumps(used) == pickle.dumps(fresh)
    for again in (pickle.loads(pickle.dumps(used)), copy.copy(used), copy.deepcopy(used)):
        assert again == used
        assert again._shown is not used._shown
        assert again.views()[0].tobytes() == used.views()[0].tobytes()


def test_pixels_go_with_their_picture() -> None:
    part = ImagePart(noise(100, 100))
    part.views()
    assert part._shown._rendered is not None
    pixels = weakref.ref(part._shown._rendered[0])
    del part
    gc.collect()
    assert pixels() is None


def test_no_more_than_the_room_is_remembered() -> None:
    large = noise(2000, 2000)  # 16 MB decoded
    parts = [ImagePart(large) for _ in range(6)]
    for part in parts:
        part.views()
        assert 16_000_000 <= remembered() <= ROOM
    assert [part._shown._rendered is not None for part in parts] == [False, False, *[True] * 4]
    small = [ImagePart(noise(4, 4)) for _ in range(MOST + 5)]
    assert len(_views._recent) == MOST
    assert small[0]._shown._decoded is None
    assert parts[-1]._shown._rendered is None


def test_a_picture_that_needs_more_than_the_room_is_not_remembered() -> None:
    data = saved(Image.new("RGB", (4100, 4100), "red"), "PNG")
    part = ImagePart(data)
    assert (part.view_count, part.views()[0].size) == (1, (4100, 4100))
    assert (part._shown._decoded, part._shown._rendered, remembered()) == (None, None, 0)


def test_what_can_not_be_decoded_is_refused_each_time() -> None:
    views = Views(VALID["png"][:-20])
    for _ in range(2):
        with pytest.raises(ContentError):
            views.verify()
        with pytest.raises(ContentError):
            views.every()
    assert remembered() == 0


def test_threads_share_a_picture() -> None:
    parts = {name: ImagePart(data) for name, data in VALID.items()}
    expected = {name: [view.tobytes() for view in render_views(data)] for name, data in VALID.items()}
    parts["large"] = ImagePart(noise(1500, 1500))
    expected["large"] = [view.tobytes() for view in render_views(parts["large"].data)]
    work = list(parts) * 8

    def look(name: str) -> list[bytes]:
        ImagePart(VALID["gif"]).views()  # others come and go
        return [parts[name].view(number, max_pixels=10**7).tobytes() for number in range(parts[name].view_count)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look, work)) == [expected[name] for name in work]


def _judge_in_child(data: bytes, told: Any) -> None:
    told.send(ImagePart(data).views()[0].size)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_is_not_held_up_by_a_thread_that_it_lacks() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with _views._lock:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    try:
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        child = multiprocessing.get_context("fork").Process(target=_judge_in_child, args=(noise(6, 5), theirs))
        child.start()
        assert ours.poll(30)
        assert ours.recv() == (6, 5)
    finally:
        done.set()
        thread.join()
        child.join(10)


def test_an_animation_s_views_are_rendered_once_for_all(opened: list[str]) -> None:
    part = ImagePart(animation("GIF", 8))
    assert part.view_count == 8
    several = len(opened)
    assert [part.view(number, max_pixels=10**6).size for number in range(8)] == [(20, 12)] * 8
    assert len(opened) == several
