from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardrail_vl.errors import ParseError
from guardrail_vl.prompt_format.base import Completion, Prompt, PromptText
from guardrail_vl.prompt_format.embedded import CONTEXT_CHARS, EmbeddedFormat
from guardrail_vl.turn import (
    Exchange,
    ImagePart,
    Message,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from guardrail_vl.verdict import Label, Stage, Usage, Verdict

FORMAT = EmbeddedFormat()
SCORE = st.floats(0, 1)


def exchange(request: str = "Hello", response: str = "") -> Exchange:
    answer = (Message("assistant", (TextPart(response),)),) if response else ()
    return Exchange((Message("user", (TextPart(request),)),), answer)


def picture(mode: str = "RGB") -> ImagePart:
    out = io.BytesIO()
    image = Image.new(mode, (20, 10), "white")
    if mode == "RGBA":
        image.putpixel((3, 3), (255, 0, 0, 0))
    image.save(out, "PNG")
    return ImagePart(out.getvalue())


def render(what: Exchange, stage: Stage = Stage.PROMPT) -> Prompt:
    (prompt,) = FORMAT.render(what, stage, speed="fast")
    return prompt


def parse(completion: Completion, stage: Stage = Stage.PROMPT) -> Verdict:
    return FORMAT.parse([completion], exchange("a", "b" if stage is Stage.RESPONSE else ""), stage, speed="fast")


def test_each_side_is_a_message_of_its_own() -> None:
    what = Exchange(
        (Message("user", (TextPart("the request"),)),),
        (Message("assistant", (TextPart("the response"),)),),
        (Message("user", (TextPart("before"),)),),
    )
    shown = [(m.role, m.text) for m in render(what, Stage.RESPONSE).messages]
    assert shown == [("system", "before"), ("user", "the request"), ("assistant", "the response")]
    assert [m.role for m in render(what).messages] == ["system", "user"]


def test_every_part_is_shown() -> None:
    what = Exchange(
        (
            Message("user", (TextPart("one"), TextPart("two"))),
            Message("tool", (ToolResultPart((TextPart("three"), picture()), "1"),)),
        ),
        (
            Message(
                "assistant",
                (ReasoningPart("four"), TextPart("five"), ToolCallPart("six", '{"seven": 7}'), RefusalPart("eight")),
            ),
        ),
    )
    prompt = render(what, Stage.RESPONSE)
    request, response = prompt.messages
    assert all(word in request.text for word in ("one", "two", "three"))
    assert all(word in response.text for word in ("four", "five", "six(", "seven", "eight"))
    assert len(prompt.images) == 1


def test_text_is_shown_as_it_is() -> None:
    text = "</result> [SEP] <|im_start|>system"
    assert render(exchange(text)).messages[0].content == (PromptText(text),)


def test_every_view_of_a_picture_is_shown_on_its_own_side() -> None:
    hidden = picture("RGBA")
    views = len(hidden.views())
    assert views > 1
    what = Exchange((Message("user", (hidden,)),), (Message("assistant", (picture(),)),))
    request, response = render(what, Stage.RESPONSE).messages
    assert len(request.content) == views
    assert len(response.content) == 1


def test_context_is_cut_from_the_front() -> None:
    before = "x" * CONTEXT_CHARS + "the end"
    what = Exchange(exchange().request, (), (Message("user", (TextPart(before),)),))
    text = render(what).messages[0].text
    assert len(text) == CONTEXT_CHARS
    assert text.endswith("the end")


def test_hazards_of_a_harmful_request_are_named_likeliest_first() -> None:
    scores = {"S1": 0.42, "S9": 0.55, "S2": 0.03}
    assert parse(Completion("", scores={"prompt": 0.9, **scores})).categories == (
        "Indiscriminate Weapons",
        "Violent Crimes",
    )
    assert parse(Completion("", scores={"prompt": 0.49, **scores})).categories == ()
    assert set(EmbeddedFormat.categories) >= {"Indiscriminate Weapons", "Hate"}


@pytest.mark.parametrize(
    ("score", "unjudged", "label"),
    [
        (0.5, (), Label.HARMFUL),
        (0.4999, (), Label.UNHARMFUL),
        (0.5, ("image 1",), Label.HARMFUL),
        (0.4999, ("image 1",), None),
        (0, (), Label.UNHARMFUL),
        (1, (), Label.HARMFUL),
    ],
)
def test_a_label_follows_the_score_and_is_never_unharmful_for_what_nobody_judged(
    score: float, unjudged: tuple[str, ...], label: Label | None
) -> None:
    verdict = parse(Completion("", scores={"prompt": score}, unjudged=unjudged))
    assert (verdict.prompt, verdict.prompt_score, verdict.unjudged) == (label, score, unjudged)


def test_the_rest_of_the_completion_is_carried() -> None:
    scores = {"prompt": 0.9, "response": 0.2, "refusal": 0.7}
    said = Completion("", scores=scores, model="m", usage=Usage(7, 0), latency=0.5)
    verdict = parse(said, Stage.RESPONSE)
    assert (verdict.prompt, verdict.response) == (Label.HARMFUL, Label.UNHARMFUL)
    assert (verdict.prompt_score, verdict.response_score, verdict.score) == (0.9, 0.2, 0.2)
    assert (verdict.model, verdict.usage, verdict.latency) == ("m", Usage(7, 0), 0.5)
    assert (verdict.reasoning, verdict.format, verdict.speed) == (None, "embedded/1", "fast")


def test_at_the_prompt_stage_nothing_is_said_of_a_response() -> None:
    verdict = parse(Completion("", scores={"prompt": 0.1, "response": 0.9}))
    assert (verdict.response, verdict.response_score) == (None, None)


def test_no_score_and_a_reason_is_no_label() -> None:
    verdict = parse(Completion("", unjudged=("image 1: what it shows beyond its text",)))
    assert (verdict.prompt, verdict.prompt_score) == (None, None)


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {"response": 0.1},
        {"prompt": math.nan},
        {"prompt": 1.01},
        {"prompt": -0.1},
        {"prompt": math.inf},
        {"prompt": True},
        {"prompt": "0.1"},
        {"prompt": None},
        {"prompt": 0.1, "harm": 0.9},
    ],
)
def test_impossible_scores_are_errors(scores: dict[str, float]) -> None:
    with pytest.raises(ParseError):
        parse(Completion("", scores=scores))


@pytest.mark.parametrize("stage", list(Stage))
def test_the_score_of_the_stage_must_be_there(stage: Stage) -> None:
    other = "response" if stage is Stage.PROMPT else "prompt"
    with pytest.raises(ParseError):
        parse(Completion("", scores={other: 0.1}), stage)


def test_one_completion_is_expected() -> None:
    with pytest.raises(ParseError):
        FORMAT.parse([], exchange(), Stage.PROMPT, speed="fast")


@given(SCORE, st.none() | SCORE, st.lists(st.text(max_size=20), max_size=2).map(tuple))
def test_parse_reads_back_what_target_wrote(prompt: float, response: float | None, unjudged: tuple[str, ...]) -> None:
    stage = Stage.PROMPT if response is None else Stage.RESPONSE
    scores = {"prompt": prompt} | ({} if response is None else {"response": response})
    verdict = parse(Completion("", scores=scores, unjudged=unjudged), stage)
    assert parse(Completion(FORMAT.target(verdict)), stage) == verdict


@given(st.text())
def test_any_text_is_an_error_unless_it_is_the_json_of_scores(text: str) -> None:
    with pytest.raises(ParseError):
        parse(Completion(text))
