"""A quick try: the answer of the model itself, word by word, with what was kept and how long it took."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import dart_train
from dart_train.__main__ import main
from dart_train.chat import TimedStreamer, generate_answers
from dart_train.models import loading as weights
from dart_train.models.prompts import assistant_message, user_message
from tests.fixtures.runs import Runs
from tests.zoo import FAMILIES, picture, save_folder

TOLD = re.compile(r"\[(\d+) of (\d+) visual tokens kept; first token [\d.]+ s.*, (\d+) tokens in [\d.]+ s\]")
SHORT = ["--max-new-tokens", "6", "--device", "cpu"]


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    picture(3).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def direct(path: Path, cat: Path, *turns: str, **how: object) -> list[str]:
    """The same conversation without the command."""
    loaded = dart_train.load(path, device="cpu", **how)  # type: ignore[arg-type]
    conversation, told = [], []
    for turn in turns:
        conversation.append(user_message(turn, [picture(3)] if not told else []))
        told += generate_answers(loaded, [conversation], max_new_tokens=6)
        conversation.append(assistant_message(told[-1]))
    return told


@pytest.mark.filterwarnings("ignore::dart_train.checkpoints.UntrainedBudget")
@pytest.mark.parametrize("options,kept,how", [
    ([], 16, {}),
    (["--keep", "4"], 4, {"keep": 4}),
    (["--keep", "0.5"], 32, {"keep": 0.5}),
    (["--full"], 64, {"reducer": None}),
    (["--method", "random", "--keep", "8"], 8, {"reducer": "random", "keep": 8}),
])  # fmt: skip
def test_a_question_is_answered_with_what_was_kept(
    runs: Runs, cat: Path, capsys: pytest.CaptureFixture[str], options: list[str], kept: int, how: dict[str, object]
) -> None:
    run = runs("lora")
    assert main(["chat", str(run), "which shape is red", "--image", str(cat), *SHORT, *options]) == 0
    out, err = capsys.readouterr()
    found = TOLD.search(err)
    assert found and found.groups()[:2] == (str(kept), "64") and 1 <= int(found[3]) <= 6
    assert out.strip().endswith(direct(run, cat, "which shape is red", **how)[0])  # libraries greet before it


def test_an_answer_is_told_while_it_is_written(
    runs: Runs, cat: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, put = [], TimedStreamer.put
    tokenizer = dart_train.load(runs("lora"), device="cpu").processor.tokenizer
    words = iter(tokenizer("a b c d e", add_special_tokens=False)["input_ids"])

    def listening(stream: TimedStreamer, value: torch.Tensor) -> None:
        """The model says nothing that can be read: it is given words to say."""
        put(stream, value if stream.next_tokens_are_prompt else torch.tensor([next(words)]))
        heard.append(capsys.readouterr().out)  # since the token before

    monkeypatch.setattr(TimedStreamer, "put", listening)
    capsys.readouterr()
    assert main(["chat", str(runs("lora")), "which shape is red", "--image", str(cat), *SHORT]) == 0
    _, *tokens = heard  # libraries greet before the prompt
    assert len(tokens) == 6 and [part.strip() for part in tokens if part.strip()][:2] == ["a", "b"]
    assert "a b" not in capsys.readouterr().out  # not all at the end


def test_a_picture_is_seen_as_the_camera_was_held(runs: Runs, cat: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    with Image.open(cat) as upright:
        lying, marks = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    marks[0x0112] = 6  # turn it by 90 degrees, clockwise
    lying.save(tmp_path / "lying.png", exif=marks)
    told = []
    for name in ("cat.png", "lying.png"):
        assert main(["chat", str(runs("lora")), "which", "--image", str(tmp_path / name), *SHORT, "--full"]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]


def test_lines_of_stdin_are_one_conversation(
    runs: Runs, cat: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("which shape is red\nand the small circle\n"))
    assert main(["chat", str(runs("full")), "--image", str(cat), *SHORT]) == 0
    out, err = capsys.readouterr()
    told = direct(runs("full"), cat, "which shape is red", "and the small circle")
    assert [line.strip() for line in out.strip("\n").split("\n")] == told and len(TOLD.findall(err)) == 2


def test_an_untrained_budget_is_said_in_a_line(runs: Runs, cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["chat", str(runs("fixed")), "what", "--image", str(cat), *SHORT, "--keep", "3"])
    assert "chat: served at 3 tokens, but trained at 8 tokens\n" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["qwen2_vl", "idefics3", "gemma3"])
def test_other_families_are_asked_alike(
    family: str, tmp_path: Path, cat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_folder(family, tmp_path / family)
    assert (
        main(["chat", str(tmp_path / family), "what", "--image", str(cat), "--image", str(cat), "--keep", "7", *SHORT])
        == 0
    )
    kept, before, _ = TOLD.search(capsys.readouterr().err).groups()  # type: ignore[union-attr]
    assert kept == "7" and int(before) > 7 and family in FAMILIES


def test_a_question_without_a_picture_is_answered_too(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(runs("lora")), "what", *SHORT]) == 0
    assert "[0 of 0 visual tokens kept" in capsys.readouterr().err


def test_everything_wrong_is_told_before_a_weight_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_folder("llava", tmp_path / "llava")
    (tmp_path / "llava" / "chat_template.jinja").unlink()
    monkeypatch.setattr(weights.AutoModelForImageTextToText, "from_pretrained", None)
    assert main(["chat", str(tmp_path / "llava"), "what", "--image", str(tmp_path / "gone.png")]) == 2
    err = capsys.readouterr().err
    assert "gone.png cannot be read" in err and "no chat template" in err
    assert main(["chat", str(tmp_path / "llava"), "what", "--method", "drat"]) == 2
    assert "did you mean dart?" in capsys.readouterr().err
