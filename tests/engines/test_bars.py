from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'local'")
pytest.importorskip("transformers", reason="needs the extra 'local'")

import huggingface_hub.utils
import torch

from guardrail_vl.engines._bars import without_bars
from guardrail_vl.engines._inputs import hf
from guardrail_vl.engines.transformers import TransformersEngine
from tests.tiny_checkpoint import build_checkpoint

logging: Any = hf.utils.logging
hub: Any = huggingface_hub.utils


@pytest.fixture
def shown() -> Any:
    """As it is where nobody has set anything: bars are shown."""
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    if not before:
        logging.disable_progress_bar()


def drawn(capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether a bar of transformers is drawn now."""
    capsys.readouterr()
    list(logging.tqdm([1, 2], desc="Loading weights"))
    return "Loading weights" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return build_checkpoint(tmp_path_factory.mktemp("bars") / "tiny")


@pytest.mark.usefixtures("shown")
def test_loading_draws_no_bar_and_changes_no_setting(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hf.AutoModelForImageTextToText.from_pretrained(folder)
    assert "Loading weights" in capfd.readouterr().err, "transformers by itself"
    TransformersEngine(folder, device="cpu", dtype="float32").close()
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert logging.is_progress_bar_enabled()
    hf.AutoModelForImageTextToText.from_pretrained(folder)
    assert "Loading weights" in capfd.readouterr().err, "again"


@pytest.mark.usefixtures("shown")
def test_training_and_exporting_load_and_save_without_bars(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft", reason="needs the extra 'train'")
    from guardrail_vl.training._encoding import Encoder
    from guardrail_vl.training.card import CardFacts
    from guardrail_vl.training.export import export
    from guardrail_vl.training.sft import SFTConfig, load_network

    encoder = Encoder(folder, "guardreasoner-vl/1")
    capfd.readouterr()
    load_network(folder, encoder, SFTConfig())
    export(folder, tmp_path / "guard", card=CardFacts("mine", "tiny"))
    assert "%|" not in capfd.readouterr().err


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("on", [True, False])
@pytest.mark.usefixtures("shown")
def test_what_was_set_is_restored(
    on: bool, older: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if older:  # than the hook
        monkeypatch.delattr(logging, "set_tqdm_hook", raising=False)
    if not on:
        logging.disable_progress_bar()
    with pytest.raises(OSError, match="lost"), without_bars():
        assert not drawn(capsys)
        raise OSError("lost")
    assert drawn(capsys) is on
    assert logging.is_progress_bar_enabled() is on
    assert hub.are_progress_bars_disabled() is not on


@pytest.mark.usefixtures("shown")
def test_the_last_of_several_threads_restores(capsys: pytest.CaptureFixture[str]) -> None:
    inside, first_is_out, seen = threading.Barrier(2), threading.Event(), []

    def second() -> None:
        with without_bars():
            inside.wait()
            first_is_out.wait()
            seen.append(drawn(capsys))

    thread = threading.Thread(target=second)
    with without_bars():
        thread.start()
        inside.wait()
    first_is_out.set()
    thread.join()
    assert seen == [False]
    assert drawn(capsys)


@pytest.mark.usefixtures("shown")
def test_a_hook_of_somebody_else_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    if not hasattr(logging, "set_tqdm_hook"):
        pytest.skip("this transformers has no hook")
    asked: list[Any] = []

    def hook(factory: Any, args: Any, kwargs: Any) -> Any:
        asked.append(kwargs["desc"])
        return factory(*args, **kwargs)

    before = logging.set_tqdm_hook(hook)
    try:
        with without_bars():
            assert not drawn(capsys)
        assert asked == []
        assert drawn(capsys)
        assert asked == ["Loading weights"]
    finally:
        logging.set_tqdm_hook(before)
