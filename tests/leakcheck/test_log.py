from __future__ import annotations

import json
import logging

import pytest

from guardrail_vl.leakcheck import script
from guardrail_vl.leakcheck.content import MARK, SAFE, WIDE, found
from guardrail_vl.leakcheck.log import Log


@pytest.mark.parametrize("text", [SAFE, f"{SAFE} {MARK}", WIDE])
@pytest.mark.parametrize("channel", ["content", "reasoning_content", "refusal", "anything_else"])
def test_what_came_letter_by_letter_is_found_on_any_channel(channel: str, text: str) -> None:
    log = Log()
    for event in script.chunks(list(text), key=channel):
        log.event(event)
    seen = log.seen()
    assert bool(found(seen.delivered)) is (text != SAFE)
    assert seen.text == (text if channel == "content" else "")


def test_tool_arguments_are_joined_by_call() -> None:
    log = Log()
    one, two = (script.call_chunks(list(text), number=i, finish=False) for i, text in enumerate(("abc", "xyz")))
    for event in script.interleaved(one, two):
        log.event(event)
    assert log.seen().text == "abcxyz"
    assert log.seen().tools_run == 2


def test_a_tool_call_does_not_run_when_the_stream_failed() -> None:
    log = Log()
    for event in script.call_chunks(["{}"]):
        log.event(event)
    log.failed(ValueError("no"), blocked=True)
    assert log.seen().tools_run == 0


def test_whole_replies_and_event_streams_read_alike() -> None:
    item = script.message_item(SAFE)
    whole, streamed, raw = Log(), Log(), Log()
    whole.reply(script.response(item))
    for event in script.response_events(item, script.tokens(SAFE), "output_text"):
        streamed.event(event)
    raw.raw(b"".join(frame.data for frame in script.events(script.chunks(script.tokens(SAFE))).frames))
    assert whole.seen().text == streamed.seen().text == raw.seen().text == SAFE


def test_what_an_exception_tells_has_reached_the_caller() -> None:
    log = Log()
    try:
        try:
            raise ValueError(MARK)
        except ValueError as error:
            raise RuntimeError("something else") from error
    except RuntimeError as error:
        log.failed(error, blocked=False)
    assert found(log.seen().delivered) == MARK
    assert (log.seen().outcome, log.seen().error_type) == ("error", "RuntimeError")


def test_a_refusal_is_seen_by_its_finish_or_its_words() -> None:
    for reply in (script.choice("", finish="content_filter"), script.choice(None, refusal="No.")):
        log = Log("No.")
        log.reply(script.completion(reply))
        assert log.seen().outcome == "refused"
    log = Log("No.")
    log.reply(script.completion(script.choice(SAFE)))
    assert log.seen().outcome == "passed"


def test_it_listens_to_the_log_while_it_is_entered() -> None:
    with Log() as log:
        logging.getLogger("some.library").warning("so %s", MARK)
        logging.getLogger("some.library").debug("hidden")
    logging.getLogger("some.library").warning("later")
    assert log.seen().logged == (f"so {MARK}",)


def test_what_came_before_is_read_for_leaks_only() -> None:
    log = Log("No.")
    log.aside(json.loads(json.dumps(script.completion(script.choice(MARK, refusal="No.", finish="content_filter")))))
    assert (log.seen().outcome, log.seen().text) == ("passed", "")
    assert found(log.seen().delivered) == MARK
