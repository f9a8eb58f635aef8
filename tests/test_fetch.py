"""Fetching pictures: from a real server on this machine, and never from where one must not look."""

from __future__ import annotations

import asyncio
import functools
import io
import itertools
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guardrail_vl import Guard
from guardrail_vl._address import is_disguised, is_public, resolve
from guardrail_vl.errors import ContentError
from guardrail_vl.fetch import MAX_REDIRECTS, Resolver, afetch, fetch
from guardrail_vl.media import ImageLimits, load_image
from guardrail_vl.prompt_format.base import PromptImage
from guardrail_vl.testing import ScriptedEngine, by_keyword

SECRET = "hunter2"
NAME = "pictures.example"
PUBLIC = "93.184.215.14"


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 4), "teal").save(out, "PNG")
    return out.getvalue()


PNG = picture()
Handler = Callable[[socket.socket, bytes], None]


def ok(body: bytes, *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(body)}"] if length else []), "", ""]
    return "\r\n".join(lines).encode() + body


class Server:
    """A real HTTP server that answers each connection as its handler says, and remembers the requests."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.handler = handler
        self.tls = tls
        self.requests: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.workers: list[threading.Thread] = []

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            worker = threading.Thread(target=self.serve, args=(connection,))
            self.workers.append(worker)
            worker.start()

    def serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        try:
            with connection if self.tls is None else self.tls.wrap_socket(connection, server_side=True) as stream:
                request = b""
                while b"\r\n\r\n" not in request and (more := stream.recv(4096)):
                    request += more
                self.requests.append(request)
                self.handler(stream, request)
        except OSError:
            connection.close()

    def drip(self, stream: socket.socket, parts: Iterator[bytes]) -> None:
        for part in parts:
            if self.stopped.wait(0.02):
                return
            stream.sendall(part)


@contextmanager
def serving(handler: Handler | bytes, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    answer = handler
    server = Server((lambda s, _: s.sendall(answer)) if isinstance(answer, bytes) else answer, tls)
    server.thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        server.thread.join()
        for worker in server.workers:
            worker.join()


def local(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


def fetch_async(url: str, limits: ImageLimits = ImageLimits(), **options: Any) -> bytes:  # noqa: B008
    return asyncio.run(afetch(url, limits, **options))


@pytest.fixture(params=[fetch, fetch_async], ids=["sync", "async"])
def get(request: pytest.FixtureRequest) -> Callable[..., bytes]:
    """Either driver, allowed to ask this machine."""
    driver: Callable[..., bytes] = request.param

    def call(url: str, *args: Any, **options: Any) -> bytes:
        allowed = {"resolver": local, "allow_address": lambda a: a == "127.0.0.1", "ports": range(1, 65536)}
        return driver(url, *args, **{**allowed, **options})

    return call


@pytest.fixture(params=[fetch, fetch_async], ids=["sync", "async"])
def strict(request: pytest.FixtureRequest) -> Callable[..., bytes]:
    """Either driver, as it is by default."""
    driver: Callable[..., bytes] = request.param
    return driver


def refused(get: Callable[..., bytes], *args: Any, **options: Any) -> str:
    with pytest.raises(ContentError) as caught:
        get(*args, **options)
    assert SECRET not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


# ---- what is fetched -------------------------------------------------------------------------------------------


def test_a_picture_is_fetched_once(get: Callable[..., bytes]) -> None:
    with serving(ok(PNG, "Content-Type: text/plain")) as server:
        data = get(f"http://{NAME}:{server.port}/a%20b.png?x=1#fragment")
    assert data == PNG
    assert load_image(data).media_type == "image/png"
    (request,) = server.requests
    lines = request.decode().split("\r\n")
    assert lines[0] == "GET /a%20b.png?x=1 HTTP/1.1"
    names = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines[1:] if line}
    assert names["host"] == f"{NAME}:{server.port}"
    assert names["accept-encoding"] == "identity"
    assert not {"cookie", "authorization", "referer", "proxy-authorization"} & set(names)


def test_proxies_of_the_environment_are_not_used(get: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"HTTP/1.1 500 proxy\r\n\r\n") as proxy, serving(ok(PNG)) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert get(f"http://{NAME}:{server.port}/") == PNG
    assert not proxy.requests


def test_international_names_are_resolved_in_ascii(get: Callable[..., bytes]) -> None:
    asked: list[str] = []

    def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with serving(ok(PNG)) as server:
        assert get(f"http://bücher.example.:{server.port}/", resolver=resolver) == PNG
    assert asked == ["xn--bcher-kva.example"]
    assert b"host: xn--bcher-kva.example:" in server.requests[0].lower()


def test_chunked_and_unmeasured_replies(get: Callable[..., bytes]) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(PNG), PNG)
    for answer in (chunked, ok(PNG, length=False)):
        with serving(answer) as server:
            assert get(f"http://{NAME}:{server.port}/") == PNG


def test_redirects_are_followed_a_few_times(get: Callable[..., bytes]) -> None:
    def handler(stream: socket.socket, request: bytes) -> None:
        left = int(request.split()[1].rpartition(b"/")[2])
        moved = ok(b"", f"Location: ../x/{left - 1}", "Set-Cookie: a=b", status="302 Found")
        stream.sendall(moved if left else ok(PNG))

    with serving(handler) as server:
        assert get(f"http://{NAME}:{server.port}/x/{MAX_REDIRECTS}") == PNG
        assert "redirects more than" in refused(get, f"http://{NAME}:{server.port}/x/{MAX_REDIRECTS + 1}")
    assert not any(b"cookie" in request.lower() for request in server.requests)


def test_the_next_address_is_tried_when_nothing_listens(get: Callable[..., bytes]) -> None:
    with serving(ok(PNG)) as server:
        assert get(
            f"http://{NAME}:{server.port}/",
            resolver=lambda host, port: ["127.0.0.2", "127.0.0.1"],
            allow_address=lambda address: address.startswith("127."),
        ) == PNG  # fmt: skip


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `NAME`, made for the tests and trusted by nobody else."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command makes the certificate of this test")
    folder = tmp_path_factory.mktemp("tls")
    words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={NAME} -addext"
    names = [f"subjectAltName=DNS:{NAME}", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([openssl, *words.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


def test_tls_verifies_the_name_though_the_address_is_pinned(get: Callable[..., bytes], certificate: Path) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    names: list[str | None] = []
    server_side.sni_callback = lambda _socket, name, _context: names.append(name)
    trusted = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with serving(ok(PNG), server_side) as server:
        assert get(f"https://{NAME}:{server.port}/", tls=trusted) == PNG
        assert "can't be reached" in refused(get, f"https://other.example:{server.port}/", tls=trusted)
        assert "can't be reached" in refused(get, f"https://{NAME}:{server.port}/")
    assert names[:2] == [NAME, "other.example"]
    with serving(ok(b"", f"Location: http://{NAME}/", status="302 Found"), server_side) as server:
        assert "from https to http" in refused(get, f"https://{NAME}:{server.port}/", tls=trusted)


# ---- what is refused -------------------------------------------------------------------------------------------

INSIDE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "192.0.2.1", "224.0.0.1", "224.0.1.1", "239.1.1.1",
    "240.0.0.1", "255.255.255.255", "168.63.129.16", "192.88.99.1",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1",
    "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808",
    "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1",
]  # fmt: skip
OUTSIDE = ["8.8.8.8", "1.1.1.1", PUBLIC, "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700:4700::1111"]


def test_which_addresses_are_public() -> None:
    assert [address for address in INSIDE if is_public(address)] == []
    assert [address for address in OUTSIDE if not is_public(address)] == []
    assert not any(map(is_public, ("", "localhost", NAME, "1.2.3", "0x7f.1", "2130706433")))


@given(st.ip_addresses(v=4))
def test_no_wrapped_address_is_public(address: object) -> None:
    value = int(address)  # type: ignore[call-overload]
    a, b = value >> 16, value & 0xFFFF
    for form in (f"::ffff:{a:x}:{b:x}", f"::{a:x}:{b:x}", f"64:ff9b::{a:x}:{b:x}", f"2002:{a:x}:{b:x}::1"):
        assert not is_public(form)


def refused_unasked(get: Callable[..., bytes], url: str) -> str:
    """Refused, and nobody was asked where it is."""
    asked: list[str] = []

    def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return []

    message = refused(get, url, resolver=resolver)
    assert not asked
    return message


@pytest.mark.parametrize("address", INSIDE)
def test_a_name_that_points_inside_is_refused(strict: Callable[..., bytes], address: str) -> None:
    for found in ([address], [PUBLIC, address], [address, PUBLIC]):
        assert "public internet" in refused(strict, f"http://{NAME}/", resolver=lambda h, p, found=found: found)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://localhost/", "http://localhost./", "http://LOCALHOST/", "http://[::1]/",
        "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://169.254.169.254/latest/meta-data/",
        "http://0.0.0.0/", "http://[::]/", "http://10.0.0.1/", "http://192.168.0.1/", "http://[64:ff9b::7f00:1]/",
    ],
)  # fmt: skip
def test_this_machine_and_its_network_are_refused_by_default(strict: Callable[..., bytes], url: str) -> None:
    # The system's own resolver answers for literals and localhost without a network.
    assert "public internet" in refused(strict, url)


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/", "http://0x7f000001/",
        "http://127.0.0.1./", "http://1.2.3.4.5/", "http://foo.0x1/", "http://0/", "http://foo.09/",
        "http://１２７.1/", "http://0x/",
    ],
)  # fmt: skip
def test_numbers_in_disguise_are_refused_before_a_look_up(strict: Callable[..., bytes], url: str) -> None:
    message = refused_unasked(strict, url)
    assert "in disguise" in message or "malformed" in message


def test_plain_addresses_and_names_are_no_disguise() -> None:
    assert not any(map(is_disguised, ("8.8.8.8", NAME, "a.b.c1", "0xcafe.example", "2606:4700::1", "7.example")))


@pytest.mark.parametrize(
    "url",
    [
        "", "hunter2", "//example.org/hunter2", "file:///etc/hunter2", "ftp://example.org/hunter2", "data:,hunter2",
        "http://", "http:///hunter2", "http://user:hunter2@example.org/", "http://user@example.org/",
        "http://example.org:22/", "http://example.org:8080/", "http://example.org:0/", "http://example.org:99999/",
        "http://exa mple.org/", "http://a%00b/", "http://a%2fb/", "http://[fe80::1%25eth0]/", "http://a*b/",
        "http://example.org\\@127.0.0.1/", "http://[::1/", "http://[v1.x]/", "http://a\0b/",
        "http://example.org/\r\nX: y", "http://example.org/" + "a" * 9000,
    ],
)  # fmt: skip
def test_urls_that_are_refused_before_a_look_up(strict: Callable[..., bytes], url: str) -> None:
    refused_unasked(strict, url)


@given(st.text(max_size=60) | st.text("http:/@.[]%0127\\#?& \0é。", max_size=40).map("http://".__add__))
def test_no_text_reaches_this_machine(text: str) -> None:
    """Whatever the URL: the host that is looked up is the host that is asked, and it was allowed."""
    with pytest.raises(ContentError):
        fetch(text, resolver=lambda host, port: ["127.0.0.1"])


def test_a_redirect_inside_is_refused(get: Callable[..., bytes]) -> None:
    """Each hop is resolved and checked again, whatever the first one was."""
    with serving(ok(PNG)) as inner:
        for target in (f"http://inside.example:{inner.port}/{SECRET}", f"//inside.example:{inner.port}/"):
            with serving(ok(b"", f"Location: {target}", status="307 Moved")) as server:
                message = refused(
                    get,
                    f"http://{NAME}:{server.port}/",
                    resolver=lambda host, port: ["127.0.0.1" if host == NAME else "127.0.0.9"],
                )
                assert "public internet" in message
    assert not inner.requests


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://x/", "http://user:hunter2@x/", "http://2130706433/", "http://x:1/", "http://[", ""],
)
def test_a_redirect_is_checked_like_a_url(get: Callable[..., bytes], location: str) -> None:
    with serving(ok(b"", f"Location: {location}", status="301 Moved")) as server:
        refused(get, f"http://{NAME}:{server.port}/", ports={server.port, 80})
    assert len(server.requests) == 1


def test_a_name_that_changes_its_address_is_asked_where_it_was_checked(get: Callable[..., bytes]) -> None:
    """DNS rebinding: the second answer for a name points elsewhere; it is never asked for within a hop."""
    answers = itertools.chain([["127.0.0.1"]], itertools.repeat(["10.0.0.1"]))
    asked: list[str] = []

    def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return next(answers)

    with serving(ok(PNG)) as server:
        assert get(f"http://{NAME}:{server.port}/", resolver=rebinding) == PNG
    assert asked == [NAME]
    with serving(ok(b"", "Location: /again", status="302 Found")) as server:
        answers = itertools.chain([["127.0.0.1"]], itertools.repeat(["10.0.0.1"]))
        assert "public internet" in refused(get, f"http://{NAME}:{server.port}/", resolver=rebinding)
    assert len(server.requests) == 1


def test_names_that_are_not_known(strict: Callable[..., bytes]) -> None:
    def failing(host: str, port: int) -> Sequence[str]:
        raise OSError(SECRET)

    resolvers: list[Resolver] = [failing, lambda host, port: []]
    for resolver in resolvers:
        assert "not known" in refused(strict, f"http://{NAME}/", resolver=resolver)
    with pytest.raises(socket.gaierror):
        resolve("name.invalid", 80)


# ---- a server that misbehaves ----------------------------------------------------------------------------------


def test_too_many_bytes_are_cut_off(get: Callable[..., bytes]) -> None:
    limits = ImageLimits(max_bytes=1000)
    for answer in (
        ok(bytes(1001)),
        ok(bytes(200_000), length=False),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",
    ):
        with serving(answer) as server:
            assert "more than 1000 bytes" in refused(get, f"http://{NAME}:{server.port}/", limits)
    with serving(ok(bytes(1000))) as server:
        assert len(get(f"http://{NAME}:{server.port}/", limits)) == 1000


def test_an_endless_reply_is_cut_off(get: Callable[..., bytes]) -> None:
    def handler(stream: socket.socket, request: bytes) -> None:
        stream.sendall(ok(b"", length=False))
        while True:
            stream.sendall(bytes(65536))

    with serving(handler) as server:
        assert "bytes" in refused(get, f"http://{NAME}:{server.port}/", ImageLimits(max_bytes=10**6))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (ok(PNG, status="404 Not Found"), "status 404"),
        (ok(PNG, status="204 No Content", length=False), "status 204"),
        (ok(PNG, status="206 Partial Content"), "status 206"),
        (ok(PNG, status="503 Busy"), "status 503"),
        (ok(b"", status="302 Found"), "nowhere"),
        (ok(PNG, "Content-Encoding: gzip"), "encoding"),
        (b"", "could not be fetched"),
        (b"hunter2\r\n\r\n", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n", "could not be fetched"),
    ],
)
def test_replies_that_are_no_picture(get: Callable[..., bytes], answer: bytes, says: str) -> None:
    with serving(answer) as server:
        assert says in refused(get, f"http://{NAME}:{server.port}/{SECRET}")


def test_a_host_where_nothing_listens(get: Callable[..., bytes]) -> None:
    with serving(b"") as server:
        pass
    assert "can't be reached" in refused(get, f"http://{NAME}:{server.port}/")


def headers_forever() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX: "
    yield from itertools.repeat(b"x")


def body_forever() -> Iterator[bytes]:
    yield ok(b"", length=False)
    yield from itertools.repeat(b"x")


def body_that_never_ends() -> Iterator[bytes]:
    yield ok(b"")[:-4].replace(b"Content-Length: 0", b"Content-Length: 500") + b"\r\n\r\n"
    yield from itertools.repeat(b"")


@pytest.mark.parametrize("parts", [headers_forever, body_forever, body_that_never_ends, lambda: itertools.repeat(b"")])
def test_the_time_cap_covers_every_byte(get: Callable[..., bytes], parts: Callable[[], Iterator[bytes]]) -> None:
    # Each byte comes well within any timeout for one read.
    with serving(lambda stream, _: server.drip(stream, parts())) as server:
        started = time.monotonic()
        assert "within 0.4 seconds" in refused(get, f"http://{NAME}:{server.port}/", timeout=0.4)
        assert 0.35 < time.monotonic() - started < 2


def test_the_time_cap_covers_redirects_together(get: Callable[..., bytes]) -> None:
    def handler(stream: socket.socket, request: bytes) -> None:
        server.stopped.wait(0.25)
        stream.sendall(ok(b"", "Location: /", status="302 Found"))

    with serving(handler) as server:
        started = time.monotonic()
        assert "within 0.4 seconds" in refused(get, f"http://{NAME}:{server.port}/", timeout=0.4)
        assert time.monotonic() - started < 2


def test_the_time_cap_covers_the_look_up(strict: Callable[..., bytes]) -> None:
    done = threading.Event()

    def hanging(host: str, port: int) -> Sequence[str]:
        done.wait(5)
        return [PUBLIC]

    started = time.monotonic()
    try:
        assert "within 0.3 seconds" in refused(strict, f"http://{NAME}/", timeout=0.3, resolver=hanging)
        assert time.monotonic() - started < 2
    finally:
        done.set()


def test_the_time_cap_covers_the_tls_handshake(get: Callable[..., bytes]) -> None:
    with serving(lambda stream, _: server.drip(stream, itertools.repeat(b""))) as server:
        started = time.monotonic()
        assert "within 0.4 seconds" in refused(get, f"https://{NAME}:{server.port}/", timeout=0.4)
        assert time.monotonic() - started < 2


def test_cancelling_is_not_swallowed() -> None:
    async def scenario(port: int) -> None:
        task = asyncio.create_task(
            afetch(f"http://{NAME}:{port}/", resolver=local, allow_address=lambda _: True, ports=[port])
        )
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with serving(lambda stream, _: server.drip(stream, itertools.repeat(b""))) as server:
        asyncio.run(scenario(server.port))


def test_the_event_loop_is_not_blocked_by_a_look_up() -> None:
    def slow(host: str, port: int) -> Sequence[str]:
        time.sleep(0.3)
        return ["10.0.0.1"]

    async def scenario() -> int:
        task = asyncio.create_task(afetch(f"http://{NAME}/", resolver=slow))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert isinstance(task.exception(), ContentError)
        return ticks

    assert asyncio.run(scenario()) > 10


def test_many_at_once() -> None:
    async def scenario(port: int) -> list[bytes]:
        options: dict[str, Any] = {"resolver": local, "allow_address": lambda _: True, "ports": [port]}
        return await asyncio.gather(*(afetch(f"http://{NAME}:{port}/{i}", **options) for i in range(20)))

    with serving(ok(PNG)) as server:
        assert asyncio.run(scenario(server.port)) == [PNG] * 20


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_guard_judges_what_it_fetched(monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    allowed: dict[str, Any] = {"resolver": local, "allow_address": lambda a: a == "127.0.0.1", "ports": range(65536)}
    monkeypatch.setattr("guardrail_vl.fetch.fetch", functools.partial(fetch, **allowed))
    monkeypatch.setattr("guardrail_vl.fetch.afetch", functools.partial(afetch, **allowed))
    engine = ScriptedEngine(by_keyword("BADWORD"))
    guard = Guard(engine=engine, fetch_images=True)
    with serving(ok(PNG)) as server:
        url = f"http://{NAME}:{server.port}/door.png"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "image_url", "image_url": {"url": url}}]
        messages = [{"role": "user", "content": content}]
        decision = asyncio.run(guard.acheck(messages)) if asynchronous else guard.check(messages)
        assert len(server.requests) == 1  # both are the same picture
    assert not decision.failed, decision.reason
    (prompt,) = engine.prompts
    parts = [part for message in prompt.messages for part in message.content]
    assert [part.part.data for part in parts if isinstance(part, PromptImage)] == [PNG, PNG]
