"""The review page's HTTP: who is let in, what is taken, what is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from guardrail_vl._address import is_loopback
from guardrail_vl.audit import Archive
from guardrail_vl.errors import ConfigurationError
from guardrail_vl.review import create_app, serve
from tests.review.pages import ASKED, fill, served

OURS = {"X-Guardrail-Review": "1"}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("review") / "audit.jsonl")
    fill(path)
    return path


@pytest.fixture(scope="module")
def client(target: str) -> Iterator[httpx.Client]:
    with served(target) as url, httpx.Client(base_url=url, headers=OURS) as client:
        yield client


def first(client: httpx.Client) -> str:
    id: str = client.get("/api/turns").json()["turns"][0]["id"]
    return id


@pytest.mark.parametrize("path", ["/", "/review.js", "/review.css", "/api/turns", "/nothing"])
def test_every_answer_says_what_a_browser_may_do(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_fetches_nothing_from_elsewhere_and_builds_no_markup(client: httpx.Client) -> None:
    for path in ("/", "/review.js", "/review.css"):
        text = client.get(path).raise_for_status().text
        assert "//" not in text.replace("// ", "").replace("http://www.w3.org", "")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=", "onclick"):
            assert word not in text


def test_no_description_of_itself(client: httpx.Client) -> None:
    assert {client.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")} == {404}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "[::2]", ""])
def test_another_name_is_refused(client: httpx.Client, host: str) -> None:
    for path in ("/", "/api/turns"):
        assert client.get(path, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:1", "LOCALHOST", "[::1]:8090", "127.0.0.1"])
def test_names_of_this_machine(client: httpx.Client, host: str) -> None:
    assert client.get("/api/turns", headers={"Host": host}).status_code == 200


GOOD: dict[str, Any] = {"prompt": "unharmful", "response": None, "note": "", "reviewer": "Ada"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Guardrail-Review": None}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_another_site_changes_nothing(
    client: httpx.Client, target: str, headers: dict[str, str | None], status: int
) -> None:
    id = first(client)
    with httpx.Client(base_url=client.base_url) as other:
        sent = {**OURS, "Content-Type": "application/json", **headers}
        kept = {name: value for name, value in sent.items() if value is not None}
        assert other.post(f"/api/turns/{id}/label", json=GOOD, headers=kept).status_code == status
        assert other.get("/api/turns").status_code == 403  # nor is anything read
    with Archive(target) as archive:
        assert not archive.corrections([id])


@pytest.mark.parametrize(
    "body",
    [
        {}, {**GOOD, "prompt": "evil"}, {**GOOD, "reviewer": ""}, {**GOOD, "note": "x" * 5_000}, {**GOOD, "more": 1},
        {**GOOD, "prompt": None}, [], "xylophone-7",
    ],
)  # fmt: skip
def test_wrong_bodies(client: httpx.Client, body: Any) -> None:
    answer = client.post(f"/api/turns/{first(client)}/label", json=body)
    assert answer.status_code in (400, 422)
    assert "xylophone" not in answer.text
    assert "xxx" not in answer.text


def test_wrong_requests(client: httpx.Client) -> None:
    path = f"/api/turns/{first(client)}/label"
    assert client.post("/api/turns/none/label", json=GOOD).status_code == 404
    assert client.get("/api/turns/none").status_code == 404
    assert client.get("/api/turns", params={"action": "x"}).status_code == 422
    assert client.delete("/api/turns").status_code == 405
    assert client.post("/", json=GOOD).status_code == 405
    assert client.post(path, content=b"x" * 70_000, headers={"Content-Type": "application/json"}).status_code == 413
    assert client.post(path, content=iter([b"{}"]), headers={"Content-Type": "application/json"}).status_code == 411
    assert client.get("/../pyproject.toml").status_code == 404


def test_list_and_turn(client: httpx.Client) -> None:
    found = client.get("/api/turns").json()
    assert (found["total"], found["more"]) == (2, False)
    assert ASKED not in client.get("/api/turns").text
    turn = client.get(f"/api/turns/{first(client)}").json()
    picture, text = turn["content"]["messages"][0]["parts"]
    assert picture["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": ASKED}
    assert client.get("/api/about").json() == {"apps": ["shop"], "reviewer": "Ada"}
    assert client.get("/api/turns", params={"action": "all", "after": found["turns"][1]["id"]}).json()["total"] == 3


def test_a_token(target: str) -> None:
    with served(target, token="sesame") as url, httpx.Client(base_url=url, headers=OURS) as client:
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sesame"}):
            assert client.get("/api/turns", headers=header).status_code == 401
        known = {"Authorization": "Bearer sesame", "Host": "review.example"}
        assert client.get("/api/turns", headers=known).status_code == 200
        assert client.get("/").status_code == 200  # it holds nothing, and asks for the token


def test_others_need_a_token(target: str) -> None:
    with Archive(target) as archive:
        with pytest.raises(ConfigurationError, match="token"):
            serve(archive, host="0.0.0.0")
        with pytest.raises(ConfigurationError, match="empty"):
            create_app(archive, token=" ")
    assert is_loopback("127.0.0.2")
    assert is_loopback("::1")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("guard.example")


def test_content_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    fill(str(path))
    contents = tmp_path / "audit.content.jsonl"
    contents.write_text(contents.read_text().replace('"role":', '"rule":'))
    with served(path) as url, httpx.Client(base_url=url, headers=OURS) as client:
        turn = client.get(f"/api/turns/{first(client)}").json()
    assert turn["content"] is None
    assert "StoredContent" in turn["problem"]
    assert ASKED not in turn["problem"]
