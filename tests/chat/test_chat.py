"""The chat command: the model's own answer, streamed, with kept tokens and times."""

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
from tests.zoo import FAMILIES, make_image, save_folder

SUMMARY = re.compile(r"\[(\d+) of (\d+) visual tokens kept; first token [\d.]+ s.*, (\d+) tokens in [\d.]+ s\]")
SHORT = ["--max-new-tokens", "6", "--device", "cpu"]


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    make_image(3).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def direct(path: Path, cat: Path, *turns: str, **how: object) -> list[str]:
    """The same conversation without the command."""
    loaded = dart_train.load(path, device="cpu", **how)  # type: ignore[arg-type]
    conversation, found = [], []
    for turn in turns:
        conversation.append(user_message(turn, [make_image(3)] if not found else []))
        found += generate_answers(loaded, [conversation], max_new_tokens=6)
        conversation.append(assistant_message(found[-1]))
    return found


@pytest.mark.filterwarnings("ignore::dart_train.checkpoints.UntrainedBudget")
@pytest.mark.parametrize("options,kept,how", [
    ([], 16, {}),
    (["--keep", "4"], 4, {"keep": 4}),
    (["--keep", "0.5"], 32, {"keep": 0.5}),
    (["--full"], 64, {"reducer": None}),
    (["--method", "random", "--keep", "8"], 8, {"reducer": "random", "keep": 8}),
])  # fmt: skip
def test_answer_and_kept_tokens(
    runs: Runs, cat: Path, capsys: pytest.CaptureFixture[str], options: list[str], kept: int, how: dict[str, object]
) -> None:
    run = runs("lora")
    assert main(["chat", str(run), "which shape is red", "--image", str(cat), *SHORT, *options]) == 0
    out, err = capsys.readouterr()
    found = SUMMARY.search(err)
    assert found and found.groups()[:2] == (str(kept), "64") and 1 <= int(found[3]) <= 6
    assert out.strip().endswith(direct(run, cat, "which shape is red", **how)[0])  # libraries print before it


def test_answer_is_streamed(
    runs: Runs, cat: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed, put = [], TimedStreamer.put
    tokenizer = dart_train.load(runs("lora"), device="cpu").processor.tokenizer
    words = iter(tokenizer("a b c d e", add_special_tokens=False)["input_ids"])

    def record(stream: TimedStreamer, value: torch.Tensor) -> None:
        """The answer of an untrained model is not readable; it is replaced by known words."""
        put(stream, value if stream.next_tokens_are_prompt else torch.tensor([next(words)]))
        printed.append(capsys.readouterr().out)  # since the token before

    monkeypatch.setattr(TimedStreamer, "put", record)
    capsys.readouterr()
    assert main(["chat", str(runs("lora")), "which shape is red", "--image", str(cat), *SHORT]) == 0
    _, *tokens = printed  # libraries print before the prompt
    assert len(tokens) == 6 and [part.strip() for part in tokens if part.strip()][:2] == ["a", "b"]
    assert "a b" not in capsys.readouterr().out  # not all at the end


def test_exif_rotation(runs: Runs, cat: Path, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    with Image.open(cat) as upright:
        rotated, marks = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    marks[0x0112] = 6  # turn it by 90 degrees, clockwise
    rotated.save(tmp_path / "rotated.png", exif=marks)
    answers = []
    for name in ("cat.png", "rotated.png"):
        assert main(["chat", str(runs("lora")), "which", "--image", str(tmp_path / name), *SHORT, "--full"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_stdin_lines_are_one_conversation(
    runs: Runs, cat: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("which shape is red\nand the small circle\n"))
    assert main(["chat", str(runs("full")), "--image", str(cat), *SHORT]) == 0
    out, err = capsys.readouterr()
    expected = direct(runs("full"), cat, "which shape is red", "and the small circle")
    assert [line.strip() for line in out.strip("\n").split("\n")] == expected and len(SUMMARY.findall(err)) == 2


def test_untrained_budget_warning(runs: Runs, cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["chat", str(runs("fixed")), "what", "--image", str(cat), *SHORT, "--keep", "3"])
    assert "chat: served at 3 tokens, but trained at 8 tokens\n" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["qwen2_vl", "idefics3", "gemma3"])
def test_other_families(family: str, tmp_path: Path, cat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_folder(family, tmp_path / family)
    assert (
        main(["chat", str(tmp_path / family), "what", "--image", str(cat), "--image", str(cat), "--keep", "7", *SHORT])
        == 0
    )
    kept, before, _ = SUMMARY.search(capsys.readouterr().err).groups()  # type: ignore[union-attr]
    assert kept == "7" and int(before) > 7 and family in FAMILIES


def test_question_without_an_image(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(runs("lora")), "what", *SHORT]) == 0
    assert "[0 of 0 visual tokens kept" in capsys.readouterr().err


def test_problems_are_reported_together_before_weights_are_read(
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


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu"])
def test_device_that_the_machine_lacks_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save_folder("llava", tmp_path / "llava")
    capsys.readouterr()
    assert main(["chat", str(tmp_path / "llava"), "what", "--device", device]) == 2
    message = capsys.readouterr().err
    assert device in message and "cpu" in message and message.count("\n") == 1
