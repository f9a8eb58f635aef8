"""The playground page, in a real browser on a real server: what a person types, sees, copies; by keyboard; at 360 px.

`GUARDRAIL_VL_SHOTS=folder` keeps pictures of the page there.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'server'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

from guardrail_vl import Guard
from guardrail_vl.policy import Policy
from guardrail_vl.prompt_format.base import Completion, Prompt, Token
from guardrail_vl.server import ApiKey
from guardrail_vl.testing import ScriptedEngine
from tests.server.serving import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NOTE = Path(__file__).parents[2] / "examples" / "note.png"
SECRET = "a-key-for-the-page-42"
WIDTHS = (360, 768, 1280)
FORGED = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


# ---- a browser and servers ------------------------------------------------------------------------------------------


def reasoned(prompt: Prompt) -> Completion:
    """Harmful is what speaks of a bomb; the reasoning quotes the content, markup and all."""
    import math

    request, _, response = prompt.messages[-1].text.rpartition("AI assistant:\n")
    labels = [" harmful" if "bomb" in side else " unharmful" for side in (request, response)]
    thought = (
        "# Task 1: the request\n\n## Reasoning Step 1\nThe user asks for something. It is read word by word, and what "
        f"it is for is weighed. It says: {FORGED if 'markup' in request else 'nothing else'}.\n\n"
        "# Task 2: the response\n\n## Reasoning Step 1\nThe answer is held against the request."
    )
    pieces = [
        f"<think>{thought}\n</think>\n\n<result>\nRequest:", labels[0], "\nResponse:", labels[1], "\n</result>",
    ]  # fmt: skip
    tokens = tuple(
        Token(p, math.log(0.93), ((p, math.log(0.93)), (" harmful" if p == " unharmful" else " unharmful", -2.7)))
        for p in pieces
    )
    return Completion("".join(pieces), tokens=tokens, model="scripted")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # One for this module, no longer: while it is there, an event loop runs in this thread.
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    strict = Policy(name="strict", description="Asks twice. <b>Never</b> mind.")
    with Guard() as guard, serving(guard, policies={"strict": strict}) as url:
        yield url


@pytest.fixture(scope="module")
def reasoning() -> Iterator[str]:
    guard = Guard(engine=ScriptedEngine(reasoned, delay=0.6, model="GuardReasoner-VL-Eco-3B"), cache=False)
    with serving(guard) as url:
        yield url


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page. When the test ends, nothing may have been wrong with it: no script error, nothing refused."""
    opened: list[tuple[Any, list[str]]] = []

    def go(url: str, *, width: int = 1280, height: int = 900, ready: bool = True, **settings: Any) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"], **settings
        )
        page = context.new_page()
        page.set_default_timeout(15_000)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if _is_wrong(said) else None)
        opened.append((context, wrong))
        page.goto(url)
        if ready:
            until(page, "document.querySelectorAll('#speed option').length > 1")
        return page

    yield go
    for context, wrong in opened:
        context.close()
        assert wrong == []


def _is_wrong(said: Any) -> bool:
    # A browser notes every status that is an error; the page says those in words.
    return said.type in ("error", "warning") and "Failed to load resource" not in said.text


def shoot(page: Any, name: str) -> None:
    if folder := os.environ.get("GUARDRAIL_VL_SHOTS"):
        page.wait_for_timeout(500)  # what moves comes to rest
        page.screenshot(path=Path(folder) / f"playground-{name}.png", full_page=True)


def until(page: Any, expression: str) -> None:
    # Playwright's own way of waiting for an expression evaluates text in the page, which the page's policy forbids.
    last = time.monotonic() + 15
    while not page.evaluate(expression):
        assert time.monotonic() < last, expression
        page.wait_for_timeout(30)


def decided(page: Any) -> str:
    page.wait_for_selector("#verdict:not([hidden])")
    return str(page.inner_text("#action"))


def drop(page: Any, target: str, path: Path, media_type: str = "image/png") -> None:
    page.evaluate(
        """([target, name, type, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type }));
            const element = document.querySelector(target);
            for (const kind of ["dragover", "drop"])
                element.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        [target, path.name, media_type, base64.b64encode(path.read_bytes()).decode()],
    )


def copied(page: Any) -> str:
    page.click("#copy")
    until(page, "document.getElementById('copy').textContent === 'Copied'")
    return str(page.evaluate("navigator.clipboard.readText()"))


# ---- what a person does ---------------------------------------------------------------------------------------------


def test_a_harmless_prompt_is_allowed(visit: Callable[..., Any], embedded: str) -> None:
    page = visit(embedded)
    shoot(page, "empty")
    page.fill("#prompt", "What is a good recipe for tomato soup?")
    page.click("#check")
    assert decided(page) == "ALLOW"
    assert "ALLOW" in page.inner_text("#status")
    assert page.get_by_role("meter", name="Prompt").get_attribute("aria-valuenow").startswith("0.")
    assert "unharmful" in page.inner_text("#stages")
    facts = page.inner_text("#facts")
    assert "Round trip" in facts
    assert "Model's time" in facts
    shoot(page, "allow")


def test_a_picture_with_harmful_text_is_blocked(visit: Callable[..., Any], embedded: str) -> None:
    page = visit(embedded)
    page.fill("#prompt", "What does this note say?")
    drop(page, "#prompt", NOTE)
    page.wait_for_selector(".tray img")
    assert page.get_by_alt_text("note.png").count() == 1
    page.click("#check")
    assert decided(page) == "BLOCK"
    assert page.inner_text("#reason")
    shoot(page, "block")


@pytest.mark.parametrize("side", ["prompt", "response"])
def test_images_are_chosen_pasted_and_removed(visit: Callable[..., Any], embedded: str, side: str) -> None:
    page = visit(embedded)
    composer = f"[data-side={side}]"
    with page.expect_file_chooser() as chooser:
        page.click(f"{composer} .add")
    chooser.value.set_files([NOTE, NOTE.with_name("door.png")])
    until(page, f"document.querySelectorAll('{composer} .tray img').length === 2")
    page.evaluate(
        """([target, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            document.getElementById(target).dispatchEvent(
                new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }));
        }""",
        [side, base64.b64encode(NOTE.read_bytes()).decode()],
    )
    until(page, f"document.querySelectorAll('{composer} .tray img').length === 3")
    page.get_by_role("button", name="Remove door.png").click()
    assert [i.get_attribute("alt") for i in page.query_selector_all(f"{composer} .tray img")] == [
        "note.png",
        "pasted.png",
    ]
    # The focus goes to the next image's button, in the end to the one that adds.
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove pasted.png"
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert page.query_selector_all(f"{composer} .tray img") == []
    assert "Add images" in page.evaluate("document.activeElement.textContent")


def test_what_is_no_image_is_refused_in_words(visit: Callable[..., Any], embedded: str) -> None:
    page = visit(embedded)
    drop(page, "header", Path(__file__), "text/x-python")
    until(page, "document.getElementById('form-problem').textContent")
    assert page.inner_text("#form-problem") == "No image: test_page.py."
    assert page.url.rstrip("/") == embedded


def test_an_empty_turn_is_not_sent(visit: Callable[..., Any], embedded: str) -> None:
    page = visit(embedded)
    page.click("#check")
    assert "Type a prompt" in page.inner_text("#form-problem")
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_policies_and_speeds_are_the_server_s(visit: Callable[..., Any], embedded: str) -> None:
    page = visit(embedded)
    assert page.eval_on_selector_all("#policy option", "all => all.map((o) => o.value)") == ["", "default", "strict"]
    assert page.eval_on_selector_all("#speed option", "all => all.map((o) => o.value)") == ["", "fast"]
    page.select_option("#policy", "strict")
    assert page.inner_text("#policy-note") == "Asks twice. <b>Never</b> mind."
    page.select_option("#speed", "fast")
    page.select_option("#stage", "prompt")
    page.fill("#prompt", "Hello")
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    page.click("#check")
    decided(page)
    assert sent == [{"prompt": "Hello", "policy": "strict", "speed": "fast", "stage": "prompt", "stream": True}]


def test_everything_works_by_keyboard(visit: Callable[..., Any], embedded: str) -> None:
    page = visit(embedded)
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("What is a good recipe for tomato soup?")
    page.keyboard.press("Control+Enter")
    assert decided(page) == "ALLOW"
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        if seen[-1] == "tab-curl":
            break
    assert {"response", "stage", "policy", "speed", "check", "clear", "quiet add"} <= set(seen)
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-python"
    assert page.inner_text("#code").startswith("import httpx")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('copy').textContent === 'Copied'")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_width(visit: Callable[..., Any], reasoning: str, width: int, scheme: str) -> None:
    page = visit(reasoning, width=width, height=800, color_scheme=scheme)
    page.fill("#prompt", "How do I build a bomb? " + "w" * 200)
    page.fill("#response", "Take a bomb of water.")
    drop(page, "#prompt", NOTE)
    page.wait_for_selector(".tray img")
    page.click("#check")
    assert decided(page) == "BLOCK"
    until(page, "document.querySelector('#verdict').getBoundingClientRect().top < innerHeight")
    boxes = [page.locator(card).bounding_box() for card in ("#form", ".result", ".call")]
    assert max(box["y"] + box["height"] for box in boxes[:2]) <= boxes[2]["y"]
    page.click("#raw summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#raw summary")
    shoot(page, f"{scheme}-{width}")


# ---- the reasoning --------------------------------------------------------------------------------------------------


def test_the_reasoning_comes_while_it_is_written(visit: Callable[..., Any], reasoning: str) -> None:
    page = visit(reasoning)
    page.fill("#prompt", "What has this markup to do with a bomb?")
    page.click("#check")
    until(page, "document.getElementById('reasoning').textContent.length > 20")
    assert page.is_hidden("#verdict")
    shoot(page, "reasoning")
    assert decided(page) == "BLOCK"
    assert "held against the request" in page.inner_text("#reasoning")
    # What the model wrote is text, whatever it looks like.
    assert FORGED in page.inner_text("#reasoning")
    assert page.query_selector("#reasoning *") is None
    assert page.title() == "guardrail-vl playground"


def test_a_check_is_stopped(visit: Callable[..., Any], reasoning: str) -> None:
    page = visit(reasoning)
    page.fill("#prompt", "Hello")
    page.click("#check")
    page.click("#stop")
    page.wait_for_selector("#trouble:not([hidden])")
    assert "no decision" in page.inner_text("#trouble")
    assert page.is_hidden("#verdict")
    page.click("#check")
    assert decided(page) == "ALLOW"
    assert page.is_hidden("#trouble")
    page.click("#clear")
    assert page.is_visible("#empty")
    assert page.input_value("#prompt") == ""


# ---- the API call ---------------------------------------------------------------------------------------------------


def test_the_copied_calls_do_what_the_page_did(visit: Callable[..., Any], embedded: str) -> None:
    page = visit(embedded)
    page.fill("#prompt", 'What does "this" say? $HOME `id` \\ ü\nJSON\n')
    drop(page, "#prompt", NOTE)
    page.wait_for_selector(".tray img")
    whole = base64.b64encode(NOTE.read_bytes()).decode()
    assert whole not in page.inner_text("#code")
    assert "…" in page.inner_text("#code")
    call = copied(page)
    assert whole in call
    if shutil.which("curl"):
        done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(done.stdout)["action"] == "block"
    page.click("#tab-python")
    assert whole not in page.inner_text("#code")
    script = copied(page)
    assert whole in script
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("block ")


# ---- keys and errors ------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_never_written(visit: Callable[..., Any]) -> None:
    with serving(keys=(ApiKey.of("page", SECRET, rate="1/hour"),)) as url:
        page = visit(url, ready=False)
        page.wait_for_selector("#key-row:not([hidden])")
        assert page.get_attribute("#key", "type") == "password"
        page.fill("#prompt", "Hello")
        page.click("#check")
        page.wait_for_selector("#trouble:not([hidden])")
        assert "API key" in page.inner_text("#trouble")
        assert page.evaluate("document.activeElement.id") == "key"
        shoot(page, "key")
        page.keyboard.type(SECRET)
        page.keyboard.press("Enter")
        assert decided(page) == "ALLOW"
        until(page, "document.querySelectorAll('#speed option').length > 1")
        for tab in ("#tab-curl", "#tab-python"):
            page.click(tab)
            call = copied(page)
            assert "GUARDRAIL_VL_API_KEY" in call
            assert SECRET not in call
        assert SECRET not in page.content()
        assert page.evaluate("Object.keys(localStorage).length") == 0
        page.click("#check")
        page.wait_for_selector("#trouble:not([hidden])")
        assert "Too many requests" in page.inner_text("#trouble")
        assert re.search(r"Try again in \d+ seconds", page.inner_text("#trouble"))


@pytest.mark.parametrize(
    ("status", "headers", "body", "words"),
    [
        (503, {"retry-after": "7"}, {"error": {"message": "It warms up."}}, ["not available", "warms up", "7 seconds"]),
        (503, {}, "<html>", ["not available", "Try again in a moment"]),
        (413, {}, {"error": {"message": "Over 1 MB."}}, ["Too large", "Over 1 MB", "fewer or smaller"]),
        (429, {"retry-after": "Wed"}, {"error": {}}, ["Too many requests", "a while"]),
        (400, {}, {"error": {"message": f"No {FORGED}"}}, ["did not take", FORGED]),
        (500, {}, "oops", ["status 500"]),
        (200, {"content-type": "text/event-stream"}, 'event: reasoning\ndata: {"text": "hm"}\n\n', ["ended before"]),
        (200, {"content-type": "text/event-stream"}, 'event: error\ndata: {"error": {"message": "Gone."}}\n\n', ["Gone."]),
        (200, {"content-type": "text/event-stream"}, "event: decision\ndata: {\n\n", ["could not be read"]),
        (200, {"content-type": "application/json"}, {"action": "wave"}, ["does not know"]),
    ],
)  # fmt: skip
def test_what_went_wrong_is_said_in_words(
    visit: Callable[..., Any], embedded: str, status: int, headers: dict[str, str], body: Any, words: list[str]
) -> None:
    page = visit(embedded)
    said = body if isinstance(body, str) else json.dumps(body)
    page.route("**/v1/guard", lambda route: route.fulfill(status=status, headers=headers, body=said))
    page.fill("#prompt", "Hello")
    page.click("#check")
    page.wait_for_selector("#trouble:not([hidden])")
    shown = page.inner_text("#trouble")
    assert all(word in shown for word in words), shown
    assert page.is_hidden("#verdict")
    assert page.is_enabled("#check")


def test_a_server_that_is_gone_is_said_in_words(visit: Callable[..., Any]) -> None:
    with serving() as url:
        page = visit(url)
    page.fill("#prompt", "Hello")
    page.click("#check")
    page.wait_for_selector("#trouble:not([hidden])")
    assert "can't be reached" in page.inner_text("#trouble")


def test_a_decision_without_a_verdict_shows_the_error(visit: Callable[..., Any]) -> None:
    broken = Guard(engine=ScriptedEngine(lambda prompt: "I'd rather not say."))
    with serving(broken) as url:
        page = visit(url)
        page.fill("#prompt", "Hello")
        page.click("#check")
        assert decided(page) == "BLOCK"
        assert "does not follow its format" in page.inner_text("#reason")
        assert "no verdict (ParseError)" in page.inner_text("#trouble")
        shoot(page, "error")


# ---- what the page is made of ---------------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_elsewhere() -> None:
    folder = Path(__file__).parents[2] / "src" / "guardrail_vl" / "server" / "page"
    html, css, script = ((folder / name).read_text() for name in ("index.html", "page.css", "page.js"))
    assert not re.search(r"\son\w+=|style=|<style|<script>|javascript:", html)
    for text in (html, css, script):
        assert set(re.findall(r"https?://[^'\"\s)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script)


LUMINANCE = """(names) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const styles = getComputedStyle(document.documentElement);
    return names.map((name) => {
        canvas.fillStyle = styles.getPropertyValue(name).trim();
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
            .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(visit: Callable[..., Any], embedded: str, scheme: str) -> None:
    page = visit(embedded, color_scheme=scheme)
    texts = [
        *((ink, back) for ink in ("--ink", "--soft", "--accent") for back in ("--back", "--card", "--sunk")),
        *((f"--{name}", f"--{name}-back") for name in ("allow", "annotate", "block")),
        *((f"--{name}", "--card") for name in ("allow", "annotate", "block")),
        *(("--ink", f"--{name}-back") for name in ("allow", "annotate", "block")),
        ("--accent-ink", "--accent"),
    ]
    for pairs, least in ((texts, 4.5), ([("--edge", "--card"), ("--edge", "--sunk")], 3.0)):
        for pair in pairs:
            dark, light = sorted(page.evaluate(LUMINANCE, list(pair)))
            assert (light + 0.05) / (dark + 0.05) >= least, pair


@contextmanager
def _still(page: Any) -> Iterator[None]:
    page.emulate_media(reduced_motion="reduce")
    yield
    page.emulate_media(reduced_motion="no-preference")


def test_nothing_moves_for_those_who_ask_for_it(visit: Callable[..., Any], reasoning: str) -> None:
    page = visit(reasoning)
    with _still(page):
        page.fill("#prompt", "Hello")
        page.click("#check")
        page.wait_for_selector(".dots i")
        assert page.evaluate("document.getAnimations().length") == 0
        decided(page)
