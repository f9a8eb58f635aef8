"""LangChain's own standard tests, for a guarded ChatOpenAI and, beside it, for the bare one on the same server.

What fails for both is the server's or the client's. What can't pass for the guarded one is marked, with the reason.
"""

from __future__ import annotations

import io
import types
import wave
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from unittest import mock

import pytest
from PIL import Image

from guardrail_vl import Decision, Guard
from guardrail_vl.errors import ContentError
from guardrail_vl.testing import ScriptedEngine, by_keyword
from tests.integrations.langchain.apps import BAD
from tests.integrations.langchain.standard_llm import answer
from tests.integrations.llm import Llm

pytest.importorskip("langchain_tests")
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.integration_tests import chat_models as suite
from langchain_tests.unit_tests import ChatModelUnitTests

from guardrail_vl.integrations.langchain import guarded

pytestmark = [
    pytest.mark.anyio,
    # What langchain-openai says of the suite's requests, guarded or not.
    pytest.mark.filterwarnings("ignore:Received a Pydantic BaseModel V1 schema:UserWarning"),
    pytest.mark.filterwarnings("ignore:OpenAI may require a filename for file uploads:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),  # of its own `parsed`
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def llm() -> Iterator[Llm]:
    server = Llm(answer)
    yield server
    server.close()


def media(url: str, **_: Any) -> types.SimpleNamespace:
    """What the suite would download from the internet, to send it to the model."""
    file = io.BytesIO()
    kind = url.rpartition(".")[2]
    if kind == "wav":
        with wave.open(file, "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(1600))
    elif kind == "pdf":
        file.write(b"%PDF-1.4\n%%EOF\n")
    else:
        Image.new("RGB", (64, 48), "blue").save(file, {"png": "PNG", "jpg": "JPEG"}[kind])
    return types.SimpleNamespace(content=file.getvalue())


class Bare:
    """What the suite is told of ChatOpenAI on our server."""

    llm: Llm
    standard_chat_model_params: Any

    @pytest.fixture(autouse=True)
    def _prepared(self, llm: Llm, monkeypatch: pytest.MonkeyPatch) -> None:
        self.llm = llm
        monkeypatch.setattr(suite, "httpx", types.SimpleNamespace(get=media))
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "none: nothing is downloaded")

    @pytest.fixture
    def benchmark(self, benchmark: Any) -> Any:
        """The suite asserts nothing of the time it takes: once is enough."""
        benchmark.disabled = True
        return benchmark

    @pytest.fixture
    def vcr(self) -> types.SimpleNamespace:
        """A recording is for tests that would reach out; this server is here."""
        return types.SimpleNamespace(responses=True)

    @pytest.fixture
    def snapshot(self) -> Any:
        """How another package writes ChatOpenAI down is not ours to pin; that it can be read back is tested."""
        return lambda **_: mock.ANY

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return self.settings_of_the_server

    @property
    def settings_of_the_server(self) -> dict[str, Any]:
        return {"model": "m", "api_key": "k", "base_url": self.llm.url, "max_retries": 0, "stream_usage": True}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        named = {
            "OPENAI_API_KEY": "a key",
            "OPENAI_ORG_ID": "an organization",
            "OPENAI_API_BASE": "http://127.0.0.1/v1",
        }
        fields = ("openai_api_key", "openai_organization", "openai_api_base")
        return named, {}, dict(zip(fields, named.values(), strict=True))

    supports_json_mode = True
    supports_image_inputs = True
    supports_image_tool_message = True
    supports_pdf_inputs = True
    supports_pdf_tool_message = True
    supports_audio_inputs = True
    supports_anthropic_inputs = True
    supports_image_urls = False  # they are of the internet; what is fetched is tested in test_models.py
    supports_model_override = True
    enable_vcr_tests = True
    model_override_value = "another"
    supported_usage_metadata_details: ClassVar[Any] = {
        "invoke": ["reasoning_output", "cache_read_input"],
        "stream": ["reasoning_output", "cache_read_input"],
    }

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._ask("Why is the sky blue?", stream=stream, reasoning_effort="low")

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._ask("What is this? " + "Blue is the sky. " * 400, stream=stream)

    def _ask(self, prompt: str, *, stream: bool, **settings: Any) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params, **settings)
        if not stream:
            return model.invoke(prompt)
        whole: Any = None
        for chunk in model.stream(prompt):
            whole = chunk if whole is None else whole + chunk
        assert isinstance(whole, AIMessageChunk)
        return whole


class Guarded(Bare):
    """The same, guarded: made by `guarded`, or, where the suite makes one itself, by its class and the guard."""

    rules: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _judged(self, _prepared: None) -> Iterator[None]:
        asked: list[Decision] = []
        answered: list[Decision] = []
        self.guard = Guard(
            engine=ScriptedEngine(by_keyword(BAD)),
            pre_prompt=lambda _, decision: asked.append(decision),
            post_response=lambda _, decision: answered.append(decision),
        )
        self.made: Any = self.guard_one()
        before = len(self.llm.requests)
        yield
        sent = len(self.llm.requests) - before
        assert sum(not one.blocked for one in asked) == sent, "a request was sent that nobody judged"
        assert len(answered) >= sent, "a reply was given that nobody judged"

    def guard_one(self, settings: Mapping[str, Any] | None = None, **rules: Any) -> ChatOpenAI:
        bare = ChatOpenAI(**{**self.settings_of_the_server, **(settings or {})})
        return guarded(bare, self.guard, **self.rules, **rules)

    @pytest.fixture
    def model(self, request: Any) -> BaseChatModel:
        return self.guard_one({**self.standard_chat_model_params, **getattr(request, "param", {})})

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return type(self.made)

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**self.settings_of_the_server, "guardrail": self.made.guardrail}


class GuardedIntegration(Guarded, ChatModelIntegrationTests):
    """What can't be judged is refused by name; allowed by that name, it passes."""

    @pytest.fixture
    def allowing(self) -> BaseChatModel:
        return self.guard_one(allow_unguarded={"file", "audio", "input_audio"})

    @pytest.mark.xfail(strict=True, raises=ContentError, reason="No guard reads a document: it is refused by name.")
    def test_pdf_inputs(self, model: BaseChatModel) -> None:
        super().test_pdf_inputs(model)

    @pytest.mark.xfail(strict=True, raises=ContentError, reason="No guard reads a document: it is refused by name.")
    def test_pdf_tool_message(self, model: BaseChatModel) -> None:
        super().test_pdf_tool_message(model)

    @pytest.mark.xfail(strict=True, raises=ContentError, reason="No guard hears a sound: it is refused by name.")
    def test_audio_inputs(self, model: BaseChatModel) -> None:
        super().test_audio_inputs(model)

    def test_allowed_pdf_inputs(self, allowing: BaseChatModel) -> None:
        super().test_pdf_inputs(allowing)

    def test_allowed_pdf_tool_message(self, allowing: BaseChatModel) -> None:
        super().test_pdf_tool_message(allowing)

    def test_allowed_audio_inputs(self, allowing: BaseChatModel) -> None:
        super().test_audio_inputs(allowing)


class TestBareUnit(Bare, ChatModelUnitTests):
    """Has no guard."""


class TestBareIntegration(Bare, ChatModelIntegrationTests):
    """Has no guard."""


class TestGuardedUnit(Guarded, ChatModelUnitTests):
    """Has one."""

    @pytest.mark.xfail(
        strict=True, raises=ValueError, reason="A guard can't be written down: a dump of what has one is not loaded."
    )
    def test_serdes(self, model: BaseChatModel, snapshot: Any) -> None:
        super().test_serdes(model, snapshot)


class TestGuardedIntegration(GuardedIntegration):
    """Streams are judged while they are written."""


class TestGuardedWholeIntegration(GuardedIntegration):
    """Streams are judged as a whole; blocks are refusals."""

    rules: ClassVar[Mapping[str, Any]] = {"stream": "full", "on_block": "refuse"}
