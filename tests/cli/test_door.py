from __future__ import annotations

import pytest
import typer

from guardrail_vl.cli.door import door
from guardrail_vl.errors import ConfigurationError


def exit_of(error: BaseException | int) -> int:
    @door
    def command() -> int:
        if isinstance(error, BaseException):
            raise error
        return error

    with pytest.raises(typer.Exit) as caught:
        command()
    return caught.value.exit_code


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_command_ends_with_its_status(status: int) -> None:
    assert exit_of(status) == status


def test_our_errors_are_a_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(ConfigurationError("Wrong.", hint="Right it.")) == 2
    assert capsys.readouterr().err == "Error: Wrong.\nRight it.\n"


def test_a_bug_is_never_mistaken_for_a_block_and_repeats_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(RuntimeError("xyzzy")) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: RuntimeError was raised")
    assert "xyzzy" not in err


def test_the_traceback_is_there_for_who_asks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARDRAIL_VL_DEBUG", "1")
    assert exit_of(ConfigurationError("Wrong.")) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
