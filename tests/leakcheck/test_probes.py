from __future__ import annotations

import pytest

from guardrail_vl.errors import ConfigurationError
from guardrail_vl.leakcheck.content import found
from guardrail_vl.leakcheck.probes import PROBES, ROWS, by_row, pick
from guardrail_vl.leakcheck.seen import PASSED


def test_every_known_leak_has_a_probe() -> None:
    assert list(ROWS) == list(range(1, 25))
    assert [row for row, probes in by_row().items() if not probes] == []
    assert {row for probe in PROBES for row in probe.rows} <= set(ROWS)


def test_ids_are_given_once() -> None:
    assert len({probe.id for probe in PROBES}) == len(PROBES)
    assert len({probe.title + probe.surface for probe in PROBES}) == len(PROBES)


def test_every_surface_that_can_answer_has_a_harmless_control() -> None:
    closed = {
        "chat.retrieve", "responses.retrieve", "audio.speech", "images.generate", "batches.create", "realtime.connect",
        "threads.run", "unknown.post",
    }  # fmt: skip
    good = {probe.surface for probe in PROBES if probe.expect.outcomes == PASSED}
    good |= {probe.surface for probe in PROBES if probe.id.startswith("users-")}
    assert {probe.surface for probe in PROBES} - good == closed


def test_a_control_asks_for_nothing_harmful() -> None:
    for probe in PROBES:
        if probe.id.startswith("safe-"):
            frames = "".join(f.data.decode("utf-8", "replace") for reply in probe.replies for f in reply.frames)
            assert found([frames, str(probe.request)]) == "", probe.id
            assert probe.expect.text is not None


def test_probes_are_picked_by_id_and_by_beginning() -> None:
    assert [p.id for p in pick(["safe-chat", "in-text"])] == ["in-text", "safe-chat"]
    assert {p.id for p in pick(["guard-*"])} == {p.id for p in PROBES if p.id.startswith("guard-")}
    with pytest.raises(ConfigurationError, match="nothing-such"):
        pick(["nothing-such"])


def test_no_probe_shows_its_texts() -> None:
    assert not any(found([repr(probe)]) for probe in PROBES)
