"""The command line: names, exit codes, and one report of an error among all ranks."""

from __future__ import annotations

import argparse
import inspect

import pytest

import dart_train
from dart_train.cli import options as cli
from dart_train.cli.main import COMMANDS, find_command, main


def test_every_command_is_found() -> None:
    assert all(callable(find_command(name)) for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "code", "stream"), [(["--help"], 0, "out"), ([], 2, "err"), (["trian"], 2, "err")]
)
def test_usage_lists_the_commands(
    arguments: list[str], code: int, stream: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    printed = getattr(capsys.readouterr(), stream)
    assert all(name in printed for name in COMMANDS)


def fails(error: Exception) -> cli.Command:
    def run(argv: object) -> int:
        raise error

    return cli.reports_errors("plan")(run)


@pytest.mark.parametrize("error", [ValueError("bad"), NotImplementedError("bad"), OSError("bad"), ImportError("bad")])
def test_refusals_are_reported_in_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(error)([]) == cli.REFUSED
    assert capsys.readouterr().err == "plan: bad\n"


def test_bugs_and_debugging_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError):
        fails(TypeError("bug"))([])
    monkeypatch.setenv("DART_TRAIN_DEBUG", "1")
    with pytest.raises(ValueError):
        fails(ValueError("bad"))([])


def test_keyboard_interrupt_has_its_exit_code() -> None:
    def run(argv: object) -> int:
        raise KeyboardInterrupt

    assert cli.reports_errors("plan")(run)([]) == 130


@pytest.mark.parametrize(
    ("rank", "on_all_ranks", "printed", "waits"),
    [("0", False, "train: bad\n", False), ("1", False, "train (rank 1): bad\n", True), ("1", True, "", False)],
)
def test_rank_zero_reports_first(
    rank: str,
    on_all_ranks: bool,
    printed: str,
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waited: list[float] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("time.sleep", waited.append)
    assert cli.report_error("train", ValueError("bad"), cli.BAD_STEP, on_all_ranks) == 3
    assert (capsys.readouterr().err, bool(waited)) == (printed, waits)


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (cli.budget, "64", 64),
        (cli.budget, "0.25", 0.25),
        (cli.checkpoint, "500", 500),
        (cli.checkpoint, "best", "best"),
        (cli.not_negative_int, "0", 0),
        (cli.positive_float, "0.5", 0.5),
    ],
)
def test_option_types_read(convert: cli.Command, text: str, value: object) -> None:
    read = convert(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("convert", "text"),
    [(cli.budget, "most"), (cli.not_negative_int, "-1"), (cli.positive_int, "0"), (cli.positive_float, "0")],
)
def test_option_types_refuse(convert: cli.Command, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        convert(text)


def test_public_names_are_listed_and_importable() -> None:
    assert set(dart_train.__all__) <= set(dir(dart_train))
    for name in dart_train.__all__:
        assert getattr(dart_train, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        dart_train.nothing  # noqa: B018
    source = inspect.getsource(dart_train).split("__version__")[0]
    assert not [name for name in dart_train.__all__ if name not in source]  # for type checkers
